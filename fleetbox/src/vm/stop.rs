//! Stopping a VM, and waiting until it ends.

use std::time::Duration;

use tokio::time::Instant;

use super::Vm;
use crate::error::{Error, Result};
use crate::process::ProcessError;
use crate::progress::ProgressEvent;
use crate::util::task::blocking;
use crate::vm::attach::{self, ENDING};
use crate::vm::fleet::Fleet;
use crate::vm::sweep;

/// How long [`Vm::stop`] gives a guest to power off.
pub const STOP_DEADLINE: Duration = Duration::from_secs(60);

impl Vm {
    /// Waits until the VM ends. `Ok` means that the guest powered off or that the VM was stopped.
    ///
    /// ```no_run
    /// # async fn example(vm: fleetbox::Vm) -> fleetbox::Result<()> {
    /// vm.ssh("sudo systemctl poweroff --no-block").await?;
    /// vm.wait().await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Error::Process`] if the VM failed, with the reason and the console's last lines.
    pub async fn wait(&self) -> Result<()> {
        match self.client.wait(&self.target()).await?.failure {
            None => Ok(()),
            Some(failure) => Err(ProcessError::Failed(failure).into()),
        }
    }

    /// Presses the power button and waits for the guest to power off. After [`STOP_DEADLINE`] the
    /// VM is killed. Its disk stays; [`Vm::start`] starts it again.
    ///
    /// ```no_run
    /// # async fn example(vm: fleetbox::Vm) -> fleetbox::Result<()> {
    /// use fleetbox::StopOutcome;
    ///
    /// if vm.stop().await? == StopOutcome::Forced {
    ///     println!("{} did not power off in time", vm.name());
    /// }
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Error::NotRunning`] or [`Error::Process`] if the VM does not run; [`Error::Process`] if it runs but its
    /// worker does not answer.
    pub async fn stop(&self) -> Result<StopOutcome> {
        self.stop_within(STOP_DEADLINE).await
    }

    /// Like [`Vm::stop`], but with your own deadline. Zero kills at once.
    ///
    /// # Errors
    /// Those of [`Vm::stop`].
    pub async fn stop_within(&self, deadline: Duration) -> Result<StopOutcome> {
        *self.session.lock().await = None;
        if !deadline.is_zero() && self.dir.is_running()? {
            let vm = self.name.as_str();
            self.progress.event(ProgressEvent::Stopping { vm });
        }
        let forced = match self.client.stop(&self.target(), deadline).await {
            Ok(forced) => forced,
            // Who wants it killed wants it killed in any case.
            Err(error) if error.is_silence() && deadline.is_zero() => {
                attach::end_worker(&self.store.cluster(self.dir.cluster())).await?;
                true
            }
            Err(error) if error.is_worker_gone() => {
                // The VM ends with its worker, unless the worker runs and just does not answer.
                return Err(match self.is_unlocked_within(ENDING).await? {
                    true => Error::NotRunning {
                        name: self.reference(),
                    },
                    false => error.into(),
                });
            }
            Err(error) => return Err(error.into()),
        };
        self.await_unlocked().await?;
        Ok(if forced {
            StopOutcome::Forced
        } else {
            StopOutcome::PoweredOff
        })
    }

    /// Kills the VM, as a power failure would. The disk stays. If the worker of its cluster hangs or is suspended, it is
    /// killed too, which ends all VMs of the cluster.
    ///
    /// ```no_run
    /// # async fn example(vm: fleetbox::Vm) -> fleetbox::Result<()> {
    /// vm.ssh("echo precious > data && sync").await?;
    /// vm.kill().await?; // as if the power had failed
    /// vm.start().await?;
    /// assert_eq!(vm.ssh("cat data").await?.stdout_text(), "precious\n");
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// Those of [`Vm::stop`].
    pub async fn kill(&self) -> Result<()> {
        self.stop_within(Duration::ZERO).await.map(drop)
    }

    /// Waits until no process has the VM's lock.
    async fn await_unlocked(&self) -> Result<()> {
        let waited = Duration::from_secs(20);
        match self.is_unlocked_within(waited).await? {
            true => Ok(()),
            false => Err(Error::Busy {
                name: self.name.clone(),
                waited,
            }),
        }
    }

    /// Waits up to `patience` until no process has the VM's lock; true if that happened.
    pub(super) async fn is_unlocked_within(&self, patience: Duration) -> Result<bool> {
        let deadline = Instant::now() + patience;
        while self.dir.is_running()? {
            if Instant::now() > deadline {
                return Ok(false);
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(true)
    }
}

/// How a VM was stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopOutcome {
    /// The guest powered itself off.
    PoweredOff,
    /// The guest did not power off in time, so the VM was killed.
    Forced,
}

impl Fleet {
    /// Stops a VM, running or not: `None` if it did not run.
    ///
    /// ```no_run
    /// # async fn example() -> fleetbox::Result<()> {
    /// let stopped = fleetbox::Fleet::new().stop("web", fleetbox::STOP_DEADLINE).await?;
    /// if stopped.is_none() {
    ///     println!("it did not run");
    /// }
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// Those of [`Fleet::find`], or a worker that does not answer.
    pub async fn stop(&self, name: &str, deadline: Duration) -> Result<Option<StopOutcome>> {
        let store = self.store().await?;
        blocking(move || {
            sweep::sweep_bridges(&store);
            Ok::<_, Error>(())
        })
        .await?;
        match self.open(name).await {
            Ok(vm) => match vm.stop_within(deadline).await {
                Ok(stopped) => Ok(Some(stopped)),
                // It ended in the meantime.
                Err(error) if error.is_not_running() => Ok(None),
                Err(error) => Err(error),
            },
            Err(Error::NotRunning { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }
}
