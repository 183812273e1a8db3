//! The common configuration registers and the interrupts of a virtio PCI function (virtio 1.2,
//! sections 4.1.4.3 to 4.1.4.5).

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU16, Ordering};
use std::sync::{Arc, Mutex};

use crate::pci::{Msix, le_value, read_registers};
use crate::state::QueueState;
use crate::sync::lock;

/// No MSI-X vector.
pub(crate) const NO_VECTOR: u16 = 0xffff;

/// Device status bits (virtio 1.2, section 2.1).
pub(crate) mod status {
    pub(crate) const DRIVER_OK: u8 = 4;
    pub(crate) const FEATURES_OK: u8 = 8;
    pub(crate) const NEEDS_RESET: u8 = 64;
}

const ISR_QUEUE: u8 = 1;
const ISR_CONFIG: u8 = 2;

/// The state shared by the transport's registers and a device's thread.
struct Shared {
    isr: AtomicU8,
    broken: AtomicBool,
    generation: AtomicU8,
    config_vector: AtomicU16,
    queue_vectors: Box<[AtomicU16]>,
    msix: Mutex<Msix>,
}

/// A handle with which a device interrupts its driver.
#[derive(Clone)]
pub struct Interrupt(Arc<Shared>);

impl Interrupt {
    /// Interrupts of a device with `queues` queues.
    pub(crate) fn new(queues: usize, msix: Msix) -> Self {
        let vector = || AtomicU16::new(NO_VECTOR);
        Self(Arc::new(Shared {
            isr: AtomicU8::new(0),
            broken: AtomicBool::new(false),
            generation: AtomicU8::new(0),
            config_vector: vector(),
            queue_vectors: std::iter::repeat_with(vector).take(queues).collect(),
            msix: Mutex::new(msix),
        }))
    }

    fn send(&self, vector: &AtomicU16, isr: u8) {
        let mut msix = lock(&self.0.msix);
        if msix.enabled() {
            msix.trigger(vector.load(Ordering::Acquire));
        } else {
            // There is no wired interrupt, but a driver may poll.
            self.0.isr.fetch_or(isr, Ordering::AcqRel);
        }
    }

    /// Signals that chains of queue `index` have been returned.
    pub fn queue(&self, index: u16) {
        if let Some(vector) = self.0.queue_vectors.get(usize::from(index)) {
            self.send(vector, ISR_QUEUE);
        }
    }

    /// Signals that the device configuration has changed.
    pub fn config_changed(&self) {
        self.0.generation.fetch_add(1, Ordering::AcqRel);
        self.send(&self.0.config_vector, ISR_CONFIG);
    }

    /// Signals that the device cannot continue (virtio 1.2, section 2.1.1, DEVICE_NEEDS_RESET).
    pub fn needs_reset(&self) {
        if !self.0.broken.swap(true, Ordering::AcqRel) {
            self.send(&self.0.config_vector, ISR_CONFIG);
        }
    }

    pub(crate) fn broken(&self) -> bool {
        self.0.broken.load(Ordering::Acquire)
    }

    pub(crate) fn set_broken(&self, broken: bool) {
        self.0.broken.store(broken, Ordering::Release);
    }

    pub(crate) fn generation(&self) -> u8 {
        self.0.generation.load(Ordering::Acquire)
    }

    pub(crate) fn set_generation(&self, value: u8) {
        self.0.generation.store(value, Ordering::Release);
    }

    pub(crate) fn isr(&self) -> u8 {
        self.0.isr.load(Ordering::Acquire)
    }

    pub(crate) fn set_isr(&self, value: u8) {
        self.0.isr.store(value, Ordering::Release);
    }

    /// The ISR status, which reading clears.
    pub(crate) fn take_isr(&self) -> u8 {
        self.0.isr.swap(0, Ordering::AcqRel)
    }

    pub(crate) fn msix(&self) -> std::sync::MutexGuard<'_, Msix> {
        lock(&self.0.msix)
    }

    pub(crate) fn config_vector(&self) -> u16 {
        self.0.config_vector.load(Ordering::Acquire)
    }

    pub(crate) fn set_config_vector(&self, vector: u16) {
        self.set_vector(&self.0.config_vector, vector);
    }

    pub(crate) fn queue_vector(&self, queue: usize) -> u16 {
        let vector = self.0.queue_vectors.get(queue);
        vector.map_or(NO_VECTOR, |v| v.load(Ordering::Acquire))
    }

    pub(crate) fn set_queue_vector(&self, queue: usize, vector: u16) {
        if let Some(to) = self.0.queue_vectors.get(queue) {
            self.set_vector(to, vector);
        }
    }

    /// A vector that does not exist reads back as none (section 4.1.5.1.2.1).
    fn set_vector(&self, to: &AtomicU16, vector: u16) {
        let exists = vector < lock(&self.0.msix).len();
        to.store(if exists { vector } else { NO_VECTOR }, Ordering::Release);
    }

    /// Resets all vectors and causes, but not MSI-X itself, which belongs to the PCI function.
    pub(crate) fn reset(&self) {
        self.set_isr(0);
        self.set_broken(false);
        self.set_config_vector(NO_VECTOR);
        for vector in &self.0.queue_vectors {
            vector.store(NO_VECTOR, Ordering::Release);
        }
    }
}

impl QueueState {
    /// A queue that the driver has not set up.
    pub(crate) fn new(max_size: u16) -> Self {
        Self {
            max_size,
            size: max_size,
            enabled: false,
            vector: NO_VECTOR,
            desc_table: 0,
            avail_ring: 0,
            used_ring: 0,
            next_avail: 0,
            next_used: 0,
        }
    }
}

/// The registers of the common configuration that have no side effects of their own.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct CommonConfig {
    pub(crate) device_feature_select: u32,
    pub(crate) driver_feature_select: u32,
    pub(crate) driver_features: u64,
    pub(crate) status: u8,
    pub(crate) queue_select: u16,
    pub(crate) queues: Vec<QueueState>,
}

/// What the transport must do after a write to the common configuration.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    None,
    /// The driver wrote the device status.
    Status(u8),
}

impl CommonConfig {
    pub(crate) fn new(queue_sizes: &[u16]) -> Self {
        Self {
            device_feature_select: 0,
            driver_feature_select: 0,
            driver_features: 0,
            status: 0,
            queue_select: 0,
            queues: queue_sizes.iter().copied().map(QueueState::new).collect(),
        }
    }

    /// Reads at `offset`. Bytes beyond the registers are not changed.
    pub(crate) fn read(&self, interrupt: &Interrupt, offered: u64, offset: u64, data: &mut [u8]) {
        let half = |features: u64, select: u32| match select {
            0 => features as u32,
            1 => (features >> 32) as u32,
            _ => 0,
        };
        let mut registers = [0; 56];
        let mut put = |at: usize, bytes: &[u8]| {
            registers[at..at + bytes.len()].copy_from_slice(bytes);
        };
        put(0, &self.device_feature_select.to_le_bytes());
        put(4, &half(offered, self.device_feature_select).to_le_bytes());
        put(8, &self.driver_feature_select.to_le_bytes());
        let driver = half(self.driver_features, self.driver_feature_select);
        put(12, &driver.to_le_bytes());
        put(16, &interrupt.config_vector().to_le_bytes());
        put(18, &(self.queues.len() as u16).to_le_bytes());
        let broken = if interrupt.broken() {
            status::NEEDS_RESET
        } else {
            0
        };
        put(20, &[self.status | broken, interrupt.generation()]);
        put(22, &self.queue_select.to_le_bytes());
        // A queue that does not exist has size 0.
        let select = usize::from(self.queue_select);
        put(26, &interrupt.queue_vector(select).to_le_bytes());
        if let Some(queue) = self.queues.get(select) {
            put(24, &queue.size.to_le_bytes());
            put(28, &u16::from(queue.enabled).to_le_bytes());
            put(30, &self.queue_select.to_le_bytes());
            put(32, &queue.desc_table.to_le_bytes());
            put(40, &queue.avail_ring.to_le_bytes());
            put(48, &queue.used_ring.to_le_bytes());
        }
        read_registers(&registers, offset, data);
    }

    /// Writes a register with an access of the register's width (section 4.1.3.1), or one half of a
    /// 64-bit register. Other accesses are dropped, and so are changes that the driver may no
    /// longer make.
    pub(crate) fn write(&mut self, interrupt: &Interrupt, offset: u64, data: &[u8]) -> Effect {
        let value = le_value(data);
        match (offset, data.len()) {
            (0, 4) => self.device_feature_select = value as u32,
            (8, 4) => self.driver_feature_select = value as u32,
            (12, 4) if self.status & status::FEATURES_OK == 0 => {
                let features = &mut self.driver_features;
                match self.driver_feature_select {
                    0 => *features = *features >> 32 << 32 | value,
                    1 => *features = value << 32 | *features & 0xffff_ffff,
                    _ => {}
                }
            }
            (16, 2) => interrupt.set_config_vector(value as u16),
            (20, 1) => return Effect::Status(value as u8),
            (22, 2) => self.queue_select = value as u16,
            (26, 2) => interrupt.set_queue_vector(self.queue_select.into(), value as u16),
            _ => self.write_queue(offset, data.len(), value),
        }
        Effect::None
    }

    fn write_queue(&mut self, offset: u64, len: usize, value: u64) {
        if self.status & status::DRIVER_OK != 0 {
            return;
        }
        let Some(queue) = self.queues.get_mut(usize::from(self.queue_select)) else {
            return;
        };
        if queue.enabled {
            return;
        }
        let low = |address: u64| address >> 32 << 32 | value;
        let high = |address: u64| value << 32 | address & 0xffff_ffff;
        match (offset, len) {
            // Checked when the queue is used.
            (24, 2) => queue.size = value as u16,
            // A driver cannot disable a queue, other than by resetting the device.
            (28, 2) => queue.enabled = value == 1,
            (32, 4) => queue.desc_table = low(queue.desc_table),
            (36, 4) => queue.desc_table = high(queue.desc_table),
            (32, 8) => queue.desc_table = value,
            (40, 4) => queue.avail_ring = low(queue.avail_ring),
            (44, 4) => queue.avail_ring = high(queue.avail_ring),
            (40, 8) => queue.avail_ring = value,
            (48, 4) => queue.used_ring = low(queue.used_ring),
            (52, 4) => queue.used_ring = high(queue.used_ring),
            (48, 8) => queue.used_ring = value,
            _ => {}
        }
    }
}
