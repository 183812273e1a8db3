//! Register state of a vCPU, as plain data: what it starts with and what a snapshot holds.
//!
//! The types mirror the processor (Intel SDM volume 3), not an interface of one hypervisor; a
//! backend converts them.

use serde::{Deserialize, Serialize};

use super::cpuid::CpuidEntry;
use super::kernel::Entry;
use super::layout;

/// General-purpose registers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)] // The names are the processor's.
pub struct Regs {
    pub rax: u64,
    pub rbx: u64,
    pub rcx: u64,
    pub rdx: u64,
    pub rsi: u64,
    pub rdi: u64,
    pub rsp: u64,
    pub rbp: u64,
    pub r8: u64,
    pub r9: u64,
    pub r10: u64,
    pub r11: u64,
    pub r12: u64,
    pub r13: u64,
    pub r14: u64,
    pub r15: u64,
    pub rip: u64,
    pub rflags: u64,
}

/// A segment register with its hidden part (Intel SDM volume 3, section 3.4.5).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Segment {
    /// Base address.
    pub base: u64,
    /// Limit in bytes, expanded by the granularity.
    pub limit: u32,
    /// Selector.
    pub selector: u16,
    /// Type field (4 bits).
    pub kind: u8,
    /// P: present.
    pub present: bool,
    /// DPL (2 bits).
    pub dpl: u8,
    /// D/B: 32-bit segment.
    pub db: bool,
    /// S: code or data, not a system segment.
    pub s: bool,
    /// L: 64-bit code.
    pub l: bool,
    /// G: the descriptor counts its limit in pages.
    pub g: bool,
    /// AVL: for software.
    pub avl: bool,
    /// The register holds no usable segment.
    pub unusable: bool,
}

/// GDTR or IDTR.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DescriptorTable {
    /// Base address.
    pub base: u64,
    /// Limit: size in bytes minus one.
    pub limit: u16,
}

/// Segment and control registers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)] // The names are the processor's.
pub struct Sregs {
    pub cs: Segment,
    pub ds: Segment,
    pub es: Segment,
    pub fs: Segment,
    pub gs: Segment,
    pub ss: Segment,
    pub tr: Segment,
    pub ldt: Segment,
    pub gdt: DescriptorTable,
    pub idt: DescriptorTable,
    pub cr0: u64,
    pub cr2: u64,
    pub cr3: u64,
    pub cr4: u64,
    pub cr8: u64,
    pub efer: u64,
    /// IA32_APIC_BASE.
    pub apic_base: u64,
    /// External interrupts accepted and not yet delivered, one bit a vector.
    pub interrupt_bitmap: [u64; 4],
}

/// x87 and SSE state for backends that set it apart from [`VcpuState::xsave`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fpu {
    /// x87 control word.
    pub fcw: u16,
    /// SSE control and status.
    pub mxcsr: u32,
}

impl Default for Fpu {
    /// The state after reset as an operating system expects it: all exceptions masked.
    fn default() -> Self {
        Self {
            fcw: 0x37F,
            mxcsr: 0x1F80,
        }
    }
}

/// A model-specific register and its value.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Msr {
    /// Register number.
    pub index: u32,
    /// Value.
    pub data: u64,
}

/// An extended control register and its value.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Xcr {
    /// Register number.
    pub index: u32,
    /// Value.
    pub value: u64,
}

/// Debug registers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)] // The names are the processor's.
pub struct DebugRegs {
    pub db: [u64; 4],
    pub dr6: u64,
    pub dr7: u64,
    pub flags: u64,
}

/// Events on their way into the guest.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VcpuEvents {
    /// An exception.
    pub exception: ExceptionEvent,
    /// An external or software interrupt.
    pub interrupt: InterruptEvent,
    /// A non-maskable interrupt.
    pub nmi: NmiEvent,
    /// A pending start-up inter-processor interrupt's vector.
    pub sipi_vector: u32,
    /// Which of the parts are valid, in the backend's encoding.
    pub flags: u32,
    /// System management mode.
    pub smi: SmiEvent,
    /// A triple fault is pending.
    pub triple_fault_pending: bool,
}

/// An exception on its way into the guest.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExceptionEvent {
    /// It is being delivered.
    pub injected: bool,
    /// It is not being delivered yet.
    pub pending: bool,
    /// Vector.
    pub vector: u8,
    /// It has an error code.
    pub has_error_code: bool,
    /// The error code.
    pub error_code: u32,
    /// `payload` is valid.
    pub has_payload: bool,
    /// What goes to CR2 or DR6.
    pub payload: u64,
}

/// An interrupt on its way into the guest.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct InterruptEvent {
    /// It is being delivered.
    pub injected: bool,
    /// Vector.
    pub vector: u8,
    /// It is a software interrupt.
    pub soft: bool,
    /// Interrupt shadow (STI, MOV SS).
    pub shadow: u8,
}

/// Non-maskable interrupt state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NmiEvent {
    /// It is being delivered.
    pub injected: bool,
    /// It waits.
    pub pending: bool,
    /// The guest is in its handler.
    pub masked: bool,
}

/// System management mode state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SmiEvent {
    /// The processor is in it.
    pub smm: bool,
    /// An interrupt waits.
    pub pending: bool,
    /// It was entered from an NMI handler.
    pub inside_nmi: bool,
    /// An INIT is latched.
    pub latched_init: bool,
}

/// What a vCPU is doing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum MpState {
    /// Runs.
    #[default]
    Runnable,
    /// An application processor before its INIT.
    Uninitialized,
    /// After INIT, waits for the start-up interrupt.
    InitReceived,
    /// Executed HLT.
    Halted,
    /// Got its start-up interrupt.
    SipiReceived,
}

/// Everything that a vCPU is, for a snapshot.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VcpuState {
    /// CPUID as the guest sees it; a backend sets it first.
    pub cpuid: Vec<CpuidEntry>,
    /// General-purpose registers.
    pub regs: Regs,
    /// Segment and control registers.
    pub sregs: Sregs,
    /// XSAVE area in its standard format (Intel SDM volume 1, section 13.4).
    pub xsave: Vec<u8>,
    /// Extended control registers.
    pub xcrs: Vec<Xcr>,
    /// Model-specific registers, in the order in which to set them.
    pub msrs: Vec<Msr>,
    /// Register page of the local APIC (1024 bytes).
    pub lapic: Vec<u8>,
    /// Events on their way in.
    pub events: VcpuEvents,
    /// What the vCPU does.
    pub mp_state: MpState,
    /// Debug registers.
    pub debug_regs: DebugRegs,
    /// Frequency of the time-stamp counter in kHz; 0 if unknown.
    pub tsc_khz: u32,
}

/// The registers that a boot protocol prescribes for the first vCPU.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BootRegs {
    /// General-purpose registers.
    pub regs: Regs,
    /// Segment and control registers. What a protocol does not prescribe (TSC, APIC base) is zero:
    /// a backend keeps its own `apic_base`.
    pub sregs: Sregs,
    /// x87 and SSE.
    pub fpu: Fpu,
    /// Model-specific registers.
    pub msrs: Vec<Msr>,
}

const CR0_PE: u64 = 1;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
/// The bit of RFLAGS that is always one.
const RFLAGS_RESERVED: u64 = 2;

const MSR_IA32_MISC_ENABLE: u32 = 0x1A0;
const MISC_ENABLE_FAST_STRING: u64 = 1;
const MSR_MTRR_DEF_TYPE: u32 = 0x2FF;
const MTRR_ENABLE: u64 = 1 << 11;
const MTRR_WRITE_BACK: u64 = 6;

/// Descriptors of the boot GDT: null, unused, code, data, TSS (the code selector of the Linux
/// 64-bit protocol is 0x10, its data selector 0x18).
const GDT_CODE64: u64 = 0x00AF_9B00_0000_FFFF;
const GDT_CODE32: u64 = 0x00CF_9B00_0000_FFFF;
const GDT_DATA: u64 = 0x00CF_9300_0000_FFFF;

/// Expands the GDT descriptor `raw` at `index` (Intel SDM volume 3, figure 3-8).
fn segment(raw: u64, index: u16) -> Segment {
    let g = raw >> 55 & 1 == 1;
    let limit = (raw & 0xFFFF) as u32 | ((raw >> 32) & 0xF_0000) as u32;
    Segment {
        base: (raw >> 16 & 0xFF_FFFF) | (raw >> 32 & 0xFF00_0000),
        limit: if g { limit << 12 | 0xFFF } else { limit },
        selector: index * 8,
        kind: (raw >> 40 & 0xF) as u8,
        present: raw >> 47 & 1 == 1,
        dpl: (raw >> 45 & 3) as u8,
        db: raw >> 54 & 1 == 1,
        s: raw >> 44 & 1 == 1,
        l: raw >> 53 & 1 == 1,
        g,
        avl: raw >> 52 & 1 == 1,
        unusable: false,
    }
}

/// A busy 32-bit or 64-bit TSS at 0: a processor cannot enter protected mode's guest state without
/// one.
fn boot_tss() -> Segment {
    Segment {
        base: 0,
        limit: 0x67,
        selector: 0x20,
        kind: 0xB,
        present: true,
        ..Segment::default()
    }
}

/// The global descriptor table that [`boot_regs`] points to, as stored at
/// [`layout::BOOT_GDT_START`].
pub fn boot_gdt(entry: &Entry) -> [u64; 4] {
    let code = match entry {
        Entry::Linux64 { .. } => GDT_CODE64,
        Entry::Pvh { .. } => GDT_CODE32,
    };
    [0, 0, code, GDT_DATA]
}

/// The state of the first vCPU at a kernel's entry point.
///
/// - Linux 64-bit boot protocol: long mode with the identity page tables at
///   [`layout::BOOT_PAGE_TABLES`], RSI the zero page.
/// - PVH: 32-bit protected mode without paging, EBX the start info.
///
/// [`super::boot`] writes the tables that this state points to.
pub fn boot_regs(entry: &Entry) -> BootRegs {
    let [_, _, code, data] = boot_gdt(entry);
    let data = segment(data, 3);
    let mut sregs = Sregs {
        cs: segment(code, 2),
        ds: data,
        es: data,
        fs: data,
        gs: data,
        ss: data,
        tr: boot_tss(),
        ldt: Segment {
            unusable: true,
            ..Segment::default()
        },
        gdt: DescriptorTable {
            base: layout::BOOT_GDT_START,
            limit: 4 * 8 - 1,
        },
        idt: DescriptorTable {
            base: layout::BOOT_IDT_START,
            limit: 7,
        },
        cr0: CR0_PE | CR0_ET,
        ..Sregs::default()
    };
    let mut regs = Regs {
        rflags: RFLAGS_RESERVED,
        ..Regs::default()
    };
    match *entry {
        Entry::Linux64 { rip, zero_page } => {
            regs.rip = rip;
            regs.rsi = zero_page.0;
            regs.rsp = layout::BOOT_STACK_TOP;
            regs.rbp = layout::BOOT_STACK_TOP;
            sregs.cr0 |= CR0_PG;
            sregs.cr3 = layout::BOOT_PAGE_TABLES;
            sregs.cr4 = CR4_PAE;
            sregs.efer = EFER_LME | EFER_LMA;
        }
        Entry::Pvh { rip, start_info } => {
            regs.rip = rip;
            regs.rbx = start_info.0;
        }
    }
    BootRegs {
        regs,
        sregs,
        fpu: Fpu::default(),
        msrs: vec![
            Msr {
                index: MSR_IA32_MISC_ENABLE,
                data: MISC_ENABLE_FAST_STRING,
            },
            Msr {
                index: MSR_MTRR_DEF_TYPE,
                data: MTRR_ENABLE | MTRR_WRITE_BACK,
            },
        ],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::GuestAddress;

    #[test]
    fn linux64_enters_long_mode_with_the_zero_page_in_rsi() {
        let boot = boot_regs(&Entry::Linux64 {
            rip: 0x100_0200,
            zero_page: GuestAddress(0x7000),
        });
        assert_eq!((boot.regs.rip, boot.regs.rsi), (0x100_0200, 0x7000));
        assert!(boot.sregs.cs.l && !boot.sregs.cs.db);
        assert_eq!(boot.sregs.cs.selector, 0x10);
        assert_eq!(boot.sregs.ds.selector, 0x18);
        assert_eq!(boot.sregs.cr0 & (CR0_PE | CR0_PG), CR0_PE | CR0_PG);
        assert_eq!(boot.sregs.cr3, layout::BOOT_PAGE_TABLES);
    }

    #[test]
    fn pvh_enters_flat_protected_mode_with_the_start_info_in_ebx() {
        let boot = boot_regs(&Entry::Pvh {
            rip: 0x100_0000,
            start_info: GuestAddress(0x6000),
        });
        assert_eq!((boot.regs.rip, boot.regs.rbx), (0x100_0000, 0x6000));
        assert_eq!(boot.sregs.cr0 & (CR0_PE | CR0_PG), CR0_PE);
        assert_eq!((boot.sregs.cr4, boot.sregs.efer), (0, 0));
        for s in [boot.sregs.cs, boot.sregs.ds, boot.sregs.ss] {
            assert_eq!((s.base, s.limit, s.db, s.l), (0, 0xFFFF_FFFF, true, false));
        }
        assert_eq!(boot.sregs.cs.kind & 8, 8, "code");
    }

    #[test]
    fn a_descriptor_with_every_field_set_is_expanded() {
        let s = segment(0x1253_F634_5678_9ABC, 1);
        assert_eq!(s.base, 0x1234_5678);
        assert_eq!(s.limit, 0x3_9ABC);
        assert_eq!((s.kind, s.dpl, s.present), (6, 3, true));
        assert!(s.db && !s.l && !s.g && s.avl);
    }
}
