//! Which cases run, in what order, for how long, and what is said about them.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU8, Ordering::Relaxed};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use fleetbox::preflight::{self, Probe};

use crate::cases;
use crate::report::{self, Record};
use crate::suite::Suite;

/// How many cases may run a second time when they fail, in an emulated host only.
///
/// QEMU's emulation of AMD-V now and then ends a guest in a triple fault, or stops it, which is no case's failure. What
/// happens is printed. On hardware every failure counts.
const AGAIN: u8 = 3;

/// What a case needs of the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Needs {
    /// A KVM that boots stock kernels.
    Hardware,
    /// The same, on two CPUs.
    TwoCpus,
    /// A KVM that does not.
    Software,
    /// No KVM.
    Nothing,
}

impl Needs {
    fn met_by(self, probe: &Probe) -> bool {
        match self {
            Self::Hardware | Self::TwoCpus => probe.hardware(),
            Self::Software => matches!(probe, Probe::Software { .. }),
            Self::Nothing => true,
        }
    }

    fn text(self) -> &'static str {
        match self {
            Self::Hardware => "hardware KVM",
            Self::TwoCpus => "hardware KVM, two CPUs",
            Self::Software => "software KVM",
            Self::Nothing => "no KVM",
        }
    }
}

/// Cases of one lane run one after another, in the order of the list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lane {
    /// Cases of the tiny image, and those without one.
    Tiny,
    /// Cases of Debian's image.
    Debian,
}

/// A case: a function that panics if something is not as it should be.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) lane: Lane,
    pub(crate) needs: Needs,
    pub(crate) deadline: Duration,
    pub(crate) run: fn(&Suite),
}

/// How to run the suite.
#[derive(Debug)]
pub(crate) struct Options {
    pub(crate) filters: Vec<String>,
    pub(crate) images: PathBuf,
    pub(crate) jobs: u8,
    pub(crate) keep: bool,
}

impl Options {
    fn selected(&self) -> impl Iterator<Item = Case> {
        cases::all().into_iter().filter(|case| {
            self.filters.is_empty() || self.filters.iter().any(|f| case.name.contains(f.as_str()))
        })
    }
}

/// Prints the selected cases.
pub(crate) fn list(options: &Options) -> ExitCode {
    for case in options.selected() {
        println!("{} ({})", case.name, case.needs.text());
    }
    ExitCode::SUCCESS
}

/// Runs the selected cases that this host is good for.
pub(crate) fn run(options: Options) -> ExitCode {
    let start = Instant::now();
    let probe = preflight::probe();
    let emulated = std::env::var_os("FLEETBOX_EMULATED_HOST").is_some();
    let kvm = match (&probe, emulated) {
        (Probe::Hardware, true) => "emulated host's KVM",
        (Probe::Hardware, false) => "hardware KVM",
        (Probe::Software { .. }, _) => "software KVM",
        _ => "no KVM",
    };
    println!("fleetbox-e2e: {kvm}: {probe}");
    let (cases, skipped): (Vec<_>, Vec<_>) = options
        .selected()
        .partition(|case| case.needs.met_by(&probe));
    let suite = match Suite::new(&options.images, options.keep) {
        Ok(suite) => Arc::new(suite),
        Err(error) => {
            eprintln!("fleetbox-e2e: {error}");
            return ExitCode::FAILURE;
        }
    };

    let mut lanes: VecDeque<Vec<Case>> = [Lane::Debian, Lane::Tiny]
        .into_iter()
        .map(|lane| {
            cases
                .iter()
                .copied()
                .filter(|case| case.lane == lane)
                .collect::<Vec<_>>()
        })
        .filter(|lane| !lane.is_empty())
        .collect();
    if options.jobs == 1 {
        // The quick ones first: they tell sooner that something is wrong.
        lanes = VecDeque::from([lanes.into_iter().rev().flatten().collect()]);
    }
    let again = Arc::new(AtomicU8::new(AGAIN));
    let (sender, results) = mpsc::channel();
    let running: Vec<_> = lanes
        .into_iter()
        .map(|lane| {
            let (suite, sender) = (Arc::clone(&suite), sender.clone());
            let again = Arc::clone(&again);
            thread::spawn(move || {
                for case in lane {
                    let began = Instant::now();
                    let mut outcome = run_one(&suite, case);
                    if let Err(why) = &outcome
                        && emulated
                        && again
                            .fetch_update(Relaxed, Relaxed, |n| n.checked_sub(1))
                            .is_ok()
                    {
                        println!("AGAIN {}\n  {}", case.name, why.trim_end());
                        outcome = run_one(&suite, case);
                    }
                    if sender.send((case, outcome, began.elapsed())).is_err() {
                        return;
                    }
                }
            })
        })
        .collect();
    drop(sender);

    let (mut passed, mut failed) = (0, Vec::new());
    for (case, outcome, took) in results {
        let seconds = took.as_secs_f64();
        match outcome {
            Ok(()) => {
                passed += 1;
                println!("ok    {} ({seconds:.1} s, {kvm})", case.name);
            }
            Err(why) => {
                println!(
                    "FAIL  {} ({seconds:.1} s, {kvm})\n  {}",
                    case.name,
                    why.trim_end()
                );
                failed.push(case.name);
            }
        }
    }
    for lane in running {
        // A lane's thread only passes results on; what panics in a case is a result.
        let _ = lane.join();
    }
    for case in &skipped {
        println!(
            "skip  {} (needs {}, this is {kvm})",
            case.name,
            case.needs.text()
        );
    }
    suite.end();
    match AGAIN - again.load(Relaxed) {
        0 => {}
        n => println!("{n} ran a second time, as marked by AGAIN: see docs/testing.md"),
    }
    if !failed.is_empty() {
        println!("failed: {}", failed.join(" "));
    }
    println!(
        "in all {:.1} s on {kvm}, {} skipped",
        start.elapsed().as_secs_f64(),
        skipped.len()
    );
    println!("{passed} passed, {} failed", failed.len());
    match (passed, failed.is_empty()) {
        (0, true) => {
            eprintln!("fleetbox-e2e: no case ran");
            ExitCode::from(2)
        }
        (_, true) => ExitCode::SUCCESS,
        (_, false) => ExitCode::FAILURE,
    }
}

/// Runs a case on a thread of its own, which is left behind if it does not end in time.
fn run_one(suite: &Arc<Suite>, case: Case) -> Result<(), String> {
    let record = Arc::new(Record::default());
    let (sender, result) = mpsc::channel();
    let spawned = {
        let (suite, record) = (Arc::clone(suite), Arc::clone(&record));
        thread::Builder::new()
            .name(case.name.to_owned())
            .spawn(move || {
                // Without a receiver the case has been given up.
                let _ = sender.send(report::run(&suite, &record, case.run));
            })
    };
    if let Err(error) = spawned {
        return Err(format!("cannot start a thread: {error}"));
    }
    match result.recv_timeout(case.deadline) {
        Ok(outcome) => outcome,
        Err(mpsc::RecvTimeoutError::Disconnected) => {
            Err("its thread ended without a result".to_owned())
        }
        Err(mpsc::RecvTimeoutError::Timeout) => Err(format!(
            "did not end within {} s\n{}",
            case.deadline.as_secs(),
            record.consoles(suite)
        )),
    }
}
