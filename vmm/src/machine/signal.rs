//! What the parts of a machine tell its thread.

use super::console::Notice;

/// What the parts of a machine tell its thread.
#[derive(Debug)]
pub(super) enum Signal {
    PowerOff,
    Reset,
    Kill,
    PowerButton,
    Input(Vec<u8>),
    InputDrained,
    Console(Notice),
    Failure(VcpuFailure),
}

/// A vCPU that cannot go on, as it tells the machine.
#[derive(Debug)]
pub(super) struct VcpuFailure {
    pub(super) vcpu: u8,
    pub(super) what: String,
    pub(super) registers: Option<String>,
}
