//! `auto` boot: reads from a disk itself which kernel it boots.
//!
//! [`discover`] does on the host what firmware and boot loader would do in the guest. It finds the
//! partitions (GPT or MBR) and the boot loader's configuration, through the EFI system partition or
//! directly on a root or `/boot` partition. It interprets the configuration (GRUB), and reads the
//! kernel and initrd that it chooses. Call it again at every boot and reboot, before a vCPU runs,
//! so that the guest boots the kernel that it has installed last.
//!
//! Everything on the disk is untrusted. Every size is limited ([`Limits`]), and so are the
//! commands, reads and time. Anything unsupported is an error that names file, line and construct.
//! Nothing is written: an ext4 journal that a killed guest left behind is replayed in memory, and
//! what GRUB's `save_env` would write is only listed ([`BootPlan::saved`]).
//!
//! Supported are disks with 512-byte blocks, GPT and MBR with logical partitions, ext2 to ext4 and
//! FAT. Not supported yet are btrfs, XFS, LVM, encryption, Boot Loader Specification entries,
//! systemd-boot, unified kernel images, extlinux and GRUB legacy: an error names them.

mod budget;
mod content;
mod crc;
mod devices;
mod error;
mod ext4;
mod fat;
mod fs;
mod grub;
mod limits;
mod loaders;
mod locate;
mod partition;
mod plan;
mod window;

#[cfg(test)]
mod discover_test;
#[cfg(test)]
mod testing;

use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use fleetbox_devices::block::Disk;
use tracing::debug_span;

use self::budget::Budget;
use self::devices::{Devices, Location};
use self::fs::{FsError, Kind};
use self::window::Window;

pub use self::error::BootError;
pub use self::limits::Limits;
pub use self::plan::{BootOrigin, BootPlan};

/// Finds what `disk` boots, and reads it.
///
/// The disk must not be written to meanwhile.
///
/// ```no_run
/// use fleetbox_devices::block::{OpenOptions, open_disk};
/// use fleetbox_vmm::boot::{Limits, discover};
///
/// let disk = open_disk("debian-12.raw".as_ref(), &OpenOptions::read_only())?;
/// let plan = discover(disk, &Limits::default())?;
/// println!("{}", plan.describe());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// See [`BootError`].
pub fn discover(disk: Arc<dyn Disk>, limits: &Limits) -> Result<BootPlan, BootError> {
    let budget = Budget::new(limits);
    let found = find(disk, limits, &budget);
    // What was not found because a limit was exceeded may well be there.
    budget.check()?;
    found
}

fn find(disk: Arc<dyn Disk>, limits: &Limits, budget: &Rc<Budget>) -> Result<BootPlan, BootError> {
    let started = Instant::now();
    let disk = Window::whole(disk, budget.clone());
    // Spans, so that a log at level debug tells where the time goes.
    let table = debug_span!("partitions").in_scope(|| partition::partitions(&disk))?;
    let devices = Devices::new(table, budget.clone());
    let config =
        debug_span!("find_configuration").in_scope(|| locate::configuration(&devices, limits))?;
    let choice = debug_span!("interpret").in_scope(|| grub::run(&devices, &config, limits))?;
    let kernel =
        debug_span!("read_kernel").in_scope(|| read(&devices, &choice.kernel, limits.kernel))?;
    let initrd = debug_span!("read_initrd")
        .in_scope(|| read_initrds(&devices, &choice.initrds, limits.initrd))?;
    let source = BootOrigin {
        config: choice.config,
        entry: choice.titles,
        kernel: devices.display(&choice.kernel),
        initrds: choice
            .initrds
            .iter()
            .map(|location| devices.display(location))
            .collect(),
    };
    tracing::info!(
        entry = source.entry.join(" > "),
        kernel = source.kernel,
        milliseconds = started.elapsed().as_millis() as u64,
        "read the boot entry from the disk"
    );
    Ok(BootPlan {
        kernel,
        initrd,
        cmdline: choice.cmdline,
        source,
        saved: choice.saved,
    })
}

fn read(devices: &Devices, location: &Location, limit: u64) -> Result<Vec<u8>, BootError> {
    devices
        .read(location, limit)
        .map_err(|error| unusable(devices, location, &error))
}

fn unusable(devices: &Devices, location: &Location, error: &FsError) -> BootError {
    BootError::File {
        file: devices.display(location),
        problem: error.to_string(),
    }
}

/// All initrds, one after the other; `None` if there are none. They have at most `limit` bytes in
/// total.
fn read_initrds(
    devices: &Devices,
    locations: &[Location],
    limit: u64,
) -> Result<Option<Vec<u8>>, BootError> {
    if locations.is_empty() {
        return Ok(None);
    }
    // One allocation for all, because they are large.
    let mut total = 0u64;
    for location in locations {
        let kind = devices.kind(location);
        if let Kind::File(size) = kind
            .and_then(|kind| kind.ok_or(FsError::NotFound))
            .map_err(|error| unusable(devices, location, &error))?
        {
            total = total.saturating_add(size).next_multiple_of(4);
        }
    }
    let mut all = Vec::with_capacity(usize::try_from(total.min(limit)).unwrap_or(0));
    for location in locations {
        // As GRUB does, so that the kernel finds the next archive.
        all.resize(all.len().next_multiple_of(4), 0);
        let left = limit.saturating_sub(all.len() as u64);
        devices
            .append(location, left, &mut all)
            .map_err(|error| unusable(devices, location, &error))?;
    }
    Ok(Some(all))
}
