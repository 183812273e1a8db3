//! `fleetbox-vmm`: runs one guest in the foreground, for debugging guests and the VMM itself.

mod cli;

use std::process::ExitCode;
use std::time::Instant;

fn main() -> ExitCode {
    cli::main(Instant::now())
}
