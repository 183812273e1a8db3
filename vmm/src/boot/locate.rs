//! Finds the configuration file that the firmware and the boot loader would use.

use super::devices::{Device, Devices, Location};
use super::error::BootError;
use super::fs::{Kind, Volume};
use super::limits::Limits;

/// The places of GRUB's configuration in distributions, on the root or on the `/boot` partition.
const WELL_KNOWN: [&str; 4] = [
    "/boot/grub/grub.cfg",
    "/boot/grub2/grub.cfg",
    "/grub/grub.cfg",
    "/grub2/grub.cfg",
];
/// Maximum bytes of a boot loader binary that is searched for its directory's name.
const MAX_LOADER: u64 = 8 << 20;

/// The configuration to start with: the stub on the EFI system partition, or else the file at one
/// of its usual places.
///
/// # Errors
/// There is no configuration. The error says what the disk contains.
pub(super) fn configuration(devices: &Devices, limits: &Limits) -> Result<Location, BootError> {
    let typed = devices.iter().any(|(_, device)| device.esp);
    for (index, device) in devices.iter().filter(|(_, device)| device.esp || !typed) {
        if let Some(volume) = device.volume().filter(|volume| volume.kind_name() == "fat")
            && let Some(path) = stub(volume, limits)
        {
            return Ok(Location {
                device: index,
                path,
            });
        }
    }
    for path in WELL_KNOWN {
        for (index, device) in devices.iter() {
            let found = device.volume().map(|volume| volume.kind(path));
            match found {
                Some(Ok(Some(Kind::File(_)))) => {
                    return Ok(Location {
                        device: index,
                        path: path.into(),
                    });
                }
                Some(Err(error)) => {
                    tracing::warn!(device = device.name, path, %error, "cannot look for a file");
                }
                _ => {}
            }
        }
    }
    let mut found = devices.summary();
    if devices.iter().any(|(_, device)| has_systemd_boot(device)) {
        found.push_str("; it boots with systemd-boot, which is not supported");
    }
    Err(BootError::NoConfiguration { found })
}

/// The path of `EFI/*/grub.cfg` that the installed GRUB would read.
fn stub(volume: &dyn Volume, limits: &Limits) -> Option<String> {
    let mut names = match volume.list("/EFI") {
        Ok(names) => names,
        Err(error) => {
            tracing::debug!(%error, "no /EFI on the EFI system partition");
            return None;
        }
    };
    names.sort_unstable();
    names.retain(|name| {
        let path = format!("/EFI/{name}/grub.cfg");
        matches!(volume.kind(&path), Ok(Some(Kind::File(size))) if size <= limits.config)
    });
    // GRUB looks where it was installed from, the distribution's directory, even if it was started
    // from the directory for removable media.
    let (fallback, mut own): (Vec<String>, Vec<String>) = names
        .into_iter()
        .partition(|name| name.eq_ignore_ascii_case("BOOT"));
    if own.len() > 1 {
        let loader = ["/EFI/BOOT/grubx64.efi", "/EFI/BOOT/BOOTX64.EFI"]
            .iter()
            .find_map(|path| volume.read(path, MAX_LOADER).ok())
            .unwrap_or_default();
        let built_in = own.iter().position(|name| {
            let prefix = format!("/EFI/{name}");
            loader
                .windows(prefix.len())
                .any(|at| at.eq_ignore_ascii_case(prefix.as_bytes()))
        });
        own.rotate_left(built_in.unwrap_or(0));
    }
    own.into_iter()
        .chain(fallback)
        .next()
        .map(|name| format!("/EFI/{name}/grub.cfg"))
}

fn has_systemd_boot(device: &Device) -> bool {
    device.volume().is_some_and(|volume| {
        let file = |path| matches!(volume.kind(path), Ok(Some(_)));
        file("/EFI/systemd/systemd-bootx64.efi") || file("/loader/loader.conf")
    })
}
