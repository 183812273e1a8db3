//! An image file as imago sees it.

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

use imago::Storage;
use imago::io_buffers::{IoVector, IoVectorMut};
use imago::storage::drivers::CommonStorageHelper;

use crate::block::host::HostFile;
use crate::block::refuse_write;

/// A locked file of a chain.
#[derive(Debug)]
pub(super) struct ImageFile {
    file: HostFile,
    write: bool,
    /// Length in bytes: what is written beyond the end moves it.
    len: AtomicU64,
    /// Where the file's last cluster ends, which writers cut short.
    end: u64,
    helper: CommonStorageHelper,
}

impl ImageFile {
    /// The unit of the file's format is `cluster` bytes.
    pub(super) fn new(file: HostFile, write: bool, cluster: u64) -> Self {
        let len = AtomicU64::new(file.len());
        let end = file.len().div_ceil(cluster).saturating_mul(cluster);
        Self {
            file,
            write,
            len,
            end,
            helper: CommonStorageHelper::default(),
        }
    }

    /// Fills `buf`. Beyond the end of the last cluster there is nothing to read: the file is
    /// truncated.
    pub(super) fn read(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let end = offset.checked_add(buf.len() as u64);
        if !self.write && end.is_none_or(|e| e > self.end) {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                format!(
                    "{} is truncated: it has {} bytes and refers to {} at {offset}",
                    self.file.path().display(),
                    self.file.len(),
                    buf.len()
                ),
            ));
        }
        self.file.read_up_to_end(buf, offset).map(drop)
    }

    /// Makes the range read as zeroes and gives its blocks back.
    pub(super) fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        refuse_write(!self.write)?;
        self.file.punch(offset, len)
    }

    fn wrote_to(&self, end: u64) {
        self.len.fetch_max(end, Ordering::AcqRel);
    }
}

impl fmt::Display for ImageFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.file.path().display().fmt(f)
    }
}

impl Storage for ImageFile {
    fn size(&self) -> io::Result<u64> {
        Ok(self.len.load(Ordering::Acquire))
    }

    async unsafe fn pure_readv(&self, bufv: IoVectorMut<'_>, offset: u64) -> io::Result<()> {
        let mut at = offset;
        for mut slice in bufv.into_inner() {
            self.read(&mut slice, at)?;
            at += slice.len() as u64;
        }
        Ok(())
    }

    async unsafe fn pure_writev(&self, bufv: IoVector<'_>, offset: u64) -> io::Result<()> {
        refuse_write(!self.write)?;
        let mut at = offset;
        for slice in bufv.into_inner() {
            self.file.write(&slice, at)?;
            at += slice.len() as u64;
            self.wrote_to(at);
        }
        Ok(())
    }

    async unsafe fn pure_write_zeroes(&self, offset: u64, length: u64) -> io::Result<()> {
        refuse_write(!self.write)?;
        self.file.zero(offset, length)?;
        self.wrote_to(offset.saturating_add(length));
        Ok(())
    }

    async unsafe fn pure_discard(&self, offset: u64, length: u64) -> io::Result<()> {
        self.punch(offset, length)
    }

    async fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    async fn sync(&self) -> io::Result<()> {
        if self.write { self.file.sync() } else { Ok(()) }
    }

    async unsafe fn invalidate_cache(&self) -> io::Result<()> {
        Ok(())
    }

    fn get_storage_helper(&self) -> &CommonStorageHelper {
        &self.helper
    }
}
