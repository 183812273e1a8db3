//! Disks: what a virtio-blk device, and the boot code, read and write.
//!
//! [`open_disk`] opens an image of any [`Format`] as a [`Disk`]. A VM's disk is a layer
//! ([`create_layer`]): a sparse file that holds what the guest has written, over a base that is
//! never written and that any number of layers share. `docs/adr/0004-disk-layers.md` says why it
//! is made as it is.
//!
//! ```no_run
//! use fleetbox_devices::block::{Base, Format, LayerOptions, OpenOptions, create_layer, open_disk};
//! # fn main() -> Result<(), fleetbox_devices::block::DiskError> {
//! let base = Base::new("debian-12.qcow2".as_ref(), Some(Format::Qcow2));
//! create_layer("web.layer".as_ref(), &LayerOptions { base: Some(base), ..Default::default() })?;
//! let disk = open_disk("web.layer".as_ref(), &OpenOptions::writable(Format::Layer))?;
//! assert!(!disk.read_only());
//! # Ok(())
//! # }
//! ```

mod error;
mod host;
mod layer;
#[cfg(test)]
mod model_test;
mod open;
mod qcow2;
mod raw;
mod reader;

use std::io;

pub use error::DiskError;
pub use host::FileIdentity;
pub use layer::{Base, BaseInfo, LayerInfo, LayerOptions, create_layer, layer_info};
pub use open::{Format, OpenOptions, create_raw, open_disk};
pub use reader::DiskReader;

/// The unit that a disk's size is a multiple of, in bytes.
const SECTOR: u64 = 512;

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
fn check_range(disk_len: u64, offset: u64, len: u64) -> io::Result<()> {
    match offset.checked_add(len) {
        Some(end) if end <= disk_len => Ok(()),
        _ => Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("{len} bytes at {offset} are beyond the end of a disk of {disk_len} bytes"),
        )),
    }
}

/// Refuses a modification of a read-only disk.
fn refuse_write(read_only: bool) -> io::Result<()> {
    if read_only {
        return Err(io::Error::new(
            io::ErrorKind::ReadOnlyFilesystem,
            "the disk is read-only",
        ));
    }
    Ok(())
}
