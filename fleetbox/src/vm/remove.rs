//! Removing VMs.

use std::sync::Arc;

use super::list::find_vm;
use super::{Vm, lock};
use crate::error::Result;
use crate::model::names::Reference;
use crate::process::{Client, Lifeline};
use crate::store::ephemeral;
use crate::store::{Lock, Store, StoreError, VmDir};
use crate::util::task::blocking;
use crate::vm::attach;
use crate::vm::fleet::Fleet;
use crate::vm::sweep;

impl Vm {
    /// Kills the VM and removes it with its disk.
    ///
    /// # Errors
    /// An error of the file system, or a process that does not end.
    pub async fn destroy(self) -> Result<()> {
        self.remove().await
    }

    pub(crate) async fn remove(&self) -> Result<()> {
        let lifeline = lock(&self.lifeline).take();
        destroy(&self.store, &self.dir, &self.client, lifeline).await
    }
}

/// Deletes the VM. The worker ends with the last VM of its cluster.
async fn destroy(
    store: &Store,
    dir: &VmDir,
    client: &Client,
    lifeline: Option<Arc<Lifeline>>,
) -> Result<()> {
    let cluster = store.cluster(dir.cluster());
    let others = cluster.vms()?.iter().any(|vm| vm.name() != dir.name());
    let asked = if others {
        client.forget(dir.name().as_str()).await
    } else {
        client.shutdown().await
    };
    match asked {
        Ok(()) => {}
        Err(error) if error.is_worker_gone() => {}
        Err(error) => return Err(error.into()),
    }
    if !others {
        drop(lifeline);
        attach::worker_ended(&cluster).await?;
    }
    let dir = dir.clone();
    blocking(move || ephemeral::delete(&dir)).await?;
    // The worker may still have used the directory when it deleted the VM itself.
    blocking(move || Ok(cluster.remove_if_unused()?)).await
}

impl Fleet {
    /// Deletes a VM with its disk, killing it if it runs.
    ///
    /// ```no_run
    /// # async fn example() -> fleetbox::Result<()> {
    /// fleetbox::Fleet::new().remove("web").await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// Those of [`Fleet::find`], or a process that does not end.
    pub async fn remove(&self, name: &str) -> Result<()> {
        let (store, dir) = find_vm(self, name).await?;
        let client = attach::client(&store.cluster(dir.cluster()));
        destroy(&store, &dir, &client, None).await
    }
}

impl Fleet {
    /// Deletes all VMs that do not run, with their disks, and what killed processes left behind. Returns the names of
    /// the deleted VMs, as `NAME` or, for a member of a cluster, `CLUSTER/NAME`.
    ///
    /// A VM is kept if a running process has a [`Vm`] for it or for another member of its cluster, so a program does
    /// not lose a VM that it has stopped. A VM that is just being started, or whose start waits for memory, is kept
    /// too.
    ///
    /// ```no_run
    /// # async fn example() -> fleetbox::Result<()> {
    /// for name in fleetbox::Fleet::new().prune().await? {
    ///     println!("{name} is deleted");
    /// }
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// An error of the file system. VMs that were already deleted stay deleted.
    pub async fn prune(&self) -> Result<Vec<String>> {
        prune_those(self, |_| true).await
    }
}

impl Fleet {
    /// Like [`Fleet::prune`], but only for the given VMs: those that a user has confirmed, for example. What killed
    /// processes left behind is removed too.
    ///
    /// ```no_run
    /// # async fn example() -> fleetbox::Result<()> {
    /// use fleetbox::names::Reference;
    ///
    /// let old: Reference = "shop/node-1".parse()?;
    /// fleetbox::Fleet::new().prune_only(&[old]).await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// Those of [`Fleet::prune`].
    pub async fn prune_only(&self, vms: &[Reference]) -> Result<Vec<String>> {
        let vms = vms.to_vec();
        prune_those(self, move |vm| {
            vms.iter().any(|named| {
                let cluster = named
                    .cluster()
                    .is_none_or(|cluster| cluster == vm.cluster());
                cluster && named.name() == vm.name()
            })
        })
        .await
    }
}

async fn prune_those(
    fleet: &Fleet,
    selected: impl Fn(&VmDir) -> bool + Send + 'static,
) -> Result<Vec<String>> {
    let store = fleet.store().await?;
    blocking(move || {
        sweep::sweep(&store)?;
        let mut pruned = Vec::new();
        for vm in store.vms()?.into_iter().filter(|vm| selected(vm)) {
            let serving = store.cluster(vm.cluster()).is_running()?;
            // Without a console log, its first start is still in progress.
            let in_use = ephemeral::is_ephemeral(&vm) || !vm.paths().console_log().exists();
            if vm.is_running()? || (serving && in_use) {
                continue;
            }
            // Keep other processes from using it until it is gone.
            let Some(_claim) = claim(&store, &vm)? else {
                continue;
            };
            match vm.destroy() {
                Ok(()) if vm.name() == vm.cluster() => pruned.push(vm.name().to_string()),
                Ok(()) => pruned.push(format!("{}/{}", vm.cluster(), vm.name())),
                // It was started just now.
                Err(StoreError::Running { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(pruned)
    })
    .await
}

/// Locks the cluster of a VM against all other users; `None` if it is in use or gone.
fn claim(store: &Store, vm: &VmDir) -> Result<Option<Lock>> {
    match store.cluster(vm.cluster()).try_claim() {
        Err(_) if !vm.paths().dir().exists() => Ok(None),
        claim => Ok(claim?),
    }
}
