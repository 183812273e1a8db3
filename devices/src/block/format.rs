//! How image files hold disks, and how to open one.

use std::fmt;
use std::path::PathBuf;

/// First bytes of a layer.
pub(super) const LAYER_MAGIC: [u8; 8] = *b"FBxLAYER";

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
    /// [`Disk::flush`](super::Disk::flush) makes writes durable. Without, it does nothing: writes survive a kill of
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

/// The format that an image's first bytes tell; `None` for a raw image.
pub(super) fn probe_magic(start: &[u8; 8]) -> Option<Format> {
    if *start == LAYER_MAGIC {
        Some(Format::Layer)
    } else if start.starts_with(b"QFI\xfb") {
        Some(Format::Qcow2)
    } else {
        None
    }
}
