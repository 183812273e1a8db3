//! The state directory: where VMs, images and keys live between commands.
//!
//! The layout is described in `docs/state.md`. A kill at any moment leaves a state that the next
//! command understands: files are replaced atomically, a VM appears and disappears by one rename,
//! and a held lock means that a process is alive.

mod cluster_dir;
pub(crate) mod ephemeral;
mod keys;
mod lock;
mod record;
mod vm_dir;

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

pub use self::cluster_dir::ClusterDir;
pub use self::lock::Lock;
pub use self::record::{ImageRecord, VmRecord, now};
pub(crate) use self::record::{RECORD, identity};
pub(crate) use self::vm_dir::DEVICE_ERROR;
pub use self::vm_dir::{VmDir, VmDraft, VmPaths};
use crate::model::keys::KeyError;
pub use crate::model::mac::{InvalidMac, MacAddr};
use crate::model::names::Name;
use crate::util::fs as fsutil;
use crate::util::readable::readable_debug;
use crate::util::task::ShuttingDown;

/// The version of the layout that this library writes, and the newest that it reads.
pub const FORMAT: u32 = 1;

/// Environment variable that names the state directory.
pub const HOME_VARIABLE: &str = "FLEETBOX_HOME";

/// Why the state directory could not be used.
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// Neither `FLEETBOX_HOME` nor `HOME` is set.
    #[error(
        "no state directory: neither FLEETBOX_HOME nor HOME is set; set FLEETBOX_HOME to a directory"
    )]
    NoHome,
    /// A file or directory operation failed.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// The action, such as "write".
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The state directory was written by a later version.
    #[error(
        "the state directory {} has format {found} and this fleetbox reads formats up to {FORMAT}; \
         use a newer fleetbox, or another directory by FLEETBOX_HOME", path.display()
    )]
    Newer {
        /// The state directory.
        path: PathBuf,
        /// Its format.
        found: u32,
    },
    /// A file has content that this library did not write.
    #[error("{} is damaged: {why}; remove the VM, or restore the file", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The operation is not permitted, because the file or directory belongs to another user.
    #[error(
        "cannot {action} {}: permission denied, because {} belongs to {owner}; run the command as {owner}, or set \
         FLEETBOX_HOME to a directory of your own",
        path.display(), if path == denied { "it".into() } else { denied.to_string_lossy() }
    )]
    Foreign {
        /// The action, such as "write".
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The file or directory itself, or a directory above it.
        denied: PathBuf,
        /// The user that this belongs to.
        owner: String,
    },
    /// The VM already exists.
    #[error(
        "VM {name} already exists in cluster {cluster}; remove it first, or choose another name"
    )]
    Exists {
        /// The VM's name.
        name: Name,
        /// Its cluster.
        cluster: Name,
    },
    /// The cluster's network has no free address for another member.
    #[error(
        "cluster {cluster} is full: its network {subnet} has no free address; remove a member first"
    )]
    Full {
        /// The cluster.
        cluster: Name,
        /// Its network.
        subnet: String,
    },
    /// The VM is in use by a living process.
    #[error("VM {name} is running; stop it first")]
    Running {
        /// The VM's name.
        name: Name,
    },
    /// The VM was removed. There may be another one of its name by now.
    #[error("there is no VM {name} any more: another process has removed it")]
    Gone {
        /// The VM's name.
        name: Name,
    },
    /// The key that logs in to the VMs cannot be used.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The runtime is shutting down.
    #[error(transparent)]
    ShuttingDown(#[from] ShuttingDown),
}

readable_debug!(StoreError);

impl StoreError {
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| {
            if source.kind() == io::ErrorKind::PermissionDenied
                && let Some((denied, owner)) = fsutil::foreign_owner(&path)
            {
                return Self::Foreign {
                    action,
                    path,
                    denied,
                    owner,
                };
            }
            Self::Io {
                action,
                path,
                source,
            }
        }
    }
}

/// The state directory. It is cheap to clone. Its methods block for short file operations.
///
/// ```
/// use fleetbox::store::Store;
/// # let dir = tempfile::tempdir().unwrap();
/// # let home = dir.path();
///
/// let store = Store::open(home)?;
/// assert_eq!(store.images_dir(), home.join("images"));
/// assert!(store.vms()?.is_empty());
/// assert!(store.find(&"web".parse()?)?.is_empty());
/// assert_eq!(store.sweep()?, 0);
/// # Ok::<(), fleetbox::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Store {
    home: PathBuf,
}

impl Store {
    /// The default state directory: `$FLEETBOX_HOME`, or else `~/.fleetbox`.
    ///
    /// # Errors
    /// [`StoreError::NoHome`] if neither variable is set.
    pub fn default_home() -> Result<PathBuf, StoreError> {
        if let Some(home) = std::env::var_os(HOME_VARIABLE).filter(|v| !v.is_empty()) {
            return Ok(PathBuf::from(home));
        }
        match std::env::home_dir() {
            Some(home) if !home.as_os_str().is_empty() => Ok(home.join(".fleetbox")),
            _ => Err(StoreError::NoHome),
        }
    }

    /// Opens the state directory at [`Store::default_home`].
    ///
    /// # Errors
    /// As [`Store::open`], and [`StoreError::NoHome`].
    pub fn open_default() -> Result<Self, StoreError> {
        Self::open(Self::default_home()?)
    }

    /// Opens the state directory at `home`, creating it and its sub-directories if they are
    /// missing.
    ///
    /// # Errors
    /// [`StoreError::Newer`] if a later version has written it, [`StoreError::Io`].
    pub fn open(home: impl AsRef<Path>) -> Result<Self, StoreError> {
        let home = home.as_ref();
        // Other processes with other working directories are given these paths.
        let home = std::path::absolute(home).map_err(StoreError::io("find", home))?;
        let store = Self { home };
        fsutil::create_private_dir(&store.home).map_err(StoreError::io("create", &store.home))?;
        store.check_format()?;
        for dir in [store.images_dir(), store.keys_dir(), store.clusters_dir()] {
            fsutil::create_private_dir(&dir).map_err(StoreError::io("create", &dir))?;
        }
        Ok(store)
    }

    /// The state directory at `home` as it is now: nothing is created. One that does not exist yet has no VMs.
    ///
    /// ```
    /// use fleetbox::store::Store;
    /// # let dir = tempfile::tempdir().unwrap();
    /// let home = dir.path().join("state");
    ///
    /// let store = Store::inspect(&home)?;
    /// assert!(store.vms()?.is_empty());
    /// assert!(!home.exists());
    /// # Ok::<(), fleetbox::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`Store::open`], and [`StoreError::Io`] or [`StoreError::Foreign`] if it, or the directory that it would be
    /// created in, is not writable.
    pub fn inspect(home: impl AsRef<Path>) -> Result<Self, StoreError> {
        let home = home.as_ref();
        let home = std::path::absolute(home).map_err(StoreError::io("find", home))?;
        let store = Self { home };
        fsutil::check_writable(&store.home).map_err(StoreError::io("write to", &store.home))?;
        store.is_initialised()?;
        Ok(store)
    }

    fn check_format(&self) -> Result<(), StoreError> {
        if self.is_initialised()? {
            return Ok(());
        }
        let path = self.home.join("version");
        // Two processes may both get here and write the same.
        fsutil::write_atomic(&path, format!("{FORMAT}\n").as_bytes())
            .map_err(StoreError::io("write", &path))
    }

    /// False if there is no format yet.
    fn is_initialised(&self) -> Result<bool, StoreError> {
        let path = self.home.join("version");
        let content = match fsutil::read_limited(&path, 64) {
            Ok(content) => content,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(e) => return Err(StoreError::io("read", &path)(e)),
        };
        let text = String::from_utf8_lossy(&content);
        match text.trim().parse::<u32>() {
            Ok(found) if found > FORMAT => Err(StoreError::Newer {
                path: self.home.clone(),
                found,
            }),
            Ok(1..) => Ok(true),
            _ => Err(StoreError::Damaged {
                path,
                why: format!("{:?} is not a format number", text.trim()),
            }),
        }
    }

    /// The absolute path of the state directory.
    pub fn home(&self) -> &Path {
        &self.home
    }

    /// The directory of images.
    pub fn images_dir(&self) -> PathBuf {
        self.home.join("images")
    }

    /// The directory of the keys that log in to VMs.
    pub fn keys_dir(&self) -> PathBuf {
        self.home.join("keys")
    }

    fn clusters_dir(&self) -> PathBuf {
        self.home.join("clusters")
    }

    /// Takes the lock for changes of the directory tree, which is held for moments.
    fn guard(&self) -> Result<Lock, StoreError> {
        Lock::acquire(&self.home.join("lock"))
    }

    /// The directory of cluster `name`, which need not exist.
    pub fn cluster(&self, name: &Name) -> ClusterDir {
        ClusterDir::new(self, name)
    }

    /// All clusters, by name.
    ///
    /// Clusters of another user, such as root's with a bridge network, are skipped if they cannot
    /// be read.
    ///
    /// # Errors
    /// [`StoreError::Io`] for the file system.
    pub fn clusters(&self) -> Result<Vec<ClusterDir>, StoreError> {
        let names = cluster_dir::names_in(&self.clusters_dir())?;
        let clusters = names.iter().map(|name| self.cluster(name));
        Ok(clusters.filter(ClusterDir::is_readable).collect())
    }

    /// All VMs, by cluster and name.
    ///
    /// # Errors
    /// [`StoreError::Io`] for the file system.
    pub fn vms(&self) -> Result<Vec<VmDir>, StoreError> {
        let mut vms = Vec::new();
        for cluster in self.clusters()? {
            vms.extend(cluster.vms()?);
        }
        Ok(vms)
    }

    /// The VMs named `name`. Each cluster may have one.
    ///
    /// ```
    /// use fleetbox::store::Store;
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let home = dir.path();
    /// # let image = home.join("disk.raw");
    /// # std::fs::write(&image, [0; 4096]).unwrap();
    /// # let image = image.display().to_string();
    /// # fleetbox::blocking::Vm::builder("web").home(home).image(image).create()?;
    /// # let vm = fleetbox::blocking::Fleet::at(home).find("web")?;
    ///
    /// let found = Store::open(home)?.find(&"web".parse()?)?;
    /// assert_eq!(found[0].reference().as_str(), "web/web");
    /// # Ok::<(), fleetbox::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`StoreError::Io`] for the file system.
    pub fn find(&self, name: &Name) -> Result<Vec<VmDir>, StoreError> {
        // A directory that this user may not read counts as empty.
        let clusters = cluster_dir::names_in(&self.clusters_dir())?;
        let found = clusters.iter().filter_map(|c| self.cluster(c).vm(name));
        Ok(found.collect())
    }

    /// Starts to create a VM. The VM exists once [`VmDraft::commit`] has returned.
    ///
    /// ```
    /// use fleetbox::store::Store;
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let home = dir.path();
    ///
    /// let store = Store::open(home)?;
    /// let name = "web".parse()?;
    /// let draft = store.create_vm(&name, &name)?;
    /// assert!(draft.paths().dir().is_dir());
    /// drop(draft); // not committed: nothing is left
    /// assert!(store.vms()?.is_empty());
    /// # Ok::<(), fleetbox::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`StoreError::Exists`], [`StoreError::Io`].
    pub fn create_vm(&self, cluster: &Name, name: &Name) -> Result<VmDraft, StoreError> {
        VmDraft::create(self, cluster, name)
    }

    /// Removes what killed processes left behind: half-created or half-removed VMs, clusters
    /// without VMs, and temporary files. Anything in use is kept. Returns the number of VMs whose
    /// remains were removed.
    ///
    /// # Errors
    /// [`StoreError::Io`] for the file system.
    pub fn sweep(&self) -> Result<usize, StoreError> {
        let _guard = self.guard()?;
        let mut swept = 0;
        for cluster in self.clusters()? {
            swept += cluster.sweep_guarded()?;
            for vm in cluster.vms()? {
                sweep_temporary(vm.paths().dir())?;
            }
        }
        for dir in [&self.home, &self.keys_dir(), &self.images_dir()] {
            sweep_temporary(dir)?;
        }
        Ok(swept)
    }
}

/// Removes temporary files that are too old to be in use.
fn sweep_temporary(dir: &Path) -> Result<(), StoreError> {
    let long_ago = SystemTime::now() - Duration::from_secs(3600);
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        // A VM that is deleted meanwhile.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(StoreError::io("list", dir)(error)),
    };
    for entry in entries {
        let entry = entry.map_err(StoreError::io("list", dir))?;
        let name = entry.file_name();
        if name.to_string_lossy().starts_with(fsutil::TEMP_PREFIX)
            && entry
                .metadata()
                .and_then(|m| m.modified())
                .is_ok_and(|time| time < long_ago)
        {
            let path = entry.path();
            fsutil::remove_file_if_there(&path).map_err(StoreError::io("remove", &path))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
