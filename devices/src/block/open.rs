//! Opening and creating images of every format.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use super::chain::{Chain, probe};
use super::disk::{Disk, check_size};
use super::error::DiskError;
use super::format::{Format, OpenOptions};
use super::host::HostFile;
use super::layer::{self, LayerDisk, LayerInfo, LayerOptions};
use super::qcow2;
use super::raw::RawDisk;

/// Opens the image at `path`, and the chain of images under it, which are only ever read.
///
/// Its file is locked as long as the disk exists: exclusively if it is opened for writing, shared
/// if not. So are the images under it, shared. The locks are those of `F_OFD_SETLK`, which QEMU
/// respects as well.
///
/// # Errors
/// See [`DiskError`].
pub fn open_disk(path: &Path, options: &OpenOptions) -> Result<Arc<dyn Disk>, DiskError> {
    Chain::new(open_file).open(path, options)
}

fn open_file(
    file: HostFile,
    options: &OpenOptions,
    chain: &mut Chain,
) -> Result<Arc<dyn Disk>, DiskError> {
    let format = match options.format {
        Some(format) => format,
        None => probe(&file)?,
    };
    match format {
        Format::Raw => Ok(Arc::new(RawDisk::new(file, options))),
        Format::Qcow2 => qcow2::open(file, options, chain),
        Format::Layer => Ok(Arc::new(LayerDisk::open(file, options, chain)?)),
    }
}

/// Creates a layer at `path`, which must not exist. Takes milliseconds whatever the size: nothing
/// is copied. The file has its name only once it is whole.
///
/// # Errors
/// See [`DiskError`].
pub fn create_layer(path: &Path, options: &LayerOptions) -> Result<LayerInfo, DiskError> {
    layer::create(path, options, &mut Chain::new(open_file))
}

/// Creates a raw image of `size` bytes, a multiple of 512, that reads as zeroes and occupies no
/// space. A file that exists is an error.
///
/// # Errors
/// See [`DiskError`].
pub fn create_raw(path: &Path, size: u64) -> Result<(), DiskError> {
    check_size(path, size)?;
    let file = File::create_new(path).map_err(DiskError::io("create", path))?;
    file.set_len(size)
        .and_then(|()| file.sync_all())
        .map_err(|e| {
            let _ = std::fs::remove_file(path);
            DiskError::io("create", path)(e)
        })
}
