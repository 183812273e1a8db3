//! The register state of a vCPU as plain data, for its start and for snapshots.
//!
//! The types mirror the processor (Intel SDM volume 3), not an interface of one hypervisor; a
//! backend converts them.

use serde::{Deserialize, Serialize};

use super::cpuid::CpuidEntry;

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
    /// External interrupts that were accepted and not yet delivered, one bit per vector.
    pub interrupt_bitmap: [u64; 4],
}

/// x87 and SSE state, for backends that set it separately from [`VcpuState::xsave`].
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
    /// The parts that are valid, in the backend's encoding.
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
    /// The value for CR2 or DR6.
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
    /// It is pending.
    pub pending: bool,
    /// The guest is in its handler.
    pub masked: bool,
}

/// System management mode state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SmiEvent {
    /// The processor is in this mode.
    pub smm: bool,
    /// An interrupt is pending.
    pub pending: bool,
    /// It was entered from an NMI handler.
    pub inside_nmi: bool,
    /// An INIT is latched.
    pub latched_init: bool,
}

/// The activity of a vCPU.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum MpState {
    /// Running.
    #[default]
    Runnable,
    /// An application processor before its INIT.
    Uninitialized,
    /// After INIT, waiting for the start-up interrupt.
    InitReceived,
    /// Halted by HLT.
    Halted,
    /// It has received its start-up interrupt.
    SipiReceived,
}

/// The complete state of a vCPU, for a snapshot.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VcpuState {
    /// CPUID as the guest sees it. A backend sets it first.
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
    /// Events on their way into the guest.
    pub events: VcpuEvents,
    /// The activity of the vCPU.
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
    /// Segment and control registers. Values that a protocol does not prescribe (TSC, APIC base)
    /// are zero; a backend keeps its own `apic_base`.
    pub sregs: Sregs,
    /// x87 and SSE.
    pub fpu: Fpu,
    /// Model-specific registers.
    pub msrs: Vec<Msr>,
}
