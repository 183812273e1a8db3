//! What happens to a machine, as it happens.

use serde::{Deserialize, Serialize};

/// Something that happened to a machine. As JSON each is an object with a `kind` field.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Event {
    /// What the machine is about to boot is known; at the start and at every reset.
    Booting {
        /// Which boot this is: 0 at the start, then one more at every reset.
        boot: u64,
        /// Where kernel and command line come from.
        source: String,
        /// The kernel's command line; empty for a firmware.
        cmdline: String,
    },
    /// The virtual CPUs run.
    Running {
        /// Which boot this is.
        boot: u64,
    },
    /// The guest wrote the first byte of this boot to its serial console.
    FirstOutput {
        /// Which boot this is.
        boot: u64,
    },
    /// The power button was pressed for the guest.
    PowerButton,
    /// The guest asked for a reset and boots again.
    Reset,
    /// The guest's kernel announced a panic on the serial console.
    Panic {
        /// The line.
        message: String,
    },
    /// The guest powered itself off. No event follows.
    PoweredOff,
    /// The machine was killed on purpose. No event follows.
    Killed,
    /// The machine failed. No event follows.
    Failed {
        /// Why, with the console's last lines.
        reason: String,
    },
}

impl Event {
    /// True if the machine has ended by this.
    ///
    /// ```
    /// use fleetbox_vmm::machine::Event;
    ///
    /// assert!(Event::PoweredOff.is_end());
    /// assert!(!Event::Reset.is_end()); // the guest boots again
    /// ```
    pub fn is_end(&self) -> bool {
        matches!(self, Self::PoweredOff | Self::Killed | Self::Failed { .. })
    }
}
