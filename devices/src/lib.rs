//! Device models of the fleetbox VMM.
//!
//! A device knows nothing of the hypervisor. It sees bus accesses ([`bus`]), guest memory,
//! interrupt lines ([`irq`]) and queue events ([`event`]); the VMM plugs a hypervisor backend into
//! these traits.

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
