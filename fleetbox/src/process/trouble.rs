//! The file that describes the first error of a device since a machine was started.
//!
//! The usual reason is that the host's disk is full, and then no file can be written either. So its space is taken
//! beforehand, and later only filled.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;

/// Bytes of the file, which bound the text.
const BYTES: usize = 1024;

/// What fills the file as long as nothing has failed.
const NOTHING: u8 = b' ';

/// The file, open and of its final size.
pub(super) struct Trouble {
    file: File,
    told: bool,
}

impl Trouble {
    /// Creates the file, or empties that of the last run.
    ///
    /// # Errors
    /// The host has no space even for that.
    pub(super) fn reserve(path: &Path) -> io::Result<Self> {
        let mut file = OpenOptions::new()
            .create(true)
            .write(true)
            .truncate(true)
            .mode(0o600)
            .open(path)?;
        file.write_all(&[NOTHING; BYTES])?;
        Ok(Self { file, told: false })
    }

    /// Records `text` unless an earlier error was. Later errors follow from the first, or are in the worker's log.
    pub(super) fn note(&mut self, text: &str) {
        if self.told {
            return;
        }
        let mut ends = (0..=text.len().min(BYTES)).rev();
        let text = ends.find_map(|end| text.get(..end)).unwrap_or_default();
        match self.file.write_all_at(text.as_bytes(), 0) {
            Ok(()) => self.told = true,
            Err(error) => tracing::warn!(%error, "cannot record the error of a device"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_error_is_kept_and_takes_no_space() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("device-error");
        let mut trouble = Trouble::reserve(&path).unwrap();
        let read = || std::fs::read_to_string(&path).unwrap();
        assert_eq!(read().trim(), "");
        trouble.note(&"\u{e9}".repeat(BYTES));
        assert_eq!(read(), "\u{e9}".repeat(BYTES / 2));
        trouble.note("another");
        assert_eq!(read().len(), BYTES);
        assert_eq!(Trouble::reserve(&path).map(|_| read()).unwrap().trim(), "");
    }
}
