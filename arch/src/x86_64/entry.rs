//! Where and how the first vCPU enters a kernel, and its registers at that point.

use vm_memory::GuestAddress;

use super::layout;
use super::regs::{BootRegs, DescriptorTable, Fpu, Msr, Regs, Segment, Sregs};

/// Where and how the first vCPU enters the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry {
    /// Linux 64-bit boot protocol (Documentation/arch/x86/boot.rst, "64-bit boot protocol").
    Linux64 {
        /// Instruction pointer.
        rip: u64,
        /// Address of the zero page.
        zero_page: GuestAddress,
    },
    /// PVH: 32-bit protected mode (Xen's "x86/HVM direct boot ABI").
    Pvh {
        /// Instruction pointer.
        rip: u64,
        /// Address of the start info.
        start_info: GuestAddress,
    },
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

/// Descriptors of the boot GDT: null, unused, code, data. The Linux 64-bit protocol requires code
/// selector 0x10 and data selector 0x18.
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

/// A busy 32-bit or 64-bit TSS at 0. Without one a processor refuses the guest's state.
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
