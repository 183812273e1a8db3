//! The data that a kernel finds at its entry: the zero page or PVH start info, and the tables that
//! the first vCPU's registers point to.

use linux_loader::loader::bootparam::{boot_e820_entry, boot_params};
use linux_loader::loader::elf::start_info::{
    hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info,
};
use vm_memory::{
    Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryError, GuestMemoryRegion as _,
};

use super::bzimage::SetupHeader;
use super::entry::{self, Entry};
use super::layout::{self, MemoryRange};
use crate::memory::GuestMemory;

/// An initrd in guest memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Module {
    /// First address (GPA).
    pub start: u64,
    /// Length in bytes.
    pub size: u64,
}

fn memory_map(memory: &GuestMemory) -> Vec<MemoryRange> {
    layout::memory_map(memory.iter().map(|r| r.len()).sum())
}

/// Writes the Linux zero page (`struct boot_params`) at [`layout::ZERO_PAGE_START`].
///
/// `header` is the setup header if the kernel is a bzImage. The command line must be at
/// [`layout::CMDLINE_START`].
///
/// # Errors
/// The memory has no RAM there.
pub fn write_zero_page(
    memory: &GuestMemory,
    header: Option<&SetupHeader>,
    initrd: Option<Module>,
    rsdp: GuestAddress,
) -> Result<GuestAddress, GuestMemoryError> {
    /// The boot loader type for loaders without an assigned number.
    const LOADER_UNDEFINED: u8 = 0xFF;
    const LOADED_HIGH: u8 = 1;

    let mut params = boot_params::default();
    if let Some(header) = header {
        params.hdr = header.raw;
    }
    params.hdr.boot_flag = 0xAA55;
    params.hdr.header = u32::from_le_bytes(*b"HdrS");
    params.hdr.type_of_loader = LOADER_UNDEFINED;
    params.hdr.loadflags |= LOADED_HIGH;
    params.hdr.cmd_line_ptr = layout::CMDLINE_START as u32;
    if let Some(initrd) = initrd {
        // Below 4 GiB always, so the halves in `ext_ramdisk_*` are zero.
        params.hdr.ramdisk_image = initrd.start as u32;
        params.hdr.ramdisk_size = initrd.size as u32;
        params.ext_ramdisk_image = (initrd.start >> 32) as u32;
        params.ext_ramdisk_size = (initrd.size >> 32) as u32;
    }
    params.acpi_rsdp_addr = rsdp.0;
    let map = memory_map(memory);
    let mut count = 0;
    for (entry, range) in params.e820_table.iter_mut().zip(&map) {
        *entry = boot_e820_entry {
            addr: range.start,
            size: range.size,
            r#type: range.kind as u32,
        };
        count += 1;
    }
    params.e820_entries = count;
    let at = GuestAddress(layout::ZERO_PAGE_START);
    memory.write_obj(params, at)?;
    Ok(at)
}

/// Writes the PVH start info with its module list and memory map at [`layout::PVH_START_INFO`].
///
/// The command line must be at [`layout::CMDLINE_START`].
///
/// # Errors
/// The memory has no RAM there.
pub fn write_start_info(
    memory: &GuestMemory,
    initrd: Option<Module>,
    rsdp: GuestAddress,
) -> Result<GuestAddress, GuestMemoryError> {
    const MAGIC: u32 = 0x336E_C578;
    /// Version 1 includes the memory map.
    const VERSION: u32 = 1;

    let at = GuestAddress(layout::PVH_START_INFO);
    let modules_at = at.0 + size_of::<hvm_start_info>() as u64;
    let map_at = modules_at + size_of::<hvm_modlist_entry>() as u64;
    let mut info = hvm_start_info {
        magic: MAGIC,
        version: VERSION,
        cmdline_paddr: layout::CMDLINE_START,
        rsdp_paddr: rsdp.0,
        memmap_paddr: map_at,
        ..hvm_start_info::default()
    };
    if let Some(initrd) = initrd {
        info.nr_modules = 1;
        info.modlist_paddr = modules_at;
        let module = hvm_modlist_entry {
            paddr: initrd.start,
            size: initrd.size,
            ..hvm_modlist_entry::default()
        };
        memory.write_obj(module, GuestAddress(modules_at))?;
    }
    let mut entry_at = map_at;
    for range in memory_map(memory) {
        let entry = hvm_memmap_table_entry {
            addr: range.start,
            size: range.size,
            type_: range.kind as u32,
            reserved: 0,
        };
        memory.write_obj(entry, GuestAddress(entry_at))?;
        entry_at += size_of::<hvm_memmap_table_entry>() as u64;
        info.memmap_entries += 1;
    }
    memory.write_obj(info, at)?;
    Ok(at)
}

/// Writes what [`entry::boot_regs`] points to: the global descriptor table, an empty interrupt
/// descriptor table and, for the 64-bit entry, page tables that map the first 4 GiB to themselves.
///
/// # Errors
/// The memory has no RAM there.
pub fn write_cpu_tables(memory: &GuestMemory, entry: &Entry) -> Result<(), GuestMemoryError> {
    for (i, descriptor) in entry::boot_gdt(entry).into_iter().enumerate() {
        let at = layout::BOOT_GDT_START + 8 * i as u64;
        memory.write_obj(descriptor, GuestAddress(at))?;
    }
    memory.write_obj(0u64, GuestAddress(layout::BOOT_IDT_START))?;
    if matches!(entry, Entry::Linux64 { .. }) {
        write_page_tables(memory)?;
    }
    Ok(())
}

/// Page tables at [`layout::BOOT_PAGE_TABLES`]: a PML4, a PDPT and four directories of 2 MiB pages.
fn write_page_tables(memory: &GuestMemory) -> Result<(), GuestMemoryError> {
    const PAGE: u64 = 4096;
    const PRESENT_WRITABLE: u64 = 3;
    const LARGE: u64 = 1 << 7;
    const DIRECTORIES: u64 = 4;

    let pdpt = layout::BOOT_PAGE_TABLES + PAGE;
    let first = pdpt + PAGE;
    let mut tables = vec![0u8; ((2 + DIRECTORIES) * PAGE) as usize];
    let (top, rest) = tables.split_at_mut(PAGE as usize);
    let (middle, directories) = rest.split_at_mut(PAGE as usize);
    top[..8].copy_from_slice(&(pdpt | PRESENT_WRITABLE).to_le_bytes());
    for (i, entry) in middle
        .chunks_exact_mut(8)
        .take(DIRECTORIES as usize)
        .enumerate()
    {
        entry.copy_from_slice(&((first + i as u64 * PAGE) | PRESENT_WRITABLE).to_le_bytes());
    }
    for (i, entry) in directories.chunks_exact_mut(8).enumerate() {
        entry.copy_from_slice(&((i as u64) << 21 | LARGE | PRESENT_WRITABLE).to_le_bytes());
    }
    memory.write_slice(&tables, GuestAddress(layout::BOOT_PAGE_TABLES))
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::GuestAddress;

    fn memory(size: u64) -> GuestMemory {
        crate::allocate(&layout::memory_regions(size)).unwrap()
    }

    #[test]
    fn the_zero_page_describes_memory_initrd_and_rsdp() {
        let memory = memory(256 << 20);
        let initrd = Module {
            start: 0xF00_0000,
            size: 12345,
        };
        let at = write_zero_page(&memory, None, Some(initrd), GuestAddress(0xE_0000)).unwrap();
        let read32 = |offset: u64| -> u32 { memory.read_obj(GuestAddress(at.0 + offset)).unwrap() };
        assert_eq!(read32(0x202), u32::from_le_bytes(*b"HdrS"));
        assert_eq!(read32(0x218), 0xF00_0000);
        assert_eq!(read32(0x21C), 12345);
        assert_eq!(read32(0x228), layout::CMDLINE_START as u32);
        assert_eq!(read32(0x070), 0xE_0000);
        let entries: u8 = memory.read_obj(GuestAddress(at.0 + 0x1E8)).unwrap();
        assert_eq!(usize::from(entries), layout::memory_map(256 << 20).len());
        let size: u64 = memory.read_obj(GuestAddress(at.0 + 0x2D0 + 8)).unwrap();
        assert_eq!(size, layout::LOW_MEMORY_END);
    }

    #[test]
    fn the_start_info_describes_memory_initrd_and_rsdp() {
        let memory = memory(256 << 20);
        let initrd = Module {
            start: 0xF00_0000,
            size: 12345,
        };
        let at = write_start_info(&memory, Some(initrd), GuestAddress(0xE_0000)).unwrap();
        let info: hvm_start_info = memory.read_obj(at).unwrap();
        assert_eq!((info.magic, info.version), (0x336E_C578, 1));
        assert_eq!((info.nr_modules, info.rsdp_paddr), (1, 0xE_0000));
        let module: hvm_modlist_entry = memory.read_obj(GuestAddress(info.modlist_paddr)).unwrap();
        assert_eq!((module.paddr, module.size), (0xF00_0000, 12345));
        let map = layout::memory_map(256 << 20);
        assert_eq!(info.memmap_entries as usize, map.len());
        for (i, range) in map.iter().enumerate() {
            let at = info.memmap_paddr + 24 * i as u64;
            let entry: hvm_memmap_table_entry = memory.read_obj(GuestAddress(at)).unwrap();
            assert_eq!(
                (entry.addr, entry.size, entry.type_),
                (range.start, range.size, range.kind as u32)
            );
        }
    }

    #[test]
    fn page_tables_map_the_first_four_gib_to_themselves() {
        let memory = memory(layout::MIN_RAM);
        write_page_tables(&memory).unwrap();
        let entry = |table: u64, index: u64| -> u64 {
            memory.read_obj(GuestAddress(table + 8 * index)).unwrap()
        };
        for address in [0, 0x1234_5678_u64, 0xBFFF_FFFF, 0xFFFF_FFFF] {
            let pdpt = entry(layout::BOOT_PAGE_TABLES, address >> 39) & !0xFFF;
            let directory = entry(pdpt, address >> 30) & !0xFFF;
            let page = entry(directory, address >> 21 & 0x1FF);
            assert_eq!(page & 0xFFF, 0x83);
            assert_eq!(page & !0xFFF | address & 0x1F_FFFF, address);
        }
    }
}
