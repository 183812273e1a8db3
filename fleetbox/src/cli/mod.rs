//! The command line: a thin layer over the library.
//!
//! Exit status: 0 for success, 1 for a failure, 2 for arguments that are refused. `ssh` ends with
//! the status of its command, and with 255 if it could not be run, as OpenSSH does.

mod doctor;
mod images;
mod ssh;
mod table;
mod vms;

use std::fmt::Display;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::str::FromStr;

use clap::{Args, Parser, Subcommand};
use fleetbox::images::ImageRef;
use fleetbox::names::{Name, check_cpus};
use fleetbox::{Error, Result, Size};

/// Real Linux VMs on this machine: stock cloud images, over SSH, without root.
#[derive(Debug, Parser)]
#[command(name = "fleetbox", version, disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,

    /// State directory [default: ~/.fleetbox]
    #[arg(long, global = true, env = "FLEETBOX_HOME", value_name = "DIR")]
    home: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Create a VM, or boot one that exists, and wait until it answers by SSH
    Up(Up),
    /// Log in to a VM, or run a command in it
    Ssh(Ssh),
    /// List VMs
    Ls {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Shut VMs down; their disks stay
    Down {
        /// The VMs
        #[arg(required = true, value_name = "NAME")]
        names: Vec<Name>,
        /// Seconds the guest gets to power off before it is killed
        #[arg(long, default_value_t = fleetbox::STOP_DEADLINE.as_secs(), value_name = "SECONDS")]
        timeout: u64,
        /// Kill at once
        #[arg(long, conflicts_with = "timeout")]
        force: bool,
    },
    /// Delete VMs with their disks, running or not
    Rm {
        /// The VMs
        #[arg(required = true, value_name = "NAME")]
        names: Vec<Name>,
    },
    /// Connect standard input and output to a TCP port of a VM, as ProxyCommand of OpenSSH does
    Dial {
        /// The VM
        name: Name,
        /// The port
        #[arg(value_parser = clap::value_parser!(u16).range(1..))]
        port: u16,
    },
    /// Show and download images
    #[command(subcommand)]
    Images(Images),
    /// Check whether VMs can run here, and say what to do if not
    Doctor,
    /// Print the version
    Version,
}

#[derive(Debug, Args)]
struct Up {
    /// The VM, which is also its hostname
    name: Name,
    /// Alias, path or URL of its image [default: debian-12]
    #[arg(long, value_parser = image)]
    image: Option<String>,
    /// Number of vCPUs [default: 2]
    #[arg(long, value_parser = cpus, value_name = "N")]
    cpus: Option<u32>,
    /// Memory, such as 512M or 2G [default: 2G]
    #[arg(long, value_parser = memory, value_name = "SIZE")]
    memory: Option<Size>,
    /// Size of the disk, such as 20G [default: 20G]
    #[arg(long, value_parser = disk, value_name = "SIZE")]
    disk: Option<Size>,
    /// Seconds the guest may take until it answers by SSH
    #[arg(
        long,
        default_value_t = fleetbox::DEFAULT_BOOT_TIMEOUT.as_secs(),
        value_parser = clap::value_parser!(u64).range(1..),
        value_name = "SECONDS"
    )]
    timeout: u64,
}

#[derive(Debug, Args)]
struct Ssh {
    /// The VM
    name: Name,
    /// Ask for a terminal even though a command is given
    #[arg(short, long)]
    tty: bool,
    /// A command for the login shell; its words are joined by spaces
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<String>,
}

#[derive(Debug, Subcommand)]
enum Images {
    /// List the catalogue's images
    Ls {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Download an image, unless it is here
    Pull {
        /// Alias, path or URL
        #[arg(value_parser = image)]
        image: String,
    },
}

fn image(text: &str) -> Result<String, impl std::error::Error + Send + Sync + 'static + use<>> {
    ImageRef::from_str(text).map(|_| text.to_owned())
}

type Refusal = Box<dyn std::error::Error + Send + Sync>;

fn cpus(text: &str) -> Result<u32, Refusal> {
    Ok(check_cpus(text.parse()?)?.into())
}

fn memory(text: &str) -> Result<Size, Refusal> {
    Ok(text.parse::<Size>()?.check_memory()?)
}

fn disk(text: &str) -> Result<Size, Refusal> {
    Ok(text.parse::<Size>()?.check_disk()?)
}

/// Exit status for a failure of ours.
const FAILURE: u8 = 1;
/// Exit status of `ssh` for a failure of ours.
const SSH_FAILURE: u8 = 255;

pub(crate) fn main() -> ExitCode {
    let cli = Cli::parse();
    log();
    let failure = if matches!(cli.command, Command::Ssh(_)) {
        SSH_FAILURE
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
    let status = runtime.block_on(run(cli)).unwrap_or_else(|error| {
        complain(error);
        failure
    });
    // A thread may still be waiting for standard input, which nobody needs any more.
    runtime.shutdown_background();
    ExitCode::from(status)
}

async fn run(cli: Cli) -> Result<u8> {
    let home = cli.home.as_deref();
    match cli.command {
        Command::Up(up) => vms::up(home, up).await,
        Command::Ssh(ssh) => ssh::run(home, ssh).await,
        Command::Ls { json } => vms::ls(home, json).await,
        Command::Down {
            names,
            timeout,
            force,
        } => vms::down(home, &names, if force { 0 } else { timeout }).await,
        Command::Rm { names } => vms::rm(home, &names).await,
        Command::Dial { name, port } => ssh::dial(home, &name, port).await,
        Command::Images(Images::Ls { json }) => images::ls(home, json).await,
        Command::Images(Images::Pull { image }) => images::pull(home, &image).await,
        Command::Doctor => doctor::run(home).await,
        Command::Version => {
            say(format_args!("fleetbox {}", env!("CARGO_PKG_VERSION")));
            Ok(0)
        }
    }
}

fn log() {
    let filter = tracing_subscriber::EnvFilter::try_from_env("FLEETBOX_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("error"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .init();
}

/// A line on standard output. If nobody reads it, so be it.
fn say(line: impl Display) {
    let _ = writeln!(std::io::stdout(), "{line}");
}

/// A line on standard error.
fn note(line: impl Display) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

fn complain(error: impl Display) {
    note(format_args!("fleetbox: {error}"));
}

/// Prints `value` as JSON.
fn say_json(value: &impl serde::Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(value).map_err(|error| Error::Io {
        action: "write JSON",
        source: error.into(),
    })?;
    say(text);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_arguments_are_consistent() {
        use clap::CommandFactory as _;
        Cli::command().debug_assert();
    }

    #[test]
    fn what_is_wrong_is_refused_by_the_parser() {
        for wrong in [
            &["up", "Web"][..],
            &["up", "web", "--cpus", "0"],
            &["up", "web", "--cpus", "many"],
            &["up", "web", "--memory", "2"],
            &["up", "web", "--memory", "1M"],
            &["up", "web", "--disk", "1.5G"],
            &["up", "web", "--image", "no such"],
            &["up", "web", "--timeout", "0"],
            &["dial", "web", "0"],
            &["dial", "web", "65536"],
            &["down"],
            &["ssh", "../x"],
        ] {
            let args = std::iter::once("fleetbox").chain(wrong.iter().copied());
            assert!(Cli::try_parse_from(args).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_command_is_what_follows_the_dashes() {
        let cli = Cli::try_parse_from(["fleetbox", "ssh", "web", "--", "ls", "-l"]).unwrap();
        let Command::Ssh(ssh) = cli.command else {
            panic!("{cli:?}")
        };
        assert_eq!(ssh.command, ["ls", "-l"]);
        assert!(!ssh.tty);
    }
}
