//! Creating and starting the members of a cluster together. A single VM is a cluster of one.

mod check;
mod find;
mod members;

use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;

use self::find::Member;
use self::members::Startup;
use crate::error::{Error, Result};
use crate::host::budget::{self, Budget};
use crate::model::lifetime::Lifetime;
use crate::model::names::{Name, Reference};
use crate::model::timing::{Clock, Phase};
use crate::progress::Silent;
use crate::store::Store;
use crate::util::task::blocking;
use crate::vm::Vm;
use crate::vm::builder::VmBuilder;
use crate::vm::fleet::Fleet;
use crate::vm::sweep;

impl VmBuilder {
    /// Starts the VM, creates it if it does not exist, and waits until it answers over SSH or meets the conditions of
    /// [`VmBuilder::wait_for`]. If the VM already runs, started by any process, this attaches to it. An existing VM
    /// boots as it was created, so options that differ from its own are an error.
    ///
    /// ```no_run
    /// # async fn example() -> fleetbox::Result<()> {
    /// use fleetbox::Error;
    ///
    /// match fleetbox::Vm::builder("web").start().await {
    ///     Ok(vm) => println!("{} is up: {}", vm.name(), vm.timings()),
    ///     Err(Error::Host(why)) => println!("no VMs here: {why}"),
    ///     Err(error) => return Err(error),
    /// }
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Error::Invalid`] for a bad name, size, count or image, and [`Error::Host`] if VMs cannot
    /// run here, both before anything is downloaded or created; [`Error::Differs`] if the VM exists and was created
    /// with other options; [`Error::Budget`] if there is no memory for the VM and none will become free;
    /// [`Error::NotReady`], with the console's last lines, if the guest fails or does not answer in time. A VM that this
    /// call has created and whose machine could not even be started is deleted again.
    pub async fn start(self) -> Result<Vm> {
        let (name, launch) = self.launch()?;
        let (_, vms) = launch.start().await?;
        vms.into_iter().next().ok_or(Error::NoVm { name })
    }

    /// Stops the VM if it runs, and starts it again as [`VmBuilder::start`] does. The VM must exist. If it is clear
    /// beforehand that it could not be started again, it is not stopped.
    ///
    /// ```no_run
    /// # async fn example() -> fleetbox::Result<()> {
    /// use fleetbox::{STOP_DEADLINE, Vm};
    ///
    /// let vm = Vm::builder("web").detached().restart(STOP_DEADLINE).await?;
    /// assert!(!vm.was_running(), "it was booted again");
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Error::NoVm`] if the VM does not exist; those of [`VmBuilder::start`] and
    /// [`Vm::stop_within`].
    pub async fn restart(self, deadline: Duration) -> Result<Vm> {
        let (name, launch) = self.launch()?;
        let (_, vms) = launch.restart(deadline).await?;
        vms.into_iter().next().ok_or(Error::NoVm { name })
    }

    /// Plans the start of the VM, and returns its name too.
    fn launch(self) -> Result<(Name, Launch)> {
        let reference: Reference = self.name.parse()?;
        let name = reference.name().clone();
        let launch = Launch {
            cluster: reference.cluster().unwrap_or(&name).clone(),
            anywhere: reference.cluster().is_none(),
            alone: true,
            lifetime: self.lifetime,
            fleet: self.fleet.clone(),
            members: vec![self.named(&name)],
        };
        Ok((name, launch))
    }

    /// Creates the VM without starting it, which works without KVM. [`VmBuilder::start`] can start
    /// it later. The VM is an ordinary one that stays until it is removed. Returns false if a VM
    /// with this name already exists; that VM is left as it is.
    ///
    /// ```no_run
    /// # async fn example() -> fleetbox::Result<()> {
    /// fleetbox::Vm::builder("web").image("debian-12").create().await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// Those of [`VmBuilder::start`], except those about running the VM. [`Error::InsufficientResources`] if this
    /// host has less than the VM asks for.
    pub async fn create(self) -> Result<bool> {
        let (_, mut launch) = self.launch()?;
        launch.lifetime = Lifetime::Detached;
        Ok(!launch.create().await?.is_empty())
    }
}

/// A start of one VM or of the members of a cluster.
pub(crate) struct Launch {
    /// The name of the cluster.
    pub(crate) cluster: Name,
    /// True if the user gave no cluster. A member of any cluster with this name may then be meant.
    pub(crate) anywhere: bool,
    /// True for a single VM. If its start fails, it is kept for inspection. Of a cluster, all
    /// members are started or none.
    pub(crate) alone: bool,
    pub(crate) lifetime: Lifetime,
    pub(crate) fleet: Fleet,
    pub(crate) members: Vec<VmBuilder>,
}

impl Launch {
    /// Starts all members, creates those that do not exist, and waits until they are ready. If one
    /// member of a cluster fails, everything that this call created or started is undone.
    pub(crate) async fn start(self) -> Result<(Store, Vec<Vm>)> {
        let mut clock = Clock::start();
        let mut members = self.plan()?;
        self.refuse_existing(&members).await?;
        let budget = check::budget_of(&members)?;
        clock.done(Phase::Preflight);

        let store = self.fleet.store().await?;
        sweep(&store).await?;
        let (cluster, _share) = self.locate(&store, &mut members).await?;
        let vms = self.start_found(&store, &cluster, members, budget, clock);
        let vms = vms.await?;
        Ok((store, vms))
    }

    /// Starts the members that were found, and creates the others.
    async fn start_found(
        &self,
        store: &Store,
        cluster: &Name,
        mut members: Vec<Member>,
        budget: Budget,
        mut clock: Clock,
    ) -> Result<Vec<Vm>> {
        check::network(store, cluster, &members)?;
        let wants = check::wants(cluster, &members)?;
        budget.check(&wants)?;
        check::resources(store, &members, true)?;
        find::images(store, &mut members).await?;
        clock.done(Phase::Image);

        let progress = members
            .first()
            .map(|first| Arc::clone(&first.builder.progress));
        let progress = progress.unwrap_or_else(|| Arc::new(Silent));
        let lease = budget::acquire(store, budget, wants, progress.as_ref()).await?;
        clock.done(Phase::Memory);

        let mut startup = Startup::new(store, cluster, self.lifetime, self.alone, members);
        let vms = startup.start_machines(lease, &mut clock).await?;
        let vms = startup.wait_until_up(vms).await?;
        clock.done(Phase::Boot);
        let timings = clock.finish();
        tracing::info!(%cluster, vms = vms.len(), %timings, "started");
        let vms = vms.into_iter();
        Ok(vms.map(|vm| vm.with_timings(timings.clone())).collect())
    }

    /// Stops the members that run, and starts all as [`Launch::start`] does. All members must
    /// exist, and none is created if one is removed meanwhile. Anything that would clearly keep
    /// them from starting is an error before they are stopped.
    pub(crate) async fn restart(self, deadline: Duration) -> Result<(Store, Vec<Vm>)> {
        let mut members = self.plan()?;
        let budget = check::budget_of(&members)?;
        let store = self.fleet.store().await?;
        sweep(&store).await?;
        let (cluster, _share) = self.locate(&store, &mut members).await?;
        let mut vms = Vec::new();
        for member in &members {
            let name = &member.plan.name;
            let vm = member.found.clone();
            let vm = vm.ok_or_else(|| Error::NoVm { name: name.clone() })?;
            vms.push(member.builder.configure(Vm::found(&store, vm)?));
        }
        Vm::check_startable(&vms.iter().collect::<Vec<_>>()).await?;
        check::network_again(&store, &cluster, &members)?;
        for stopped in join_all(vms.iter().map(|vm| vm.stop_within(deadline))).await {
            match stopped {
                Err(error) if !error.is_not_running() => return Err(error),
                _ => {}
            }
        }
        let clock = Clock::start();
        let vms = self.start_found(&store, &cluster, members, budget, clock);
        let vms = vms.await?;
        Ok((store, vms))
    }

    /// Creates the members that do not exist, and starts none. Returns the names of the new ones.
    pub(crate) async fn create(self) -> Result<Vec<Name>> {
        let mut members = self.plan()?;
        self.refuse_existing(&members).await?;
        let store = self.fleet.store().await?;
        let (cluster, _share) = self.locate(&store, &mut members).await?;
        check::resources(&store, &members, false)?;
        find::images(&store, &mut members).await?;
        blocking(move || {
            let mut created = Vec::new();
            for member in &members {
                if let (vm, true) =
                    members::make(&store, &cluster, member, self.lifetime, &created)?
                {
                    created.push(vm);
                }
            }
            Ok(created.iter().map(|vm| vm.name().clone()).collect())
        })
        .await
    }
}

/// Removes what killed processes left behind. A failure here does not stop a start.
async fn sweep(store: &Store) -> Result<()> {
    let store = store.clone();
    blocking(move || {
        if let Err(error) = sweep::sweep(&store) {
            tracing::warn!(%error, "cannot remove what killed processes left behind");
        }
        Ok(())
    })
    .await
}
