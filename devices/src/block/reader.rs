//! Reads a disk, or a partition of it, as a stream.

use std::io::{self, Read, Seek, SeekFrom};
use std::sync::Arc;

use super::disk::{Disk, check_range};

/// A range of a disk, such as a partition, to read from: by offset with [`read_at`], or as a
/// [`Read`] + [`Seek`] stream. Clones share the disk, but not the position.
///
/// [`read_at`]: DiskReader::read_at
#[derive(Clone)]
pub struct DiskReader {
    disk: Arc<dyn Disk>,
    start: u64,
    len: u64,
    position: u64,
}

impl DiskReader {
    /// The whole disk.
    pub fn new(disk: Arc<dyn Disk>) -> Self {
        let len = disk.len();
        Self {
            disk,
            start: 0,
            len,
            position: 0,
        }
    }

    /// The `len` bytes at `start` of this range, as a separate range.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidInput`] if they are not within this range.
    pub fn window(&self, start: u64, len: u64) -> io::Result<Self> {
        check_range(self.len, start, len)?;
        Ok(Self {
            disk: Arc::clone(&self.disk),
            start: self.start + start,
            len,
            position: 0,
        })
    }

    /// Size of the range in bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// True if the range has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Fills `buf` from `offset` within the range.
    ///
    /// # Errors
    /// The bytes are not within the range, or the host fails to read all of them.
    pub fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        check_range(self.len, offset, buf.len() as u64)?;
        self.disk.read_at(buf, self.start + offset)
    }
}

impl Read for DiskReader {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let left = self.len.saturating_sub(self.position);
        let n = usize::try_from(left).unwrap_or(usize::MAX).min(buf.len());
        if let Some(buf) = buf.get_mut(..n).filter(|b| !b.is_empty()) {
            self.read_at(buf, self.position)?;
            self.position += n as u64;
        }
        Ok(n)
    }
}

impl Seek for DiskReader {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let target = match to {
            SeekFrom::Start(n) => Some(n),
            SeekFrom::End(n) => self.len.checked_add_signed(n),
            SeekFrom::Current(n) => self.position.checked_add_signed(n),
        };
        self.position = target.ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::InvalidInput,
                "cannot seek to before the start of the disk",
            )
        })?;
        Ok(self.position)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::{OpenOptions, open_disk};

    #[test]
    fn windows_bound_what_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        let bytes: Vec<u8> = (0..4096u32).map(|n| (n / 16) as u8).collect();
        std::fs::write(&path, &bytes).unwrap();
        let disk = open_disk(&path, &OpenOptions::read_only()).unwrap();
        let whole = DiskReader::new(disk);
        let mut part = whole.window(512, 1024).unwrap().window(16, 64).unwrap();
        let mut all = Vec::new();
        part.read_to_end(&mut all).unwrap();
        assert_eq!(all, &bytes[528..592]);
        part.seek(SeekFrom::End(-4)).unwrap();
        assert_eq!(part.read(&mut [0; 16]).unwrap(), 4);
        assert_eq!(part.read(&mut [0; 16]).unwrap(), 0);
        part.seek(SeekFrom::Start(u64::MAX)).unwrap();
        assert_eq!(part.read(&mut [0; 16]).unwrap(), 0);
        assert!(part.seek(SeekFrom::Start(3)).is_ok());
        assert!(part.seek(SeekFrom::Current(-4)).is_err());
        assert!(part.read_at(&mut [0; 1], 64).is_err());
        assert!(part.window(u64::MAX, 2).is_err());
        assert!(whole.window(4096, 1).is_err());
        assert!(whole.window(4096, 0).unwrap().is_empty());
    }
}
