//! What shows how far something has come: a line that moves on a terminal, plain lines elsewhere.

use std::collections::BTreeSet;
use std::io::{IsTerminal as _, Write};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use fleetbox::progress::{self, Progress, ProgressEvent};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::output::Context;

/// A moving line on a terminal, plain lines elsewhere, one for each phase, nothing with `--quiet`. The
/// moving line is gone when this is dropped.
pub(crate) struct Display(Shown);

enum Shown {
    Nothing,
    Line(Arc<Line>),
    Plain(Arc<Plain<std::io::Stderr>>),
}

impl Display {
    /// Shows that `what` is done, such as `starting web`; without a terminal only once there is a phase
    /// of it, since what is there already takes no time.
    pub(crate) fn new(context: &Context, what: &str) -> Self {
        Self(if context.quiet {
            Shown::Nothing
        } else if std::io::stderr().is_terminal() {
            Shown::Line(Arc::new(Line::new(what)))
        } else {
            Shown::Plain(Arc::new(Plain::new(what, std::io::stderr())))
        })
    }

    /// As [`Display::new`], of what begins now in any case.
    pub(crate) fn begin(context: &Context, what: &str) -> Self {
        let display = Self::new(context, what);
        if let Shown::Plain(plain) = &display.0 {
            plain.tell(what.to_owned());
        }
        display
    }

    /// Changes what the line says; nothing where there is no line.
    pub(crate) fn teller(&self) -> impl Fn(String) + Send + Sync + 'static {
        let line = match &self.0 {
            Shown::Line(line) => Some(Arc::clone(line)),
            Shown::Nothing | Shown::Plain(_) => None,
        };
        move |text| {
            if let Some(line) = &line {
                line.bar.set_message(text);
            }
        }
    }

    /// What is told of phases and downloads.
    pub(crate) fn progress(&self) -> Arc<dyn Progress> {
        match &self.0 {
            Shown::Nothing => Arc::new(progress::Silent),
            Shown::Line(line) => Arc::clone(line) as _,
            Shown::Plain(plain) => Arc::clone(plain) as _,
        }
    }

    /// Does what prints something, with the moving line out of its way.
    pub(crate) fn aside(&self, print: impl FnOnce()) {
        match &self.0 {
            Shown::Line(line) => line.bar.suspend(print),
            Shown::Nothing | Shown::Plain(_) => print(),
        }
    }
}

impl Drop for Display {
    fn drop(&mut self) {
        if let Shown::Line(line) = &self.0 {
            line.bar.finish_and_clear();
        }
    }
}

/// What is said of a phase while `what` is done; `None` for an event of something else.
fn phase(what: &str, event: ProgressEvent<'_>) -> Option<String> {
    Some(match event {
        ProgressEvent::Starting { .. } if what.starts_with("starting") => what.to_owned(),
        ProgressEvent::Starting { .. } => format!("{what}: starting"),
        ProgressEvent::Stopping { .. } => format!("{what}: stopping"),
        ProgressEvent::CopyingFixtures { .. } => format!("{what}: copying fixtures"),
        ProgressEvent::WaitingFor { what: awaited, .. } => {
            format!("{what}: waiting for {awaited}")
        }
        _ => return None,
    })
}

/// Lines for logs: one for each phase, however many VMs go through it.
struct Plain<W> {
    what: String,
    told: Mutex<(BTreeSet<String>, W)>,
    downloads: progress::Lines<std::io::Stderr>,
}

impl<W: Write + Send> Plain<W> {
    fn new(what: &str, out: W) -> Self {
        Self {
            what: what.to_owned(),
            told: Mutex::new((BTreeSet::new(), out)),
            downloads: progress::Lines::new(std::io::stderr()),
        }
    }

    fn tell(&self, text: String) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let (told, out) = &mut *told;
        if told.insert(text.clone()) {
            let _ = writeln!(out, "{text}");
        }
    }
}

impl<W: Write + Send> Progress for Plain<W> {
    fn event(&self, event: ProgressEvent<'_>) {
        match phase(&self.what, event) {
            Some(text) => self.tell(text),
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
            ProgressEvent::WaitingForMemory { vm, why } => self.wait(&format!("{vm} waits: {why}")),
            // Booting is what follows.
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
        let (_, out) = plain.told.into_inner().unwrap();
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
        let (_, out) = plain.told.into_inner().unwrap();
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "restarting web: stopping\nrestarting web: starting\n"
        );
    }
}
