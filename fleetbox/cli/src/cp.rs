//! `cp`: files between this host and a VM.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use fleetbox::files::{CopySummary, FileOptions, FilesError, Stop};
use fleetbox::guest::quote;
use fleetbox::{Error, Result, Vm};
use tokio::signal::unix::{SignalKind, signal};

use crate::args::Cp;
use crate::exit::REFUSED;
use crate::output::{Context, complain};
use crate::progress::Display;
use crate::table;
use crate::values::Place;

pub(crate) async fn run(context: &Context, cp: Cp) -> Result<u8> {
    let several = cp.sources.len() > 1;
    let mut total = CopySummary::default();
    let interruption = Interruption::watch();
    for source in &cp.sources {
        // Shown with the first file: the copy may be refused before.
        let display = Display::new(context, &format!("copying {source} to {}", cp.destination));
        let update = display.updater();
        let mut options = FileOptions::new()
            .stop(&interruption.stop)
            .progress(move |progress| {
                update(format!("{} ({})", progress.path, size(progress.bytes)));
            });
        if cp.root {
            options = options.as_root();
        }
        let copied = match (source, &cp.destination) {
            (Place::Host(host), Place::Guest(name, path)) => {
                let vm = context.fleet().open(name.as_str()).await?;
                let path = guest_directory(&vm, path, several).await?;
                vm.copy_to_with(host, &path, &options).await
            }
            (Place::Guest(name, path), Place::Host(host)) => {
                let vm = context.fleet().open(name.as_str()).await?;
                // An existing directory is copied into, not replaced.
                let into = if several || host.is_dir() {
                    host.join("")
                } else {
                    host.clone()
                };
                vm.copy_from_with(path, into, &options).await
            }
            _ => {
                drop(display);
                complain(
                    "one side of a copy must be in a VM (NAME:PATH) and the other on this host; \
                     write ./PATH for a path on this host that has a colon",
                );
                return Ok(REFUSED);
            }
        };
        drop(display);
        if let Err(Error::Files(error @ FilesError::Stopped)) = &copied {
            complain(error);
            return Ok(interruption.status());
        }
        let copied = copied?;
        total.files += copied.files;
        total.directories += copied.directories;
        total.links += copied.links;
        total.bytes += copied.bytes;
    }
    if context.json {
        context.say_json(&serde_json::json!({
            "files": total.files,
            "directories": total.directories,
            "links": total.links,
            "bytes": total.bytes,
        }))?;
    }
    context.tell(format_args!(
        "{}, {}",
        table::count(total.files + total.links, "file"),
        size(total.bytes)
    ));
    Ok(0)
}

/// Ends the copies when a signal asks this program to end, so that no part of a file stays. A second signal ends the
/// program at once.
struct Interruption {
    stop: Stop,
    /// The exit status; 0 until there was a signal.
    status: Arc<AtomicU8>,
}

impl Interruption {
    fn watch() -> Self {
        let watched = Self {
            stop: Stop::new(),
            status: Arc::default(),
        };
        for (kind, status) in [
            (SignalKind::interrupt(), 130),
            (SignalKind::terminate(), 143),
        ] {
            // Without the handler, the signal ends the program as it always does.
            let Ok(mut signals) = signal(kind) else {
                continue;
            };
            let (stop, first) = (watched.stop.clone(), Arc::clone(&watched.status));
            tokio::spawn(async move {
                while signals.recv().await.is_some() {
                    if first.swap(status, Ordering::AcqRel) != 0 {
                        std::process::exit(i32::from(status));
                    }
                    stop.stop();
                }
            });
        }
        watched
    }

    fn status(&self) -> u8 {
        self.status.load(Ordering::Acquire)
    }
}

fn size(bytes: u64) -> String {
    if bytes < 1 << 20 {
        return format!("{} KiB", bytes.div_ceil(1 << 10));
    }
    table::size(bytes)
}

/// The path, with a slash at its end if it is, or must be, a directory in the guest.
async fn guest_directory(vm: &Vm, path: &str, several: bool) -> Result<String> {
    if path.ends_with('/') {
        return Ok(path.to_owned());
    }
    // Commands run in the home directory.
    let tested = path.strip_prefix("~/").unwrap_or(path);
    let tested = if tested == "~" { "." } else { tested };
    let test = format!("test -d {}", quote(&format!("./{tested}")));
    let test = if tested.starts_with('/') {
        format!("test -d {}", quote(tested))
    } else {
        test
    };
    Ok(if several || vm.ssh(&test).await?.success() {
        format!("{path}/")
    } else {
        path.to_owned()
    })
}
