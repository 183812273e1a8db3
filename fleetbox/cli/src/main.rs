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
mod stdout;
mod sudo;
mod table;
mod terminal;
mod up;
mod values;
mod workspace;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser as _;
use fleetbox::Result;
use fleetbox::store::HOME_VARIABLE;

use crate::args::{Cli, Command};
use crate::exit::{FAILURE, GUEST_FAILURE};
use crate::output::{Context, complain, conclude};

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        // Help, or the version: results as those of other commands.
        Err(error) if !error.use_stderr() => {
            let text = error.render();
            if stdout::colours() {
                stdout::write(text.ansi().to_string().as_bytes());
            } else {
                stdout::write(text.to_string().as_bytes());
            }
            return ExitCode::from(conclude(0, FAILURE));
        }
        Err(error) => error.exit(),
    };
    log();
    let failure = if cli.command.passes_status() {
        GUEST_FAILURE
    } else {
        FAILURE
    };
    let home = std::env::var_os(HOME_VARIABLE).filter(|home| !home.is_empty());
    let home = cli.home.or(home.map(PathBuf::from));
    let context = Context {
        home,
        quiet: cli.quiet,
        json: cli.json,
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
    let ran = runtime.block_on(run(&context, cli.command));
    let status = ran.unwrap_or_else(|error| {
        sudo::complain(context.home(), &error);
        failure
    });
    // A thread may still wait for standard input, which is not needed any more.
    runtime.shutdown_background();
    ExitCode::from(conclude(status, failure))
}

async fn run(context: &Context, command: Command) -> Result<u8> {
    match command {
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
        Command::Completions { shell } => Ok(generate::completions(shell)),
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
        .with_ansi(stdout::colours_on(&std::io::stderr()))
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .init();
}
