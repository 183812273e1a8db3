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

use self::attach::Attached;
use self::fleet::Fleet;
use crate::error::{Error, Result};
use crate::host::budget::Budget;
use crate::model::defaults::DEFAULT_BOOT_TIMEOUT;
use crate::model::keys::{Keypair, PublicKey};
use crate::model::names::{Name, Reference};
use crate::model::ready::Awaited;
use crate::model::timing::Timings;
use crate::process::{Backend, Client, Lifeline};
use crate::progress::{Progress, Silent};
use crate::ssh::{self, Target};
use crate::store::ephemeral;
use crate::store::{Lock, Store, VmDir, VmRecord};
use crate::util::sync::lock;
use crate::util::task::blocking;

const SSH_PORT: u16 = 22;

/// A virtual machine that runs.
///
/// A VM of [`Vm::test`] is destroyed when this is dropped, or when the process ends in whatever
/// way. One of [`Vm::builder`] is only powered off then, without notice to the guest (call
/// [`Vm::stop`] first for an orderly shutdown); its disk stays and it can be started again. One
/// that is [detached](crate::VmBuilder::detached), or that was found running, runs on.
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
    // Says that its VM is in use, running or not.
    share: Arc<Lock>,
    // Closing it tells the worker to end; that needs no runtime, so it works in any drop.
    lifeline: StdMutex<Option<Arc<Lifeline>>>,
    session: Mutex<Option<Arc<ssh::Client>>>,
    backend: Backend,
    boot_timeout: Duration,
    budget: Option<Budget>,
    progress: Arc<dyn Progress>,
    awaited: Vec<Awaited>,
    ignored: Vec<&'static str>,
    was_running: bool,
    timings: Timings,
}

impl Vm {
    /// The running VM of that name, or `CLUSTER/NAME`, started by any process. Dropping the handle
    /// changes nothing.
    ///
    /// ```no_run
    /// # async fn example() -> fleetbox::Result<()> {
    /// let vm = fleetbox::Vm::open("web").await?;
    /// println!("{}", vm.ssh("uptime").await?.stdout_text());
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As [`Fleet::open`].
    pub async fn open(name: &str) -> Result<Self> {
        Fleet::new().open(name).await
    }

    /// A VM that exists, running or not.
    pub(crate) fn found(store: &Store, dir: VmDir) -> Result<Self> {
        let attached = Attached {
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
        attached: &Attached,
    ) -> Result<Self> {
        let share = store.cluster(dir.cluster()).share()?;
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
            awaited: Vec::new(),
            ignored: Vec::new(),
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

    /// A second handle on the same VM, which keeps it running as this one does.
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
            awaited: self.awaited.clone(),
            ignored: self.ignored.clone(),
            was_running: self.was_running,
            timings: self.timings.clone(),
        }
    }

    /// Makes a VM that runs, and exists, only as long as its owner one that does so without.
    pub(crate) async fn let_go(&self) -> Result<()> {
        let dir = self.dir.clone();
        blocking(move || ephemeral::unmark_ephemeral(&dir)).await?;
        let lifeline = lock(&self.lifeline).clone();
        match lifeline {
            Some(lifeline) => lifeline.let_go().map_err(Error::io("keep the VM running")),
            None => Ok(()),
        }
    }

    /// True if its worker is this process's and ends with its last handle.
    pub(crate) fn is_held(&self) -> bool {
        lock(&self.lifeline).is_some()
    }

    /// What the VM is called among those of all clusters.
    pub fn reference(&self) -> Reference {
        self.dir.reference()
    }

    /// The state directory.
    pub(crate) fn home(&self) -> &Path {
        self.store.home()
    }

    /// The file that the console is kept in.
    pub(crate) fn console_log(&self) -> PathBuf {
        self.dir.paths().console_log()
    }

    /// True if there is a guest to talk to.
    pub(crate) fn has_guest(&self) -> bool {
        self.backend.has_guest()
    }

    /// What is waited for when it is started, rather than SSH.
    pub(crate) fn awaiting(mut self, awaited: Vec<Awaited>) -> Self {
        self.awaited = awaited;
        self
    }

    /// Reports the wait for memory, and the phases of stopping and starting the VM again. The builder's
    /// setting applies until then; for a VM found by [`Vm::open`] nothing is reported.
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

    pub(crate) fn ignoring(mut self, ignored: Vec<&'static str>) -> Self {
        self.ignored = ignored;
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

    /// The cluster that the VM is a member of; a VM that was made alone has one of its own.
    pub fn cluster(&self) -> &str {
        self.dir.cluster().as_str()
    }

    /// The guest's address in its cluster's network, which it keeps for good.
    ///
    /// Other members reach it by that. This host does with
    /// [`Network::Bridge`](crate::Network::Bridge) only: [`Network::User`](crate::Network::User) exists
    /// within the worker process, and there [`Vm::connect`] and [`Vm::forward`] reach the guest.
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

    /// The image that the VM was made from, as it was named then.
    pub fn image(&self) -> &str {
        &self.record.image.reference
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

    /// True if the VM ran already when this handle was made.
    ///
    /// ```no_run
    /// # async fn example() -> fleetbox::Result<()> {
    /// let vm = fleetbox::Vm::builder("web").cpus(4).start().await?;
    /// if vm.was_running() {
    ///     println!("found it running");
    /// }
    /// for option in vm.ignored_options() {
    ///     println!("{option} stays as it was when the VM was created");
    /// }
    /// # Ok(()) }
    /// ```
    pub fn was_running(&self) -> bool {
        self.was_running
    }

    /// Options given to [`VmBuilder::start`](crate::VmBuilder::start) that differ from what the VM, which existed, was
    /// created with. They were ignored.
    pub fn ignored_options(&self) -> &[&'static str] {
        &self.ignored
    }
}
