//! FAT, using the `fatfs` crate, for the EFI system partition.
//!
//! The crate trusts what it reads. If a cluster chain is circular, the read budget ends the read.
//! If an invalid number makes the crate panic, the panic is caught.

use std::io::{self, Read, Seek, SeekFrom, Write};
use std::rc::Rc;

use fatfs::{FileSystem, FsOptions};

use super::budget::{Budget, Limit};
use super::fs::{FsError, Kind, MAX_NAMES, Volume, guarded};
use super::window::Window;

/// A FAT file system.
pub(super) struct FatVolume {
    fs: FileSystem<Stream>,
    label: Option<String>,
    budget: Rc<Budget>,
}

impl FatVolume {
    /// Opens the file system on `window`.
    ///
    /// # Errors
    /// It is damaged.
    pub(super) fn open(window: Window) -> Result<Self, FsError> {
        let budget = window.budget().clone();
        let stream = Stream {
            disk: window,
            position: 0,
        };
        guarded(|| {
            let fs = FileSystem::new(stream, FsOptions::new())?;
            let label = Some(fs.volume_label()).filter(|label| !label.is_empty());
            Ok(Self { fs, label, budget })
        })
    }
}

type Entry<'a> = fatfs::DirEntry<'a, Stream>;

impl FatVolume {
    /// What `look` says about the entry at `path`, which has no slash at its ends; `None` if there
    /// is no such entry.
    fn find<T>(
        &self,
        path: &str,
        look: impl FnOnce(&Entry<'_>) -> T,
    ) -> Result<Option<T>, FsError> {
        guarded(|| {
            let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
            let root = self.fs.root_dir();
            let dir = match parent {
                "" => root,
                parent => match root.open_dir(parent) {
                    Ok(dir) => dir,
                    Err(error) if is_absent(&error) => return Ok(None),
                    Err(error) => return Err(error.into()),
                },
            };
            for entry in dir.iter() {
                self.budget.charge(Limit::Entries, 1)?;
                let entry = entry?;
                let matches = entry.file_name().eq_ignore_ascii_case(name)
                    || entry.short_file_name().eq_ignore_ascii_case(name);
                if matches {
                    return Ok(Some(look(&entry)));
                }
            }
            Ok(None)
        })
    }
}

impl Volume for FatVolume {
    fn uuid(&self) -> Option<String> {
        let id = self.fs.volume_id();
        Some(format!("{:04X}-{:04X}", id >> 16, id & 0xFFFF))
    }

    fn label(&self) -> Option<String> {
        self.label.clone()
    }

    fn kind_name(&self) -> &'static str {
        "fat"
    }

    fn kind(&self, path: &str) -> Result<Option<Kind>, FsError> {
        let path = path.trim_matches('/');
        if path.is_empty() {
            return Ok(Some(Kind::Directory));
        }
        self.find(path, |entry| {
            if entry.is_dir() {
                Kind::Directory
            } else {
                Kind::File(entry.len())
            }
        })
    }

    fn modified(&self, path: &str) -> Result<Option<i64>, FsError> {
        self.find(path.trim_matches('/'), |entry| {
            let fatfs::DateTime { date, time } = entry.modified();
            let days = days(date.year.into(), date.month.into(), date.day.into());
            let minutes = (days * 24 + i64::from(time.hour)) * 60 + i64::from(time.min);
            minutes * 60 + i64::from(time.sec)
        })
    }

    fn read(&self, path: &str, limit: u64, bytes: &mut Vec<u8>) -> Result<(), FsError> {
        let size = match self.kind(path)? {
            Some(Kind::File(size)) => size,
            Some(_) => return Err(FsError::NotAFile),
            None => return Err(FsError::NotFound),
        };
        if size > limit {
            return Err(FsError::TooLarge { size, limit });
        }
        guarded(|| {
            let file = self.fs.root_dir().open_file(path.trim_matches('/'))?;
            let before = bytes.len();
            bytes.reserve_exact(usize::try_from(size).map_err(io::Error::other)?);
            file.take(size).read_to_end(bytes)?;
            if (bytes.len() - before) as u64 != size {
                return Err(FsError::Corrupt("the file ends early".into()));
            }
            Ok(())
        })
    }

    fn head(&self, path: &str, most: usize) -> Result<Vec<u8>, FsError> {
        guarded(|| {
            let file = self.fs.root_dir().open_file(path.trim_matches('/'))?;
            let mut data = Vec::new();
            file.take(most as u64).read_to_end(&mut data)?;
            Ok(data)
        })
    }

    fn list(&self, path: &str) -> Result<Vec<String>, FsError> {
        guarded(|| {
            let root = self.fs.root_dir();
            let dir = match path.trim_matches('/') {
                "" => root,
                path => root.open_dir(path).map_err(|error| {
                    if is_absent(&error) {
                        FsError::NotFound
                    } else {
                        error.into()
                    }
                })?,
            };
            let mut names = Vec::new();
            for entry in dir.iter().take(MAX_NAMES) {
                self.budget.charge(Limit::Entries, 1)?;
                let name = entry?.file_name();
                if name != "." && name != ".." {
                    names.push(name);
                }
            }
            Ok(names)
        })
    }
}

/// Days from 1970 to a date, whose fields may be out of range on a damaged disk.
fn days(year: i64, month: i64, day: i64) -> i64 {
    // Years that begin in March have their leap day last.
    let year = if month <= 2 { year - 1 } else { year };
    let month = (month + 9) % 12;
    let leap_days = year / 4 - year / 100 + year / 400;
    year * 365 + leap_days + (month * 153 + 2) / 5 + day - 1 - 719_468
}

/// True if the crate reports that a component is missing or is a file. It reports the latter only
/// in the message.
fn is_absent(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.to_string() == "Not a directory"
}

/// The volume, as the stream that the crate needs.
struct Stream {
    disk: Window,
    position: u64,
}

impl Read for Stream {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let left = self.disk.len().saturating_sub(self.position);
        let count = buf.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let (now, _) = buf.split_at_mut(count);
        self.disk.read(self.position.min(self.disk.len()), now)?;
        self.position += count as u64;
        Ok(count)
    }
}

impl Seek for Stream {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let position = match to {
            SeekFrom::Start(offset) => Some(offset),
            SeekFrom::Current(by) => self.position.checked_add_signed(by),
            SeekFrom::End(by) => self.disk.len().checked_add_signed(by),
        };
        self.position = position.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.position)
    }
}

impl Write for Stream {
    fn write(&mut self, _buf: &[u8]) -> io::Result<usize> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_counted_from_1970() {
        for (year, month, day, expected) in [
            (1970, 1, 1, 0),
            (1980, 1, 1, 3652),
            (2000, 2, 29, 11_016),
            (2000, 3, 1, 11_017),
            (2023, 12, 31, 19_722),
            (2107, 12, 31, 50_402),
        ] {
            assert_eq!(days(year, month, day), expected, "{year}-{month}-{day}");
        }
    }
}
