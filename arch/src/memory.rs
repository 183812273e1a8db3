//! Guest physical memory.

/// Guest physical memory, as this crate fills it and devices see it. It is cheap to clone and
/// shared by all threads.
pub type GuestMemory = vm_memory::GuestMemoryMmap<()>;
