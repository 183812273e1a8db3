//! The processes behind the library, all of them this executable run again.
//!
//! ```text
//! test or CLI process          worker (one per cluster)          machine (one per VM)
//!   client  --worker.sock-->     worker, network, member  --+-->   machine -> VMM
//!           --lifeline-------->                             +-->   machine -> VMM
//! ```
//!
//! `spawn` starts a process in a role, `entry` makes the new process take it, and `wire` and
//! `protocol` define the messages between them. Process ids are not used: a worker is alive while
//! its cluster's lock is held, and a process sees the end of another when the socket between them
//! closes.

mod client;
mod console;
mod entry;
#[cfg(any(test, fleetbox_fake))]
pub(crate) mod fake;
mod lifeline;
mod log;
mod machine;
mod member;
mod network;
mod privileges;
mod protocol;
mod service;
mod socket;
mod spawn;
#[cfg(test)]
mod tests;
mod trouble;
mod vmm;
mod watched;
mod wire;
mod worker;

#[cfg(test)]
pub(crate) use spawn::Role;

pub(crate) use client::{Client, EventStream};
pub(crate) use lifeline::{Lifeline, start_worker};
pub(crate) use protocol::{
    Backend, DiskFormat, DiskSpec, LinkChange, LinkOrder, MachineSpec, MemberId, WorkerConfig,
};

use std::io;

use crate::util::readable::readable_debug;

/// Why a request to a VM's processes failed.
///
/// ```no_run
/// # async fn example(vm: fleetbox::Vm) -> fleetbox::Result<()> {
/// use fleetbox::{Error, ProcessError};
///
/// match vm.wait().await {
///     Ok(()) => println!("powered off"),
///     Err(Error::Process(ProcessError::Failed(why))) => println!("failed: {why}"),
///     Err(error) => return Err(error),
/// }
/// # Ok(()) }
/// ```
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum ProcessError {
    /// The worker could not be started.
    #[error("cannot start the worker process of {cluster}: {source}")]
    StartWorker {
        /// The cluster.
        cluster: String,
        /// Why.
        source: io::Error,
    },
    /// No worker listens.
    #[error("{cluster} is not running ({source}); start it with `fleetbox up {cluster}`")]
    NoWorker {
        /// The cluster.
        cluster: String,
        /// Why the connection failed.
        source: io::Error,
    },
    /// The worker belongs to another user.
    #[error(
        "cannot talk to the worker process of {cluster}, which {owner} has started; run the command as {owner}"
    )]
    Foreign {
        /// The cluster.
        cluster: String,
        /// The user.
        owner: String,
    },
    /// The worker went away, or sent an invalid answer.
    #[error("lost the worker process of {cluster}: {source}; its worker.log may say why")]
    Lost {
        /// The cluster.
        cluster: String,
        /// What happened to the connection.
        source: io::Error,
    },
    /// The worker was started by another version of this library.
    #[error(
        "{cluster} is run by fleetbox {theirs}, which this version ({}) cannot talk to; \
         stop it with that version: `fleetbox down {cluster}`",
        env!("CARGO_PKG_VERSION")
    )]
    Version {
        /// The cluster.
        cluster: String,
        /// The version of the worker.
        theirs: String,
    },
    /// The worker exists but does not answer: it is suspended or hangs, or the host is very busy.
    #[error(
        "the worker process of {cluster} has not answered for {waited:?}; wait if this host is busy, or end the VM \
         with `fleetbox kill`: that also ends a worker that hangs, with all VMs of its cluster"
    )]
    Silent {
        /// The cluster.
        cluster: String,
        /// How long this process waited.
        waited: std::time::Duration,
    },
    /// The machine does not run.
    #[error("{0}")]
    NotRunning(String),
    /// The machine could not be started, and nothing in it has run; the message is complete.
    #[error("{0}")]
    NotStarted(String),
    /// The guest refuses a connection.
    #[error("{0}")]
    Refused(String),
    /// The worker failed to do it; the message is complete.
    #[error("{0}")]
    Failed(String),
}

readable_debug!(ProcessError);

impl ProcessError {
    /// True if a worker exists that does not answer.
    pub(crate) fn is_silence(&self) -> bool {
        matches!(self, Self::Silent { .. })
    }

    /// True if there was no worker, or it ended before it answered.
    pub(crate) fn is_worker_gone(&self) -> bool {
        matches!(self, Self::NoWorker { .. } | Self::Lost { .. })
    }
}
