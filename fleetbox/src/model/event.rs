//! What happens to a VM, as it happens.

use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::util::text::printable;

/// Longest text of an event that comes from the guest, in characters.
const LONGEST: usize = 1024;

/// Something that happened to a VM. As JSON each is an object with a `kind` field.
///
/// ```
/// use fleetbox::Event;
///
/// assert!(Event::PoweredOff.is_end());
/// assert!(!Event::Running { boot: 0 }.is_end());
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Event {
    /// It is known what is booted; at the start and at every reset.
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
    /// The VM was killed on purpose. No event follows.
    Killed,
    /// The VM failed. No event follows.
    Failed {
        /// Why, with the console's last lines.
        reason: String,
    },
}

impl Event {
    /// True if the VM has ended by this.
    pub fn is_end(&self) -> bool {
        matches!(self, Self::PoweredOff | Self::Killed | Self::Failed { .. })
    }

    /// What a machine process says, without what a guest could put in it to do harm. Its end is
    /// told by its worker.
    pub(crate) fn of_machine(event: fleetbox_vmm::machine::Event) -> Option<Self> {
        use fleetbox_vmm::machine::Event as E;
        Some(match event {
            E::Booting {
                boot,
                source,
                cmdline,
            } => Self::Booting {
                boot,
                source: tame(&source),
                cmdline: tame(&cmdline),
            },
            E::Running { boot } => Self::Running { boot },
            E::FirstOutput { boot } => Self::FirstOutput { boot },
            E::PowerButton => Self::PowerButton,
            E::Reset => Self::Reset,
            E::Panic { message } => Self::Panic {
                message: tame(&message),
            },
            _ => return None,
        })
    }
}

fn tame(text: &str) -> String {
    printable(text.as_bytes()).chars().take(LONGEST).collect()
}

/// An event and when it happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimedEvent {
    /// Milliseconds since 1970 (UTC).
    pub at: u64,
    /// What happened.
    #[serde(flatten)]
    pub event: Event,
}

impl TimedEvent {
    pub(crate) fn now(event: Event) -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        let at = since.map_or(0, |since| since.as_millis().try_into().unwrap_or(u64::MAX));
        Self { at, event }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_flat_json() {
        let event = TimedEvent {
            at: 7,
            event: Event::Panic {
                message: "oops".to_owned(),
            },
        };
        let json = serde_json::to_string(&event).unwrap();
        assert_eq!(json, r#"{"at":7,"kind":"panic","message":"oops"}"#);
        assert_eq!(serde_json::from_str::<TimedEvent>(&json).unwrap(), event);
    }

    #[test]
    fn a_guest_puts_nothing_harmful_in_an_event() {
        let hostile = fleetbox_vmm::machine::Event::Panic {
            message: format!("\x1b[2J{}", "x".repeat(1 << 20)),
        };
        let Some(Event::Panic { message }) = Event::of_machine(hostile) else {
            panic!("no event");
        };
        assert_eq!(message, "x".repeat(LONGEST));
    }
}
