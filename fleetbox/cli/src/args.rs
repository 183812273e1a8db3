//! The commands and their arguments. `--help`, completions and manual pages are generated from
//! them.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;
use fleetbox::fixture::Fixture;
use fleetbox::names::{Name, Reference};
use fleetbox::{ExtraDisk, Network, Ready, Size};

use crate::values::{
    Place, Signal, count, cpus, disk, extra_disk, image, memory, publish, ready, signal, variable,
};

/// Real Linux VMs on this machine: stock cloud images, over SSH, without root.
#[derive(Debug, Parser)]
#[command(
    name = "fleetbox",
    version,
    after_help = "Name a VM by NAME, or by CLUSTER/NAME if several clusters have a VM of that name.\n\n\
                  Exit status: 0 success, 1 failure, 2 invalid arguments. `ssh`, `exec` and `run` exit with \
                  the status of the command in the guest, or with 255 if it could not be run. 141 means that the \
                  reader of standard output was gone before everything was written."
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,

    /// State directory [default: $FLEETBOX_HOME, or else ~/.fleetbox]
    // Not `env`: an error's usage would show it as a part of the command line.
    #[arg(long, global = true, value_name = "DIR")]
    pub(crate) home: Option<PathBuf>,

    /// Print only results and errors
    #[arg(short, long, global = true)]
    pub(crate) quiet: bool,

    /// Print results as JSON on standard output
    #[arg(long, global = true)]
    pub(crate) json: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Create a VM or boot an existing one, and wait until SSH answers
    Up(Up),
    /// Log in to a VM, or run a shell command in it
    Ssh(Ssh),
    /// Run a program in a VM, in its workspace if it has one
    Exec(Exec),
    /// Create a VM and run a program or log in, with a git work tree if PATH is given
    Run(Run),
    /// Copy a git work tree to a running VM, as `run PATH` does to a new one
    Ship(Ship),
    /// Print the changes in a VM's workspace as a patch against the commit that was copied
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
    /// Print the output of a VM's serial console
    Logs(Logs),
    /// Attach to a VM's serial console; Ctrl-] detaches
    Console {
        /// The VM
        name: Reference,
    },
    /// List the listening ports in a VM
    Ports {
        /// The VM
        name: Reference,
    },
    /// Show the CPU, memory, disk and network use of VMs
    Stats {
        /// The VMs [default: all running VMs]
        #[arg(value_name = "NAME")]
        names: Vec<Reference>,
    },
    /// Copy files and directories to or from a VM
    Cp(Cp),
    /// Shut VMs down and keep their disks
    Down(Down),
    /// Shut VMs down and boot them again
    Restart(Restart),
    /// Stop VMs at once, without a shutdown, and keep their disks
    Kill(Kill),
    /// Change the CPUs or memory of a stopped VM
    Set(Set),
    /// Delete VMs and their disks, even if they are running
    Rm(Rm),
    /// Delete all stopped VMs, and files that killed processes left behind
    Prune(Prune),
    /// Connect standard input and output to a TCP port of a VM, for OpenSSH's ProxyCommand
    Dial {
        /// The VM
        name: Reference,
        /// The port
        #[arg(value_parser = clap::value_parser!(u16).range(1..))]
        port: u16,
    },
    /// Serve a SOCKS5 and HTTP proxy that reaches VMs by name
    Proxy {
        /// Address to listen on; port 0 picks a free port
        #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:1080")]
        listen: SocketAddr,
    },
    /// Print or install configuration for OpenSSH, so that plain `ssh NAME` works
    SshConfig(SshConfig),
    /// List, download and delete images
    #[command(subcommand)]
    Images(Images),
    /// Check whether VMs can run here, and how to fix what prevents it
    Doctor,
    /// Print shell completions
    Completions {
        /// The shell
        shell: Shell,
    },
    /// Print the manual page, or write the pages of all commands
    Man {
        /// Write fleetbox.1, fleetbox-up.1 and so on to this directory
        #[arg(long, value_name = "DIR")]
        dir: Option<PathBuf>,
    },
    /// Print the version
    Version,
}

impl Command {
    /// True if the exit status is the one of a command in the guest.
    pub(crate) fn passes_status(&self) -> bool {
        matches!(self, Self::Ssh(_) | Self::Exec(_) | Self::Run(_))
    }
}

/// The options of a new VM.
#[derive(Debug, Args)]
pub(crate) struct Machine {
    /// Alias, path or URL of the image [default: debian-12]
    #[arg(long, value_parser = image)]
    pub(crate) image: Option<String>,
    /// Number of vCPUs [default: 2]
    #[arg(long, value_parser = cpus, value_name = "N")]
    pub(crate) cpus: Option<u32>,
    /// Memory, such as 512M or 2G [default: 2G]
    #[arg(long, value_parser = memory, value_name = "SIZE")]
    pub(crate) memory: Option<Size>,
    /// Disk size, such as 20G [default: 20G]
    #[arg(long, value_parser = disk, value_name = "SIZE")]
    pub(crate) disk: Option<Size>,
    /// Copy a host directory into a new VM at each start, read-only; repeatable
    #[arg(long, value_name = "HOST:GUEST")]
    pub(crate) fixture: Vec<Fixture>,
    /// Network of a new VM or cluster: user, or bridge (needs root) [default: user]
    #[arg(long, value_name = "NETWORK")]
    pub(crate) network: Option<Network>,
    /// User of the VM, who may use sudo [default: fleetbox]
    #[arg(long, value_name = "NAME")]
    pub(crate) user: Option<String>,
    /// File of public keys that may log in too, such as ~/.ssh/id_ed25519.pub; repeatable
    #[arg(long, value_name = "FILE")]
    pub(crate) ssh_key: Vec<PathBuf>,
    /// Install a package at the first boot; repeatable
    #[arg(long, value_name = "NAME")]
    pub(crate) package: Vec<String>,
    /// Run a shell command as root at the end of the first boot; repeatable
    #[arg(long = "run", alias = "run-command", value_name = "COMMAND")]
    pub(crate) commands: Vec<String>,
    /// Set an environment variable for logins; NAME alone takes its value from here; repeatable
    #[arg(long, value_parser = variable, value_name = "NAME=VALUE")]
    pub(crate) env: Vec<(String, String)>,
    /// File of such variables, one in each line; repeatable
    #[arg(long, value_name = "FILE")]
    pub(crate) env_file: Vec<PathBuf>,
    /// Add an empty disk, such as 10G, or a raw or qcow2 file, which is not changed; `:ro` at the
    /// end makes it read-only; repeatable
    #[arg(long, value_parser = extra_disk, value_name = "SIZE|FILE")]
    pub(crate) extra_disk: Vec<ExtraDisk>,
    /// Cloud-init user data for the first boot; repeatable
    #[arg(long, value_name = "FILE")]
    pub(crate) user_data: Vec<PathBuf>,
    /// Forward a port of 127.0.0.1 to a port of the VM while it runs; repeatable
    #[arg(long, value_parser = publish, value_name = "HOST:GUEST")]
    pub(crate) publish: Vec<(u16, u16)>,
    /// Wait for this instead of SSH: ssh, cloud-init, port:N, console:REGEX or
    /// command:COMMAND; repeatable
    #[arg(long, value_parser = ready, value_name = "WHAT")]
    pub(crate) wait: Vec<Ready>,
    /// Seconds to wait for the guest
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
    /// Name and hostname of the VM [default: a random name]
    pub(crate) name: Option<Reference>,
    /// Create a cluster of N VMs in one network: NAME-1, NAME-2 and so on
    #[arg(short = 'n', long, value_parser = count, value_name = "N", conflicts_with = "publish")]
    pub(crate) count: Option<u32>,
    #[command(flatten)]
    pub(crate) machine: Machine,
    /// Create the VM, but do not start it
    #[arg(long, conflicts_with_all = ["count", "publish", "wait", "timeout"])]
    pub(crate) no_start: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Ssh {
    /// The VM
    pub(crate) name: Reference,
    /// Allocate a terminal even if a command is given
    #[arg(short, long)]
    pub(crate) tty: bool,
    /// Command for the login shell; its words are joined with spaces
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
    /// Copy the work tree again first; changes in the guest are lost
    #[arg(long)]
    pub(crate) sync: bool,
    /// Directory to run in: absolute, or relative to the workspace, or to the home without one
    #[arg(long, value_name = "DIR", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    pub(crate) dir: Option<String>,
    /// The program and its arguments, which no shell expands
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub(crate) command: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Run {
    /// Directory in a git work tree, which is copied to the guest
    pub(crate) path: Option<PathBuf>,
    /// Delete the VM when the command ends, or when fleetbox is interrupted or killed
    #[arg(long)]
    pub(crate) rm: bool,
    /// Run nothing: print the VM's name and leave it running
    #[arg(short, long, conflicts_with_all = ["rm", "command"])]
    pub(crate) detach: bool,
    /// Name of the VM [default: a random name]
    #[arg(long)]
    pub(crate) name: Option<Name>,
    #[command(flatten)]
    pub(crate) machine: Machine,
    #[command(flatten)]
    pub(crate) shipment: Shipment,
    /// The program and its arguments, which no shell expands; without one, log in
    #[arg(last = true, value_name = "COMMAND")]
    pub(crate) command: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Ship {
    /// The VM
    pub(crate) name: Reference,
    /// Directory in a git work tree
    pub(crate) path: PathBuf,
    #[command(flatten)]
    pub(crate) shipment: Shipment,
}

/// What is copied of a work tree.
#[derive(Debug, Args)]
pub(crate) struct Shipment {
    /// Also copy untracked files, except those that git ignores
    #[arg(long, requires = "path", conflicts_with_all = ["full_copy", "from"])]
    pub(crate) include_untracked: bool,
    /// Copy the whole directory, with ignored files and the history
    #[arg(long, requires = "path", conflicts_with_all = ["branch", "from"])]
    pub(crate) full_copy: bool,
    /// Create this branch in the guest's repository
    #[arg(long, requires = "path", value_name = "NAME")]
    pub(crate) branch: Option<String>,
    /// Start the branch at this commit, and copy its files instead of the work tree's
    #[arg(long, requires = "branch", value_name = "REF")]
    pub(crate) from: Option<String>,
    /// List the files that would be copied, and do nothing
    #[arg(long, requires = "path")]
    pub(crate) dry_run: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Cp {
    /// Paths on this host, or NAME:PATH for paths in a VM
    #[arg(required = true, value_name = "SOURCE")]
    pub(crate) sources: Vec<Place>,
    /// NAME:PATH for a path in a VM, or a path on this host
    pub(crate) destination: Place,
    /// Act as root in the guest, with sudo
    #[arg(long)]
    pub(crate) root: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Logs {
    /// The VM
    pub(crate) name: Reference,
    /// Keep printing until the VM stops
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// Print only the last N lines
    #[arg(short = 'n', long, value_name = "N")]
    pub(crate) lines: Option<usize>,
}

/// Named VMs, or all.
#[derive(Debug, Args)]
#[group(required = true)]
pub(crate) struct Which {
    /// The VMs, or clusters for all their members
    #[arg(value_name = "NAME")]
    pub(crate) names: Vec<Reference>,
    /// All running VMs, except those of running tests and of `run --rm`
    #[arg(long, conflicts_with = "names")]
    pub(crate) all: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Down {
    #[command(flatten)]
    pub(crate) which: Which,
    /// Seconds to wait for the guest to power off before it is killed
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
    /// Seconds to wait until SSH answers again; powering off may take 60 more
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

#[derive(Debug, Args)]
pub(crate) struct Kill {
    #[command(flatten)]
    pub(crate) which: Which,
    /// KILL stops the VM at once; TERM, INT and PWR press the power button and do not wait
    #[arg(short, long, default_value = "KILL", value_parser = signal)]
    pub(crate) signal: Signal,
}

#[derive(Debug, Args)]
pub(crate) struct Set {
    /// The VM
    pub(crate) name: Reference,
    #[command(flatten)]
    pub(crate) change: Change,
}

/// What `set` can change.
#[derive(Debug, Args)]
#[group(required = true, multiple = true)]
pub(crate) struct Change {
    /// Number of vCPUs
    #[arg(long, value_parser = cpus, value_name = "N")]
    pub(crate) cpus: Option<u32>,
    /// Memory, such as 512M or 2G
    #[arg(long, value_parser = memory, value_name = "SIZE")]
    pub(crate) memory: Option<Size>,
}

#[derive(Debug, Args)]
pub(crate) struct Rm {
    /// The VMs, or clusters for all their members
    #[arg(required = true, value_name = "NAME")]
    pub(crate) names: Vec<Reference>,
    /// Do not ask for confirmation
    #[arg(short, long)]
    pub(crate) force: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Prune {
    /// Do not ask for confirmation
    #[arg(short, long)]
    pub(crate) force: bool,
    /// Only print what would be deleted
    #[arg(long)]
    pub(crate) dry_run: bool,
}

#[derive(Debug, Args)]
pub(crate) struct SshConfig {
    /// Include it in ~/.ssh/config, unless it is included already
    #[arg(long, conflicts_with = "uninstall")]
    pub(crate) install: bool,
    /// Remove the Include again
    #[arg(long)]
    pub(crate) uninstall: bool,
    /// OpenSSH's configuration file [default: ~/.ssh/config]
    #[arg(long, value_name = "FILE")]
    pub(crate) file: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Images {
    /// List the images of the catalogue
    Ls,
    /// Download an image, unless it is here already
    Pull {
        /// Alias, path or URL
        #[arg(value_parser = image)]
        image: String,
    },
    /// Delete downloaded images that no VM uses
    Rm {
        /// Aliases or URLs
        #[arg(required_unless_present = "all", conflicts_with = "all", value_parser = image)]
        images: Vec<String>,
        /// All images that no VM uses
        #[arg(long)]
        all: bool,
    },
    /// Check for newer snapshots of the catalogue's images
    Refresh {
        /// Aliases [default: all]
        #[arg(value_parser = image)]
        images: Vec<String>,
    },
}

#[cfg(test)]
mod tests;
