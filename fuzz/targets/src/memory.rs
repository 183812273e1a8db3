//! Files without a place on a disk.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::path::PathBuf;

use nix::sys::memfd::{MFdFlags, memfd_create};

/// A file in memory, which exists as long as this value.
pub(crate) struct MemoryFile(File);

impl MemoryFile {
    /// A file with this content.
    ///
    /// # Errors
    /// The host has no memory for it.
    pub(crate) fn new(content: &[u8]) -> io::Result<Self> {
        let mut file = File::from(memfd_create("input", MFdFlags::MFD_CLOEXEC)?);
        file.write_all(content)?;
        Ok(Self(file))
    }

    /// A path by which this process can open it.
    pub(crate) fn path(&self) -> PathBuf {
        format!("/proc/self/fd/{}", self.0.as_raw_fd()).into()
    }
}
