//! Why a disk cannot be booted by its own configuration.

use std::io;

/// What to do where a disk cannot be booted by its own configuration.
const REMEDY: &str = "give the kernel explicitly (--kernel, --initrd, --cmdline)";

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
