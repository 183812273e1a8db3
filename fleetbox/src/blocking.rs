//! The library for code that is not asynchronous, such as a plain `#[test]`.
//!
//! ```no_run
//! use fleetbox::blocking::Vm;
//!
//! let vm = Vm::test().image("debian-12").start()?;
//! let out = vm.ssh("systemctl is-system-running --wait")?;
//! assert_eq!(out.stdout_text().trim(), "running");
//! # Ok::<(), fleetbox::Error>(())
//! ```
//!
//! [`Cluster`] is several VMs in one network.
//!
//! The work is done on threads of its own, so this can be called from anywhere, an asynchronous
//! function included (which it then blocks).

use std::future::Future;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

mod cluster;

pub use cluster::{Cluster, ClusterBuilder};

use tokio::runtime::Runtime;

use crate::budget::Budget;
use crate::files::{Copied, FileOptions};
use crate::images::Progress;
use crate::names::Reference;
use crate::{
    Error, ExtraDisk, Output, Published, Ready, Result, Size, Stopped, TimedEvent, Timings, VmInfo,
};

/// The runtime that does the work, for all of the process.
fn runtime() -> Result<&'static Runtime> {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    if let Some(runtime) = RUNTIME.get() {
        return Ok(runtime);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("fleetbox")
        .enable_all()
        .build()
        .map_err(Error::io("start threads"))?;
    // Of two threads that come here at once one's is used and the other's dropped.
    Ok(RUNTIME.get_or_init(|| runtime))
}

/// Runs `work` on the runtime's threads. Blocking on the runtime itself would panic in a thread
/// that belongs to another one.
fn run<T: Send + 'static>(work: impl Future<Output = Result<T>> + Send + 'static) -> Result<T> {
    let (send, receive) = std::sync::mpsc::channel();
    let task = runtime()?.spawn(async move {
        // The receiver waits below.
        let _ = send.send(work.await);
    });
    match receive.recv() {
        Ok(result) => result,
        Err(_) => {
            // The task panicked: its panic is the caller's.
            drop(task);
            Err(Error::ShuttingDown)
        }
    }
}

/// As [`crate::list`].
///
/// ```no_run
/// for vm in fleetbox::blocking::list(None)? {
///     println!("{} is {}", vm.name, vm.state);
/// }
/// # Ok::<(), fleetbox::Error>(())
/// ```
///
/// # Errors
/// As there.
pub fn list(home: Option<&Path>) -> Result<Vec<VmInfo>> {
    let home = home.map(Path::to_owned);
    run(async move { crate::list(home.as_deref()).await })
}

/// As [`crate::prune`].
///
/// ```no_run
/// println!("deleted: {:?}", fleetbox::blocking::prune(None)?);
/// # Ok::<(), fleetbox::Error>(())
/// ```
///
/// # Errors
/// As there.
pub fn prune(home: Option<&Path>) -> Result<Vec<String>> {
    let home = home.map(Path::to_owned);
    run(async move { crate::prune(home.as_deref()).await })
}

/// As [`crate::prune_only`].
///
/// ```no_run
/// let old = "shop/node-1".parse()?;
/// println!("deleted: {:?}", fleetbox::blocking::prune_only(None, &[old])?);
/// # Ok::<(), fleetbox::Error>(())
/// ```
///
/// # Errors
/// As there.
pub fn prune_only(home: Option<&Path>, vms: &[Reference]) -> Result<Vec<String>> {
    let (home, vms) = (home.map(Path::to_owned), vms.to_vec());
    run(async move { crate::prune_only(home.as_deref(), &vms).await })
}

/// As [`crate::remove`].
///
/// ```no_run
/// fleetbox::blocking::remove(None, "web")?;
/// # Ok::<(), fleetbox::Error>(())
/// ```
///
/// # Errors
/// As there.
pub fn remove(home: Option<&Path>, name: &str) -> Result<()> {
    let (home, name) = (home.map(Path::to_owned), name.to_owned());
    run(async move { crate::remove(home.as_deref(), &name).await })
}

/// As [`crate::Events`]; ends after the VM's end, or after an error.
///
/// ```no_run
/// let vm = fleetbox::blocking::Vm::open("web")?;
/// for event in vm.events()? {
///     println!("{:?}", event?.event);
/// }
/// # Ok::<(), fleetbox::Error>(())
/// ```
#[derive(Debug)]
pub struct Events(Option<crate::Events>);

impl Iterator for Events {
    type Item = Result<TimedEvent>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut events = self.0.take()?;
        let next = run(async move {
            let event = events.next().await?;
            Ok(event.map(|event| (events, event)))
        });
        match next {
            Ok(Some((events, event))) => {
                self.0 = Some(events);
                Some(Ok(event))
            }
            Ok(None) => None,
            Err(error) => Some(Err(error)),
        }
    }
}

/// As [`crate::VmBuilder`].
///
/// ```no_run
/// use fleetbox::Size;
/// use fleetbox::blocking::Vm;
///
/// let vm = Vm::builder("web").image("debian-12").cpus(2).memory(Size::gib(1)).start()?;
/// println!("{} is up after {:?}", vm.name(), vm.timings().total());
/// # Ok::<(), fleetbox::Error>(())
/// ```
#[derive(Debug, Clone)]
#[must_use = "a VM is started by `start`"]
pub struct VmBuilder(crate::VmBuilder);

impl From<crate::VmBuilder> for VmBuilder {
    fn from(builder: crate::VmBuilder) -> Self {
        Self(builder)
    }
}

impl From<VmBuilder> for crate::VmBuilder {
    fn from(builder: VmBuilder) -> Self {
        builder.0
    }
}

impl VmBuilder {
    /// As [`crate::VmBuilder::image`].
    pub fn image(self, image: impl Into<String>) -> Self {
        Self(self.0.image(image))
    }

    /// As [`crate::VmBuilder::cpus`].
    pub fn cpus(self, cpus: u32) -> Self {
        Self(self.0.cpus(cpus))
    }

    /// As [`crate::VmBuilder::memory`].
    pub fn memory(self, memory: Size) -> Self {
        Self(self.0.memory(memory))
    }

    /// As [`crate::VmBuilder::disk`].
    pub fn disk(self, disk: Size) -> Self {
        Self(self.0.disk(disk))
    }

    /// As [`crate::VmBuilder::user`].
    pub fn user(self, user: impl Into<String>) -> Self {
        Self(self.0.user(user))
    }

    /// As [`crate::VmBuilder::fixture`].
    pub fn fixture(self, host_dir: impl Into<PathBuf>, guest: impl Into<String>) -> Self {
        Self(self.0.fixture(host_dir, guest))
    }

    /// As [`crate::VmBuilder::network`].
    pub fn network(self, network: crate::Network) -> Self {
        Self(self.0.network(network))
    }

    /// As [`crate::VmBuilder::home`].
    pub fn home(self, home: impl Into<PathBuf>) -> Self {
        Self(self.0.home(home))
    }

    /// As [`crate::VmBuilder::boot_timeout`].
    pub fn boot_timeout(self, timeout: Duration) -> Self {
        Self(self.0.boot_timeout(timeout))
    }

    /// As [`crate::VmBuilder::progress`].
    pub fn progress(self, progress: impl Into<Arc<dyn Progress>>) -> Self {
        Self(self.0.progress(progress))
    }

    /// As [`crate::VmBuilder::memory_budget`].
    pub fn memory_budget(self, budget: Budget) -> Self {
        Self(self.0.memory_budget(budget))
    }

    /// As [`crate::VmBuilder::detached`].
    pub fn detached(self) -> Self {
        Self(self.0.detached())
    }

    /// As [`crate::VmBuilder::ephemeral`].
    pub fn ephemeral(self) -> Self {
        Self(self.0.ephemeral())
    }

    /// As [`crate::VmBuilder::user_data`].
    pub fn user_data(self, document: impl Into<String>) -> Self {
        Self(self.0.user_data(document))
    }

    /// As [`crate::VmBuilder::package`].
    pub fn package(self, name: impl Into<String>) -> Self {
        Self(self.0.package(name))
    }

    /// As [`crate::VmBuilder::run_command`].
    pub fn run_command(self, command: impl Into<String>) -> Self {
        Self(self.0.run_command(command))
    }

    /// As [`crate::VmBuilder::env`].
    pub fn env(self, name: impl Into<String>, value: impl Into<String>) -> Self {
        Self(self.0.env(name, value))
    }

    /// As [`crate::VmBuilder::ssh_key`].
    pub fn ssh_key(self, key: impl Into<String>) -> Self {
        Self(self.0.ssh_key(key))
    }

    /// As [`crate::VmBuilder::extra_disk`].
    pub fn extra_disk(self, disk: ExtraDisk) -> Self {
        Self(self.0.extra_disk(disk))
    }

    /// As [`crate::VmBuilder::wait_for`].
    pub fn wait_for(self, ready: Ready) -> Self {
        Self(self.0.wait_for(ready))
    }

    /// As [`crate::VmBuilder::wait_for_within`].
    pub fn wait_for_within(self, ready: Ready, deadline: Duration) -> Self {
        Self(self.0.wait_for_within(ready, deadline))
    }

    /// As [`crate::VmBuilder::create`].
    ///
    /// # Errors
    /// As there.
    pub fn create(self) -> Result<bool> {
        run(self.0.create())
    }

    /// As [`crate::VmBuilder::start`].
    ///
    /// # Errors
    /// As there.
    pub fn start(self) -> Result<Vm> {
        Ok(Vm(Arc::new(run(self.0.start())?)))
    }

    /// As [`crate::VmBuilder::restart`].
    ///
    /// # Errors
    /// As there.
    pub fn restart(self, deadline: Duration) -> Result<Vm> {
        Ok(Vm(Arc::new(run(self.0.restart(deadline))?)))
    }
}

/// As [`crate::Vm`], with methods that block.
///
/// ```no_run
/// use fleetbox::blocking::Vm;
///
/// let vm = Vm::builder("web").start()?;
/// vm.write("greeting", "hello")?;
/// assert_eq!(vm.ssh("cat greeting")?.stdout_text(), "hello");
/// let address = vm.forward(80)?;
/// vm.restart()?;
/// vm.stop()?;
/// vm.destroy()?;
/// # Ok::<(), fleetbox::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Vm(Arc<crate::Vm>);

impl From<crate::Vm> for Vm {
    fn from(vm: crate::Vm) -> Self {
        Self(Arc::new(vm))
    }
}

impl Vm {
    /// As [`crate::Vm::builder`].
    pub fn builder(name: impl Into<String>) -> VmBuilder {
        VmBuilder(crate::Vm::builder(name))
    }

    /// As [`crate::Vm::test`].
    pub fn test() -> VmBuilder {
        VmBuilder(crate::Vm::test())
    }

    /// As [`crate::Vm::open`].
    ///
    /// # Errors
    /// As there.
    pub fn open(name: &str) -> Result<Self> {
        let name = name.to_owned();
        let vm = run(async move { crate::Vm::open(&name).await })?;
        Ok(Self(Arc::new(vm)))
    }

    /// As [`crate::Vm::name`].
    pub fn name(&self) -> &str {
        self.0.name()
    }

    /// As [`crate::Vm::ip`].
    pub fn ip(&self) -> Ipv4Addr {
        self.0.ip()
    }

    /// As [`crate::Vm::with_progress`].
    #[must_use]
    pub fn with_progress(self, progress: impl Into<Arc<dyn Progress>>) -> Self {
        Self(Arc::new(self.0.another().with_progress(progress)))
    }

    /// As [`crate::Vm::timings`].
    pub fn timings(&self) -> &Timings {
        self.0.timings()
    }

    /// As [`crate::Vm::ssh`].
    ///
    /// # Errors
    /// As there.
    pub fn ssh(&self, command: &str) -> Result<Output> {
        let (vm, command) = (Arc::clone(&self.0), command.to_owned());
        run(async move { vm.ssh(&command).await })
    }

    /// Runs a shell command in the guest with `stdin` as its standard input.
    ///
    /// # Errors
    /// As [`crate::Vm::ssh`].
    pub fn ssh_with_input(&self, command: &str, stdin: &[u8]) -> Result<Output> {
        let (vm, command, stdin) = (Arc::clone(&self.0), command.to_owned(), stdin.to_vec());
        run(async move { vm.ssh_with_input(&command, &stdin).await })
    }

    /// As [`crate::Vm::connect`], as a stream for blocking reads and writes.
    ///
    /// # Errors
    /// As there.
    pub fn connect(&self, port: u16) -> Result<UnixStream> {
        let vm = Arc::clone(&self.0);
        run(async move {
            let stream = vm.connect(port).await?.into_std();
            stream.map_err(Error::io("make a stream a blocking one"))
        })
    }

    /// As [`crate::Vm::publish`].
    ///
    /// # Errors
    /// As there.
    pub fn publish(&self, host_port: u16, guest_port: u16) -> Result<SocketAddr> {
        let vm = Arc::clone(&self.0);
        run(async move { vm.publish(host_port, guest_port).await })
    }

    /// As [`crate::Vm::published`].
    ///
    /// # Errors
    /// As there.
    pub fn published(&self) -> Result<Vec<Published>> {
        let vm = Arc::clone(&self.0);
        run(async move { vm.published().await })
    }

    /// As [`crate::Vm::forward`].
    ///
    /// # Errors
    /// As there.
    pub fn forward(&self, guest_port: u16) -> Result<SocketAddr> {
        let vm = Arc::clone(&self.0);
        run(async move { vm.forward(guest_port).await })
    }

    /// As [`crate::Vm::wait_ready`].
    ///
    /// # Errors
    /// As there.
    pub fn wait_ready(&self, timeout: Duration) -> Result<()> {
        let vm = Arc::clone(&self.0);
        run(async move { vm.wait_ready(timeout).await })
    }

    /// As [`crate::Vm::copy_to`].
    ///
    /// # Errors
    /// As there.
    pub fn copy_to(&self, host: impl AsRef<Path>, guest: &str) -> Result<Copied> {
        self.copy_to_with(host, guest, &FileOptions::new())
    }

    /// As [`crate::Vm::copy_to_with`].
    ///
    /// # Errors
    /// As there.
    pub fn copy_to_with(
        &self,
        host: impl AsRef<Path>,
        guest: &str,
        options: &FileOptions,
    ) -> Result<Copied> {
        let (vm, host) = (Arc::clone(&self.0), host.as_ref().to_owned());
        let (guest, options) = (guest.to_owned(), options.clone());
        run(async move { vm.copy_to_with(host, &guest, &options).await })
    }

    /// As [`crate::Vm::copy_from`].
    ///
    /// # Errors
    /// As there.
    pub fn copy_from(&self, guest: &str, host: impl AsRef<Path>) -> Result<Copied> {
        self.copy_from_with(guest, host, &FileOptions::new())
    }

    /// As [`crate::Vm::copy_from_with`].
    ///
    /// # Errors
    /// As there.
    pub fn copy_from_with(
        &self,
        guest: &str,
        host: impl AsRef<Path>,
        options: &FileOptions,
    ) -> Result<Copied> {
        let (vm, host) = (Arc::clone(&self.0), host.as_ref().to_owned());
        let (guest, options) = (guest.to_owned(), options.clone());
        run(async move { vm.copy_from_with(&guest, host, &options).await })
    }

    /// As [`crate::Vm::write`].
    ///
    /// # Errors
    /// As there.
    pub fn write(&self, path: &str, bytes: impl AsRef<[u8]>) -> Result<()> {
        self.write_with(path, bytes, &FileOptions::new())
    }

    /// As [`crate::Vm::write_with`].
    ///
    /// # Errors
    /// As there.
    pub fn write_with(
        &self,
        path: &str,
        bytes: impl AsRef<[u8]>,
        options: &FileOptions,
    ) -> Result<()> {
        let (vm, path) = (Arc::clone(&self.0), path.to_owned());
        let (bytes, options) = (bytes.as_ref().to_vec(), options.clone());
        run(async move { vm.write_with(&path, bytes, &options).await })
    }

    /// As [`crate::Vm::read`].
    ///
    /// # Errors
    /// As there.
    pub fn read(&self, path: &str) -> Result<Vec<u8>> {
        self.read_with(path, &FileOptions::new())
    }

    /// As [`crate::Vm::read_with`].
    ///
    /// # Errors
    /// As there.
    pub fn read_with(&self, path: &str, options: &FileOptions) -> Result<Vec<u8>> {
        let (vm, path, options) = (Arc::clone(&self.0), path.to_owned(), options.clone());
        run(async move { vm.read_with(&path, &options).await })
    }

    /// As [`crate::Vm::console`], as a stream for blocking reads and writes.
    ///
    /// # Errors
    /// As there.
    pub fn console(&self) -> Result<UnixStream> {
        let vm = Arc::clone(&self.0);
        run(async move {
            let stream = vm.console().await?.into_std();
            stream.map_err(Error::io("make a stream a blocking one"))
        })
    }

    /// As [`crate::Vm::events`], as an iterator that waits for each.
    ///
    /// # Errors
    /// As there.
    pub fn events(&self) -> Result<Events> {
        let vm = Arc::clone(&self.0);
        run(async move { vm.events().await }).map(|events| Events(Some(events)))
    }

    /// As [`crate::Vm::wait_for`].
    ///
    /// # Errors
    /// As there.
    pub fn wait_for(&self, ready: Ready, timeout: Duration) -> Result<()> {
        let vm = Arc::clone(&self.0);
        run(async move { vm.wait_for(ready, timeout).await })
    }

    /// As [`crate::Vm::console_tail`].
    ///
    /// # Errors
    /// As there.
    pub fn console_tail(&self) -> Result<String> {
        let vm = Arc::clone(&self.0);
        run(async move { vm.console_tail().await })
    }

    /// As [`crate::Vm::stop`].
    ///
    /// # Errors
    /// As there.
    pub fn stop(&self) -> Result<Stopped> {
        let vm = Arc::clone(&self.0);
        run(async move { vm.stop().await })
    }

    /// As [`crate::Vm::stop_within`].
    ///
    /// # Errors
    /// As there.
    pub fn stop_within(&self, deadline: Duration) -> Result<Stopped> {
        let vm = Arc::clone(&self.0);
        run(async move { vm.stop_within(deadline).await })
    }

    /// As [`crate::Vm::kill`].
    ///
    /// # Errors
    /// As there.
    pub fn kill(&self) -> Result<()> {
        let vm = Arc::clone(&self.0);
        run(async move { vm.kill().await })
    }

    /// As [`crate::Vm::start`].
    ///
    /// # Errors
    /// As there.
    pub fn start(&self) -> Result<()> {
        let vm = Arc::clone(&self.0);
        run(async move { vm.start().await })
    }

    /// As [`crate::Vm::restart`].
    ///
    /// # Errors
    /// As there.
    pub fn restart(&self) -> Result<()> {
        let vm = Arc::clone(&self.0);
        run(async move { vm.restart().await })
    }

    /// As [`crate::Vm::wait`].
    ///
    /// # Errors
    /// As there.
    pub fn wait(&self) -> Result<()> {
        let vm = Arc::clone(&self.0);
        run(async move { vm.wait().await })
    }

    /// As [`crate::Vm::destroy`].
    ///
    /// # Errors
    /// As there.
    pub fn destroy(self) -> Result<()> {
        run(async move { self.0.remove().await })
    }
}
