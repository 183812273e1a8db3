//! Loading a kernel, its initrd and its command line into guest memory.
//!
//! Kernels come from disk images that a guest may have written. So every field is checked before it
//! is used, and an error says what is wrong.

use vm_memory::{Bytes, GuestAddress};

use super::boot::{self, Module};
use super::bzimage::{self, SetupHeader};
use super::entry::Entry;
use super::source::{Placement, low_ram};
use super::{elf, layout};
use crate::memory::GuestMemory;

pub use super::error::KernelError;
pub use super::source::{Fills, Source};

/// A kernel in guest memory, ready to be entered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoadedKernel {
    /// Where and how to enter it. [`super::entry::boot_regs`] turns it into register state.
    pub entry: Entry,
    /// First address of the kernel (GPA).
    pub start: u64,
    /// First address behind the kernel (GPA). This includes the memory that it needs before it
    /// reads the memory map.
    pub end: u64,
    /// Address (GPA) and length in bytes of the initrd, if there is one.
    pub initrd: Option<(u64, u64)>,
}

/// How to load a kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoadOptions {
    /// Decompress a bzImage's payload on the host, if
    /// [`vmlinux_from_bzimage`](super::bzimage::vmlinux_from_bzimage) knows its compression.
    /// Otherwise the guest does it.
    pub decompress: bool,
    /// Address of the RSDP (GPA).
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

/// Maximum bytes of a kernel file that is read completely into memory.
const MAX_KERNEL_FILE: u64 = 512 << 20;
/// Maximum length of the command line for a kernel that states no limit (`COMMAND_LINE_SIZE` of
/// Linux on x86, without the terminating zero).
const DEFAULT_CMDLINE_MAX: usize = 2047;
/// Last address of an initrd for a kernel that states no limit.
const DEFAULT_INITRD_MAX: u64 = 0x7FFF_FFFF;

/// Loads `kernel` (bzImage or ELF), `initrd` and `cmdline` into `memory`, and writes the tables of
/// the kernel's boot protocol. A vCPU with [`super::entry::boot_regs`] can then enter it.
///
/// An ELF file with a PVH note is entered at the PVH entry point, any other kernel at its 64-bit
/// entry point. The initrd is placed as high as the kernel allows, below the hole at 3 GiB. The
/// ACPI tables are not written.
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

/// Like [`load`], but calls `fills` with each large range before it fills it. The owner of the
/// memory can then prepare the range, because touching memory page by page takes much of the time.
///
/// # Errors
/// See [`load`].
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
) -> Result<(Placement, Option<SetupHeader>), KernelError> {
    let image = kernel.read_all(MAX_KERNEL_FILE)?;
    let header = SetupHeader::parse(&image)?;
    if decompress {
        match bzimage::load_vmlinux(memory, &image, &header, fills) {
            Ok(placed) => return Ok((placed, Some(header))),
            Err(KernelError::UnknownCompression(magic)) => {
                tracing::debug!(?magic, "the guest will decompress its kernel");
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
