//! Port I/O.

use core::arch::asm;

/// Writes a byte.
pub fn write8(port: u16, value: u8) {
    // SAFETY: OUT touches no memory of this program.
    unsafe { asm!("out dx, al", in("dx") port, in("al") value, options(nomem, nostack)) };
}

/// Reads a byte.
pub fn read8(port: u16) -> u8 {
    let value;
    // SAFETY: IN touches no memory of this program.
    unsafe { asm!("in al, dx", in("dx") port, out("al") value, options(nomem, nostack)) };
    value
}

/// Writes a double word.
pub fn write32(port: u16, value: u32) {
    // SAFETY: OUT touches no memory of this program.
    unsafe { asm!("out dx, eax", in("dx") port, in("eax") value, options(nomem, nostack)) };
}

/// Reads a double word.
pub fn read32(port: u16) -> u32 {
    let value;
    // SAFETY: IN touches no memory of this program.
    unsafe { asm!("in eax, dx", in("dx") port, out("eax") value, options(nomem, nostack)) };
    value
}

/// Writes bytes with one string instruction.
pub fn write_string(port: u16, bytes: &[u8]) {
    // SAFETY: OUTSB reads exactly the slice.
    unsafe {
        asm!("rep outsb", in("dx") port, inout("rcx") bytes.len() => _,
             inout("rsi") bytes.as_ptr() => _, options(nostack, readonly))
    };
}
