//! A timer that is rarely moved, and the clock of smoltcp.

use std::pin::Pin;
use std::task::Context;
use std::time::{Duration, Instant};

use tokio::time::Sleep;

/// A timer that is moved only if it would fire too late, because retransmission deadlines change
/// with every segment and rarely pass.
pub(crate) struct Timer {
    sleep: Pin<Box<Sleep>>,
    at: Instant,
}

impl Timer {
    pub(crate) fn new() -> Self {
        let at = Instant::now();
        Self {
            sleep: Box::pin(tokio::time::sleep_until(at.into())),
            at,
        }
    }

    /// Wakes the task no later than `at`, but at least a millisecond from now.
    pub(crate) fn arm(&mut self, cx: &mut Context<'_>, at: Instant) {
        let now = Instant::now();
        if at < self.at || self.at <= now {
            self.at = at.max(now + Duration::from_millis(1));
            self.sleep.as_mut().reset(self.at.into());
        }
        while self.sleep.as_mut().poll(cx).is_ready() {
            self.at = at.max(Instant::now() + Duration::from_millis(1));
            self.sleep.as_mut().reset(self.at.into());
        }
    }
}

/// Translates between the time of the host and that of smoltcp, which starts with the network.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock {
    epoch: Instant,
}

impl Clock {
    pub(crate) fn new() -> Self {
        Self {
            epoch: Instant::now(),
        }
    }

    /// The time on smoltcp's clock.
    pub(crate) fn now(&self) -> smoltcp::time::Instant {
        let micros = self.epoch.elapsed().as_micros();
        smoltcp::time::Instant::from_micros(i64::try_from(micros).unwrap_or(i64::MAX))
    }

    /// The moment that smoltcp's clock calls `at`.
    pub(crate) fn instant(&self, at: smoltcp::time::Instant) -> Instant {
        let micros = u64::try_from(at.total_micros()).unwrap_or(0);
        self.epoch + Duration::from_micros(micros)
    }
}
