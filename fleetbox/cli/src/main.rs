//! The program `fleetbox`: a thin layer over the library's public API.
//!
//! Each command is a function of a module. docs/ARCHITECTURE.md has the order in which modules import each other.

mod args;
mod confirm;
mod console;
mod cp;
mod disk;
mod doctor;
mod exit;
mod generate;
mod guest_info;
mod images;
mod lifecycle;
mod list;
mod logs;
mod machine;
mod outcome;
mod output;
mod progress;
mod proxy;
mod remove;
mod run;
mod select;
mod set;
mod show;
mod ssh;
mod ssh_config;
mod sudo;
mod table;
mod terminal;
mod up;
mod values;
mod workspace;

use std::process::ExitCode;

use clap::Parser as _;
use fleetbox::Result;

use crate::args::{Cli, Command};
use crate::exit::{FAILURE, GUEST_FAILURE};
use crate::output::{Context, complain};

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
    // A thread may still wait for standard input, which is not needed any more.
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
        Command::Exec(exec) => workspace::exec(context, exec).await,
        Command::Run(run) => run::run(context, run).await,
        Command::Ship(ship) => workspace::ship(context, ship).await,
        Command::PullDiff { name, output } => workspace::pull_diff(context, &name, output).await,
        Command::Ls => list::run(context).await,
        Command::Show { name } => show::run(context, &name).await,
        Command::Logs(logs) => logs::run(context, logs).await,
        Command::Console { name } => console::run(context, &name).await,
        Command::Ports { name } => guest_info::ports(context, &name).await,
        Command::Stats { names } => guest_info::stats(context, &names).await,
        Command::Cp(cp) => cp::run(context, cp).await,
        Command::Down(down) => lifecycle::down(context, down).await,
        Command::Restart(restart) => lifecycle::restart(context, restart).await,
        Command::Kill(kill) => lifecycle::kill(context, kill).await,
        Command::Set(set) => set::run(context, set).await,
        Command::Rm(rm) => remove::rm(context, rm).await,
        Command::Prune(prune) => remove::prune(context, prune).await,
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
