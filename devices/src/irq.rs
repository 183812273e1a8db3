//! Interrupts as devices see them.

use std::io;

/// A wired interrupt: an input pin of the interrupt controller.
pub trait IrqLine: Send + Sync {
    /// Drives the line. Setting it to the level it has is allowed and does nothing.
    fn set_level(&self, high: bool);

    /// Raises and lowers the line: one edge.
    fn pulse(&self) {
        self.set_level(true);
        self.set_level(false);
    }
}

/// What a message-signalled interrupt writes, and where (PCI Local Bus 3.0, section 6.8).
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct MsiMessage {
    /// Address, a GPA in the interrupt controller's range.
    pub address: u64,
    /// Data.
    pub data: u32,
}

/// One message-signalled interrupt vector, as provided by the hypervisor backend.
pub trait MsiVector: Send + Sync {
    /// Tells the backend what the guest programmed; `None` masks the vector.
    ///
    /// # Errors
    /// The backend cannot route the message (out of routes, or the kernel refuses it).
    fn configure(&self, message: Option<MsiMessage>) -> io::Result<()>;

    /// Delivers the interrupt as configured; does nothing while masked.
    ///
    /// # Errors
    /// The backend cannot deliver it.
    fn trigger(&self) -> io::Result<()>;
}

/// Where devices get their message-signalled interrupt vectors from.
pub trait MsiController: Send + Sync {
    /// Allocates `count` vectors, all masked.
    ///
    /// # Errors
    /// The backend has no more routes.
    fn allocate(&self, count: u16) -> io::Result<Vec<Box<dyn MsiVector>>>;

    /// Sends one message now, for controllers (the IOAPIC) that keep their own vectors.
    ///
    /// # Errors
    /// The backend cannot deliver it.
    fn send(&self, message: MsiMessage) -> io::Result<()>;
}
