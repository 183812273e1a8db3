//! Machine events as JSON lines.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::time::Instant;

use fleetbox_vmm::machine::Event;
use fleetbox_vmm::output::BoundedWriter;
use serde::Serialize;

#[derive(Serialize)]
struct Line {
    /// Microseconds since the process began.
    at_us: u128,
    #[serde(flatten)]
    event: Event,
}

/// A file for events. If it is a pipe whose reader stops reading, complete lines are lost.
pub(super) fn file(path: &Path) -> io::Result<BoundedWriter> {
    Ok(BoundedWriter::start(File::create(path)?, |_| String::new()))
}

/// A function that writes each event as one line.
pub(super) fn writer(out: BoundedWriter, start: Instant) -> impl Fn(Event) + Send + Sync + 'static {
    move |event| {
        let line = Line {
            at_us: start.elapsed().as_micros(),
            event,
        };
        let Ok(mut text) = serde_json::to_vec(&line) else {
            return;
        };
        text.push(b'\n');
        if let Err(error) = (&out).write_all(&text) {
            tracing::warn!(%error, "cannot write events");
        }
    }
}
