//! Making and starting the members of a cluster together. A VM alone is a cluster of one.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::future::{join_all, try_join_all};
use tokio::time::Instant;

use crate::disk::fixture;
use crate::error::{Error, Result, VmFate};
use crate::host::bridge;
use crate::host::budget::{self, Budget, Want};
use crate::host::preflight;
use crate::host::resources::{HostResources, Request};
use crate::images::{Image, ImageRef, Images};
use crate::model::lifetime::Lifetime;
use crate::model::names::{Name, Reference};
use crate::model::timing::{Clock, Phase};
use crate::process::ProcessError;
use crate::progress::Silent;
use crate::store::ephemeral;
use crate::store::open::open_store;
use crate::store::{Lock, Store, StoreError, VmDir};
use crate::util::task::blocking;
use crate::vm::Vm;
use crate::vm::attach;
use crate::vm::builder::{Plan, VmBuilder};
use crate::vm::create::create;

/// How often a worker is looked for that goes away when it is found.
const ATTEMPTS: u32 = 3;

impl VmBuilder {
    /// Starts the VM, creating it if there is none of its name, and waits until it answers by
    /// SSH, or for what [`VmBuilder::wait_for`] was given. A VM that runs already, in whatever process, is attached to; one that exists is
    /// booted as it was created, and options that differ are ignored with a warning (see
    /// [`Vm::ignored_options`]).
    ///
    /// ```no_run
    /// # async fn example() -> fleetbox::Result<()> {
    /// use fleetbox::Error;
    ///
    /// match fleetbox::Vm::builder("web").start().await {
    ///     Ok(vm) => println!("{} is up: {}", vm.name(), vm.timings()),
    ///     Err(Error::Host(probe)) => println!("no VMs here: {}", Error::Host(probe)),
    ///     Err(error) => return Err(error),
    /// }
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Error::Invalid`] for a bad name, size, count or image, [`Error::Host`] if VMs cannot run
    /// here, both before anything is downloaded or created; [`Error::Budget`] if there is no memory
    /// for it and none will come free; [`Error::NotReady`] with the
    /// console's last lines if the guest fails or does not answer in time.
    pub async fn start(self) -> Result<Vm> {
        let (name, launch) = self.launch()?;
        let (_, vms) = launch.start().await?;
        vms.into_iter().next().ok_or(Error::NoVm { name })
    }

    /// Stops the VM, which exists, if it runs, and starts it again as [`VmBuilder::start`] does. It is
    /// not stopped if it is known before that it could not be started.
    ///
    /// ```no_run
    /// # async fn example() -> fleetbox::Result<()> {
    /// use fleetbox::{STOP_DEADLINE, Vm};
    ///
    /// let vm = Vm::builder("web").detached().restart(STOP_DEADLINE).await?;
    /// assert!(!vm.was_running(), "it was booted anew");
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Error::NoVm`], and those of [`VmBuilder::start`] and [`Vm::stop_within`].
    pub async fn restart(self, deadline: Duration) -> Result<Vm> {
        let (name, launch) = self.launch()?;
        let (_, vms) = launch.restart(deadline).await?;
        vms.into_iter().next().ok_or(Error::NoVm { name })
    }

    /// The start of the VM, and its name.
    fn launch(self) -> Result<(Name, Launch)> {
        let reference: Reference = self.name.parse()?;
        let name = reference.name().clone();
        let launch = Launch {
            cluster: reference.cluster().unwrap_or(&name).clone(),
            anywhere: reference.cluster().is_none(),
            alone: true,
            lifetime: self.lifetime,
            home: self.home.clone(),
            members: vec![self.named(&name)],
        };
        Ok((name, launch))
    }

    /// Creates the VM without starting it, and so without a need for KVM: [`VmBuilder::start`] does
    /// that later. False if there is a VM of that name already, which stays as it is. It is an
    /// ordinary one that stays until it is removed.
    ///
    /// ```no_run
    /// # async fn example() -> fleetbox::Result<()> {
    /// fleetbox::Vm::builder("web").image("debian-12").create().await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As [`VmBuilder::start`], but for what has to do with running it; [`Error::Lacking`] all the same
    /// if this host has less than what is asked for.
    pub async fn create(self) -> Result<bool> {
        let (_, mut launch) = self.launch()?;
        launch.lifetime = Lifetime::Detached;
        Ok(!launch.create().await?.is_empty())
    }

    /// Tells a VM's handle how it is run.
    pub(crate) fn equip(&self, vm: Vm) -> Vm {
        vm.run_by(self.backend.clone(), self.boot_timeout, self.budget)
            .awaiting(self.extras.awaited.clone())
            .with_progress(Arc::clone(&self.progress))
    }
}

/// What is to be started.
pub(crate) struct Launch {
    /// The cluster.
    pub(crate) cluster: Name,
    /// The cluster is not named: a VM of that name that is a member of another one is meant, too.
    pub(crate) anywhere: bool,
    /// A VM alone, whose failed start leaves it for a look at it. Of a cluster all members are
    /// started or none.
    pub(crate) alone: bool,
    pub(crate) lifetime: Lifetime,
    pub(crate) home: Option<PathBuf>,
    pub(crate) members: Vec<VmBuilder>,
}

/// A member as it is found or to be made.
struct Member {
    builder: VmBuilder,
    plan: Plan,
    /// Its image, if it does not exist.
    image: Option<Image>,
}

impl Launch {
    /// Starts all members, creating those that do not exist, and waits until they answer by SSH.
    /// Unless it is one VM alone, what was created or started by this call is undone when one
    /// fails.
    pub(crate) async fn start(self) -> Result<(Store, Vec<Vm>)> {
        let mut clock = Clock::start();
        let mut members = self.plan()?;
        self.refuse_existing(&members).await?;
        let budget = budget_of(&members)?;
        clock.done(Phase::Preflight);
        let store = open_store(self.home.as_deref()).await?;
        {
            let store = store.clone();
            blocking(move || {
                // What cannot be swept hinders no start.
                if let Err(error) = attach::sweep(&store) {
                    tracing::warn!(%error, "cannot remove what killed processes left");
                }
                Ok::<_, Error>(())
            })
            .await?;
        }
        let (cluster, _share) = self.locate(&store, &members).await?;
        check_network(&store, &cluster, &members)?;
        let wants = wants(&store, &cluster, &members)?;
        budget.check(&wants)?;
        check_resources(&store, &cluster, &members, true)?;
        find_images(&store, &cluster, &mut members).await?;
        clock.done(Phase::Image);

        let progress = match members.as_slice() {
            [member, ..] => Arc::clone(&member.builder.progress),
            [] => Arc::new(Silent),
        };
        let lease = budget::acquire(&store, budget, wants, progress.as_ref()).await?;
        clock.done(Phase::Memory);
        let members = Arc::new(members);
        let mut attempts = ATTEMPTS;
        let mut lease = Some(lease);
        let mut created = Vec::new();
        let vms = loop {
            let attached = attach(&store, &cluster, self.lifetime, &members, &created).await;
            let (mut vms, new) = match attached {
                Ok(attached) => attached,
                Err(error) => {
                    // An earlier attempt may have made some, whose handles are gone.
                    if !self.alone {
                        delete(&store, &cluster, &created).await;
                    }
                    return Err(error);
                }
            };
            created.extend(new);
            clock.done(Phase::Create);
            let started = join_all(vms.iter().map(Vm::start_machine)).await;
            let ended = |result: &Result<bool>| {
                matches!(
                    result,
                    Err(Error::Process(
                        ProcessError::NoWorker { .. } | ProcessError::Lost { .. }
                    ))
                )
            };
            // The worker was about to end when it was found.
            if attempts > 1 && started.iter().any(ended) {
                attempts -= 1;
                continue;
            }
            // Those that run hold their own locks now, which count as long as they run.
            drop(lease.take());
            let mut failure = None;
            for (vm, started) in vms.iter_mut().zip(started) {
                match started {
                    Ok(already) => vm.set_was_running(already),
                    Err(error) => failure = failure.or(Some(error)),
                }
            }
            clock.done(Phase::Machine);
            let ready = match failure {
                Some(error) => Err(error),
                None => {
                    let ready = vms.iter().zip(members.iter()).map(|(vm, member)| {
                        let deadline = Instant::now() + member.builder.boot_timeout;
                        vm.wait_until_up(deadline, !vm.was_running())
                    });
                    try_join_all(ready).await.map(drop)
                }
            };
            match ready {
                Ok(()) => break vms,
                Err(error) => {
                    let held = vms.iter().any(Vm::is_held);
                    if self.alone {
                        drop(vms);
                    } else {
                        undo(vms, &created).await;
                    }
                    return Err(error.leaving(|name| left(&store, &cluster, name, held)));
                }
            }
        };
        clock.done(Phase::Boot);
        let timings = clock.finish();
        tracing::info!(%cluster, vms = vms.len(), %timings, "started");
        let vms = vms
            .into_iter()
            .map(|vm| vm.with_timings(timings.clone()))
            .collect();
        Ok((store, vms))
    }
}

impl Launch {
    /// Stops the members, all of which exist, as far as they run, and starts them as
    /// [`Launch::start`] does. What is known to keep them from starting is an error before.
    pub(crate) async fn restart(self, deadline: Duration) -> Result<(Store, Vec<Vm>)> {
        let members = self.plan()?;
        let budget = budget_of(&members)?;
        let store = open_store(self.home.as_deref()).await?;
        let (cluster, _share) = self.locate(&store, &members).await?;
        let mut vms = Vec::new();
        let mut wants = Vec::new();
        for Member { plan, builder, .. } in &members {
            let name = &plan.name;
            let vm = store.cluster(&cluster).vm(name);
            let vm = vm.ok_or_else(|| Error::NoVm { name: name.clone() })?;
            let record = vm.record()?;
            HostResources::of_host(store.home()).check(&Request::of(&record))?;
            wants.push(Want::new(cluster.clone(), name.clone(), record.memory));
            vms.push(Vm::found(&store, vm)?.with_progress(Arc::clone(&builder.progress)));
        }
        budget.check(&wants)?;
        for stopped in join_all(vms.iter().map(|vm| vm.stop_within(deadline))).await {
            match stopped {
                Err(error) if !error.is_not_running() => return Err(error),
                _ => {}
            }
        }
        self.start().await
    }

    /// What is to be started, checked as far as it can be without looking at the state directory.
    fn plan(&self) -> Result<Vec<Member>> {
        let mut members = Vec::new();
        for builder in &self.members {
            members.push(Member {
                plan: builder.plan()?,
                builder: builder.clone(),
                image: None,
            });
        }
        Ok(members)
    }

    /// Refuses members that exist and must not, before it is known whether this host can run them.
    /// [`make`] does so for one that comes to be later.
    async fn refuse_existing(&self, members: &[Member]) -> Result<()> {
        let home = match &self.home {
            Some(home) => home.clone(),
            None => Store::default_home()?,
        };
        // Where nothing has ever been made, nothing is made by looking for it.
        if !home.is_dir() || !members.iter().any(|member| member.builder.create_new) {
            return Ok(());
        }
        let store = open_store(Some(&home)).await?;
        let cluster = store.cluster(&self.cluster);
        for Member { plan, .. } in members.iter().filter(|member| member.builder.create_new) {
            let mut found: Vec<_> = cluster.vm(&plan.name).into_iter().collect();
            if self.anywhere {
                found.extend(others(&store, &plan.name)?);
            }
            if let Some(vm) = found.first() {
                return Err(exists(vm));
            }
        }
        Ok(())
    }

    /// The cluster that is meant, and a share of it if it exists. With that, what exists is not pruned
    /// while its start waits for an image or for memory, so it is taken before anything is looked up
    /// and kept until the handles have shares of their own.
    async fn locate(&self, store: &Store, members: &[Member]) -> Result<(Name, Option<Lock>)> {
        loop {
            let cluster = self.meant(store, members)?;
            let dir = store.cluster(&cluster);
            let share = blocking(move || dir.share_if_there()).await?;
            // Else it was removed meanwhile, or has come to be.
            if self.meant(store, members)? == cluster {
                return Ok((cluster, share));
            }
        }
    }

    /// The cluster that is named or, if none is, the one that has the member.
    fn meant(&self, store: &Store, members: &[Member]) -> Result<Name> {
        let elsewhere = existing_elsewhere(store, &self.cluster, members, self.lifetime)?;
        match elsewhere.as_slice() {
            [] => Ok(self.cluster.clone()),
            [vm] if self.anywhere => Ok(vm.cluster().clone()),
            [vm, _, ..] if self.anywhere => Err(Error::Ambiguous {
                name: vm.name().clone(),
                clusters: elsewhere.iter().map(|vm| vm.cluster().clone()).collect(),
            }),
            [vm, ..] => Err(Error::NameTaken {
                name: vm.name().clone(),
                cluster: vm.cluster().clone(),
            }),
        }
    }

    /// Creates the members that do not exist, and starts none. The names of those it has created.
    pub(crate) async fn create(self) -> Result<Vec<Name>> {
        let mut members = self.plan()?;
        self.refuse_existing(&members).await?;
        let store = open_store(self.home.as_deref()).await?;
        let elsewhere = existing_elsewhere(&store, &self.cluster, &members, self.lifetime)?;
        if let ([_], true) = (elsewhere.as_slice(), self.anywhere) {
            return Ok(Vec::new());
        }
        if let Some(vm) = elsewhere.first() {
            return Err(Error::NameTaken {
                name: vm.name().clone(),
                cluster: vm.cluster().clone(),
            });
        }
        check_resources(&store, &self.cluster, &members, false)?;
        find_images(&store, &self.cluster, &mut members).await?;
        blocking(move || {
            let mut created = Vec::new();
            for member in &members {
                if make(&store, &self.cluster, member, self.lifetime, &created)? {
                    created.push(member.plan.name.clone());
                }
            }
            Ok(created)
        })
        .await
    }
}

/// The budget of a start. Checks that this host can run the members at all.
fn budget_of(members: &[Member]) -> Result<Budget> {
    let budget = match members.iter().find_map(|member| member.builder.budget) {
        Some(budget) => budget,
        None => Budget::from_env()?,
    };
    if members.iter().any(|member| member.builder.needs_kvm()) {
        preflight::check()?;
    }
    Ok(budget)
}

/// The VMs of a member's name in other clusters, if the member does not exist. A name is that of one
/// VM only, but of those that are deleted with their owners, which are nobody else's business.
fn existing_elsewhere(
    store: &Store,
    cluster: &Name,
    members: &[Member],
    lifetime: Lifetime,
) -> Result<Vec<VmDir>> {
    if lifetime == Lifetime::Ephemeral {
        return Ok(Vec::new());
    }
    for member in members {
        let name = &member.plan.name;
        if store.cluster(cluster).vm(name).is_none() {
            let found = others(store, name)?;
            if !found.is_empty() {
                return Ok(found);
            }
        }
    }
    Ok(Vec::new())
}

/// The VMs of that name in all clusters, but those that are deleted with their owners.
fn others(store: &Store, name: &Name) -> Result<Vec<VmDir>> {
    let mut found = store.find(name)?;
    found.retain(|vm| !ephemeral::is_ephemeral(vm));
    Ok(found)
}

/// Checks that the host's network may be changed, if the cluster is or is to be joined to it and has
/// no worker that has done so.
fn check_network(store: &Store, cluster: &Name, members: &[Member]) -> Result<()> {
    let dir = store.cluster(cluster);
    if dir.is_running()? {
        return Ok(());
    }
    let asked = members.iter().any(|member| member.plan.is_bridged());
    if asked || bridge::of_cluster(&dir)?.is_some() {
        bridge::permitted()?;
    }
    Ok(())
}

/// The memory of the members that do not run.
fn wants(store: &Store, cluster: &Name, members: &[Member]) -> Result<Vec<Want>> {
    let mut wants = Vec::new();
    for Member { plan, .. } in members {
        let memory = match store.cluster(cluster).vm(&plan.name) {
            Some(vm) if vm.is_running()? => continue,
            Some(vm) => vm.record()?.memory,
            None => plan.memory,
        };
        wants.push(Want::new(cluster.clone(), plan.name.clone(), memory));
    }
    Ok(wants)
}

/// Checks that this host has what each member that is to be created asks for, and if they are to be
/// started what those need that exist and do not run.
fn check_resources(
    store: &Store,
    cluster: &Name,
    members: &[Member],
    starting: bool,
) -> Result<()> {
    let there = HostResources::of_host(store.home());
    let cluster = store.cluster(cluster);
    for Member { builder, plan, .. } in members {
        match cluster.vm(&plan.name) {
            None => there.check(&builder.asked(plan))?,
            Some(vm) if starting && !vm.is_running()? => {
                there.check(&Request::of(&vm.record()?))?
            }
            Some(_) => {}
        }
    }
    Ok(())
}

/// Downloads the images of the members that do not exist, each once.
async fn find_images(store: &Store, cluster: &Name, members: &mut [Member]) -> Result<()> {
    let images = Images::new(store)?;
    let cluster = store.cluster(cluster);
    let mut known: Vec<(ImageRef, Image)> = Vec::new();
    for member in members {
        if cluster.vm(&member.plan.name).is_some() {
            continue;
        }
        // Found out before anything is downloaded; they are copied when the machine is started.
        let fixtures = member.plan.fixtures.clone();
        blocking(move || fixture::probe(&fixtures)).await?;
        let wanted = &member.plan.image;
        if let Some((_, image)) = known.iter().find(|(known, _)| known == wanted) {
            member.image = Some(image.clone());
            continue;
        }
        let resolved = images.resolve(wanted)?;
        let image = images
            .pull(&resolved, member.builder.progress.as_ref())
            .await?;
        known.push((wanted.clone(), image.clone()));
        member.image = Some(image);
    }
    Ok(())
}

/// Finds or starts the cluster's worker, and creates the members that do not exist; their names.
async fn attach(
    store: &Store,
    cluster: &Name,
    lifetime: Lifetime,
    members: &Arc<Vec<Member>>,
    ours: &[Name],
) -> Result<(Vec<Vm>, Vec<Name>)> {
    let runtime = tokio::runtime::Handle::current();
    let ours = ours.to_vec();
    let (store, cluster, members) = (store.clone(), cluster.clone(), Arc::clone(members));
    blocking(move || {
        let mut created = Vec::new();
        let dir = store.cluster(&cluster);
        let mut share = None;
        let prepare = || {
            // One that has come to be since it was looked for is not pruned from here on, either.
            share = dir.share_if_there()?;
            for member in members.iter() {
                if make(&store, &cluster, member, lifetime, &ours)? {
                    created.push(member.plan.name.clone());
                }
            }
            Ok(())
        };
        let attached = attach::attach(&store, &cluster, lifetime, &runtime, prepare);
        let vms = attached.and_then(|attached| {
            let vm = |member: &Member| {
                let vm = dir.vm(&member.plan.name).ok_or_else(|| Error::NoVm {
                    name: member.plan.name.clone(),
                })?;
                let record = vm.record()?;
                let ignored = if member.image.is_none() {
                    member.builder.ignored(&member.plan, &record)
                } else {
                    Vec::new()
                };
                if !ignored.is_empty() {
                    tracing::warn!(vm = %record.name, ?ignored, "the VM exists; these options are ignored");
                }
                let vm = Vm::new(&store, vm, record, &attached)?;
                Ok(member.builder.equip(vm).ignoring(ignored))
            };
            members.iter().map(vm).collect::<Result<Vec<_>>>()
        });
        match vms {
            Ok(vms) => Ok((vms, created)),
            Err(error) => {
                // Nothing has been started of what this call has created.
                for vm in created.iter().filter_map(|name| dir.vm(name)) {
                    if let Err(error) = vm.destroy() {
                        tracing::warn!(vm = %vm.name(), %error, "cannot delete");
                    }
                }
                Err(error)
            }
        }
    })
    .await
}

fn exists(vm: &VmDir) -> Error {
    let (cluster, name) = (vm.cluster().clone(), vm.name().clone());
    StoreError::Exists { cluster, name }.into()
}

/// Creates a member that does not exist; false if it does. `ours` are those that this call has
/// created.
fn make(
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
        // Another process has removed it since it was looked up.
        return Err(Error::NoVm { name: name.clone() });
    };
    match create(store, cluster, &member.plan, image, lifetime) {
        Ok(_) => Ok(true),
        Err(Error::Store(StoreError::Exists { .. })) if !member.builder.create_new => Ok(false),
        Err(error) => Err(error),
    }
}

/// What is left of a member whose start has failed and is undone as far as it is. `held` is whether
/// this process was its owner then.
fn left(store: &Store, cluster: &Name, name: &Name, held: bool) -> VmFate {
    let cluster = store.cluster(cluster);
    let Some(vm) = cluster.vm(name) else {
        return VmFate::Deleted;
    };
    // Unless the process has other handles, its worker ends the machine.
    match held && attach::owned(&cluster).is_none() {
        true if ephemeral::is_ephemeral(&vm) => VmFate::Deleted,
        true => VmFate::Stopped(Box::new(vm.reference())),
        false => match vm.is_running() {
            Ok(false) => VmFate::Stopped(Box::new(vm.reference())),
            _ => VmFate::Running(Box::new(vm.reference())),
        },
    }
}

/// Deletes those that this call has created and that have no handles any more.
async fn delete(store: &Store, cluster: &Name, created: &[Name]) {
    let cluster = store.cluster(cluster);
    for dir in created.iter().filter_map(|name| cluster.vm(name)) {
        let name = dir.name().clone();
        let deleted = match Vm::found(store, dir) {
            Ok(vm) => vm.destroy().await,
            Err(error) => Err(error),
        };
        if let Err(error) = deleted {
            tracing::warn!(vm = %name, %error, "cannot delete");
        }
    }
}

/// Removes what was created, and kills what was started.
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
            tracing::debug!(vm = name, %error, "its start is not undone");
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
