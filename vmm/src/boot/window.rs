//! Limited reads of an untrusted disk.

use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use fleetbox_devices::block::Disk;

/// Bytes of a chunk, which is read from the disk at once and cached for small reads.
const CHUNK: u64 = 128 * 1024;
/// Maximum number of cached chunks for one window.
const CHUNKS: usize = 8;

/// How much one discovery may still read. This is the last defence against circular metadata,
/// because every step of a file system reader reads something.
pub(super) struct Budget {
    bytes: Cell<u64>,
    reads: Cell<u64>,
    deadline: Instant,
}

impl Budget {
    pub(super) fn new(bytes: u64, reads: u64, deadline: Instant) -> Rc<Self> {
        Rc::new(Self {
            bytes: Cell::new(bytes),
            reads: Cell::new(reads),
            deadline,
        })
    }

    /// Accounts for one read of `len` bytes.
    fn charge(&self, len: usize) -> io::Result<()> {
        let bytes = self.bytes.get().checked_sub(len as u64);
        let reads = self.reads.get().checked_sub(1);
        match (bytes, reads) {
            (Some(bytes), Some(reads)) => {
                self.bytes.set(bytes);
                self.reads.set(reads);
            }
            _ => {
                return Err(io::Error::other(
                    "too much was read from the disk for a boot",
                ));
            }
        }
        self.check_time()
    }

    /// Fails once the deadline has passed.
    pub(super) fn check_time(&self) -> io::Result<()> {
        if Instant::now() > self.deadline {
            return Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "reading the disk took too long for a boot",
            ));
        }
        Ok(())
    }
}

/// A range of a disk: a partition or the whole disk. Clones share the disk and the budget.
#[derive(Clone)]
pub(super) struct Window {
    disk: Arc<dyn Disk>,
    start: u64,
    len: u64,
    budget: Rc<Budget>,
}

impl Window {
    /// The whole of `disk`.
    pub(super) fn whole(disk: Arc<dyn Disk>, budget: Rc<Budget>) -> Self {
        let len = disk.len();
        Self {
            disk,
            start: 0,
            len,
            budget,
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

    /// Fills `buf` from `offset`.
    ///
    /// # Errors
    /// The range is not within the window, the budget is exhausted, or the disk fails.
    pub(super) fn read(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.budget.charge(buf.len())?;
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
        self.disk.read_at(buf, self.start + offset)
    }

    /// Like [`Window::read`], into a new vector.
    pub(super) fn bytes(&self, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        if len as u64 > self.len {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut bytes = vec![0; len];
        self.read(offset, &mut bytes)?;
        Ok(bytes)
    }
}

/// A window that is read in chunks and caches the latest of them. File system readers ask for a few
/// bytes at a time, and a small read of a compressed image costs as much as a large one.
pub(super) struct CachedWindow {
    window: Window,
    chunks: RefCell<Vec<(u64, Rc<Vec<u8>>)>>,
}

impl CachedWindow {
    pub(super) fn new(window: Window) -> Self {
        Self {
            window,
            chunks: RefCell::new(Vec::new()),
        }
    }

    pub(super) fn len(&self) -> u64 {
        self.window.len()
    }

    /// Fills `buf` from `offset`, like [`Window::read`].
    pub(super) fn read(&self, mut offset: u64, mut buf: &mut [u8]) -> io::Result<()> {
        self.window.budget.charge(0)?;
        if offset
            .checked_add(buf.len() as u64)
            .is_none_or(|end| end > self.len())
        {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                format!(
                    "{} bytes at offset {offset} are beyond the partition's end",
                    buf.len()
                ),
            ));
        }
        // What is large is not read again soon: past what is kept, without copying it.
        if buf.len() as u64 >= CHUNK {
            return self.window.read(offset, buf);
        }
        while !buf.is_empty() {
            let index = offset / CHUNK;
            let chunk = self.chunk(index)?;
            // `offset` is within the chunk: the range is within the window, checked above.
            let within = usize::try_from(offset - index * CHUNK).map_err(io::Error::other)?;
            let available = chunk.get(within..).unwrap_or_default();
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

    fn chunk(&self, index: u64) -> io::Result<Rc<Vec<u8>>> {
        let mut chunks = self.chunks.borrow_mut();
        if let Some(at) = chunks.iter().position(|(have, _)| *have == index) {
            // The latest is last.
            let found = chunks.remove(at);
            let bytes = found.1.clone();
            chunks.push(found);
            return Ok(bytes);
        }
        let start = index * CHUNK;
        let len = CHUNK.min(self.len().saturating_sub(start));
        let len = usize::try_from(len).map_err(io::Error::other)?;
        let bytes = Rc::new(self.window.bytes(start, len)?);
        if chunks.len() >= CHUNKS {
            chunks.remove(0);
        }
        chunks.push((index, bytes.clone()));
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::boot::testing::MemoryDisk;

    fn window(len: usize, budget: u64) -> Window {
        let data = (0..len).map(|i| (i / 512) as u8).collect();
        let deadline = Instant::now() + Duration::from_secs(60);
        Window::whole(MemoryDisk::disk(data), Budget::new(budget, 1000, deadline))
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
        let cached = CachedWindow::new(window(3 * CHUNK as usize + 512, 1 << 20));
        let mut buf = vec![0; 1024];
        for offset in [CHUNK - 512, 0, 3 * CHUNK - 512, CHUNK - 512] {
            cached.read(offset, &mut buf).unwrap();
            assert_eq!(buf[0], (offset / 512) as u8);
            assert_eq!(buf[512], (offset / 512 + 1) as u8);
        }
        assert!(cached.read(3 * CHUNK, &mut buf).is_err());
    }

    #[test]
    fn a_budget_ends() {
        let whole = window(8192, 1000);
        assert!(whole.bytes(0, 900).is_ok());
        assert!(whole.bytes(0, 900).is_err());
        let past = Instant::now()
            .checked_sub(Duration::from_millis(1))
            .unwrap();
        let late = Budget::new(1000, 1000, past);
        assert_eq!(
            late.check_time().unwrap_err().kind(),
            io::ErrorKind::TimedOut
        );
    }
}
