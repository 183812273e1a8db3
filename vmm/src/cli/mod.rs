//! The command line of `fleetbox-vmm`.

mod args;
mod attend;
mod events;
mod run;
mod signals;
mod terminal;

use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use fleetbox_vmm::preflight;
use tracing_subscriber::fmt::format::FmtSpan;

use args::{Arguments, Command};

/// Runs the command; `start` is when the process began.
pub(crate) fn main(start: Instant) -> ExitCode {
    let arguments = Arguments::parse();
    if let Some(filter) = std::env::var_os("FLEETBOX_LOG") {
        tracing_subscriber::fmt()
            .with_env_filter(tracing_subscriber::EnvFilter::new(filter.to_string_lossy()))
            // How long what took, at level debug.
            .with_span_events(FmtSpan::CLOSE)
            .with_writer(std::io::stderr)
            .init();
    }
    match arguments.command {
        Command::Run(options) => match run::run(options, start) {
            Ok(code) => code,
            Err(error) => {
                eprintln!("fleetbox-vmm: {error}");
                ExitCode::FAILURE
            }
        },
        Command::Probe => {
            let probe = preflight::probe();
            println!("{probe}");
            if probe.hardware() {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            }
        }
    }
}
