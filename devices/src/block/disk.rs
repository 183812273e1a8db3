//! What a disk is, whatever holds it.

use std::io;
use std::path::Path;

use super::error::DiskError;

/// The unit that a disk's size is a multiple of, in bytes.
pub(super) const SECTOR: u64 = 512;

/// The largest disk, in bytes: 64 TiB.
pub(super) const MAX_SIZE: u64 = 64 << 40;

/// A disk of a fixed size, in bytes, shared by threads.
///
/// Offsets and lengths may come from a guest: an access beyond [`Disk::len`] is an error, never a
/// panic. Every method either does all of its work or fails.
pub trait Disk: Send + Sync {
    /// Size in bytes, a multiple of 512.
    fn len(&self) -> u64;

    /// True for a disk of no bytes.
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
    /// The host fails to.
    fn flush(&self) -> io::Result<()>;

    /// Gives the range's host blocks back; it reads as zeroes from then on (base data never
    /// reappears).
    ///
    /// # Errors
    /// As [`Disk::write_at`].
    fn discard(&self, offset: u64, len: u64) -> io::Result<()>;

    /// Makes the range read as zeroes; with `unmap` its host blocks may be given back.
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

/// Refuses a size that no disk can have.
pub(super) fn check_size(path: &Path, size: u64) -> Result<(), DiskError> {
    let bad = |why: String| DiskError::BadSize {
        path: path.to_path_buf(),
        size,
        why,
    };
    if size == 0 || !size.is_multiple_of(SECTOR) {
        return Err(bad(format!(
            "the size must be a multiple of {SECTOR} above 0"
        )));
    }
    if size > MAX_SIZE {
        return Err(bad(format!("the size must be at most {} bytes", MAX_SIZE)));
    }
    Ok(())
}
