//! ACPI tables (ACPI 6.5), which describe the machine's processors, interrupts, buses and devices
//! to the guest.
//!
//! The platform is hardware-reduced: no PIC, no SCI, no fixed power management registers except
//! the timer. The power button is a control method device behind a Generic Event Device.

use acpi_tables::Aml;
use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, And, Device, EISAName, Field, FieldAccessType, FieldEntry,
    FieldLockRule, FieldUpdateRule, IO, If, Interrupt, Local, Memory32Fixed, Method, Name,
    NotEqual, Notify, OpRegion, OpRegionSpace, Package, Path, ResourceTemplate, Scope, Store, ZERO,
};
use acpi_tables::fadt::{FADTBuilder, Flags, PmProfile};
use acpi_tables::gas::{AccessSize, AddressSpace as GasSpace, GAS};
use acpi_tables::mcfg::MCFG;
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use super::layout;
use crate::memory::GuestMemory;

const OEM_ID: [u8; 6] = *b"FLTBOX";
const OEM_TABLE_ID: [u8; 8] = *b"FLEETBOX";
const OEM_REVISION: u32 = 1;
/// Tables start at multiples of this; the specification asks for less.
const ALIGNMENT: usize = 64;

/// Writes the tables of a machine with `cpus` vCPUs. Returns the address of the RSDP.
///
/// # Errors
/// The memory has no RAM at [`layout::ACPI_START`].
pub fn write_tables(memory: &GuestMemory, cpus: u8) -> Result<GuestAddress, GuestMemoryError> {
    let at = GuestAddress(layout::ACPI_START);
    memory.write_slice(&tables(cpus), at)?;
    Ok(at)
}

/// The tables of a machine with `cpus` vCPUs as they are stored at [`layout::ACPI_START`]: RSDP,
/// DSDT, FADT, MADT, MCFG, SPCR and XSDT.
///
/// ```
/// let tables = fleetbox_arch::x86_64::acpi::tables(2);
/// assert!(tables.starts_with(b"RSD PTR "));
/// ```
pub fn tables(cpus: u8) -> Vec<u8> {
    let mut image = vec![0; ALIGNMENT];
    let mut place = |table: &dyn Aml| {
        let at = layout::ACPI_START + image.len() as u64;
        table.to_aml_bytes(&mut image);
        image.resize(image.len().next_multiple_of(ALIGNMENT), 0);
        at
    };
    let dsdt = place(&dsdt(cpus));
    let mut xsdt = XSDT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    xsdt.add_entry(place(&fadt(dsdt)));
    xsdt.add_entry(place(&madt(cpus)));
    xsdt.add_entry(place(&mcfg()));
    xsdt.add_entry(place(&spcr()));
    let xsdt = place(&xsdt);
    let mut rsdp = Vec::new();
    Rsdp::new(OEM_ID, xsdt).to_aml_bytes(&mut rsdp);
    image[..rsdp.len()].copy_from_slice(&rsdp);
    image
}

fn port(bits: u8, access: AccessSize, port: u16) -> GAS {
    GAS::new(GasSpace::SystemIo, bits, 0, access, u64::from(port))
}

fn table(signature: [u8; 4], revision: u8, body: &[u8]) -> Sdt {
    let mut sdt = Sdt::new(signature, 36, revision, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    sdt.append_slice(body);
    sdt
}

/// Fixed ACPI Description Table, section 5.2.9.
fn fadt(dsdt: u64) -> impl Aml {
    /// There is no VGA, no 8042 keyboard controller and no legacy device to probe. There is an RTC.
    const BOOT_ARCH_NO_VGA: u16 = 1 << 2;
    let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION)
        .dsdt_64(dsdt)
        .preferred_pm_profile(PmProfile::EnterpriseServer)
        .flag(Flags::Wbinvd)
        // "No fixed buttons": they are control method devices.
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton)
        .flag(Flags::TmrValExt)
        .flag(Flags::ResetRegSup)
        .flag(Flags::HwReducedAcpi);
    fadt.iapc_boot_arch = BOOT_ARCH_NO_VGA.into();
    fadt.reset_reg = port(8, AccessSize::ByteAccess, layout::RESET_PORT);
    fadt.reset_value = layout::RESET_VALUE;
    fadt.sleep_control_reg = port(8, AccessSize::ByteAccess, layout::SLEEP_CONTROL_PORT);
    fadt.sleep_status_reg = port(8, AccessSize::ByteAccess, layout::SLEEP_STATUS_PORT);
    // The old field too: GRUB reads only that one.
    fadt.pm_tmr_blk = u32::from(layout::PM_TIMER_PORT).into();
    fadt.pm_tmr_len = 4;
    fadt.x_pm_tmr_blk = port(32, AccessSize::DwordAccess, layout::PM_TIMER_PORT);
    fadt.finalize()
}

/// Multiple APIC Description Table, section 5.2.12.
fn madt(cpus: u8) -> Sdt {
    const REVISION: u8 = 5;
    const ENABLED: u32 = 1;
    let mut body = Vec::new();
    body.extend((layout::LAPIC_START as u32).to_le_bytes());
    // Flags: no 8259 to disable.
    body.extend(0u32.to_le_bytes());
    for cpu in 0..cpus {
        // Processor local APIC: UID and APIC id are the vCPU's index.
        body.extend([0, 8, cpu, cpu]);
        body.extend(ENABLED.to_le_bytes());
    }
    // I/O APIC 0 with the first GSI.
    body.extend([1, 12, 0, 0]);
    body.extend((layout::IOAPIC_START as u32).to_le_bytes());
    body.extend(0u32.to_le_bytes());
    // Local APIC NMI: LINT1 of all processors, default polarity and trigger.
    body.extend([4, 6, 0xFF, 0, 0, 1]);
    table(*b"APIC", REVISION, &body)
}

/// PCI Express memory-mapped configuration space (PCI Firmware Specification, section 4.1.2).
fn mcfg() -> MCFG {
    let mut mcfg = MCFG::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    mcfg.add_ecam(layout::ECAM_START, 0, 0, 0);
    mcfg
}

/// Serial Port Console Redirection table, revision 2.
fn spcr() -> Sdt {
    const REVISION: u8 = 2;
    const FULL_16550: u8 = 0;
    const INTERRUPT_IOAPIC: u8 = 2;
    const BAUD_115200: u8 = 7;
    const ONE_STOP_BIT: u8 = 1;
    const TERMINAL_ANSI: u8 = 3;
    let mut body = vec![FULL_16550, 0, 0, 0];
    port(8, AccessSize::ByteAccess, layout::COM1_PORT).to_aml_bytes(&mut body);
    body.extend([INTERRUPT_IOAPIC, layout::COM1_GSI as u8]);
    body.extend(layout::COM1_GSI.to_le_bytes());
    // Baud rate, parity, stop bits, flow control, terminal, language.
    body.extend([BAUD_115200, 0, ONE_STOP_BIT, 0, TERMINAL_ANSI, 0]);
    // Not a PCI device: ids of all ones, then location, flags, segment and a reserved field.
    body.extend([0xFF; 4]);
    body.extend([0; 3 + 4 + 1 + 4]);
    table(*b"SPCR", REVISION, &body)
}

/// Differentiated System Description Table: the devices that cannot be enumerated.
fn dsdt(cpus: u8) -> Sdt {
    const REVISION: u8 = 6;
    let mut body = Vec::new();
    pci_host_bridge(&mut body);
    motherboard(&mut body);
    com1(&mut body);
    rtc(&mut body);
    power_button(&mut body);
    pvpanic(&mut body);
    processors(cpus, &mut body);
    let s5 = layout::SLEEP_TYPE_S5;
    Name::new("_S5_".into(), &Package::new(vec![&s5, &s5, &ZERO, &ZERO])).to_aml_bytes(&mut body);
    table(*b"DSDT", REVISION, &body)
}

/// Adds the device `name` with its `objects` to the system bus.
fn device(name: &str, objects: Vec<&dyn Aml>, out: &mut Vec<u8>) {
    let device = Device::new(name.into(), objects);
    Scope::new("\\_SB_".into(), vec![&device]).to_aml_bytes(out);
}

fn hid(id: &str) -> Name {
    Name::new("_HID".into(), &EISAName::new(id))
}

fn uid(id: u8) -> Name {
    Name::new("_UID".into(), &id)
}

fn crs(resources: Vec<&dyn Aml>) -> Name {
    Name::new("_CRS".into(), &ResourceTemplate::new(resources))
}

/// An edge-triggered, active-high, exclusive interrupt.
fn interrupt(gsi: u32) -> Interrupt {
    Interrupt::new(true, true, false, false, gsi)
}

/// A level-triggered, active-high, exclusive interrupt.
fn level_interrupt(gsi: u32) -> Interrupt {
    Interrupt::new(true, false, false, false, gsi)
}

fn ports(first: u16, count: u16) -> IO {
    IO::new(first, first, 1, count as u8)
}

fn pci_host_bridge(out: &mut Vec<u8>) {
    let config = ports(layout::PCI_CONFIG_PORT, layout::PCI_CONFIG_PORTS);
    let after_config = layout::PCI_CONFIG_PORT + layout::PCI_CONFIG_PORTS;
    let mmio_end = layout::PCI_MMIO_START + layout::PCI_MMIO_SIZE - 1;
    device(
        "PCI0",
        vec![
            &hid("PNP0A08"),
            &Name::new("_CID".into(), &EISAName::new("PNP0A03")),
            &uid(0),
            &Name::new("_SEG".into(), &ZERO),
            &Name::new("_BBN".into(), &ZERO),
            &crs(vec![
                &AddressSpace::new_bus_number(0u16, 0u16),
                &config,
                &AddressSpace::new_io(0u16, layout::PCI_CONFIG_PORT - 1, None),
                &AddressSpace::new_io(after_config, 0xFFFFu16, None),
                &AddressSpace::new_memory(
                    AddressSpaceCacheable::NotCacheable,
                    true,
                    layout::PCI_MMIO_START as u32,
                    mmio_end as u32,
                    None,
                ),
            ]),
        ],
        out,
    );
}

/// Resources of the board itself. Kernels use the configuration space only if it is listed here.
fn motherboard(out: &mut Vec<u8>) {
    device(
        "MBRD",
        vec![
            &hid("PNP0C02"),
            &uid(0),
            &crs(vec![
                &Memory32Fixed::new(true, layout::ECAM_START as u32, layout::ECAM_SIZE as u32),
                &ports(layout::ACPI_PORT, layout::ACPI_PORTS),
            ]),
        ],
        out,
    );
}

fn com1(out: &mut Vec<u8>) {
    device(
        "COM1",
        vec![
            &hid("PNP0501"),
            &uid(0),
            &Name::new("_DDN".into(), &"COM1"),
            &crs(vec![
                &ports(layout::COM1_PORT, layout::COM1_PORTS),
                &interrupt(layout::COM1_GSI),
            ]),
        ],
        out,
    );
}

fn rtc(out: &mut Vec<u8>) {
    device(
        "RTC_",
        vec![
            &hid("PNP0B00"),
            &uid(0),
            &crs(vec![
                &ports(layout::RTC_PORT, layout::RTC_PORTS),
                &interrupt(layout::RTC_GSI),
            ]),
        ],
        out,
    );
}

/// The power button and the Generic Event Device (section 5.6.9) that reports it.
fn power_button(out: &mut Vec<u8>) {
    const PRESSED: u8 = 0x80;
    device("PWRB", vec![&hid("PNP0C0C"), &uid(0)], out);
    let status = Path::new("GSTS");
    let mask = layout::GED_POWER_BUTTON;
    // Reading the status clears it, so it is read once.
    let read = Store::new(&Local(0), &status);
    let masked = And::new(&Local(1), &Local(0), &mask);
    let is_set = NotEqual::new(&Local(1), &ZERO);
    let button_path = Path::new("\\_SB_.PWRB");
    let notify = Notify::new(&button_path, &PRESSED);
    let if_set = If::new(&is_set, vec![&notify]);
    let length = 4u8;
    device(
        "GED_",
        vec![
            &Name::new("_HID".into(), &"ACPI0013"),
            &uid(0),
            &crs(vec![&level_interrupt(layout::GED_GSI)]),
            &OpRegion::new(
                "GREG".into(),
                OpRegionSpace::SystemIO,
                &layout::GED_STATUS_PORT,
                &length,
            ),
            &Field::new(
                "GREG".into(),
                FieldAccessType::DWord,
                FieldLockRule::NoLock,
                FieldUpdateRule::WriteAsZeroes,
                vec![FieldEntry::Named(*b"GSTS", 32)],
            ),
            &Method::new("_EVT".into(), 1, true, vec![&read, &masked, &if_set]),
        ],
        out,
    );
}

/// The device that a kernel reports its panic to. Kernels before 5.13 have a driver only for this form of it, and later
/// ones have that for its PCI form beside it.
fn pvpanic(out: &mut Vec<u8>) {
    device(
        "PEVT",
        vec![
            &Name::new("_HID".into(), &"QEMU0001"),
            &uid(0),
            &crs(vec![&ports(layout::PVPANIC_PORT, 1)]),
        ],
        out,
    );
}

fn processors(cpus: u8, out: &mut Vec<u8>) {
    let cpus: Vec<Vec<u8>> = (0..cpus)
        .map(|cpu| {
            let mut bytes = Vec::new();
            Device::new(
                Path::new(&format!("C{cpu:03X}")),
                vec![&Name::new("_HID".into(), &"ACPI0007"), &uid(cpu)],
            )
            .to_aml_bytes(&mut bytes);
            bytes
        })
        .collect();
    let cpus: Vec<Raw> = cpus.into_iter().map(Raw).collect();
    let hid = Name::new("_HID".into(), &"ACPI0010");
    let uid = uid(0);
    let mut children: Vec<&dyn Aml> = vec![&hid, &uid];
    children.extend(cpus.iter().map(|c| c as &dyn Aml));
    device("CPUS", children, out);
}

/// AML that is already encoded.
struct Raw(Vec<u8>);

impl Aml for Raw {
    fn to_aml_bytes(&self, sink: &mut dyn acpi_tables::AmlSink) {
        sink.vec(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn u32_at(bytes: &[u8], at: usize) -> u32 {
        u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
    }

    fn u64_at(bytes: &[u8], at: usize) -> u64 {
        u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
    }

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |a, b| a.wrapping_add(*b))
    }

    fn table_at(image: &[u8], address: u64) -> &[u8] {
        let at = (address - layout::ACPI_START) as usize;
        let len = u32_at(image, at + 4) as usize;
        &image[at..at + len]
    }

    /// The tables that the XSDT lists, by signature, and the DSDT.
    fn parse(image: &[u8]) -> Vec<&[u8]> {
        assert_eq!(&image[..8], b"RSD PTR ");
        assert_eq!(sum(&image[..20]), 0);
        assert_eq!(sum(&image[..36]), 0);
        let xsdt = table_at(image, u64_at(image, 24));
        let mut tables = vec![xsdt];
        for at in (36..xsdt.len()).step_by(8) {
            tables.push(table_at(image, u64_at(xsdt, at)));
        }
        let fadt = tables.iter().find(|t| t.starts_with(b"FACP")).unwrap();
        tables.push(table_at(image, u64_at(fadt, 140)));
        tables
    }

    fn find<'a>(tables: &[&'a [u8]], signature: &[u8; 4]) -> &'a [u8] {
        tables.iter().find(|t| t.starts_with(signature)).unwrap()
    }

    #[test]
    fn every_table_is_reachable_and_has_a_valid_checksum() {
        for cpus in [1, 2, 64, 254] {
            let image = tables(cpus);
            assert!(image.len() as u64 <= layout::ACPI_SIZE);
            let tables = parse(&image);
            for table in &tables {
                assert_eq!(sum(table), 0, "{}", String::from_utf8_lossy(&table[..4]));
            }
            let names: Vec<&[u8]> = tables.iter().map(|t| &t[..4]).collect();
            assert_eq!(
                names,
                [b"XSDT", b"FACP", b"APIC", b"MCFG", b"SPCR", b"DSDT"]
            );
        }
    }

    #[test]
    fn the_fadt_points_to_the_registers_of_the_acpi_block() {
        let image = tables(1);
        let fadt = find(&parse(&image), b"FACP");
        assert_eq!((fadt[8], fadt.len()), (6, 276));
        assert_ne!(u32_at(fadt, 112) & 1 << 20, 0, "hardware-reduced");
        assert_ne!(u32_at(fadt, 112) & 1 << 10, 0, "reset register");
        for (at, port) in [(116, 0x602), (208, 0x608), (244, 0x600), (256, 0x601)] {
            assert_eq!(fadt[at], 1, "in I/O space");
            assert_eq!(u64_at(fadt, at + 4), port);
        }
        assert_eq!(u32_at(fadt, 76), 0x608);
        assert_eq!(fadt[128], layout::RESET_VALUE);
    }

    #[test]
    fn the_madt_lists_each_processor_and_the_ioapic() {
        let image = tables(3);
        let madt = find(&parse(&image), b"APIC");
        let mut at = 44;
        let mut kinds = Vec::new();
        while at < madt.len() {
            let entry = &madt[at..at + usize::from(madt[at + 1])];
            match entry[0] {
                0 => assert_eq!(
                    (u32::from(entry[2]), u32_at(entry, 4)),
                    (kinds.len() as u32, 1)
                ),
                1 => assert_eq!(u32_at(entry, 4), 0xFEC0_0000),
                _ => {}
            }
            kinds.push(entry[0]);
            at += entry.len();
        }
        assert_eq!(kinds, [0, 0, 0, 1, 4]);
    }

    #[test]
    fn mcfg_and_spcr_name_the_configuration_space_and_com1() {
        let image = tables(1);
        let tables = parse(&image);
        let mcfg = find(&tables, b"MCFG");
        assert_eq!(u64_at(mcfg, 44), layout::ECAM_START);
        assert_eq!((mcfg[54], mcfg[55], mcfg.len()), (0, 0, 60));
        let spcr = find(&tables, b"SPCR");
        assert_eq!(spcr.len(), 80);
        assert_eq!((spcr[40], u64_at(spcr, 44)), (1, 0x3F8));
        assert_eq!((spcr[52], u32_at(spcr, 54)), (2, 4));
    }

    /// Writes the tables to the directory in `FLEETBOX_ACPI_DUMP`, for `iasl -d`; without it, checks
    /// only that each device is in the DSDT.
    #[test]
    fn the_dsdt_has_every_device() {
        let image = tables(2);
        let tables = parse(&image);
        if let Some(dir) = std::env::var_os("FLEETBOX_ACPI_DUMP") {
            for table in &tables {
                let name = String::from_utf8_lossy(&table[..4]).to_lowercase();
                std::fs::write(std::path::Path::new(&dir).join(name + ".dat"), table).unwrap();
            }
        }
        let dsdt = find(&tables, b"DSDT");
        for name in [
            b"PCI0", b"MBRD", b"COM1", b"RTC_", b"PWRB", b"GED_", b"_EVT", b"PEVT", b"C000",
            b"C001", b"_S5_",
        ] {
            assert!(dsdt.windows(4).any(|w| w == name), "{name:?}");
        }
    }
}
