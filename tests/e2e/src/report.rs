//! What a failed case says: its panic, and the last console lines of the VMs it used.

use std::cell::RefCell;
use std::fmt::{Display, Write as _};
use std::panic::{self, AssertUnwindSafe};
use std::sync::{Arc, Mutex, Once, PoisonError};

use crate::suite::Suite;

/// Lines of each console that are shown.
const CONSOLE_LINES: usize = 40;

/// A case that runs: which VMs it uses, and how it failed.
#[derive(Debug, Default)]
pub(crate) struct Record {
    vms: Mutex<Vec<String>>,
    failure: Mutex<Option<String>>,
}

thread_local! {
    static CURRENT: RefCell<Option<(Arc<Suite>, Arc<Record>)>> = const { RefCell::new(None) };
}

impl Record {
    /// Notes that the case uses the VM `name`.
    fn uses(&self, name: &str) {
        let mut vms = self.vms.lock().unwrap_or_else(PoisonError::into_inner);
        if !vms.iter().any(|vm| vm == name) {
            vms.push(name.to_owned());
        }
    }

    /// The ends of the consoles of the VMs in use.
    pub(crate) fn consoles(&self, suite: &Suite) -> String {
        let mut text = String::new();
        for vm in self
            .vms
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .iter()
        {
            let dir = suite.vm_dir(vm);
            for (what, path) in [
                ("console", dir.join("console.log")),
                ("worker.log", dir.with_file_name("worker.log")),
            ] {
                let Ok(log) = std::fs::read(&path) else {
                    continue;
                };
                let log = String::from_utf8_lossy(&log);
                let lines: Vec<_> = log.lines().collect();
                let _ = writeln!(text, "  --- {vm}: the end of its {what}");
                for line in &lines[lines.len().saturating_sub(CONSOLE_LINES)..] {
                    let _ = writeln!(text, "  | {}", line.trim_end());
                }
            }
        }
        text
    }
}

/// Notes that the running case uses the VM `name`.
pub(crate) fn uses(name: &str) {
    CURRENT.with_borrow(|current| {
        if let Some((_, record)) = current {
            record.uses(name);
        }
    });
}

/// Runs a case on this thread. The error has all there is to say.
pub(crate) fn run(
    suite: &Arc<Suite>,
    record: &Arc<Record>,
    case: fn(&Suite),
) -> Result<(), String> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let default = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            let noted = CURRENT.with_borrow(|current| {
                let Some((suite, record)) = current else {
                    return false;
                };
                // Before unwinding: VMs that are dropped with it take their consoles along.
                let place = info
                    .location()
                    .map(|l| format!("{}:{}: ", l.file(), l.line()));
                let message = info.payload_as_str().unwrap_or("a panic without a message");
                let text = format!(
                    "{}{message}\n{}",
                    place.unwrap_or_default(),
                    record.consoles(suite)
                );
                *record
                    .failure
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner) = Some(text);
                true
            });
            if !noted {
                default(info);
            }
        }));
    });
    CURRENT.set(Some((Arc::clone(suite), Arc::clone(record))));
    let outcome = panic::catch_unwind(AssertUnwindSafe(|| case(suite)));
    CURRENT.set(None);
    outcome.map_err(|_| {
        let failure = record
            .failure
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        failure.unwrap_or_else(|| "a panic on another thread".to_owned())
    })
}

/// A result that has to be there for a case to go on.
pub(crate) trait Must<T> {
    /// The value; else the case fails with `what` and the error as its user reads it.
    #[track_caller]
    fn must(self, what: &str) -> T;
}

impl<T, E: Display> Must<T> for Result<T, E> {
    #[track_caller]
    fn must(self, what: &str) -> T {
        match self {
            Ok(value) => value,
            Err(error) => panic!("{what}: {error}"),
        }
    }
}
