//! Loading a kernel, its initrd and its command line into guest memory.
//!
//! Kernels come from disk images that a guest has written: every field of them is checked before
//! it is used, and what does not fit is an error that says so.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::ops::Range;
use std::os::unix::fs::FileExt;

use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryError};

use super::boot::{self, Module};
use super::bzimage::{self, SetupHeader};
use super::{elf, layout};
use crate::memory::GuestMemory;

/// The bytes of a kernel or an initrd.
#[derive(Debug, Clone, Copy)]
pub enum Source<'a> {
    /// In memory.
    Bytes(&'a [u8]),
    /// A file, from its beginning; its position changes.
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

    /// True if there is not a single byte.
    ///
    /// # Errors
    /// The file cannot be examined.
    pub fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }

    /// Fills `buf` from `offset` on.
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

    /// Everything, if it is no more than `limit` bytes.
    fn read_all(&self, limit: u64) -> Result<std::borrow::Cow<'_, [u8]>, KernelError> {
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

/// Where and how the first vCPU enters the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry {
    /// Linux 64-bit boot protocol (Documentation/arch/x86/boot.rst, "64-bit boot protocol").
    Linux64 {
        /// Instruction pointer.
        rip: u64,
        /// Where the zero page is.
        zero_page: GuestAddress,
    },
    /// PVH: 32-bit protected mode (Xen's "x86/HVM direct boot ABI").
    Pvh {
        /// Instruction pointer.
        rip: u64,
        /// Where the start info is.
        start_info: GuestAddress,
    },
}

/// A kernel in guest memory, ready to be entered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoadedKernel {
    /// Where and how to enter it; [`super::regs::boot_regs`] makes register state of it.
    pub entry: Entry,
    /// First address of the kernel (GPA).
    pub start: u64,
    /// First address behind the kernel, with the memory that it needs before it knows the memory
    /// map (GPA).
    pub end: u64,
    /// Where the initrd is, if there is one: address (GPA) and length in bytes.
    pub initrd: Option<(u64, u64)>,
}

/// How to load a kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoadOptions {
    /// Decompress a bzImage's payload here, where its compression is one that
    /// [`vmlinux_from_bzimage`](super::bzimage::vmlinux_from_bzimage) knows. Otherwise the guest
    /// does it.
    pub decompress: bool,
    /// Where the RSDP is (GPA).
    pub rsdp: GuestAddress,
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self {
            decompress: true,
            rsdp: GuestAddress(layout::ACPI_START),
        }
    }
}

/// Why a kernel cannot be loaded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KernelError {
    /// Neither an ELF file nor a bzImage.
    #[error("the kernel is neither an x86-64 ELF file nor a bzImage (it begins with {magic:02x?})")]
    UnknownFormat {
        /// Its first bytes.
        magic: [u8; 4],
    },
    /// The ELF file is damaged or not for this machine.
    #[error("the kernel's ELF file is unusable: {0}")]
    Elf(&'static str),
    /// The bzImage is damaged or too old.
    #[error("the bzImage is unusable: {0}")]
    BzImage(&'static str),
    /// The payload of the bzImage cannot be decompressed.
    #[error("the kernel's {compression} payload is damaged: {reason}")]
    Payload {
        /// Compression format.
        compression: &'static str,
        /// What the decompressor says.
        reason: String,
    },
    /// A compression that is left to the guest.
    #[error("the bzImage is compressed in a way that only the kernel itself can undo ({0:02x?})")]
    UnknownCompression([u8; 4]),
    /// Part of the kernel lies where there is no RAM.
    #[error("the kernel wants {start:#x}..{end:#x}, which is not RAM for it: more memory may help")]
    DoesNotFit {
        /// First address (GPA).
        start: u64,
        /// First address behind it.
        end: u64,
    },
    /// No room for the initrd.
    #[error(
        "the initrd of {size} bytes does not fit between the kernel's end {low:#x} and {high:#x}: \
         give the machine more memory"
    )]
    InitrdDoesNotFit {
        /// Size in bytes.
        size: u64,
        /// First usable address (GPA).
        low: u64,
        /// First address behind what is usable.
        high: u64,
    },
    /// The command line is longer than the kernel reads.
    #[error("the command line has {len} bytes, the kernel takes {max}")]
    CmdlineTooLong {
        /// Its length in bytes.
        len: usize,
        /// The most the kernel takes.
        max: usize,
    },
    /// The command line contains a zero byte.
    #[error("the command line contains a zero byte")]
    CmdlineNul,
    /// A file is larger than anything sensible.
    #[error("the {what} of {len} bytes is larger than any real one")]
    TooLarge {
        /// Which.
        what: &'static str,
        /// Its length in bytes.
        len: u64,
    },
    /// Reading it failed.
    #[error("reading the kernel or initrd failed: {0}")]
    Io(#[from] io::Error),
    /// Writing guest memory failed.
    #[error("writing guest memory failed: {0}")]
    Memory(#[from] GuestMemoryError),
}

/// The largest kernel file that is read whole, in bytes.
const MAX_KERNEL_FILE: u64 = 512 << 20;
/// Longest command line of a kernel that does not state its own limit (`COMMAND_LINE_SIZE` of
/// Linux on x86, without the terminating zero).
const DEFAULT_CMDLINE_MAX: usize = 2047;
/// Last address of an initrd for a kernel that does not state its own limit.
const DEFAULT_INITRD_MAX: u64 = 0x7FFF_FFFF;

/// Where the loader put a kernel.
pub(super) struct Placed {
    pub(super) start: u64,
    pub(super) end: u64,
    /// 64-bit entry point.
    pub(super) entry64: u64,
    /// 32-bit PVH entry point.
    pub(super) pvh: Option<u64>,
}

/// RAM that starts at 0, in bytes.
fn low_ram(memory: &GuestMemory) -> u64 {
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

/// Called with each range of guest memory (GPA) that is about to be filled from end to end.
pub type Fills<'a> = &'a dyn Fn(Range<u64>);

/// Loads `kernel` (bzImage or ELF), `initrd` and `cmdline` into `memory` and writes the tables that
/// its boot protocol asks for, so that a vCPU with [`super::regs::boot_regs`] can enter it.
///
/// An ELF file with a PVH note is entered there, any other at its 64-bit entry point. The initrd
/// goes as high as the kernel allows, below the hole at 3 GiB. The ACPI tables are not written.
///
/// # Errors
/// [`KernelError`]: the files are damaged, unsupported or do not fit into the memory.
pub fn load(
    memory: &GuestMemory,
    kernel: &Source<'_>,
    initrd: Option<&Source<'_>>,
    cmdline: &str,
    options: &LoadOptions,
) -> Result<LoadedKernel, KernelError> {
    load_with(memory, kernel, initrd, cmdline, options, &|_| {})
}

/// As [`load`], and tells `fills` of large ranges before it fills them, so that whoever owns the
/// memory can prepare it: touching it page by page is a good part of the work.
///
/// # Errors
/// As [`load`].
pub fn load_with(
    memory: &GuestMemory,
    kernel: &Source<'_>,
    initrd: Option<&Source<'_>>,
    cmdline: &str,
    options: &LoadOptions,
    fills: Fills<'_>,
) -> Result<LoadedKernel, KernelError> {
    let mut magic = [0; 4];
    kernel.read_at(0, &mut magic)?;
    // Spans, so that a log at level debug tells where the time goes.
    let loading = tracing::debug_span!("load_kernel").entered();
    let (placed, header) = if magic == elf::MAGIC {
        (elf::load(memory, kernel, fills)?, None)
    } else if bzimage::is_bzimage(kernel) {
        load_bzimage(memory, kernel, options.decompress, fills)?
    } else {
        return Err(KernelError::UnknownFormat { magic });
    };
    drop(loading);

    let max = header
        .as_ref()
        .map_or(DEFAULT_CMDLINE_MAX, |h| h.cmdline_size as usize)
        .min(layout::CMDLINE_MAX_SIZE - 1);
    write_cmdline(memory, cmdline, max)?;

    let initrd = match initrd {
        Some(source) if !source.is_empty()? => {
            let max = header
                .as_ref()
                .map_or(DEFAULT_INITRD_MAX, |h| u64::from(h.initrd_addr_max));
            let _loading = tracing::debug_span!("load_initrd").entered();
            Some(load_initrd(memory, source, placed.end, max, fills)?)
        }
        _ => None,
    };

    let module = initrd.map(|(start, size)| Module { start, size });
    let entry = match placed.pvh {
        Some(rip) => Entry::Pvh {
            rip,
            start_info: boot::write_start_info(memory, module, options.rsdp)?,
        },
        None => Entry::Linux64 {
            rip: placed.entry64,
            zero_page: boot::write_zero_page(memory, header.as_ref(), module, options.rsdp)?,
        },
    };
    boot::write_cpu_tables(memory, &entry)?;
    Ok(LoadedKernel {
        entry,
        start: placed.start,
        end: placed.end,
        initrd,
    })
}

fn load_bzimage(
    memory: &GuestMemory,
    kernel: &Source<'_>,
    decompress: bool,
    fills: Fills<'_>,
) -> Result<(Placed, Option<SetupHeader>), KernelError> {
    let image = kernel.read_all(MAX_KERNEL_FILE)?;
    let header = SetupHeader::parse(&image)?;
    if decompress {
        match bzimage::load_vmlinux(memory, &image, &header, fills) {
            Ok(placed) => return Ok((placed, Some(header))),
            Err(KernelError::UnknownCompression(magic)) => {
                tracing::debug!(?magic, "the guest decompresses its kernel itself");
            }
            Err(e) => return Err(e),
        }
    }
    let placed = bzimage::load(memory, &image, &header)?;
    Ok((placed, Some(header)))
}

fn write_cmdline(memory: &GuestMemory, cmdline: &str, max: usize) -> Result<(), KernelError> {
    let len = cmdline.len();
    if len > max {
        return Err(KernelError::CmdlineTooLong { len, max });
    }
    if cmdline.contains('\0') {
        return Err(KernelError::CmdlineNul);
    }
    let at = GuestAddress(layout::CMDLINE_START);
    memory.write_slice(cmdline.as_bytes(), at)?;
    memory.write_obj(0u8, GuestAddress(at.0 + len as u64))?;
    Ok(())
}

fn load_initrd(
    memory: &GuestMemory,
    source: &Source<'_>,
    low: u64,
    max: u64,
    fills: Fills<'_>,
) -> Result<(u64, u64), KernelError> {
    const PAGE: u64 = 4096;
    let size = source.len()?;
    let high = low_ram(memory).min(max.saturating_add(1));
    let start = high
        .checked_sub(size)
        .map(|s| s & !(PAGE - 1))
        .filter(|s| *s >= low)
        .ok_or(KernelError::InitrdDoesNotFit { size, low, high })?;
    fills(start..start + size);
    source.load(0, size, memory, start)?;
    Ok((start, size))
}

#[cfg(test)]
#[path = "kernel_test.rs"]
mod tests;
