//! What a function is to the bus.

use crate::state::{PciDeviceState, RestoreError};

/// Slots on the bus.
pub const SLOTS: u8 = 32;

/// A memory BAR of a function: what it needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BarSpec {
    /// Index of the BAR, 0 to 5.
    pub index: u8,
    /// Size in bytes, a power of two of at least 4096.
    pub size: u32,
}

/// Where a memory BAR is decoded at present.
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
/// Offsets and lengths are the guest's choice. Accesses never cross the end of the configuration
/// space or of a BAR, which the bus sees to.
pub trait PciDevice: Send + Sync {
    /// Name for diagnostics.
    fn name(&self) -> &str;

    /// Reads from the 256 bytes of configuration space.
    fn read_config(&self, offset: u8, data: &mut [u8]);

    /// Writes to the 256 bytes of configuration space.
    fn write_config(&self, offset: u8, data: &[u8]);

    /// The BARs that need an address.
    fn bars(&self) -> Vec<BarSpec> {
        Vec::new()
    }

    /// Puts a BAR at an address: what firmware does, and what holds again after a reset.
    fn assign_bar(&self, index: u8, base: u32) {
        let _ = (index, base);
    }

    /// The BARs that respond now; none while memory decoding is off.
    fn mapped_bars(&self) -> Vec<BarMapping> {
        Vec::new()
    }

    /// Reads from a BAR; `data` is all ones before.
    fn read_bar(&self, index: u8, offset: u64, data: &mut [u8]) {
        let _ = (index, offset, data);
    }

    /// Writes to a BAR.
    fn write_bar(&self, index: u8, offset: u64, data: &[u8]) {
        let _ = (index, offset, data);
    }

    /// Puts everything back to the state after power-on; BARs to where they were assigned.
    fn reset(&self);

    /// Stops touching guest memory and waits until that is so.
    fn pause(&self) {}

    /// Undoes [`PciDevice::pause`], and starts what a restored state says is running.
    fn resume(&self) {}

    /// The state, consistent in itself; pause first to have it consistent with guest memory.
    fn save(&self) -> PciDeviceState;

    /// Takes over a saved state and leaves the device paused.
    ///
    /// # Errors
    /// The state is that of another device.
    fn restore(&self, state: &PciDeviceState) -> Result<(), RestoreError>;
}
