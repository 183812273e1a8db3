//! The records of what is changed on the host, written before the change: a file for each cluster's
//! bridge, and one for `ip_forward`.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use fleetbox_net::Subnet;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::error::BridgeError;
use crate::model::names::Name;
use crate::store::Store;
use crate::util::fs::{create_private_dir, read_limited, remove_file_if_there, write_atomic};

/// Maximum bytes of a record, which usually has a few hundred.
const MAX_RECORD: u64 = 64 << 10;

const FORWARDING: &str = "ip_forward";
const SUFFIX: &str = ".json";

/// The prefix of the names of interfaces: bridges and taps.
pub(super) const BRIDGE_PREFIX: &str = "flbr";
const TAP_PREFIX: &str = "fltp";
/// The prefix of the names of tables.
pub(super) const TABLE_PREFIX: &str = "fleetbox_";

/// Where something was created: a boot of the host, and a network namespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Place {
    boot: String,
    namespace: u64,
}

impl Place {
    /// The boot and network namespace of this thread.
    pub(super) fn here() -> Result<Self, BridgeError> {
        let host = || BridgeError::host("identify the network namespace");
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").map_err(host())?;
        let namespace = fs::metadata("/proc/thread-self/ns/net").map_err(host())?;
        Ok(Self {
            boot: boot.trim().to_owned(),
            namespace: namespace.ino(),
        })
    }

    /// True if the host was restarted since, so that nothing is left.
    pub(super) fn is_gone(&self, here: &Self) -> bool {
        self.boot != here.boot
    }
}

/// The record of what a cluster has on the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) place: Place,
    pub(super) bridge: String,
    pub(super) tap: String,
    pub(super) table: String,
    pub(super) subnet: Subnet,
}

impl Record {
    /// Creates a record with random names, which are very likely unused.
    pub(super) fn new(place: Place, subnet: Subnet) -> Self {
        let id = rand::random::<u32>();
        Self {
            place,
            bridge: format!("{BRIDGE_PREFIX}{id:08x}"),
            tap: format!("{TAP_PREFIX}{id:08x}"),
            table: format!("{TABLE_PREFIX}{id:08x}"),
            subnet,
        }
    }

    /// True if fleetbox could have made these names. Anything else must not be removed.
    fn is_ours(&self) -> bool {
        self.bridge.starts_with(BRIDGE_PREFIX)
            && self.tap.starts_with(TAP_PREFIX)
            && self.table.starts_with(TABLE_PREFIX)
    }
}

/// The value of `ip_forward` before it was changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Forwarding {
    pub(super) place: Place,
    pub(super) was: String,
}

/// The records of a state directory.
pub(super) struct Records {
    dir: PathBuf,
}

impl Records {
    pub(super) fn of(store: &Store) -> Self {
        Self {
            dir: store.home().join("bridges"),
        }
    }

    fn path(&self, cluster: &Name) -> PathBuf {
        self.dir.join(format!("{cluster}{SUFFIX}"))
    }

    /// True if there are no records at all, for example because no bridge was ever used.
    pub(super) fn is_empty(&self) -> bool {
        fs::read_dir(&self.dir).map_or(true, |mut entries| entries.next().is_none())
    }

    /// The clusters that have records.
    pub(super) fn clusters(&self) -> Result<Vec<Name>, BridgeError> {
        let entries = match fs::read_dir(&self.dir) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(record("list", &self.dir))?,
        };
        let mut names = Vec::new();
        for entry in entries {
            let name = entry.map_err(record("list", &self.dir))?.file_name();
            let cluster = name.to_str().and_then(|name| name.strip_suffix(SUFFIX));
            names.extend(cluster.and_then(|name| Name::new(name).ok()));
        }
        names.sort();
        Ok(names)
    }

    /// The record of a cluster, if there is one. A file that cannot be parsed is ignored.
    pub(super) fn read(&self, cluster: &Name) -> Result<Option<Record>, BridgeError> {
        let record: Option<Record> = read(&self.path(cluster))?;
        Ok(record.filter(Record::is_ours))
    }

    pub(super) fn write(&self, cluster: &Name, record: &Record) -> Result<(), BridgeError> {
        self.put(&self.path(cluster), record)
    }

    pub(super) fn remove(&self, cluster: &Name) -> Result<(), BridgeError> {
        let path = self.path(cluster);
        remove_file_if_there(&path).map_err(record("remove", &path))
    }

    pub(super) fn forwarding(&self) -> Result<Option<Forwarding>, BridgeError> {
        read(&self.dir.join(FORWARDING))
    }

    pub(super) fn write_forwarding(&self, forwarding: &Forwarding) -> Result<(), BridgeError> {
        self.put(&self.dir.join(FORWARDING), forwarding)
    }

    pub(super) fn remove_forwarding(&self) -> Result<(), BridgeError> {
        let path = self.dir.join(FORWARDING);
        remove_file_if_there(&path).map_err(record("remove", &path))
    }

    fn put(&self, path: &Path, value: &impl Serialize) -> Result<(), BridgeError> {
        create_private_dir(&self.dir).map_err(record("create", &self.dir))?;
        let bytes = serde_json::to_vec_pretty(value).map_err(std::io::Error::other);
        bytes
            .and_then(|bytes| write_atomic(path, &bytes))
            .map_err(record("write", path))
    }
}

fn record(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> BridgeError {
    let path = path.to_owned();
    move |source| BridgeError::Record {
        action,
        path,
        source,
    }
}

fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, BridgeError> {
    let bytes = match read_limited(path, MAX_RECORD) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        bytes => bytes.map_err(record("read", path))?,
    };
    match serde_json::from_slice(&bytes) {
        Ok(value) => Ok(Some(value)),
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "ignoring a file that is not a record of a bridge");
            Ok(None)
        }
    }
}
