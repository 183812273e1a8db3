//! A message from a part of a machine to its thread.

use fleetbox_devices::acpi::pvpanic::PanicEvent;

use super::console::Notice;

/// A message from a part of a machine to its thread.
#[derive(Debug)]
pub(super) enum Signal {
    PowerOff,
    Reset,
    Kill,
    PowerButton,
    Input(Vec<u8>),
    InputDrained,
    Console(Notice),
    /// From the pvpanic device, each event once in a boot.
    Panic(PanicEvent),
    Failure(VcpuFailure),
}

/// The report of a vCPU that cannot continue.
#[derive(Debug)]
pub(super) struct VcpuFailure {
    pub(super) vcpu: u8,
    pub(super) what: String,
    pub(super) registers: Option<String>,
}
