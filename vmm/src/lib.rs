//! A minimal virtual machine monitor for stock Linux images.
//!
//! Describe a [`machine::Machine`] with a [`machine::MachineConfig`], start it on a
//! [`hypervisor::Hypervisor`], and wait for it to end. [`boot`] finds the kernel that a disk
//! image's own boot loader would choose. [`preflight`] checks whether this host can run VMs.

pub mod boot;
pub mod hypervisor;
pub mod machine;
pub mod output;
pub mod preflight;
mod sync;
