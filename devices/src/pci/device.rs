//! The interface of a function on the bus.

use crate::state::{PciDeviceState, RestoreError};

/// Slots on the bus.
pub const SLOTS: u8 = 32;

/// A memory BAR that a function needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BarSpec {
    /// Index of the BAR, 0 to 5.
    pub index: u8,
    /// Size in bytes, a power of two of at least 4096.
    pub size: u32,
}

/// Where a memory BAR is currently decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BarMapping {
    /// Index of the BAR, 0 to 5.
    pub index: u8,
    /// First address (GPA).
    pub base: u64,
    /// Size in bytes.
    pub size: u32,
}

/// A single-function PCI device.
///
/// The guest chooses offsets and lengths. The bus makes sure that accesses never cross the end of
/// the configuration space or of a BAR.
pub trait PciDevice: Send + Sync {
    /// Name for log messages.
    fn name(&self) -> &str;

    /// Reads from the 256 bytes of configuration space.
    fn read_config(&self, offset: u8, data: &mut [u8]);

    /// Writes to the 256 bytes of configuration space.
    fn write_config(&self, offset: u8, data: &[u8]);

    /// The BARs that need addresses.
    fn bars(&self) -> Vec<BarSpec> {
        Vec::new()
    }

    /// Assigns an address to a BAR, as firmware does. It applies again after a reset.
    fn assign_bar(&self, index: u8, base: u32) {
        let _ = (index, base);
    }

    /// The BARs that are decoded now; empty while memory decoding is off.
    fn mapped_bars(&self) -> Vec<BarMapping> {
        Vec::new()
    }

    /// Reads from a BAR. `data` is all ones at first.
    fn read_bar(&self, index: u8, offset: u64, data: &mut [u8]) {
        let _ = (index, offset, data);
    }

    /// Writes to a BAR.
    fn write_bar(&self, index: u8, offset: u64, data: &[u8]) {
        let _ = (index, offset, data);
    }

    /// Resets everything to the state after power-on, with the BARs as assigned.
    fn reset(&self);

    /// Stops accessing guest memory, and waits until that is done.
    fn pause(&self) {}

    /// Undoes [`PciDevice::pause`], and starts the threads that a restored state needs.
    fn resume(&self) {}

    /// The state, which is consistent in itself. Pause first, so that it is consistent with guest
    /// memory.
    fn save(&self) -> PciDeviceState;

    /// Restores a saved state, and leaves the device paused.
    ///
    /// # Errors
    /// The state belongs to another device.
    fn restore(&self, state: &PciDeviceState) -> Result<(), RestoreError>;
}
