//! The line of a link: its latency and its bandwidth.

use std::cell::Cell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use super::conditions::LinkConditions;

/// One direction of a slow link: a clock that says when it is free again.
#[derive(Debug)]
pub(crate) struct Line {
    latency: Duration,
    /// In bits per second.
    bandwidth: Option<u64>,
    /// Maximum bytes that wait for the line.
    queue: u64,
    /// When the line will have sent everything.
    free: Cell<Option<Instant>>,
}

impl Line {
    /// `None` if frames pass without delay.
    pub(crate) fn new(conditions: &LinkConditions) -> Option<Rc<Self>> {
        let hinders = conditions.bandwidth.is_some() || !conditions.latency.is_zero();
        hinders.then(|| {
            Rc::new(Self {
                latency: conditions.latency,
                bandwidth: conditions.bandwidth.filter(|bits| *bits > 0),
                queue: conditions.queue as u64,
                free: Cell::new(None),
            })
        })
    }

    /// Bytes that wait for the line at `now`.
    fn backlog(&self, now: Instant) -> u64 {
        let (Some(bits), Some(free)) = (self.bandwidth, self.free.get()) else {
            return 0;
        };
        let nanos = free.saturating_duration_since(now).as_nanos();
        u64::try_from(nanos * u128::from(bits) / 8_000_000_000).unwrap_or(u64::MAX)
    }

    /// When a frame of `len` bytes that comes at `now` has passed; `None` if the queue is full.
    pub(crate) fn pass(&self, len: usize, now: Instant) -> Option<Instant> {
        let Some(bits) = self.bandwidth else {
            return Some(now + self.latency);
        };
        let waiting = self.backlog(now);
        if waiting > 0 && waiting.saturating_add(len as u64) > self.queue {
            return None;
        }
        let start = self.free.get().map_or(now, |free| free.max(now));
        let end = start + send_time(len as u64, bits);
        self.free.set(Some(end));
        Some(end + self.latency)
    }

    /// When half of the queue will be free; `None` if it already is.
    pub(crate) fn room_at(&self, now: Instant) -> Option<Instant> {
        let bits = self.bandwidth?;
        let half = self.queue / 2;
        if self.backlog(now) <= half {
            return None;
        }
        let free = self.free.get()?;
        Some(free.checked_sub(send_time(half, bits)).unwrap_or(free))
    }
}

/// How long a line of `bits` per second takes for `bytes`.
pub(crate) fn send_time(bytes: u64, bits: u64) -> Duration {
    let nanos = u128::from(bytes) * 8_000_000_000 / u128::from(bits.max(1));
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX / 4))
}
