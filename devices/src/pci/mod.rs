//! PCI: configuration space, MSI-X and the bus.
//!
//! One segment with one bus: a host bridge in slot 0 and single-function devices after it, reached
//! by configuration mechanism #1 (ports 0xCF8/0xCFC) and by ECAM. Memory BARs are 32 bits wide and
//! lie in one window, where [`PciBus::mmio`] finds the function by the BARs' current values, so a
//! guest may move them. There are no wired interrupts: functions signal by MSI-X.

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
