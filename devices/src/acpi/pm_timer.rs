//! ACPI power management timer (ACPI 6.5, section 4.8.3.3): a 32-bit counter of 3.579545 MHz, which
//! boot loaders and kernels use to calibrate other clocks.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::bus::BusDevice;
use crate::sync::lock;

/// Frequency of the timer in Hz.
pub const FREQUENCY: u64 = 3_579_545;

/// The timer register (4 ports), read-only.
pub struct PmTimer {
    origin: Mutex<Origin>,
}

#[derive(Clone, Copy)]
struct Origin {
    start: Instant,
    ticks: u32,
}

/// State of a [`PmTimer`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PmTimerState {
    /// The counter.
    pub ticks: u32,
}

fn ticks(elapsed: Duration) -> u32 {
    // The counter wraps: only the low bits count.
    (elapsed.as_nanos() * u128::from(FREQUENCY) / 1_000_000_000) as u32
}

impl PmTimer {
    /// A timer that starts now, at zero.
    pub fn new() -> Self {
        Self {
            origin: Mutex::new(Origin {
                start: Instant::now(),
                ticks: 0,
            }),
        }
    }

    /// The counter.
    pub fn value(&self) -> u32 {
        let origin = *lock(&self.origin);
        origin.ticks.wrapping_add(ticks(origin.start.elapsed()))
    }

    /// The current counter.
    pub fn save(&self) -> PmTimerState {
        PmTimerState {
            ticks: self.value(),
        }
    }

    /// Continues from a saved counter.
    pub fn restore(&self, state: &PmTimerState) {
        *lock(&self.origin) = Origin {
            start: Instant::now(),
            ticks: state.ticks,
        };
    }
}

impl Default for PmTimer {
    fn default() -> Self {
        Self::new()
    }
}

impl BusDevice for PmTimer {
    fn name(&self) -> &str {
        "acpi-pm-timer"
    }

    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0xFF);
        let value = self.value().to_le_bytes();
        let bytes = usize::try_from(offset).ok().and_then(|o| value.get(o..));
        for (to, from) in data.iter_mut().zip(bytes.unwrap_or_default()) {
            *to = *from;
        }
    }

    fn write(&self, _offset: u64, _data: &[u8]) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_those_of_the_specified_frequency_and_wrap() {
        assert_eq!(ticks(Duration::ZERO), 0);
        assert_eq!(ticks(Duration::from_secs(1)), 3_579_545);
        assert_eq!(ticks(Duration::from_nanos(280)), 1);
        let ten_days = Duration::from_secs(864_000);
        assert_eq!(u64::from(ticks(ten_days)), 864_000 * FREQUENCY % (1 << 32));
    }

    #[test]
    fn the_register_counts_real_time() {
        let timer = PmTimer::new();
        let read = || {
            let mut data = [0; 4];
            timer.read(0, &mut data);
            u32::from_le_bytes(data)
        };
        let (start, first) = (Instant::now(), read());
        std::thread::sleep(Duration::from_millis(20));
        let passed = read() - first;
        let most = ticks(start.elapsed());
        assert!(passed >= ticks(Duration::from_millis(20)) && passed <= most + 1);
    }

    #[test]
    fn a_saved_timer_continues() {
        let timer = PmTimer::new();
        let state = PmTimerState { ticks: u32::MAX };
        let json = serde_json::to_string(&state).unwrap();
        timer.restore(&serde_json::from_str(&json).unwrap());
        // Wraps instead of panicking, and is not back at the start.
        let ticks = timer.save().ticks;
        assert!(ticks == u32::MAX || ticks < 3_579_545 * 10, "{ticks}");
    }

    #[test]
    fn reads_beyond_the_register_are_all_ones() {
        let timer = PmTimer::new();
        let mut data = [0; 8];
        timer.read(4, &mut data);
        assert_eq!(data, [0xFF; 8]);
        timer.read(u64::MAX, &mut data);
        assert_eq!(data, [0xFF; 8]);
    }
}
