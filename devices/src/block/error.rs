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
        /// What was tried, as a verb.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The host's answer.
        source: io::Error,
    },
    /// Another process, or another disk of this one, holds the file in a way that excludes this
    /// use.
    #[error(
        "the disk {} is in use: {}", path.display(),
        if *writer {
            "to write to it, nothing else may have it open; stop the VM that uses it, or create a layer over it for this one"
        } else {
            "another VM is writing to it; stop that VM first"
        }
    )]
    InUse {
        /// The file.
        path: PathBuf,
        /// True if it was to be opened for writing.
        writer: bool,
    },
    /// The path names something that is no disk image.
    #[error("{} is neither a regular file nor a block device; give the path of a disk image", path.display())]
    NotADisk {
        /// The path.
        path: PathBuf,
    },
    /// The image's own metadata is damaged, or hostile.
    #[error("the {format} image {} is damaged: {what}; restore it from its source", path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What the file was read as.
        format: Format,
        /// What is wrong with it.
        what: String,
    },
    /// The image uses something that is not supported here.
    #[error("the {format} image {} cannot be used: {what}; {remedy}", path.display())]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// What the file was read as.
        format: Format,
        /// What it uses.
        what: String,
        /// What to do about it.
        remedy: String,
    },
    /// A base is not the file that its layer was created over.
    #[error(
        "the layer {} was created over another {}: {what}; put the original base back, or delete the layer and create it anew",
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
    #[error("the disk {} is, over its bases, its own base; correct the base that it names", path.display())]
    Cycle {
        /// The file seen twice.
        path: PathBuf,
    },
    /// A chain of images is longer than allowed.
    #[error(
        "the disk {} has more than {max} images under it; flatten it: qemu-img convert -O raw IN OUT", path.display()
    )]
    ChainTooLong {
        /// The file at which it was given up.
        path: PathBuf,
        /// The longest chain allowed.
        max: usize,
    },
    /// A size that cannot be.
    #[error("a disk of {size} bytes cannot be created at {}: {why}", path.display())]
    BadSize {
        /// The file.
        path: PathBuf,
        /// Size asked for, in bytes.
        size: u64,
        /// Why not.
        why: String,
    },
}

impl DiskError {
    /// Wraps the host's refusal of `action` on `path`.
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
