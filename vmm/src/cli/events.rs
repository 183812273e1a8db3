//! Machine events as JSON lines.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::sync::Mutex;
use std::time::Instant;

use fleetbox_vmm::machine::Event;
use serde::Serialize;

#[derive(Serialize)]
struct Line {
    /// Microseconds since the process began.
    at_us: u128,
    #[serde(flatten)]
    event: Event,
}

/// A function that writes each event as one line to `path` ("-" is standard error).
pub(super) fn writer(
    path: &Path,
    start: Instant,
) -> io::Result<impl Fn(Event) + Send + Sync + 'static> {
    let out: Box<dyn Write + Send> = if path == Path::new("-") {
        Box::new(io::stderr())
    } else {
        Box::new(File::create(path)?)
    };
    let out = Mutex::new(out);
    Ok(move |event| {
        let line = Line {
            at_us: start.elapsed().as_micros(),
            event,
        };
        let Ok(mut text) = serde_json::to_vec(&line) else {
            return;
        };
        text.push(b'\n');
        let mut out = out.lock().unwrap_or_else(|e| e.into_inner());
        if let Err(error) = out.write_all(&text) {
            tracing::warn!(%error, "events cannot be written");
        }
    })
}
