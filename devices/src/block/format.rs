//! The formats of image files, and the options to open one.

use std::fmt;
use std::path::PathBuf;

/// First bytes of a layer.
pub(super) const LAYER_MAGIC: [u8; 8] = *b"FBxLAYER";

/// The format of an image file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Format {
    /// Raw: the file's bytes are the disk's.
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
    /// The image's format. `None` detects it from the content. Use that only for an image that no guest has ever
    /// written: a guest can write another format's header to the start of its raw disk, and so change what the disk
    /// is. If the image is detected as raw, such a write is refused, so that it stays raw.
    pub format: Option<Format>,
    /// Whether the image may name other files, which are then opened and which the guest can read: the backing file of
    /// a qcow2 image, and the base of a layer that was recognised by its content. Set it only if you trust the
    /// author of the image with every file that you can read. Without it, such an image is refused with
    /// [`DiskError::NamesFile`](super::DiskError::NamesFile). The base of a layer whose format is given as
    /// [`Format::Layer`] is always opened: it was checked when the layer was created.
    pub follow: bool,
    /// For a layer: the path of its base, if the base was moved after the layer was created.
    pub base: Option<PathBuf>,
    /// For a layer: the digest of its base. If it equals the digest recorded in the layer, the base may be another file
    /// with the same content.
    pub base_digest: Option<String>,
    /// Whether [`Disk::flush`](super::Disk::flush) makes writes durable. If not, it does nothing: writes survive a kill
    /// of this process, but not a crash of the host. That is enough for a disposable VM.
    pub durable: bool,
}

impl OpenOptions {
    /// Options to read an image of unknown format.
    pub fn read_only() -> Self {
        Self {
            read_only: true,
            format: None,
            follow: false,
            base: None,
            base_digest: None,
            durable: true,
        }
    }

    /// Options to read and write an image of this format.
    pub fn writable(format: Format) -> Self {
        Self {
            read_only: false,
            format: Some(format),
            ..Self::read_only()
        }
    }
}

/// Detects the format from an image's first bytes; `None` for a raw image.
pub(super) fn probe_magic(start: &[u8; 8]) -> Option<Format> {
    if *start == LAYER_MAGIC {
        Some(Format::Layer)
    } else if start.starts_with(b"QFI\xfb") {
        Some(Format::Qcow2)
    } else {
        None
    }
}
