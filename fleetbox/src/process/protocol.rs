//! What the processes say to each other.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use fleetbox_net::{LinkConditions, LinkEnd};
use fleetbox_vmm::machine::BootSource;
use serde::{Deserialize, Serialize};

use crate::host::budget::Claim;
use crate::model::names::Name;

/// Version of the protocol between a client and a worker. Workers outlive the program that
/// started them, so the two ends may differ; [`Hello`] itself never changes shape.
pub(crate) const PROTOCOL: u32 = 2;

/// First message of both ends of a connection to a worker.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Hello {
    /// [`PROTOCOL`] of the sender.
    pub(crate) protocol: u32,
    /// Version of the sender's package, for messages.
    pub(crate) version: String,
}

impl Hello {
    /// Of this program.
    pub(crate) fn own() -> Self {
        Self {
            protocol: own_protocol(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }
}

/// [`PROTOCOL`], or what a test says in its place.
fn own_protocol() -> u32 {
    #[cfg(fleetbox_fake)]
    if let Some(protocol) = super::fake::protocol_from_env() {
        return protocol;
    }
    PROTOCOL
}

/// What a worker is told at its start, over the socket it inherits.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct WorkerConfig {
    /// The state directory.
    pub(crate) home: PathBuf,
    /// The cluster's name.
    pub(crate) cluster: Name,
    /// Outlives its owner; ends when no machine runs.
    pub(crate) detached: bool,
}

/// A worker's or machine's answer to its configuration.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Readiness {
    /// It serves.
    Ready,
    /// It ends, for this reason.
    Failed(String),
}

/// A virtual machine as a worker is asked to start it. Paths are absolute.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct MachineSpec {
    /// The VM's name.
    pub(crate) name: String,
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
    /// The address that DHCP gives to it.
    pub(crate) ip: Ipv4Addr,
    /// File that gets the console's output.
    pub(crate) console_log: PathBuf,
    /// File that says why the machine failed, if it did.
    pub(crate) failure_note: PathBuf,
    /// The VM's lock, held by its machine process for as long as that lives.
    pub(crate) lock: PathBuf,
    /// What it says of its memory to the host's other users, held as the lock is.
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
    /// Nothing but a script (tests of the life cycle).
    #[cfg(any(test, fleetbox_fake))]
    Fake(super::fake::Script),
}

impl Backend {
    /// What runs machines where nothing else is said.
    pub(crate) fn usual() -> Self {
        #[cfg(fleetbox_fake)]
        if let Some(script) = super::fake::from_env() {
            return Self::Fake(script);
        }
        Self::default()
    }

    /// True if there is a guest, which can be logged in to.
    pub(crate) fn has_guest(&self) -> bool {
        matches!(self, Self::Vmm)
    }
}

/// A machine's disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DiskSpec {
    /// The image or copy-on-write layer.
    pub(crate) path: PathBuf,
    /// What the file is. Never guessed: a guest may have written it.
    pub(crate) format: DiskFormat,
    /// Refuses writes.
    pub(crate) read_only: bool,
    /// What the guest flushes survives a crash of the host.
    pub(crate) durable: bool,
    /// Serial number the guest sees (at most 20 bytes).
    pub(crate) serial: String,
}

/// The format of a disk's file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum DiskFormat {
    /// A copy-on-write layer.
    Layer,
    /// The disk's bytes.
    Raw,
}

/// What a client asks of a worker.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Request {
    /// Start a machine, if it does not run already.
    Start(Box<MachineSpec>),
    /// Which machines there are.
    List,
    /// Answer when the machine no longer runs.
    Wait { vm: String },
    /// The last console output.
    Console { vm: String },
    /// The serial console: after the answer the connection carries what it printed last and what
    /// it prints from then on, and takes what is to be typed, until the machine ends.
    Serial { vm: String },
    /// The machine's events: after the answer come those there were, then each as it happens,
    /// until the machine ends.
    Events { vm: String },
    /// Connect to a guest's TCP port; after the answer the connection carries its bytes.
    Dial { vm: String, port: u16 },
    /// Listen on a loopback port, on any if `host` is 0, and connect each connection to the
    /// guest's port.
    Forward { vm: String, host: u16, port: u16 },
    /// Which loopback ports lead to a machine.
    Forwards { vm: String },
    /// Press the power button; kill at the deadline.
    Stop { vm: String, deadline_ms: u64 },
    /// Change what the network's links do.
    Links(LinkOrder),
    /// Kill a machine, if it runs, and know nothing of it any more.
    Forget { vm: String },
    /// Kill the machines, delete nothing but ephemeral VMs, and end.
    Shutdown,
}

/// What is to become of a network's links.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum LinkOrder {
    /// Nothing passes between two groups.
    Partition { a: Vec<LinkEnd>, b: Vec<LinkEnd> },
    /// No partition any more.
    Heal,
    /// Other conditions between two ends.
    Change {
        a: LinkEnd,
        b: LinkEnd,
        change: LinkChange,
    },
    /// Conditions for all that one end sends or receives.
    SetAllOf {
        end: LinkEnd,
        conditions: LinkConditions,
    },
    /// No faults any more.
    Clear,
    /// The seed of all chances.
    Seed(u64),
}

/// What is changed of a link's conditions.
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
        /// It ran already.
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
    /// It failed.
    Failed {
        /// Why.
        reason: Reason,
        /// In words.
        message: String,
    },
}

/// Kinds of failure a client may tell apart.
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
    /// `None` if the guest powered itself off; else what went wrong.
    pub(crate) failure: Option<String>,
    /// The console's last output.
    pub(crate) console: String,
}

/// What a machine process is told at its start. File descriptors are inherited: the control
/// socket, the VM's held lock, the NIC's link.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct MachineConfig {
    pub(crate) spec: MachineSpec,
}

/// What a worker tells a machine process later on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum MachineCommand {
    /// Press the power button.
    PowerButton,
    /// Type at the serial console.
    Type(Vec<u8>),
}

/// What a machine process reports; console output comes as raw bytes between these.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum MachineEvent {
    /// The vCPUs run.
    Started,
    /// Something else happened.
    Event(fleetbox_vmm::machine::Event),
    /// The machine ended: `None` after a power-off, else why.
    Ended { failure: Option<String> },
}
