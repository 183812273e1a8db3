//! Interrupts as devices see them.

use std::io;

/// A wired interrupt: an input pin of the interrupt controller.
pub trait IrqLine: Send + Sync {
    /// Sets the level of the line. Setting the current level does nothing.
    fn set_level(&self, high: bool);

    /// Raises and lowers the line: one edge.
    fn pulse(&self) {
        self.set_level(true);
        self.set_level(false);
    }
}

/// The message of a message-signalled interrupt: a write to an address (PCI Local Bus 3.0, section
/// 6.8).
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct MsiMessage {
    /// The address (GPA), in the interrupt controller's range.
    pub address: u64,
    /// Data.
    pub data: u32,
}

/// A message-signalled interrupt vector, provided by the hypervisor backend.
pub trait MsiVector: Send + Sync {
    /// Configures the vector as the guest programmed it; `None` masks it.
    ///
    /// # Errors
    /// The backend cannot route the message: it is out of routes, or the kernel refuses.
    fn configure(&self, message: Option<MsiMessage>) -> io::Result<()>;

    /// Delivers the interrupt as configured. Does nothing while it is masked.
    ///
    /// # Errors
    /// The backend cannot deliver it.
    fn trigger(&self) -> io::Result<()>;
}

/// Allocates message-signalled interrupt vectors for devices.
pub trait MsiController: Send + Sync {
    /// Allocates `count` vectors, all masked.
    ///
    /// # Errors
    /// The backend is out of routes.
    fn allocate(&self, count: u16) -> io::Result<Vec<Box<dyn MsiVector>>>;

    /// Sends a message at once, for controllers that keep their own vectors, such as the IOAPIC.
    ///
    /// # Errors
    /// The backend cannot deliver it.
    fn send(&self, message: MsiMessage) -> io::Result<()>;
}
