//! The program `fleetbox`: a thin layer over the library's public API.
//!
//! Exit status: 0 for success, 1 for a failure, 2 for arguments that are refused. `ssh`, `exec`
//! and `run` end with the status of their command, and with 255 if it could not be run, as OpenSSH does.

mod args;
mod ask;
mod console;
mod cp;
mod doctor;
mod generate;
mod images;
mod inside;
mod logs;
mod output;
mod progress;
mod proxy;
mod run;
mod show;
mod ssh;
mod ssh_config;
mod sudo;
mod table;
mod up;
mod vms;

use std::process::ExitCode;

use clap::Parser as _;
use fleetbox::Result;

use crate::args::{Cli, Command};
use crate::output::{Context, complain};

/// Exit status for a failure of ours.
const FAILURE: u8 = 1;
/// Exit status for arguments that are refused.
const REFUSED: u8 = 2;
/// Exit status for a failure of ours where the status is otherwise that of a guest's command.
const GUEST_FAILURE: u8 = 255;

fn main() -> ExitCode {
    let cli = Cli::parse();
    log();
    let failure = if cli.command.passes_status() {
        GUEST_FAILURE
    } else {
        FAILURE
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            complain(format_args!("cannot start threads: {error}"));
            return ExitCode::from(failure);
        }
    };
    let home = cli.home.clone();
    let status = runtime.block_on(run(cli)).unwrap_or_else(|error| {
        sudo::complain(home.as_deref(), &error);
        failure
    });
    // A thread may still be waiting for standard input, which nobody needs any more.
    runtime.shutdown_background();
    ExitCode::from(status)
}

async fn run(cli: Cli) -> Result<u8> {
    let context = Context {
        home: cli.home,
        quiet: cli.quiet,
        json: cli.json,
    };
    let context = &context;
    match cli.command {
        Command::Up(up) => up::run(context, up).await,
        Command::Ssh(ssh) => ssh::run(context, ssh).await,
        Command::Exec(exec) => run::exec(context, exec).await,
        Command::Run(run) => run::run(context, run).await,
        Command::Ship(ship) => run::ship(context, ship).await,
        Command::PullDiff { name, output } => run::pull_diff(context, &name, output).await,
        Command::Ls => vms::ls(context).await,
        Command::Show { name } => show::run(context, &name).await,
        Command::Logs(logs) => logs::run(context, logs).await,
        Command::Console { name } => console::run(context, &name).await,
        Command::Ports { name } => inside::ports(context, &name).await,
        Command::Stats { names } => inside::stats(context, &names).await,
        Command::Cp(cp) => cp::run(context, cp).await,
        Command::Down(down) => vms::down(context, down).await,
        Command::Restart(restart) => vms::restart(context, restart).await,
        Command::Kill(kill) => vms::kill(context, kill).await,
        Command::Set(set) => vms::set(context, set).await,
        Command::Rm(rm) => vms::rm(context, rm).await,
        Command::Prune(prune) => vms::prune(context, prune).await,
        Command::Dial { name, port } => ssh::dial(context, &name, port).await,
        Command::Proxy { listen } => proxy::run(context, listen).await,
        Command::SshConfig(options) => ssh_config::run(context, options).await,
        Command::Images(command) => images::run(context, command).await,
        Command::Doctor => doctor::run(context).await,
        Command::Completions { shell } => generate::completions(shell),
        Command::Man { dir } => generate::man(dir.as_deref()),
        Command::Version => {
            let version = env!("CARGO_PKG_VERSION");
            if context.json {
                context.say_json(&serde_json::json!({"name": "fleetbox", "version": version}))?;
            } else {
                context.say(format_args!("fleetbox {version}"));
            }
            Ok(0)
        }
    }
}

fn log() {
    let filter = tracing_subscriber::EnvFilter::try_from_env("FLEETBOX_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("error"));
    tracing_subscriber::fmt()
        .with_ansi(output::colours_on(&std::io::stderr()))
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .init();
}
