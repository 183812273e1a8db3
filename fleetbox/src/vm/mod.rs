//! A running VM.

pub(crate) mod attach;
pub(crate) mod builder;
pub(crate) mod cluster;
mod configure;
mod create;
pub(crate) mod events;
mod extras;
mod files;
mod fixtures;
pub(crate) mod fleet;
mod launch;
pub(crate) mod links;
pub(crate) mod list;
pub mod logs;
mod ready;
pub(crate) mod remote;
pub(crate) mod remove;
pub(crate) mod resize;
mod start;
pub(crate) mod stop;
pub(crate) mod sweep;

#[cfg(test)]
mod cluster_test;
#[cfg(test)]
mod configure_test;
#[cfg(test)]
mod vm_test;

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex as StdMutex};
use std::time::Duration;

use tokio::sync::Mutex;

use self::attach::Attachment;
use self::fleet::Fleet;
use crate::error::{Error, Result};
use crate::host::budget::Budget;
use crate::model::defaults::DEFAULT_BOOT_TIMEOUT;
use crate::model::keys::{Keypair, PublicKey};
use crate::model::names::{Name, Reference};
use crate::model::ready::WaitCondition;
use crate::model::timing::Timings;
use crate::process::{Backend, Client, Lifeline, MemberId};
use crate::progress::{Progress, Silent};
use crate::ssh::{self, Target};
use crate::store::ephemeral;
use crate::store::{Lock, Store, VmDir, VmRecord};
use crate::util::sync::lock;
use crate::util::task::blocking;

const SSH_PORT: u16 = 22;

/// A virtual machine.
///
/// What happens when the last handle is dropped, or when the process ends in any way, depends on
/// how the VM was made:
/// - A VM of [`Vm::test`] is destroyed.
/// - A VM of [`Vm::builder`] is powered off without notice to the guest; call [`Vm::stop`] first
///   for an orderly shutdown. Its disk stays, and it can be started again.
/// - A VM that is [detached](crate::VmBuilder::detached), or that was already running, keeps running.
///
/// ```no_run
/// # async fn example() -> fleetbox::Result<()> {
/// use fleetbox::{Size, Vm};
///
/// let vm = Vm::builder("web").image("debian-12").memory(Size::gib(1)).start().await?;
/// assert!(vm.ssh("systemctl is-active ssh").await?.success());
/// vm.stop().await?;
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct Vm {
    name: Name,
    store: Store,
    dir: VmDir,
    record: VmRecord,
    client: Client,
    target: Arc<Target>,
    // Marks the VM as in use, running or not.
    share: Arc<Lock>,
    // Closing it makes the worker end. That needs no runtime, so it works in any `drop`.
    lifeline: StdMutex<Option<Arc<Lifeline>>>,
    session: Mutex<Option<Arc<ssh::Client>>>,
    backend: Backend,
    boot_timeout: Duration,
    budget: Option<Budget>,
    progress: Arc<dyn Progress>,
    conditions: Vec<WaitCondition>,
    was_running: bool,
    timings: Timings,
}

impl Vm {
    /// Opens the running VM with the name `NAME` or `CLUSTER/NAME`, no matter which process started
    /// it. Dropping the handle changes nothing.
    ///
    /// ```no_run
    /// # async fn example() -> fleetbox::Result<()> {
    /// let vm = fleetbox::Vm::open("web").await?;
    /// println!("{}", vm.ssh("uptime").await?.stdout_text());
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// Those of [`Fleet::open`].
    pub async fn open(name: &str) -> Result<Self> {
        Fleet::new().open(name).await
    }

    /// A handle on an existing VM, running or not.
    pub(crate) fn found(store: &Store, dir: VmDir) -> Result<Self> {
        let attached = Attachment {
            client: attach::client(&store.cluster(dir.cluster())),
            lifeline: None,
        };
        let record = dir.record()?;
        Self::new(store, dir, record, &attached)
    }

    pub(crate) fn new(
        store: &Store,
        dir: VmDir,
        record: VmRecord,
        attached: &Attachment,
    ) -> Result<Self> {
        let share = match store.cluster(dir.cluster()).share() {
            Ok(share) => share,
            Err(error) => {
                // Otherwise that is the reason.
                dir.check()?;
                return Err(error.into());
            }
        };
        let target = Target {
            user: record.ssh_user.clone(),
            key: Keypair::of_store(store)?,
            host_key: record.host_key.parse::<PublicKey>()?,
        };
        Ok(Self {
            name: record.name.clone(),
            store: store.clone(),
            dir,
            record,
            client: attached.client.clone(),
            target: Arc::new(target),
            share: Arc::new(share),
            lifeline: StdMutex::new(attached.lifeline.clone()),
            session: Mutex::new(None),
            backend: Backend::usual(),
            boot_timeout: DEFAULT_BOOT_TIMEOUT,
            budget: None,
            progress: Arc::new(Silent),
            conditions: Vec::new(),
            was_running: true,
            timings: Timings::default(),
        })
    }

    pub(crate) fn run_by(
        mut self,
        backend: Backend,
        boot_timeout: Duration,
        budget: Option<Budget>,
    ) -> Self {
        self.backend = backend;
        self.boot_timeout = boot_timeout;
        self.budget = budget;
        self
    }

    /// A second handle on the same VM, which also keeps it running.
    pub(crate) fn another(&self) -> Self {
        Self {
            name: self.name.clone(),
            store: self.store.clone(),
            dir: self.dir.clone(),
            record: self.record.clone(),
            client: self.client.clone(),
            target: Arc::clone(&self.target),
            share: Arc::clone(&self.share),
            lifeline: StdMutex::new(lock(&self.lifeline).clone()),
            session: Mutex::new(None),
            backend: self.backend.clone(),
            boot_timeout: self.boot_timeout,
            budget: self.budget,
            progress: Arc::clone(&self.progress),
            conditions: self.conditions.clone(),
            was_running: self.was_running,
            timings: self.timings.clone(),
        }
    }

    /// Detaches a VM from its owner: it then runs, and exists, without it.
    pub(crate) async fn detach(&self) -> Result<()> {
        let dir = self.dir.clone();
        blocking(move || ephemeral::unmark_ephemeral(&dir)).await?;
        let lifeline = lock(&self.lifeline).clone();
        match lifeline {
            Some(lifeline) => lifeline.let_go().map_err(Error::io("keep the VM running")),
            None => Ok(()),
        }
    }

    /// True if this process owns the worker, which then ends with the last handle.
    pub(crate) fn is_held(&self) -> bool {
        lock(&self.lifeline).is_some()
    }

    /// The VM's name, unambiguous across all clusters.
    pub fn reference(&self) -> Reference {
        self.dir.reference()
    }

    /// The state directory.
    pub(crate) fn home(&self) -> &Path {
        self.store.home()
    }

    /// The file that the console is logged to.
    pub(crate) fn console_log(&self) -> PathBuf {
        self.dir.paths().console_log()
    }

    /// True if there is a real guest. A fake machine in a test has none.
    pub(crate) fn has_guest(&self) -> bool {
        self.backend.has_guest()
    }

    /// Sets what a start waits for instead of SSH.
    pub(crate) fn with_conditions(mut self, conditions: Vec<WaitCondition>) -> Self {
        self.conditions = conditions;
        self
    }

    /// Receives progress when the VM waits for memory and is stopped and started again. The default is the builder's
    /// setting; for a VM found by [`Vm::open`] nothing is shown.
    ///
    /// ```no_run
    /// # async fn example() -> fleetbox::Result<()> {
    /// use fleetbox::progress;
    ///
    /// let vm = fleetbox::Vm::open("web").await?.with_progress(progress::stderr());
    /// vm.restart().await?;
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn with_progress(mut self, progress: impl Into<Arc<dyn Progress>>) -> Self {
        self.progress = progress.into();
        self
    }

    pub(crate) fn with_timings(mut self, timings: Timings) -> Self {
        self.timings = timings;
        self
    }

    pub(crate) fn set_was_running(&mut self, was_running: bool) {
        self.was_running = was_running;
    }

    /// The VM's name, which is also the guest's hostname.
    pub fn name(&self) -> &str {
        self.name.as_str()
    }

    /// The cluster that the VM is a member of. A VM that was created alone is the only member of
    /// its cluster.
    pub fn cluster(&self) -> &str {
        self.dir.cluster().as_str()
    }

    /// The guest's address in its cluster's network. It never changes.
    ///
    /// Other members reach the guest at this address. The host can do so only with
    /// [`Network::Bridge`](crate::Network::Bridge). [`Network::User`](crate::Network::User) exists only inside the
    /// worker process; use [`Vm::connect`] or [`Vm::forward`] there.
    ///
    /// ```no_run
    /// # async fn example(cluster: fleetbox::Cluster) -> fleetbox::Result<()> {
    /// let address = cluster.vm("node-2")?.ip();
    /// assert!(cluster.vm("node-1")?.ssh(&format!("ping -c 1 {address}")).await?.success());
    /// # Ok(()) }
    /// ```
    pub fn ip(&self) -> Ipv4Addr {
        self.record.ip
    }

    /// The image that the VM was created from, as it was given then.
    pub fn image(&self) -> &str {
        &self.record.image.reference
    }

    /// This very VM, for its worker.
    fn target(&self) -> MemberId {
        MemberId::of(&self.dir)
    }

    /// The VM's directory.
    pub(crate) fn dir(&self) -> &VmDir {
        &self.dir
    }

    /// How long the steps of [`VmBuilder::start`](crate::VmBuilder::start) took; empty for a VM found by [`Vm::open`].
    ///
    /// ```no_run
    /// # async fn example(vm: fleetbox::Vm) -> fleetbox::Result<()> {
    /// if let Some(boot) = vm.timings().get(fleetbox::Phase::Boot) {
    ///     println!("booted in {boot:?}");
    /// }
    /// # Ok(()) }
    /// ```
    pub fn timings(&self) -> &Timings {
        &self.timings
    }

    /// True if the VM was already running when this handle was made.
    ///
    /// ```no_run
    /// # async fn example() -> fleetbox::Result<()> {
    /// let vm = fleetbox::Vm::builder("web").cpus(4).start().await?;
    /// if vm.was_running() {
    ///     println!("found it running");
    /// }
    /// # Ok(()) }
    /// ```
    pub fn was_running(&self) -> bool {
        self.was_running
    }
}
