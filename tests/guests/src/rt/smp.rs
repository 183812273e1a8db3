//! Starting the other vCPUs.

use core::arch::global_asm;
use core::sync::atomic::{AtomicU32, Ordering};

use super::{apic, interrupts, time};

/// Where the start-up interrupt sends a vCPU: page 8, below 1 MiB.
const TRAMPOLINE: u64 = 0x8000;
const STACK: usize = 16 << 10;
/// Most vCPUs that can be started.
pub const MAX: usize = 8;

static STARTED: AtomicU32 = AtomicU32::new(0);
static MASK: AtomicU32 = AtomicU32::new(0);

// Only the assembly below uses them.
static mut STACKS: [u128; STACK / 16 * MAX] = [0; STACK / 16 * MAX];

// Copied to TRAMPOLINE: real mode, then protected mode, then the shared way into long mode. Its
// own addresses are therefore computed from there.
global_asm!(
    ".section .text",
    ".code16",
    ".global trampoline, trampoline_end",
    "trampoline:",
    "cli",
    "xor ax, ax",
    "mov ds, ax",
    "lgdt [tramp_gdt_pointer_at]",
    "mov eax, cr0",
    "or al, 1",
    "mov cr0, eax",
    ".byte 0x66, 0xea", // far jump to a 32-bit address
    ".long 0x8000 + tramp32 - trampoline",
    ".word 0x08",
    ".balign 16",
    "tramp_gdt:",
    ".quad 0",
    ".quad 0x00CF9B000000FFFF",
    ".quad 0x00CF93000000FFFF",
    "tramp_gdt_pointer:",
    ".word 23",
    ".long 0x8000 + tramp_gdt - trampoline",
    ".code32",
    "tramp32:",
    "mov ax, 0x10",
    "mov ds, ax",
    "mov es, ax",
    "mov ss, ax",
    // One vCPU after the other gets a number, and with it a stack.
    "mov edi, 1",
    "mov ebx, offset {started}",
    "lock xadd dword ptr [ebx], edi",
    "mov esp, edi",
    "imul esp, esp, {stack}",
    "add esp, offset {stacks}",
    "add esp, {stack}",
    "lgdt [gdt_pointer]",
    "mov eax, cr4",
    "or eax, 0x20",
    "mov cr4, eax",
    "mov eax, offset pml4",
    "mov cr3, eax",
    "mov ecx, 0xC0000080",
    "rdmsr",
    "or eax, 0x100",
    "wrmsr",
    "mov eax, cr0",
    "or eax, 0x80000000",
    "mov cr0, eax",
    ".byte 0xea",
    ".long ap_long",
    ".word 0x08",
    "trampoline_end:",
    ".set tramp_gdt_pointer_at, 0x8000 + tramp_gdt_pointer - trampoline",
    ".code64",
    "ap_long:",
    "mov ax, 0x10",
    "mov ds, ax",
    "mov es, ax",
    "mov ss, ax",
    "mov esp, esp",
    "call {entry}",
    "5: hlt",
    "jmp 5b",
    started = sym STARTED,
    stacks = sym STACKS,
    stack = const STACK,
    entry = sym secondary,
);

unsafe extern "C" {
    static trampoline: u8;
    static trampoline_end: u8;
}

extern "C" fn secondary() -> ! {
    interrupts::load();
    apic::enable();
    MASK.fetch_or(1 << apic::id(), Ordering::SeqCst);
    interrupts::enable();
    loop {
        // SAFETY: waits for an interrupt, for each of which there is a handler.
        unsafe { core::arch::asm!("hlt", options(nomem, nostack)) };
    }
}

/// Sends INIT and the start-up interrupt to every other vCPU and waits for `others` of them.
/// Returns a bit for each APIC identifier that came up.
pub fn start(others: u32) -> u32 {
    let start = &raw const trampoline;
    let len = &raw const trampoline_end as usize - start as usize;
    // SAFETY: the trampoline fits into the page, which is RAM that nothing else uses.
    unsafe { core::ptr::copy_nonoverlapping(start, TRAMPOLINE as *mut u8, len) };
    apic::enable();
    apic::write(0x310, 0);
    apic::write(0x300, 0x000C_4500); // INIT to all but this
    time::wait(10, || false);
    apic::write(0x300, 0x000C_4600 | (TRAMPOLINE >> 12) as u32);
    time::wait(2000, || MASK.load(Ordering::SeqCst).count_ones() == others);
    MASK.load(Ordering::SeqCst)
}
