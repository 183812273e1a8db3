//! What a file system on a partition is, and how it is read.

use std::io;

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
