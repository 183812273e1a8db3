//! Finding and listing the VMs of a state directory.

use std::net::Ipv4Addr;

use serde::Serialize;

use crate::error::{Error, Result};
use crate::model::names::Reference;
use crate::model::network::Network;
use crate::model::size::Size;
use crate::store::ephemeral;
use crate::store::{Store, StoreError, VmDir};
use crate::util::task::blocking;
use crate::vm::Vm;
use crate::vm::fleet::Fleet;

/// What a VM is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum VmState {
    /// Its machine process runs.
    Running,
    /// It does not run, and can be started.
    Stopped,
    /// It ended unexpectedly: its guest did not power off, and its user did not stop it.
    /// [`VmInfo::failure`] says why. It can be started again.
    Failed,
}

impl std::fmt::Display for VmState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Running => "running",
            Self::Stopped => "stopped",
            Self::Failed => "failed",
        })
    }
}

/// A VM in a listing.
#[derive(Debug, Clone, Serialize)]
pub struct VmInfo {
    /// Its name.
    pub name: String,
    /// The cluster it is a member of. A VM that was created alone is in a cluster with the same
    /// name.
    pub cluster: String,
    /// Its state.
    pub state: VmState,
    /// Why it failed, if it did.
    pub failure: Option<String>,
    /// The first error that this host has had with one of its devices since it was last started, such as a full disk of
    /// the host. The guest has seen that the device failed.
    pub device_error: Option<String>,
    /// Its image, as given when the VM was created.
    pub image: String,
    /// Number of vCPUs.
    pub cpus: u8,
    /// Memory in bytes.
    pub memory: Size,
    /// Size of the disk in bytes, as the guest sees it.
    pub disk: Size,
    /// Its address in its cluster's network.
    pub ip: Ipv4Addr,
    /// The network of its cluster.
    pub network: Network,
    /// When it was created, in seconds since 1970 (UTC).
    pub created: u64,
    /// True if it is deleted when the process that owns it ends.
    pub ephemeral: bool,
    /// True if it does not run and no process uses its cluster. [`Fleet::prune`](crate::Fleet::prune) would delete
    /// it.
    pub unused: bool,
}

impl Fleet {
    /// Lists all VMs, sorted by cluster and name.
    ///
    /// ```no_run
    /// # async fn example() -> fleetbox::Result<()> {
    /// for vm in fleetbox::Fleet::new().list().await? {
    ///     println!("{} is {}, {} of memory", vm.name, vm.state, vm.memory);
    /// }
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// An error of the file system, or a damaged record.
    pub async fn list(&self) -> Result<Vec<VmInfo>> {
        let store = self.store().await?;
        blocking(move || {
            let mut vms = Vec::new();
            for vm in store.vms()? {
                vms.extend(describe(&store, &vm)?);
            }
            Ok(vms)
        })
        .await
    }

    /// What [`Fleet::list`] says of the VM with the name `NAME` or `CLUSTER/NAME`. No other VM's files are read.
    ///
    /// ```no_run
    /// # async fn example() -> fleetbox::Result<()> {
    /// let vm = fleetbox::Fleet::new().info("web").await?;
    /// println!("{} is {}", vm.name, vm.state);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// Those of [`Fleet::find`], an error of the file system, or a damaged record.
    pub async fn info(&self, name: &str) -> Result<VmInfo> {
        let (store, vm) = find_vm(self, name).await?;
        blocking(move || {
            describe(&store, &vm)?.ok_or_else(|| Error::NoVm {
                name: vm.name().clone(),
            })
        })
        .await
    }
}

/// `None` if the VM was removed just now.
fn describe(store: &Store, vm: &VmDir) -> Result<Option<VmInfo>> {
    let record = match vm.record() {
        Ok(record) => record,
        Err(StoreError::Gone { .. }) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let running = vm.is_running()?;
    let ephemeral = ephemeral::is_ephemeral(vm);
    let failure = if running { None } else { vm.failure()? };
    Ok(Some(VmInfo {
        name: record.name.to_string(),
        cluster: record.cluster.to_string(),
        state: match (running, &failure) {
            (true, _) => VmState::Running,
            (false, None) => VmState::Stopped,
            (false, Some(_)) => VmState::Failed,
        },
        failure,
        device_error: vm.device_error()?,
        image: record.image.reference,
        cpus: record.cpus,
        memory: record.memory,
        disk: record.disk,
        ip: record.ip,
        network: record.network,
        created: record.created,
        ephemeral,
        unused: !running && !ephemeral && !store.cluster(vm.cluster()).is_used()?,
    }))
}

impl Fleet {
    /// Finds the VM with the name `NAME` or `CLUSTER/NAME`, running or not. A bare `NAME` means the VM of a running
    /// test only if no other VM has that name.
    ///
    /// ```no_run
    /// # async fn example() -> fleetbox::Result<()> {
    /// let vm = fleetbox::Fleet::new().find("node-1").await?;
    /// println!("{} has {} of memory", vm.reference(), vm.record()?.memory);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Error::NoVm`] if no VM has this name; [`Error::NoMember`] if the given cluster has no such member;
    /// [`Error::Ambiguous`] if `name` has no cluster and several clusters have such a VM.
    pub async fn find(&self, name: &str) -> Result<VmDir> {
        Ok(find_vm(self, name).await?.1)
    }
}

impl Fleet {
    /// Opens the running VM with the name `NAME` or `CLUSTER/NAME`, no matter which process started
    /// it. Dropping the handle changes nothing.
    ///
    /// ```no_run
    /// # async fn example() -> fleetbox::Result<()> {
    /// let vm = fleetbox::Fleet::at("/srv/vms").open("web").await?;
    /// println!("{}", vm.ssh("uptime").await?.stdout_text());
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// Those of [`Fleet::find`], and [`Error::NotRunning`].
    pub async fn open(&self, name: &str) -> Result<Vm> {
        let (store, dir) = find_vm(self, name).await?;
        if !dir.is_running()? {
            return Err(Error::NotRunning {
                name: dir.reference(),
            });
        }
        Vm::found(&store, dir)
    }
}

/// What a name stands for; see [`Fleet::resolve`].
///
/// ```no_run
/// # async fn example() -> fleetbox::Result<()> {
/// use fleetbox::Resolution;
///
/// match fleetbox::Fleet::new().resolve("node").await? {
///     Resolution::Vm(vm) => println!("the VM {}", vm.reference()),
///     Resolution::Cluster(members) => println!("a cluster of {} VMs", members.len()),
///     Resolution::Nothing => println!("the name is free"),
/// }
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
pub enum Resolution {
    /// One VM, which may be a member of a cluster.
    Vm(VmDir),
    /// All members of a cluster, at least one.
    Cluster(Vec<VmDir>),
    /// No VM and no cluster has this name.
    Nothing,
}

impl Fleet {
    /// Finds out whether a name stands for a VM or for a cluster. Like [`Fleet::find`], but if no VM has the name,
    /// the cluster with that name.
    ///
    /// ```no_run
    /// # async fn example() -> fleetbox::Result<()> {
    /// let free = matches!(fleetbox::Fleet::new().resolve("web").await?, fleetbox::Resolution::Nothing);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Error::NoMember`] if `name` is `CLUSTER/NAME` and the cluster has no such member; [`Error::Ambiguous`] if
    /// `name` has no cluster and several clusters have such a VM.
    pub async fn resolve(&self, name: &str) -> Result<Resolution> {
        match self.find(name).await {
            Ok(vm) => Ok(Resolution::Vm(vm)),
            Err(Error::NoVm { name }) => {
                let store = self.store().await?;
                blocking(move || {
                    let members = store.cluster(&name).vms()?;
                    Ok(if members.is_empty() {
                        Resolution::Nothing
                    } else {
                        Resolution::Cluster(members)
                    })
                })
                .await
            }
            Err(error) => Err(error),
        }
    }
}

pub(super) async fn find_vm(fleet: &Fleet, text: &str) -> Result<(Store, VmDir)> {
    let reference: Reference = text.parse()?;
    let store = fleet.store().await?;
    blocking(move || {
        let name = reference.name().clone();
        if let Some(cluster) = reference.cluster() {
            let cluster = store.cluster(cluster);
            if let Some(vm) = cluster.vm(&name) {
                return Ok((store, vm));
            }
            if let Some(refusal) = cluster.refusal() {
                return Err(refusal.into());
            }
            let members = cluster.vms()?;
            return Err(Error::NoMember {
                cluster: cluster.name().clone(),
                name: name.to_string(),
                members: members.iter().map(|vm| vm.name().to_string()).collect(),
            });
        }
        let mut found = store.find(&name)?;
        // VMs of running tests count only if there are no others.
        if !found.iter().all(ephemeral::is_ephemeral) {
            found.retain(|vm| !ephemeral::is_ephemeral(vm));
        }
        let clusters = || found.iter().map(|vm| vm.cluster().clone()).collect();
        match found.as_slice() {
            // One that this user may not see is not one that does not exist.
            [] => Err(match store.cluster(&name).refusal() {
                Some(refusal) => refusal.into(),
                None => Error::NoVm { name },
            }),
            [vm] => Ok((store, vm.clone())),
            _ => Err(Error::Ambiguous {
                name,
                clusters: clusters(),
            }),
        }
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_name_is_a_vm_or_else_a_cluster() {
        let dir = tempfile::tempdir().unwrap();
        for vm in ["web/web", "node/node-1", "node/node-2", "kept/node-1"] {
            let path = dir.path().join("clusters").join(vm);
            std::fs::create_dir_all(&path).unwrap();
            std::fs::write(path.join("vm.json"), "{}").unwrap();
        }
        let resolved = async |name: &str| {
            let text = |vm: &VmDir| vm.reference().as_str().to_owned();
            Ok(match Fleet::at(dir.path()).resolve(name).await? {
                Resolution::Vm(vm) => text(&vm),
                Resolution::Cluster(members) => {
                    let members: Vec<_> = members.iter().map(text).collect();
                    format!("cluster of {}", members.join(", "))
                }
                Resolution::Nothing => "nothing".to_owned(),
            })
        };
        for (name, expected) in [
            ("web", "web/web"),
            ("node-2", "node/node-2"),
            ("kept/node-1", "kept/node-1"),
            ("node", "cluster of node/node-1, node/node-2"),
            ("nod", "nothing"),
        ] {
            let found: Result<String> = resolved(name).await;
            assert_eq!(found.unwrap(), expected, "{name}");
        }
        let ambiguous = resolved("node-1").await;
        assert!(matches!(ambiguous, Err(Error::Ambiguous { .. })));
        let missing = resolved("nod/node-1").await;
        assert!(matches!(missing, Err(Error::NoMember { .. })));
    }
}
