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
use crate::process::{Client, ProcessError};
use crate::store::{Store, StoreError, VmDir, ephemeral};
use crate::util::task::blocking;
use crate::vm::create::create;
use crate::vm::ready::fate;
use crate::vm::{Vm, attach};

/// A start of several members together.
pub(super) struct Startup {
    store: Store,
    cluster: Name,
    lifetime: Lifetime,
    alone: bool,
    members: Arc<Vec<Member>>,
    /// The members that this start has created.
    created: Vec<VmDir>,
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
            // It is of no use, not even to find out why: there is no output of it. The next start may have other
            // options.
            Some(Error::Process(ProcessError::NotStarted(why))) if self.alone => {
                let deleted = !self.created.is_empty();
                undo(vms, &self.created).await;
                let after = if deleted {
                    "; it was deleted again"
                } else {
                    ""
                };
                Err(ProcessError::NotStarted(format!("{why}{after}")).into())
            }
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
                    delete(&self.store, &self.created).await;
                }
                Err(error)
            }
        }
    }

    /// Undoes this start unless it is about a single VM, and adds to the error what happened to the
    /// VM that failed.
    async fn undo(&self, vms: Vec<Vm>, error: Error) -> Error {
        let Error::NotReady { name, .. } = &error else {
            self.undo_all(vms).await;
            return error;
        };
        let held = vms.iter().any(Vm::is_held);
        let failed = vms.iter().find(|vm| vm.name == *name);
        let failed = failed.map(|vm| (vm.dir.clone(), vm.client.clone()));
        self.undo_all(vms).await;
        match failed {
            Some((dir, client)) => {
                let fate = self.fate(&dir, &client, held).await;
                error.with_fate(|_| fate)
            }
            None => error,
        }
    }

    async fn undo_all(&self, vms: Vec<Vm>) {
        if self.alone {
            drop(vms);
        } else {
            undo(vms, &self.created).await;
        }
    }

    /// What happened to a member whose start failed, after the start was undone. `held` says
    /// whether this process owned it.
    async fn fate(&self, dir: &VmDir, client: &Client, held: bool) -> VmFate {
        if dir.check().is_err() {
            return VmFate::Deleted;
        }
        // Its worker ends the machine unless this process has other handles.
        let cluster = self.store.cluster(&self.cluster);
        match held && attach::owned(&cluster).is_none() {
            true if ephemeral::is_ephemeral(dir) => VmFate::Deleted,
            true => VmFate::Stopped(Box::new(dir.reference())),
            false => fate(dir, client).await,
        }
    }
}

/// Attaches to the cluster's worker and makes a handle on each member. Creates the members that do
/// not exist, and returns those. If anything fails, the new members are deleted.
fn make_all(
    store: &Store,
    cluster: &Name,
    lifetime: Lifetime,
    members: &[Member],
    ours: &[VmDir],
    runtime: &tokio::runtime::Handle,
) -> Result<(Vec<Vm>, Vec<VmDir>)> {
    let dir = store.cluster(cluster);
    let mut made = Vec::new();
    let mut created = Vec::new();
    let mut share = None;
    let prepare = || {
        // From here on, a cluster that was created in the meantime is not pruned either.
        share = dir.share_if_there()?;
        for member in members {
            let (vm, new) = make(store, cluster, member, lifetime, ours)?;
            if new {
                created.push(vm.clone());
            }
            made.push(vm);
        }
        Ok(())
    };
    let attached = attach::attach(store, cluster, lifetime, runtime, prepare);
    let vms = attached.and_then(|attached| {
        let vms = members.iter().zip(made);
        vms.map(|(member, vm)| {
            let record = vm.record()?;
            Ok(member
                .builder
                .configure(Vm::new(store, vm, record, &attached)?))
        })
        .collect::<Result<Vec<_>>>()
    });
    if vms.is_err() {
        // None of them was started.
        for vm in &created {
            if let Err(error) = vm.destroy() {
                tracing::warn!(vm = %vm.name(), %error, "cannot delete a VM of a failed start");
            }
        }
    }
    Ok((vms?, created))
}

/// The VM of a member, and whether this has created it. `ours` are the VMs that this start has created before.
pub(super) fn make(
    store: &Store,
    cluster: &Name,
    member: &Member,
    lifetime: Lifetime,
    ours: &[VmDir],
) -> Result<(VmDir, bool)> {
    let name = &member.plan.name;
    let ours = ours.iter().find(|vm| vm.name() == name);
    if let Some(known) = member.found.as_ref().or(ours) {
        // Another process may have removed it.
        known.check()?;
        return Ok((known.clone(), false));
    }
    let existing = || {
        // Created by another process after the beginning of this start.
        let vm = store.cluster(cluster).vm(name);
        match vm {
            Some(vm) if member.builder.create_new => Err(exists(&vm)),
            Some(vm) => {
                member.builder.agree(&member.plan, &vm)?;
                Ok(Some((vm, false)))
            }
            None => Ok(None),
        }
    };
    if let Some(vm) = existing()? {
        return Ok(vm);
    }
    let no_vm = || Error::NoVm { name: name.clone() };
    let image = member.image.as_ref().ok_or_else(no_vm)?;
    match create(store, cluster, &member.plan, image, lifetime) {
        Ok(vm) => Ok((vm, true)),
        Err(Error::Store(StoreError::Exists { .. })) if !member.builder.create_new => {
            existing()?.ok_or_else(no_vm)
        }
        Err(error) => Err(error),
    }
}

/// Deletes the members that this call created. They have no handles any more.
async fn delete(store: &Store, created: &[VmDir]) {
    for dir in created {
        let deleted = match Vm::found(store, dir.clone()) {
            Ok(vm) => vm.destroy().await,
            Err(Error::NoVm { .. }) => Ok(()),
            Err(error) => Err(error),
        };
        if let Err(error) = deleted {
            tracing::warn!(vm = %dir.name(), %error, "cannot delete a VM of a failed start");
        }
    }
}

/// Removes the members that were created, and kills those that were started.
async fn undo(vms: Vec<Vm>, created: &[VmDir]) {
    for vm in vms {
        let name = vm.name().to_owned();
        let undone = if created.iter().any(|created| created.is_same(&vm.dir)) {
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
            delete(&store, &[store.cluster(name).vm(name).unwrap()]).await;
        }
        let left = store.vms().unwrap();
        assert_eq!(left.len(), 1);
        assert_eq!(left[0].name(), &members[2]);
    }
}
