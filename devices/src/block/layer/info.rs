//! What a layer is made of, and what there is to know of one.

use std::path::{Path, PathBuf};

use crate::block::format::Format;
use crate::block::host::FileIdentity;

/// An image for layers to lie on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Base {
    /// Where it is.
    pub path: PathBuf,
    /// Its format; `None` looks for it in the content, see [`OpenOptions::format`](super::super::OpenOptions::format).
    pub format: Option<Format>,
    /// Digest of the file by whatever algorithm the caller uses, at most 160 bytes of text.
    pub digest: Option<String>,
}

impl Base {
    /// A base of which no digest is known.
    pub fn new(path: &Path, format: Option<Format>) -> Self {
        Self {
            path: path.to_path_buf(),
            format,
            digest: None,
        }
    }
}

/// What a layer knows of its base.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BaseInfo {
    /// Where and what the base is; its path is absolute and its format known.
    pub base: Base,
    /// Size of the base's disk in bytes.
    pub size: u64,
    /// The base's file when the layer was created.
    pub identity: FileIdentity,
}

/// How to create a layer.
#[derive(Clone, Debug)]
pub struct LayerOptions {
    /// What it lies on; without a base, all of it reads as zeroes at first.
    pub base: Option<Base>,
    /// Size of the disk in bytes, a multiple of 512, at least that of the base, and the base's if
    /// not given. What is beyond the base reads as zeroes.
    pub size: Option<u64>,
    /// The layer survives a crash of the host from its creation on.
    pub durable: bool,
}

impl Default for LayerOptions {
    fn default() -> Self {
        Self {
            base: None,
            size: None,
            durable: true,
        }
    }
}

/// What there is to know of a layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerInfo {
    /// The layer's file.
    pub path: PathBuf,
    /// Size of the disk in bytes.
    pub size: u64,
    /// What it lies on.
    pub base: Option<BaseInfo>,
    /// Bytes of the disk that the base is not looked at for, discarded ones included.
    pub own: u64,
}
