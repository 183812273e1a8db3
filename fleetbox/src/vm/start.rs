//! Starting a VM, and waiting until it is up.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::{SSH_PORT, Vm, lock};
use crate::error::{Error, Result, VmFate};
use crate::host::budget::{self, Budget, Lease, Want};
use crate::host::resources::{HostResources, Request};
use crate::model::lifetime::Lifetime;
use crate::model::ready::Ready;
use crate::process::{MachineSpec, ProcessError};
use crate::progress::ProgressEvent;
use crate::ssh;
use crate::store::VmRecord;
use crate::store::ephemeral;
use crate::util::task::blocking;
use crate::util::text::last_lines;
use crate::vm::attach::{self, Attempts};
use crate::vm::create::machine_spec;
use crate::vm::fixtures;

/// Lines of the console that an error carries.
const CONSOLE_LINES: usize = 40;

impl Vm {
    /// Has the worker start the machine, with what is in the fixtures now; true if it runs already.
    pub(crate) async fn start_machine(&self) -> Result<bool> {
        if !self.dir.is_running()? {
            let vm = self.name.as_str();
            self.progress.event(ProgressEvent::Starting { vm });
            if !self.record.fixtures.is_empty() {
                self.progress.event(ProgressEvent::CopyingFixtures { vm });
                let (fixtures, paths) = (self.record.fixtures.clone(), self.dir.paths().clone());
                blocking(move || fixtures::build(&fixtures, &paths)).await?;
            }
        }
        Ok(self.client.start(self.machine()?).await?.0)
    }

    /// What the worker is to start.
    pub(crate) fn machine(&self) -> Result<MachineSpec> {
        let record = self.current()?;
        Ok(machine_spec(&self.dir, &record, self.backend.clone()))
    }

    /// The record as it is now: it may have been changed since this handle was made.
    fn current(&self) -> Result<VmRecord> {
        match self.dir.record() {
            Err(_) if !self.dir.paths().dir().exists() => Err(Error::NoVm {
                name: self.name.clone(),
            }),
            record => Ok(record?),
        }
    }

    /// Waits for what its builder was told to wait for, or until the guest answers by SSH, where
    /// there is one. A machine that is `new` takes long enough for its user to be told.
    pub(crate) async fn wait_until_up(&self, deadline: Instant, new: bool) -> Result<()> {
        let tell = |what: &Ready| {
            if new {
                let (vm, what) = (self.name.as_str(), &what.to_string());
                self.progress.event(ProgressEvent::WaitingFor { vm, what });
            }
        };
        if self.awaited.is_empty() && self.backend.has_guest() {
            tell(&Ready::Ssh);
            self.wait_for_ssh(deadline).await?;
        }
        let begun = Instant::now();
        for awaited in &self.awaited {
            tell(&awaited.what);
            let deadline = awaited.within.map_or(deadline, |within| begun + within);
            self.wait_until(&awaited.what, deadline).await?;
        }
        Ok(())
    }

    /// The error of a VM that does not come up, with what its console showed last.
    pub(crate) async fn not_ready(&self, why: String) -> Error {
        let console = self.console_tail().await.unwrap_or_default();
        let left = match self.dir.is_running() {
            _ if self.is_held() => VmFate::Held,
            Ok(false) => VmFate::Stopped(Box::new(self.reference())),
            _ => VmFate::Running(Box::new(self.reference())),
        };
        Error::NotReady {
            name: self.name.clone(),
            why,
            console: last_lines(&console, CONSOLE_LINES).to_owned(),
            left,
        }
    }

    /// Waits until the guest answers by SSH, or its machine ends.
    pub(crate) async fn wait_for_ssh(&self, deadline: Instant) -> Result<()> {
        let connect = || async {
            self.client
                .dial(self.name.as_str(), SSH_PORT)
                .await
                .map_err(io::Error::other)
        };
        let ready = ssh::wait_ready(connect, &self.target, deadline);
        let error = tokio::select! {
            ready = ready => match ready {
                Ok(session) => {
                    *self.session.lock().await = Some(Arc::new(session));
                    return Ok(());
                }
                Err(error) => error.to_string(),
            },
            ended = self.client.wait(self.name.as_str()) => match ended {
                Ok(report) => match report.failure {
                    // It carries the console's last lines already.
                    Some(failure) => return Err(ProcessError::Failed(failure).into()),
                    None => "the guest powered off before it answered by SSH".to_owned(),
                },
                Err(error) => error.to_string(),
            },
        };
        Err(self.not_ready(error).await)
    }

    /// Waits until the guest answers by SSH (again, after a reboot).
    ///
    /// ```no_run
    /// # async fn example(vm: fleetbox::Vm) -> fleetbox::Result<()> {
    /// # use std::time::Duration;
    /// vm.ssh("sudo reboot").await.ok(); // the connection may be lost before the command ends
    /// tokio::time::sleep(Duration::from_secs(5)).await;
    /// vm.wait_ready(Duration::from_secs(120)).await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Error::NotReady`] at the deadline, with the console's last lines.
    pub async fn wait_ready(&self, timeout: Duration) -> Result<()> {
        self.wait_for_ssh(Instant::now() + timeout).await
    }

    /// Starts the VM again after it was stopped or has failed, and waits until it answers by SSH.
    /// It has the same address, and the sizes that [`resize`](crate::resize()) has given it
    /// meanwhile. Does nothing to a VM that runs and answers.
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
    /// As [`VmBuilder::start`](crate::VmBuilder::start).
    pub async fn start(&self) -> Result<()> {
        let lease = Self::await_memory(&[self]).await?;
        self.boot().await?;
        // Its own lock counts as long as it runs.
        drop(lease);
        self.come_up().await
    }

    /// Waits until there is memory for those of `vms` that do not run, for all of them at once, if
    /// this host has what they need at all. The lease is to be held until they are booted; `None` if all run.
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

    /// Checks that this host would have what all of `vms` need if nothing else ran.
    pub(crate) fn check_resources(vms: &[&Self]) -> Result<()> {
        let wants = vms.iter().map(|vm| vm.want());
        let wants = wants.collect::<Result<Vec<_>>>()?;
        match vms.first() {
            Some(first) => Ok(first.budget()?.check(&wants)?),
            None => Ok(()),
        }
    }

    /// The memory it needs. Checks that this host has what it needs.
    fn want(&self) -> Result<Want> {
        let record = self.current()?;
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

    /// Waits, as long as its builder allows, until a VM that was booted is up.
    pub(crate) async fn come_up(&self) -> Result<()> {
        let deadline = Instant::now() + self.boot_timeout;
        self.wait_until_up(deadline, true).await
    }

    /// Stops the VM, if it runs, and starts it again. It is not stopped if this host could never
    /// have what it needs.
    ///
    /// # Errors
    /// As [`Vm::stop`] and [`Vm::start`].
    pub async fn restart(&self) -> Result<()> {
        Self::check_resources(&[self])?;
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
            let prepare = || match store.cluster(dir.cluster()).vm(dir.name()) {
                Some(_) => Ok(()),
                None => Err(Error::NoVm {
                    name: dir.name().clone(),
                }),
            };
            attach::attach(&store, dir.cluster(), lifetime, &runtime, prepare)
        })
        .await?;
        if let Some(lifeline) = attached.lifeline {
            *lock(&self.lifeline) = Some(lifeline);
        }
        Ok(())
    }
}
