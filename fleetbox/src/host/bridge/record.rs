//! What is written down before it is made: a file for each cluster's bridge, and one about
//! `ip_forward`.

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

/// A record is a few hundred bytes.
const MAX_RECORD: u64 = 64 << 10;

const FORWARDING: &str = "ip_forward";
const SUFFIX: &str = ".json";

/// Begins the names of interfaces: bridges and taps.
pub(super) const BRIDGE_PREFIX: &str = "flbr";
const TAP_PREFIX: &str = "fltp";
/// Begins the names of tables.
pub(super) const TABLE_PREFIX: &str = "fleetbox_";

/// The network that something was made in: this boot of the host, and a network namespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Place {
    boot: String,
    namespace: u64,
}

impl Place {
    /// Where this thread is.
    pub(super) fn here() -> Result<Self, BridgeError> {
        let host = || BridgeError::host("tell this host's network from others");
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").map_err(host())?;
        let namespace = fs::metadata("/proc/thread-self/ns/net").map_err(host())?;
        Ok(Self {
            boot: boot.trim().to_owned(),
            namespace: namespace.ino(),
        })
    }

    /// Whether nothing of that time is left: the host was restarted since.
    pub(super) fn is_gone(&self, here: &Self) -> bool {
        self.boot != here.boot
    }
}

/// What a cluster has on the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) place: Place,
    pub(super) bridge: String,
    pub(super) tap: String,
    pub(super) table: String,
    pub(super) subnet: Subnet,
}

impl Record {
    /// With names that nothing has yet, in all likelihood.
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

    /// Whether its names are of those made here: others are not for us to remove.
    fn is_ours(&self) -> bool {
        self.bridge.starts_with(BRIDGE_PREFIX)
            && self.tap.starts_with(TAP_PREFIX)
            && self.table.starts_with(TABLE_PREFIX)
    }
}

/// What `ip_forward` was before it was changed.
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

    /// Whether there is nothing at all, as where no bridge was ever asked for.
    pub(super) fn is_empty(&self) -> bool {
        fs::read_dir(&self.dir).map_or(true, |mut entries| entries.next().is_none())
    }

    /// The clusters that there are records of.
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

    /// The record of a cluster, if there is one. What cannot be understood is none of ours.
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
            tracing::warn!(path = %path.display(), %error, "not a record of a bridge");
            Ok(None)
        }
    }
}
