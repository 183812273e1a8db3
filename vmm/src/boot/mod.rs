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
//! Supported are disks with 512-byte blocks, ext4 (as `mke2fs` makes it by default) and FAT. Not
//! supported yet are btrfs, XFS, LVM, encryption, Boot Loader Specification entries, systemd-boot
//! and unified kernel images.

mod content;
mod crc;
mod devices;
mod error;
mod ext4;
mod ext4_layout;
mod extents;
mod fat;
mod fs;
mod grub;
mod journal;
mod limits;
mod locate;
mod partition;
mod plan;
mod window;

#[cfg(test)]
mod discover_test;
#[cfg(test)]
mod testing;

use std::sync::Arc;
use std::time::Instant;

use fleetbox_devices::block::Disk;
use tracing::debug_span;

use self::devices::{Devices, Location};
use self::window::{Budget, Window};

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
    let started = Instant::now();
    let budget = Budget::new(limits.bytes, limits.reads, started + limits.time);
    let disk = Window::whole(disk, budget.clone());
    // Spans, so that a log at level debug tells where the time goes.
    let devices =
        Devices::new(debug_span!("partitions").in_scope(|| partition::partitions(&disk))?);
    let config =
        debug_span!("find_configuration").in_scope(|| locate::configuration(&devices, limits))?;
    let choice = debug_span!("interpret").in_scope(|| grub::run(&devices, &config, limits))?;
    let kernel =
        debug_span!("read_kernel").in_scope(|| read(&devices, &choice.kernel, limits.kernel))?;
    let initrd = debug_span!("read_initrd")
        .in_scope(|| read_initrds(&devices, &choice.initrds, limits.initrd))?;
    budget.check_time().map_err(|source| BootError::Read {
        what: "the boot files".into(),
        source,
    })?;
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
        .map_err(|error| BootError::File {
            file: devices.display(location),
            problem: error.to_string(),
        })
}

/// All initrds, one after the other; `None` if there are none. They have at most `limit` bytes in
/// total.
fn read_initrds(
    devices: &Devices,
    locations: &[Location],
    limit: u64,
) -> Result<Option<Vec<u8>>, BootError> {
    let mut all: Option<Vec<u8>> = None;
    for location in locations {
        let so_far = all.as_ref().map_or(0, |bytes| bytes.len() as u64);
        let bytes = read(devices, location, limit.saturating_sub(so_far))?;
        match &mut all {
            None => all = Some(bytes),
            Some(all) => {
                // As GRUB does, so that the kernel finds the next archive.
                all.resize(all.len().next_multiple_of(4), 0);
                all.extend_from_slice(&bytes);
            }
        }
    }
    Ok(all)
}
