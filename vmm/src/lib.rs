//! A minimal virtual machine monitor for stock Linux images.
//!
//! [`machine::Machine`] is a machine: describe it with a [`machine::MachineConfig`], start it on a
//! [`hypervisor::Hypervisor`], wait for it to end. [`boot`] finds the kernel that a disk image's
//! own boot loader would choose, [`preflight`] tells whether this host can run any of it.

pub mod boot;
pub mod hypervisor;
pub mod machine;
pub mod output;
pub mod preflight;
mod sync;
