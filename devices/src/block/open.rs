//! Opening images by format.

use std::fmt;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::host::HostFile;
use super::layer::{self, LayerDisk};
use super::qcow2;
use super::raw::RawDisk;
use super::{Disk, DiskError, FileIdentity, SECTOR};

/// The most images that can lie under one another.
pub(super) const MAX_CHAIN: usize = 16;

/// How an image file holds a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Format {
    /// The file's bytes are the disk's.
    Raw,
    /// QEMU's format, version 2 or 3.
    Qcow2,
    /// A copy-on-write layer made by [`create_layer`](super::create_layer).
    Layer,
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
            Self::Layer => "layer",
        })
    }
}

/// How to open a disk.
#[derive(Clone, Debug)]
pub struct OpenOptions {
    /// Refuse modifications, and share the file with other readers.
    pub read_only: bool,
    /// The image's format. `None` looks for it in the content, which is right only for an image
    /// that no guest has ever written: a guest can write another format's header, naming any file
    /// of the host as its base, to the start of its raw disk. (An image opened so that is found to
    /// be raw refuses such a write, so it stays raw.)
    pub format: Option<Format>,
    /// For a layer: its base is here now, instead of where it was when the layer was created.
    pub base: Option<PathBuf>,
    /// For a layer: digest that the caller knows its base to have. Where it is the one recorded
    /// in the layer, the base may be another file of the same content.
    pub base_digest: Option<String>,
    /// [`Disk::flush`] makes writes durable. Without, it does nothing: writes survive a kill of
    /// this process but not a crash of the host, which is all that a disposable VM needs.
    pub durable: bool,
}

impl OpenOptions {
    /// To read an image of unknown format.
    pub fn read_only() -> Self {
        Self {
            read_only: true,
            format: None,
            base: None,
            base_digest: None,
            durable: true,
        }
    }

    /// To read and write an image of this format.
    pub fn writable(format: Format) -> Self {
        Self {
            read_only: false,
            format: Some(format),
            ..Self::read_only()
        }
    }
}

/// Opens the image at `path`, and the chain of images under it, which are only ever read.
///
/// Its file is locked as long as the disk exists: exclusively if it is opened for writing, shared
/// if not. So are the images under it, shared. The locks are those of `F_OFD_SETLK`, which QEMU
/// respects as well.
///
/// # Errors
/// See [`DiskError`].
pub fn open_disk(path: &Path, options: &OpenOptions) -> Result<Arc<dyn Disk>, DiskError> {
    Chain::default().open(path, options)
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
    if size > layer::MAX_SIZE {
        return Err(bad(format!(
            "the size must be at most {} bytes",
            layer::MAX_SIZE
        )));
    }
    Ok(())
}

/// The format that an image's first bytes tell; `None` for a raw image.
pub(super) fn probe_magic(start: &[u8; 8]) -> Option<Format> {
    if *start == layer::MAGIC {
        Some(Format::Layer)
    } else if start.starts_with(b"QFI\xfb") {
        Some(Format::Qcow2)
    } else {
        None
    }
}

/// The files opened so far for one disk, the topmost first.
#[derive(Default)]
pub(super) struct Chain {
    seen: Vec<(u64, u64)>,
}

impl Chain {
    /// Opens the image at `path` and what lies under it.
    pub(super) fn open(
        &mut self,
        path: &Path,
        options: &OpenOptions,
    ) -> Result<Arc<dyn Disk>, DiskError> {
        Ok(self.open_with_identity(path, options)?.0)
    }

    /// Opens the image at `path` and what lies under it, and tells which file it was.
    pub(super) fn open_with_identity(
        &mut self,
        path: &Path,
        options: &OpenOptions,
    ) -> Result<(Arc<dyn Disk>, FileIdentity), DiskError> {
        self.check(path)?;
        let file = HostFile::open(path, !options.read_only)?;
        let identity = file.identity().clone();
        Ok((self.open_file(file, options)?, identity))
    }

    fn open_file(
        &mut self,
        file: HostFile,
        options: &OpenOptions,
    ) -> Result<Arc<dyn Disk>, DiskError> {
        let format = match options.format {
            Some(format) => format,
            None => probe(&file)?,
        };
        match format {
            Format::Raw => Ok(Arc::new(RawDisk::new(file, options))),
            Format::Qcow2 => qcow2::open(file, options, self),
            Format::Layer => Ok(Arc::new(LayerDisk::open(file, options, self)?)),
        }
    }

    /// Refuses a file that is in the chain already, before its lock is found taken by ourselves,
    /// and a chain that is too long.
    fn check(&mut self, path: &Path) -> Result<(), DiskError> {
        use std::os::unix::fs::MetadataExt;
        if self.seen.len() >= MAX_CHAIN {
            return Err(DiskError::ChainTooLong {
                path: path.to_path_buf(),
                max: MAX_CHAIN,
            });
        }
        let metadata = std::fs::metadata(path).map_err(DiskError::io("open", path))?;
        let node = (metadata.dev(), metadata.ino());
        if self.seen.contains(&node) {
            return Err(DiskError::Cycle {
                path: path.to_path_buf(),
            });
        }
        self.seen.push(node);
        Ok(())
    }
}

/// Looks for the format in the content.
pub(super) fn probe(file: &HostFile) -> Result<Format, DiskError> {
    let mut start = [0; 8];
    file.read_up_to_end(&mut start, 0)
        .map_err(DiskError::io("read", file.path()))?;
    Ok(probe_magic(&start).unwrap_or(Format::Raw))
}
