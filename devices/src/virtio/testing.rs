//! A driver and a machine to test devices with.

use std::io;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use fleetbox_arch::GuestMemory;
use virtio_queue::desc::RawDescriptor;
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, GuestAddress};

use super::{VirtioDevice, VirtioEnv, VirtioPci};
use crate::event::{Event, IoEvents, IoTrigger};
use crate::irq::{MsiController, MsiMessage, MsiVector};
use crate::pci::{PciDevice, le_value};
use crate::sync::lock;

pub(crate) const NEXT: u16 = 1;
pub(crate) const WRITE: u16 = 2;
pub(crate) const INDIRECT: u16 = 4;

const DEADLINE: Duration = Duration::from_secs(20);

#[derive(Default)]
struct MsiLog {
    delivered: Vec<u32>,
    configured: usize,
}

/// Records interrupts by their data.
#[derive(Clone, Default)]
pub(crate) struct MockMsi(Arc<(Mutex<MsiLog>, Condvar)>);

struct MockVector {
    msi: MockMsi,
    message: Mutex<Option<MsiMessage>>,
}

impl MsiVector for MockVector {
    fn configure(&self, message: Option<MsiMessage>) -> io::Result<()> {
        *lock(&self.message) = message;
        lock(&self.msi.0.0).configured += 1;
        Ok(())
    }
    fn trigger(&self) -> io::Result<()> {
        if let Some(message) = *lock(&self.message) {
            self.msi.send(message)?;
        }
        Ok(())
    }
}

impl MsiController for MockMsi {
    fn allocate(&self, count: u16) -> io::Result<Vec<Box<dyn MsiVector>>> {
        let vector = |_| {
            Box::new(MockVector {
                msi: self.clone(),
                message: Mutex::default(),
            }) as Box<dyn MsiVector>
        };
        Ok((0..count).map(vector).collect())
    }
    fn send(&self, message: MsiMessage) -> io::Result<()> {
        lock(&self.0.0).delivered.push(message.data);
        self.0.1.notify_all();
        Ok(())
    }
}

impl MockMsi {
    pub(crate) fn delivered(&self) -> Vec<u32> {
        lock(&self.0.0).delivered.clone()
    }
    pub(crate) fn configured(&self) -> usize {
        lock(&self.0.0).configured
    }
    /// Waits until interrupt `data` has been delivered `count` times.
    pub(crate) fn wait(&self, data: u32, count: usize) {
        let end = Instant::now() + DEADLINE;
        let mut log = lock(&self.0.0);
        while log.delivered.iter().filter(|d| **d == data).count() < count {
            let left = end.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "no interrupt {data}: {:?}", log.delivered);
            log = self.0.1.wait_timeout(log, left).unwrap().0;
        }
    }
}

/// Waits until `condition` holds.
pub(crate) fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + DEADLINE;
    while !condition() {
        assert!(Instant::now() < end, "{what} did not happen");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Records which triggers are registered.
#[derive(Default)]
pub(crate) struct MockIoEvents(Mutex<Vec<IoTrigger>>);

impl MockIoEvents {
    pub(crate) fn addresses(&self) -> Vec<u64> {
        lock(&self.0).iter().map(|t| t.address).collect()
    }
}

impl IoEvents for MockIoEvents {
    fn register(&self, trigger: IoTrigger, _: &Event) -> io::Result<()> {
        lock(&self.0).push(trigger);
        Ok(())
    }
    fn unregister(&self, trigger: IoTrigger, _: &Event) -> io::Result<()> {
        let mut triggers = lock(&self.0);
        let at = triggers.iter().position(|t| *t == trigger);
        triggers.remove(at.expect("registered"));
        Ok(())
    }
}

pub(crate) fn memory() -> GuestMemory {
    fleetbox_arch::allocate(&[(GuestAddress(0), 8 << 20)]).unwrap()
}

/// Where the rings of queue `index` lie.
pub(crate) fn ring_base(index: u16) -> GuestAddress {
    GuestAddress(0x1_0000 + 0x1_0000 * u64::from(index))
}

pub(crate) fn avail_ring(index: u16) -> u64 {
    ring_base(index).0 + 0x4000
}

pub(crate) fn used_ring(index: u16) -> u64 {
    ring_base(index).0 + 0x8000
}

/// A driver of one device, as far as tests need one.
pub(crate) struct Driver {
    pub(crate) function: Arc<VirtioPci>,
    pub(crate) memory: GuestMemory,
    pub(crate) msi: MockMsi,
    pub(crate) io_events: Arc<MockIoEvents>,
    pub(crate) queue_size: u16,
}

impl Driver {
    /// A device that has just been plugged in.
    pub(crate) fn new(device: impl VirtioDevice + 'static) -> Self {
        Self::with_memory(device, memory())
    }

    pub(crate) fn with_memory(device: impl VirtioDevice + 'static, memory: GuestMemory) -> Self {
        let msi = MockMsi::default();
        let io_events = Arc::new(MockIoEvents::default());
        let env = VirtioEnv {
            memory: memory.clone(),
            io_events: io_events.clone(),
            msi: Arc::new(msi.clone()),
        };
        let function = VirtioPci::new(Box::new(device), &env).unwrap();
        function.assign_bar(0, 0xc000_0000);
        function.write_config(0x10, &0xc000_0000u32.to_le_bytes());
        Self {
            function,
            memory,
            msi,
            io_events,
            queue_size: 16,
        }
    }

    pub(crate) fn read(&self, offset: u64, len: usize) -> u64 {
        let mut data = vec![0xff; len];
        self.function.read_bar(0, offset, &mut data);
        le_value(&data)
    }

    pub(crate) fn write(&self, offset: u64, len: usize, value: u64) {
        self.function
            .write_bar(0, offset, &value.to_le_bytes()[..len]);
    }

    pub(crate) fn status(&self) -> u8 {
        self.read(20, 1) as u8
    }

    pub(crate) fn offered(&self) -> u64 {
        self.write(0, 4, 0);
        let low = self.read(4, 4);
        self.write(0, 4, 1);
        low | self.read(4, 4) << 32
    }

    /// Enables MSI-X; vector `n` delivers data `n`, unmasked.
    pub(crate) fn enable_msix(&self) {
        for vector in 0..self.read(18, 2) + 1 {
            let entry = 0x4000 + 16 * vector;
            self.write(entry, 8, 0xfee0_0000);
            self.write(entry + 8, 8, vector);
        }
        // The capability is the last one: vendor ones take 3 * 16 + 2 * 20 bytes.
        let control = 0x40 + 3 * 16 + 2 * 20 + 2;
        self.function.write_config(control, &[0x00, 0x80]);
    }

    /// Negotiates all features but `without`.
    pub(crate) fn negotiate(&self, without: u64) {
        self.write(20, 1, 0);
        self.write(20, 1, 3);
        let features = self.offered() & !without;
        self.write(8, 4, 0);
        self.write(12, 4, features & 0xffff_ffff);
        self.write(8, 4, 1);
        self.write(12, 4, features >> 32);
        self.write(20, 1, 0xb);
        assert_eq!(self.status(), 0xb);
    }

    /// Sets up queue `index`: vector `index + 1`, rings at [`ring_base`], cleared.
    pub(crate) fn set_up_queue(&self, index: u16) {
        let base = ring_base(index);
        self.memory.write_slice(&[0; 0x1_0000], base).unwrap();
        self.write(22, 2, index.into());
        self.write(24, 2, self.queue_size.into());
        self.write(26, 2, u64::from(index) + 1);
        self.write(32, 8, base.0);
        self.write(40, 8, avail_ring(index));
        self.write(48, 4, used_ring(index));
        self.write(28, 2, 1);
    }

    /// Everything from reset to DRIVER_OK.
    pub(crate) fn start(&self, without: u64) {
        self.enable_msix();
        self.negotiate(without);
        self.write(16, 2, 0);
        for index in 0..self.read(18, 2) {
            self.set_up_queue(index as u16);
        }
        self.write(20, 1, 0xf);
    }

    /// Stores a descriptor: address, length, flags, next.
    pub(crate) fn descriptor(&self, queue: u16, at: u16, (addr, len, flags, next): Desc) {
        let descriptor = RawDescriptor::from(Descriptor::new(addr, len, flags, next));
        let addr = GuestAddress(ring_base(queue).0 + 16 * u64::from(at));
        self.memory.write_obj(descriptor, addr).unwrap();
    }

    /// Makes the chain at `head` available, without notifying.
    pub(crate) fn offer(&self, queue: u16, head: u16) {
        let avail = avail_ring(queue);
        let index = GuestAddress(avail + 2);
        let next: u16 = self.memory.read_obj(index).unwrap();
        let slot = avail + 4 + 2 * u64::from(next % self.queue_size);
        self.memory.write_obj(head, GuestAddress(slot)).unwrap();
        let next = next.wrapping_add(1);
        self.memory
            .store(next, index, std::sync::atomic::Ordering::Release)
            .unwrap();
    }

    pub(crate) fn notify(&self, queue: u16) {
        self.write(0x3000 + 4 * u64::from(queue), 2, queue.into());
    }

    /// Stores a chain of the given buffers (address, length, flags WRITE or 0) at `head` and on,
    /// and offers it.
    pub(crate) fn send(&self, queue: u16, head: u16, buffers: &[(u64, u32, u16)]) {
        for (i, (addr, len, flags)) in (0..).zip(buffers) {
            let last = usize::from(i) + 1 == buffers.len();
            let (flags, next) = if last {
                (*flags, 0)
            } else {
                (flags | NEXT, head + i + 1)
            };
            self.descriptor(queue, head + i, (*addr, *len, flags, next));
        }
        self.offer(queue, head);
    }

    pub(crate) fn used_idx(&self, queue: u16) -> u16 {
        let addr = GuestAddress(used_ring(queue) + 2);
        self.memory
            .load(addr, std::sync::atomic::Ordering::Acquire)
            .unwrap()
    }

    /// Head and length of a used element.
    pub(crate) fn used(&self, queue: u16, at: u16) -> (u32, u32) {
        let ring = used_ring(queue) + 4;
        let addr = GuestAddress(ring + 8 * u64::from(at % self.queue_size));
        let [head, len]: [u32; 2] = self.memory.read_obj(addr).unwrap();
        (head, len)
    }

    pub(crate) fn wait_used(&self, queue: u16, count: u16) {
        eventually("a used buffer", || self.used_idx(queue) == count);
    }

    pub(crate) fn wait_broken(&self) {
        eventually("DEVICE_NEEDS_RESET", || self.status() & 0x40 != 0);
    }

    pub(crate) fn bytes(&self, addr: u64, len: usize) -> Vec<u8> {
        let mut data = vec![0; len];
        self.memory
            .read_slice(&mut data, GuestAddress(addr))
            .unwrap();
        data
    }

    pub(crate) fn fill(&self, addr: u64, data: &[u8]) {
        self.memory.write_slice(data, GuestAddress(addr)).unwrap();
    }
}

pub(crate) type Desc = (u64, u32, u16, u16);
