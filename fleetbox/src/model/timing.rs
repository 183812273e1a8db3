//! How long the steps of a start took.

use std::fmt;
use std::time::{Duration, Instant};

use serde::Serialize;

/// One step of [`VmBuilder::start`](crate::VmBuilder::start).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Phase {
    /// Checking whether this host can run VMs at all.
    Preflight,
    /// Finding the image, or downloading and verifying it.
    Image,
    /// Waiting for memory; see [`budget`](crate::budget).
    Memory,
    /// Creating the VM's files and starting its worker process.
    Create,
    /// Starting the machine process, until its vCPUs run.
    Machine,
    /// Booting the guest, from its first instruction to a log-in over SSH.
    Boot,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Preflight => "preflight",
            Self::Image => "image",
            Self::Memory => "waiting for memory",
            Self::Create => "create",
            Self::Machine => "machine",
            Self::Boot => "boot to SSH",
        })
    }
}

/// How long each step of a start took, in order.
///
/// ```no_run
/// # async fn example() -> fleetbox::Result<()> {
/// let vm = fleetbox::Vm::test().start().await?;
/// for (phase, duration) in vm.timings().iter() {
///     println!("{phase}: {duration:?}");
/// }
/// println!("in all {:?}", vm.timings().total());
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Timings(Vec<(Phase, Duration)>);

impl Timings {
    /// The steps in order, with their durations.
    pub fn iter(&self) -> impl Iterator<Item = (Phase, Duration)> {
        self.0.iter().copied()
    }

    /// How long a step took; `None` if it was skipped.
    pub fn get(&self, phase: Phase) -> Option<Duration> {
        self.0
            .iter()
            .find(|(this, _)| *this == phase)
            .map(|(_, duration)| *duration)
    }

    /// The sum of all steps.
    pub fn total(&self) -> Duration {
        self.0.iter().map(|(_, duration)| *duration).sum()
    }
}

impl fmt::Display for Timings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (phase, duration) in self.iter() {
            write!(f, "{phase} {:.2} s, ", duration.as_secs_f64())?;
        }
        write!(f, "total {:.2} s", self.total().as_secs_f64())
    }
}

/// Measures consecutive steps.
#[derive(Debug)]
pub(crate) struct Clock {
    timings: Timings,
    since: Instant,
}

impl Clock {
    pub(crate) fn start() -> Self {
        Self {
            timings: Timings::default(),
            since: Instant::now(),
        }
    }

    /// Ends the current step, which was `phase`.
    pub(crate) fn done(&mut self, phase: Phase) {
        let now = Instant::now();
        let duration = now - self.since;
        tracing::debug!(%phase, ?duration, "done");
        self.timings.0.push((phase, duration));
        self.since = now;
    }

    pub(crate) fn finish(self) -> Timings {
        self.timings
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_add_up_in_their_order() {
        let mut clock = Clock::start();
        clock.done(Phase::Preflight);
        std::thread::sleep(Duration::from_millis(5));
        clock.done(Phase::Image);
        let timings = clock.finish();
        assert!(timings.get(Phase::Image).unwrap() >= Duration::from_millis(5));
        assert_eq!(timings.get(Phase::Boot), None);
        assert!(timings.total() >= timings.get(Phase::Image).unwrap());
        assert!(timings.to_string().starts_with("preflight 0.0"));
    }
}
