//! Why building or running a machine fails.

use std::fmt;
use std::io;
use std::path::PathBuf;

/// Why a machine could not be started, or ended without a power-off of its guest.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The description of the machine is invalid.
    #[error("invalid machine: {0}")]
    Config(String),
    /// The host cannot run this kind of guest.
    #[error("{what} cannot run here: {reason}")]
    Host {
        /// What should run.
        what: String,
        /// Why not, and what to do.
        reason: String,
    },
    /// The hypervisor failed.
    #[error(transparent)]
    Hypervisor(#[from] crate::hypervisor::Error),
    /// The first disk does not say what to boot, or in an unsupported way.
    #[error("cannot boot from the disk: {0}")]
    Boot(#[from] crate::boot::BootError),
    /// A file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The operating system's error.
        source: io::Error,
    },
    /// The kernel, initial RAM disk or command line cannot be loaded.
    #[error("{what}: {reason}")]
    Load {
        /// Which of them.
        what: String,
        /// Why not.
        reason: String,
    },
    /// The host refuses the memory, a thread or a file descriptor.
    #[error("{what}: {source}")]
    Resource {
        /// What was needed.
        what: String,
        /// The operating system's error.
        source: io::Error,
    },
    /// A device cannot be built.
    #[error("{device}: {reason}")]
    Device {
        /// The device.
        device: String,
        /// Why not.
        reason: String,
    },
    /// The guest failed.
    #[error(transparent)]
    Guest(Box<GuestFailure>),
}

/// A failed guest: what happened, the registers, and the end of its console's output.
#[derive(Debug)]
pub struct GuestFailure {
    /// What happened.
    pub what: String,
    /// The vCPU it happened on.
    pub vcpu: Option<u8>,
    /// That vCPU's registers, as text.
    pub registers: Option<String>,
    /// The end of the serial console's output.
    pub console: String,
}

impl std::error::Error for GuestFailure {}

impl fmt::Display for GuestFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the guest failed: {}", self.what)?;
        if let Some(vcpu) = self.vcpu {
            write!(f, " (vCPU {vcpu})")?;
        }
        if let Some(registers) = &self.registers {
            write!(f, "\n{registers}")?;
        }
        if self.console.is_empty() {
            f.write_str("\nthe console is empty")
        } else {
            write!(f, "\nlast console lines:\n{}", self.console)
        }
    }
}
