//! What worker and machine processes write to standard error, which is the cluster's log file.
//!
//! A guest can make its machine process, and its packets the worker, log without end. So everything goes through
//! [`BoundedLog`], panics included: code that a guest's data reaches may panic often, where each panic is contained.

use std::io::{self, Write};
use std::panic::PanicHookInfo;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime as _, SystemTime};
use tracing_subscriber::layer::{Layer as _, SubscriberExt as _};

use crate::util::sync::lock;
use crate::util::text::printable;

/// Maximum bytes that one process writes to the log.
pub(super) const LIMIT: usize = 4 << 20;

/// How many panics are logged at once. Then they are at most one a minute.
const PANICS: u32 = 20;
/// How long one panic more waits, once there were as many.
const PANIC_INTERVAL: Duration = Duration::from_secs(60);
/// Maximum characters of a panic's message.
const MESSAGE: usize = 300;

/// Starts the log of this process, which has just begun.
pub(super) fn start() {
    let levels = std::env::var("FLEETBOX_LOG")
        .ok()
        .filter(|text| !text.is_empty())
        .and_then(|text| text.parse().ok())
        .unwrap_or_else(|| Targets::new().with_default(LevelFilter::INFO));
    let lines = fmt::layer()
        .with_writer(BoundedLog::default)
        .with_ansi(false);
    let subscriber = tracing_subscriber::registry().with(lines.with_filter(levels));
    // It cannot be set already: this process has just begun.
    let _ = tracing::subscriber::set_global_default(subscriber);
    let panics = Mutex::new(Allowance::new(Instant::now()));
    std::panic::set_hook(Box::new(move |info| log_panic(info, &panics)));
}

/// Writes a line about a panic, without a backtrace. Not by `tracing`, in which the panic may have been.
fn log_panic(info: &PanicHookInfo<'_>, panics: &Mutex<Allowance>) {
    let Some(omitted) = lock(panics).take(Instant::now()) else {
        return;
    };
    let mut line = String::new();
    // A String can be written to.
    let _ = SystemTime.format_time(&mut Writer::new(&mut line));
    let message = info.payload_as_str().unwrap_or("no message");
    let message: String = printable(message.as_bytes())
        .chars()
        .take(MESSAGE)
        .collect();
    let message = message.replace('\n', " ");
    let thread = std::thread::current();
    let thread = thread.name().unwrap_or("(unnamed)");
    let place = info
        .location()
        .map_or_else(String::new, |at| format!(" at {at}"));
    line.push_str(&format!(
        " ERROR thread {thread} panicked{place}: {message}"
    ));
    if omitted > 0 {
        line.push_str(&format!(" (and {omitted} panics before it)"));
    }
    line.push('\n');
    // There is no other place to report it.
    let _ = BoundedLog.write_all(line.as_bytes());
}

/// How many panics may still be logged.
struct Allowance {
    left: u32,
    since: Instant,
    omitted: u64,
}

impl Allowance {
    fn new(now: Instant) -> Self {
        Self {
            left: PANICS,
            since: now,
            omitted: 0,
        }
    }

    /// Returns how many were not logged before this one, or `None` if this one is not logged either.
    fn take(&mut self, now: Instant) -> Option<u64> {
        let gained = now.saturating_duration_since(self.since).as_secs() / PANIC_INTERVAL.as_secs();
        if gained > 0 {
            self.since = now;
            let gained = u32::try_from(gained).unwrap_or(PANICS);
            self.left = self.left.saturating_add(gained).min(PANICS);
        }
        if self.left == 0 {
            self.omitted += 1;
            return None;
        }
        self.left -= 1;
        Some(std::mem::take(&mut self.omitted))
    }
}

/// Standard error, up to a limit. A guest can make its machine process log without end, and must not fill the host's
/// disk that way.
#[derive(Default)]
struct BoundedLog;

impl Write for BoundedLog {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        static WRITTEN: AtomicUsize = AtomicUsize::new(0);
        let before = WRITTEN.fetch_add(bytes.len(), Ordering::Relaxed);
        if before < LIMIT {
            io::stderr().write_all(bytes)?;
            if before + bytes.len() >= LIMIT {
                io::stderr().write_all(b"the log ends here: it has reached its size limit\n")?;
            }
        } else {
            // Keeps the counter from wrapping around.
            WRITTEN.store(LIMIT, Ordering::Relaxed);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn panics_are_logged_at_once_then_seldom_and_counted() {
        let start = Instant::now();
        let mut allowance = Allowance::new(start);
        let logged = (0..1000)
            .filter(|_| allowance.take(start).is_some())
            .count();
        assert_eq!(logged, 20);
        let later = start + Duration::from_secs(61);
        assert_eq!(allowance.take(later), Some(980));
        assert_eq!(allowance.take(later), None);
        let much_later = later + Duration::from_secs(3600);
        assert_eq!(allowance.take(much_later), Some(1));
        let logged = (0..1000)
            .filter(|_| allowance.take(much_later).is_some())
            .count();
        assert_eq!(logged, 19);
    }
}
