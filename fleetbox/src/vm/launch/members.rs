//! Starting the members of a cluster, from a plan to a log-in over SSH.

use std::sync::Arc;

use futures::future::{join_all, try_join_all};
use tokio::time::Instant;

use super::find::{Member, exists};
use crate::error::{Error, Result, VmFate};
use crate::host::budget::Lease;
use crate::model::lifetime::Lifetime;
use crate::model::names::Name;
use crate::model::timing::{Clock, Phase};
use crate::store::{Store, StoreError, ephemeral};
use crate::util::task::blocking;
use crate::vm::create::create;
use crate::vm::{Vm, attach};

/// A start of several members together.
pub(super) struct Startup {
    store: Store,
    cluster: Name,
    lifetime: Lifetime,
    alone: bool,
    members: Arc<Vec<Member>>,
    /// Names of the members that this start has created.
    created: Vec<Name>,
}

impl Startup {
    pub(super) fn new(
        store: &Store,
        cluster: &Name,
        lifetime: Lifetime,
        alone: bool,
        members: Vec<Member>,
    ) -> Self {
        Self {
            store: store.clone(),
            cluster: cluster.clone(),
            lifetime,
            alone,
            members: Arc::new(members),
            created: Vec::new(),
        }
    }

    /// Creates the members that do not exist, and makes the cluster's worker start all machines.
    /// The lease is returned once the running VMs are counted by their own locks.
    pub(super) async fn start_machines(
        &mut self,
        lease: Lease,
        clock: &mut Clock,
    ) -> Result<Vec<Vm>> {
        let mut attempts = attach::Attempts::new();
        let (mut vms, started) = loop {
            let vms = self.make().await?;
            clock.done(Phase::Create);
            let started = join_all(vms.iter().map(Vm::start_machine)).await;
            if !attempts.again(started.iter().filter_map(|result| result.as_ref().err())) {
                break (vms, started);
            }
        };
        drop(lease);
        let mut failure = None;
        for (vm, started) in vms.iter_mut().zip(started) {
            match started {
                Ok(already) => vm.set_was_running(already),
                Err(error) => failure = failure.or(Some(error)),
            }
        }
        clock.done(Phase::Machine);
        match failure {
            None => Ok(vms),
            Some(error) => Err(self.undo(vms, error).await),
        }
    }

    /// Waits until all guests are ready.
    pub(super) async fn wait_until_up(&self, vms: Vec<Vm>) -> Result<Vec<Vm>> {
        let ready = vms.iter().zip(self.members.iter()).map(|(vm, member)| {
            let deadline = Instant::now() + member.builder.boot_timeout;
            vm.wait_until_up(deadline, !vm.was_running())
        });
        match try_join_all(ready).await {
            Ok(_) => Ok(vms),
            Err(error) => Err(self.undo(vms, error).await),
        }
    }

    /// Finds or starts the cluster's worker, and creates the members that do not exist.
    async fn make(&mut self) -> Result<Vec<Vm>> {
        let runtime = tokio::runtime::Handle::current();
        let (store, cluster, lifetime) = (self.store.clone(), self.cluster.clone(), self.lifetime);
        let (members, ours) = (Arc::clone(&self.members), self.created.clone());
        let made =
            blocking(move || make_all(&store, &cluster, lifetime, &members, &ours, &runtime));
        match made.await {
            Ok((vms, created)) => {
                self.created.extend(created);
                Ok(vms)
            }
            Err(error) => {
                // An earlier attempt may have created some, whose handles are gone.
                if !self.alone {
                    delete(&self.store, &self.cluster, &self.created).await;
                }
                Err(error)
            }
        }
    }

    /// Undoes this start unless it is about a single VM, and adds to the error what happened to the
    /// VM that failed.
    async fn undo(&self, vms: Vec<Vm>, error: Error) -> Error {
        let held = vms.iter().any(Vm::is_held);
        if self.alone {
            drop(vms);
        } else {
            undo(vms, &self.created).await;
        }
        error.with_fate(|name| self.fate(name, held))
    }

    /// What happened to a member whose start failed, after the start was undone. `held` says
    /// whether this process owned it.
    fn fate(&self, name: &Name, held: bool) -> VmFate {
        let cluster = self.store.cluster(&self.cluster);
        let Some(vm) = cluster.vm(name) else {
            return VmFate::Deleted;
        };
        // Its worker ends the machine unless this process has other handles.
        match held && attach::owned(&cluster).is_none() {
            true if ephemeral::is_ephemeral(&vm) => VmFate::Deleted,
            true => VmFate::Stopped(Box::new(vm.reference())),
            false => match vm.is_running() {
                Ok(false) => VmFate::Stopped(Box::new(vm.reference())),
                _ => VmFate::Running(Box::new(vm.reference())),
            },
        }
    }
}

/// Attaches to the cluster's worker and makes a handle on each member. Creates the members that do
/// not exist, and returns their names. If anything fails, the new members are deleted.
fn make_all(
    store: &Store,
    cluster: &Name,
    lifetime: Lifetime,
    members: &[Member],
    ours: &[Name],
    runtime: &tokio::runtime::Handle,
) -> Result<(Vec<Vm>, Vec<Name>)> {
    let dir = store.cluster(cluster);
    let mut created = Vec::new();
    let mut share = None;
    let prepare = || {
        // From here on, a cluster that was created in the meantime is not pruned either.
        share = dir.share_if_there()?;
        for member in members {
            if make(store, cluster, member, lifetime, ours)? {
                created.push(member.plan.name.clone());
            }
        }
        Ok(())
    };
    let attached = attach::attach(store, cluster, lifetime, runtime, prepare);
    let vms = attached.and_then(|attached| {
        let handle = |member: &Member| member.handle(store, cluster, &attached);
        members.iter().map(handle).collect::<Result<Vec<_>>>()
    });
    if vms.is_err() {
        // None of them was started.
        for vm in created.iter().filter_map(|name| dir.vm(name)) {
            if let Err(error) = vm.destroy() {
                tracing::warn!(vm = %vm.name(), %error, "cannot delete a VM of a failed start");
            }
        }
    }
    Ok((vms?, created))
}

impl Member {
    /// Makes a handle on the VM, which now exists.
    fn handle(&self, store: &Store, cluster: &Name, attached: &attach::Attachment) -> Result<Vm> {
        let name = &self.plan.name;
        let vm = store.cluster(cluster).vm(name);
        let vm = vm.ok_or_else(|| Error::NoVm { name: name.clone() })?;
        let record = vm.record()?;
        let ignored = if self.image.is_none() {
            self.builder.ignored(&self.plan, &record)
        } else {
            Vec::new()
        };
        if !ignored.is_empty() {
            tracing::warn!(vm = %record.name, ?ignored, "the VM already exists; these options are ignored");
        }
        let vm = Vm::new(store, vm, record, attached)?;
        Ok(self.builder.configure(vm).ignoring(ignored))
    }
}

/// Creates a member; false if it already exists. `ours` are the members that this call has created.
pub(super) fn make(
    store: &Store,
    cluster: &Name,
    member: &Member,
    lifetime: Lifetime,
    ours: &[Name],
) -> Result<bool> {
    let name = &member.plan.name;
    if let Some(vm) = store.cluster(cluster).vm(name) {
        if member.builder.create_new && !ours.contains(name) {
            return Err(exists(&vm));
        }
        return Ok(false);
    }
    let Some(image) = &member.image else {
        // Another process removed it after it was looked up.
        return Err(Error::NoVm { name: name.clone() });
    };
    match create(store, cluster, &member.plan, image, lifetime) {
        Ok(_) => Ok(true),
        Err(Error::Store(StoreError::Exists { .. })) if !member.builder.create_new => Ok(false),
        Err(error) => Err(error),
    }
}

/// Deletes the members that this call created. They have no handles any more.
async fn delete(store: &Store, cluster: &Name, created: &[Name]) {
    let cluster = store.cluster(cluster);
    for dir in created.iter().filter_map(|name| cluster.vm(name)) {
        let name = dir.name().clone();
        let deleted = match Vm::found(store, dir) {
            Ok(vm) => vm.destroy().await,
            Err(error) => Err(error),
        };
        if let Err(error) = deleted {
            tracing::warn!(vm = %name, %error, "cannot delete a VM of a failed start");
        }
    }
}

/// Removes the members that were created, and kills those that were started.
async fn undo(vms: Vec<Vm>, created: &[Name]) {
    for vm in vms {
        let name = vm.name().to_owned();
        let undone = if created.iter().any(|created| created.as_str() == name) {
            vm.destroy().await
        } else if vm.was_running() {
            Ok(())
        } else {
            vm.kill().await
        };
        if let Err(error) = undone {
            tracing::debug!(vm = name, %error, "cannot undo the start of a VM");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::test_support::Home;

    #[tokio::test]
    async fn what_an_earlier_attempt_has_made_is_deleted() {
        let home = Home::new();
        let mut members = Vec::new();
        for name in ["running", "stopped", "kept"] {
            let builder = home.vm(Vm::builder(name)).detached();
            if name == "running" {
                builder.start().await.unwrap();
            } else {
                builder.create().await.unwrap();
            }
            members.push(name.parse::<Name>().unwrap());
        }
        let store = Store::open(home.path()).unwrap();
        for name in &members[..2] {
            delete(&store, name, std::slice::from_ref(name)).await;
        }
        let left = store.vms().unwrap();
        assert_eq!(left.len(), 1);
        assert_eq!(left[0].name(), &members[2]);
    }
}
