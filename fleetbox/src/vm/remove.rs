//! Removing VMs.

use std::sync::Arc;

use super::list::meant;
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
    /// The file system, or a process that does not end.
    pub async fn destroy(self) -> Result<()> {
        self.remove().await
    }

    pub(crate) async fn remove(&self) -> Result<()> {
        let lifeline = lock(&self.lifeline).take();
        destroy(&self.store, &self.dir, &self.client, lifeline).await
    }
}

/// Deletes the VM; with the last of its cluster the worker ends.
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
    // The worker may have held the directory when it deleted the VM itself.
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
    /// As [`Fleet::find`], or a process that does not end.
    pub async fn remove(&self, name: &str) -> Result<()> {
        let (store, dir) = meant(self, name).await?;
        let client = attach::client(&store.cluster(dir.cluster()));
        destroy(&store, &dir, &client, None).await
    }
}

impl Fleet {
    /// Deletes all VMs that do not run, with their disks, and what killed processes have left. Returns what was deleted, as `NAME` or, for a
    /// member of a cluster, `CLUSTER/NAME`.
    ///
    /// A VM that a living process has a [`Vm`] of, or of another member of its cluster, is kept, stopped
    /// or not: tests and programs find what they have stopped. So is a VM that is just being started, or
    /// whose start waits for memory.
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
    /// The file system. What was deleted until then stays deleted.
    pub async fn prune(&self) -> Result<Vec<String>> {
        prune_those(self, |_| true).await
    }
}

impl Fleet {
    /// As [`Fleet::prune`], of these VMs only: those that somebody was shown and has agreed to, for example. What
    /// killed processes have left is removed all the same.
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
    /// As [`Fleet::prune`].
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
    meant: impl Fn(&VmDir) -> bool + Send + 'static,
) -> Result<Vec<String>> {
    let store = fleet.store().await?;
    blocking(move || {
        sweep::sweep(&store)?;
        let mut pruned = Vec::new();
        for vm in store.vms()?.into_iter().filter(|vm| meant(vm)) {
            let serving = store.cluster(vm.cluster()).is_running()?;
            // Its first start is under way as long as there is no console log.
            let in_use = ephemeral::is_ephemeral(&vm) || !vm.paths().console_log().exists();
            if vm.is_running()? || (serving && in_use) {
                continue;
            }
            // Nobody begins to use it before it is gone.
            let Some(_claim) = claim(&store, &vm)? else {
                continue;
            };
            match vm.destroy() {
                Ok(()) if vm.name() == vm.cluster() => pruned.push(vm.name().to_string()),
                Ok(()) => pruned.push(format!("{}/{}", vm.cluster(), vm.name())),
                // Started in this moment.
                Err(StoreError::Running { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(pruned)
    })
    .await
}

/// Takes the cluster of a VM from all who may want to use it; `None` if somebody uses it, or it is
/// gone.
fn claim(store: &Store, vm: &VmDir) -> Result<Option<Lock>> {
    match store.cluster(vm.cluster()).try_claim() {
        Err(_) if !vm.paths().dir().exists() => Ok(None),
        claim => Ok(claim?),
    }
}
