//! Detects the format of a disk image from its first bytes.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::util::readable::readable_debug;

/// Why a file cannot be used as a disk image.
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum FormatError {
    /// It cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is not a disk image.
    #[error("{name} is not a usable disk image: {why}")]
    NotAnImage {
        /// Path or address.
        name: String,
        /// What is wrong with it.
        why: String,
    },
}

readable_debug!(FormatError);

/// The format of an image file, detected from its first bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ImageFormat {
    /// The disk's bytes as they are.
    Raw,
    /// QEMU's copy-on-write format, version 2 or 3.
    Qcow2,
}

/// Detects the format of the file at `path`. Errors call it `name`.
pub(crate) fn format_of(path: &Path, name: &str) -> Result<ImageFormat, FormatError> {
    let mut head = Vec::new();
    File::open(path)
        .and_then(|file| file.take(512).read_to_end(&mut head))
        .map_err(|source| FormatError::Read {
            path: path.to_owned(),
            source,
        })?;
    sniff(&head, name)
}

/// Detects the format from a file's first bytes. Anything that is not recognised is raw.
pub(crate) fn sniff(head: &[u8], name: &str) -> Result<ImageFormat, FormatError> {
    let compressed = |tool: &str| format!("it is compressed; unpack it with {tool} first");
    let why = if head.starts_with(b"QFI\xfb") {
        return Ok(ImageFormat::Qcow2);
    } else if head.is_empty() {
        "it is empty".into()
    } else if head.starts_with(b"\xfd7zXZ\0") {
        compressed("xz -d")
    } else if head.starts_with(b"\x1f\x8b") {
        compressed("gzip -d")
    } else if head.starts_with(b"\x28\xb5\x2f\xfd") {
        compressed("zstd -d")
    } else if head.starts_with(b"BZh") {
        compressed("bzip2 -d")
    } else if head.starts_with(b"PK\x03\x04") {
        compressed("unzip")
    } else if head.starts_with(b"KDMV") || head.starts_with(b"# Disk DescriptorFile") {
        "it is a VMDK image; convert it with qemu-img".into()
    } else if head.starts_with(b"vhdxfile") || head.starts_with(b"conectix") {
        "it is a VHD image; convert it with qemu-img".into()
    } else if is_html(head) {
        "it is a web page; use the address of the image file itself".into()
    } else {
        return Ok(ImageFormat::Raw);
    };
    Err(FormatError::NotAnImage {
        name: name.to_owned(),
        why,
    })
}

fn is_html(head: &[u8]) -> bool {
    let head = head.trim_ascii_start();
    ["<!doctype", "<html", "<?xml"].iter().any(|tag| {
        head.get(..tag.len())
            .is_some_and(|start| start.eq_ignore_ascii_case(tag.as_bytes()))
    })
}
