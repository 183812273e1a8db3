//! The machine's layout: guest physical memory, I/O ports and interrupt numbers.

use vm_memory::GuestAddress;

/// End of the RAM below 4 GiB (GPA); more RAM continues at [`HIGH_RAM_START`].
pub const LOW_RAM_END: u64 = 0xC000_0000;
/// Where RAM beyond [`LOW_RAM_END`] bytes continues (GPA).
pub const HIGH_RAM_START: u64 = 0x1_0000_0000;
/// Minimum RAM of a machine in bytes: the kernel's first megabytes and the boot data.
pub const MIN_RAM: u64 = 2 << 20;
/// Maximum RAM of a machine in bytes (1 TiB), which every host can address.
pub const MAX_RAM: u64 = 1 << 40;

/// PCI 32-bit memory window (GPA).
pub const PCI_MMIO_START: u64 = 0xC000_0000;
/// Size of the PCI 32-bit memory window in bytes.
pub const PCI_MMIO_SIZE: u64 = 0x2000_0000;
/// PCI Express enhanced configuration space (GPA), for one bus.
pub const ECAM_START: u64 = 0xE000_0000;
/// Size of the enhanced configuration space in bytes: one bus of 32 devices of 8 functions.
pub const ECAM_SIZE: u64 = 0x10_0000;
/// IOAPIC registers (GPA).
pub const IOAPIC_START: u64 = 0xFEC0_0000;
/// Size of the IOAPIC's register page in bytes.
pub const IOAPIC_SIZE: u64 = 0x1000;
/// Input pins of the IOAPIC; pin N is GSI N.
pub const IOAPIC_PINS: u8 = 24;
/// Local APIC registers (GPA); message-signalled interrupts are writes to this megabyte.
pub const LAPIC_START: u64 = 0xFEE0_0000;
/// Size of the local APIC's range in bytes.
pub const LAPIC_SIZE: u64 = 0x10_0000;
/// A page that KVM needs for real mode on Intel hosts (GPA).
pub const KVM_IDENTITY_MAP_START: u64 = 0xFFFB_C000;
/// Three pages that KVM needs for a task state segment on Intel hosts (GPA).
pub const KVM_TSS_START: u64 = 0xFFFB_D000;

/// Global descriptor table of the initial 64-bit or 32-bit state (GPA).
pub const BOOT_GDT_START: u64 = 0x500;
/// Empty interrupt descriptor table of the initial state (GPA).
pub const BOOT_IDT_START: u64 = 0x520;
/// PVH start info with its module list and memory map (GPA), one page.
pub const PVH_START_INFO: u64 = 0x6000;
/// Linux zero page, `struct boot_params` (GPA), one page.
pub const ZERO_PAGE_START: u64 = 0x7000;
/// Top of the small stack of the initial state (GPA).
pub const BOOT_STACK_TOP: u64 = 0x8FF0;
/// Top level of the identity page tables of the 64-bit entry (GPA): six pages follow.
pub const BOOT_PAGE_TABLES: u64 = 0x9000;
/// Kernel command line (GPA).
pub const CMDLINE_START: u64 = 0x2_0000;
/// Room for the kernel command line in bytes, its terminating zero included.
pub const CMDLINE_MAX_SIZE: usize = 0x1_0000;
/// End of the RAM below the legacy video memory hole (GPA), where a PC has its extended BIOS data
/// area.
pub const LOW_MEMORY_END: u64 = 0x9_FC00;
/// ACPI tables, starting with the RSDP (GPA). A kernel that is not given the RSDP's address
/// searches here.
pub const ACPI_START: u64 = 0xE_0000;
/// Room for the ACPI tables in bytes.
pub const ACPI_SIZE: u64 = 0x2_0000;
/// First address of RAM that kernels are loaded to (GPA).
pub const HIMEM_START: u64 = 0x10_0000;

/// First port of the serial port COM1 (8 ports).
pub const COM1_PORT: u16 = 0x3F8;
/// Ports of COM1.
pub const COM1_PORTS: u16 = 8;
/// Index and data port of the CMOS real-time clock (2 ports).
pub const RTC_PORT: u16 = 0x70;
/// Ports of the CMOS real-time clock.
pub const RTC_PORTS: u16 = 2;
/// PCI configuration address port (4 ports, the data port follows).
pub const PCI_CONFIG_PORT: u16 = 0xCF8;
/// Ports of the PCI configuration mechanism: address and data.
pub const PCI_CONFIG_PORTS: u16 = 8;
/// First port of the ACPI block.
pub const ACPI_PORT: u16 = 0x600;
/// Ports of the ACPI block.
pub const ACPI_PORTS: u16 = 12;
/// Sleep control register (ACPI 6.5, section 4.8.3.7), 1 byte.
pub const SLEEP_CONTROL_PORT: u16 = ACPI_PORT;
/// Sleep status register, 1 byte.
pub const SLEEP_STATUS_PORT: u16 = ACPI_PORT + 1;
/// Reset register, 1 byte; [`RESET_VALUE`] resets the machine.
pub const RESET_PORT: u16 = ACPI_PORT + 2;
/// The value to write to [`RESET_PORT`] for a reset.
pub const RESET_VALUE: u8 = 1;
/// Event status of the Generic Event Device, 4 bytes; a read clears it.
pub const GED_STATUS_PORT: u16 = ACPI_PORT + 4;
/// ACPI power management timer, 4 bytes, 3.579545 MHz.
pub const PM_TIMER_PORT: u16 = ACPI_PORT + 8;
/// Port of the pvpanic device, the one that it has on other virtual machines, 1 byte.
pub const PVPANIC_PORT: u16 = 0x505;
/// Sleep type that means power off (S5) in [`SLEEP_CONTROL_PORT`].
pub const SLEEP_TYPE_S5: u8 = 5;

/// Interrupt of COM1.
pub const COM1_GSI: u32 = 4;
/// Interrupt of the real-time clock.
pub const RTC_GSI: u32 = 8;
/// Interrupt of the Generic Event Device.
pub const GED_GSI: u32 = 9;
/// Bit of the Generic Event Device's status: the power button was pressed.
pub const GED_POWER_BUTTON: u32 = 1;

/// The kind of a range of guest physical memory. The values are those of an E820 map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum MemoryKind {
    /// RAM the guest may use.
    Ram = 1,
    /// Reserved: not usable as RAM.
    Reserved = 2,
}

/// One range of the guest's memory map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryRange {
    /// First address (GPA).
    pub start: u64,
    /// Length in bytes.
    pub size: u64,
    /// Its kind.
    pub kind: MemoryKind,
}

/// The RAM of a machine with `size` bytes: start and length of each memory slot, around the hole
/// below 4 GiB.
///
/// ```
/// # use fleetbox_arch::x86_64::layout::memory_regions;
/// assert_eq!(memory_regions(1 << 30).len(), 1);
/// assert_eq!(memory_regions(4 << 30).len(), 2);
/// ```
pub fn memory_regions(size: u64) -> Vec<(GuestAddress, usize)> {
    let low = size.min(LOW_RAM_END);
    let mut regions = vec![(GuestAddress(0), low as usize)];
    if size > low {
        regions.push((GuestAddress(HIGH_RAM_START), (size - low) as usize));
    }
    regions
}

/// The memory map (E820, PVH) of a machine with `size` bytes of RAM, in ascending order.
pub fn memory_map(size: u64) -> Vec<MemoryRange> {
    let ram = |start: u64, end: u64| MemoryRange {
        start,
        size: end - start,
        kind: MemoryKind::Ram,
    };
    let reserved = |start: u64, size: u64| MemoryRange {
        start,
        size,
        kind: MemoryKind::Reserved,
    };
    let low = size.min(LOW_RAM_END);
    let mut map = vec![ram(0, low.min(LOW_MEMORY_END))];
    // The megabyte's end holds the ACPI tables; the hole between is where a PC has its video
    // memory, and kernels refuse to use it whatever a map says.
    map.push(reserved(LOW_MEMORY_END, 0xA_0000 - LOW_MEMORY_END));
    map.push(reserved(ACPI_START, ACPI_SIZE));
    if low > HIMEM_START {
        map.push(ram(HIMEM_START, low));
    }
    map.push(reserved(ECAM_START, ECAM_SIZE));
    map.push(reserved(KVM_IDENTITY_MAP_START, 0x4000));
    if size > low {
        map.push(ram(HIGH_RAM_START, HIGH_RAM_START + (size - low)));
    }
    map
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZES: [u64; 7] = [
        MIN_RAM,
        128 << 20,
        LOW_RAM_END - 4096,
        LOW_RAM_END,
        LOW_RAM_END + 4096,
        8 << 30,
        MAX_RAM,
    ];

    #[test]
    fn regions_have_the_size_asked_for_and_avoid_the_hole() {
        for size in SIZES {
            let regions = memory_regions(size);
            assert_eq!(regions.iter().map(|r| r.1 as u64).sum::<u64>(), size);
            for (start, len) in regions {
                let end = start.0 + len as u64;
                assert!(end <= LOW_RAM_END || start.0 >= HIGH_RAM_START);
            }
        }
    }

    #[test]
    fn the_map_is_sorted_and_its_ram_is_backed() {
        for size in SIZES {
            let map = memory_map(size);
            for pair in map.windows(2) {
                assert!(pair[0].start + pair[0].size <= pair[1].start, "{pair:x?}");
            }
            for range in map.iter().filter(|r| r.kind == MemoryKind::Ram) {
                let backed = memory_regions(size).iter().any(|(start, len)| {
                    start.0 <= range.start && range.start + range.size <= start.0 + *len as u64
                });
                assert!(backed, "{range:x?} of {size:#x}");
            }
        }
    }

    #[test]
    fn boot_data_does_not_overlap() {
        let mut ranges = [
            (BOOT_GDT_START, 0x20),
            (BOOT_IDT_START, 0x10),
            (PVH_START_INFO, 0x1000),
            (ZERO_PAGE_START, 0x1000),
            (BOOT_STACK_TOP - 0xFF0, 0xFF0),
            (BOOT_PAGE_TABLES, 6 * 0x1000),
            (CMDLINE_START, CMDLINE_MAX_SIZE as u64),
            (ACPI_START, ACPI_SIZE),
        ];
        ranges.sort();
        for pair in ranges.windows(2) {
            assert!(pair[0].0 + pair[0].1 <= pair[1].0, "{pair:x?}");
        }
    }
}
