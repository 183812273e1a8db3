//! Virtio 1.2 devices over PCI: the transport, its queues and threads, and the devices.
//!
//! A [`VirtioDevice`] describes the device and, when the driver is ready, returns [`QueueWorker`]s.
//! [`VirtioPci`] is the PCI function around it. It owns the registers, and runs each worker on a
//! separate thread from DRIVER_OK to reset.

mod blk;
mod net;
mod pci;
mod queue;
mod registers;
mod rng;
#[cfg(test)]
pub(crate) mod testing;
mod worker;

pub use blk::{Blk, MAX_QUEUES};
pub use net::{LinkFormat, Net};
pub use pci::{NoIoEvents, VirtioEnv, VirtioPci};
pub use queue::{Buffer, Chain, QueueError, Virtqueue};
pub use registers::Interrupt;
pub use rng::Rng;
pub use worker::{Interest, QueueWorker};

use fleetbox_arch::GuestMemory;

use crate::state::RestoreError;
pub use crate::state::{BlkState, DeviceState, NetState, QueueState, VirtioPciState};

/// Feature bit: descriptors may be in indirect tables (virtio 1.2, section 6).
pub const F_INDIRECT_DESC: u64 = 1 << 28;
/// Feature bit: used_event and avail_event suppress notifications.
pub const F_EVENT_IDX: u64 = 1 << 29;
/// Feature bit: the driver speaks virtio 1.0 or later.
pub const F_VERSION_1: u64 = 1 << 32;

/// What a device gets once its driver is ready.
pub struct ActivateContext {
    /// Guest memory.
    pub memory: GuestMemory,
    /// The negotiated features.
    pub features: u64,
    /// Notifies the driver of configuration changes.
    pub interrupt: Interrupt,
}

/// The workers for the queues of a device, see [`VirtioDevice::activate`].
pub type Workers = Vec<Box<dyn QueueWorker>>;

/// The interface of a virtio device for its transport.
///
/// Only one thread calls it at a time, and no call is made while a register access waits for
/// another.
pub trait VirtioDevice: Send {
    /// Name for log messages and threads. It must be short, and unique within the machine.
    fn name(&self) -> &str;

    /// Device type (virtio 1.2, section 5).
    fn device_type(&self) -> u16;

    /// PCI class, subclass and programming interface.
    fn pci_class(&self) -> u32;

    /// The device's own feature bits. Those of the transport are added.
    fn features(&self) -> u64;

    /// Largest size of each queue, powers of two.
    fn queue_sizes(&self) -> &[u16];

    /// Reads the device configuration. Bytes beyond its end are left as they are (all ones).
    fn read_config(&self, offset: u64, data: &mut [u8]);

    /// Writes the device configuration.
    fn write_config(&mut self, offset: u64, data: &[u8]) {
        let _ = (offset, data);
    }

    /// Creates the workers for the queues: one for all queues, or several. Worker `i` of `n` serves
    /// the queues whose index modulo `n` is `i`. Workers are dropped when the device is reset or
    /// paused. After a pause the device is activated again and the queues continue where they were,
    /// so a worker must keep all its state in guest memory.
    ///
    /// # Errors
    /// The host lacks a resource that a worker needs. The driver then sees a device that needs a
    /// reset.
    fn activate(&mut self, context: ActivateContext) -> std::io::Result<Workers>;

    /// Resets the device to its state after power-on. Its workers have been dropped.
    fn reset(&mut self) {}

    /// The state.
    fn save(&self) -> DeviceState;

    /// For errors: the property of a state that must match the device.
    fn identity(&self) -> &'static str {
        "kind of device"
    }

    /// Restores a state.
    ///
    /// # Errors
    /// The state belongs to another device.
    fn restore(&mut self, state: &DeviceState) -> Result<(), RestoreError> {
        if *state == self.save() {
            return Ok(());
        }
        Err(RestoreError::Mismatch {
            device: self.name().to_owned(),
            what: self.identity().to_owned(),
        })
    }
}
