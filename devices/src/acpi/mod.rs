//! ACPI hardware: the power management timer, the Generic Event Device and the sleep and reset
//! registers. `fleetbox_arch::x86_64::layout` has their ports, and `fleetbox_arch::x86_64::acpi`
//! the tables that describe them.

pub mod ged;
pub mod pm_timer;
pub mod power;
