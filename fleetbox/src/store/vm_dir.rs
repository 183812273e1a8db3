//! The directories of VMs.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use fleetbox_net::Subnet;

use super::record::{RECORD, RECORD_LIMIT};
use super::{Lock, Store, StoreError, VmRecord, fsutil, identity};
use crate::model::names::{Name, Reference};

/// Prefix of the name of a directory whose VM is being created.
pub(super) const DRAFT_PREFIX: &str = ".new-";
/// Prefix of the name of a directory whose VM is being removed.
pub(super) const GONE_PREFIX: &str = ".gone-";

/// The name of the file that describes the first error of a device.
pub(crate) const DEVICE_ERROR: &str = "device-error";

/// The paths in the directory of a VM or a draft of one.
///
/// ```no_run
/// use fleetbox::store::Store;
///
/// for vm in Store::open_default()?.vms()? {
///     println!("{}", vm.paths().console_log().display());
/// }
/// # Ok::<(), fleetbox::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmPaths {
    pub(super) dir: PathBuf,
}

impl VmPaths {
    /// The directory itself.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The record, which is written last.
    pub fn record(&self) -> PathBuf {
        self.dir.join(RECORD)
    }

    /// The copy-on-write layer over the image.
    pub fn disk_layer(&self) -> PathBuf {
        self.dir.join("disk.layer")
    }

    /// The layer of an extra disk, counted from 1.
    pub fn extra_disk(&self, number: usize) -> PathBuf {
        self.dir.join(format!("extra-{number}.layer"))
    }

    /// The cloud-init seed, a FAT image.
    pub fn seed(&self) -> PathBuf {
        self.dir.join("seed.img")
    }

    /// The disk of a fixture, rebuilt at each start.
    pub fn fixture(&self, index: usize) -> PathBuf {
        self.dir.join(format!("fixture-{index:02}.img"))
    }

    /// The guest's private SSH host key, in OpenSSH's format.
    pub fn host_key(&self) -> PathBuf {
        self.dir.join("host_key")
    }

    /// The output of the guest's serial console.
    pub fn console_log(&self) -> PathBuf {
        self.dir.join("console.log")
    }

    /// Why the VM failed when it last ran; missing if it did not fail.
    pub fn failure(&self) -> PathBuf {
        self.dir.join("failure")
    }

    /// The first error that this host has had with a device since the VM was last started; blank if there was none.
    pub fn device_error(&self) -> PathBuf {
        self.dir.join(DEVICE_ERROR)
    }

    /// The lock that is held while the VM is running or being changed.
    pub fn lock(&self) -> PathBuf {
        self.dir.join("lock")
    }
}

/// A VM that is being created. It is removed if it is dropped before [`VmDraft::commit`]. After a
/// kill the next [`Store::sweep`] or [`Store::create_vm`] removes it.
#[derive(Debug)]
pub struct VmDraft {
    store: Store,
    cluster: Name,
    name: Name,
    paths: VmPaths,
    // Says that the creator lives; `None` once committed.
    lock: Option<Lock>,
}

impl VmDraft {
    pub(super) fn create(store: &Store, cluster: &Name, name: &Name) -> Result<Self, StoreError> {
        let cluster_dir = store.cluster(cluster);
        let final_path = cluster_dir.vm_path(name);
        let dir = cluster_dir
            .path
            .join(format!("{DRAFT_PREFIX}{name}-{}", unique()));
        // Under the store's lock, so that no sweep sees the directory before its lock is held.
        let _guard = store.guard()?;
        if final_path.exists() {
            return Err(StoreError::Exists {
                name: name.clone(),
                cluster: cluster.clone(),
            });
        }
        fsutil::create_private_dir(&dir).map_err(StoreError::io("create", &dir))?;
        let paths = VmPaths { dir };
        let lock = Lock::try_acquire(&paths.lock())?;
        if lock.is_none() {
            return Err(StoreError::Running { name: name.clone() });
        }
        Ok(Self {
            store: store.clone(),
            cluster: cluster.clone(),
            name: name.clone(),
            paths,
            lock,
        })
    }

    /// The paths for the VM's files. [`VmDraft::commit`] renames the directory, so do not store
    /// these paths in the files.
    pub fn paths(&self) -> &VmPaths {
        &self.paths
    }

    /// Writes the record and makes the VM exist, in one step that a kill cannot split. Returns the
    /// VM together with its lock, already held.
    ///
    /// If another member of the cluster has the record's address, or the network does not contain
    /// it, the VM gets the first free address of the user network.
    ///
    /// ```
    /// use fleetbox::store::{Store, VmRecord};
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let home = dir.path();
    /// # let image = home.join("disk.raw");
    /// # std::fs::write(&image, [0; 4096]).unwrap();
    /// # let image = image.display().to_string();
    /// # fleetbox::blocking::Vm::builder("web").home(home).image(image).create()?;
    /// # let vm = fleetbox::blocking::Fleet::at(home).find("web")?;
    ///
    /// let name: fleetbox::names::Name = "copy".parse()?;
    /// let draft = Store::open(home)?.create_vm(&name, &name)?;
    /// let record = VmRecord { name: name.clone(), cluster: name, ..vm.record()? };
    /// let (copy, lock) = draft.commit(&record)?;
    /// drop(lock); // now it may be started, if it has its files
    /// assert_eq!(copy.record()?.cpus, record.cpus);
    /// # Ok::<(), fleetbox::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`StoreError::Exists`] if another process has created a VM of this name meanwhile,
    /// [`StoreError::Full`] if no address is free, [`StoreError::Io`].
    pub fn commit(self, record: &VmRecord) -> Result<(VmDir, Lock), StoreError> {
        self.commit_in(record, Subnet::default())
    }

    /// [`VmDraft::commit`] for a cluster with another network.
    pub(crate) fn commit_in(
        mut self,
        record: &VmRecord,
        subnet: Subnet,
    ) -> Result<(VmDir, Lock), StoreError> {
        let cluster_dir = self.store.cluster(&self.cluster);
        let target = cluster_dir.vm_path(&self.name);
        {
            let _guard = self.store.guard()?;
            if target.exists() {
                return Err(StoreError::Exists {
                    name: self.name.clone(),
                    cluster: self.cluster.clone(),
                });
            }
            // Under the store's lock: no two members find the same address free.
            let ip = cluster_dir.free_address(record.ip, subnet)?;
            write_record(
                &self.paths,
                &VmRecord {
                    ip,
                    ..record.clone()
                },
            )?;
            // The files' content must be on disk before the name that promises it.
            fsutil::sync_dir(&self.paths.dir).map_err(StoreError::io("sync", &self.paths.dir))?;
            fs::rename(&self.paths.dir, &target).map_err(StoreError::io("rename to", &target))?;
        }
        let lock = self.lock.take();
        fsutil::sync_dir(&cluster_dir.path).map_err(StoreError::io("sync", &cluster_dir.path))?;
        let vm = VmDir {
            store: self.store.clone(),
            cluster: self.cluster.clone(),
            name: self.name.clone(),
            id: Some(record.instance_id.clone()),
            paths: VmPaths { dir: target },
        };
        match lock {
            Some(mut lock) => {
                lock.moved_to(vm.paths.lock());
                Ok((vm, lock))
            }
            None => Err(StoreError::Running { name: vm.name }),
        }
    }
}

impl Drop for VmDraft {
    fn drop(&mut self) {
        if self.lock.is_some() {
            if let Err(error) = fs::remove_dir_all(&self.paths.dir) {
                tracing::warn!(path = %self.paths.dir.display(), %error, "cannot remove a half-created VM");
            }
            // An empty cluster directory says nothing; leaving one behind is no harm either.
            let _ = self.store.cluster(&self.cluster).remove_if_unused();
        }
    }
}

/// A VM that exists, or existed: its methods never touch another VM that was created under its name since.
///
/// ```no_run
/// use fleetbox::store::Store;
///
/// for vm in Store::open_default()?.vms()? {
///     match (vm.is_running()?, vm.failure()?) {
///         (true, _) => println!("{} runs", vm.name()),
///         (false, Some(why)) => println!("{} failed: {why}", vm.name()),
///         (false, None) => println!("{} is stopped", vm.name()),
///     }
/// }
/// # Ok::<(), fleetbox::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct VmDir {
    pub(super) store: Store,
    pub(super) cluster: Name,
    pub(super) name: Name,
    /// What tells it from another VM of its name; `None` if its record could not be read.
    pub(super) id: Option<String>,
    pub(super) paths: VmPaths,
}

impl VmDir {
    /// The VM's name.
    pub fn name(&self) -> &Name {
        &self.name
    }

    /// The cluster it is a member of.
    pub fn cluster(&self) -> &Name {
        &self.cluster
    }

    /// The state directory.
    pub(crate) fn home(&self) -> &Path {
        self.store.home()
    }

    /// The VM's full name, with its cluster.
    pub fn reference(&self) -> Reference {
        Reference::new(self.cluster.clone(), self.name.clone())
    }

    /// The VM's files.
    pub fn paths(&self) -> &VmPaths {
        &self.paths
    }

    /// What tells the VM from another one of its name; `None` if its record could not be read.
    pub(crate) fn id(&self) -> Option<&str> {
        self.id.as_deref()
    }

    /// True if both are the same VM, and not just two of the same name.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        (&self.cluster, &self.name, &self.id) == (&other.cluster, &other.name, &other.id)
    }

    /// Checks that this very VM still exists. Only while its lock is held does that say anything about later.
    ///
    /// # Errors
    /// [`StoreError::Gone`], also if there is another VM of its name.
    pub(crate) fn check(&self) -> Result<(), StoreError> {
        match identity(&self.paths.record()) {
            Some(id) if id == self.id => Ok(()),
            _ => Err(self.gone()),
        }
    }

    fn gone(&self) -> StoreError {
        StoreError::Gone {
            name: self.name.clone(),
        }
    }

    /// Reads the record.
    ///
    /// # Errors
    /// [`StoreError::Gone`] if the VM was removed, even if another one has its name;
    /// [`StoreError::Damaged`] if it is not what this version writes, [`StoreError::Io`].
    pub fn record(&self) -> Result<VmRecord, StoreError> {
        let path = self.paths.record();
        let content = match fsutil::read_limited(&path, RECORD_LIMIT) {
            Ok(content) => content,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(self.gone()),
            Err(error) => return Err(StoreError::io("read", &path)(error)),
        };
        let record: VmRecord =
            serde_json::from_slice(&content).map_err(|e| StoreError::Damaged {
                path,
                why: e.to_string(),
            })?;
        match &self.id {
            Some(id) if record.instance_id != *id => Err(self.gone()),
            _ => Ok(record),
        }
    }

    /// Replaces the record. The caller must hold the VM's lock.
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let home = dir.path();
    /// # let image = home.join("disk.raw");
    /// # std::fs::write(&image, [0; 4096]).unwrap();
    /// # let image = image.display().to_string();
    /// # fleetbox::blocking::Vm::builder("web").home(home).image(image).create()?;
    /// # let vm = fleetbox::blocking::Fleet::at(home).find("web")?;
    /// if let Some(_lock) = vm.try_lock()? {
    ///     let mut record = vm.record()?;
    ///     record.cpus = 4;
    ///     vm.save_record(&record)?; // from its next start
    /// }
    /// assert_eq!(vm.record()?.cpus, 4);
    /// # Ok::<(), fleetbox::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`StoreError::Io`]. The old record is then still there.
    pub fn save_record(&self, record: &VmRecord) -> Result<(), StoreError> {
        write_record(&self.paths, record)
    }

    /// Why the VM failed when it last ran; `None` if it did not fail.
    ///
    /// # Errors
    /// [`StoreError::Io`] for the file system.
    pub fn failure(&self) -> Result<Option<String>, StoreError> {
        let path = self.paths.failure();
        match fsutil::read_limited(&path, RECORD_LIMIT) {
            Ok(text) => Ok(Some(String::from_utf8_lossy(&text).into_owned())),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(StoreError::io("read", &path)(e)),
        }
    }

    /// The first error that this host has had with one of the VM's devices since it was last started, such as a full
    /// disk of the host; `None` if there was none.
    ///
    /// # Errors
    /// [`StoreError::Io`] for the file system.
    pub fn device_error(&self) -> Result<Option<String>, StoreError> {
        let path = self.paths.device_error();
        match fsutil::read_limited(&path, RECORD_LIMIT) {
            Ok(text) => {
                let text = String::from_utf8_lossy(&text).trim().to_owned();
                Ok(Some(text).filter(|text| !text.is_empty()))
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(StoreError::io("read", &path)(e)),
        }
    }

    /// Takes the lock that means "running". Returns `None` if another process holds it.
    ///
    /// # Errors
    /// [`StoreError::Gone`] if the VM was removed, even if another one has its name; [`StoreError::Io`].
    pub fn try_lock(&self) -> Result<Option<Lock>, StoreError> {
        let lock = match Lock::try_acquire(&self.paths.lock()) {
            Err(StoreError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                return Err(self.gone());
            }
            lock => lock?,
        };
        if lock.is_some() {
            self.check()?;
        }
        Ok(lock)
    }

    /// True while a process holds the VM's lock. False if the VM was removed.
    ///
    /// # Errors
    /// [`StoreError::Io`] for the file system.
    pub fn is_running(&self) -> Result<bool, StoreError> {
        Ok(Lock::is_held(&self.paths.lock())? && self.check().is_ok())
    }

    /// Removes the VM and its disk for good, and the cluster's directory with its last VM. Does
    /// nothing if the VM is already gone, even if another one has its name.
    ///
    /// # Errors
    /// [`StoreError::Running`] while a process holds its lock, [`StoreError::Io`].
    pub fn destroy(&self) -> Result<(), StoreError> {
        let cluster = self.store.cluster(&self.cluster);
        let gone = cluster
            .path
            .join(format!("{GONE_PREFIX}{}-{}", self.name, unique()));
        {
            let _guard = self.store.guard()?;
            if self.check().is_err() {
                return Ok(());
            }
            let Some(_lock) = self.try_lock()? else {
                return Err(StoreError::Running {
                    name: self.name.clone(),
                });
            };
            // Renamed first: a kill during the removal leaves no VM with half of its files.
            fs::rename(&self.paths.dir, &gone)
                .map_err(StoreError::io("rename", &self.paths.dir))?;
        }
        remove_tree(&gone)?;
        cluster.remove_if_unused()
    }
}

fn write_record(paths: &VmPaths, record: &VmRecord) -> Result<(), StoreError> {
    let path = paths.record();
    let mut text = serde_json::to_vec_pretty(record).map_err(|e| StoreError::Damaged {
        path: path.clone(),
        why: e.to_string(),
    })?;
    text.push(b'\n');
    fsutil::write_atomic(&path, &text).map_err(StoreError::io("write", &path))
}

/// Removes a directory tree. Files that another process has removed meanwhile are not an error.
pub(super) fn remove_tree(path: &Path) -> Result<(), StoreError> {
    match fs::remove_dir_all(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(StoreError::io("remove", path)(e)),
        _ => Ok(()),
    }
}

fn unique() -> String {
    uuid::Uuid::new_v4().simple().to_string()
}
