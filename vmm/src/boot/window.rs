//! Limited reads of an untrusted disk.

use std::cell::RefCell;
use std::io;
use std::rc::Rc;
use std::sync::Arc;

use fleetbox_devices::block::Disk;

use super::budget::{Budget, Held};

/// Bytes of a chunk, which is read from the disk at once and cached for small reads.
const CHUNK: u64 = 128 * 1024;
/// Maximum number of cached chunks of a disk. Partitions share them, because there may be many.
const CHUNKS: usize = 16;

/// The latest chunks of a disk. File system readers ask for a few bytes at a time, and a small read
/// of a compressed image costs as much as a large one.
struct Cache {
    disk: Arc<dyn Disk>,
    budget: Rc<Budget>,
    /// By their number; the latest is last.
    chunks: RefCell<Vec<Chunk>>,
}

struct Chunk {
    index: u64,
    bytes: Vec<u8>,
    _held: Held,
}

impl Cache {
    /// Fills `buf` from the disk's `offset`, in chunks.
    fn read(&self, mut offset: u64, mut buf: &mut [u8]) -> io::Result<()> {
        while !buf.is_empty() {
            let index = offset / CHUNK;
            // Within the chunk, so it fits.
            let within = (offset % CHUNK) as usize;
            let mut chunks = self.chunks.borrow_mut();
            self.latest(&mut chunks, index)?;
            let bytes = chunks.last().map_or(&[][..], |chunk| &chunk.bytes);
            let available = bytes.get(within..).unwrap_or_default();
            let count = available.len().min(buf.len());
            if count == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let (now, rest) = buf.split_at_mut(count);
            now.copy_from_slice(&available[..count]);
            buf = rest;
            offset += count as u64;
        }
        Ok(())
    }

    /// Makes chunk `index` the last one of `chunks`.
    fn latest(&self, chunks: &mut Vec<Chunk>, index: u64) -> io::Result<()> {
        if let Some(at) = chunks.iter().rposition(|chunk| chunk.index == index) {
            if at + 1 < chunks.len() {
                let found = chunks.remove(at);
                chunks.push(found);
            }
            return Ok(());
        }
        if chunks.len() >= CHUNKS {
            chunks.remove(0);
        }
        let start = index * CHUNK;
        let len = CHUNK.min(self.disk.len().saturating_sub(start));
        let len = usize::try_from(len).map_err(io::Error::other)?;
        self.budget.read(len as u64)?;
        let held = self.budget.hold(len)?;
        let mut bytes = vec![0; len];
        self.disk.read_at(&mut bytes, start)?;
        chunks.push(Chunk {
            index,
            bytes,
            _held: held,
        });
        Ok(())
    }
}

/// A range of a disk: a partition or the whole disk. Clones share the disk and the budget.
#[derive(Clone)]
pub(super) struct Window {
    cache: Rc<Cache>,
    start: u64,
    len: u64,
}

impl Window {
    /// The whole of `disk`.
    pub(super) fn whole(disk: Arc<dyn Disk>, budget: Rc<Budget>) -> Self {
        let len = disk.len();
        let cache = Cache {
            disk,
            budget,
            chunks: RefCell::new(Vec::new()),
        };
        Self {
            cache: Rc::new(cache),
            start: 0,
            len,
        }
    }

    /// The part `start..start + len`, in bytes from this window's start, or `None` if it is not
    /// within it.
    pub(super) fn part(&self, start: u64, len: u64) -> Option<Self> {
        let end = start.checked_add(len)?;
        if end > self.len {
            return None;
        }
        Some(Self {
            start: self.start.checked_add(start)?,
            len,
            ..self.clone()
        })
    }

    /// Size in bytes.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// What its reads are charged to.
    pub(super) fn budget(&self) -> &Rc<Budget> {
        &self.cache.budget
    }

    /// Fills `buf` from `offset`. Small reads are cached.
    ///
    /// # Errors
    /// The range is not within the window, the budget is exhausted, or the disk fails.
    pub(super) fn read(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let end = offset.checked_add(buf.len() as u64);
        if end.is_none_or(|end| end > self.len) {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                format!(
                    "{} bytes at offset {offset} are beyond the partition's end",
                    buf.len()
                ),
            ));
        }
        // What is large is not read again soon: past the cache, without copying it.
        if buf.len() as u64 >= CHUNK {
            self.budget().read(buf.len() as u64)?;
            self.cache.disk.read_at(buf, self.start + offset)
        } else {
            // Each one counts, as the last defence against circular metadata: every step of a file
            // system reader reads something.
            self.budget().read(0)?;
            self.cache.read(self.start + offset, buf)
        }
    }

    /// Like [`Window::read`], into a new vector. The caller bounds `len` and accounts for it.
    pub(super) fn bytes(&self, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        if len as u64 > self.len {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut bytes = vec![0; len];
        self.read(offset, &mut bytes)?;
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::super::limits::Limits;
    use super::*;
    use crate::boot::testing::MemoryDisk;

    fn window(len: usize, bytes: u64) -> Window {
        let data = (0..len).map(|i| (i / 512) as u8).collect();
        let limits = Limits {
            bytes,
            ..Limits::default()
        };
        Window::whole(MemoryDisk::disk(data), Budget::new(&limits))
    }

    #[test]
    fn parts_stay_within_their_bounds() {
        let whole = window(8192, 1 << 20);
        let part = whole.part(1024, 2048).unwrap();
        assert_eq!(part.bytes(0, 2).unwrap(), [2, 2]);
        assert!(part.read(2047, &mut [0; 2]).is_err());
        assert!(part.read(u64::MAX, &mut [0; 2]).is_err());
        assert!(whole.part(8000, 193).is_none());
        assert!(whole.part(u64::MAX, 2).is_none());
        assert_eq!(part.part(512, 512).unwrap().bytes(0, 1).unwrap(), [3]);
    }

    #[test]
    fn chunks_join_up() {
        let disk = window(20 * CHUNK as usize + 512, 1 << 30);
        let cached = disk.part(512, disk.len() - 512).unwrap();
        let mut buf = vec![0; 1024];
        for offset in [CHUNK - 512, 0, 3 * CHUNK - 512, CHUNK - 512]
            .into_iter()
            .chain((0..20).map(|i| i * CHUNK))
            .chain([CHUNK - 512])
        {
            cached.read(offset, &mut buf).unwrap();
            assert_eq!(buf[0], (offset / 512 + 1) as u8);
            assert_eq!(buf[512], (offset / 512 + 2) as u8);
        }
        assert!(cached.read(20 * CHUNK, &mut buf).is_err());
        // It is not read twice.
        let disk = window(8192, 8192);
        for _ in 0..100 {
            disk.bytes(1024, 100).unwrap();
        }
    }

    #[test]
    fn a_budget_ends() {
        let whole = window(4 * CHUNK as usize, 2 * CHUNK);
        assert!(whole.bytes(0, 900).is_ok());
        assert!(whole.bytes(CHUNK, CHUNK as usize).is_ok());
        let error = whole.bytes(2 * CHUNK, 1).unwrap_err().to_string();
        assert!(error.contains("`bytes`"), "{error}");
    }
}
