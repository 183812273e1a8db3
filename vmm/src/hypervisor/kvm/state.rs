//! Converts between the processor's state in [`fleetbox_arch`] and KVM's structures.

use fleetbox_arch::x86_64::cpuid::CpuidEntry;
use fleetbox_arch::x86_64::regs::{
    BootRegs, DebugRegs, DescriptorTable, ExceptionEvent, InterruptEvent, MpState, Msr, NmiEvent,
    Regs, Segment, SmiEvent, Sregs, VcpuEvents, VcpuState, Xcr,
};
use kvm_bindings::{
    CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, KVM_MAX_CPUID_ENTRIES, KVM_MP_STATE_HALTED,
    KVM_MP_STATE_INIT_RECEIVED, KVM_MP_STATE_RUNNABLE, KVM_MP_STATE_SIPI_RECEIVED,
    KVM_MP_STATE_UNINITIALIZED, Msrs, kvm_cpuid_entry2, kvm_debugregs, kvm_dtable, kvm_lapic_state,
    kvm_mp_state, kvm_msr_entry, kvm_regs, kvm_segment, kvm_sregs, kvm_vcpu_events, kvm_xcr,
    kvm_xcrs, kvm_xsave,
};
use kvm_ioctls::VcpuFd;

use super::guest::{NAME, failed};
use crate::hypervisor::{Error, Result};

pub(super) fn cpuid_from_kvm(cpuid: &CpuId) -> Vec<CpuidEntry> {
    cpuid
        .as_slice()
        .iter()
        .map(|e| CpuidEntry {
            leaf: e.function,
            subleaf: e.index,
            flags: match e.flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX {
                0 => 0,
                _ => CpuidEntry::SUBLEAF,
            },
            eax: e.eax,
            ebx: e.ebx,
            ecx: e.ecx,
            edx: e.edx,
        })
        .collect()
}

pub(super) fn cpuid_to_kvm(leaves: &[CpuidEntry]) -> Option<CpuId> {
    let entries: Vec<_> = leaves
        .iter()
        .map(|e| kvm_cpuid_entry2 {
            function: e.leaf,
            index: e.subleaf,
            flags: if e.flags & CpuidEntry::SUBLEAF != 0 {
                KVM_CPUID_FLAG_SIGNIFCANT_INDEX
            } else {
                0
            },
            eax: e.eax,
            ebx: e.ebx,
            ecx: e.ecx,
            edx: e.edx,
            ..Default::default()
        })
        .collect();
    CpuId::from_entries(&entries).ok()
}

/// Sets the registers that a boot protocol prescribes. The others keep the values of KVM.
pub(super) fn boot(fd: &VcpuFd, index: u8, boot: &BootRegs) -> Result<()> {
    let what = |what: &str| failed(format!("setting the initial {what} of vCPU {index}"));
    let current = fd.get_sregs().map_err(what("segments"))?;
    let mut sregs = sregs_to_kvm(&boot.sregs);
    sregs.apic_base = current.apic_base;
    fd.set_sregs(&sregs).map_err(what("segments"))?;
    fd.set_regs(&regs_to_kvm(&boot.regs))
        .map_err(what("registers"))?;
    let mut fpu = fd.get_fpu().map_err(what("FPU state"))?;
    fpu.fcw = boot.fpu.fcw;
    fpu.mxcsr = boot.fpu.mxcsr;
    fd.set_fpu(&fpu).map_err(what("FPU state"))?;
    set_msrs(fd, index, &boot.msrs)
}

/// Model-specific registers of a guest's state, except those that other calls transfer. Registers
/// that a host lacks are not saved.
const SAVED_MSRS: [u32; 27] = [
    0x10,        // TSC
    0x3a,        // IA32_FEATURE_CONTROL
    0x3b,        // TSC_ADJUST
    0x48,        // SPEC_CTRL
    0x174,       // SYSENTER_CS
    0x175,       // SYSENTER_ESP
    0x176,       // SYSENTER_EIP
    0x1a0,       // MISC_ENABLE
    0x277,       // PAT
    0x2ff,       // MTRR default type
    0xc000_0080, // EFER
    0xc000_0081, // STAR
    0xc000_0082, // LSTAR
    0xc000_0083, // CSTAR
    0xc000_0084, // SYSCALL_MASK
    0xc000_0100, // FS_BASE
    0xc000_0101, // GS_BASE
    0xc000_0102, // KERNEL_GS_BASE
    0xc000_0103, // TSC_AUX
    0x4b56_4d00, // kvmclock wall clock
    0x4b56_4d01, // kvmclock system time
    0x4b56_4d02, // asynchronous page faults
    0x4b56_4d03, // steal time
    0x4b56_4d04, // PV EOI
    0x4b56_4d05, // poll control
    0x4b56_4d06, // asynchronous page fault vector
    0x6e0,       // TSC_DEADLINE: last, it arms the timer by the TSC set before
];

pub(super) fn save(fd: &VcpuFd, index: u8) -> Result<VcpuState> {
    let what = |what: &str| failed(format!("reading the {what} of vCPU {index}"));
    // The order is KVM's: events may depend on the multiprocessing state having been looked at.
    let mp_state = fd.get_mp_state().map_err(what("run state"))?;
    let regs = fd.get_regs().map_err(what("registers"))?;
    let sregs = fd.get_sregs().map_err(what("segments"))?;
    let xsave = fd.get_xsave().map_err(what("XSAVE area"))?;
    let xcrs = fd.get_xcrs().map_err(what("XCRs"))?;
    let lapic = fd.get_lapic().map_err(what("LAPIC"))?;
    let events = fd.get_vcpu_events().map_err(what("events"))?;
    let debug = fd.get_debug_regs().map_err(what("debug registers"))?;
    let cpuid = fd
        .get_cpuid2(KVM_MAX_CPUID_ENTRIES)
        .map_err(what("CPUID"))?;
    Ok(VcpuState {
        cpuid: cpuid_from_kvm(&cpuid),
        regs: regs_from_kvm(&regs),
        sregs: sregs_from_kvm(&sregs),
        xsave: xsave.region.iter().flat_map(|w| w.to_le_bytes()).collect(),
        xcrs: xcrs
            .xcrs
            .iter()
            .take(xcrs.nr_xcrs as usize)
            .map(|x| Xcr {
                index: x.xcr,
                value: x.value,
            })
            .collect(),
        msrs: get_msrs(fd, index)?,
        lapic: lapic.regs.iter().map(|b| *b as u8).collect(),
        events: events_from_kvm(&events),
        mp_state: match mp_state.mp_state {
            KVM_MP_STATE_UNINITIALIZED => MpState::Uninitialized,
            KVM_MP_STATE_INIT_RECEIVED => MpState::InitReceived,
            KVM_MP_STATE_HALTED => MpState::Halted,
            KVM_MP_STATE_SIPI_RECEIVED => MpState::SipiReceived,
            _ => MpState::Runnable,
        },
        debug_regs: DebugRegs {
            db: debug.db,
            dr6: debug.dr6,
            dr7: debug.dr7,
            flags: debug.flags,
        },
        // Hosts without a stable TSC refuse to tell: unknown is 0.
        tsc_khz: fd.get_tsc_khz().unwrap_or(0),
    })
}

pub(super) fn restore(fd: &VcpuFd, index: u8, state: &VcpuState) -> Result<()> {
    let what = |what: &str| failed(format!("restoring the {what} of vCPU {index}"));
    let malformed = |part: &str| Error::Failed {
        backend: NAME,
        operation: format!("restoring the {part} of vCPU {index}"),
        source: std::io::Error::new(
            std::io::ErrorKind::InvalidData,
            "the saved state has the wrong size",
        ),
    };
    let cpuid = cpuid_to_kvm(&state.cpuid).ok_or_else(|| malformed("CPUID"))?;
    fd.set_cpuid2(&cpuid).map_err(what("CPUID"))?;
    fd.set_mp_state(kvm_mp_state {
        mp_state: match state.mp_state {
            MpState::Runnable => KVM_MP_STATE_RUNNABLE,
            MpState::Uninitialized => KVM_MP_STATE_UNINITIALIZED,
            MpState::InitReceived => KVM_MP_STATE_INIT_RECEIVED,
            MpState::Halted => KVM_MP_STATE_HALTED,
            MpState::SipiReceived => KVM_MP_STATE_SIPI_RECEIVED,
        },
    })
    .map_err(what("run state"))?;
    fd.set_regs(&regs_to_kvm(&state.regs))
        .map_err(what("registers"))?;
    fd.set_sregs(&sregs_to_kvm(&state.sregs))
        .map_err(what("segments"))?;
    let mut xsave = kvm_xsave::default();
    if state.xsave.len() != xsave.region.len() * 4 {
        return Err(malformed("XSAVE area"));
    }
    for (word, bytes) in xsave.region.iter_mut().zip(state.xsave.as_chunks().0) {
        *word = u32::from_le_bytes(*bytes);
    }
    // SAFETY: KVM reads at most the size of the XSAVE area from the pointer; without dynamically
    // enabled features, which this backend never requests, that is the size of `kvm_xsave`.
    unsafe { fd.set_xsave(&xsave) }.map_err(what("XSAVE area"))?;
    let mut xcrs = kvm_xcrs::default();
    if state.xcrs.len() > xcrs.xcrs.len() {
        return Err(malformed("XCRs"));
    }
    xcrs.nr_xcrs = state.xcrs.len() as u32;
    for (to, from) in xcrs.xcrs.iter_mut().zip(&state.xcrs) {
        *to = kvm_xcr {
            xcr: from.index,
            value: from.value,
            ..Default::default()
        };
    }
    fd.set_xcrs(&xcrs).map_err(what("XCRs"))?;
    fd.set_debug_regs(&kvm_debugregs {
        db: state.debug_regs.db,
        dr6: state.debug_regs.dr6,
        dr7: state.debug_regs.dr7,
        flags: state.debug_regs.flags,
        ..Default::default()
    })
    .map_err(what("debug registers"))?;
    let mut lapic = kvm_lapic_state::default();
    if state.lapic.len() != lapic.regs.len() {
        return Err(malformed("LAPIC"));
    }
    for (to, from) in lapic.regs.iter_mut().zip(&state.lapic) {
        *to = *from as _;
    }
    fd.set_lapic(&lapic).map_err(what("LAPIC"))?;
    set_msrs(fd, index, &state.msrs)?;
    fd.set_vcpu_events(&events_to_kvm(&state.events))
        .map_err(what("events"))
}

fn get_msrs(fd: &VcpuFd, index: u8) -> Result<Vec<Msr>> {
    let mut saved = Vec::with_capacity(SAVED_MSRS.len());
    let mut rest: &[u32] = &SAVED_MSRS;
    // KVM stops at the first register that it does not know; that one is skipped.
    while !rest.is_empty() {
        let entries: Vec<_> = rest
            .iter()
            .map(|index| kvm_msr_entry {
                index: *index,
                ..Default::default()
            })
            .collect();
        let Ok(mut msrs) = Msrs::from_entries(&entries) else {
            break;
        };
        let read = fd
            .get_msrs(&mut msrs)
            .map_err(failed(format!("reading the MSRs of vCPU {index}")))?;
        saved.extend(msrs.as_slice().iter().take(read).map(|m| Msr {
            index: m.index,
            data: m.data,
        }));
        rest = rest.get(read + 1..).unwrap_or_default();
    }
    Ok(saved)
}

fn set_msrs(fd: &VcpuFd, index: u8, msrs: &[Msr]) -> Result<()> {
    let entries: Vec<_> = msrs
        .iter()
        .map(|m| kvm_msr_entry {
            index: m.index,
            data: m.data,
            ..Default::default()
        })
        .collect();
    let mut rest = entries.as_slice();
    while !rest.is_empty() {
        let Ok(batch) = Msrs::from_entries(rest) else {
            break;
        };
        let set = fd
            .set_msrs(&batch)
            .map_err(failed(format!("setting the MSRs of vCPU {index}")))?;
        if let Some(refused) = rest.get(set) {
            tracing::debug!(vcpu = index, msr = refused.index, "KVM refused an MSR");
        }
        rest = rest.get(set + 1..).unwrap_or_default();
    }
    Ok(())
}

macro_rules! convert_regs {
    ($from:expr, $to:ident) => {{
        let r = $from;
        $to {
            rax: r.rax,
            rbx: r.rbx,
            rcx: r.rcx,
            rdx: r.rdx,
            rsi: r.rsi,
            rdi: r.rdi,
            rsp: r.rsp,
            rbp: r.rbp,
            r8: r.r8,
            r9: r.r9,
            r10: r.r10,
            r11: r.r11,
            r12: r.r12,
            r13: r.r13,
            r14: r.r14,
            r15: r.r15,
            rip: r.rip,
            rflags: r.rflags,
        }
    }};
}

fn regs_to_kvm(regs: &Regs) -> kvm_regs {
    convert_regs!(regs, kvm_regs)
}

fn regs_from_kvm(regs: &kvm_regs) -> Regs {
    convert_regs!(regs, Regs)
}

fn segment_to_kvm(s: &Segment) -> kvm_segment {
    kvm_segment {
        base: s.base,
        limit: s.limit,
        selector: s.selector,
        type_: s.kind,
        present: s.present.into(),
        dpl: s.dpl,
        db: s.db.into(),
        s: s.s.into(),
        l: s.l.into(),
        g: s.g.into(),
        avl: s.avl.into(),
        unusable: s.unusable.into(),
        ..Default::default()
    }
}

fn segment_from_kvm(s: &kvm_segment) -> Segment {
    Segment {
        base: s.base,
        limit: s.limit,
        selector: s.selector,
        kind: s.type_,
        present: s.present != 0,
        dpl: s.dpl,
        db: s.db != 0,
        s: s.s != 0,
        l: s.l != 0,
        g: s.g != 0,
        avl: s.avl != 0,
        unusable: s.unusable != 0,
    }
}

macro_rules! convert_sregs {
    ($from:expr, $to:ident, $segment:ident, $table:ident) => {{
        let s = $from;
        $to {
            cs: $segment(&s.cs),
            ds: $segment(&s.ds),
            es: $segment(&s.es),
            fs: $segment(&s.fs),
            gs: $segment(&s.gs),
            ss: $segment(&s.ss),
            tr: $segment(&s.tr),
            ldt: $segment(&s.ldt),
            gdt: $table(&s.gdt),
            idt: $table(&s.idt),
            cr0: s.cr0,
            cr2: s.cr2,
            cr3: s.cr3,
            cr4: s.cr4,
            cr8: s.cr8,
            efer: s.efer,
            apic_base: s.apic_base,
            interrupt_bitmap: s.interrupt_bitmap,
        }
    }};
}

fn sregs_to_kvm(sregs: &Sregs) -> kvm_sregs {
    convert_sregs!(sregs, kvm_sregs, segment_to_kvm, table_to_kvm)
}

fn sregs_from_kvm(sregs: &kvm_sregs) -> Sregs {
    convert_sregs!(sregs, Sregs, segment_from_kvm, table_from_kvm)
}

fn table_to_kvm(t: &DescriptorTable) -> kvm_dtable {
    kvm_dtable {
        base: t.base,
        limit: t.limit,
        ..Default::default()
    }
}

fn table_from_kvm(t: &kvm_dtable) -> DescriptorTable {
    DescriptorTable {
        base: t.base,
        limit: t.limit,
    }
}

fn events_to_kvm(e: &VcpuEvents) -> kvm_vcpu_events {
    let mut events = kvm_vcpu_events {
        sipi_vector: e.sipi_vector,
        flags: e.flags,
        exception_has_payload: e.exception.has_payload.into(),
        exception_payload: e.exception.payload,
        ..Default::default()
    };
    events.exception.injected = e.exception.injected.into();
    events.exception.pending = e.exception.pending.into();
    events.exception.nr = e.exception.vector;
    events.exception.has_error_code = e.exception.has_error_code.into();
    events.exception.error_code = e.exception.error_code;
    events.interrupt.injected = e.interrupt.injected.into();
    events.interrupt.nr = e.interrupt.vector;
    events.interrupt.soft = e.interrupt.soft.into();
    events.interrupt.shadow = e.interrupt.shadow;
    events.nmi.injected = e.nmi.injected.into();
    events.nmi.pending = e.nmi.pending.into();
    events.nmi.masked = e.nmi.masked.into();
    events.smi.smm = e.smi.smm.into();
    events.smi.pending = e.smi.pending.into();
    events.smi.smm_inside_nmi = e.smi.inside_nmi.into();
    events.smi.latched_init = e.smi.latched_init.into();
    events.triple_fault.pending = e.triple_fault_pending.into();
    events
}

fn events_from_kvm(e: &kvm_vcpu_events) -> VcpuEvents {
    VcpuEvents {
        exception: ExceptionEvent {
            injected: e.exception.injected != 0,
            pending: e.exception.pending != 0,
            vector: e.exception.nr,
            has_error_code: e.exception.has_error_code != 0,
            error_code: e.exception.error_code,
            has_payload: e.exception_has_payload != 0,
            payload: e.exception_payload,
        },
        interrupt: InterruptEvent {
            injected: e.interrupt.injected != 0,
            vector: e.interrupt.nr,
            soft: e.interrupt.soft != 0,
            shadow: e.interrupt.shadow,
        },
        nmi: NmiEvent {
            injected: e.nmi.injected != 0,
            pending: e.nmi.pending != 0,
            masked: e.nmi.masked != 0,
        },
        sipi_vector: e.sipi_vector,
        flags: e.flags,
        smi: SmiEvent {
            smm: e.smi.smm != 0,
            pending: e.smi.pending != 0,
            inside_nmi: e.smi.smm_inside_nmi != 0,
            latched_init: e.smi.latched_init != 0,
        },
        triple_fault_pending: e.triple_fault.pending != 0,
    }
}
