//! What is stored about a VM.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::disk::extra_disk::ExtraDisk;
use crate::disk::fixture::Fixture;
use crate::disk::seed::GuestConfig;
use crate::model::mac::MacAddr;
use crate::model::names::Name;
use crate::model::network::Network;
use crate::model::size::Size;

/// The image a VM was created from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageRecord {
    /// What the user asked for: alias, path or URL.
    pub reference: String,
    /// The file that is the base of the VM's disk; never written.
    pub path: PathBuf,
    /// SHA-256 in lower-case hexadecimal; none for a path given by the user, which is not read
    /// whole.
    pub sha256: Option<String>,
}

/// What is stored about a VM, in `vm.json` of its directory.
///
/// ```no_run
/// use fleetbox::store::Store;
///
/// for vm in Store::open_default()?.vms()? {
///     let record = vm.record()?;
///     println!("{} of {} has {} CPUs", record.name, record.image.reference, record.cpus);
/// }
/// # Ok::<(), fleetbox::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmRecord {
    /// The VM's name and hostname.
    pub name: Name,
    /// The cluster it is a member of.
    pub cluster: Name,
    /// Its base image.
    pub image: ImageRecord,
    /// Number of virtual CPUs.
    pub cpus: u8,
    /// Memory.
    pub memory: Size,
    /// Size of the disk as the guest sees it.
    pub disk: Size,
    /// The network card's address.
    pub mac: MacAddr,
    /// The address the network gives to the guest.
    pub ip: Ipv4Addr,
    /// When the VM was created, in seconds since 1970 (UTC).
    pub created: u64,
    /// cloud-init's instance id: another one makes the guest configure itself anew.
    pub instance_id: String,
    /// The user that SSH logs in as.
    pub ssh_user: String,
    /// Public key that may log in, in OpenSSH's one-line form; its private key is in `keys/`.
    pub ssh_key: String,
    /// The guest's host key, in OpenSSH's one-line form; its private key is in `host_key`.
    pub host_key: String,
    /// Directories of the host that the guest sees, in the order of their disks.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub fixtures: Vec<Fixture>,
    /// What its user has configured the guest with.
    #[serde(default, skip_serializing_if = "GuestConfig::is_empty")]
    pub config: GuestConfig,
    /// Disks besides its own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub extra_disks: Vec<ExtraDisk>,
    /// The network that its cluster has.
    #[serde(default, skip_serializing_if = "Network::is_user")]
    pub network: Network,
}

/// Seconds since 1970 (UTC), for [`VmRecord::created`]; 0 if the clock is before that.
pub fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| d.as_secs())
}
