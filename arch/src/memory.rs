//! Guest memory.

/// Guest physical memory as this crate fills it.
pub type GuestMemory = vm_memory::GuestMemoryMmap<()>;
