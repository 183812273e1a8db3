//! The PCI function around a virtio device (virtio 1.2, section 4.1).

use fleetbox_arch::GuestMemory;
use std::io;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};

use super::registers::{CommonConfig, Effect, NO_VECTOR, status};
use super::worker::Worker;
use super::{
    ActivateContext, F_EVENT_IDX, F_INDIRECT_DESC, F_VERSION_1, Interrupt, VirtioDevice, Virtqueue,
};
use crate::event::{Event, IoEvents, IoTrigger};
use crate::irq::MsiController;
use crate::pci::{
    BarMapping, BarSpec, ConfigSpace, Identity, MAX_MSIX_VECTORS, Msix, PciDevice, le_value,
};
use crate::state::{PciDeviceState, RestoreError, VirtioPciState};
use crate::sync::lock;

const TRANSPORT_FEATURES: u64 = F_VERSION_1 | F_EVENT_IDX | F_INDIRECT_DESC;

// Layout of BAR 0.
const BAR_SIZE: u32 = 0x8000;
const COMMON: u64 = 0x0000;
const ISR: u64 = 0x1000;
const DEVICE: u64 = 0x2000;
const NOTIFY: u64 = 0x3000;
const MSIX_TABLE: u64 = 0x4000;
const MSIX_PBA: u64 = 0x5000;
const REGION: u64 = 0x1000;
const NOTIFY_MULTIPLIER: u32 = 4;

// Capabilities (section 4.1.4).
const CAP_VENDOR: u8 = 0x09;
const CAP_MSIX: u8 = 0x11;
const CFG_COMMON: u8 = 1;
const CFG_NOTIFY: u8 = 2;
const CFG_ISR: u8 = 3;
const CFG_DEVICE: u8 = 4;
const CFG_PCI: u8 = 5;

/// The resources that the machine provides to each virtio function.
#[derive(Clone)]
pub struct VirtioEnv {
    /// Guest memory.
    pub memory: GuestMemory,
    /// Turns the driver's notifications into events.
    pub io_events: Arc<dyn IoEvents>,
    /// Interrupt vectors.
    pub msi: Arc<dyn MsiController>,
}

/// For hypervisors that cannot signal events. Notifications come as ordinary writes.
#[derive(Debug, Default, Clone, Copy)]
pub struct NoIoEvents;

impl IoEvents for NoIoEvents {
    fn register(&self, _: IoTrigger, _: &Event) -> io::Result<()> {
        Ok(())
    }
    fn unregister(&self, _: IoTrigger, _: &Event) -> io::Result<()> {
        Ok(())
    }
}

struct Transport {
    device: Box<dyn VirtioDevice>,
    common: CommonConfig,
    /// The device's threads while it is running.
    workers: Vec<Worker>,
    paused: bool,
    /// The base of BAR 0 for which the notification addresses are registered.
    registered: Option<u64>,
    /// The registered addresses. A backend may refuse some.
    registrations: Vec<(IoTrigger, Event)>,
}

/// A virtio device as a PCI function with one BAR of 32 KiB.
///
/// Interrupts need MSI-X, because no wire is connected. The device's threads run from DRIVER_OK to
/// reset, pause, or drop.
pub struct VirtioPci {
    name: String,
    config: Mutex<ConfigSpace>,
    msix_cap: u8,
    pci_cfg_cap: u8,
    offered: u64,
    interrupt: Interrupt,
    events: Vec<Event>,
    env: VirtioEnv,
    transport: Mutex<Transport>,
}

fn vendor_capability(kind: u8, offset: u64, len: u32, more: &[u8]) -> Vec<u8> {
    // cap_len, cfg_type, bar, id and padding, offset, length.
    let mut body = vec![16 + more.len() as u8, kind, 0, 0, 0, 0];
    body.extend((offset as u32).to_le_bytes());
    body.extend(len.to_le_bytes());
    body.extend(more);
    body
}

impl VirtioPci {
    /// The function for `device`.
    ///
    /// # Errors
    /// Interrupt vectors or events cannot be allocated, or the device has more than 63 queues.
    pub fn new(device: Box<dyn VirtioDevice>, env: &VirtioEnv) -> io::Result<Arc<Self>> {
        let name = device.name().to_owned();
        let queues = device.queue_sizes().len();
        let vectors = u16::try_from(queues + 1)
            .ok()
            .filter(|n| *n <= MAX_MSIX_VECTORS)
            .ok_or_else(|| io::Error::other(format!("{name}: {queues} queues are too many")))?;
        let events = (0..queues)
            .map(|_| Event::new())
            .collect::<io::Result<_>>()?;
        let msix = Msix::new(env.msi.allocate(vectors)?);

        let mut config = ConfigSpace::new(Identity {
            vendor: 0x1af4,
            device: 0x1040 + device.device_type(),
            class: device.pci_class(),
            revision: 1,
            subsystem: (0x1af4, 0x1100),
        });
        config.add_bar(BarSpec {
            index: 0,
            size: BAR_SIZE,
        });
        let region = REGION as u32;
        let multiplier = NOTIFY_MULTIPLIER.to_le_bytes();
        for body in [
            vendor_capability(CFG_COMMON, COMMON, 56, &[]),
            vendor_capability(CFG_ISR, ISR, region, &[]),
            vendor_capability(CFG_DEVICE, DEVICE, region, &[]),
            vendor_capability(CFG_NOTIFY, NOTIFY, region, &multiplier),
        ] {
            config.add_capability(CAP_VENDOR, &body, &[]);
        }
        // The window into BARs: bar, offset, length and data are the driver's to write.
        let mut writable = [0; 18];
        writable[2] = 0xff;
        writable[6..].fill(0xff);
        let body = vendor_capability(CFG_PCI, 0, 0, &[0; 4]);
        let pci_cfg_cap = config.add_capability(CAP_VENDOR, &body, &writable);
        let (body, writable) = msix.capability(0, MSIX_TABLE as u32, MSIX_PBA as u32);
        let msix_cap = config.add_capability(CAP_MSIX, &body, &writable);

        Ok(Arc::new(Self {
            config: Mutex::new(config),
            msix_cap,
            pci_cfg_cap,
            offered: device.features() | TRANSPORT_FEATURES,
            interrupt: Interrupt::new(queues, msix),
            events,
            env: env.clone(),
            transport: Mutex::new(Transport {
                common: CommonConfig::new(device.queue_sizes()),
                device,
                workers: Vec::new(),
                paused: false,
                registered: None,
                registrations: Vec::new(),
            }),
            name,
        }))
    }

    fn bar_base(&self) -> Option<u64> {
        let mapped = lock(&self.config).mapped_bars();
        mapped.first().map(|bar| bar.base)
    }

    /// Registers the notification addresses while a worker is running, and moves them with the BAR.
    fn update_registrations(&self, transport: &mut Transport) {
        let runs = !transport.workers.is_empty();
        let wanted = runs.then(|| self.bar_base()).flatten();
        if wanted == transport.registered {
            return;
        }
        for (trigger, event) in transport.registrations.drain(..) {
            if let Err(error) = self.env.io_events.unregister(trigger, &event) {
                tracing::warn!(device = self.name, ?trigger, %error, "cannot unregister a queue");
            }
        }
        transport.registered = wanted;
        let Some(base) = wanted else { return };
        for (queue, event) in (0..).zip(&self.events) {
            let trigger = IoTrigger {
                address: base + NOTIFY + queue * u64::from(NOTIFY_MULTIPLIER),
                len: 0,
            };
            match self.env.io_events.register(trigger, event) {
                Ok(()) => transport.registrations.push((trigger, event.clone())),
                // The notifications then come as ordinary writes.
                Err(error) => {
                    tracing::debug!(device = self.name, ?trigger, %error, "cannot register a queue");
                }
            }
        }
    }

    fn start(&self, transport: &mut Transport) {
        let common = &transport.common;
        if !transport.workers.is_empty()
            || transport.paused
            || common.status & status::DRIVER_OK == 0
            || self.interrupt.broken()
        {
            return;
        }
        if let Err(error) = self.try_start(transport) {
            tracing::warn!(device = self.name, %error, "virtio device needs a reset");
            self.interrupt.needs_reset();
        }
        self.update_registrations(transport);
    }

    fn try_start(&self, transport: &mut Transport) -> Result<(), super::QueueError> {
        let stop = Arc::new(AtomicBool::new(false));
        let features = transport.common.driver_features;
        let queues = (0..)
            .zip(&transport.common.queues)
            .zip(&self.events)
            .map(|((index, state), event)| {
                Virtqueue::new(
                    index,
                    state,
                    features,
                    self.env.memory.clone(),
                    event.clone(),
                    self.interrupt.clone(),
                    stop.clone(),
                )
            })
            .collect::<Result<Vec<_>, _>>()?;
        let workers = transport.device.activate(ActivateContext {
            memory: self.env.memory.clone(),
            features,
            interrupt: self.interrupt.clone(),
        })?;
        let count = workers.len();
        let mut groups: Vec<Vec<Virtqueue>> = workers.iter().map(|_| Vec::new()).collect();
        for (index, queue) in queues.into_iter().enumerate() {
            if let Some(group) = groups.get_mut(index % count.max(1)) {
                group.push(queue);
            }
        }
        let mut running = Vec::with_capacity(count);
        for (index, (worker, queues)) in workers.into_iter().zip(groups).enumerate() {
            // A driver need not use all queues; the first thread stands for the device.
            if index > 0 && !queues.iter().any(Virtqueue::is_enabled) {
                continue;
            }
            let name = match index {
                0 => self.name.clone(),
                _ => format!("{}.{index}", self.name),
            };
            let (interrupt, stop) = (self.interrupt.clone(), stop.clone());
            running.push(Worker::start(&name, worker, queues, interrupt, stop)?);
        }
        transport.workers = running;
        Ok(())
    }

    /// Ends the threads, and saves the progress of their queues.
    fn stop(&self, transport: &mut Transport) {
        for worker in transport.workers.drain(..) {
            for queue in worker.stop() {
                let state = transport.common.queues.get_mut(usize::from(queue.index()));
                if let (Some(state), Some((avail, used))) = (state, queue.position()) {
                    state.next_avail = avail;
                    state.next_used = used;
                }
            }
        }
        self.update_registrations(transport);
    }

    fn reset_device(&self, transport: &mut Transport) {
        self.stop(transport);
        transport.device.reset();
        transport.common = CommonConfig::new(transport.device.queue_sizes());
        self.interrupt.reset();
        for event in &self.events {
            event.take();
        }
    }

    fn write_status(&self, transport: &mut Transport, new: u8) {
        if new == 0 {
            self.reset_device(transport);
            return;
        }
        let old = transport.common.status;
        let new = new & !status::NEEDS_RESET;
        if old & !new != 0 {
            tracing::debug!(device = self.name, old, new, "driver clears status bits");
            return;
        }
        let mut accepted = new;
        let features = transport.common.driver_features;
        if new & !old & status::FEATURES_OK != 0
            && (features & !self.offered != 0 || features & F_VERSION_1 == 0)
        {
            // Reading the bit back tells the driver.
            accepted &= !status::FEATURES_OK;
        }
        if accepted & status::FEATURES_OK == 0 {
            accepted &= !status::DRIVER_OK;
        }
        transport.common.status = accepted;
        self.start(transport);
    }

    fn notify(&self, offset: u64) {
        let queue = usize::try_from(offset / u64::from(NOTIFY_MULTIPLIER)).ok();
        if let Some(event) = queue.and_then(|q| self.events.get(q)) {
            event.signal();
        }
    }

    /// The BAR access, as offset and length, behind the window in configuration space, if it is
    /// valid.
    fn window(&self) -> Option<(u64, usize)> {
        let mut cap = [0; 16];
        lock(&self.config).read(self.pci_cfg_cap, &mut cap);
        let offset = le_value(&cap[8..12]);
        let len = le_value(&cap[12..16]);
        let fits = cap[4] == 0
            && matches!(len, 1 | 2 | 4)
            && offset.is_multiple_of(len)
            && offset + len <= BAR_SIZE.into();
        fits.then_some((offset, len as usize))
    }

    fn touches_window(&self, offset: u8, len: usize) -> bool {
        let data = usize::from(self.pci_cfg_cap) + 16;
        usize::from(offset) < data + 4 && usize::from(offset) + len > data
    }

    fn mismatch(&self, what: &str) -> RestoreError {
        RestoreError::Mismatch {
            device: self.name.clone(),
            what: what.to_owned(),
        }
    }
}

impl PciDevice for VirtioPci {
    fn name(&self) -> &str {
        &self.name
    }

    fn read_config(&self, offset: u8, data: &mut [u8]) {
        if self.touches_window(offset, data.len())
            && let Some((at, len)) = self.window()
        {
            let mut value = [0xff; 4];
            self.read_bar(0, at, &mut value[..len]);
            lock(&self.config).store(self.pci_cfg_cap + 16, &value[..len]);
        }
        lock(&self.config).read(offset, data);
    }

    fn write_config(&self, offset: u8, data: &[u8]) {
        lock(&self.config).write(offset, data);
        if self.touches_window(offset, data.len())
            && let Some((at, len)) = self.window()
        {
            let mut value = [0; 4];
            lock(&self.config).read(self.pci_cfg_cap + 16, &mut value);
            self.write_bar(0, at, &value[..len]);
        }
        let control = self.msix_cap + 2;
        if offset < control + 2 && usize::from(offset) + data.len() > control.into() {
            let mut value = [0; 2];
            // Held together, so that two vCPUs cannot leave MSI-X other than the register says.
            let config = lock(&self.config);
            config.read(control, &mut value);
            self.interrupt.msix().set_control(u16::from_le_bytes(value));
        }
        if offset < 0x28 {
            self.update_registrations(&mut lock(&self.transport));
        }
    }

    fn bars(&self) -> Vec<BarSpec> {
        lock(&self.config).bars()
    }

    fn assign_bar(&self, index: u8, base: u32) {
        lock(&self.config).assign_bar(index, base);
        self.update_registrations(&mut lock(&self.transport));
    }

    fn mapped_bars(&self) -> Vec<BarMapping> {
        lock(&self.config).mapped_bars()
    }

    fn read_bar(&self, _index: u8, offset: u64, data: &mut [u8]) {
        let within = offset % REGION;
        match offset - within {
            COMMON => {
                let transport = lock(&self.transport);
                let common = &transport.common;
                common.read(&self.interrupt, self.offered, within, data);
            }
            ISR if within == 0 => {
                data.fill(0);
                if let Some(first) = data.first_mut() {
                    *first = self.interrupt.take_isr();
                }
            }
            DEVICE => lock(&self.transport).device.read_config(within, data),
            MSIX_TABLE => self.interrupt.msix().read_table(within, data),
            MSIX_PBA => self.interrupt.msix().read_pba(within, data),
            _ => {}
        }
    }

    fn write_bar(&self, _index: u8, offset: u64, data: &[u8]) {
        let within = offset % REGION;
        match offset - within {
            COMMON => {
                let mut transport = lock(&self.transport);
                match transport.common.write(&self.interrupt, within, data) {
                    Effect::Status(value) => self.write_status(&mut transport, value),
                    Effect::None => {}
                }
            }
            DEVICE => {
                let mut transport = lock(&self.transport);
                if transport.common.status & status::FEATURES_OK != 0 {
                    transport.device.write_config(within, data);
                }
            }
            NOTIFY => self.notify(within),
            MSIX_TABLE => self.interrupt.msix().write_table(within, data),
            _ => {}
        }
    }

    fn reset(&self) {
        let mut transport = lock(&self.transport);
        self.reset_device(&mut transport);
        transport.paused = false;
        self.interrupt.set_generation(0);
        self.interrupt.msix().reset();
        lock(&self.config).reset();
    }

    fn pause(&self) {
        let mut transport = lock(&self.transport);
        transport.paused = true;
        self.stop(&mut transport);
    }

    fn resume(&self) {
        let mut transport = lock(&self.transport);
        transport.paused = false;
        self.start(&mut transport);
    }

    fn save(&self) -> PciDeviceState {
        let mut transport = lock(&self.transport);
        self.stop(&mut transport);
        let common = &transport.common;
        let mut queues = common.queues.clone();
        for (index, queue) in queues.iter_mut().enumerate() {
            queue.vector = self.interrupt.queue_vector(index);
        }
        let state = VirtioPciState {
            config: lock(&self.config).save(),
            msix: self.interrupt.msix().save(),
            device_feature_select: common.device_feature_select,
            driver_feature_select: common.driver_feature_select,
            driver_features: common.driver_features,
            status: common.status,
            broken: self.interrupt.broken(),
            queue_select: common.queue_select,
            isr: self.interrupt.isr(),
            generation: self.interrupt.generation(),
            config_vector: self.interrupt.config_vector(),
            queues,
            device: transport.device.save(),
        };
        self.start(&mut transport);
        PciDeviceState::Virtio(Box::new(state))
    }

    fn restore(&self, state: &PciDeviceState) -> Result<(), RestoreError> {
        let PciDeviceState::Virtio(state) = state else {
            return Err(self.mismatch("kind of device"));
        };
        let mut transport = lock(&self.transport);
        if !state.queues.iter().map(|q| q.max_size).eq(transport
            .device
            .queue_sizes()
            .iter()
            .copied())
        {
            return Err(self.mismatch("its queues"));
        }
        if state.status & status::FEATURES_OK != 0 && state.driver_features & !self.offered != 0 {
            return Err(self.mismatch("its features"));
        }
        transport.paused = true;
        self.reset_device(&mut transport);
        transport.device.restore(&state.device)?;
        lock(&self.config).restore(&state.config, &self.name)?;
        self.interrupt.msix().restore(&state.msix, &self.name)?;
        self.interrupt.set_isr(state.isr);
        self.interrupt.set_broken(state.broken);
        self.interrupt.set_generation(state.generation);
        self.interrupt.set_config_vector(state.config_vector);
        for (index, queue) in state.queues.iter().enumerate() {
            self.interrupt.set_queue_vector(index, queue.vector);
        }
        let mut queues = state.queues.clone();
        // The vector lives with the interrupts; here it would only go stale.
        queues.iter_mut().for_each(|q| q.vector = NO_VECTOR);
        transport.common = CommonConfig {
            device_feature_select: state.device_feature_select,
            driver_feature_select: state.driver_feature_select,
            driver_features: state.driver_features,
            status: state.status,
            queue_select: state.queue_select,
            queues,
        };
        Ok(())
    }
}

impl Drop for VirtioPci {
    fn drop(&mut self) {
        let mut transport = lock(&self.transport);
        self.stop(&mut transport);
    }
}

#[cfg(test)]
#[path = "pci_test.rs"]
mod tests;
