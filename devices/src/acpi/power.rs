//! Sleep and reset registers (ACPI 6.5, sections 4.8.3.6 and 4.8.3.7): how a guest powers its
//! machine off and resets it.

use std::sync::atomic::{AtomicU8, Ordering};

use fleetbox_arch::x86_64::layout::{
    RESET_PORT, RESET_VALUE, SLEEP_CONTROL_PORT, SLEEP_STATUS_PORT, SLEEP_TYPE_S5,
};
use serde::{Deserialize, Serialize};

use crate::bus::BusDevice;

const SLEEP_CONTROL: u64 = 0;
const SLEEP_STATUS: u64 = (SLEEP_STATUS_PORT - SLEEP_CONTROL_PORT) as u64;
const RESET: u64 = (RESET_PORT - SLEEP_CONTROL_PORT) as u64;

const SLEEP_ENABLE: u8 = 1 << 5;
const SLEEP_TYPE_SHIFT: u8 = 2;
const SLEEP_TYPE_MASK: u8 = 7;

/// A request of the guest to its machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PowerRequest {
    /// Power off (S5).
    PowerOff,
    /// Reset.
    Reset,
}

/// The sleep control, sleep status and reset registers, three ports in this order.
pub struct PowerControl {
    sleep_type: AtomicU8,
    request: Box<dyn Fn(PowerRequest) + Send + Sync>,
}

/// State of a [`PowerControl`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PowerControlState {
    /// Sleep type last written.
    pub sleep_type: u8,
}

impl PowerControl {
    /// Creates the registers. They call `request` on the vCPU's thread when the guest asks for
    /// something.
    pub fn new(request: impl Fn(PowerRequest) + Send + Sync + 'static) -> Self {
        Self {
            sleep_type: AtomicU8::new(0),
            request: Box::new(request),
        }
    }

    /// The registers.
    pub fn save(&self) -> PowerControlState {
        PowerControlState {
            sleep_type: self.sleep_type.load(Ordering::SeqCst),
        }
    }

    /// Sets the registers.
    pub fn restore(&self, state: &PowerControlState) {
        let sleep_type = state.sleep_type & SLEEP_TYPE_MASK;
        self.sleep_type.store(sleep_type, Ordering::SeqCst);
    }
}

impl BusDevice for PowerControl {
    fn name(&self) -> &str {
        "acpi-power"
    }

    fn read(&self, offset: u64, data: &mut [u8]) {
        match (offset, data) {
            (SLEEP_CONTROL, [value]) => {
                *value = self.sleep_type.load(Ordering::SeqCst) << SLEEP_TYPE_SHIFT;
            }
            // Never woken from a sleep.
            (SLEEP_STATUS, [value]) => *value = 0,
            (_, data) => data.fill(0xFF),
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        match (offset, data) {
            (SLEEP_CONTROL, [value]) => {
                let sleep_type = value >> SLEEP_TYPE_SHIFT & SLEEP_TYPE_MASK;
                self.sleep_type.store(sleep_type, Ordering::SeqCst);
                if value & SLEEP_ENABLE == 0 {
                    return;
                }
                if sleep_type == SLEEP_TYPE_S5 {
                    (self.request)(PowerRequest::PowerOff);
                } else {
                    tracing::warn!(sleep_type, "the guest asked for an unsupported sleep type");
                }
            }
            (RESET, [RESET_VALUE]) => (self.request)(PowerRequest::Reset),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    fn requests_of(writes: &[(u64, &[u8])]) -> Vec<PowerRequest> {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let power = PowerControl::new({
            let seen = seen.clone();
            move |request| seen.lock().unwrap().push(request)
        });
        for (offset, data) in writes {
            power.write(*offset, data);
        }
        let seen = seen.lock().unwrap();
        seen.clone()
    }

    #[test]
    fn only_the_documented_writes_are_requests() {
        for (offset, data, want) in [
            (0, &[0x34][..], vec![PowerRequest::PowerOff]),
            (0, &[0x14], vec![]),    // S5 without enable
            (0, &[0x30], vec![]),    // another type
            (0, &[0x34, 0], vec![]), // too wide
            (1, &[0x34], vec![]),    // the status register
            (2, &[1], vec![PowerRequest::Reset]),
            (2, &[0], vec![]),
            (3, &[1], vec![]),
            (u64::MAX, &[1], vec![]),
        ] {
            assert_eq!(
                requests_of(&[(offset, data)]),
                want,
                "{offset:#x} {data:x?}"
            );
        }
    }

    #[test]
    fn reads_and_state_follow_the_sleep_type() {
        let power = PowerControl::new(|_| {});
        power.write(0, &[0x14]);
        let json = serde_json::to_string(&power.save()).unwrap();
        let other = PowerControl::new(|_| {});
        other.restore(&serde_json::from_str(&json).unwrap());
        for (offset, want) in [(0, 0x14), (1, 0), (2, 0xFF)] {
            let mut data = [0];
            other.read(offset, &mut data);
            assert_eq!(data, [want], "{offset}");
        }
    }
}
