//! Disks: what a virtio-blk device, and the boot code, read and write.

use std::io;

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
