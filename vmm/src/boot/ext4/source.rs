//! The newest bytes of an ext4 file system: the partition's, and over them the journal's.

use super::journal::Overlay;
use crate::boot::fs::FsError;
use crate::boot::window::Window;

/// The file system's bytes after a recovery.
pub(super) struct Source {
    pub(super) disk: Window,
    pub(super) overlay: Overlay,
}

impl Source {
    /// Fills `buf` from `offset`.
    ///
    /// # Errors
    /// The range is not on the partition, the disk fails, or the budget is exhausted.
    pub(super) fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), FsError> {
        self.disk.read(offset, buf)?;
        self.overlay.apply(&self.disk, offset, buf)
    }
}

/// The little-endian number at `at`; 0 beyond the end.
pub(super) fn le16(bytes: &[u8], at: usize) -> u16 {
    let found = bytes.get(at..).and_then(|bytes| bytes.first_chunk());
    found.map_or(0, |bytes| u16::from_le_bytes(*bytes))
}

/// The little-endian number at `at`; 0 beyond the end.
pub(super) fn le32(bytes: &[u8], at: usize) -> u32 {
    let found = bytes.get(at..).and_then(|bytes| bytes.first_chunk());
    found.map_or(0, |bytes| u32::from_le_bytes(*bytes))
}
