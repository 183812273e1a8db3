//! The interface for reading a file system on a partition.

use std::io;

use super::budget::Exceeded;

/// Maximum number of names of one directory that are read.
pub(super) const MAX_NAMES: usize = 4096;

/// Why something cannot be read from a file system.
#[derive(Debug, thiserror::Error)]
pub(super) enum FsError {
    #[error("not found")]
    NotFound,
    #[error("{0}")]
    Unsupported(String),
    #[error("damaged: {0}")]
    Corrupt(String),
    #[error("it has {size} bytes, but the limit is {limit}")]
    TooLarge { size: u64, limit: u64 },
    #[error("not a regular file")]
    NotAFile,
    #[error(transparent)]
    Limit(#[from] Exceeded),
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// What is at a path, after following symbolic links.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A regular file with this size in bytes.
    File(u64),
    Directory,
    Other,
}

/// A read-only file system. Paths are absolute.
pub(super) trait Volume {
    /// Its UUID or serial number as GRUB writes it.
    fn uuid(&self) -> Option<String>;
    /// Its label.
    fn label(&self) -> Option<String>;
    /// GRUB's name of the type.
    fn kind_name(&self) -> &'static str;
    /// What is at `path`, or `None` if it does not exist.
    fn kind(&self, path: &str) -> Result<Option<Kind>, FsError>;
    /// Appends the file at `path`, of at most `limit` bytes, to `bytes`.
    fn read(&self, path: &str, limit: u64, bytes: &mut Vec<u8>) -> Result<(), FsError>;
    /// The first bytes of the file at `path`, at most `most`.
    fn head(&self, path: &str, most: usize) -> Result<Vec<u8>, FsError>;
    /// When `path` was changed last, in seconds since 1970; `None` if it is not known.
    fn modified(&self, path: &str) -> Result<Option<i64>, FsError>;
    /// The names in the directory at `path`, without `.` and `..`.
    fn list(&self, path: &str) -> Result<Vec<String>, FsError>;
}

/// Runs `read`, which is code of a file system crate, on untrusted bytes. The read budget bounds
/// such code. If it panics, this is reported as damage on the disk, and the process continues.
pub(super) fn guarded<T>(read: impl FnOnce() -> Result<T, FsError>) -> Result<T, FsError> {
    // What `read` borrows is only ever read; a half-done read leaves nothing behind but cached
    // copies of the disk.
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(read)).unwrap_or_else(|_| {
        Err(FsError::Corrupt(
            "its metadata is damaged, and the reader panicked on it".into(),
        ))
    })
}
