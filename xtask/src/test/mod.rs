//! The whole test run, in steps. Each step has a budget, which is printed next to its time.

mod e2e;
pub mod full;
mod guests;
pub(crate) mod lint;
mod record;
mod report;
pub(crate) mod unit;

use std::time::{Duration, Instant};

use clap::ValueEnum;

use crate::check;
use crate::error::{Error, Result};

pub use guests::payloads;
use report::{Line, Outcome};

/// A step of the test run. Steps run in this order: quick ones come first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Step {
    /// `cargo fmt --check`.
    Fmt,
    /// Imports between the rooms of each package, and the files that may test for an operating system or architecture.
    Layers,
    /// Words that are hard to read, and spelling.
    Words,
    /// How many packages a user of the library compiles.
    Packages,
    /// Packages as they would be published.
    Package,
    /// clippy, with warnings as errors.
    Clippy,
    /// The library with each feature alone and without features, with warnings as errors.
    Features,
    /// Documentation, with warnings as errors.
    Doc,
    /// The public API, compared with its committed listing.
    Api,
    /// Unit and integration tests that need no guest, and the examples of the documentation.
    Unit,
    /// Bare-metal payloads on a KVM.
    Guests,
    /// The end-to-end suite.
    E2e,
}

/// The crate of the bare-metal payloads. It is built for another target, and its tests need the payloads.
const GUESTS: &str = "fleetbox-guests";

/// The target of the payloads.
const BARE_METAL: &str = "x86_64-unknown-none";

/// The crate and binary of the end-to-end suite.
const E2E: &str = "fleetbox-e2e";

/// The feature that enables the program `fleetbox-vmm`.
const VMM_CLI: &str = "fleetbox-vmm/cli";

impl Step {
    /// The name on the command line.
    fn name(self) -> String {
        self.to_possible_value()
            .map(|value| value.get_name().to_owned())
            .unwrap_or_default()
    }

    /// The time that it should take at most, with warm caches on two cores.
    fn budget(self) -> Duration {
        Duration::from_secs(match self {
            Self::Fmt | Self::Layers => 10,
            Self::Words | Self::Packages => 20,
            Self::Package => 30,
            Self::Doc => 50,
            Self::Api => 60,
            Self::Guests => 70,
            Self::Features => 80,
            Self::Clippy => 100,
            Self::Unit => 220,
            Self::E2e => 830,
        })
    }

    /// Runs the step. `cases` restricts the end-to-end suite to cases whose names contain one of them. Returns a note
    /// for the summary, such as where it ran.
    fn run(self, cases: &[String]) -> Result<Option<String>> {
        match self {
            Self::Fmt => lint::fmt().map(|()| None),
            Self::Layers => check::layers().map(Some),
            Self::Words => check::words().map(Some),
            Self::Packages => check::packages().map(Some),
            Self::Package => check::package().map(Some),
            Self::Clippy => lint::clippy().map(|()| None),
            Self::Features => lint::features().map(Some),
            Self::Doc => lint::doc().map(|()| None),
            Self::Api => check::api(false).map(Some),
            Self::Unit => unit::run().map(|()| None),
            Self::Guests => guests::run().map(Some),
            Self::E2e => e2e::run(cases).map(Some),
        }
    }
}

/// Runs `steps`, or all if it is empty. `cases` restricts the end-to-end suite to cases whose names contain one of
/// them. Prints the time of each step with its budget, and where it ran.
///
/// # Errors
/// A step failed or could not be run. Later steps still run.
pub fn run(steps: &[Step], cases: &[String]) -> Result<()> {
    let all = Step::value_variants();
    let steps = if steps.is_empty() { all } else { steps };
    let lines: Vec<Line> = steps
        .iter()
        .map(|step| {
            let budget = Some(step.budget());
            time(&step.name(), budget, || step.run(cases))
        })
        .collect();
    eprint!("{}", report::summary(&lines));
    fail(&lines)
}

/// Runs one part, and prints its name, its time and its failure.
fn time(
    name: &str,
    budget: Option<Duration>,
    work: impl FnOnce() -> Result<Option<String>>,
) -> Line {
    eprintln!("== {name}");
    let start = Instant::now();
    let outcome = match work() {
        Ok(note) => Outcome::Passed(note),
        Err(error) => {
            eprintln!("error: {name}: {error}");
            Outcome::Failed(error.to_string())
        }
    };
    let line = Line {
        name: name.to_owned(),
        took: start.elapsed(),
        budget,
        outcome,
    };
    eprintln!("{}", report::time(&line));
    line
}

/// An error with the names of the failed parts.
fn fail(lines: &[Line]) -> Result<()> {
    let failed: Vec<_> = lines
        .iter()
        .filter(|line| matches!(line.outcome, Outcome::Failed(_)))
        .map(|line| line.name.as_str())
        .collect();
    if failed.is_empty() {
        Ok(())
    } else {
        Err(Error::new(format!("failed: {}", failed.join(", "))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_budgets_add_up_to_at_most_25_minutes() {
        let sum: Duration = Step::value_variants().iter().map(|s| s.budget()).sum();
        assert!(sum <= Duration::from_secs(25 * 60), "{sum:?}");
    }
}
