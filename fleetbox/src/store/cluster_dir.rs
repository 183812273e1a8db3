//! The directories of clusters.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use fleetbox_net::Subnet;

use super::vm_dir::{DRAFT_PREFIX, GONE_PREFIX, remove_tree};
use super::{Lock, Store, StoreError, VmDir, VmPaths, fsutil, identity};
use crate::model::names::Name;

/// The directory of a cluster. It need not exist.
///
/// ```
/// use fleetbox::store::Store;
/// # let dir = tempfile::tempdir().unwrap();
/// # let home = dir.path();
///
/// let cluster = Store::open(home)?.cluster(&"node".parse()?);
/// assert_eq!(cluster.name().as_str(), "node");
/// assert!(!cluster.is_running()?);
/// assert!(cluster.vms()?.is_empty());
/// assert!(cluster.vm(&"node-1".parse()?).is_none());
/// # Ok::<(), fleetbox::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct ClusterDir {
    store: Store,
    name: Name,
    pub(super) path: PathBuf,
}

impl ClusterDir {
    pub(super) fn new(store: &Store, name: &Name) -> Self {
        Self {
            path: store.clusters_dir().join(name.as_str()),
            store: store.clone(),
            name: name.clone(),
        }
    }

    pub(super) fn vm_path(&self, vm: &Name) -> PathBuf {
        self.path.join(vm.as_str())
    }

    /// The cluster's name.
    pub fn name(&self) -> &Name {
        &self.name
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The worker's control socket. The path may be longer than the 107 bytes of a socket address,
    /// so bind and connect relative to an open directory.
    pub fn socket(&self) -> PathBuf {
        self.path.join("worker.sock")
    }

    /// The worker's log.
    pub fn log(&self) -> PathBuf {
        self.path.join("worker.log")
    }

    /// The file whose lock the worker holds.
    pub fn lock_path(&self) -> PathBuf {
        self.path.join("worker.lock")
    }

    /// Takes the worker's lock, creating the directory if it is missing. Returns `None` if a worker
    /// is alive.
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let home = dir.path();
    /// # let image = home.join("disk.raw");
    /// # std::fs::write(&image, [0; 4096]).unwrap();
    /// # let image = image.display().to_string();
    /// # fleetbox::blocking::Vm::builder("web").home(home).image(image).create()?;
    /// # let vm = fleetbox::blocking::Fleet::at(home).find("web")?;
    /// # let cluster = fleetbox::store::Store::open(home)?.cluster(vm.cluster());
    /// let lock = cluster.try_lock()?.expect("no worker runs");
    /// assert!(cluster.try_lock()?.is_none());
    /// # Ok::<(), fleetbox::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`StoreError::Io`] for the file system.
    pub fn try_lock(&self) -> Result<Option<Lock>, StoreError> {
        // Under the store's lock, so that the directory is not removed as unused meanwhile.
        let _guard = self.store.guard()?;
        fsutil::create_private_dir(&self.path).map_err(StoreError::io("create", &self.path))?;
        Lock::try_acquire(&self.lock_path())
    }

    /// The file whose lock is shared by all processes with a handle on a member, running or not.
    fn use_path(&self) -> PathBuf {
        self.path.join("worker.use")
    }

    /// Marks the cluster's members, running or not, as used by this process for as long as the
    /// result lives.
    ///
    /// # Errors
    /// [`StoreError::Io`], with `NotFound` if the cluster is gone.
    pub(crate) fn share(&self) -> Result<Lock, StoreError> {
        loop {
            let path = self.make_use_path()?;
            if let Some(lock) = Lock::share(&path)? {
                return Ok(lock);
            }
        }
    }

    /// [`ClusterDir::share`], or `None` if the cluster does not exist.
    ///
    /// # Errors
    /// [`StoreError::Io`] for the file system.
    pub(crate) fn share_if_there(&self) -> Result<Option<Lock>, StoreError> {
        match self.share() {
            Ok(share) => Ok(Some(share)),
            Err(StoreError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Keeps other processes from starting to use the cluster's members. Returns `None` if a
    /// process uses them.
    ///
    /// # Errors
    /// As [`ClusterDir::share`].
    pub(crate) fn try_claim(&self) -> Result<Option<Lock>, StoreError> {
        Lock::try_claim(&self.make_use_path()?)
    }

    /// True while a process uses the cluster's members.
    ///
    /// # Errors
    /// [`StoreError::Io`] for the file system.
    pub(crate) fn is_used(&self) -> Result<bool, StoreError> {
        Lock::is_shared(&self.use_path())
    }

    fn make_use_path(&self) -> Result<PathBuf, StoreError> {
        let path = self.use_path();
        // Under the store's lock, so that the directory is not removed as unused meanwhile.
        let _guard = self.store.guard()?;
        fsutil::open_private(&path).map_err(StoreError::io("open", &path))?;
        Ok(path)
    }

    /// True while a worker holds the cluster's lock.
    ///
    /// # Errors
    /// [`StoreError::Io`] for the file system.
    pub fn is_running(&self) -> Result<bool, StoreError> {
        Lock::is_held(&self.lock_path())
    }

    /// The member `vm`, if it exists.
    pub fn vm(&self, vm: &Name) -> Option<VmDir> {
        let paths = VmPaths {
            dir: self.vm_path(vm),
        };
        Some(VmDir {
            store: self.store.clone(),
            cluster: self.name.clone(),
            name: vm.clone(),
            id: identity(&paths.record())?,
            paths,
        })
    }

    /// All members, by name.
    ///
    /// # Errors
    /// [`StoreError::Io`] for the file system.
    pub fn vms(&self) -> Result<Vec<VmDir>, StoreError> {
        let mut vms: Vec<_> = names_in(&self.path)?
            .iter()
            .filter_map(|name| self.vm(name))
            .collect();
        vms.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(vms)
    }

    /// True if this user may read it.
    pub(super) fn is_readable(&self) -> bool {
        let refusal = self.refusal();
        if let Some(error) = &refusal {
            tracing::debug!(%error, "skipping a directory of another user");
        }
        refusal.is_none()
    }

    /// Why this user may not read it.
    pub(crate) fn refusal(&self) -> Option<StoreError> {
        let error = fs::read_dir(&self.path).err()?;
        (error.kind() == io::ErrorKind::PermissionDenied)
            .then(|| StoreError::io("read", &self.path)(error))
    }

    /// `wanted` if it is free, otherwise the first address that no member has.
    pub(super) fn free_address(
        &self,
        wanted: Ipv4Addr,
        subnet: Subnet,
    ) -> Result<Ipv4Addr, StoreError> {
        let mut taken = BTreeSet::new();
        for vm in self.vms()? {
            taken.insert(vm.record()?.ip);
        }
        if subnet.is_guest(wanted) && !taken.contains(&wanted) {
            return Ok(wanted);
        }
        let mut guests = subnet.guests();
        guests
            .find(|ip| !taken.contains(ip))
            .ok_or_else(|| StoreError::Full {
                cluster: self.name.clone(),
                subnet: subnet.to_string(),
            })
    }

    /// Removes the directory if it has no VM and no worker.
    ///
    /// # Errors
    /// [`StoreError::Io`] for the file system.
    pub fn remove_if_unused(&self) -> Result<(), StoreError> {
        let _guard = self.store.guard()?;
        self.remove_if_unused_guarded()
    }

    fn remove_if_unused_guarded(&self) -> Result<(), StoreError> {
        if self.is_running()? {
            return Ok(());
        }
        let entries = match fs::read_dir(&self.path) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(e) => return Err(StoreError::io("list", &self.path)(e)),
        };
        let mut files = Vec::new();
        for entry in entries {
            let entry = entry.map_err(StoreError::io("list", &self.path))?;
            let ours = entry.file_name().to_string_lossy().starts_with("worker.");
            if !ours {
                return Ok(());
            }
            files.push(entry.path());
        }
        for file in files {
            fsutil::remove_file_if_there(&file).map_err(StoreError::io("remove", &file))?;
        }
        fs::remove_dir(&self.path).map_err(StoreError::io("remove", &self.path))
    }

    /// Removes directories that killed processes left half-created or half-removed, and returns how
    /// many. The caller must hold the store's lock.
    pub(super) fn sweep_guarded(&self) -> Result<usize, StoreError> {
        let mut swept = 0;
        let entries = fs::read_dir(&self.path).map_err(StoreError::io("list", &self.path))?;
        for entry in entries {
            let entry = entry.map_err(StoreError::io("list", &self.path))?;
            let name = entry.file_name();
            let name = name.to_string_lossy();
            let path = entry.path();
            let leftover = name.starts_with(GONE_PREFIX)
                || name.starts_with(DRAFT_PREFIX)
                // No final marker: not written by this version, or damaged by hand.
                || (Name::new(name.as_ref()).is_ok()
                    && path.is_dir()
                    && is_empty_dir(&path)?);
            // A living creator holds the lock; a directory that is being removed has lost its
            // lock to the removal, which two processes may share without harm.
            if leftover && !Lock::is_held(&path.join("lock"))? {
                tracing::debug!(path = %path.display(), "removing leftovers of a killed process");
                remove_tree(&path)?;
                swept += 1;
            }
        }
        self.remove_if_unused_guarded()?;
        Ok(swept)
    }
}

/// The entries of `dir` that are valid names; empty if the directory is missing.
pub(super) fn names_in(dir: &Path) -> Result<Vec<Name>, StoreError> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(StoreError::io("list", dir)(e)),
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(StoreError::io("list", dir))?;
        if let Some(name) = entry.file_name().to_str().and_then(|n| Name::new(n).ok())
            && is_dir(&entry)
        {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

/// Asks the file system only about links, and where the listing does not say.
fn is_dir(entry: &fs::DirEntry) -> bool {
    match entry.file_type() {
        Ok(kind) if kind.is_dir() => true,
        Ok(kind) if kind.is_file() => false,
        _ => entry.path().is_dir(),
    }
}

fn is_empty_dir(path: &Path) -> Result<bool, StoreError> {
    Ok(fs::read_dir(path)
        .map_err(StoreError::io("list", path))?
        .next()
        .is_none())
}
