//! The bytes of a kernel, and the guest memory that they may use.

use std::borrow::Cow;
use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::ops::Range;
use std::os::unix::fs::FileExt;

use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

use super::error::KernelError;
use super::layout;
use crate::memory::GuestMemory;

/// The bytes of a kernel or an initrd.
#[derive(Debug, Clone, Copy)]
pub enum Source<'a> {
    /// In memory.
    Bytes(&'a [u8]),
    /// A file, from its beginning. Its position changes.
    File(&'a File),
}

impl Source<'_> {
    /// Length in bytes.
    ///
    /// # Errors
    /// The file cannot be examined.
    pub fn len(&self) -> io::Result<u64> {
        match self {
            Self::Bytes(b) => Ok(b.len() as u64),
            Self::File(f) => Ok(f.metadata()?.len()),
        }
    }

    /// True if it has no bytes.
    ///
    /// # Errors
    /// The file cannot be examined.
    pub fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }

    /// Fills `buf` with the bytes that start at `offset`.
    ///
    /// # Errors
    /// The source is shorter, or cannot be read.
    pub fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        match self {
            Self::Bytes(b) => {
                let range = usize::try_from(offset)
                    .ok()
                    .and_then(|o| b.get(o..)?.get(..buf.len()))
                    .ok_or(io::ErrorKind::UnexpectedEof)?;
                buf.copy_from_slice(range);
                Ok(())
            }
            Self::File(f) => f.read_exact_at(buf, offset),
        }
    }

    /// All bytes, if they are at most `limit`.
    pub(super) fn read_all(&self, limit: u64) -> Result<Cow<'_, [u8]>, KernelError> {
        match self {
            Self::Bytes(b) => Ok((*b).into()),
            Self::File(_) => {
                let len = self.len()?;
                if len > limit {
                    return Err(KernelError::TooLarge {
                        what: "kernel",
                        len,
                    });
                }
                let mut bytes = vec![0; len as usize];
                self.read_at(0, &mut bytes)?;
                Ok(bytes.into())
            }
        }
    }

    /// Copies `len` bytes from `offset` to guest memory at `address`.
    pub(super) fn load(
        &self,
        offset: u64,
        len: u64,
        memory: &GuestMemory,
        address: u64,
    ) -> Result<(), KernelError> {
        match self {
            Self::Bytes(b) => {
                let bytes = usize::try_from(offset)
                    .ok()
                    .and_then(|o| b.get(o..)?.get(..usize::try_from(len).ok()?))
                    .ok_or(io::Error::from(io::ErrorKind::UnexpectedEof))?;
                memory.write_slice(bytes, GuestAddress(address))?;
            }
            Self::File(file) => {
                let mut file = *file;
                file.seek(SeekFrom::Start(offset))?;
                let mut done = 0;
                while done < len {
                    let at = GuestAddress(address + done);
                    let n = memory.read_volatile_from(at, &mut file, (len - done) as usize)?;
                    if n == 0 {
                        return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
                    }
                    done += n as u64;
                }
            }
        }
        Ok(())
    }
}

/// The place of a loaded kernel.
pub(super) struct Placement {
    pub(super) start: u64,
    pub(super) end: u64,
    /// 64-bit entry point.
    pub(super) entry64: u64,
    /// 32-bit PVH entry point.
    pub(super) pvh: Option<u64>,
}

/// Size of the RAM that starts at 0, in bytes.
pub(super) fn low_ram(memory: &GuestMemory) -> u64 {
    memory
        .find_region(GuestAddress(0))
        .map_or(0, vm_memory::GuestMemoryRegion::len)
        .min(layout::LOW_RAM_END)
}

/// Checks that `[start, start + len)` is low RAM that boot data does not use; returns its end.
pub(super) fn check_range(memory: &GuestMemory, start: u64, len: u64) -> Result<u64, KernelError> {
    let end = start.saturating_add(len);
    if start < layout::HIMEM_START || end > low_ram(memory) {
        return Err(KernelError::DoesNotFit { start, end });
    }
    Ok(end)
}

/// Called with each range of guest memory (GPA) that is about to be filled completely.
pub type Fills<'a> = &'a dyn Fn(Range<u64>);
