//! The one line that moves while a VM comes up.

use std::io::IsTerminal as _;
use std::sync::Arc;
use std::time::Duration;

use fleetbox::images::{Progress, ProgressEvent, progress};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::output::Context;

/// What shows how far a start has come: a moving line on a terminal, plain lines of downloads
/// elsewhere, nothing with `--quiet`. The line is gone when this is dropped.
pub(super) struct Display {
    line: Option<Arc<Line>>,
    quiet: bool,
}

impl Display {
    /// Begins with `what`.
    pub(super) fn new(context: &Context, what: &str) -> Self {
        let moving = !context.quiet && std::io::stderr().is_terminal();
        let line = moving.then(|| Arc::new(Line::new(what)));
        Self {
            line,
            quiet: context.quiet,
        }
    }

    /// Changes what the line says; nothing where there is no line.
    pub(super) fn teller(&self) -> impl Fn(String) + Send + Sync + 'static {
        let line = self.line.clone();
        move |text| {
            if let Some(line) = &line {
                line.bar.set_message(text);
            }
        }
    }

    /// What is told of a download.
    pub(super) fn progress(&self) -> Arc<dyn Progress> {
        match &self.line {
            Some(line) => Arc::clone(line) as _,
            None if self.quiet => Arc::new(progress::Silent),
            None => Arc::from(progress::stderr()),
        }
    }
}

impl Drop for Display {
    fn drop(&mut self) {
        if let Some(line) = &self.line {
            line.bar.finish_and_clear();
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
