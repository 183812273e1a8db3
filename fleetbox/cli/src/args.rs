//! What can be said on the command line.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

use crate::cp::Place;
use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;
use fleetbox::fixture::Fixture;
use fleetbox::images::ImageRef;
use fleetbox::names::{Name, Reference, check_count, check_cpus};
use fleetbox::{Network, Ready, Result, Size};

/// Real Linux VMs on this machine: stock cloud images, over SSH, without root.
#[derive(Debug, Parser)]
#[command(
    name = "fleetbox",
    version,
    disable_help_subcommand = true,
    after_help = "A VM is named by NAME, or by CLUSTER/NAME where several clusters have one of that \
                  name.\n\nExit status: 0 done, 1 failed, 2 arguments refused; `ssh`, `exec` and `run` end \
                  with the status of the command in the guest, and with 255 if it could not be run."
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,

    /// State directory [default: ~/.fleetbox]
    #[arg(long, global = true, env = "FLEETBOX_HOME", value_name = "DIR")]
    pub(crate) home: Option<PathBuf>,

    /// Print only what was asked for, and errors
    #[arg(short, long, global = true)]
    pub(crate) quiet: bool,

    /// Print results as JSON on standard output
    #[arg(long, global = true)]
    pub(crate) json: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Create and boot a VM, or boot one that exists, and wait until it answers by SSH
    Up(Up),
    /// Log in to a VM, or run a command line in it
    Ssh(Ssh),
    /// Run a program in a VM with its arguments as they are, in its workspace if it has one
    Exec(Exec),
    /// Run a program or log in, in a new VM, with a git work tree if one is named
    Run(Run),
    /// Ship a git work tree to a VM that runs, as `run PATH` does to a new one
    Ship(Ship),
    /// Print what was changed in a VM's workspace, as a patch against the commit that was shipped
    PullDiff {
        /// The VM
        name: Reference,
        /// Write to this file instead of standard output
        #[arg(short, long, value_name = "FILE")]
        output: Option<PathBuf>,
    },
    /// List VMs
    #[command(visible_alias = "ps")]
    Ls,
    /// Show everything about a VM
    Show {
        /// The VM
        name: Reference,
    },
    /// Print what a VM wrote to its serial console
    Logs(Logs),
    /// Attach to a VM's serial console; Ctrl-] leaves it
    Console {
        /// The VM
        name: Reference,
    },
    /// Show what listens for connections in a VM
    Ports {
        /// The VM
        name: Reference,
    },
    /// Show what VMs use: CPU, memory, disk, network
    Stats {
        /// The VMs [default: all that run]
        #[arg(value_name = "NAME")]
        names: Vec<Reference>,
    },
    /// Copy files and directories to or from a VM
    Cp(Cp),
    /// Shut VMs down; their disks stay
    Down(Down),
    /// Shut VMs down and boot them again
    Restart(Restart),
    /// Kill VMs without notice to the guest; their disks stay
    Kill(Kill),
    /// Change the CPUs or memory of a stopped VM
    Set(Set),
    /// Delete VMs with their disks, running or not
    Rm(Rm),
    /// Delete all VMs that do not run, and what killed processes left behind
    Prune(Prune),
    /// Connect standard input and output to a TCP port of a VM (for OpenSSH's ProxyCommand)
    Dial {
        /// The VM
        name: Reference,
        /// The port
        #[arg(value_parser = clap::value_parser!(u16).range(1..))]
        port: u16,
    },
    /// Serve a SOCKS5 and HTTP proxy on loopback that knows VMs by their names
    Proxy {
        /// Where to listen; port 0 is any that is free
        #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:1080")]
        listen: SocketAddr,
    },
    /// Print or install OpenSSH's configuration, so that plain `ssh NAME` works
    SshConfig(SshConfig),
    /// Show, download and delete images
    #[command(subcommand)]
    Images(Images),
    /// Check whether VMs can run here, and say what to do if not
    Doctor,
    /// Print completions for a shell
    Completions {
        /// The shell
        shell: Shell,
    },
    /// Print the manual page, or write those of all commands
    Man {
        /// Write fleetbox.1, fleetbox-up.1 and so on to this directory
        #[arg(long, value_name = "DIR")]
        dir: Option<PathBuf>,
    },
    /// Print the version
    Version,
}

impl Command {
    /// True if the exit status is that of a command in the guest.
    pub(crate) fn passes_status(&self) -> bool {
        matches!(self, Self::Ssh(_) | Self::Exec(_) | Self::Run(_))
    }
}

/// What a new VM is like.
#[derive(Debug, Args)]
pub(crate) struct Machine {
    /// Alias, path or URL of its image [default: debian-12]
    #[arg(long, value_parser = image)]
    pub(crate) image: Option<String>,
    /// Number of vCPUs [default: 2]
    #[arg(long, value_parser = cpus, value_name = "N")]
    pub(crate) cpus: Option<u32>,
    /// Memory, such as 512M or 2G [default: 2G]
    #[arg(long, value_parser = memory, value_name = "SIZE")]
    pub(crate) memory: Option<Size>,
    /// Size of the disk, such as 20G [default: 20G]
    #[arg(long, value_parser = disk, value_name = "SIZE")]
    pub(crate) disk: Option<Size>,
    /// A directory of this host for a new VM, read-only, copied at each start; repeatable
    #[arg(long, value_name = "HOST:GUEST")]
    pub(crate) fixture: Vec<Fixture>,
    /// The network of a new VM or cluster: user, or bridge, which needs root [default: user]
    #[arg(long, value_name = "NETWORK")]
    pub(crate) network: Option<Network>,
    /// A cloud-init document for its first boot; repeatable
    #[arg(long, value_name = "FILE")]
    pub(crate) user_data: Vec<PathBuf>,
    /// Forward a port of 127.0.0.1 to a port of the VM while it runs; repeatable
    #[arg(long, value_parser = publish, value_name = "HOST:GUEST")]
    pub(crate) publish: Vec<(u16, u16)>,
    /// What to wait for instead of SSH: ssh, cloud-init, port:N, console:REGEX or
    /// command:COMMAND; repeatable
    #[arg(long, value_parser = ready, value_name = "WHAT")]
    pub(crate) wait: Vec<Ready>,
    /// Seconds to wait until the guest is ready
    #[arg(
        long,
        default_value_t = fleetbox::DEFAULT_BOOT_TIMEOUT.as_secs(),
        value_parser = clap::value_parser!(u64).range(1..),
        value_name = "SECONDS"
    )]
    pub(crate) timeout: u64,
}

#[derive(Debug, Args)]
pub(crate) struct Up {
    /// The VM, which is also its hostname; one is made up if none is given
    pub(crate) name: Option<Reference>,
    /// Make a cluster of N VMs in one network: NAME-1, NAME-2 and so on
    #[arg(short = 'n', long, value_parser = count, value_name = "N", conflicts_with = "publish")]
    pub(crate) count: Option<u32>,
    #[command(flatten)]
    pub(crate) machine: Machine,
    /// Create it, but do not start it
    #[arg(long, conflicts_with_all = ["count", "publish", "wait", "timeout"])]
    pub(crate) no_start: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Ssh {
    /// The VM
    pub(crate) name: Reference,
    /// Allocate a terminal even though a command is given
    #[arg(short, long)]
    pub(crate) tty: bool,
    /// A command for the login shell; its words are joined by spaces
    #[arg(last = true, value_name = "COMMAND")]
    pub(crate) command: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Exec {
    /// The VM
    pub(crate) name: Reference,
    /// Allocate a terminal
    #[arg(short, long)]
    pub(crate) tty: bool,
    /// Ship the workspace's files again first; the guest's changes to them are lost
    #[arg(long)]
    pub(crate) sync: bool,
    /// The guest's directory to run in: below the workspace, or the home if there is none, or absolute
    #[arg(long, value_name = "DIR", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    pub(crate) dir: Option<String>,
    /// The program and its arguments, which the guest's shell does not change
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub(crate) command: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Run {
    /// A directory in a git work tree, which is shipped to the guest
    pub(crate) path: Option<PathBuf>,
    /// Delete the VM when the command ends, or when fleetbox itself is interrupted or killed
    #[arg(long)]
    pub(crate) rm: bool,
    /// Run nothing: print the VM's name and leave it running
    #[arg(short, long, conflicts_with_all = ["rm", "command"])]
    pub(crate) detach: bool,
    /// The VM's name; one is made up if none is given
    #[arg(long)]
    pub(crate) name: Option<Name>,
    #[command(flatten)]
    pub(crate) machine: Machine,
    #[command(flatten)]
    pub(crate) shipment: Shipment,
    /// The program and its arguments, which the guest's shell does not change; a log-in if none
    #[arg(last = true, value_name = "COMMAND")]
    pub(crate) command: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Ship {
    /// The VM
    pub(crate) name: Reference,
    /// A directory in a git work tree
    pub(crate) path: PathBuf,
    #[command(flatten)]
    pub(crate) shipment: Shipment,
}

/// What of a work tree is shipped.
#[derive(Debug, Args)]
pub(crate) struct Shipment {
    /// Also ship new files, but for those that git ignores
    #[arg(long, requires = "path", conflicts_with_all = ["full_copy", "from"])]
    pub(crate) include_untracked: bool,
    /// Ship the whole directory, with ignored files and the history
    #[arg(long, requires = "path", conflicts_with_all = ["branch", "from"])]
    pub(crate) full_copy: bool,
    /// Put the guest's repository on a new branch
    #[arg(long, requires = "path", value_name = "NAME")]
    pub(crate) branch: Option<String>,
    /// Begin the branch at this commit, and ship its files instead of those of the work tree
    #[arg(long, requires = "branch", value_name = "REF")]
    pub(crate) from: Option<String>,
    /// List the files that would be shipped, and do nothing
    #[arg(long, requires = "path")]
    pub(crate) dry_run: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Cp {
    /// What is copied: paths of this host, or NAME:PATH
    #[arg(required = true, value_name = "SOURCE")]
    pub(crate) sources: Vec<Place>,
    /// Where it goes: NAME:PATH, or a path of this host
    pub(crate) destination: Place,
    /// Use root's rights in the guest, by sudo
    #[arg(long)]
    pub(crate) root: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Logs {
    /// The VM
    pub(crate) name: Reference,
    /// Go on printing until the VM ends
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// Print only the last N lines of those there are
    #[arg(short = 'n', long, value_name = "N")]
    pub(crate) lines: Option<usize>,
}

/// VMs that are named, or all.
#[derive(Debug, Args)]
#[group(required = true)]
pub(crate) struct Which {
    /// The VMs, or clusters for all of their members
    #[arg(value_name = "NAME")]
    pub(crate) names: Vec<Reference>,
    /// All VMs that run, but for those of running tests and `run --rm`
    #[arg(long, conflicts_with = "names")]
    pub(crate) all: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Down {
    #[command(flatten)]
    pub(crate) which: Which,
    /// Seconds the guest gets to power off before it is killed
    #[arg(long, default_value_t = fleetbox::STOP_DEADLINE.as_secs(), value_name = "SECONDS")]
    pub(crate) timeout: u64,
    /// Kill at once
    #[arg(long, conflicts_with = "timeout")]
    pub(crate) force: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Restart {
    #[command(flatten)]
    pub(crate) which: Which,
    /// Seconds until the guest answers by SSH again; it gets 60 to power off
    #[arg(
        long,
        default_value_t = fleetbox::DEFAULT_BOOT_TIMEOUT.as_secs(),
        value_parser = clap::value_parser!(u64).range(1..),
        value_name = "SECONDS"
    )]
    pub(crate) timeout: u64,
    /// Kill instead of shutting down
    #[arg(long)]
    pub(crate) force: bool,
}

/// What a signal does to a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Signal {
    /// Ends it at once, as pulling the plug does.
    Kill,
    /// Presses its power button and does not wait.
    PowerButton,
}

/// A signal by its name, with or without `SIG`, or by its number. All that ask a process to end in order press the
/// power button; the others have no meaning for a machine.
fn signal(text: &str) -> Result<Signal, Refusal> {
    let name = text.to_ascii_uppercase();
    match name.strip_prefix("SIG").unwrap_or(&name) {
        "KILL" | "9" => Ok(Signal::Kill),
        "TERM" | "15" | "INT" | "2" | "PWR" | "30" => Ok(Signal::PowerButton),
        _ => Err("it means nothing to a VM: KILL (9) pulls the plug; TERM (15), INT (2) and PWR (30) \
                  press the power button. For a process in the guest use `fleetbox exec NAME -- kill`"
            .into()),
    }
}

#[derive(Debug, Args)]
pub(crate) struct Kill {
    #[command(flatten)]
    pub(crate) which: Which,
    /// KILL pulls the plug; TERM, INT and PWR press the power button and do not wait
    #[arg(short, long, default_value = "KILL", value_parser = signal)]
    pub(crate) signal: Signal,
}

#[derive(Debug, Args)]
pub(crate) struct Set {
    /// The VM
    pub(crate) name: Reference,
    /// Number of vCPUs
    #[arg(long, value_parser = cpus, value_name = "N", required_unless_present = "memory")]
    pub(crate) cpus: Option<u32>,
    /// Memory, such as 512M or 2G
    #[arg(long, value_parser = memory, value_name = "SIZE")]
    pub(crate) memory: Option<Size>,
}

#[derive(Debug, Args)]
pub(crate) struct Rm {
    /// The VMs, or clusters for all of their members
    #[arg(required = true, value_name = "NAME")]
    pub(crate) names: Vec<Reference>,
    /// Do not ask
    #[arg(short, long)]
    pub(crate) force: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Prune {
    /// Do not ask
    #[arg(short, long)]
    pub(crate) force: bool,
    /// Only say what would be deleted
    #[arg(long)]
    pub(crate) dry_run: bool,
}

#[derive(Debug, Args)]
pub(crate) struct SshConfig {
    /// Add an Include of it to ~/.ssh/config, if there is none yet
    #[arg(long, conflicts_with = "uninstall")]
    pub(crate) install: bool,
    /// Take the Include out again
    #[arg(long)]
    pub(crate) uninstall: bool,
    /// OpenSSH's configuration [default: ~/.ssh/config]
    #[arg(long, value_name = "FILE")]
    pub(crate) file: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Images {
    /// List the catalogue's images
    Ls,
    /// Download an image, unless it is here
    Pull {
        /// Alias, path or URL
        #[arg(value_parser = image)]
        image: String,
    },
    /// Delete downloaded images that no VM is made from
    Rm {
        /// Aliases or URLs
        #[arg(required_unless_present = "all", conflicts_with = "all", value_parser = image)]
        images: Vec<String>,
        /// All that no VM is made from
        #[arg(long)]
        all: bool,
    },
    /// Show what newer snapshots of the catalogue's images the distributions publish
    Refresh {
        /// Aliases [default: all]
        #[arg(value_parser = image)]
        images: Vec<String>,
    },
}

fn image(text: &str) -> Result<String, impl std::error::Error + Send + Sync + 'static + use<>> {
    ImageRef::from_str(text).map(|_| text.to_owned())
}

type Refusal = Box<dyn std::error::Error + Send + Sync>;

fn cpus(text: &str) -> Result<u32, Refusal> {
    Ok(check_cpus(text.parse()?)?.into())
}

/// `HOST:GUEST`, two ports.
fn publish(text: &str) -> Result<(u16, u16), Refusal> {
    let ports = text.split_once(':').and_then(|(host, guest)| {
        let port = |text: &str| text.parse::<u16>().ok().filter(|port| *port != 0);
        Some((port(host)?, port(guest)?))
    });
    ports.ok_or_else(|| "give two ports, such as 8080:80".into())
}

fn ready(text: &str) -> Result<Ready, Refusal> {
    const WRONG: &str = "give ssh, cloud-init, port:80, console:REGEX or command:COMMAND";
    Ok(match text.split_once(':') {
        None if text == "ssh" => Ready::Ssh,
        None if text == "cloud-init" => Ready::CloudInit,
        Some(("port", port)) => match port.parse() {
            Ok(port @ 1..) => Ready::Port(port),
            _ => return Err(WRONG.into()),
        },
        Some(("console", pattern)) if !pattern.is_empty() => Ready::Console(pattern.to_owned()),
        Some(("command", command)) if !command.trim().is_empty() => {
            Ready::Command(command.to_owned())
        }
        _ => return Err(WRONG.into()),
    })
}

fn count(text: &str) -> Result<u32, Refusal> {
    Ok(check_count(text.parse()?)?)
}

fn memory(text: &str) -> Result<Size, Refusal> {
    Ok(text.parse::<Size>()?.check_memory()?)
}

fn disk(text: &str) -> Result<Size, Refusal> {
    Ok(text.parse::<Size>()?.check_disk()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(std::iter::once("fleetbox").chain(args.iter().copied()))
    }

    #[test]
    fn the_arguments_are_consistent() {
        use clap::CommandFactory as _;
        Cli::command().debug_assert();
    }

    #[test]
    fn what_is_wrong_is_refused_by_the_parser() {
        for wrong in [
            &["up", "Web"][..],
            &["up", "MyBox"],
            &["up", "my box"],
            &["up", "box.vm"],
            &["up", "-box"],
            &["up", "web", "--cpus", "0"],
            &["up", "web", "--publish", "80"],
            &["up", "web", "--publish", "0:80"],
            &["up", "web", "--publish", "80:99999"],
            &["up", "web", "--publish", "80:80", "-n", "2"],
            &["up", "web", "--no-start", "-n", "2"],
            &["up", "web", "--no-start", "--publish", "80:80"],
            &["up", "web", "--no-start", "--wait", "cloud-init"],
            &["up", "web", "--no-start", "--timeout", "300"],
            &["up", "web", "--wait", "port:0"],
            &["up", "web", "--wait", "lunch"],
            &["up", "web", "--wait", "console:"],
            &["up", "web", "-n", "0"],
            &["up", "web", "-n", "1000"],
            &["cp", "x"],
            &["cp", "Web:x", "y"],
            &["up", "web", "--cpus", "many"],
            &["up", "web", "--memory", "2"],
            &["up", "web", "--memory", "1M"],
            &["up", "web", "--disk", "1.5G"],
            &["up", "web", "--image", "no such"],
            &["up", "web", "--timeout", "0"],
            &["up", "web", "--fixture", "data"],
            &["up", "web", "--fixture", "data:work"],
            &["up", "web", "--fixture", "data:/etc"],
            &["dial", "web", "0"],
            &["dial", "web", "65536"],
            &["down"],
            &["down", "web", "--all"],
            &["restart"],
            &["kill"],
            &["kill", "web", "--signal", "HUP"],
            &["kill", "web", "--signal", "SIGSTOP"],
            &["kill", "web", "--signal", "1"],
            &["kill", "web", "--signal", "09"],
            &["kill", "web", "--signal", ""],
            &["set", "web"],
            &["set", "web", "--cpus", "0"],
            &["set", "web", "--memory", "1"],
            &["rm"],
            &["exec", "web"],
            &["exec", "web", "ls"],
            &["ssh", "../x"],
            &["ssh-config", "--install", "--uninstall"],
            &["images", "rm"],
            &["run", "-d", "--rm"],
            &["run", "-d", "--", "true"],
            &["run", "--name", "My", "--", "true"],
            &["run", "--dry-run"],
            &["run", "--include-untracked"],
            &["run", ".", "--full-copy", "--include-untracked"],
            &["run", ".", "--full-copy", "--branch", "x"],
            &["run", ".", "--from", "HEAD"],
            &["run", "a", "b"],
            &["pull-diff"],
            &["ship", "web"],
            &["ship", "web", ".", "--from", "HEAD"],
            &["ship", "web", ".", "--full-copy", "--include-untracked"],
            &["exec", "web", "--dir", "", "--", "true"],
            &["images", "rm", "x", "--all"],
            &["completions", "no-shell"],
        ] {
            assert!(parse(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_default_is_no_option_that_was_given() {
        let cli = parse(&["up", "web", "--no-start"]).unwrap();
        let Command::Up(up) = cli.command else {
            panic!("{cli:?}")
        };
        assert!(up.no_start);
    }

    #[test]
    fn a_command_is_what_follows_the_dashes() {
        let cli = parse(&["ssh", "web", "--", "ls", "-l"]).unwrap();
        let Command::Ssh(ssh) = cli.command else {
            panic!("{cli:?}")
        };
        assert_eq!(ssh.command, ["ls", "-l"]);
        assert!(!ssh.tty);
    }

    #[test]
    fn flags_for_all_commands_stand_anywhere() {
        for args in [&["--json", "ls"][..], &["ls", "--json"], &["ps", "--json"]] {
            let cli = parse(args).unwrap();
            assert!(cli.json && matches!(cli.command, Command::Ls));
        }
        let cli = parse(&["images", "ls", "-q"]).unwrap();
        assert!(cli.quiet);
    }

    #[test]
    fn what_is_waited_for_and_published_is_read() {
        let cli = parse(&[
            "up",
            "web",
            "--publish",
            "8080:80",
            "--wait",
            "cloud-init",
            "--wait",
            "port:80",
            "--wait",
            "console:login: $",
            "--wait",
            "command:test -e /x",
        ])
        .unwrap();
        let Command::Up(up) = cli.command else {
            panic!("{cli:?}")
        };
        assert_eq!(up.machine.publish, [(8080, 80)]);
        assert_eq!(
            up.machine.wait,
            [
                Ready::CloudInit,
                Ready::Port(80),
                Ready::Console("login: $".to_owned()),
                Ready::Command("test -e /x".to_owned()),
            ]
        );
    }

    #[test]
    fn signals_have_their_usual_names() {
        for (text, signal) in [
            ("KILL", Signal::Kill),
            ("kill", Signal::Kill),
            ("SIGKILL", Signal::Kill),
            ("9", Signal::Kill),
            ("term", Signal::PowerButton),
            ("15", Signal::PowerButton),
            ("sigint", Signal::PowerButton),
            ("2", Signal::PowerButton),
            ("SIGPWR", Signal::PowerButton),
            ("30", Signal::PowerButton),
        ] {
            let cli = parse(&["kill", "web", "--signal", text]).unwrap();
            let Command::Kill(kill) = cli.command else {
                panic!("{cli:?}")
            };
            assert_eq!(kill.signal, signal, "{text}");
        }
        let error = parse(&["kill", "web", "--signal", "HUP"]).unwrap_err();
        assert!(
            error.to_string().contains("means nothing to a VM"),
            "{error}"
        );
    }
}
