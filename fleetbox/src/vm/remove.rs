//! Removing VMs.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::list::find_vm;
use super::{Vm, lock};
use crate::error::Result;
use crate::process::{Client, Lifeline, MemberId};
use crate::store::ephemeral;
use crate::store::{Lock, Store, StoreError, VmDir};
use crate::util::task::blocking;
use crate::vm::attach;
use crate::vm::fleet::Fleet;
use crate::vm::sweep;

/// How long a VM that others start again and again, or whose machine does not end, is tried to be deleted.
const PATIENCE: Duration = Duration::from_secs(20);

/// How often that is tried.
const POLL: Duration = Duration::from_millis(20);

/// How long a worker may take that was ending already. Its cluster may also be held by a start, which is not waited for.
const LAST_STEPS: Duration = Duration::from_secs(1);

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
///
/// Other processes may be starting this VM, or other members, at the same time. So nothing waits for the end of *any*
/// worker of the cluster, which may be the next one by now, and a machine that was started in between is killed again.
async fn destroy(
    store: &Store,
    dir: &VmDir,
    client: &Client,
    lifeline: Option<Arc<Lifeline>>,
) -> Result<()> {
    let cluster = store.cluster(dir.cluster());
    let mut lifeline = lifeline;
    let deadline = Instant::now() + PATIENCE;
    loop {
        let last = cluster.vms()?.iter().all(|vm| vm.name() == dir.name());
        match client.forget(&MemberId::of(dir), last).await {
            Ok(()) => {}
            Err(error) if error.is_worker_gone() => {}
            Err(error) if error.is_silence() => attach::end_worker(&cluster).await?,
            Err(error) => return Err(error.into()),
        }
        if last {
            drop(lifeline.take());
        }
        let doomed = dir.clone();
        match blocking(move || doomed.destroy()).await {
            // Its machine is about to end, or was started again.
            Err(StoreError::Running { .. }) if Instant::now() < deadline => sleep(POLL).await,
            deleted => {
                deleted?;
                break;
            }
        }
    }
    // A worker that was ending already is given time for that, unless it is the next one, which has VMs.
    let deadline = Instant::now() + LAST_STEPS;
    while cluster.is_running()? && cluster.vms()?.is_empty() && Instant::now() < deadline {
        sleep(POLL).await;
    }
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
        let (_, dir) = find_vm(self, name).await?;
        self.remove_found(&dir).await
    }

    /// Like [`Fleet::remove`], for a VM that was found before, perhaps to ask a user about it. Another VM that has been
    /// created under its name since is left alone.
    ///
    /// ```no_run
    /// # async fn example() -> fleetbox::Result<()> {
    /// let fleet = fleetbox::Fleet::new();
    /// let old = fleet.find("web").await?;
    /// println!("deleting {}, created {} s after 1970", old.name(), old.record()?.created);
    /// fleet.remove_found(&old).await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// A process that does not end, or an error of the file system. A VM that is gone already is no error.
    pub async fn remove_found(&self, vm: &VmDir) -> Result<()> {
        let store = self.store().await?;
        let client = attach::client(&store.cluster(vm.cluster()));
        destroy(&store, vm, &client, None).await
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
    /// Like [`Fleet::prune`], but only for the given VMs: those that a user has confirmed, for example. Another VM that
    /// has been created under the name of one of them since is left alone. What killed processes left behind is
    /// removed too.
    ///
    /// ```no_run
    /// # async fn example() -> fleetbox::Result<()> {
    /// let fleet = fleetbox::Fleet::new();
    /// let old = fleet.find("shop/node-1").await?;
    /// fleet.prune_only(&[old]).await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// Those of [`Fleet::prune`].
    pub async fn prune_only(&self, vms: &[VmDir]) -> Result<Vec<String>> {
        let vms = vms.to_vec();
        prune_those(self, move |vm| vms.iter().any(|found| found.is_same(vm))).await
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
        Err(_) if vm.check().is_err() => Ok(None),
        claim => Ok(claim?),
    }
}
