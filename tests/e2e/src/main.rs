//! The end-to-end suite: real images through the real library, CLI and debugging binary.
//!
//! One program that runs every case in one process, the same on hardware KVM and in the emulated host:
//! `cargo xtask test` runs it where it belongs, and `cargo xtask emulate -- target/debug/fleetbox-e2e tiny` runs a part
//! of it by hand. It needs `fleetbox` and `fleetbox-vmm` beside itself or in `PATH`, and a directory of images.
//!
//! The last line is `N passed, N failed`. The exit status is 0 if cases ran and all of them passed, 1 if one failed,
//! 2 if none ran.

mod cases;
mod host;
mod report;
mod runner;
mod suite;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Runs end-to-end cases against the virtual machines of this host.
#[derive(Debug, Parser)]
#[command(name = "fleetbox-e2e", version, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    role: Option<Role>,
    /// Only cases whose names contain one of these.
    filters: Vec<String>,
    /// List the cases and what they need instead of running them.
    #[arg(long)]
    list: bool,
    /// Directory with `tiny.raw`, `tiny.qcow2` and `debian-12.raw` [default: /images].
    #[arg(
        long,
        env = "FLEETBOX_E2E_IMAGES",
        default_value = "/images",
        hide_default_value = true
    )]
    images: PathBuf,
    /// Lanes of cases that run at once: those of the tiny image are one, those of Debian another.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=2))]
    jobs: u8,
    /// Keep the state directory, and say where it is.
    #[arg(long)]
    keep: bool,
}

#[derive(Debug, Subcommand)]
enum Role {
    /// Start a VM, say so, and wait to be killed: what a case runs as the owner of a VM.
    #[command(hide = true)]
    Owner(cases::kills::Owner),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match cli.role {
        Some(Role::Owner(owner)) => owner.run(),
        None => {
            let options = runner::Options {
                filters: cli.filters,
                images: cli.images,
                jobs: cli.jobs,
                keep: cli.keep,
            };
            if cli.list {
                runner::list(&options)
            } else {
                runner::run(options)
            }
        }
    }
}
