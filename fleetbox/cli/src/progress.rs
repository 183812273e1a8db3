//! Progress of long work: a line that is redrawn on a terminal, plain lines elsewhere.
//!
//! The library prints the plain lines of downloads. Only this program draws the redrawn line, so the library needs no
//! terminal.

use std::collections::BTreeSet;
use std::io::{IsTerminal as _, Write};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use fleetbox::progress::{self, Progress, ProgressEvent};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::output::Context;

/// A redrawn line on a terminal, plain lines elsewhere, one for each phase, nothing with `--quiet`. The
/// redrawn line is cleared when this is dropped.
pub(crate) struct Display(Mode);

enum Mode {
    Silent,
    Line(Arc<Line>),
    Plain(Arc<Plain<std::io::Stderr>>),
}

impl Display {
    /// Shows `what`, such as `starting web`; without a terminal only once a phase of it begins, since it may
    /// turn out that there is nothing to do.
    pub(crate) fn new(context: &Context, what: &str) -> Self {
        Self(if context.quiet {
            Mode::Silent
        } else if std::io::stderr().is_terminal() {
            Mode::Line(Arc::new(Line::new(what)))
        } else {
            Mode::Plain(Arc::new(Plain::new(what, std::io::stderr())))
        })
    }

    /// Like [`Display::new`], and shows `what` at once.
    pub(crate) fn begin(context: &Context, what: &str) -> Self {
        let display = Self::new(context, what);
        if let Mode::Plain(plain) = &display.0 {
            plain.print(what.to_owned());
        }
        display
    }

    /// Returns what changes the text of the redrawn line; without a terminal it shows once what is done.
    pub(crate) fn updater(&self) -> impl Fn(String) + Send + Sync + 'static {
        let (line, plain) = match &self.0 {
            Mode::Line(line) => (Some(Arc::clone(line)), None),
            Mode::Plain(plain) => (None, Some(Arc::clone(plain))),
            Mode::Silent => (None, None),
        };
        move |text| {
            if let Some(line) = &line {
                line.bar.set_message(text);
            }
            if let Some(plain) = &plain {
                plain.print(plain.what.clone());
            }
        }
    }

    /// The receiver of events about phases and downloads.
    pub(crate) fn progress(&self) -> Arc<dyn Progress> {
        match &self.0 {
            Mode::Silent => Arc::new(progress::Silent),
            Mode::Line(line) => Arc::clone(line) as _,
            Mode::Plain(plain) => Arc::clone(plain) as _,
        }
    }

    /// Runs `print` with the redrawn line out of its way.
    pub(crate) fn suspend(&self, print: impl FnOnce()) {
        match &self.0 {
            Mode::Line(line) => line.bar.suspend(print),
            Mode::Silent | Mode::Plain(_) => print(),
        }
    }
}

impl Drop for Display {
    fn drop(&mut self) {
        if let Mode::Line(line) = &self.0 {
            line.bar.finish_and_clear();
        }
    }
}

/// The text of a phase of `what`; `None` for other events.
fn phase(what: &str, event: ProgressEvent<'_>) -> Option<String> {
    Some(match event {
        ProgressEvent::Starting { .. } if what.starts_with("starting") => what.to_owned(),
        ProgressEvent::Starting { .. } => format!("{what}: starting"),
        ProgressEvent::Stopping { .. } => format!("{what}: stopping"),
        ProgressEvent::CopyingFixtures { .. } => format!("{what}: copying fixtures"),
        ProgressEvent::WaitingFor {
            what: condition, ..
        } => {
            format!("{what}: waiting for {condition}")
        }
        _ => return None,
    })
}

/// Lines for logs: one for each phase, however many VMs go through it.
struct Plain<W> {
    what: String,
    printed: Mutex<(BTreeSet<String>, W)>,
    downloads: progress::Lines<std::io::Stderr>,
}

impl<W: Write + Send> Plain<W> {
    fn new(what: &str, out: W) -> Self {
        Self {
            what: what.to_owned(),
            printed: Mutex::new((BTreeSet::new(), out)),
            downloads: progress::Lines::new(std::io::stderr()),
        }
    }

    fn print(&self, text: String) {
        let mut printed = self.printed.lock().unwrap_or_else(PoisonError::into_inner);
        let (printed, out) = &mut *printed;
        if printed.insert(text.clone()) {
            let _ = writeln!(out, "{text}");
        }
    }
}

impl<W: Write + Send> Progress for Plain<W> {
    fn event(&self, event: ProgressEvent<'_>) {
        match phase(&self.what, event) {
            Some(text) => self.print(text),
            None => self.downloads.event(event),
        }
    }
}

struct Line {
    what: String,
    bar: ProgressBar,
}

impl Line {
    fn new(what: &str) -> Self {
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
        let line = Self {
            what: what.to_owned(),
            bar,
        };
        line.wait(what);
        line
    }

    fn wait(&self, what: &str) {
        self.bar
            .set_style(style("{spinner} {msg} {elapsed_precise}"));
        self.bar.set_message(what.to_owned());
        self.bar.enable_steady_tick(Duration::from_millis(100));
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

impl Progress for Line {
    fn event(&self, event: ProgressEvent<'_>) {
        if let Some(text) = phase(&self.what, event) {
            return self.wait(&text);
        }
        match event {
            ProgressEvent::Waiting { image } => {
                self.wait(&format!("waiting for another download of {image}"));
            }
            ProgressEvent::Started {
                image,
                resumed_from,
                total,
                ..
            } => {
                self.bar.disable_steady_tick();
                self.bar.set_style(style(if total.is_some() {
                    "{msg} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec} {eta} left"
                } else {
                    "{msg} {spinner} {bytes} {bytes_per_sec}"
                }));
                if let Some(total) = total {
                    self.bar.set_length(total);
                }
                self.bar.set_message(image.to_owned());
                self.bar.set_position(resumed_from);
                self.bar.reset_eta();
            }
            ProgressEvent::Advanced { bytes } => self.bar.set_position(bytes),
            ProgressEvent::Retrying { why } => self.bar.println(format!("{why}; trying again")),
            ProgressEvent::WaitingForMemory { vm, why } => {
                self.wait(&format!("{vm} waits for memory: {why}"))
            }
            // The VM boots next.
            ProgressEvent::MemoryGranted | ProgressEvent::Finished { .. } => {
                self.bar.unset_length();
                self.wait(&self.what);
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_phase_has_one_line_however_many_vms_there_are() {
        let plain = Plain::new("starting cluster node", Vec::new());
        for vm in ["node-1", "node-2"] {
            plain.event(ProgressEvent::Starting { vm });
            plain.event(ProgressEvent::CopyingFixtures { vm });
        }
        for what in ["SSH", "TCP port 80"] {
            for vm in ["node-1", "node-2"] {
                plain.event(ProgressEvent::WaitingFor { vm, what });
            }
        }
        let (_, out) = plain.printed.into_inner().unwrap();
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "starting cluster node\n\
             starting cluster node: copying fixtures\n\
             starting cluster node: waiting for SSH\n\
             starting cluster node: waiting for TCP port 80\n"
        );
    }

    #[test]
    fn a_restart_has_an_end_and_a_beginning() {
        let plain = Plain::new("restarting web", Vec::new());
        plain.event(ProgressEvent::Stopping { vm: "web" });
        plain.event(ProgressEvent::Starting { vm: "web" });
        let (_, out) = plain.printed.into_inner().unwrap();
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "restarting web: stopping\nrestarting web: starting\n"
        );
    }
}
