//! Notices that this process has not run for a while, as when the host slept or the process was stopped.
//!
//! The guest's clocks have gone on meanwhile. If it is not told, it takes the gap for a processor that hung.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// How often the machine's thread says that the process runs.
pub(super) const BEAT: Duration = Duration::from_secs(2);
/// A beat that is so late was kept from coming. Guests complain after 20 s.
const GAP: Duration = Duration::from_secs(5);

/// The beats of one machine.
pub(super) struct Beats {
    /// When the last one came, in nanoseconds of a clock that goes on while the host sleeps.
    last: AtomicU64,
    pauses: AtomicU64,
}

impl Beats {
    pub(super) fn new() -> Self {
        Self {
            last: AtomicU64::new(now()),
            pauses: AtomicU64::new(0),
        }
    }

    /// A beat of the machine's thread. True if the process has not run for a while before it.
    pub(super) fn beat(&self) -> bool {
        self.beat_at(now())
    }

    fn beat_at(&self, now: u64) -> bool {
        let paused = is_gap(self.last.load(Ordering::Relaxed), now);
        if paused {
            self.pauses.fetch_add(1, Ordering::Relaxed);
        }
        // Whoever reads this also sees the pause.
        self.last.store(now, Ordering::Release);
        paused
    }

    /// True if there was a pause that the caller has not been told of. It keeps its count in `seen`, which starts at 0.
    /// A pause may be told twice.
    pub(super) fn missed(&self, seen: &mut u64) -> bool {
        self.missed_at(seen, now())
    }

    fn missed_at(&self, seen: &mut u64, now: u64) -> bool {
        let last = self.last.load(Ordering::Acquire);
        let pauses = self.pauses.load(Ordering::Relaxed);
        let new = std::mem::replace(seen, pauses) != pauses;
        // The beat may not have come yet after the pause.
        new || is_gap(last, now)
    }
}

fn is_gap(last: u64, now: u64) -> bool {
    u128::from(now.saturating_sub(last)) > GAP.as_nanos()
}

/// Nanoseconds since the host's start, its sleep included. 0 if there is no such clock: then no pause is noticed.
fn now() -> u64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: writes the time to the structure.
    let result = unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &raw mut time) };
    if result != 0 {
        return 0;
    }
    let (seconds, nanos) = (time.tv_sec.unsigned_abs(), time.tv_nsec.unsigned_abs());
    seconds.saturating_mul(1_000_000_000).saturating_add(nanos)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(n: u64) -> u64 {
        n * 1_000_000_000
    }

    fn beats() -> Beats {
        Beats {
            last: AtomicU64::new(seconds(100)),
            pauses: AtomicU64::new(0),
        }
    }

    #[test]
    fn regular_beats_are_no_pause() {
        let (beats, mut seen) = (beats(), 0);
        for at in [102, 104, 108] {
            assert!(!beats.missed_at(&mut seen, seconds(at)), "{at}");
            assert!(!beats.beat_at(seconds(at)), "{at}");
        }
    }

    #[test]
    fn a_pause_is_missed_before_and_after_the_first_beat() {
        for beat_first in [false, true] {
            let (beats, mut seen) = (beats(), 0);
            if beat_first {
                assert!(beats.beat_at(seconds(160)));
            }
            assert!(beats.missed_at(&mut seen, seconds(160)));
            if !beat_first {
                assert!(beats.beat_at(seconds(160)));
                assert!(beats.missed_at(&mut seen, seconds(160)));
            }
            assert!(!beats.missed_at(&mut seen, seconds(161)));
        }
    }
}
