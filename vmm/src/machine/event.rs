//! What happens to a machine, as it happens.

use serde::{Deserialize, Serialize};

/// Something that happened to a machine. As JSON each is an object with a `kind` field.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Event {
    /// What the machine is about to run is known; sent at every boot.
    Booting {
        /// Which boot this is: 0 at start, then one more at every reset.
        boot: u64,
        /// Where kernel and command line come from.
        source: String,
        /// The kernel command line; empty for a firmware.
        cmdline: String,
    },
    /// The vCPUs run.
    Running {
        /// Which boot this is.
        boot: u64,
    },
    /// The guest wrote its first byte to the serial port in this boot.
    FirstOutput {
        /// Which boot this is.
        boot: u64,
    },
    /// The power button was pressed for the guest.
    PowerButton,
    /// The guest asked for a reset; the machine boots again.
    Reset,
    /// The guest's kernel announced a panic on the serial port.
    Panic {
        /// The line.
        message: String,
    },
    /// The machine has ended.
    Exited {
        /// How, in words.
        reason: String,
    },
}
