//! PCI: configuration space, MSI-X and the bus.
//!
//! There is one segment with one bus. A host bridge is in slot 0, and single-function devices
//! follow. They are reached through configuration mechanism #1 (ports 0xCF8/0xCFC) and ECAM. Memory
//! BARs are 32 bits wide and in one window. [`PciBus::mmio`] finds a function by the current values
//! of its BARs, so a guest may move them. There are no wired interrupts; functions use MSI-X.

mod bus;
mod config;
mod device;
mod host_bridge;
mod msix;
mod registers;

pub use bus::{PciBus, PciBusState, PciError};
pub use config::{ConfigSpace, Identity};
pub use device::{BarMapping, BarSpec, PciDevice, SLOTS};
pub use host_bridge::HostBridge;
pub use msix::{MAX_MSIX_VECTORS, Msix};
pub(crate) use registers::{le_value, read_registers};

pub use crate::state::{ConfigSpaceState, MsixState, PciDeviceState, RestoreError};
