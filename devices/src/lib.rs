//! Device models of the fleetbox VMM.
//!
//! A device does not depend on the hypervisor. It sees bus accesses ([`bus`]), guest memory,
//! interrupt lines ([`irq`]) and queue events ([`event`]). The VMM implements these traits with a
//! hypervisor backend.

pub mod acpi;
pub mod block;
pub mod bus;
pub mod event;
pub mod ioapic;
pub mod irq;
pub mod legacy;
pub mod pci;
pub mod state;
mod sync;
pub mod virtio;

pub use fleetbox_arch::GuestMemory;
