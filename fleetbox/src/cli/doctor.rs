//! `doctor`: whether VMs can run here, a line for each thing they need.

use std::path::Path;

use fleetbox::store::Store;
use fleetbox::{Result, VmState, preflight};
use nix::sys::statvfs::statvfs;

use super::{FAILURE, say};

/// Less free space than this is remarked on: an image and what a guest writes at its first boot.
const ROOM: u64 = 4 << 30;

pub(super) async fn run(home: Option<&Path>) -> Result<u8> {
    let mut healthy = true;
    let mut line = |good: bool, what: &str, text: String| {
        healthy &= good;
        say(format_args!(
            "{} {what}: {text}",
            if good { "ok  " } else { "FAIL" }
        ));
    };

    let probe = preflight::probe();
    line(probe.hardware(), "kvm", probe.to_string());

    let opened = match home {
        Some(home) => Store::open(home),
        None => Store::open_default(),
    };
    match opened {
        Ok(store) => {
            line(true, "state", store.home().display().to_string());
            if let Ok(space) = statvfs(store.home()) {
                let free = space
                    .blocks_available()
                    .saturating_mul(space.fragment_size());
                let text = format!("{} MiB free for images and disks", free >> 20);
                line(free >= ROOM, "space", text);
            }
            match fleetbox::list(Some(store.home())).await {
                Ok(vms) => {
                    let running = vms.iter().filter(|vm| vm.state == VmState::Running).count();
                    line(
                        true,
                        "vms",
                        format!("{} in all, {running} running", vms.len()),
                    );
                }
                Err(error) => line(false, "vms", error.to_string()),
            }
        }
        Err(error) => line(false, "state", error.to_string()),
    }
    Ok(if healthy { 0 } else { FAILURE })
}
