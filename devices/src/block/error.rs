//! Why a disk cannot be opened or created.

use std::io;
use std::path::{Path, PathBuf};

use super::format::Format;

/// Why a disk cannot be opened or created.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DiskError {
    /// The host refuses an operation on the file.
    #[error("cannot {action} the disk {}: {source}", path.display())]
    Io {
        /// The action, as a verb.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The host's error.
        source: io::Error,
    },
    /// The file is in use by another process, or by another disk of this process.
    #[error(
        "the disk {} is in use: {}", path.display(),
        if *writer {
            "a disk that is written to must not be open elsewhere; stop the VM that uses it, or create a layer over it for this VM"
        } else {
            "another VM is writing to it; stop that VM first"
        }
    )]
    InUse {
        /// The file.
        path: PathBuf,
        /// True if it was opened for writing.
        writer: bool,
    },
    /// The path is not a disk image.
    #[error("{} is neither a regular file nor a block device; give the path of a disk image", path.display())]
    NotADisk {
        /// The path.
        path: PathBuf,
    },
    /// The image's metadata is damaged or hostile.
    #[error("the {format} image {} is damaged: {what}; restore it from its source", path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// The format as which the file was read.
        format: Format,
        /// What is wrong with it.
        what: String,
    },
    /// The image uses an unsupported feature.
    #[error("the {format} image {} cannot be used: {what}; {remedy}", path.display())]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// The format as which the file was read.
        format: Format,
        /// The feature.
        what: String,
        /// What to do about it.
        remedy: String,
    },
    /// The image names another file, whose content the guest would see, and [`OpenOptions::follow`] is not set.
    ///
    /// [`OpenOptions::follow`]: super::OpenOptions::follow
    #[error(
        "the {format} image {} is refused: it names {named:?} as its {role}, and the guest could read that file; {remedy}",
        path.display()
    )]
    NamesFile {
        /// The image.
        path: PathBuf,
        /// Its format.
        format: Format,
        /// What it names the file as, such as "backing file".
        role: &'static str,
        /// The name, as it is in the image. It was not opened.
        named: String,
        /// What to do about it.
        remedy: String,
    },
    /// The base is not the file that the layer was created over.
    #[error(
        "the layer {} was created over another {}: {what}; restore the original base, or delete the layer and create it again",
        layer.display(), base.display()
    )]
    BaseChanged {
        /// The layer.
        layer: PathBuf,
        /// Its base.
        base: PathBuf,
        /// What differs.
        what: String,
    },
    /// A chain of images leads back to itself.
    #[error("the disk {} is its own base, directly or through other images; correct the base that it names", path.display())]
    Cycle {
        /// The file seen twice.
        path: PathBuf,
    },
    /// A chain of images is longer than allowed.
    #[error(
        "the disk {} has more than {max} images under it; flatten it: qemu-img convert -O raw IN OUT", path.display()
    )]
    ChainTooLong {
        /// The file that exceeded the limit.
        path: PathBuf,
        /// The limit.
        max: usize,
    },
    /// A layer cannot be smaller than the disk below it.
    #[error("a disk of {size} bytes cannot be created at {}: the disk below it has {base_size} bytes", path.display())]
    TooSmall {
        /// The file.
        path: PathBuf,
        /// The requested size in bytes.
        size: u64,
        /// The size in bytes of the disk below it.
        base_size: u64,
    },
    /// The size is invalid.
    #[error("a disk of {size} bytes cannot be created at {}: {why}", path.display())]
    BadSize {
        /// The file.
        path: PathBuf,
        /// The requested size in bytes.
        size: u64,
        /// What is wrong with it.
        why: String,
    },
}

impl DiskError {
    /// Wraps the host's error for `action` on `path`.
    pub(super) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::Io {
            action,
            path,
            source,
        }
    }

    /// A damaged `format` image at `path`.
    pub(super) fn corrupt(path: &Path, format: Format, what: impl Into<String>) -> Self {
        Self::Corrupt {
            path: path.to_path_buf(),
            format,
            what: what.into(),
        }
    }
}
