//! Describes how a machine of each architecture looks to its guest.
//!
//! It covers the memory map, boot protocols, firmware tables and register state, as plain data and
//! writes to guest memory. Nothing here calls a hypervisor, so everything can be tested without
//! one.

mod memory;
pub mod x86_64;

pub use memory::{ALIGNMENT, GuestMemory, MemoryError, Region, allocate};
