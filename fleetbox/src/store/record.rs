//! The record of a VM.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::disk::extra_disk::ExtraDisk;
use crate::disk::fixture::Fixture;
use crate::disk::seed::GuestConfig;
use crate::model::mac::MacAddr;
use crate::model::names::Name;
use crate::model::network::Network;
use crate::model::size::Size;
use crate::util::fs as fsutil;

/// The name of a record in the directory of its VM.
pub(crate) const RECORD: &str = "vm.json";

/// Maximum bytes of a record. It has a page or two; anything larger is not ours.
pub(super) const RECORD_LIMIT: u64 = 1 << 20;

/// The image a VM was created from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageRecord {
    /// The image as the user named it: alias, path or URL.
    pub reference: String,
    /// The base of the VM's disk. It is never written to.
    pub path: PathBuf,
    /// SHA-256 in lower-case hexadecimal; `None` for a path given by the user, which is not read
    /// completely.
    pub sha256: Option<String>,
}

/// The record of a VM, stored in `vm.json` of its directory.
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
    /// The hardware address of the network card.
    pub mac: MacAddr,
    /// The IP address that the network assigns to the guest.
    pub ip: Ipv4Addr,
    /// When the VM was created, in seconds since 1970 (UTC).
    pub created: u64,
    /// cloud-init's instance id. If it changes, cloud-init configures the guest again.
    pub instance_id: String,
    /// The user for SSH logins.
    pub ssh_user: String,
    /// The public key that may log in, in OpenSSH's one-line format. Its private key is in `keys/`.
    pub ssh_key: String,
    /// The guest's host key, in OpenSSH's one-line format. Its private key is in `host_key`.
    pub host_key: String,
    /// Directories of the host that the guest sees, in the order of their disks.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub fixtures: Vec<Fixture>,
    /// The guest's configuration by the user.
    #[serde(default, skip_serializing_if = "GuestConfig::is_empty")]
    pub config: GuestConfig,
    /// Its extra disks.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub extra_disks: Vec<ExtraDisk>,
    /// The network of its cluster.
    #[serde(default, skip_serializing_if = "Network::is_user")]
    pub network: Network,
}

/// The part of a record that tells a VM from any other that had or will have its name.
#[derive(Deserialize)]
struct Identity {
    instance_id: String,
}

/// The identity of the VM whose record is `path`. The outer `None` means that there is no record, the inner one that it
/// cannot be read: such a VM has to be removable, too.
pub(crate) fn identity(path: &Path) -> Option<Option<String>> {
    match fsutil::read_limited(path, RECORD_LIMIT) {
        Ok(text) => {
            let identity: Option<Identity> = serde_json::from_slice(&text).ok();
            Some(identity.map(|identity| identity.instance_id))
        }
        // An error other than these says nothing about the record.
        Err(error) => match error.kind() {
            std::io::ErrorKind::NotFound
            | std::io::ErrorKind::NotADirectory
            | std::io::ErrorKind::IsADirectory => None,
            _ => Some(None),
        },
    }
}

/// The current time in seconds since 1970 (UTC), for [`VmRecord::created`]; 0 if the clock is set
/// to an earlier time.
pub fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| d.as_secs())
}
