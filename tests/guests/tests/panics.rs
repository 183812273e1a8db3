//! What becomes of a guest that panics, and of one that only prints that it does.
//!
//! The payloads are found as those of the other tests are.

#[path = "support/mod.rs"]
#[allow(dead_code)]
mod support;

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use fleetbox_vmm::machine::{Error, Event, Exit};
use support::Guest;

struct End {
    exit: Result<Exit, Error>,
    console: String,
    /// The panics that were told of.
    panics: Vec<String>,
    took: Duration,
}

fn run(case: &str) -> End {
    let mut guest = Guest::case(case);
    // The guest may be stopped on one vCPU only.
    guest.config.cpus = 2;
    let panics = Arc::new(Mutex::new(Vec::new()));
    let seen = panics.clone();
    guest.config.events = Some(Box::new(move |event| {
        if let Event::Panic { message } = event {
            seen.lock().unwrap().push(message);
        }
    }));
    let start = Instant::now();
    let outcome = guest.run();
    End {
        exit: outcome.exit,
        console: outcome.console,
        panics: panics.lock().unwrap().clone(),
        took: start.elapsed(),
    }
}

/// Runs guests at once: most of their time is waiting.
fn run_all<const N: usize>(cases: [&str; N]) -> [End; N] {
    let running = cases.map(|case| {
        let case = case.to_owned();
        std::thread::spawn(move || run(&case))
    });
    running.map(|end| end.join().unwrap())
}

const LINE: &str = "[    1.0] Kernel panic - not syncing: a test";

impl End {
    fn failed(self) -> Self {
        let Err(Error::Guest(failure)) = &self.exit else {
            panic!("{:?}\n{}", self.exit, self.console);
        };
        assert_eq!(failure.what, LINE);
        assert_eq!(self.panics, [LINE]);
        self
    }

    fn passed(self) -> Self {
        let passed = self.console.contains("PASSED");
        assert!(
            passed && self.exit.is_ok(),
            "{:?}\n{}",
            self.exit,
            self.console
        );
        self
    }
}

#[test]
fn a_line_on_the_console_ends_no_guest_that_goes_on() {
    for end in run_all(["panic-line idle", "panic-line print"]) {
        let end = end.passed();
        assert!(end.panics.is_empty(), "{:?}", end.panics);
    }
}

#[test]
fn a_guest_that_stopped_after_the_line_is_ended() {
    for end in run_all(["panic-line spin", "panic-line stop"]) {
        let end = end.failed();
        assert!(end.took < Duration::from_secs(25), "{:?}", end.took);
    }
}

#[test]
fn a_reported_panic_ends_after_its_trace() {
    let [end, silent] = run_all(["panic-report 1 trace", "panic-report 1 silence"]);
    let end = end.failed();
    assert!(end.console.contains("END OF TRACE"), "{}", end.console);
    // And one without a trace soon.
    let end = silent.failed();
    assert!(end.took < Duration::from_secs(10), "{:?}", end.took);
}

#[test]
fn a_guest_with_a_crash_kernel_goes_on() {
    // The second guest's kernel is too old to tell, and goes on nevertheless.
    for end in run_all(["panic-report 2 idle", "panic-report 1 idle"]) {
        assert_eq!(end.passed().panics, [LINE]);
    }
}

#[test]
fn a_reported_shutdown_is_a_power_off() {
    let end = run("panic-report 4 silence");
    assert_eq!(end.exit.unwrap(), Exit::PowerOff);
    assert!(end.panics.is_empty());
}
