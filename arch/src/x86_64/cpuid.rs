//! The guest's CPUID: the features that a hypervisor offers, and this machine's topology of one
//! socket with `count` single-threaded cores.

use serde::{Deserialize, Serialize};

/// One CPUID leaf or subleaf.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuidEntry {
    /// Input EAX.
    pub leaf: u32,
    /// Input ECX, if [`CpuidEntry::SUBLEAF`] is set.
    pub subleaf: u32,
    /// [`CpuidEntry::SUBLEAF`] or 0.
    pub flags: u32,
    /// Result.
    pub eax: u32,
    /// Result.
    pub ebx: u32,
    /// Result.
    pub ecx: u32,
    /// Result.
    pub edx: u32,
}

impl CpuidEntry {
    /// Bit of `flags`: the result depends on ECX.
    pub const SUBLEAF: u32 = 1;
}

/// The properties of the machine that [`configure`] needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CpuidConfig {
    /// Index of the vCPU, which is also its APIC id.
    pub vcpu: u8,
    /// vCPUs of the machine, at least 1.
    pub count: u8,
    /// The hypervisor emulates the local APIC's TSC deadline mode. Some hypervisors report this
    /// only as a capability, and not in the supported CPUID (KVM before Linux 6.3).
    pub tsc_deadline: bool,
    /// Frequency of the guest's time-stamp counter in kHz, if it is known and constant.
    pub tsc_khz: Option<u32>,
}

/// Frequency of the local APIC timer in kHz as KVM emulates it.
const APIC_BUS_KHZ: u32 = 1_000_000;

/// The first leaf of the hypervisor, and its leaf with clock frequencies.
const HYPERVISOR: u32 = 0x4000_0000;
const HYPERVISOR_CLOCKS: u32 = 0x4000_0010;

const ECX1_TSC_DEADLINE: u32 = 1 << 24;
const ECX1_HYPERVISOR: u32 = 1 << 31;
const EDX1_HTT: u32 = 1 << 28;
const ECX81_CMP_LEGACY: u32 = 1 << 1;

/// Extended topology leaves: levels of Intel SDM volume 2, CPUID leaves 0BH and 1FH.
const LEVEL_SMT: u32 = 1 << 8;
const LEVEL_CORE: u32 = 2 << 8;

#[derive(PartialEq, Eq, Clone, Copy)]
enum Vendor {
    Amd,
    Other,
}

fn vendor(entries: &[CpuidEntry]) -> Vendor {
    let Some(e) = entries.iter().find(|e| e.leaf == 0) else {
        return Vendor::Other;
    };
    let mut name = [0; 12];
    for (bytes, value) in name.chunks_exact_mut(4).zip([e.ebx, e.edx, e.ecx]) {
        bytes.copy_from_slice(&value.to_le_bytes());
    }
    match &name {
        b"AuthenticAMD" | b"HygonGenuine" => Vendor::Amd,
        _ => Vendor::Other,
    }
}

fn with_flag(value: u32, flag: u32, set: bool) -> u32 {
    if set { value | flag } else { value & !flag }
}

fn with_field(value: u32, shift: u32, bits: u32, field: u32) -> u32 {
    let mask = ((1u32 << bits) - 1) << shift;
    value & !mask | (field << shift) & mask
}

/// One socket of `count` cores, as seen by the core `id`.
#[derive(Clone, Copy)]
struct Topology {
    /// APIC id of the vCPU.
    id: u32,
    count: u32,
    /// Number of bits of an APIC id. Ids are reserved in powers of two.
    bits: u32,
}

impl Topology {
    fn of(config: &CpuidConfig) -> Self {
        let count = u32::from(config.count.max(1));
        Self {
            id: config.vcpu.into(),
            count,
            bits: count.next_power_of_two().trailing_zeros(),
        }
    }

    /// The number of reserved APIC ids.
    fn ids(self) -> u32 {
        1 << self.bits
    }

    /// The extended topology leaf `leaf`, with a subleaf for each level.
    fn levels(self, leaf: u32) -> [CpuidEntry; 3] {
        let level = |subleaf, eax, ebx, kind| CpuidEntry {
            leaf,
            subleaf,
            flags: CpuidEntry::SUBLEAF,
            eax,
            ebx,
            ecx: subleaf | kind,
            edx: self.id,
        };
        [
            level(0, 0, 1, LEVEL_SMT),
            level(1, self.bits, self.count, LEVEL_CORE),
            level(2, 0, 0, 0),
        ]
    }
}

/// The CPUID of one vCPU. It is `supported`, which is what the hypervisor can emulate, with the
/// machine's topology, the hypervisor bit, the TSC deadline bit and, if known, clock frequencies.
///
/// The hypervisor's own leaves, from `0x4000_0000` on (kvmclock and others), are kept.
pub fn configure(supported: &[CpuidEntry], config: &CpuidConfig) -> Vec<CpuidEntry> {
    let topology = Topology::of(config);
    let vendor = vendor(supported);
    let max_basic = supported.iter().find(|e| e.leaf == 0).map_or(0, |e| e.eax);
    let mut entries: Vec<CpuidEntry> = supported
        .iter()
        // Written anew below; leaf 0x8000_0026 would describe the host's cores.
        .filter(|e| !matches!(e.leaf, 0xB | 0x1F | 0x15 | 0x16 | 0x4000_0010 | 0x8000_0026))
        .copied()
        .collect();
    for entry in &mut entries {
        adapt(entry, vendor, topology, config);
    }
    for leaf in [0xB, 0x1F] {
        if max_basic >= leaf {
            entries.extend(topology.levels(leaf));
        }
    }
    if let Some(khz) = config.tsc_khz {
        let hypervisor = supported.iter().any(|e| e.leaf == HYPERVISOR);
        entries.extend(clocks(khz, vendor, max_basic, hypervisor));
    }
    entries
}

/// Adapts `e`, a leaf from the hypervisor, to this machine.
fn adapt(e: &mut CpuidEntry, vendor: Vendor, topology: Topology, config: &CpuidConfig) {
    let Topology { id, count, bits } = topology;
    let ids = topology.ids();
    match e.leaf {
        1 => {
            e.ebx = with_field(e.ebx, 24, 8, id);
            e.ebx = with_field(e.ebx, 16, 8, ids.min(255));
            e.ecx |= ECX1_HYPERVISOR;
            e.ecx = with_flag(e.ecx, ECX1_TSC_DEADLINE, config.tsc_deadline);
            e.edx = with_flag(e.edx, EDX1_HTT, count > 1);
        }
        // Caches: the last level is shared by all cores, the others by none.
        4 | 0x8000_001D if e.eax & 0x1F != 0 => {
            let shared = if e.eax >> 5 & 7 >= 3 { ids - 1 } else { 0 };
            e.eax = with_field(e.eax, 14, 12, shared);
            if e.leaf == 4 {
                e.eax = with_field(e.eax, 26, 6, (ids - 1).min(63));
            }
        }
        0x8000_0001 if vendor == Vendor::Amd => {
            e.ecx = with_flag(e.ecx, ECX81_CMP_LEGACY, count > 1);
        }
        0x8000_0008 if vendor == Vendor::Amd => {
            e.ecx = with_field(e.ecx, 0, 8, count - 1);
            e.ecx = with_field(e.ecx, 12, 4, bits);
        }
        // Extended APIC id, core id with one thread a core, one node.
        0x8000_001E => {
            e.eax = id;
            e.ebx = id & 0xFF;
            e.ecx = 0;
            e.edx = 0;
        }
        // Zero is what old KVM wrote for "up to 0x4000_0001".
        HYPERVISOR if config.tsc_khz.is_some() => e.eax = e.eax.max(HYPERVISOR_CLOCKS),
        _ => {}
    }
}

/// The leaves that state clock frequencies.
fn clocks(khz: u32, vendor: Vendor, max_basic: u32, hypervisor: bool) -> Vec<CpuidEntry> {
    let clock = |leaf, eax, ebx, ecx| CpuidEntry {
        leaf,
        eax,
        ebx,
        ecx,
        ..CpuidEntry::default()
    };
    let mut leaves = Vec::new();
    if max_basic >= 0x15 && vendor != Vendor::Amd {
        // The "crystal" is the local APIC's clock, so that a kernel derives both from it.
        leaves.push(clock(0x15, APIC_BUS_KHZ, khz, APIC_BUS_KHZ * 1000));
    }
    if max_basic >= 0x16 && vendor != Vendor::Amd {
        let mhz = khz / 1000;
        leaves.push(clock(0x16, mhz & 0xFFFF, mhz & 0xFFFF, 100));
    }
    if hypervisor {
        leaves.push(clock(HYPERVISOR_CLOCKS, khz, APIC_BUS_KHZ, 0));
    }
    leaves
}

#[cfg(test)]
mod tests {
    use super::*;

    fn e(leaf: u32, subleaf: u32, eax: u32, ebx: u32, ecx: u32, edx: u32) -> CpuidEntry {
        CpuidEntry {
            leaf,
            subleaf,
            flags: 0,
            eax,
            ebx,
            ecx,
            edx,
        }
    }

    fn signature(leaf: u32, max: u32, name: &[u8; 12]) -> CpuidEntry {
        let word = |at: usize| u32::from_le_bytes(name[at..at + 4].try_into().unwrap());
        e(leaf, 0, max, word(0), word(8), word(4))
    }

    fn host(name: &[u8; 12], max: u32) -> Vec<CpuidEntry> {
        vec![
            signature(0, max, name),
            e(1, 0, 0x800F12, 0x5510_0800, 0x2000_0000, 0x0780_0000),
            e(4, 0, 0x1C00_4121, 0, 63, 0),
            e(4, 3, 0x1C03_C163, 0, 63, 0),
            e(4, 4, 0, 0, 0, 0),
            e(0xB, 0, 1, 2, 0x100, 77),
            e(0xB, 1, 4, 16, 0x201, 77),
            e(0x4000_0000, 0, 0x4000_0001, 0x4B4D_564B, 0x564B_4D56, 0x4D),
            e(0x4000_0001, 0, 0x0100_7EFB, 0, 0, 0),
            e(0x8000_0001, 0, 0, 0, 0x40_0002, 0),
            e(0x8000_0008, 0, 0x3030, 0, 0x700F, 0),
            e(0x8000_001D, 3, 0x3C163, 0, 0, 0),
            e(0x8000_001E, 0, 99, 0x0103, 0x0301, 7),
        ]
    }

    fn find(entries: &[CpuidEntry], leaf: u32, subleaf: u32) -> CpuidEntry {
        let all: Vec<_> = entries
            .iter()
            .filter(|e| e.leaf == leaf && e.subleaf == subleaf)
            .collect();
        assert_eq!(all.len(), 1, "leaf {leaf:#x}.{subleaf}");
        *all[0]
    }

    const CONFIG: CpuidConfig = CpuidConfig {
        vcpu: 2,
        count: 3,
        tsc_deadline: true,
        tsc_khz: None,
    };

    #[test]
    fn topology_of_three_cores_uses_four_apic_ids() {
        let cpuid = configure(&host(b"GenuineIntel", 0x16), &CONFIG);
        let one = find(&cpuid, 1, 0);
        assert_eq!(one.ebx >> 24, 2);
        assert_eq!(one.ebx >> 16 & 0xFF, 4);
        assert_eq!(one.ebx & 0xFFFF, 0x0800, "CLFLUSH size and brand stay");
        assert_ne!(one.edx & EDX1_HTT, 0);
        let (smt, core, end) = (
            find(&cpuid, 0xB, 0),
            find(&cpuid, 0xB, 1),
            find(&cpuid, 0xB, 2),
        );
        assert_eq!((smt.eax, smt.ebx, smt.ecx, smt.edx), (0, 1, 0x100, 2));
        assert_eq!((core.eax, core.ebx, core.ecx, core.edx), (2, 3, 0x201, 2));
        assert_eq!((end.ebx, end.ecx), (0, 2));
        let l1 = find(&cpuid, 4, 0);
        assert_eq!((l1.eax >> 26, l1.eax >> 14 & 0xFFF), (3, 0));
        let l3 = find(&cpuid, 4, 3);
        assert_eq!((l3.eax >> 26, l3.eax >> 14 & 0xFFF), (3, 3));
        assert_eq!(find(&cpuid, 4, 4).eax, 0, "the end of the list stays");
        assert!(!cpuid.iter().any(|e| e.leaf == 0x1F), "beyond the maximum");
    }

    #[test]
    fn amd_topology_leaves_describe_the_guest() {
        let cpuid = configure(&host(b"AuthenticAMD", 0x10), &CONFIG);
        let size = find(&cpuid, 0x8000_0008, 0);
        assert_eq!((size.ecx & 0xFF, size.ecx >> 12 & 0xF), (2, 2));
        assert_eq!(size.eax, 0x3030, "address widths stay");
        let id = find(&cpuid, 0x8000_001E, 0);
        assert_eq!((id.eax, id.ebx, id.ecx, id.edx), (2, 2, 0, 0));
        assert_eq!(find(&cpuid, 0x8000_001D, 3).eax >> 14 & 0xFFF, 3);
        assert_ne!(find(&cpuid, 0x8000_0001, 0).ecx & ECX81_CMP_LEGACY, 0);
        let one = CpuidConfig {
            vcpu: 0,
            count: 1,
            ..CONFIG
        };
        let cpuid = configure(&host(b"AuthenticAMD", 0x10), &one);
        assert_eq!(find(&cpuid, 0x8000_0001, 0).ecx, 0x40_0000);
        assert_eq!(find(&cpuid, 1, 0).edx & EDX1_HTT, 0);
    }

    #[test]
    fn virtualisation_is_the_guests_where_it_is_offered() {
        const VMX: u32 = 1 << 5;
        const SVM: u32 = 1 << 2;
        for offered in [true, false] {
            let mut intel = host(b"GenuineIntel", 0x16);
            let mut amd = host(b"AuthenticAMD", 0x10);
            if offered {
                intel[1].ecx |= VMX;
                let features = amd.iter_mut().find(|e| e.leaf == 0x8000_0001).unwrap();
                features.ecx |= SVM;
                // Revision, address space identifiers, nested paging: what the guest's KVM asks for.
                amd.push(e(0x8000_000A, 0, 1, 16, 0, 0x1));
            }
            let intel = configure(&intel, &CONFIG);
            assert_eq!(find(&intel, 1, 0).ecx & VMX != 0, offered);
            let guest = configure(&amd, &CONFIG);
            assert_eq!(find(&guest, 0x8000_0001, 0).ecx & SVM != 0, offered);
            let leaf =
                |entries: &[CpuidEntry]| entries.iter().copied().find(|e| e.leaf == 0x8000_000A);
            assert_eq!(leaf(&guest), leaf(&amd));
        }
    }

    #[test]
    fn tsc_deadline_follows_the_capability_not_the_supported_bit() {
        for (given, want) in [(true, true), (false, false)] {
            for supported in [0, ECX1_TSC_DEADLINE] {
                let mut host = host(b"AuthenticAMD", 0x10);
                host[1].ecx = supported;
                let config = CpuidConfig {
                    tsc_deadline: given,
                    ..CONFIG
                };
                let ecx = find(&configure(&host, &config), 1, 0).ecx;
                assert_eq!(ecx & ECX1_TSC_DEADLINE != 0, want);
                assert_ne!(ecx & ECX1_HYPERVISOR, 0);
            }
        }
    }

    #[test]
    fn hypervisor_leaves_stay_and_frequencies_are_added_when_known() {
        let host = host(b"GenuineIntel", 0x16);
        let cpuid = configure(&host, &CONFIG);
        assert_eq!(find(&cpuid, 0x4000_0000, 0), host[7]);
        assert_eq!(find(&cpuid, 0x4000_0001, 0), host[8]);
        assert!(!cpuid.iter().any(|e| e.leaf == 0x15));
        let config = CpuidConfig {
            tsc_khz: Some(2_600_000),
            ..CONFIG
        };
        let cpuid = configure(&host, &config);
        let tsc = find(&cpuid, 0x15, 0);
        let hz = u64::from(tsc.ecx) * u64::from(tsc.ebx) / u64::from(tsc.eax);
        assert_eq!(hz, 2_600_000_000);
        assert_eq!(find(&cpuid, 0x4000_0010, 0).eax, 2_600_000);
        assert_eq!(find(&cpuid, 0x4000_0000, 0).eax, 0x4000_0010);
        assert_eq!(find(&cpuid, 0x16, 0).eax, 2600);
    }

    #[test]
    fn an_empty_list_stays_empty() {
        assert!(configure(&[], &CONFIG).is_empty());
    }
}
