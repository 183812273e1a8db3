//! Bare-metal test payloads, and the little that they share: an entry point, a serial port,
//! interrupts, PCI and virtqueues.
//!
//! They are built for `x86_64-unknown-none` (soft float, no red zone), since the interpreter of a
//! software-only KVM runs next to no SSE. Built for the host this crate is empty; its tests there
//! run the payloads on the host's KVM.
#![no_std]

#[cfg(target_os = "none")]
mod rt;
#[cfg(target_os = "none")]
pub use rt::*;
