use proptest::prelude::*;

use super::super::testing::{Driver, MockIoEvents, MockMsi, WRITE, eventually, memory};
use super::super::{Chain, QueueError, QueueWorker, VirtioDevice, Workers};
use super::*;
use crate::pci::PciBus;
use crate::state::{BlkState, DeviceState};

/// Returns every chain at once, with its readable length as length; panics at one of 13 bytes.
struct Echo;

struct EchoWorker(Chain);

impl QueueWorker for EchoWorker {
    fn queue_ready(&mut self, queues: &mut [Virtqueue], index: usize) -> Result<(), QueueError> {
        let queue = &mut queues[index];
        while queue.pop(&mut self.0)? {
            assert_ne!(self.0.readable_len(), 13);
            queue.push(self.0.head, self.0.readable_len() as u32)?;
            queue.interrupt()?;
        }
        queue.enable_notifications()?;
        Ok(())
    }
}

impl VirtioDevice for Echo {
    fn name(&self) -> &str {
        "echo"
    }
    fn device_type(&self) -> u16 {
        3
    }
    fn pci_class(&self) -> u32 {
        0xff_00_00
    }
    fn features(&self) -> u64 {
        1 << 5
    }
    fn queue_sizes(&self) -> &[u16] {
        &[64, 16]
    }
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        crate::pci::read_registers(&[1, 2, 3, 4], offset, data);
    }
    fn activate(&mut self, _: ActivateContext) -> io::Result<Workers> {
        Ok(vec![Box::new(EchoWorker(Chain::default()))])
    }
    fn save(&self) -> DeviceState {
        DeviceState::Blk(BlkState {
            len: 0,
            read_only: false,
        })
    }
    fn restore(&mut self, _: &DeviceState) -> Result<(), RestoreError> {
        Ok(())
    }
}

fn config(driver: &Driver, offset: u8, len: usize) -> u64 {
    let mut data = vec![0; len];
    driver.function.read_config(offset, &mut data);
    le_value(&data)
}

/// Capabilities: offset, id and virtio's type.
fn capabilities(driver: &Driver) -> Vec<(u8, u8, u8)> {
    let mut found = Vec::new();
    let mut at = config(driver, 0x34, 1) as u8;
    while at != 0 {
        let id = config(driver, at, 1) as u8;
        found.push((at, id, config(driver, at + 3, 1) as u8));
        at = config(driver, at + 1, 1) as u8;
    }
    found
}

#[test]
fn the_capabilities_describe_bar_0() {
    let driver = Driver::new(Echo);
    assert_eq!(config(&driver, 0, 4), 0x1043_1af4);
    let caps = capabilities(&driver);
    let kinds: Vec<_> = caps.iter().map(|(_, id, kind)| (*id, *kind)).collect();
    assert_eq!(kinds[..5], [(9, 1), (9, 3), (9, 4), (9, 2), (9, 5)]);
    assert_eq!(kinds[5].0, 0x11);
    let (at, ..) = caps[3];
    assert_eq!(config(&driver, at + 2, 1), 20);
    assert_eq!(config(&driver, at + 8, 4), NOTIFY);
    assert_eq!(config(&driver, at + 16, 4), 4);
    let (at, ..) = caps[5];
    assert_eq!(config(&driver, at + 2, 2), 2, "three vectors");
    assert_eq!(config(&driver, at + 4, 4), MSIX_TABLE);
    assert_eq!(config(&driver, at + 8, 4), MSIX_PBA);
}

#[test]
fn features_are_negotiated() {
    let driver = Driver::new(Echo);
    assert_eq!(driver.offered(), 1 << 5 | TRANSPORT_FEATURES);
    driver.write(0, 4, 2);
    assert_eq!(driver.read(4, 4), 0);
    // Without VERSION_1, and with something not offered.
    for features in [1 << 5, F_VERSION_1 | 1 << 6] {
        driver.write(20, 1, 0);
        driver.write(20, 1, 3);
        driver.write(8, 4, 0);
        driver.write(12, 4, features & 0xffff_ffff);
        driver.write(8, 4, 1);
        driver.write(12, 4, features >> 32);
        assert_eq!(driver.read(12, 4), features >> 32);
        driver.write(20, 1, 0xb);
        assert_eq!(driver.status(), 3);
        // Nor does DRIVER_OK help.
        driver.write(20, 1, 0xf);
        assert_eq!(driver.status(), 3);
    }
    driver.negotiate(0);
    // Too late to change them.
    driver.write(12, 4, 0);
    assert_eq!(driver.read(12, 4), F_VERSION_1 >> 32);
    // Bits cannot be taken back but by a reset.
    driver.write(20, 1, 1);
    assert_eq!(driver.status(), 0xb);
    driver.write(20, 1, 0);
    assert_eq!(driver.status(), 0);
    assert_eq!(driver.read(12, 4), 0);
}

#[test]
fn queue_registers() {
    let driver = Driver::new(Echo);
    assert_eq!(driver.read(18, 2), 2);
    driver.write(22, 2, 1);
    assert_eq!(driver.read(24, 2), 16);
    assert_eq!(driver.read(30, 2), 1);
    driver.write(24, 2, 8);
    driver.write(26, 2, 2);
    driver.write(32, 4, 0x1000);
    driver.write(36, 4, 0x2);
    driver.write(40, 8, 0x3_0000_4000);
    assert_eq!(driver.read(24, 2), 8);
    assert_eq!(driver.read(26, 2), 2);
    assert_eq!(driver.read(32, 8), 0x2_0000_1000);
    assert_eq!(driver.read(40, 4), 0x4000);
    assert_eq!(driver.read(44, 4), 3);
    driver.write(26, 2, 3);
    assert_eq!(driver.read(26, 2), 0xffff, "there is no vector 3");
    driver.write(28, 2, 1);
    driver.write(24, 2, 4);
    assert_eq!(driver.read(24, 2), 8, "an enabled queue keeps its size");
    // A queue that does not exist.
    driver.write(22, 2, 2);
    assert_eq!(driver.read(24, 2), 0);
    driver.write(24, 2, 4);
    driver.write(28, 2, 1);
    assert_eq!(driver.read(28, 2), 0);
    // Accesses of another width do nothing.
    driver.write(22, 1, 0);
    assert_eq!(driver.read(22, 2), 2);
    assert_eq!(driver.read(0x800, 4), 0xffff_ffff);
}

#[test]
fn notifications_reach_the_worker_and_interrupts_the_driver() {
    let driver = Driver::new(Echo);
    driver.start(F_EVENT_IDX);
    driver.send(1, 0, &[(0x1000, 64, 0)]);
    driver.notify(1);
    driver.msi.wait(2, 1);
    assert_eq!(driver.used(1, 0), (0, 64));
    assert_eq!(driver.read(0x1000, 1), 0, "with MSI-X the ISR is unused");
    // Notifications of queues that do not exist.
    driver.notify(2);
    driver.write(0x3ffe, 2, 0);
    // Without MSI-X the ISR says it, once.
    let control = capabilities(&driver)[5].0 + 2;
    driver.function.write_config(control, &[0, 0]);
    driver.send(0, 0, &[(0x1000, 64, 0)]);
    driver.notify(0);
    eventually("the ISR", || driver.read(0x1000, 1) == 1);
    assert_eq!(driver.read(0x1000, 1), 0);
}

#[test]
fn a_panicking_worker_breaks_only_its_device() {
    let driver = Driver::new(Echo);
    driver.start(0);
    driver.send(0, 0, &[(0x1000, 13, 0)]);
    driver.notify(0);
    driver.wait_broken();
    driver.msi.wait(0, 1);
    driver.start(0);
    assert_eq!(driver.status(), 0xf);
    driver.send(0, 0, &[(0x1000, 14, 0)]);
    driver.notify(0);
    driver.wait_used(0, 1);
}

#[test]
fn queues_at_impossible_places_break_the_device() {
    for (register, value) in [
        (32, 8),
        (32, u64::MAX - 15),
        (40, 8 << 20),
        (48, u64::MAX - 3),
        (48, 2),
    ] {
        let driver = Driver::new(Echo);
        driver.negotiate(0);
        driver.write(22, 2, 0);
        driver.write(32, 8, 0x1000);
        driver.write(40, 8, 0x2000);
        driver.write(48, 8, 0x3000);
        driver.write(register, 8, value);
        driver.write(28, 2, 1);
        driver.write(20, 1, 0xf);
        assert_eq!(driver.status(), 0x4f, "{register}: {value:#x}");
        driver.start(0);
        assert_eq!(driver.status(), 0xf);
    }
    // And so do impossible sizes.
    for size in [0, 3, 128] {
        let driver = Driver::new(Echo);
        driver.negotiate(0);
        driver.set_up_queue(1);
        driver.write(22, 2, 0);
        driver.write(24, 2, size);
        driver.write(28, 2, 1);
        driver.write(20, 1, 0xf);
        assert_eq!(driver.status(), 0x4f, "{size}");
    }
}

#[test]
fn a_device_can_be_reset_at_any_time() {
    let driver = Driver::new(Echo);
    for round in 0..20 {
        driver.start(0);
        for i in 0..round % 4 {
            driver.send(0, i, &[(0x1000, 1, 0)]);
            driver.notify(0);
        }
        driver.write(20, 1, 0);
        assert_eq!(driver.status(), 0);
        assert!(driver.io_events.addresses().is_empty());
        driver.write(22, 2, 0);
        assert_eq!(driver.read(28, 2), 0);
        assert_eq!(driver.read(24, 2), 64);
    }
}

fn pci_bus(window: std::ops::Range<u64>) -> (PciBus, Arc<VirtioPci>, Arc<MockIoEvents>) {
    let io_events = Arc::new(MockIoEvents::default());
    let env = VirtioEnv {
        memory: memory(),
        io_events: io_events.clone(),
        msi: Arc::new(MockMsi::default()),
    };
    let bus = PciBus::new(window);
    let function = VirtioPci::new(Box::new(Echo), &env).unwrap();
    bus.add(1, function.clone()).unwrap();
    (bus, function, io_events)
}

#[test]
fn registered_notifications_follow_the_bar() {
    let (bus, _, io_events) = pci_bus(0xc000_0000..0xe000_0000);
    let mmio = |offset: u64, data: &[u8]| bus.mmio().write(offset, data);
    let ecam = |offset: u64, data: &[u8]| bus.ecam().write((1 << 15) + offset, data);
    ecam(0x10, &0xc100_0000u32.to_le_bytes());
    assert!(io_events.addresses().is_empty(), "not before DRIVER_OK");
    let base = 0x100_0000;
    mmio(base + 20, &[3]);
    mmio(base + 8, &1u32.to_le_bytes());
    mmio(base + 12, &1u32.to_le_bytes());
    mmio(base + 20, &[0xb]);
    mmio(base + 20, &[0xf]);
    assert_eq!(io_events.addresses(), [0xc100_3000, 0xc100_3004]);
    ecam(4, &[4]);
    assert!(io_events.addresses().is_empty());
    ecam(0x10, &0xc200_0000u32.to_le_bytes());
    ecam(4, &[6]);
    assert_eq!(io_events.addresses(), [0xc200_3000, 0xc200_3004]);
    let mut status = [0];
    bus.mmio().read(0x200_0000 + 20, &mut status);
    assert_eq!(status, [0xf]);
    bus.pause();
    assert!(io_events.addresses().is_empty());
    bus.resume();
    assert_eq!(io_events.addresses().len(), 2);
    bus.reset();
    assert!(io_events.addresses().is_empty());
    bus.mmio().read(20, &mut status);
    assert_eq!(status, [0]);
}

#[test]
fn dropping_a_function_ends_its_thread() {
    let driver = Driver::new(Echo);
    driver.start(0);
    let io_events = driver.io_events.clone();
    assert_eq!(io_events.addresses().len(), 2);
    drop(driver);
    assert!(io_events.addresses().is_empty());
}

#[test]
fn the_window_in_configuration_space_reaches_the_bar() {
    let driver = Driver::new(Echo);
    let cap = capabilities(&driver)[4].0;
    let access = |offset: u64, len: u32| {
        driver.function.write_config(cap + 4, &[0]);
        driver
            .function
            .write_config(cap + 8, &(offset as u32).to_le_bytes());
        driver.function.write_config(cap + 12, &len.to_le_bytes());
    };
    access(DEVICE, 4);
    assert_eq!(config(&driver, cap + 16, 4), 0x0403_0201);
    access(DEVICE + 1, 1);
    assert_eq!(config(&driver, cap + 16, 1), 2);
    access(20, 1);
    driver.function.write_config(cap + 16, &[3]);
    assert_eq!(driver.status(), 3);
    // What makes no sense is not done.
    for (offset, len) in [(20, 3), (21, 2), (0x7ffe, 4), (0xffff_fffc, 4), (20, 0)] {
        access(offset, len);
        driver.function.write_config(cap + 16, &[0; 4]);
        config(&driver, cap + 16, 4);
        assert_eq!(driver.status(), 3, "{offset:#x}+{len}");
    }
}

#[test]
fn an_interrupt_is_pending_while_masked() {
    let driver = Driver::new(Echo);
    driver.start(F_EVENT_IDX);
    driver.write(MSIX_TABLE + 16 + 12, 4, 1);
    driver.send(0, 0, &[(0x1000, 8, WRITE)]);
    driver.notify(0);
    eventually("a pending bit", || driver.read(MSIX_PBA, 8) == 2);
    assert!(driver.msi.delivered().is_empty());
    driver.write(MSIX_TABLE + 16 + 12, 4, 0);
    assert_eq!(driver.msi.delivered(), [1]);
    assert_eq!(driver.read(MSIX_PBA, 8), 0);
}

#[derive(Debug, Clone)]
enum Access {
    ReadBar(u64, usize),
    WriteBar(u64, usize, u64),
    ReadConfig(u8, usize),
    WriteConfig(u8, usize, u64),
    Start,
    Pause,
    Resume,
    Save,
}

fn access() -> impl Strategy<Value = Access> {
    let len = prop::sample::select(vec![1usize, 2, 4, 8]);
    // Mostly registers that exist.
    let offset = prop_oneof![
        0u64..64,
        0x1000u64..0x1004,
        0x2000u64..0x2008,
        0x3000u64..0x3010,
        0x4000u64..0x4040,
        0x5000u64..0x5010,
        0u64..0x8000
    ]
    .boxed();
    let value = prop_oneof![0u64..20, any::<u64>()];
    let register = any::<u8>();
    prop_oneof![
        4 => (offset.clone(), len.clone()).prop_map(|(o, l)| Access::ReadBar(o, l)),
        8 => (offset, len.clone(), value.clone())
            .prop_map(|(o, l, v)| Access::WriteBar(o, l, v)),
        2 => (register, len.clone()).prop_map(|(o, l)| Access::ReadConfig(o, l)),
        4 => (register, len, value).prop_map(|(o, l, v)| Access::WriteConfig(o, l, v)),
        1 => Just(Access::Start),
        1 => Just(Access::Pause),
        1 => Just(Access::Resume),
        1 => Just(Access::Save),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// No sequence of accesses panics or hangs, and every state that comes of it can be restored.
    #[test]
    fn random_accesses_do_no_harm(accesses in prop::collection::vec(access(), 1..150)) {
        let driver = Driver::new(Echo);
        for access in accesses {
            match access {
                Access::ReadBar(offset, len) => {
                    driver.read(offset.min(0x8000 - len as u64), len);
                }
                Access::WriteBar(offset, len, value) => {
                    driver.write(offset.min(0x8000 - len as u64), len, value);
                }
                Access::ReadConfig(offset, len) => {
                    config(&driver, offset.min((256 - len) as u8), len);
                }
                Access::WriteConfig(offset, len, value) => {
                    let offset = offset.min((256 - len) as u8);
                    driver.function.write_config(offset, &value.to_le_bytes()[..len]);
                }
                Access::Start => driver.start(0),
                Access::Pause => driver.function.pause(),
                Access::Resume => driver.function.resume(),
                Access::Save => {
                    driver.function.pause();
                    let state = driver.function.save();
                    let other = Driver::new(Echo);
                    other.function.restore(&state).unwrap();
                    prop_assert_eq!(other.function.save(), state);
                }
            }
        }
        // Whatever happened, a reset of the machine makes it work again.
        driver.function.reset();
        driver.start(0);
        prop_assert_eq!(driver.status(), 0xf);
    }
}
