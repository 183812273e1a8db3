use std::sync::Mutex;

use super::*;
use crate::pci::{BarSpec, ConfigSpace, Identity};

/// A function with one BAR that returns what was last written to it.
struct Echo {
    config: Mutex<ConfigSpace>,
    value: Mutex<(u64, u64)>,
}

impl Echo {
    fn new(size: u32) -> Arc<Self> {
        let mut config = ConfigSpace::new(Identity {
            vendor: 0x1234,
            device: 0x5678,
            class: 0xff_00_00,
            revision: 0,
            subsystem: (0, 0),
        });
        config.add_bar(BarSpec { index: 0, size });
        Arc::new(Self {
            config: Mutex::new(config),
            value: Mutex::default(),
        })
    }
}

impl PciDevice for Echo {
    fn name(&self) -> &str {
        "echo"
    }
    fn read_config(&self, offset: u8, data: &mut [u8]) {
        lock(&self.config).read(offset, data);
    }
    fn write_config(&self, offset: u8, data: &[u8]) {
        lock(&self.config).write(offset, data);
    }
    fn bars(&self) -> Vec<BarSpec> {
        lock(&self.config).bars()
    }
    fn assign_bar(&self, index: u8, base: u32) {
        lock(&self.config).assign_bar(index, base);
    }
    fn mapped_bars(&self) -> Vec<BarMapping> {
        lock(&self.config).mapped_bars()
    }
    fn read_bar(&self, _: u8, _: u64, data: &mut [u8]) {
        let value = lock(&self.value).1.to_le_bytes();
        data.copy_from_slice(&value[..data.len()]);
    }
    fn write_bar(&self, _: u8, offset: u64, data: &[u8]) {
        *lock(&self.value) = (offset, le_value(data));
    }
    fn reset(&self) {
        lock(&self.config).reset();
    }
    fn save(&self) -> PciDeviceState {
        PciDeviceState::HostBridge(lock(&self.config).save())
    }
    fn restore(&self, state: &PciDeviceState) -> Result<(), RestoreError> {
        let PciDeviceState::HostBridge(state) = state else {
            unreachable!("the tests pass no other")
        };
        lock(&self.config).restore(state, "echo")
    }
}

const WINDOW: Range<u64> = 0xc000_0000..0xc002_0000;

fn config_read(bus: &PciBus, slot: u8, register: u8, len: usize) -> u64 {
    let ports = bus.ports();
    let address = 0x8000_0000 | u32::from(slot) << 11 | u32::from(register & 0xfc);
    ports.write(0, &address.to_le_bytes());
    let mut data = vec![0; len];
    ports.read(4 + u64::from(register & 3), &mut data);
    le_value(&data)
}

fn config_write(bus: &PciBus, slot: u8, register: u8, data: &[u8]) {
    let ports = bus.ports();
    let address = 0x8000_0000 | u32::from(slot) << 11 | u32::from(register & 0xfc);
    ports.write(0, &address.to_le_bytes());
    ports.write(4 + u64::from(register & 3), data);
}

fn mmio_read(bus: &PciBus, addr: u64) -> u64 {
    let mut data = [0; 4];
    bus.mmio().read(addr - WINDOW.start, &mut data);
    le_value(&data)
}

#[test]
fn the_host_bridge_is_in_slot_0_and_empty_slots_read_ones() {
    let bus = PciBus::new(WINDOW);
    assert_eq!(config_read(&bus, 0, 0, 4), 0x0008_1b36);
    assert_eq!(config_read(&bus, 0, 0xb, 1), 6);
    assert_eq!(config_read(&bus, 0, 2, 2), 8);
    assert_eq!(config_read(&bus, 1, 0, 4), 0xffff_ffff);
    // Not enabled, another bus, another function, an access across the dword.
    let ports = bus.ports();
    for address in [0u32, 0x8001_0000, 0x8000_0100] {
        ports.write(0, &address.to_le_bytes());
        let mut data = [0; 4];
        ports.read(4, &mut data);
        assert_eq!(data, [0xff; 4], "{address:#x}");
    }
    ports.write(0, &0x8000_0000u32.to_le_bytes());
    let mut data = [0; 4];
    ports.read(5, &mut data);
    assert_eq!(data, [0xff; 4]);
    // The reset register of PCs at 0xCF9 is not the address register.
    ports.write(1, &[6]);
    ports.read(0, &mut data);
    assert_eq!(data, 0x8000_0000u32.to_le_bytes());
}

#[test]
fn ecam_shows_the_same_registers() {
    let bus = PciBus::new(WINDOW);
    bus.add(3, Echo::new(0x1000)).unwrap();
    let ecam = bus.ecam();
    let mut data = [0; 8];
    ecam.read(3 << 15, &mut data[..4]);
    assert_eq!(le_value(&data[..4]), 0x5678_1234);
    ecam.read((3 << 15) + 0x0c, &mut data);
    assert_eq!(le_value(&data), 0xc000_0000_0000_0000);
    for offset in [1 << 12, (3 << 15) + 0x100, (3 << 15) + 0xffc, 1 << 20] {
        ecam.read(offset, &mut data[..4]);
        assert_eq!(data[..4], [0xff; 4], "{offset:#x}");
        ecam.write(offset, &[0; 4]);
    }
    ecam.read(u64::MAX, &mut data);
    ecam.write(u64::MAX - 3, &data);
}

#[test]
fn bars_are_assigned_aligned_and_the_window_can_fill_up() {
    let bus = PciBus::new(WINDOW);
    bus.add(1, Echo::new(0x1000)).unwrap();
    bus.add(2, Echo::new(0x8000)).unwrap();
    bus.add(9, Echo::new(0x8000)).unwrap();
    assert_eq!(config_read(&bus, 1, 0x10, 4), 0xc000_0000);
    assert_eq!(config_read(&bus, 2, 0x10, 4), 0xc000_8000);
    assert_eq!(config_read(&bus, 9, 0x10, 4), 0xc001_0000);
    assert!(matches!(
        bus.add(4, Echo::new(0x10000)),
        Err(PciError::NoSpace { .. })
    ));
    bus.add(4, Echo::new(0x8000)).unwrap();
    for slot in [0, 1, 32, 255] {
        let result = bus.add(slot, Echo::new(0x1000));
        assert!(matches!(result, Err(PciError::Slot { .. })), "{slot}");
    }
}

#[test]
fn memory_accesses_follow_the_bars() {
    let bus = PciBus::new(WINDOW);
    let echo = Echo::new(0x1000);
    bus.add(1, echo.clone()).unwrap();
    bus.mmio().write(0x10, &[0x2a, 0, 0, 0]);
    assert_eq!(*lock(&echo.value), (0x10, 0x2a));
    assert_eq!(mmio_read(&bus, 0xc000_0ffc), 0x2a);
    assert_eq!(mmio_read(&bus, 0xc000_0ffd), 0xffff_ffff, "across the end");
    // The guest moves it.
    config_write(&bus, 1, 0x10, &0xc001_f000u32.to_le_bytes());
    assert_eq!(mmio_read(&bus, 0xc000_0000), 0xffff_ffff);
    assert_eq!(mmio_read(&bus, 0xc001_f000), 0x2a);
    // And switches decoding off and on.
    config_write(&bus, 1, 4, &[0]);
    assert_eq!(mmio_read(&bus, 0xc001_f000), 0xffff_ffff);
    bus.mmio().write(0x1f000, &[1]);
    config_write(&bus, 1, 4, &[2]);
    assert_eq!(mmio_read(&bus, 0xc001_f000), 0x2a);
    bus.reset();
    assert_eq!(mmio_read(&bus, 0xc000_0000), 0x2a);
    // An offset that wraps around the address space is nobody's.
    bus.mmio().write(u64::MAX, &[0; 8]);
}

#[test]
fn states_round_trip() {
    let bus = PciBus::new(WINDOW);
    bus.add(1, Echo::new(0x1000)).unwrap();
    config_write(&bus, 1, 0x10, &0xc001_f000u32.to_le_bytes());
    let state = bus.save();
    let json = serde_json::to_string(&state).unwrap();
    let other = PciBus::new(WINDOW);
    assert!(other.restore(&state).is_err());
    other.add(1, Echo::new(0x1000)).unwrap();
    other
        .restore(&serde_json::from_str(&json).unwrap())
        .unwrap();
    assert_eq!(other.save(), state);
    assert_eq!(mmio_read(&other, 0xc001_f000), 0);
}
