//! ACPI hardware: the power management timer, the Generic Event Device, the sleep and reset
//! registers, and the device for panics. `fleetbox_arch::x86_64::layout` has their ports, and `fleetbox_arch::x86_64::acpi`
//! the tables that describe them.

pub mod ged;
pub mod pm_timer;
pub mod power;
pub mod pvpanic;
