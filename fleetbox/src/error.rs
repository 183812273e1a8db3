//! The error of the public API: one variant for each part of the library, with its own error as
//! the source.

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
use crate::util::task::ShuttingDown;

/// Why an operation of the library failed.
///
/// Messages say what failed, on what, why, and what can be done; they are complete without the
/// chain of sources.
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
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A value was refused before anything was created.
    #[error(transparent)]
    Invalid(#[from] InvalidValue),
    /// The state directory.
    #[error(transparent)]
    Store(StoreError),
    /// Finding or downloading an image.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// Making a disk of a directory of the host.
    #[error(transparent)]
    Fixture(FixtureError),
    /// Writing the cloud-init seed.
    #[error(transparent)]
    Seed(#[from] SeedError),
    /// Keys, or the SSH connection to the guest.
    #[error(transparent)]
    Ssh(#[from] SshError),
    /// Copying files to or from a guest.
    #[error(transparent)]
    Files(FilesError),
    /// OpenSSH's configuration.
    #[error(transparent)]
    SshConfig(#[from] SshConfigError),
    /// Shipping a work tree, or fetching its changes: a
    /// [`WorkspaceError`](crate::workspace::WorkspaceError), for those who downcast it.
    #[error(transparent)]
    Workspace(Box<dyn std::error::Error + Send + Sync>),
    /// Creating a VM's disk.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// A VM's processes, or what they were asked.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// The host's network, which a cluster joins.
    #[error(transparent)]
    Bridge(BridgeError),
    /// There is no memory for a start, now or ever.
    #[error(transparent)]
    Budget(BudgetError),
    /// This host cannot run VMs.
    #[error(transparent)]
    Host(#[from] HostUnsupported),
    /// A VM was asked to have more than this host has.
    #[error(transparent)]
    InsufficientResources(#[from] InsufficientResources),
    /// An extra disk cannot be used.
    #[error(transparent)]
    ExtraDisk(ExtraDiskError),
    /// Something that cannot be waited for.
    #[error(transparent)]
    Ready(#[from] InvalidReady),
    /// There is no such VM.
    #[error("there is no VM {name}; `fleetbox ls` shows those there are")]
    NoVm {
        /// The name.
        name: Name,
    },
    /// Several clusters have a VM of this name.
    #[error(
        "there are several VMs named {name}; say which one is meant: {}",
        clusters.iter().map(|cluster| format!("{cluster}/{name}")).collect::<Vec<_>>().join(", ")
    )]
    Ambiguous {
        /// The name.
        name: Name,
        /// The clusters that have such a VM.
        clusters: Vec<Name>,
    },
    /// Another cluster has a VM of this name.
    #[error(
        "there is a VM {name} already, in cluster {cluster}; remove it with `fleetbox rm {}`, or choose another name",
        Reference::new(cluster.clone(), name.clone())
    )]
    NameTaken {
        /// The name.
        name: Name,
        /// The cluster that has it.
        cluster: Name,
    },
    /// The cluster has no such member.
    #[error("cluster {cluster} has no member {name}; it has {}", list(members))]
    NoMember {
        /// The cluster.
        cluster: Name,
        /// The name asked for.
        name: String,
        /// The members it has.
        members: Vec<String>,
    },
    /// There is no such cluster.
    #[error(
        "there is no cluster {name}; `fleetbox ls` shows the VMs there are, `fleetbox up {name} -n 3` makes one of three"
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
    /// Another process starts or ends the VM and does not come to an end.
    #[error(
        "{name} is being started or ended by another process, which has not come to an end in {waited:?}; worker.log in the directory of its cluster may say why"
    )]
    Busy {
        /// The VM's name.
        name: Name,
        /// How long was waited.
        waited: Duration,
    },
    /// The guest did not come up.
    #[error("{name} did not come up: {why}{}{left}", console_part(console))]
    NotReady {
        /// The VM's name.
        name: Name,
        /// What went wrong last.
        why: String,
        /// The console's last lines.
        console: String,
        /// What has become of the VM, and so what to do.
        left: VmFate,
    },
    /// A guest that answers by SSH could not do what was asked.
    #[error("{name} cannot {what}: {}; `fleetbox ssh {name}` looks into it", why.trim_end())]
    Guest {
        /// The VM's name, with its cluster's where that is another.
        name: String,
        /// What was asked for.
        what: &'static str,
        /// What it wrote, without control characters.
        why: String,
    },
    /// The operating system refused something that has no error of its own here.
    #[error("cannot {action}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// The tokio runtime that this was called in is shutting down.
    #[error(transparent)]
    ShuttingDown(#[from] ShuttingDown),
}

// What a room's error has from a room below is that room's variant here, too.

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
    /// True if it says that the VM does not run. That its worker does not answer says no such thing:
    /// a worker may be suspended, or this process be out of descriptors.
    pub(crate) fn is_not_running(&self) -> bool {
        matches!(
            self,
            Self::NotRunning { .. } | Self::Process(ProcessError::NotRunning(_))
        )
    }

    /// The same after `left` is known of a VM that did not come up.
    pub(crate) fn leaving(mut self, become_of: impl FnOnce(&Name) -> VmFate) -> Self {
        if let Self::NotReady { name, left, .. } = &mut self {
            *left = become_of(name);
        }
        self
    }

    pub(crate) fn io(action: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { action, source }
    }
}

/// What has become of a VM that did not come up. As text it says what can be done about it.
///
/// ```no_run
/// # async fn example() -> fleetbox::Result<()> {
/// use fleetbox::{Error, VmFate, Vm};
///
/// match Vm::builder("web").detached().start().await {
///     // Slow, perhaps: it is given more time.
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
    /// It runs on and has its memory.
    Running(Box<Reference>),
    /// It exists with its disk and does not run.
    Stopped(Box<Reference>),
    /// This program holds it, running or not: what becomes of it is told when that drops it.
    Held,
    /// It is deleted with its disk.
    Deleted,
}

impl std::fmt::Display for VmFate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Running(vm) => write!(
                f,
                "\n{vm} runs on and keeps its memory: `fleetbox logs {vm}` shows all of its console, \
                 `fleetbox console {vm}` attaches to it, `fleetbox up {vm}` waits for it again, \
                 `fleetbox rm {vm}` deletes it"
            ),
            Self::Stopped(vm) => write!(
                f,
                "\n{vm} does not run any more, and its disk is left: `fleetbox logs {vm}` shows all of its \
                 console, `fleetbox up {vm}` starts it again, `fleetbox rm {vm}` deletes it"
            ),
            Self::Held => Ok(()),
            Self::Deleted => f.write_str("\nit is deleted with its disk"),
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
