//! How long work reports itself: as plain lines, to what a program makes of it, or not at all.
//!
//! Bars are left to programs that have a terminal to themselves, as `fleetbox` does: under a test runner they
//! would mix with its output, and every user of the library would compile them.

use std::io::{self, Write};
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// What happens while an image is pulled and while VMs are started, restarted and waited for.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub enum ProgressEvent<'a> {
    /// Another process is downloading the same image; this one waits for it.
    Waiting {
        /// The image, as the user named it.
        image: &'a str,
    },
    /// Bytes begin to arrive.
    Started {
        /// The image, as the user named it.
        image: &'a str,
        /// Where it comes from.
        url: &'a str,
        /// Bytes that an earlier, interrupted download has left.
        resumed_from: u64,
        /// Size of the whole file in bytes, if the server tells.
        total: Option<u64>,
    },
    /// So many bytes of the file are there, counted from its beginning.
    Advanced {
        /// The number of bytes.
        bytes: u64,
    },
    /// The connection failed and is tried again.
    Retrying {
        /// Why it failed.
        why: &'a str,
    },
    /// The image is complete and verified.
    Finished {
        /// Its size in bytes.
        bytes: u64,
    },
    /// The download, or waiting, has failed; the error is returned to the caller.
    Failed,
    /// A start waits until there is memory for it (see [`budget`](crate::budget)).
    WaitingForMemory {
        /// The VM, or the first of several.
        vm: &'a str,
        /// What it needs, and who has it.
        why: &'a str,
    },
    /// The start that waited has its turn.
    MemoryGranted,
    /// A VM is to power off, so that it can be started again.
    Stopping {
        /// The VM.
        vm: &'a str,
    },
    /// A VM's machine is started.
    Starting {
        /// The VM.
        vm: &'a str,
    },
    /// Before that its fixtures are copied.
    CopyingFixtures {
        /// The VM.
        vm: &'a str,
    },
    /// A VM's machine runs, and its guest is waited for.
    WaitingFor {
        /// The VM.
        vm: &'a str,
        /// For what: `SSH`, or what a [`Ready`](crate::Ready) is shown as.
        what: &'a str,
    },
}

/// Told what happens during a download and while a start waits. Calls are quick and come from any thread.
///
/// ```
/// use std::sync::atomic::{AtomicU64, Ordering};
/// use fleetbox::progress::{Progress, ProgressEvent};
///
/// #[derive(Default)]
/// struct Counter(AtomicU64);
///
/// impl Progress for Counter {
///     fn event(&self, event: ProgressEvent<'_>) {
///         if let ProgressEvent::Advanced { bytes } = event {
///             self.0.store(bytes, Ordering::Relaxed);
///         }
///     }
/// }
///
/// let counter = Counter::default();
/// counter.event(ProgressEvent::Advanced { bytes: 4096 });
/// assert_eq!(counter.0.into_inner(), 4096);
/// ```
pub trait Progress: Send + Sync {
    /// One thing has happened.
    fn event(&self, event: ProgressEvent<'_>);
}

impl std::fmt::Debug for dyn Progress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Progress")
    }
}

/// Shows nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Progress for Silent {
    fn event(&self, _: ProgressEvent<'_>) {}
}

/// Shows downloads, and what waits for memory, as plain lines on standard error.
///
/// ```
/// let vm = fleetbox::Vm::test().progress(fleetbox::progress::stderr());
/// ```
pub fn stderr() -> Box<dyn Progress> {
    Box::new(Lines::new(io::stderr()))
}

/// How long a download may be silent in plain lines.
const LINE_INTERVAL: Duration = Duration::from_secs(10);

/// Plain lines, for logs: one at the beginning, one at the end, one each ten seconds or tenth
/// part, whichever is rarer.
///
/// ```
/// use fleetbox::progress::{Lines, Progress, ProgressEvent};
///
/// let lines = Lines::new(std::io::stdout());
/// lines.event(ProgressEvent::Waiting { image: "debian-12" });
/// ```
#[derive(Debug)]
pub struct Lines<W> {
    state: Mutex<LinesState<W>>,
}

#[derive(Debug)]
struct LinesState<W> {
    out: W,
    total: Option<u64>,
    begun: Instant,
    last_line: Instant,
    last_tenth: u64,
}

impl<W: Write + Send> Lines<W> {
    /// Lines to `out`; failures to write are ignored.
    ///
    /// ```
    /// use fleetbox::progress::{Lines, Progress, ProgressEvent};
    ///
    /// let mut log = Vec::new();
    /// Lines::new(&mut log).event(ProgressEvent::Waiting { image: "debian-12" });
    /// assert!(String::from_utf8_lossy(&log).starts_with("debian-12: waiting"));
    /// ```
    pub fn new(out: W) -> Self {
        let now = Instant::now();
        Self {
            state: Mutex::new(LinesState {
                out,
                total: None,
                begun: now,
                last_line: now,
                last_tenth: 0,
            }),
        }
    }
}

impl<W: Write + Send> Progress for Lines<W> {
    fn event(&self, event: ProgressEvent<'_>) {
        let Ok(mut state) = self.state.lock() else {
            return;
        };
        let line = match event {
            ProgressEvent::Waiting { image } => {
                format!("{image}: waiting for another process that is downloading it")
            }
            ProgressEvent::Started {
                image,
                url,
                resumed_from,
                total,
            } => {
                state.total = total;
                state.begun = Instant::now();
                state.last_line = state.begun;
                state.last_tenth = total.map_or(0, |t| tenths(resumed_from, t));
                let size = total.map_or_else(String::new, |t| format!(" ({})", human(t)));
                if resumed_from > 0 {
                    format!(
                        "{image}: downloading {url}{size}, continuing at {}",
                        human(resumed_from)
                    )
                } else {
                    format!("{image}: downloading {url}{size}")
                }
            }
            ProgressEvent::Advanced { bytes } => {
                let tenth = state.total.map_or(u64::MAX, |t| tenths(bytes, t));
                if state.last_line.elapsed() < LINE_INTERVAL || tenth <= state.last_tenth {
                    return;
                }
                state.last_line = Instant::now();
                match state.total {
                    Some(total) => {
                        state.last_tenth = tenth;
                        format!("{} of {} ({} %)", human(bytes), human(total), tenth * 10)
                    }
                    None => human(bytes),
                }
            }
            ProgressEvent::Retrying { why } => format!("{why}; trying again"),
            ProgressEvent::Finished { bytes } => format!(
                "downloaded and verified {} in {:.1} s",
                human(bytes),
                state.begun.elapsed().as_secs_f64()
            ),
            ProgressEvent::WaitingForMemory { vm, why } => {
                format!("{vm} waits for memory: {why}")
            }
            ProgressEvent::Failed
            | ProgressEvent::MemoryGranted
            | ProgressEvent::Stopping { .. }
            | ProgressEvent::Starting { .. }
            | ProgressEvent::CopyingFixtures { .. }
            | ProgressEvent::WaitingFor { .. } => return,
        };
        let _ = writeln!(state.out, "{line}");
    }
}

/// A number of bytes for people: `1.50 GiB`.
fn human(bytes: u64) -> String {
    let (mut value, mut unit) = (bytes as f64, "B");
    for larger in ["KiB", "MiB", "GiB", "TiB"] {
        if value < 1024.0 {
            break;
        }
        (value, unit) = (value / 1024.0, larger);
    }
    match unit {
        "B" => format!("{bytes} B"),
        unit => format!("{value:.2} {unit}"),
    }
}

fn tenths(bytes: u64, total: u64) -> u64 {
    bytes.saturating_mul(10).checked_div(total).unwrap_or(10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_few_and_plain() {
        let lines = Lines::new(Vec::new());
        lines.event(ProgressEvent::Waiting { image: "debian-12" });
        lines.event(ProgressEvent::Started {
            image: "debian-12",
            url: "http://x/y",
            resumed_from: 1024,
            total: Some(1 << 20),
        });
        for bytes in (0..1 << 20).step_by(4096) {
            lines.event(ProgressEvent::Advanced { bytes });
        }
        lines.event(ProgressEvent::Finished { bytes: 1 << 20 });
        let state = lines.state.into_inner().unwrap();
        let text = String::from_utf8(state.out).unwrap();
        let found: Vec<_> = text.lines().collect();
        assert_eq!(found.len(), 3, "{text}");
        assert!(
            found[1].contains("http://x/y (1.00 MiB), continuing at 1.00 KiB"),
            "{text}"
        );
        assert!(!text.contains('\u{1b}') && !text.contains('\r'));
    }

    #[test]
    fn bytes_have_the_largest_unit_that_fits() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.00 KiB"),
            (3 << 29, "1.50 GiB"),
            (u64::MAX, "16777216.00 TiB"),
        ] {
            assert_eq!(human(bytes), text);
        }
    }

    #[test]
    fn empty_files_have_tenths_too() {
        assert_eq!(tenths(0, 0), 10);
        assert_eq!(tenths(5, 10), 5);
    }
}
