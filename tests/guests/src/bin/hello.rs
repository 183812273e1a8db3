//! The smallest payload: enters by its PVH note, writes one byte to the serial port, powers off.
//! Boot latency is measured with it.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
core::arch::global_asm!(
    ".section .note.pvh, \"a\", @note",
    ".balign 4",
    ".long 4, 4, 18", // name size, descriptor size, XEN_ELFNOTE_PHYS32_ENTRY
    ".asciz \"Xen\"",
    ".long start",
    ".section .text.start, \"ax\"",
    ".code32",
    ".global start",
    "start:",
    "mov dx, 0x3f8",
    "mov al, 'H'",
    "out dx, al",
    // Sleep type 5 (S5) with the enable bit, to the sleep control register.
    "mov dx, 0x600",
    "mov al, 0x34",
    "out dx, al",
    "6: hlt",
    "jmp 6b",
    ".code64",
    // The other entry point: 64-bit.
    ".global start64",
    "start64:",
    "mov dx, 0x3f8",
    "mov al, 'h'",
    "out dx, al",
    "mov dx, 0x600",
    "mov al, 0x34",
    "out dx, al",
    "7: hlt",
    "jmp 7b",
);

#[cfg(target_os = "none")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// On the host there is nothing to run.
#[cfg(not(target_os = "none"))]
fn main() {}
