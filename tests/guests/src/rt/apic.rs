//! Local APIC and IOAPIC.

const LAPIC: u64 = 0xFEE0_0000;
const IOAPIC: u64 = 0xFEC0_0000;

fn lapic(offset: u64) -> *mut u32 {
    (LAPIC + offset) as *mut u32
}

/// Writes a register of this vCPU's local APIC.
pub fn write(offset: u64, value: u32) {
    // SAFETY: the local APIC's registers are mapped one to one and are no memory of the program.
    unsafe { lapic(offset).write_volatile(value) };
}

/// Reads a register of this vCPU's local APIC.
pub fn read(offset: u64) -> u32 {
    // SAFETY: as in `write`.
    unsafe { lapic(offset).read_volatile() }
}

/// Turns this vCPU's local APIC on; spurious interrupts are vector 255.
pub fn enable() {
    write(0xF0, 0x1FF);
}

/// This vCPU's APIC identifier.
pub fn id() -> u8 {
    (read(0x20) >> 24) as u8
}

/// Acknowledges the interrupt in service.
pub fn end_of_interrupt() {
    write(0xB0, 0);
}

/// Writes a register of the IOAPIC.
pub fn ioapic_write(register: u32, value: u32) {
    // SAFETY: the IOAPIC's registers are mapped one to one and are no memory of the program.
    unsafe { (IOAPIC as *mut u32).write_volatile(register) };
    // SAFETY: as above.
    unsafe { ((IOAPIC + 0x10) as *mut u32).write_volatile(value) };
}

/// Reads a register of the IOAPIC.
pub fn ioapic_read(register: u32) -> u32 {
    // SAFETY: as in `ioapic_write`.
    unsafe { (IOAPIC as *mut u32).write_volatile(register) };
    // SAFETY: as in `ioapic_write`.
    unsafe { ((IOAPIC + 0x10) as *const u32).read_volatile() }
}

/// Routes `pin` to `vector` on the vCPU with APIC identifier `target`.
pub fn route(pin: u32, vector: u8, target: u8, level: bool) {
    ioapic_write(0x11 + 2 * pin, u32::from(target) << 24);
    ioapic_write(0x10 + 2 * pin, u32::from(vector) | u32::from(level) << 15);
}
