//! The x86-64 PC: no BIOS, hardware-reduced ACPI, PCI Express, one IOAPIC.

pub mod acpi;
pub mod boot;
pub mod bzimage;
pub mod cpuid;
mod elf;
pub mod entry;
mod error;
pub mod kernel;
pub mod layout;
pub mod regs;
pub mod reset_vector;
mod source;
#[cfg(test)]
mod test_kernel;
