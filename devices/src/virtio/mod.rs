//! Virtio 1.2 devices over PCI: the transport, its queues and threads, and the devices.
//!
//! A [`VirtioDevice`] says what the device is and, when the driver is ready, hands out
//! [`QueueWorker`]s. [`VirtioPci`] is the PCI function around it: it owns the registers, and runs
//! each worker on a thread of its own from DRIVER_OK to reset.

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

/// Feature bit: descriptors may lie in indirect tables (virtio 1.2, section 6).
pub const F_INDIRECT_DESC: u64 = 1 << 28;
/// Feature bit: used_event and avail_event suppress notifications.
pub const F_EVENT_IDX: u64 = 1 << 29;
/// Feature bit: the driver speaks virtio 1.0 or later.
pub const F_VERSION_1: u64 = 1 << 32;

/// What a device gets when its driver is ready.
pub struct ActivateContext {
    /// Guest memory.
    pub memory: GuestMemory,
    /// The features that were negotiated.
    pub features: u64,
    /// To tell the driver about configuration changes.
    pub interrupt: Interrupt,
}

/// What serves the queues of a device: see [`VirtioDevice::activate`].
pub type Workers = Vec<Box<dyn QueueWorker>>;

/// A virtio device, seen from its transport.
///
/// All calls come from one thread at a time, and none while a register access waits for another.
pub trait VirtioDevice: Send {
    /// Name for diagnostics and threads; short, unique within the machine.
    fn name(&self) -> &str;

    /// Device type (virtio 1.2, section 5).
    fn device_type(&self) -> u16;

    /// PCI class, subclass and programming interface.
    fn pci_class(&self) -> u32;

    /// The device's own feature bits; those of the transport are added to them.
    fn features(&self) -> u64;

    /// Largest size of each queue, powers of two.
    fn queue_sizes(&self) -> &[u16];

    /// Reads the device configuration; bytes beyond its end are left as they are (all ones).
    fn read_config(&self, offset: u64, data: &mut [u8]);

    /// Writes the device configuration.
    fn write_config(&mut self, offset: u64, data: &[u8]) {
        let _ = (offset, data);
    }

    /// Makes what serves the queues: one worker for all of them, or several, of which the worker
    /// `i` of `n` serves the queues whose index is `i` modulo `n`. They are dropped when the device
    /// is reset or paused; after a pause the device is activated again with the queues where they
    /// were, so that a worker must not keep anything but what is in guest memory.
    ///
    /// # Errors
    /// The host lacks what a worker needs; the driver then sees a device that needs a reset.
    fn activate(&mut self, context: ActivateContext) -> std::io::Result<Workers>;

    /// Back to the state after power-on. The worker is gone by now.
    fn reset(&mut self) {}

    /// The state.
    fn save(&self) -> DeviceState;

    /// What must be as it is in a state that is taken over, for errors.
    fn identity(&self) -> &'static str {
        "kind of device"
    }

    /// Takes over a state.
    ///
    /// # Errors
    /// The state is that of another device.
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
