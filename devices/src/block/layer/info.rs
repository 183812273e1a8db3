//! The properties of a layer and of its base.

use std::path::{Path, PathBuf};

use crate::block::format::Format;
use crate::block::host::FileIdentity;

/// A base: an image under layers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Base {
    /// Its path.
    pub path: PathBuf,
    /// Its format; `None` detects it from the content, see [`OpenOptions::format`](super::super::OpenOptions::format).
    pub format: Option<Format>,
    /// Digest of the file, with any algorithm the caller chooses; at most 160 bytes of text.
    pub digest: Option<String>,
}

impl Base {
    /// A base without a known digest.
    pub fn new(path: &Path, format: Option<Format>) -> Self {
        Self {
            path: path.to_path_buf(),
            format,
            digest: None,
        }
    }
}

/// What a layer records about its base.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BaseInfo {
    /// The base, with an absolute path and a known format.
    pub base: Base,
    /// Size of the base's disk in bytes.
    pub size: u64,
    /// The identity of the base's file when the layer was created.
    pub identity: FileIdentity,
}

/// How to create a layer.
#[derive(Clone, Debug)]
pub struct LayerOptions {
    /// The base. Without one, the layer reads as zeros at first.
    pub base: Option<Base>,
    /// Whether the base may name other files, as [`OpenOptions::follow`](super::super::OpenOptions::follow) has it. A base
    /// that is a layer may name its own base if its format is given.
    pub follow: bool,
    /// Size of the disk in bytes: a multiple of 512, and at least the size of the base, which is also the default. The
    /// part beyond the base reads as zeros.
    pub size: Option<u64>,
    /// Whether the new layer survives a crash of the host.
    pub durable: bool,
}

impl Default for LayerOptions {
    fn default() -> Self {
        Self {
            base: None,
            follow: false,
            size: None,
            durable: true,
        }
    }
}

/// The properties of a layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerInfo {
    /// The layer's file.
    pub path: PathBuf,
    /// Size of the disk in bytes.
    pub size: u64,
    /// The base.
    pub base: Option<BaseInfo>,
    /// Bytes of the disk that are in the layer, including discarded ones.
    pub own: u64,
}
