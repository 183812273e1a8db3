//! The host bridge: a function that only marks the start of the bus.

use std::sync::Mutex;

use super::config::{ConfigSpace, Identity};
use super::device::PciDevice;
use crate::state::{PciDeviceState, RestoreError};
use crate::sync::lock;

/// The function at 00:00.0.
pub struct HostBridge {
    config: Mutex<ConfigSpace>,
}

impl HostBridge {
    /// A host bridge with the ids of a generic PCI Express host of a virtual machine.
    pub fn new() -> Self {
        let config = ConfigSpace::new(Identity {
            vendor: 0x1b36,
            device: 0x0008,
            class: 0x06_00_00,
            revision: 0,
            subsystem: (0x1af4, 0x1100),
        });
        Self {
            config: Mutex::new(config),
        }
    }
}

impl Default for HostBridge {
    fn default() -> Self {
        Self::new()
    }
}

impl PciDevice for HostBridge {
    fn name(&self) -> &str {
        "pci-host-bridge"
    }

    fn read_config(&self, offset: u8, data: &mut [u8]) {
        lock(&self.config).read(offset, data);
    }

    fn write_config(&self, offset: u8, data: &[u8]) {
        lock(&self.config).write(offset, data);
    }

    fn reset(&self) {
        lock(&self.config).reset();
    }

    fn save(&self) -> PciDeviceState {
        PciDeviceState::HostBridge(lock(&self.config).save())
    }

    fn restore(&self, state: &PciDeviceState) -> Result<(), RestoreError> {
        match state {
            PciDeviceState::HostBridge(state) => lock(&self.config).restore(state, self.name()),
            _ => Err(RestoreError::Mismatch {
                device: self.name().to_owned(),
                what: "kind of device".to_owned(),
            }),
        }
    }
}
