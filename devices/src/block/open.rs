//! Opens and creates images of every format.

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

/// Opens the image at `path` and the chain of images under it, which are only read.
///
/// Its file is locked as long as the disk exists: exclusively if it is opened for writing,
/// otherwise shared. The images under it are locked shared. The locks use `F_OFD_SETLK`, like
/// QEMU's.
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
        None => match probe(&file)? {
            // The author of the file chose its base.
            Format::Layer if !options.follow => {
                layer::refuse_base(&file)?;
                Format::Layer
            }
            format => format,
        },
    };
    match format {
        Format::Raw => Ok(Arc::new(RawDisk::new(file, options))),
        Format::Qcow2 => qcow2::open(file, options, chain),
        Format::Layer => Ok(Arc::new(LayerDisk::open(file, options, chain)?)),
    }
}

/// Checks that the layer at `path` could be opened again after it is closed: the images under it are there, and have not
/// changed since it was created. The layer may be in use.
///
/// # Errors
/// See [`DiskError`].
pub fn check_base(path: &Path) -> Result<(), DiskError> {
    layer::check_base(path, &mut Chain::new(open_file))
}

/// Creates a layer at `path`, which must not exist. This takes milliseconds for any size, because
/// nothing is copied. The file appears under its name only when it is complete.
///
/// # Errors
/// See [`DiskError`].
pub fn create_layer(path: &Path, options: &LayerOptions) -> Result<LayerInfo, DiskError> {
    layer::create(path, options, &mut Chain::new(open_file))
}

/// Creates a raw image of `size` bytes, a multiple of 512, that reads as zeros and uses no space.
/// It is an error if the file exists.
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
