//! Why a disk cannot be booted from its own configuration.

use std::io;

use super::budget::Exceeded;

/// What to do if a disk cannot be booted from its own configuration.
const REMEDY: &str = "give the kernel explicitly (--kernel, --initrd, --cmdline)";

/// Why a disk cannot be booted from its own configuration.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BootError {
    /// The disk has no bytes.
    #[error("cannot boot from the disk: it is empty")]
    Empty,
    /// Reading the boot entry would take more than [`Limits`](super::Limits) allow. What they count
    /// comes from the disk, which is not trusted.
    #[error("cannot read the boot entry from the disk: {exceeded}: {REMEDY}")]
    Limit {
        /// Which limit, and its value.
        exceeded: String,
    },
    /// The disk could not be read.
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
    /// The disk was partitioned for other sectors than a machine's disks have.
    #[error(
        "the disk is partitioned for sectors of {bytes} bytes, but a machine's disks have sectors \
         of 512, so that its Linux would find no partition: make the image for sectors of 512 \
         bytes, or {REMEDY}"
    )]
    SectorSize {
        /// Bytes of a sector that the partition table is for.
        bytes: u64,
    },
    /// No configuration was found, and parts of the disk could not be read.
    #[error(
        "cannot find what the disk boots, because not all of it can be read ({problems}): {REMEDY}"
    )]
    Unreadable {
        /// What could not be read, and why.
        problems: String,
    },
    /// No configuration of a known boot loader was found.
    #[error("no GRUB configuration on the disk ({found}): {REMEDY}")]
    NoConfiguration {
        /// What the disk contains instead.
        found: String,
    },
    /// A line of a configuration is not supported, or does not lead to a kernel.
    #[error("{file}:{line}: `{construct}`: {problem}; correct it in the guest, or {REMEDY}")]
    Config {
        /// The configuration file.
        file: String,
        /// The line, counted from 1.
        line: u32,
        /// The command or other construct.
        construct: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A required file cannot be used.
    #[error("{file}: {problem}; correct it in the guest, or {REMEDY}")]
    File {
        /// The file.
        file: String,
        /// What is wrong with it.
        problem: String,
    },
}

impl From<Exceeded> for BootError {
    fn from(exceeded: Exceeded) -> Self {
        Self::Limit {
            exceeded: exceeded.to_string(),
        }
    }
}
