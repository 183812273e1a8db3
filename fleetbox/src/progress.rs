//! Progress of long operations: as plain lines, through a program's own [`Progress`], or not shown
//! at all.
//!
//! There are no progress bars here. Under a test runner they would mix with its output, and every user of the library
//! would have to compile them. A program that owns its terminal, such as `fleetbox`, draws its own.

use std::io::{self, Write};
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// What happens while an image is downloaded and while VMs are started, restarted and waited for.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub enum ProgressEvent<'a> {
    /// Another process is downloading the same image; this one waits for it.
    Waiting {
        /// The image, as the user named it.
        image: &'a str,
    },
    /// The download has started.
    Started {
        /// The image, as the user named it.
        image: &'a str,
        /// The URL it is downloaded from.
        url: &'a str,
        /// Bytes that an earlier, interrupted download left behind.
        resumed_from: u64,
        /// Size of the whole file in bytes, if the server says so.
        total: Option<u64>,
        /// Whether there is a checksum to verify the file with.
        verified: bool,
    },
    /// More of the file has arrived.
    Advanced {
        /// Number of bytes that are there, counted from the beginning of the file.
        bytes: u64,
    },
    /// The connection failed and will be retried.
    Retrying {
        /// Why it failed.
        why: &'a str,
    },
    /// The image is complete, and verified if there is a checksum for it.
    Finished {
        /// Its size in bytes.
        bytes: u64,
    },
    /// The download or the wait failed. The caller gets the error.
    Failed,
    /// A start waits for memory (see [`budget`](crate::budget)).
    WaitingForMemory {
        /// The VM, or the first of several.
        vm: &'a str,
        /// How much it needs, and which VMs hold the memory.
        why: &'a str,
    },
    /// The start that waited for memory has got it.
    MemoryGranted,
    /// A VM is being stopped, so that it can be started again.
    Stopping {
        /// The VM.
        vm: &'a str,
    },
    /// A VM's machine is about to start.
    Starting {
        /// The VM.
        vm: &'a str,
    },
    /// The VM's fixtures are being copied, before its machine starts.
    CopyingFixtures {
        /// The VM.
        vm: &'a str,
    },
    /// A VM's machine runs, and the start waits for its guest.
    WaitingFor {
        /// The VM.
        vm: &'a str,
        /// What it waits for: `SSH`, or the text of a [`Ready`](crate::Ready).
        what: &'a str,
    },
}

/// Receives events during a download and a start. It may be called from any thread, and must return quickly.
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
    /// Called for each event.
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

/// Prints downloads and waits for memory as plain lines on standard error.
///
/// ```
/// let vm = fleetbox::Vm::test().progress(fleetbox::progress::stderr());
/// ```
pub fn stderr() -> Box<dyn Progress> {
    Box::new(Lines::new(io::stderr()))
}

/// Least time between two lines of a download.
const LINE_INTERVAL: Duration = Duration::from_secs(10);

/// Plain lines for logs: one at the beginning, one at the end, and in between one every ten seconds
/// or one for every tenth of the file, whichever comes later.
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
    verified: bool,
    begun: Instant,
    last_line: Instant,
    last_tenth: u64,
}

impl<W: Write + Send> Lines<W> {
    /// Prints lines to `out`. Failures to write are ignored.
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
                verified: false,
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
                verified,
            } => {
                state.total = total;
                state.verified = verified;
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
            ProgressEvent::Finished { bytes } => {
                let (size, took) = (human(bytes), state.begun.elapsed().as_secs_f64());
                if state.verified {
                    format!("downloaded and verified {size} in {took:.1} s")
                } else {
                    format!(
                        "downloaded {size} in {took:.1} s; it was not verified, because its address comes without a checksum"
                    )
                }
            }
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
            verified: true,
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
    fn only_what_was_verified_is_called_so() {
        for verified in [true, false] {
            let lines = Lines::new(Vec::new());
            lines.event(ProgressEvent::Started {
                image: "http://x/y",
                url: "http://x/y",
                resumed_from: 0,
                total: None,
                verified,
            });
            lines.event(ProgressEvent::Finished { bytes: 1024 });
            let text = String::from_utf8(lines.state.into_inner().unwrap().out).unwrap();
            let last = text.lines().last().unwrap();
            assert!(last.starts_with("downloaded "), "{last}");
            assert_eq!(last.contains("downloaded and verified"), verified, "{last}");
            assert_eq!(last.contains("not verified"), !verified, "{last}");
        }
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
