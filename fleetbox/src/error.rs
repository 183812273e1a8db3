//! The error of the public API. It has one variant for each part of the library, with the error of
//! that part as its source.

use std::io;
use std::time::Duration;

use fleetbox_devices::block::DiskError;

use crate::disk::extra_disk::ExtraDiskError;
use crate::disk::fixture::FixtureError;
use crate::disk::seed::SeedError;
use crate::files::FilesError;
use crate::host::bridge::BridgeError;
use crate::host::budget::BudgetError;
use crate::host::preflight::HostUnsupported;
use crate::host::resources::InsufficientResources;
use crate::images::ImageError;
use crate::model::keys::KeyError;
use crate::model::names::{InvalidValue, Name, Reference};
use crate::model::ready::InvalidReady;
use crate::process::ProcessError;
use crate::ssh::SshError;
use crate::ssh::config::SshConfigError;
use crate::store::StoreError;
use crate::util::readable::readable_debug;
use crate::util::task::ShuttingDown;

/// Why an operation of the library failed.
///
/// A message says what failed, on what, why, and what to do. It is complete without the chain of
/// sources.
///
/// ```no_run
/// # async fn example() -> fleetbox::Result<()> {
/// use fleetbox::Error;
///
/// match fleetbox::Vm::open("web").await {
///     Ok(vm) => println!("{}", vm.ip()),
///     Err(Error::NoVm { .. } | Error::NotRunning { .. }) => println!("nothing to do"),
///     Err(error) => return Err(error), // its text says what failed, why, and what to do
/// }
/// # Ok(()) }
/// ```
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A value was refused before anything was created.
    #[error(transparent)]
    Invalid(#[from] InvalidValue),
    /// The state directory cannot be read or written.
    #[error(transparent)]
    Store(StoreError),
    /// An image was not found or could not be downloaded.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// A directory of the host could not be made into a disk.
    #[error(transparent)]
    Fixture(FixtureError),
    /// The cloud-init seed could not be written.
    #[error(transparent)]
    Seed(#[from] SeedError),
    /// A key cannot be used, or the SSH connection to the guest failed.
    #[error(transparent)]
    Ssh(#[from] SshError),
    /// Files could not be copied to or from a guest.
    #[error(transparent)]
    Files(FilesError),
    /// OpenSSH's configuration could not be read or written.
    #[error(transparent)]
    SshConfig(#[from] SshConfigError),
    /// A work tree could not be copied to a guest, or its changes could not be fetched. The source is a
    /// [`WorkspaceError`](crate::workspace::WorkspaceError), which callers can downcast to.
    #[error(transparent)]
    Workspace(Box<dyn std::error::Error + Send + Sync>),
    /// A VM's disk could not be created.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// A process of a VM failed, or refused a request.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// A cluster could not join the host's network.
    #[error(transparent)]
    Bridge(BridgeError),
    /// There is not enough memory to start the VMs.
    #[error(transparent)]
    Budget(BudgetError),
    /// This host cannot run VMs.
    #[error(transparent)]
    Host(#[from] HostUnsupported),
    /// A VM needs more than this host has.
    #[error(transparent)]
    InsufficientResources(#[from] InsufficientResources),
    /// An extra disk cannot be used.
    #[error(transparent)]
    ExtraDisk(ExtraDiskError),
    /// A [`Ready`](crate::Ready) condition is invalid.
    #[error(transparent)]
    Ready(#[from] InvalidReady),
    /// There is no VM with this name.
    #[error("no VM named {name}; list all VMs with `fleetbox ls`")]
    NoVm {
        /// The name.
        name: Name,
    },
    /// Several clusters have a VM with this name.
    #[error(
        "several VMs are named {name}; choose one of: {}",
        clusters.iter().map(|cluster| format!("{cluster}/{name}")).collect::<Vec<_>>().join(", ")
    )]
    Ambiguous {
        /// The name.
        name: Name,
        /// The clusters that have a VM with this name.
        clusters: Vec<Name>,
    },
    /// Another cluster has a VM with this name.
    #[error(
        "cluster {cluster} already has a VM named {name}; remove it with `fleetbox rm {}`, or choose another name",
        Reference::new(cluster.clone(), name.clone())
    )]
    NameTaken {
        /// The name.
        name: Name,
        /// The cluster that has it.
        cluster: Name,
    },
    /// The VM exists, and was created with other options than those given.
    #[error(
        "{vm} exists already and differs: {}; {}",
        differences(differing),
        remedy(vm, differing)
    )]
    Differs {
        /// The VM.
        vm: Box<Reference>,
        /// The options, at least one.
        differing: Vec<Differing>,
    },
    /// The cluster has no member with this name.
    #[error(
        "cluster {cluster} has no member {name}; its members: {}",
        list(members)
    )]
    NoMember {
        /// The cluster.
        cluster: Name,
        /// The name that was looked up.
        name: String,
        /// The members it has.
        members: Vec<String>,
    },
    /// There is no cluster with this name.
    #[error(
        "no cluster named {name}; list all VMs with `fleetbox ls`, or create a cluster of three with `fleetbox up {name} -n 3`"
    )]
    NoCluster {
        /// The name.
        name: Name,
    },
    /// The VM is not running.
    #[error("{name} is not running; start it with `fleetbox up {name}`")]
    NotRunning {
        /// The VM.
        name: Reference,
    },
    /// Another process has been starting or stopping the VM for too long.
    #[error(
        "{name} is still busy after {waited:?}: another process is starting or stopping it; worker.log in the directory of its cluster may say why"
    )]
    Busy {
        /// The VM's name.
        name: Name,
        /// How long this process waited.
        waited: Duration,
    },
    /// The guest did not become ready.
    #[error("{name} did not come up: {why}{}{left}", console_part(console))]
    NotReady {
        /// The VM's name.
        name: Name,
        /// What went wrong last.
        why: String,
        /// The console's last lines.
        console: String,
        /// What happened to the VM, which decides what to do next.
        left: VmFate,
    },
    /// A guest that answers over SSH could not carry out a request.
    #[error("{name} cannot {what}: {}; log in with `fleetbox ssh {name}` to investigate", why.trim_end())]
    Guest {
        /// The VM's name, with the name of its cluster if that differs.
        name: String,
        /// What the guest was asked to do.
        what: &'static str,
        /// What the guest answered, without control characters.
        why: String,
    },
    /// The operating system refused an operation that has no variant of its own.
    #[error("cannot {action}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// The tokio runtime that made the call is shutting down.
    #[error(transparent)]
    ShuttingDown(#[from] ShuttingDown),
}

readable_debug!(Error);

// If an error wraps one of a lower room that has a variant here, that variant is used.

impl From<StoreError> for Error {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::ShuttingDown(error) => error.into(),
            StoreError::Gone { name } => Self::NoVm { name },
            error => Self::Store(error),
        }
    }
}

impl From<FixtureError> for Error {
    fn from(error: FixtureError) -> Self {
        match error {
            FixtureError::ShuttingDown(error) => error.into(),
            error => Self::Fixture(error),
        }
    }
}

impl From<FilesError> for Error {
    fn from(error: FilesError) -> Self {
        match error {
            FilesError::ShuttingDown(error) => error.into(),
            error => Self::Files(error),
        }
    }
}

impl From<BudgetError> for Error {
    fn from(error: BudgetError) -> Self {
        match error {
            BudgetError::ShuttingDown(error) => error.into(),
            BudgetError::Store(error) => error.into(),
            error => Self::Budget(error),
        }
    }
}

impl From<BridgeError> for Error {
    fn from(error: BridgeError) -> Self {
        match error {
            BridgeError::Store(error) => error.into(),
            error => Self::Bridge(error),
        }
    }
}

impl From<ExtraDiskError> for Error {
    fn from(error: ExtraDiskError) -> Self {
        match error {
            ExtraDiskError::Size(error) => error.into(),
            ExtraDiskError::Format(error) => ImageError::from(error).into(),
            error => Self::ExtraDisk(error),
        }
    }
}

impl From<KeyError> for Error {
    fn from(error: KeyError) -> Self {
        Self::Ssh(error.into())
    }
}

impl Error {
    /// True if the error means that the VM does not run. A worker that does not answer does not mean that: the worker
    /// may be suspended, or this process may be out of descriptors.
    pub(crate) fn is_not_running(&self) -> bool {
        matches!(
            self,
            Self::NotRunning { .. } | Self::Process(ProcessError::NotRunning(_))
        )
    }

    /// Adds what happened to the VM to a [`Error::NotReady`].
    pub(crate) fn with_fate(mut self, fate: impl FnOnce(&Name) -> VmFate) -> Self {
        if let Self::NotReady { name, left, .. } = &mut self {
            *left = fate(name);
        }
        self
    }

    pub(crate) fn io(action: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { action, source }
    }
}

/// The options that can be changed.
pub(crate) const CPUS: &str = "number of CPUs";
pub(crate) const MEMORY: &str = "memory";

/// An option that was given for a VM that exists and was created with another value.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Differing {
    /// The option, in words.
    pub option: &'static str,
    /// The value that the VM has; `None` for one that is too long to be told.
    pub has: Option<String>,
    /// The value that was given; `None` as before.
    pub asked: Option<String>,
}

impl std::fmt::Display for Differing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (&self.has, &self.asked) {
            (Some(has), Some(asked)) => {
                write!(f, "its {} is {has}, and {asked} was given", self.option)
            }
            _ => write!(f, "its {} are not those that were given", self.option),
        }
    }
}

fn differences(differing: &[Differing]) -> String {
    let each: Vec<_> = differing.iter().map(ToString::to_string).collect();
    each.join("; ")
}

/// What to do about options that differ.
fn remedy(vm: &Reference, differing: &[Differing]) -> String {
    let asked = |option: &str| {
        let mut those = differing.iter().filter(|differs| differs.option == option);
        those.find_map(|differs| differs.asked.clone())
    };
    let mut set = String::new();
    for (option, flag) in [(CPUS, "--cpus"), (MEMORY, "--memory")] {
        if let Some(asked) = asked(option) {
            set.push_str(&format!(" {flag} {asked}"));
        }
    }
    let start = format!("start it as it is with `fleetbox up {vm}`");
    let fixed = differing
        .iter()
        .any(|differs| ![CPUS, MEMORY].contains(&differs.option));
    match (set.is_empty(), fixed) {
        (false, false) => format!(
            "{start}, or stop it with `fleetbox down {vm}` and change it with `fleetbox set {vm}{set}`"
        ),
        _ => format!(
            "{start}, or delete it and its disk with `fleetbox rm {vm}` and create it again"
        ),
    }
}

/// What happened to a VM that did not become ready. Its text says what the user can do about it.
///
/// ```no_run
/// # async fn example() -> fleetbox::Result<()> {
/// use fleetbox::{Error, VmFate, Vm};
///
/// match Vm::builder("web").detached().start().await {
///     // It may only be slow: give it more time.
///     Err(Error::NotReady { left: VmFate::Running(vm), .. }) => {
///         Vm::open(vm.as_str()).await?.wait_ready(fleetbox::DEFAULT_BOOT_TIMEOUT).await
///     }
///     started => started.map(drop),
/// }
/// # }
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum VmFate {
    /// It is still running and keeps its memory.
    Running(Box<Reference>),
    /// It has stopped. Its disk still exists.
    Stopped(Box<Reference>),
    /// This program still has a handle on it. Its fate is decided when the last handle is dropped.
    Held,
    /// It was deleted with its disk.
    Deleted,
}

impl std::fmt::Display for VmFate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Running(vm) => write!(
                f,
                "\n{vm} is still running and keeps its memory: `fleetbox logs {vm}` shows its whole console, \
                 `fleetbox console {vm}` attaches to it, `fleetbox up {vm}` waits again, \
                 `fleetbox rm {vm}` deletes it"
            ),
            Self::Stopped(vm) => write!(
                f,
                "\n{vm} has stopped and keeps its disk: `fleetbox logs {vm}` shows its whole \
                 console, `fleetbox up {vm}` starts it again, `fleetbox rm {vm}` deletes it"
            ),
            Self::Held => Ok(()),
            Self::Deleted => f.write_str("\nit was deleted with its disk"),
        }
    }
}

fn list(names: &[String]) -> String {
    if names.is_empty() {
        return "none".to_owned();
    }
    names.join(", ")
}

fn console_part(console: &str) -> String {
    if console.is_empty() {
        return "; its console printed nothing".to_owned();
    }
    format!("; the console's last lines:\n{console}")
}

/// A result with the library's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_of_a_lower_room_is_that_rooms_variant() {
        let name: Name = "web".parse().unwrap();
        assert!(matches!(
            Error::from(StoreError::Gone { name }),
            Error::NoVm { .. }
        ));
        assert!(matches!(
            Error::from(BudgetError::Store(ShuttingDown.into())),
            Error::ShuttingDown(_)
        ));
        assert!(matches!(
            Error::from(FilesError::from(ShuttingDown)),
            Error::ShuttingDown(_)
        ));
    }
}
