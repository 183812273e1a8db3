//! The interface of a disk, independent of its storage.

use std::io;
use std::path::Path;

use super::error::DiskError;

/// Bytes of a sector. A disk's size is a multiple of it.
pub(super) const SECTOR: u64 = 512;

/// Maximum size of a disk in bytes: 64 TiB.
pub(super) const MAX_SIZE: u64 = 64 << 40;

/// A disk of a fixed size, in bytes, shared by threads.
///
/// Offsets and lengths may come from a guest, so an access beyond [`Disk::len`] is an error, never
/// a panic. Every method either does all of its work or fails.
pub trait Disk: Send + Sync {
    /// Size in bytes, a multiple of 512.
    fn len(&self) -> u64;

    /// True if the disk has no bytes.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// True if every modification is refused with [`io::ErrorKind::ReadOnlyFilesystem`].
    fn read_only(&self) -> bool;

    /// Fills `buf` from `offset`.
    ///
    /// # Errors
    /// The range is beyond the end, or the host fails to read all of it.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()>;

    /// Writes `buf` at `offset`.
    ///
    /// # Errors
    /// Read-only, beyond the end, or the host fails to write all of it.
    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()>;

    /// Makes all completed writes durable.
    ///
    /// # Errors
    /// The host fails.
    fn flush(&self) -> io::Result<()>;

    /// Frees the range's blocks on the host. The range then reads as zeros; data of a base never
    /// reappears.
    ///
    /// # Errors
    /// As [`Disk::write_at`].
    fn discard(&self, offset: u64, len: u64) -> io::Result<()>;

    /// Makes the range read as zeros. With `unmap` its blocks on the host may be freed.
    ///
    /// # Errors
    /// As [`Disk::write_at`].
    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()>;
}

/// Refuses a range that is not within `0..disk_len`.
pub(super) fn check_range(disk_len: u64, offset: u64, len: u64) -> io::Result<()> {
    match offset.checked_add(len) {
        Some(end) if end <= disk_len => Ok(()),
        _ => Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("{len} bytes at {offset} are beyond the end of a disk of {disk_len} bytes"),
        )),
    }
}

/// Refuses a modification of a read-only disk.
pub(super) fn refuse_write(read_only: bool) -> io::Result<()> {
    if read_only {
        return Err(io::Error::new(
            io::ErrorKind::ReadOnlyFilesystem,
            "the disk is read-only",
        ));
    }
    Ok(())
}

/// Refuses an invalid size.
pub(super) fn check_size(path: &Path, size: u64) -> Result<(), DiskError> {
    let bad = |why: String| DiskError::BadSize {
        path: path.to_path_buf(),
        size,
        why,
    };
    if size == 0 || !size.is_multiple_of(SECTOR) {
        return Err(bad(format!(
            "the size must be a positive multiple of {SECTOR}"
        )));
    }
    if size > MAX_SIZE {
        return Err(bad(format!("the size must be at most {} bytes", MAX_SIZE)));
    }
    Ok(())
}
