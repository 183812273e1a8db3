//! The events of a VM.

use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::util::text::printable;

/// Maximum length of a text from the guest in an event, in characters.
const LONGEST: usize = 1024;

pub use fleetbox_vmm::machine::Event;

/// Converts an event from a machine process, and makes texts from the guest harmless. The worker
/// itself reports the end of a machine.
pub(crate) fn from_machine(event: Event) -> Option<Event> {
    Some(match event {
        Event::Booting {
            boot,
            source,
            cmdline,
        } => Event::Booting {
            boot,
            source: sanitize(&source),
            cmdline: sanitize(&cmdline),
        },
        Event::Panic { message } => Event::Panic {
            message: sanitize(&message),
        },
        Event::DeviceError { device, error } => Event::DeviceError {
            device: sanitize(&device),
            error: sanitize(&error),
        },
        Event::Running { .. } | Event::FirstOutput { .. } | Event::PowerButton | Event::Reset => {
            event
        }
        _ => return None,
    })
}

fn sanitize(text: &str) -> String {
    printable(text.as_bytes()).chars().take(LONGEST).collect()
}

/// An event with the time it happened.
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
        let hostile = Event::Panic {
            message: format!("\x1b[2J{}", "x".repeat(1 << 20)),
        };
        let Some(Event::Panic { message }) = from_machine(hostile) else {
            panic!("no event");
        };
        assert_eq!(message, "x".repeat(LONGEST));
        assert_eq!(from_machine(Event::PoweredOff), None);
    }
}
