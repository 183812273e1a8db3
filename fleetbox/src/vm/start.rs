//! Starting a VM, and waiting until it is ready.

use fleetbox_devices::block::check_base;
use tokio::time::Instant;

use super::{Vm, lock};
use crate::disk::fixture;
use crate::error::{Error, Result};
use crate::host::budget::{self, Budget, Lease, Want};
use crate::host::preflight;
use crate::host::resources::{HostResources, Request};
use crate::model::lifetime::Lifetime;
use crate::process::MachineSpec;
use crate::progress::ProgressEvent;
use crate::store::ephemeral;
use crate::util::task::blocking;
use crate::vm::attach::{self, Attempts};
use crate::vm::create::machine_spec;
use crate::vm::fixtures;

impl Vm {
    /// Makes the worker start the machine with the current content of the fixtures. True if the
    /// machine already ran.
    pub(crate) async fn start_machine(&self) -> Result<bool> {
        if !self.dir.is_running()? {
            let vm = self.name.as_str();
            self.progress.event(ProgressEvent::Starting { vm });
            if !self.record.fixtures.is_empty() {
                self.progress.event(ProgressEvent::CopyingFixtures { vm });
                let (fixtures, dir) = (self.record.fixtures.clone(), self.dir.clone());
                blocking(move || {
                    dir.check()?;
                    Ok::<_, Error>(fixtures::build(&fixtures, dir.paths())?)
                })
                .await?;
            }
        }
        match self.client.start(self.machine()?).await {
            Ok((already, _)) => Ok(already),
            Err(error) => {
                // Otherwise that is the reason.
                self.dir.check()?;
                Err(error.into())
            }
        }
    }

    /// Describes the machine for the worker.
    pub(crate) fn machine(&self) -> Result<MachineSpec> {
        let record = self.dir.record()?;
        Ok(machine_spec(&self.dir, &record, self.backend.clone()))
    }

    /// Starts the VM again after it was stopped or failed, and waits until it answers over SSH. It
    /// keeps its address. It has the CPUs and memory that [`Fleet::resize`](crate::Fleet::resize)
    /// set in the meantime. A VM that runs and answers is left alone.
    ///
    /// ```no_run
    /// # async fn example(vm: fleetbox::Vm) -> fleetbox::Result<()> {
    /// vm.stop().await?;
    /// vm.start().await?;
    /// assert!(vm.ssh("true").await?.success());
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// Those of [`VmBuilder::start`](crate::VmBuilder::start).
    pub async fn start(&self) -> Result<()> {
        let lease = Self::await_memory(&[self]).await?;
        self.boot().await?;
        // From now on the VM's own lock counts its memory.
        drop(lease);
        self.wait_until_ready().await
    }

    /// Waits until there is memory for all of `vms` that do not run, for all at once. Fails at once if this host
    /// could never run them. Hold the lease until they have booted. `None` if all run.
    pub(crate) async fn await_memory(vms: &[&Self]) -> Result<Option<Lease>> {
        let mut wants = Vec::new();
        for vm in vms {
            if !vm.dir.is_running()? {
                wants.push(vm.want()?);
            }
        }
        let (Some(first), false) = (vms.first(), wants.is_empty()) else {
            return Ok(None);
        };
        let progress = first.progress.as_ref();
        let lease = budget::acquire(&first.store, first.budget()?, wants, progress).await?;
        Ok(Some(lease))
    }

    /// Checks what would keep `vms` from being started again after they are stopped, as far as that can be known while
    /// they run: whether this host could run them if nothing else ran, the directories of their fixtures, and the
    /// images under their disks.
    pub(crate) async fn check_startable(vms: &[&Self]) -> Result<()> {
        let Some(first) = vms.first() else {
            return Ok(());
        };
        if first.has_guest() {
            preflight::check()?;
        }
        let wants = vms.iter().map(|vm| vm.want());
        let wants = wants.collect::<Result<Vec<_>>>()?;
        first.budget()?.check(&wants)?;
        for vm in vms {
            let dir = vm.dir.clone();
            blocking(move || {
                let record = dir.record()?;
                fixture::probe(&record.fixtures)?;
                let paths = dir.paths();
                check_base(&paths.disk_layer())?;
                for number in 1..=record.extra_disks.len() {
                    check_base(&paths.extra_disk(number))?;
                }
                Ok::<_, Error>(())
            })
            .await?;
        }
        Ok(())
    }

    /// The memory that the VM needs. Checks that this host can run it at all.
    fn want(&self) -> Result<Want> {
        let record = self.dir.record()?;
        HostResources::of_host(self.store.home()).check(&Request::of(&record))?;
        let cluster = self.dir.cluster().clone();
        Ok(Want::new(cluster, self.name.clone(), record.memory))
    }

    fn budget(&self) -> Result<Budget> {
        Ok(match self.budget {
            Some(budget) => budget,
            None => Budget::from_env()?,
        })
    }

    /// Starts the machine, and the worker if it has ended.
    pub(crate) async fn boot(&self) -> Result<()> {
        *self.session.lock().await = None;
        let mut attempts = Attempts::new();
        loop {
            self.join_worker().await?;
            match self.start_machine().await {
                Err(error) if attempts.again([&error]) => {}
                started => return started.map(drop),
            }
        }
    }

    /// Waits until a booted VM is ready, at most as long as its builder allows.
    pub(crate) async fn wait_until_ready(&self) -> Result<()> {
        let deadline = Instant::now() + self.boot_timeout;
        self.wait_until_up(deadline, true).await
    }

    /// Stops the VM if it runs, and starts it again. If it is clear beforehand that it could not be started again, it
    /// is not stopped: this host could never run it, a directory of a fixture cannot be read, or the image under its
    /// disk is missing or has changed.
    ///
    /// # Errors
    /// Those of [`Vm::stop`] and [`Vm::start`].
    pub async fn restart(&self) -> Result<()> {
        Self::check_startable(&[self]).await?;
        match self.stop().await {
            Ok(_) => self.start().await,
            Err(error) if error.is_not_running() => self.start().await,
            Err(error) => Err(error),
        }
    }

    /// Finds the worker, or starts one if it has ended.
    async fn join_worker(&self) -> Result<()> {
        let owned = lock(&self.lifeline).is_some();
        let lifetime = match (ephemeral::is_ephemeral(&self.dir), owned) {
            (true, _) => Lifetime::Ephemeral,
            (false, true) => Lifetime::Bound,
            (false, false) => Lifetime::Detached,
        };
        let (store, dir) = (self.store.clone(), self.dir.clone());
        let runtime = tokio::runtime::Handle::current();
        let attached = blocking(move || {
            let prepare = || Ok(dir.check()?);
            attach::attach(&store, dir.cluster(), lifetime, &runtime, prepare)
        })
        .await?;
        if let Some(lifeline) = attached.lifeline {
            *lock(&self.lifeline) = Some(lifeline);
        }
        Ok(())
    }
}
