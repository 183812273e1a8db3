//! The events of a machine.

use serde::{Deserialize, Serialize};

/// An event of a machine. In JSON it is an object with a `kind` field.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Event {
    /// The machine knows what it is about to boot, at the start and at every reset.
    Booting {
        /// The number of the boot: 0 at the start, and one more after every reset.
        boot: u64,
        /// The source of the kernel and the command line.
        source: String,
        /// The kernel's command line; empty for firmware.
        cmdline: String,
    },
    /// The virtual CPUs are running.
    Running {
        /// The number of the boot.
        boot: u64,
    },
    /// The guest wrote the first byte of this boot to its serial console.
    FirstOutput {
        /// The number of the boot.
        boot: u64,
    },
    /// The power button was pressed for the guest.
    PowerButton,
    /// The guest has asked for a reset, and boots again.
    Reset,
    /// The guest's kernel has panicked: it has reported that by the pvpanic device, or on the serial console and then stopped
    /// or reset the machine. It comes once in a boot.
    Panic {
        /// The line on the console.
        message: String,
    },
    /// The host could not do what a device needed, for example because its disk is full. The guest runs on, and sees
    /// that the device fails.
    DeviceError {
        /// The device.
        device: String,
        /// What failed, and why.
        error: String,
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
    /// True if this event ends the machine.
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
