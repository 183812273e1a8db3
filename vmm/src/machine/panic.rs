//! What becomes of a machine whose guest's kernel has panicked.
//!
//! A kernel reports its panic by the pvpanic device, if it has loaded the driver. Otherwise there is only the line on
//! the console, which any program can print. So the line alone ends no machine: the guest must also have stopped.
//!
//! [`PanicWatch::check`] is called at short intervals while there is something to watch. It knows no clock, no console and
//! no vCPU; its caller passes what they say.

use std::time::{Duration, Instant};

/// How long the console must be silent after a reported panic, so that the trace is complete.
const TRACE_QUIET: Duration = Duration::from_secs(2);
/// How long a machine goes on at most after a reported panic, however much the console prints.
const TRACE_TIME: Duration = Duration::from_secs(60);
/// How long the console must be silent after a panic that only the console shows.
const TEXT_QUIET: Duration = Duration::from_secs(5);
/// The same after the line that Linux prints last.
const END_QUIET: Duration = Duration::from_secs(1);
/// How long the vCPUs are looked at before a guest that only printed a line counts as stopped.
const TEXT_LOOK: Duration = Duration::from_secs(5);
/// The same for a guest that has reported its panic.
const REPORT_LOOK: Duration = Duration::from_millis(500);
/// How often they are looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(10);
/// The fewest complete looks that say anything of a guest that only printed a line.
const TEXT_LOOKS: u32 = 100;
/// The same of a guest that has reported its panic.
const REPORT_LOOKS: u32 = 10;
/// How long a crash kernel may take to save its dump.
const CRASH_KERNEL_TIME: Duration = Duration::from_secs(30 * 60);
/// How much longer than announced a guest may take to reset itself.
const RESET_MARGIN: Duration = Duration::from_secs(5);
/// The longest announced time that is waited for.
const LONGEST_RESET: Duration = Duration::from_secs(10 * 60);
/// How often the console is looked at.
const CONSOLE_INTERVAL: Duration = Duration::from_millis(250);

/// What the console says of a panic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PanicText {
    /// The line that announces it.
    pub(super) line: String,
    /// When it came.
    pub(super) at: Instant,
    /// The line that Linux prints last has come.
    pub(super) complete: bool,
    /// After how many seconds the guest will reset itself, as it says.
    pub(super) reset_in: Option<u32>,
}

/// What the console knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ConsoleView {
    pub(super) text: Option<PanicText>,
    /// When the last output came.
    pub(super) last_output: Instant,
}

/// What a look at the vCPUs showed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Look {
    /// Each vCPU has said what it does.
    pub(super) complete: bool,
    /// The guest goes on: a vCPU waits for interrupts or runs a program, or a device was used.
    pub(super) runs: bool,
}

/// What to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    /// There is nothing to watch.
    Calm,
    /// Check again after this time.
    CheckIn(Duration),
    /// The line on the console was only a line, or it was followed by a crash kernel: forget it.
    Forget,
    /// The guest has stopped. The text says why.
    Stopped(String),
}

/// Watches one boot of a machine for a panic.
pub(super) struct PanicWatch {
    /// After what time the kernel resets the machine, by its command line.
    reset_after: Option<Duration>,
    /// When the guest reported a panic for which there is no crash kernel.
    reported: Option<Instant>,
    /// When a crash kernel began to run.
    crash_kernel: Option<Instant>,
    /// The line of the panic that led to the crash kernel.
    crash_line: Option<String>,
    looking: Option<Looking>,
}

struct Looking {
    since: Instant,
    complete: u32,
}

impl PanicWatch {
    /// A watch over a guest whose kernel has this command line.
    pub(super) fn new(cmdline: &str) -> Self {
        let seconds = cmdline
            .split_ascii_whitespace()
            .filter_map(|word| word.strip_prefix("panic="))
            .filter_map(|number| number.parse::<i64>().ok())
            .next_back();
        Self {
            reset_after: seconds
                .and_then(|seconds| u64::try_from(seconds).ok())
                .filter(|seconds| *seconds > 0)
                .map(Duration::from_secs),
            reported: None,
            crash_kernel: None,
            crash_line: None,
            looking: None,
        }
    }

    /// The guest has reported a panic. Returns the text of the event.
    pub(super) fn report(
        &mut self,
        view: &ConsoleView,
        crash_kernel: bool,
        now: Instant,
    ) -> String {
        let text = describe(view);
        if crash_kernel {
            self.crash_kernel.get_or_insert(now);
            self.crash_line = Some(text.clone());
        } else {
            self.reported.get_or_insert(now);
        }
        self.looking = None;
        text
    }

    /// Says what to do now. `look` looks at the vCPUs.
    pub(super) fn check(
        &mut self,
        view: &ConsoleView,
        now: Instant,
        look: impl FnOnce() -> Look,
    ) -> Verdict {
        if let Some(since) = self.crash_kernel
            && now.saturating_duration_since(since) >= CRASH_KERNEL_TIME
        {
            return Verdict::Stopped(format!(
                "{}; its crash kernel has not ended the machine within {} minutes",
                self.crash_line.clone().unwrap_or_else(|| describe(view)),
                CRASH_KERNEL_TIME.as_secs() / 60
            ));
        }
        let since = match (self.reported, &view.text) {
            (Some(at), _) => at,
            (None, Some(text)) if !self.explained(text) => text.at,
            (None, _) if self.crash_kernel.is_some() => return Verdict::CheckIn(CONSOLE_INTERVAL),
            (None, Some(_)) | (None, None) => return Verdict::Calm,
        };
        let reset = self.announced_reset(view);
        if let Some(at) = self.reported
            && now.saturating_duration_since(at) >= TRACE_TIME + reset
        {
            return Verdict::Stopped(describe(view));
        }
        let complete = view.text.as_ref().is_some_and(|text| text.complete);
        let quiet = match self.reported {
            Some(_) => TRACE_QUIET,
            None if complete => END_QUIET,
            None => TEXT_QUIET,
        } + reset;
        let begun = now.saturating_duration_since(since.max(view.last_output));
        if begun < quiet {
            self.looking = None;
            return Verdict::CheckIn((quiet - begun).min(CONSOLE_INTERVAL));
        }
        self.look(view, now, look())
    }

    /// Takes account of a look at the vCPUs.
    fn look(&mut self, view: &ConsoleView, now: Instant, look: Look) -> Verdict {
        let Some(looking) = &mut self.looking else {
            // What the first look shows happened before it.
            self.looking = Some(Looking {
                since: now,
                complete: 0,
            });
            return Verdict::CheckIn(LOOK_INTERVAL);
        };
        if look.runs {
            self.looking = None;
            if self.reported.take().is_some() {
                // A kernel that cannot tell a crash kernel apart, or whose crash kernel came later.
                self.crash_kernel.get_or_insert(now);
                self.crash_line = Some(describe(view));
            }
            return Verdict::Forget;
        }
        looking.complete += u32::from(look.complete);
        let (enough, looks) = match self.reported {
            Some(_) => (REPORT_LOOK, REPORT_LOOKS),
            None => (TEXT_LOOK, TEXT_LOOKS),
        };
        let looked = now.saturating_duration_since(looking.since);
        if looked >= enough && looking.complete >= looks {
            return Verdict::Stopped(describe(view));
        }
        Verdict::CheckIn(LOOK_INTERVAL)
    }

    /// True if the line was told of by the report that led to the crash kernel.
    fn explained(&self, text: &PanicText) -> bool {
        self.crash_kernel.is_some_and(|since| text.at <= since)
    }

    /// How much longer the guest may be silent, because it will reset itself.
    fn announced_reset(&self, view: &ConsoleView) -> Duration {
        let said = view.text.as_ref().and_then(|text| text.reset_in);
        let announced = said
            .map(|seconds| Duration::from_secs(seconds.into()))
            .or(self.reset_after);
        match announced {
            Some(time) => time.min(LONGEST_RESET) + RESET_MARGIN,
            None => Duration::ZERO,
        }
    }
}

fn describe(view: &ConsoleView) -> String {
    match &view.text {
        Some(text) => text.line.clone(),
        None => "the guest's kernel has reported a panic".to_owned(),
    }
}

#[cfg(test)]
#[path = "panic_test.rs"]
mod tests;
