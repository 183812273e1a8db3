//! The messages between the processes.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use fleetbox_net::{LinkConditions, LinkEnd};
use fleetbox_vmm::machine::BootSource;
use serde::{Deserialize, Serialize};

use crate::host::budget::Claim;
use crate::model::names::Name;
use crate::store::VmDir;

/// Version of the protocol between a client and a worker. Workers outlive the program that
/// started them, so the two ends may differ; [`Hello`] itself never changes shape.
pub(crate) const PROTOCOL: u32 = 2;

/// First message of both ends of a connection to a worker.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Hello {
    /// The sender's [`PROTOCOL`].
    pub(crate) protocol: u32,
    /// Version of the sender's package, for messages.
    pub(crate) version: String,
}

impl Hello {
    /// The greeting of this program.
    pub(crate) fn own() -> Self {
        Self {
            protocol: own_protocol(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }
}

/// [`PROTOCOL`], or the version that a test sets.
fn own_protocol() -> u32 {
    #[cfg(fleetbox_fake)]
    if let Some(protocol) = super::fake::protocol_from_env() {
        return protocol;
    }
    PROTOCOL
}

/// The configuration of a worker, sent over the socket it inherits.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct WorkerConfig {
    /// The state directory.
    pub(crate) home: PathBuf,
    /// The cluster's name.
    pub(crate) cluster: Name,
    /// The worker outlives its owner, and ends when no machine is running.
    pub(crate) detached: bool,
}

/// A worker's or machine's answer to its configuration.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Readiness {
    /// It is serving.
    Ready,
    /// It failed, for this reason.
    Failed(String),
}

/// The description of a virtual machine to start. Paths are absolute.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct MachineSpec {
    /// The VM's name.
    pub(crate) name: String,
    /// What tells it from another VM of its name. A machine is started only for the VM that this is.
    #[serde(default)]
    pub(crate) id: Option<String>,
    /// Number of vCPUs.
    pub(crate) cpus: u8,
    /// Memory in bytes.
    pub(crate) memory: u64,
    /// What to boot.
    pub(crate) boot: BootSource,
    /// Disks in the order the guest sees them.
    pub(crate) disks: Vec<DiskSpec>,
    /// The NIC's hardware address.
    pub(crate) mac: [u8; 6],
    /// The address that DHCP assigns to it.
    pub(crate) ip: Ipv4Addr,
    /// File that receives the console's output.
    pub(crate) console_log: PathBuf,
    /// File that records why the machine failed, if it did.
    pub(crate) failure_note: PathBuf,
    /// The VM's lock, which its machine process holds while it lives.
    pub(crate) lock: PathBuf,
    /// The claim of its memory, visible to other users of the host; held like the lock.
    #[serde(default)]
    pub(crate) claim: Option<Claim>,
    /// What runs it.
    pub(crate) backend: Backend,
}

/// What runs a machine.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) enum Backend {
    /// The VMM.
    #[default]
    Vmm,
    /// A script, for tests of the life cycle.
    #[cfg(any(test, fleetbox_fake))]
    Fake(super::fake::Script),
}

impl Backend {
    /// The default backend.
    pub(crate) fn usual() -> Self {
        #[cfg(fleetbox_fake)]
        if let Some(script) = super::fake::from_env() {
            return Self::Fake(script);
        }
        Self::default()
    }

    /// True if there is a guest that can be logged in to.
    pub(crate) fn has_guest(&self) -> bool {
        matches!(self, Self::Vmm)
    }
}

/// A machine's disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DiskSpec {
    /// The image or copy-on-write layer.
    pub(crate) path: PathBuf,
    /// The format of the file. It is never guessed, because a guest may have written the file.
    pub(crate) format: DiskFormat,
    /// Refuses writes.
    pub(crate) read_only: bool,
    /// Data that the guest flushes survives a crash of the host.
    pub(crate) durable: bool,
    /// Serial number the guest sees (at most 20 bytes).
    pub(crate) serial: String,
}

/// The format of a disk's file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum DiskFormat {
    /// A copy-on-write layer.
    Layer,
    /// The disk's bytes as they are.
    Raw,
}

/// The VM that a request is about.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct MemberId {
    /// Its name.
    pub(crate) vm: String,
    /// What tells it from a later VM of that name. Without it, and by a worker of an earlier version, the VM of that
    /// name is meant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) id: Option<String>,
}

impl MemberId {
    /// This very VM.
    pub(crate) fn of(vm: &VmDir) -> Self {
        Self {
            vm: vm.name().to_string(),
            id: vm.id().map(str::to_owned),
        }
    }
}

/// A client's request to a worker.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Request {
    /// Start a machine unless it is running.
    Start(Box<MachineSpec>),
    /// List the machines.
    List,
    /// Answer once the machine is no longer running.
    Wait {
        #[serde(flatten)]
        target: MemberId,
    },
    /// The last console output.
    Console {
        #[serde(flatten)]
        target: MemberId,
    },
    /// The serial console. After the answer the connection carries the end of its output and all
    /// later output, and takes input to type, until the machine ends.
    Serial {
        #[serde(flatten)]
        target: MemberId,
    },
    /// The machine's events. After the answer come all events so far, then each new one, until the
    /// machine ends.
    Events {
        #[serde(flatten)]
        target: MemberId,
    },
    /// Connect to a guest's TCP port; after the answer the connection carries its bytes.
    Dial {
        #[serde(flatten)]
        target: MemberId,
        port: u16,
    },
    /// Listen on a loopback port, or any free one if `host` is 0, and forward each connection to
    /// the guest's port.
    Forward {
        #[serde(flatten)]
        target: MemberId,
        host: u16,
        port: u16,
    },
    /// List the loopback ports that are forwarded to a machine.
    Forwards {
        #[serde(flatten)]
        target: MemberId,
    },
    /// Press the power button, and kill the machine at the deadline.
    Stop {
        #[serde(flatten)]
        target: MemberId,
        deadline_ms: u64,
    },
    /// Change the conditions of the network's links.
    Links(LinkOrder),
    /// Kill a machine if it is running, and forget it. If it is the `last` one of its cluster, the worker ends with it
    /// unless another one has been started.
    Forget {
        #[serde(flatten)]
        target: MemberId,
        #[serde(default)]
        last: bool,
    },
    /// Kill the machines, delete only ephemeral VMs, and end.
    Shutdown,
}

/// A change of a network's links.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum LinkOrder {
    /// Let nothing pass between two groups.
    Partition { a: Vec<LinkEnd>, b: Vec<LinkEnd> },
    /// End the partition.
    Heal,
    /// Change the conditions between two ends.
    Change {
        a: LinkEnd,
        b: LinkEnd,
        change: LinkChange,
    },
    /// Change the conditions for everything that one end sends or receives.
    SetAllOf {
        end: LinkEnd,
        conditions: LinkConditions,
    },
    /// End all faults.
    Clear,
    /// Seed all random decisions.
    Seed(u64),
}

/// A change of a link's conditions.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum LinkChange {
    All(LinkConditions),
    Latency(Duration),
    Loss(f64),
    Bandwidth(Option<u64>),
}

/// A worker's answer.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Reply {
    /// To [`Request::Start`].
    Started {
        /// It was already running.
        already: bool,
        /// The guest's address in the cluster's network.
        ip: Option<Ipv4Addr>,
    },
    /// To [`Request::List`].
    Machines(Vec<MachineStatus>),
    /// To [`Request::Wait`].
    Ended(ExitReport),
    /// To [`Request::Console`].
    Console(String),
    /// To [`Request::Dial`], [`Request::Serial`] and [`Request::Events`].
    Connected,
    /// To [`Request::Forward`].
    Forwarded(SocketAddr),
    /// To [`Request::Forwards`]: addresses of this host and ports of the guest.
    Forwards(Vec<(SocketAddr, u16)>),
    /// To [`Request::Stop`].
    Stopped {
        /// The guest did not power off by itself in time.
        forced: bool,
    },
    /// To [`Request::Links`], [`Request::Forget`] and [`Request::Shutdown`].
    Done,
    /// The request failed.
    Failed {
        /// Why.
        reason: Reason,
        /// The message.
        message: String,
        /// The machine to start ran before it failed. Earlier versions do not say so.
        #[serde(default = "yes")]
        ran: bool,
    },
}

fn yes() -> bool {
    true
}

/// The kinds of failure that a client distinguishes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Reason {
    /// No machine of that name runs here.
    NotRunning,
    /// The guest refuses the connection, or does not answer.
    Refused,
    /// Anything else.
    Other,
}

/// A machine in a worker's list.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct MachineStatus {
    pub(crate) name: String,
    pub(crate) running: bool,
    pub(crate) ip: Option<Ipv4Addr>,
}

/// How a machine ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ExitReport {
    /// `None` if the guest powered itself off, otherwise what went wrong.
    pub(crate) failure: Option<String>,
    /// The end of the console's output.
    pub(crate) console: String,
    /// Its vCPUs have run.
    #[serde(default)]
    pub(crate) ran: bool,
}

/// The configuration of a machine process. It inherits its file descriptors: the control socket,
/// the VM's held lock and the NIC's link.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct MachineConfig {
    pub(crate) spec: MachineSpec,
}

/// A command from a worker to a running machine process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum MachineCommand {
    /// Press the power button.
    PowerButton,
    /// Type at the serial console.
    Type(Vec<u8>),
}

/// A report of a machine process. Console output comes as raw bytes between these.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum MachineEvent {
    /// The vCPUs run.
    Started,
    /// Something else happened.
    Event(fleetbox_vmm::machine::Event),
    /// The machine ended: `None` after a power-off, otherwise the reason.
    Ended { failure: Option<String> },
}
