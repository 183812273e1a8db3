//! The storage for imago: the image's file, and the disk under it.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use imago::Storage;
use imago::io_buffers::{IoVector, IoVectorMut};
use imago::storage::drivers::CommonStorageHelper;

use crate::block::disk::{Disk, refuse_write};
use crate::block::host::HostFile;

/// A storage for imago.
pub(super) struct Node {
    kind: Kind,
    helper: CommonStorageHelper,
}

enum Kind {
    /// The image's file.
    File {
        file: HostFile,
        /// Length in bytes, which grows with writes beyond the end.
        len: AtomicU64,
    },
    /// The disk under it.
    Backing(Arc<dyn Disk>),
}
use Kind::{Backing, File};

impl Node {
    pub(super) fn file(file: HostFile) -> Self {
        let len = AtomicU64::new(file.len());
        Self {
            kind: File { file, len },
            helper: CommonStorageHelper::default(),
        }
    }

    pub(super) fn backing(disk: Arc<dyn Disk>) -> Self {
        Self {
            kind: Backing(disk),
            helper: CommonStorageHelper::default(),
        }
    }

    /// Fills `buf`, with zeros past the end.
    pub(super) fn read(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        match &self.kind {
            File { file, .. } => file.read_up_to_end(buf, offset).map(drop),
            Backing(disk) => {
                let have = disk.len().saturating_sub(offset).min(buf.len() as u64);
                let (within, beyond) = buf.split_at_mut(have as usize);
                beyond.fill(0);
                if within.is_empty() {
                    Ok(())
                } else {
                    disk.read_at(within, offset)
                }
            }
        }
    }

    /// Makes the range read as zeros, and frees its blocks.
    pub(super) fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        match &self.kind {
            File { file, .. } => file.punch(offset, len),
            Backing(_) => refuse_write(true),
        }
    }

    /// Runs a write that ends at `end`.
    fn write(&self, end: u64, f: impl FnOnce(&HostFile) -> io::Result<()>) -> io::Result<()> {
        let File { file, len } = &self.kind else {
            return refuse_write(true);
        };
        f(file)?;
        len.fetch_max(end, Ordering::AcqRel);
        Ok(())
    }
}

impl fmt::Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            File { file, .. } => file.path().display().fmt(f),
            Backing(_) => f.write_str("the backing image"),
        }
    }
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Storage for Node {
    fn size(&self) -> io::Result<u64> {
        Ok(match &self.kind {
            File { len, .. } => len.load(Ordering::Acquire),
            Backing(disk) => disk.len(),
        })
    }

    async unsafe fn pure_readv(&self, bufv: IoVectorMut<'_>, offset: u64) -> io::Result<()> {
        let mut at = offset;
        for mut slice in bufv.into_inner() {
            self.read(&mut slice, at)?;
            at = at.saturating_add(slice.len() as u64);
        }
        Ok(())
    }

    async unsafe fn pure_writev(&self, bufv: IoVector<'_>, offset: u64) -> io::Result<()> {
        let mut at = offset;
        for slice in bufv.into_inner() {
            let end = at.saturating_add(slice.len() as u64);
            self.write(end, |file| file.write(&slice, at))?;
            at = end;
        }
        Ok(())
    }

    async unsafe fn pure_write_zeroes(&self, offset: u64, length: u64) -> io::Result<()> {
        self.write(offset.saturating_add(length), |file| {
            file.zero(offset, length)
        })
    }

    async unsafe fn pure_discard(&self, offset: u64, length: u64) -> io::Result<()> {
        self.punch(offset, length)
    }

    async fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    async fn sync(&self) -> io::Result<()> {
        match &self.kind {
            File { file, .. } => file.sync(),
            Backing(_) => Ok(()),
        }
    }

    async unsafe fn invalidate_cache(&self) -> io::Result<()> {
        Ok(())
    }

    fn get_storage_helper(&self) -> &CommonStorageHelper {
        &self.helper
    }
}
