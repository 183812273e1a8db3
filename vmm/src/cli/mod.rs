//! The command line of `fleetbox-vmm`.

mod args;
mod events;
mod foreground;
mod remarks;
mod run;
mod signals;
mod terminal;

use std::io::{self, IsTerminal as _, Write};
use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use fleetbox_vmm::output::BoundedWriter;
use fleetbox_vmm::preflight;
use tracing_subscriber::fmt::format::FmtSpan;

use args::{Arguments, Command, RunOptions};
use signals::Terminations;

/// Runs the command. `start` is when the process started.
pub(crate) fn main(start: Instant) -> ExitCode {
    match Arguments::parse().command {
        Command::Run(options) => run_guest(options, start),
        Command::Probe => {
            log_to(io::stderr);
            let probe = preflight::probe();
            let told = writeln!(io::stdout(), "{probe}");
            if let Err(error) = told {
                let _ = writeln!(
                    io::stderr(),
                    "fleetbox-vmm: cannot write to standard output: {error}"
                );
                ExitCode::FAILURE
            } else if probe.hardware() {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            }
        }
    }
}

fn run_guest(options: Box<RunOptions>, start: Instant) -> ExitCode {
    let terminations = match Terminations::hold() {
        Ok(terminations) => terminations,
        Err(error) => {
            eprintln!("fleetbox-vmm: cannot start: {error}");
            return ExitCode::FAILURE;
        }
    };
    // All that goes to standard error, from any thread, goes by this: should its reader stop
    // reading, nothing waits for it.
    let stderr = BoundedWriter::start(io::stderr(), |_| String::new());
    let log = stderr.clone();
    log_to(move || log.clone());
    let code = run::run(options, start, &terminations, &stderr).unwrap_or_else(|error| {
        run::tell(&stderr, &format!("fleetbox-vmm: {error}\n"));
        ExitCode::FAILURE
    });
    stderr.finish();
    code
}

/// Enables log messages, if they are asked for.
fn log_to<W: Write>(writer: impl Fn() -> W + Send + Sync + 'static) {
    if let Some(filter) = std::env::var_os("FLEETBOX_LOG") {
        tracing_subscriber::fmt()
            .with_env_filter(tracing_subscriber::EnvFilter::new(filter.to_string_lossy()))
            // How long what took, at level debug.
            .with_span_events(FmtSpan::CLOSE)
            // Colours are for terminals (<https://no-color.org>).
            .with_ansi(
                io::stderr().is_terminal()
                    && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()),
            )
            .with_writer(writer)
            .init();
    }
}
