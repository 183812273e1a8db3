//! `auto` boot: which kernel a disk boots, read from the disk itself.
//!
//! [`discover`] does on the host what firmware and boot loader would do in the guest: find the
//! partitions (GPT or MBR), the boot loader's configuration (through the EFI system partition, or
//! directly on a root or `/boot` partition), interpret it (GRUB) and read the kernel and initrd that
//! it chooses. It is meant to be called anew at every boot and every reboot, before a vCPU runs, so
//! that what the guest has installed since is what boots.
//!
//! Everything on the disk is untrusted: every size is limited ([`Limits`]), the work is bounded in
//! commands, reads and time, and what cannot be understood is an error that names file, line and
//! construct. Nothing is written; an ext4 journal that a killed guest left behind is replayed in
//! memory, and what GRUB's `save_env` would write is only listed ([`BootPlan::saved`]).
//!
//! Read are: disks with 512-byte blocks; ext4 (as `mke2fs` makes it by default) and FAT. Not (yet):
//! btrfs, XFS, LVM, encryption, Boot Loader Specification entries, systemd-boot, unified kernel
//! images.

mod crc;
mod devices;
mod ext4;
mod extents;
mod fat;
mod fs;
mod grub;
mod journal;
mod locate;
mod partition;
mod window;

#[cfg(test)]
mod discover_test;
#[cfg(test)]
mod testing;

use std::fmt::Write as _;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fleetbox_devices::block::Disk;
use tracing::debug_span;

use self::devices::{Devices, Location};
use self::window::{Budget, Window};

/// What to do where a disk cannot be booted by its own configuration.
const REMEDY: &str = "give the kernel explicitly (--kernel, --initrd, --cmdline)";

/// How much of a disk is read and interpreted at most.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Bytes of a kernel.
    pub kernel: u64,
    /// Bytes of all initrds together.
    pub initrd: u64,
    /// Bytes of one configuration file or environment block.
    pub config: u64,
    /// Commands that a configuration runs.
    pub steps: u64,
    /// Bytes read from the disk, in all.
    pub bytes: u64,
    /// Reads from the disk, in all.
    pub reads: u64,
    /// Time that all of it takes.
    pub time: Duration,
}

impl Default for Limits {
    /// A kernel of 256 MiB, initrds of 1 GiB, configuration files of 1 MiB, 100,000 commands,
    /// 4 GiB and 8 million reads, one minute.
    fn default() -> Self {
        Self {
            kernel: 256 << 20,
            initrd: 1 << 30,
            config: 1 << 20,
            steps: 100_000,
            bytes: 4 << 30,
            reads: 8_000_000,
            time: Duration::from_secs(60),
        }
    }
}

/// What a disk boots.
#[derive(Clone, Debug)]
pub struct BootPlan {
    /// The kernel file's bytes.
    pub kernel: Vec<u8>,
    /// The initrds' bytes, one after the other, each from a multiple of four bytes on.
    pub initrd: Option<Vec<u8>>,
    /// The kernel's command line as GRUB would pass it, `BOOT_IMAGE=` included.
    pub cmdline: String,
    /// Where it comes from.
    pub source: BootOrigin,
    /// Variables that the configuration asked GRUB to save in its environment block, with their
    /// values (`None`: unset). They are not written to the disk.
    pub saved: Vec<(String, Option<String>)>,
}

/// Where a [`BootPlan`] comes from. Files are named as GRUB names them: `(hd0,gpt1)/boot/vmlinuz`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BootOrigin {
    /// The configuration file.
    pub config: String,
    /// The titles of the submenus and of the menu entry, outermost first.
    pub entry: Vec<String>,
    /// The kernel's file.
    pub kernel: String,
    /// The initrds' files.
    pub initrds: Vec<String>,
}

impl BootPlan {
    /// The plan for a person to read, some lines of text.
    pub fn describe(&self) -> String {
        let mut text = String::new();
        // Writing to a string does not fail.
        let _ = writeln!(text, "config   {}", self.source.config);
        let _ = writeln!(text, "entry    {}", self.source.entry.join(" > "));
        let _ = writeln!(
            text,
            "kernel   {} ({} bytes)",
            self.source.kernel,
            self.kernel.len()
        );
        let size = self.initrd.as_ref().map_or(0, Vec::len);
        for initrd in &self.source.initrds {
            let _ = writeln!(text, "initrd   {initrd} ({size} bytes in all)");
        }
        let _ = writeln!(text, "cmdline  {}", self.cmdline);
        for (name, value) in &self.saved {
            let value = value.as_deref().unwrap_or("(unset)");
            let _ = writeln!(text, "unsaved  {name}={value}");
        }
        text
    }
}

/// Why a disk cannot be booted by its own configuration.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BootError {
    /// The disk has no bytes.
    #[error("the disk is empty: nothing to boot")]
    Empty,
    /// The disk could not be read, or took too much reading.
    #[error("cannot read {what}: {source}")]
    Read {
        /// What was being read.
        what: String,
        /// Why it failed.
        source: io::Error,
    },
    /// Both copies of the GPT are damaged.
    #[error(
        "the disk's partition table is damaged (first GPT: {primary}; backup GPT: {backup}): \
         restore the disk, or {REMEDY}"
    )]
    PartitionTable {
        /// What is wrong with the first copy.
        primary: String,
        /// What is wrong with the backup.
        backup: String,
    },
    /// No configuration of a known boot loader was found.
    #[error("no GRUB configuration on the disk ({found}): {REMEDY}")]
    NoConfiguration {
        /// What the disk holds instead.
        found: String,
    },
    /// A line of a configuration is not understood, or does not lead to a kernel.
    #[error("{file}:{line}: `{construct}`: {problem}; correct it in the guest, or {REMEDY}")]
    Config {
        /// The configuration file.
        file: String,
        /// The line, counted from 1.
        line: u32,
        /// The command, or what kind of thing it is.
        construct: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A file that is needed cannot be used.
    #[error("{file}: {problem}; correct it in the guest, or {REMEDY}")]
    File {
        /// The file.
        file: String,
        /// What is wrong with it.
        problem: String,
    },
}

/// Finds out what `disk` boots, and reads it.
///
/// The disk must not be written meanwhile.
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
    let read = |location: &Location, limit: u64| {
        devices
            .read(location, limit)
            .map_err(|error| BootError::File {
                file: devices.display(location),
                problem: error.to_string(),
            })
    };
    let kernel = debug_span!("read_kernel").in_scope(|| read(&choice.kernel, limits.kernel))?;
    let reading = debug_span!("read_initrd").entered();
    let mut initrd: Option<Vec<u8>> = None;
    for location in &choice.initrds {
        let so_far = initrd.as_ref().map_or(0, |bytes| bytes.len() as u64);
        let bytes = read(location, limits.initrd.saturating_sub(so_far))?;
        match &mut initrd {
            None => initrd = Some(bytes),
            Some(all) => {
                // As GRUB does, so that the kernel finds the next archive.
                all.resize(all.len().next_multiple_of(4), 0);
                all.extend_from_slice(&bytes);
            }
        }
    }
    drop(reading);
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
        "boot entry read from the disk"
    );
    Ok(BootPlan {
        kernel,
        initrd,
        cmdline: choice.cmdline,
        source,
        saved: choice.saved,
    })
}
