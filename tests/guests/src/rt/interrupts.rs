//! The interrupt descriptor table: every vector counts, exceptions end the payload.

use core::arch::{asm, global_asm};
use core::sync::atomic::{AtomicU32, Ordering};

use super::apic;
use crate::println;

static COUNTS: [AtomicU32; 256] = [const { AtomicU32::new(0) }; 256];

/// How often `vector` was taken.
pub fn count(vector: u8) -> u32 {
    COUNTS[usize::from(vector)].load(Ordering::SeqCst)
}

// One stub of 16 bytes a vector. Exceptions with an error code push it themselves; it is reported
// together with the rest of the frame, so the stub need not tell the two kinds apart.
global_asm!(
    ".section .text",
    ".balign 16",
    ".global interrupt_stubs",
    "interrupt_stubs:",
    ".set vector, 0",
    ".rept 256",
    ".balign 16",
    "push rax",
    "mov eax, vector",
    "jmp interrupt_common",
    ".set vector, vector + 1",
    ".endr",
    "interrupt_common:",
    "push rcx",
    "push rdx",
    "push rsi",
    "push rdi",
    "push r8",
    "push r9",
    "push r10",
    "push r11",
    "push rbp",
    "mov rbp, rsp",
    "mov edi, eax",
    "lea rsi, [rsp + 80]",
    "and rsp, -16",
    "call on_interrupt",
    "mov rsp, rbp",
    "pop rbp",
    "pop r11",
    "pop r10",
    "pop r9",
    "pop r8",
    "pop rdi",
    "pop rsi",
    "pop rdx",
    "pop rcx",
    "pop rax",
    "iretq",
);

unsafe extern "C" {
    static interrupt_stubs: u8;
}

#[unsafe(no_mangle)]
extern "C" fn on_interrupt(vector: u32, frame: *const u64) {
    if vector < 32 {
        // SAFETY: the processor has pushed at least four words there.
        let words = unsafe { core::slice::from_raw_parts(frame, 4) };
        println!("FAILED exception {vector}, frame {words:#x?}");
        super::power_off();
    }
    COUNTS[vector as usize & 0xff].fetch_add(1, Ordering::SeqCst);
    apic::end_of_interrupt();
}

#[repr(C, align(16))]
struct Table([[u64; 2]; 256]);

static mut TABLE: Table = Table([[0; 2]; 256]);

#[repr(C, packed)]
struct Pointer {
    limit: u16,
    base: u64,
}

/// Fills the table and loads it on this vCPU. Interrupts stay off.
pub fn install() {
    let stubs = &raw const interrupt_stubs as u64;
    let table = &raw mut TABLE;
    for vector in 0..256u64 {
        let handler = stubs + 16 * vector;
        let low = handler & 0xffff | 0x08 << 16 | 0x8e00 << 32 | (handler >> 16 & 0xffff) << 48;
        // SAFETY: runs once, on the first vCPU, before any interrupt or other vCPU.
        unsafe { (*table).0[vector as usize] = [low, handler >> 32] };
    }
    load();
}

/// Loads the table on this vCPU.
pub fn load() {
    let pointer = Pointer {
        limit: 256 * 16 - 1,
        base: &raw const TABLE as u64,
    };
    // SAFETY: the table is static and filled.
    unsafe { asm!("lidt [{}]", in(reg) &raw const pointer, options(nostack, readonly)) };
}

/// Lets interrupts in.
pub fn enable() {
    // SAFETY: every vector has a handler.
    unsafe { asm!("sti", options(nomem, nostack)) };
}

/// Lets interrupts in and halts this vCPU until one comes.
pub fn wait() {
    // SAFETY: every vector has a handler. None comes between the two instructions.
    unsafe { asm!("sti", "hlt", options(nomem, nostack)) };
}

/// Keeps interrupts out.
pub fn disable() {
    // SAFETY: only postpones interrupts.
    unsafe { asm!("cli", options(nomem, nostack)) };
}
