//! What a file system on a partition is, and how it is read.

use std::io;

use super::ext4::Ext4Volume;
use super::fat::FatVolume;
use super::window::{Cached, Window};

/// Names of one directory that are looked at.
pub(super) const MAX_NAMES: usize = 4096;

/// Why something on a file system cannot be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum FsError {
    #[error("not found")]
    NotFound,
    #[error("{0}")]
    Unsupported(String),
    #[error("damaged: {0}")]
    Corrupt(String),
    #[error("it has {size} bytes; at most {limit} are read")]
    TooLarge { size: u64, limit: u64 },
    #[error("not a regular file")]
    NotAFile,
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// What a path leads to, symbolic links followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A regular file of this many bytes.
    File(u64),
    Directory,
    Other,
}

/// A file system, read only. Paths are absolute.
pub(super) trait Volume {
    /// Its UUID or serial number as GRUB writes it.
    fn uuid(&self) -> Option<String>;
    /// Its label.
    fn label(&self) -> Option<String>;
    /// GRUB's name of the type.
    fn kind_name(&self) -> &'static str;
    /// What `path` leads to, or `None` if there is nothing.
    fn kind(&self, path: &str) -> Result<Option<Kind>, FsError>;
    /// The file at `path`, of at most `limit` bytes.
    fn read(&self, path: &str, limit: u64) -> Result<Vec<u8>, FsError>;
    /// The names in the directory at `path`, `.` and `..` left out.
    fn list(&self, path: &str) -> Result<Vec<String>, FsError>;
}

/// What was found on a partition.
pub(super) enum Content {
    Volume(Box<dyn Volume>),
    /// Recognised, but not readable, and why.
    Unreadable {
        what: &'static str,
        why: String,
    },
    Unknown,
}

/// Recognises what is on `window`. Never fails: what cannot be read is content too.
pub(super) fn probe(window: &Window) -> Content {
    let head = Cached::new(window.clone());
    let has = |at: u64, magic: &[u8]| {
        let mut bytes = vec![0; magic.len()];
        head.read(at, &mut bytes).is_ok() && bytes == magic
    };
    let open = |what, volume: Result<Box<dyn Volume>, FsError>| match volume {
        Ok(volume) => Content::Volume(volume),
        Err(why) => Content::Unreadable {
            what,
            why: why.to_string(),
        },
    };
    let foreign = |what| Content::Unreadable {
        what,
        why: "this file system is not read".into(),
    };
    if has(1024 + 0x38, &[0x53, 0xEF]) {
        return open(
            "ext4",
            Ext4Volume::open(window.clone()).map(|v| Box::new(v) as _),
        );
    }
    if has(510, &[0x55, 0xAA]) && (has(0x36, b"FAT") || has(0x52, b"FAT32")) {
        return open(
            "FAT",
            FatVolume::open(window.clone()).map(|v| Box::new(v) as _),
        );
    }
    let others: [(u64, &[u8], &'static str); 7] = [
        (0x10040, b"_BHRfS_M", "btrfs"),
        (0, b"XFSB", "XFS"),
        (512, b"LABELONE", "LVM"),
        (0, b"LUKS\xBA\xBE", "LUKS"),
        (0, b"hsqs", "squashfs"),
        (0x8001, b"CD001", "ISO 9660"),
        (1024, &[0x10, 0x20, 0xF5, 0xF2], "F2FS"),
    ];
    match others.into_iter().find(|(at, magic, _)| has(*at, magic)) {
        Some((_, _, what)) => foreign(what),
        None => Content::Unknown,
    }
}

/// Runs `read`, a file system crate's code on bytes it may not have foreseen. Such code is bounded
/// by what it may read; if it panics all the same, that is damage on the disk and not a reason to
/// take the process down.
pub(super) fn guarded<T>(read: impl FnOnce() -> Result<T, FsError>) -> Result<T, FsError> {
    // What `read` borrows is only ever read; a half-done read leaves nothing behind but cached
    // copies of the disk.
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(read)).unwrap_or_else(|_| {
        Err(FsError::Corrupt(
            "its metadata is damaged in a way that the reader fell over".into(),
        ))
    })
}
