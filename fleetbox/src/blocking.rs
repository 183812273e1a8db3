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
//! [`Vm`], [`Cluster`], their builders and the functions of the crate's root on VMs have all that the
//! asynchronous ones have. What is less often used in a test has no façade of its own: images, work
//! trees, what a guest listens on and uses, the proxy. [`block_on`] runs those, on the VM of
//! [`Vm::as_async`].
//!
//! The work is done on threads of its own, so this can be called from anywhere, an asynchronous
//! function included (which it then blocks).

use std::future::Future;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, resume_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

mod child;
mod cluster;

pub use child::{Child, Stderr, Stdin, Stdout};
pub use cluster::{Cluster, ClusterBuilder};

use futures::FutureExt as _;
use tokio::runtime::Runtime;

use crate::budget::Budget;
use crate::files::{Copied, FileOptions};
use crate::images::Progress;
use crate::names::Reference;
use crate::ssh::PtyRequest;
use crate::store::{VmDir, VmRecord};
use crate::{
    Error, ExtraDisk, Output, Published, Ready, Resize, Result, Size, Stopped, TimedEvent, Timings,
    VmInfo,
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
    runtime()?.spawn(async move {
        // The receiver waits below.
        let _ = send.send(AssertUnwindSafe(work).catch_unwind().await);
    });
    match receive.recv() {
        Ok(Ok(result)) => result,
        // The work panicked: its panic is the caller's.
        Ok(Err(panic)) => resume_unwind(panic),
        Err(_) => Err(Error::ShuttingDown),
    }
}

/// Runs something asynchronous of this crate, for what has no method in here, and waits for its end.
///
/// ```no_run
/// use fleetbox::blocking::{Vm, block_on};
/// use fleetbox::guest;
///
/// let vm = Vm::open("web")?;
/// let inner = vm.as_async();
/// let stats = block_on(async move { guest::stats(&inner).await })?;
/// println!("{:.0} % of {} CPUs", stats.cpu * 100.0, stats.cpus);
/// # Ok::<(), fleetbox::Error>(())
/// ```
///
/// # Errors
/// Those of `work`.
///
/// # Panics
/// If `work` does.
pub fn block_on<T, E>(work: impl Future<Output = Result<T, E>> + Send + 'static) -> Result<T>
where
    T: Send + 'static,
    E: Into<Error>,
{
    run(async move { work.await.map_err(Into::into) })
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

/// As [`crate::find`].
///
/// ```no_run
/// let vm = fleetbox::blocking::find(None, "web")?;
/// println!("{} has {} of memory", vm.reference(), vm.record()?.memory);
/// # Ok::<(), fleetbox::Error>(())
/// ```
///
/// # Errors
/// As there.
pub fn find(home: Option<&Path>, name: &str) -> Result<VmDir> {
    let (home, name) = (home.map(Path::to_owned), name.to_owned());
    run(async move { crate::find(home.as_deref(), &name).await })
}

/// As [`crate::stop`].
///
/// ```no_run
/// use fleetbox::{STOP_DEADLINE, Stopped};
///
/// match fleetbox::blocking::stop(None, "web", STOP_DEADLINE)? {
///     Some(Stopped::PoweredOff) => println!("stopped"),
///     Some(Stopped::Forced) => println!("killed"),
///     None => println!("it did not run"),
/// }
/// # Ok::<(), fleetbox::Error>(())
/// ```
///
/// # Errors
/// As there.
pub fn stop(home: Option<&Path>, name: &str, deadline: Duration) -> Result<Option<Stopped>> {
    let (home, name) = (home.map(Path::to_owned), name.to_owned());
    run(async move { crate::stop(home.as_deref(), &name, deadline).await })
}

/// As [`crate::resize()`].
///
/// ```no_run
/// use fleetbox::{Resize, blocking};
///
/// let change = Resize { cpus: Some(4), ..Resize::default() };
/// assert_eq!(blocking::resize(None, "web", change)?.cpus, 4);
/// # Ok::<(), fleetbox::Error>(())
/// ```
///
/// # Errors
/// As there.
pub fn resize(home: Option<&Path>, name: &str, change: Resize) -> Result<VmRecord> {
    let (home, name) = (home.map(Path::to_owned), name.to_owned());
    run(async move { crate::resize(home.as_deref(), &name, change).await })
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
    ///
    /// ```
    /// # use fleetbox::blocking::Vm;
    /// let vm = Vm::test().image("ubuntu-24.04");
    /// ```
    pub fn image(self, image: impl Into<String>) -> Self {
        Self(self.0.image(image))
    }

    /// As [`crate::VmBuilder::cpus`].
    ///
    /// ```
    /// # use fleetbox::blocking::Vm;
    /// let vm = Vm::test().cpus(4);
    /// ```
    pub fn cpus(self, cpus: u32) -> Self {
        Self(self.0.cpus(cpus))
    }

    /// As [`crate::VmBuilder::memory`].
    ///
    /// ```
    /// # use fleetbox::{Size, blocking::Vm};
    /// let vm = Vm::test().memory(Size::gib(4));
    /// ```
    pub fn memory(self, memory: Size) -> Self {
        Self(self.0.memory(memory))
    }

    /// As [`crate::VmBuilder::disk`].
    ///
    /// ```
    /// # use fleetbox::{Size, blocking::Vm};
    /// let vm = Vm::test().disk(Size::gib(40));
    /// ```
    pub fn disk(self, disk: Size) -> Self {
        Self(self.0.disk(disk))
    }

    /// As [`crate::VmBuilder::user`].
    ///
    /// ```no_run
    /// # use fleetbox::blocking::Vm;
    /// let vm = Vm::test().user("admin").start()?;
    /// assert_eq!(vm.ssh("whoami")?.stdout_text(), "admin\n");
    /// # Ok::<(), fleetbox::Error>(())
    /// ```
    pub fn user(self, user: impl Into<String>) -> Self {
        Self(self.0.user(user))
    }

    /// As [`crate::VmBuilder::fixture`].
    ///
    /// ```no_run
    /// # use fleetbox::blocking::Vm;
    /// let vm = Vm::test().fixture("tests/data", "/work").start()?;
    /// assert!(vm.ssh("ls /work/input.json")?.success());
    /// # Ok::<(), fleetbox::Error>(())
    /// ```
    pub fn fixture(self, host_dir: impl Into<PathBuf>, guest: impl Into<String>) -> Self {
        Self(self.0.fixture(host_dir, guest))
    }

    /// As [`crate::VmBuilder::network`].
    ///
    /// ```no_run
    /// use fleetbox::{Network, blocking::Vm};
    ///
    /// let vm = Vm::builder("web").network(Network::Bridge).start()?; // needs CAP_NET_ADMIN
    /// let stream = std::net::TcpStream::connect((vm.ip(), 22));
    /// # Ok::<(), fleetbox::Error>(())
    /// ```
    pub fn network(self, network: crate::Network) -> Self {
        Self(self.0.network(network))
    }

    /// As [`crate::VmBuilder::home`].
    ///
    /// ```
    /// # use fleetbox::blocking::Vm;
    /// let vm = Vm::builder("web").home("/srv/vms");
    /// ```
    pub fn home(self, home: impl Into<PathBuf>) -> Self {
        Self(self.0.home(home))
    }

    /// As [`crate::VmBuilder::boot_timeout`].
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use fleetbox::blocking::Vm;
    /// let vm = Vm::test().boot_timeout(Duration::from_secs(60));
    /// ```
    pub fn boot_timeout(self, timeout: Duration) -> Self {
        Self(self.0.boot_timeout(timeout))
    }

    /// As [`crate::VmBuilder::progress`].
    ///
    /// ```
    /// use fleetbox::{blocking::Vm, images::progress};
    ///
    /// let vm = Vm::test().progress(progress::stderr()); // a download is seen
    /// ```
    pub fn progress(self, progress: impl Into<Arc<dyn Progress>>) -> Self {
        Self(self.0.progress(progress))
    }

    /// As [`crate::VmBuilder::memory_budget`].
    ///
    /// ```
    /// use fleetbox::{Size, blocking::Vm, budget::Budget};
    ///
    /// let vm = Vm::test().memory_budget(Budget::of(Size::gib(8)));
    /// ```
    pub fn memory_budget(self, budget: Budget) -> Self {
        Self(self.0.memory_budget(budget))
    }

    /// As [`crate::VmBuilder::detached`].
    ///
    /// ```no_run
    /// # use fleetbox::blocking::Vm;
    /// Vm::builder("web").detached().start()?; // and this program may end
    /// # Ok::<(), fleetbox::Error>(())
    /// ```
    pub fn detached(self) -> Self {
        Self(self.0.detached())
    }

    /// As [`crate::VmBuilder::ephemeral`].
    ///
    /// ```no_run
    /// # use fleetbox::blocking::Vm;
    /// let vm = Vm::builder("scratch").ephemeral().start()?;
    /// drop(vm); // nothing is left of it
    /// # Ok::<(), fleetbox::Error>(())
    /// ```
    pub fn ephemeral(self) -> Self {
        Self(self.0.ephemeral())
    }

    /// As [`crate::VmBuilder::create_new`].
    ///
    /// ```no_run
    /// # use fleetbox::blocking::Vm;
    /// if let Err(error) = Vm::builder("scratch").create_new().start() {
    ///     eprintln!("{error}"); // somebody has one of this name
    /// }
    /// ```
    pub fn create_new(self) -> Self {
        Self(self.0.create_new())
    }

    /// As [`crate::VmBuilder::user_data`].
    ///
    /// ```
    /// # use fleetbox::blocking::Vm;
    /// let vm = Vm::test().user_data("timezone: Europe/Berlin\n");
    /// ```
    pub fn user_data(self, document: impl Into<String>) -> Self {
        Self(self.0.user_data(document))
    }

    /// As [`crate::VmBuilder::package`].
    ///
    /// ```no_run
    /// # use fleetbox::blocking::Vm;
    /// let vm = Vm::test().package("jq").start()?;
    /// assert!(vm.ssh("echo '{}' | jq .")?.success());
    /// # Ok::<(), fleetbox::Error>(())
    /// ```
    pub fn package(self, name: impl Into<String>) -> Self {
        Self(self.0.package(name))
    }

    /// As [`crate::VmBuilder::run_command`].
    ///
    /// ```
    /// # use fleetbox::blocking::Vm;
    /// let vm = Vm::test().run_command("sysctl -w vm.overcommit_memory=1");
    /// ```
    pub fn run_command(self, command: impl Into<String>) -> Self {
        Self(self.0.run_command(command))
    }

    /// As [`crate::VmBuilder::env`].
    ///
    /// ```no_run
    /// # use fleetbox::blocking::Vm;
    /// let vm = Vm::test().env("STAGE", "test").start()?;
    /// assert_eq!(vm.ssh("echo $STAGE")?.stdout_text(), "test\n");
    /// # Ok::<(), fleetbox::Error>(())
    /// ```
    pub fn env(self, name: impl Into<String>, value: impl Into<String>) -> Self {
        Self(self.0.env(name, value))
    }

    /// As [`crate::VmBuilder::ssh_key`].
    ///
    /// ```
    /// # use fleetbox::blocking::Vm;
    /// let key = std::fs::read_to_string("/home/me/.ssh/id_ed25519.pub").unwrap_or_default();
    /// let vm = Vm::test().ssh_key(key); // plain `ssh` may log in too
    /// ```
    pub fn ssh_key(self, key: impl Into<String>) -> Self {
        Self(self.0.ssh_key(key))
    }

    /// As [`crate::VmBuilder::extra_disk`].
    ///
    /// ```no_run
    /// use fleetbox::{ExtraDisk, Size, blocking::Vm};
    ///
    /// let vm = Vm::test().extra_disk(ExtraDisk::empty(Size::gib(1))).start()?;
    /// assert!(vm.ssh("sudo mkfs.ext4 /dev/disk/by-id/virtio-extra-1")?.success());
    /// # Ok::<(), fleetbox::Error>(())
    /// ```
    pub fn extra_disk(self, disk: ExtraDisk) -> Self {
        Self(self.0.extra_disk(disk))
    }

    /// As [`crate::VmBuilder::wait_for`].
    ///
    /// ```no_run
    /// use fleetbox::{Ready, blocking::Vm};
    ///
    /// let vm = Vm::test().package("nginx").wait_for(Ready::Port(80)).start()?;
    /// # Ok::<(), fleetbox::Error>(())
    /// ```
    pub fn wait_for(self, ready: Ready) -> Self {
        Self(self.0.wait_for(ready))
    }

    /// As [`crate::VmBuilder::wait_for_within`].
    ///
    /// ```
    /// # use std::time::Duration;
    /// use fleetbox::{Ready, blocking::Vm};
    ///
    /// let vm = Vm::test().wait_for_within(Ready::CloudInit, Duration::from_secs(600));
    /// ```
    pub fn wait_for_within(self, ready: Ready, deadline: Duration) -> Self {
        Self(self.0.wait_for_within(ready, deadline))
    }

    /// As [`crate::VmBuilder::create`].
    ///
    /// ```no_run
    /// # use fleetbox::blocking::Vm;
    /// Vm::builder("web").image("debian-12").create()?; // `fleetbox up web` boots it
    /// # Ok::<(), fleetbox::Error>(())
    /// ```
    ///
    /// # Errors
    /// As there.
    pub fn create(self) -> Result<bool> {
        run(self.0.create())
    }

    /// As [`crate::VmBuilder::start`].
    ///
    /// ```no_run
    /// # use fleetbox::blocking::Vm;
    /// let vm = Vm::builder("web").start()?;
    /// println!("{} is up: {}", vm.name(), vm.timings());
    /// # Ok::<(), fleetbox::Error>(())
    /// ```
    ///
    /// # Errors
    /// As there.
    pub fn start(self) -> Result<Vm> {
        Ok(Vm(Arc::new(run(self.0.start())?)))
    }

    /// As [`crate::VmBuilder::restart`].
    ///
    /// ```no_run
    /// use fleetbox::{STOP_DEADLINE, blocking::Vm};
    ///
    /// let vm = Vm::builder("web").detached().restart(STOP_DEADLINE)?;
    /// # Ok::<(), fleetbox::Error>(())
    /// ```
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
    ///
    /// ```no_run
    /// # use fleetbox::blocking::Vm;
    /// let vm = Vm::builder("web").start()?;
    /// vm.stop()?; // its disk stays, for the next `Vm::builder("web")`
    /// # Ok::<(), fleetbox::Error>(())
    /// ```
    pub fn builder(name: impl Into<String>) -> VmBuilder {
        VmBuilder(crate::Vm::builder(name))
    }

    /// As [`crate::Vm::test`].
    ///
    /// ```no_run
    /// # use fleetbox::blocking::Vm;
    /// let vm = Vm::test().start()?;
    /// drop(vm); // it is gone, with its disk
    /// # Ok::<(), fleetbox::Error>(())
    /// ```
    pub fn test() -> VmBuilder {
        VmBuilder(crate::Vm::test())
    }

    /// As [`crate::Vm::open`].
    ///
    /// ```no_run
    /// # use fleetbox::blocking::Vm;
    /// println!("{}", Vm::open("web")?.ssh("uptime")?.stdout_text());
    /// # Ok::<(), fleetbox::Error>(())
    /// ```
    ///
    /// # Errors
    /// As there.
    pub fn open(name: &str) -> Result<Self> {
        Self::open_in(None, name)
    }

    /// As [`crate::Vm::open_in`].
    ///
    /// ```no_run
    /// # use fleetbox::blocking::Vm;
    /// let vm = Vm::open_in(Some("/srv/vms".as_ref()), "web")?;
    /// # Ok::<(), fleetbox::Error>(())
    /// ```
    ///
    /// # Errors
    /// As there.
    pub fn open_in(home: Option<&Path>, name: &str) -> Result<Self> {
        let (home, name) = (home.map(Path::to_owned), name.to_owned());
        let vm = run(async move { crate::Vm::open_in(home.as_deref(), &name).await })?;
        Ok(Self(Arc::new(vm)))
    }

    /// The same VM for asynchronous code, such as that of [`block_on`].
    ///
    /// ```no_run
    /// # fn example(vm: fleetbox::blocking::Vm) -> fleetbox::Result<()> {
    /// use fleetbox::{blocking::block_on, guest};
    ///
    /// let inner = vm.as_async();
    /// for listener in block_on(async move { guest::ports(&inner).await })? {
    ///     println!("{listener:?}");
    /// }
    /// # Ok(()) }
    /// ```
    pub fn as_async(&self) -> Arc<crate::Vm> {
        Arc::clone(&self.0)
    }

    /// As [`crate::Vm::reference`].
    ///
    /// ```no_run
    /// # fn example(vm: fleetbox::blocking::Vm) -> fleetbox::Result<()> {
    /// println!("fleetbox ssh {}", vm.reference()); // CLUSTER/NAME where it has to be
    /// # Ok(()) }
    /// ```
    pub fn reference(&self) -> Reference {
        self.0.reference()
    }

    /// As [`crate::Vm::name`].
    ///
    /// ```no_run
    /// # fn example(vm: fleetbox::blocking::Vm) -> fleetbox::Result<()> {
    /// assert_eq!(vm.ssh("hostname")?.stdout_text().trim(), vm.name());
    /// # Ok(()) }
    /// ```
    pub fn name(&self) -> &str {
        self.0.name()
    }

    /// As [`crate::Vm::cluster`].
    ///
    /// ```no_run
    /// # fn example(vm: fleetbox::blocking::Vm) -> fleetbox::Result<()> {
    /// println!("{} of {}", vm.name(), vm.cluster());
    /// # Ok(()) }
    /// ```
    pub fn cluster(&self) -> &str {
        self.0.cluster()
    }

    /// As [`crate::Vm::ip`].
    ///
    /// ```no_run
    /// # fn example(cluster: fleetbox::blocking::Cluster) -> fleetbox::Result<()> {
    /// let address = cluster.vm("node-2")?.ip();
    /// assert!(cluster.vm("node-1")?.ssh(&format!("ping -c 1 {address}"))?.success());
    /// # Ok(()) }
    /// ```
    pub fn ip(&self) -> Ipv4Addr {
        self.0.ip()
    }

    /// As [`crate::Vm::with_progress`].
    ///
    /// ```no_run
    /// use fleetbox::{blocking::Vm, images::progress};
    ///
    /// let vm = Vm::open("web")?.with_progress(progress::stderr());
    /// vm.restart()?; // says so if it has to wait for memory
    /// # Ok::<(), fleetbox::Error>(())
    /// ```
    #[must_use]
    pub fn with_progress(self, progress: impl Into<Arc<dyn Progress>>) -> Self {
        Self(Arc::new(self.0.another().with_progress(progress)))
    }

    /// As [`crate::Vm::image`].
    ///
    /// ```no_run
    /// # fn example(vm: fleetbox::blocking::Vm) -> fleetbox::Result<()> {
    /// println!("{} was made from {}", vm.name(), vm.image());
    /// # Ok(()) }
    /// ```
    pub fn image(&self) -> &str {
        self.0.image()
    }

    /// As [`crate::Vm::was_running`].
    ///
    /// ```no_run
    /// # use fleetbox::blocking::Vm;
    /// if Vm::builder("web").start()?.was_running() {
    ///     println!("found it running");
    /// }
    /// # Ok::<(), fleetbox::Error>(())
    /// ```
    pub fn was_running(&self) -> bool {
        self.0.was_running()
    }

    /// As [`crate::Vm::ignored_options`].
    ///
    /// ```no_run
    /// # use fleetbox::blocking::Vm;
    /// let vm = Vm::builder("web").cpus(4).start()?;
    /// assert!(vm.ignored_options().is_empty(), "it exists, with another number of CPUs");
    /// # Ok::<(), fleetbox::Error>(())
    /// ```
    pub fn ignored_options(&self) -> &[&'static str] {
        self.0.ignored_options()
    }

    /// As [`crate::Vm::timings`].
    ///
    /// ```no_run
    /// # fn example(vm: fleetbox::blocking::Vm) -> fleetbox::Result<()> {
    /// println!("booted in {:?}", vm.timings().get(fleetbox::Phase::Boot));
    /// # Ok(()) }
    /// ```
    pub fn timings(&self) -> &Timings {
        self.0.timings()
    }

    /// As [`crate::Vm::ssh`].
    ///
    /// ```no_run
    /// # fn example(vm: fleetbox::blocking::Vm) -> fleetbox::Result<()> {
    /// let out = vm.ssh("systemctl is-active cron")?;
    /// assert_eq!(out.stdout_text().trim(), "active", "{}", out.stderr_text());
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As there.
    pub fn ssh(&self, command: &str) -> Result<Output> {
        let (vm, command) = (Arc::clone(&self.0), command.to_owned());
        run(async move { vm.ssh(&command).await })
    }

    /// As [`crate::Vm::ssh_spawn`].
    ///
    /// ```no_run
    /// # fn example(vm: fleetbox::blocking::Vm) -> fleetbox::Result<()> {
    /// use std::io::BufRead;
    ///
    /// let mut child = vm.ssh_spawn("sudo tcpdump -c 5 -n -l")?;
    /// if let Some(stdout) = child.stdout.take() {
    ///     for line in std::io::BufReader::new(stdout).lines().map_while(Result::ok) {
    ///         println!("{line}"); // as it comes
    ///     }
    /// }
    /// assert!(child.wait()?.success());
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As there.
    pub fn ssh_spawn(&self, command: &str) -> Result<Child> {
        let (vm, command) = (Arc::clone(&self.0), command.to_owned());
        run(async move { vm.ssh_spawn(&command).await }).map(Child::new)
    }

    /// As [`crate::Vm::ssh_pty`].
    ///
    /// ```no_run
    /// # fn example(vm: fleetbox::blocking::Vm) -> fleetbox::Result<()> {
    /// use fleetbox::ssh::PtyRequest;
    ///
    /// let pty = PtyRequest { term: "xterm".to_owned(), columns: 80, rows: 24 };
    /// let out = vm.ssh_pty(&pty, Some("tty"))?.output(1 << 10)?;
    /// assert!(out.stdout_text().starts_with("/dev/pts/"));
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As there.
    pub fn ssh_pty(&self, pty: &PtyRequest, command: Option<&str>) -> Result<Child> {
        let (vm, pty) = (Arc::clone(&self.0), pty.clone());
        let command = command.map(str::to_owned);
        run(async move { vm.ssh_pty(&pty, command.as_deref()).await }).map(Child::new)
    }

    /// As [`crate::Vm::ssh_with_input`].
    ///
    /// ```no_run
    /// # fn example(vm: fleetbox::blocking::Vm) -> fleetbox::Result<()> {
    /// let out = vm.ssh_with_input("psql shop", b"select count(*) from orders;")?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As there.
    pub fn ssh_with_input(&self, command: &str, stdin: &[u8]) -> Result<Output> {
        let (vm, command, stdin) = (Arc::clone(&self.0), command.to_owned(), stdin.to_vec());
        run(async move { vm.ssh_with_input(&command, &stdin).await })
    }

    /// As [`crate::Vm::connect`], as a stream for blocking reads and writes.
    ///
    /// ```no_run
    /// # fn example(vm: fleetbox::blocking::Vm) -> fleetbox::Result<()> {
    /// use std::io::{Read, Write};
    ///
    /// let mut stream = vm.connect(80)?;
    /// # let mut talk = || -> std::io::Result<()> {
    /// stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
    /// let mut answer = String::new();
    /// stream.read_to_string(&mut answer)?;
    /// # Ok(()) };
    /// # Ok(()) }
    /// ```
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
    /// ```no_run
    /// # fn example(vm: fleetbox::blocking::Vm) -> fleetbox::Result<()> {
    /// assert_eq!(vm.publish(8080, 80)?.to_string(), "127.0.0.1:8080");
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As there.
    pub fn publish(&self, host_port: u16, guest_port: u16) -> Result<SocketAddr> {
        let vm = Arc::clone(&self.0);
        run(async move { vm.publish(host_port, guest_port).await })
    }

    /// As [`crate::Vm::published`].
    ///
    /// ```no_run
    /// # fn example(vm: fleetbox::blocking::Vm) -> fleetbox::Result<()> {
    /// vm.publish(8080, 80)?;
    /// assert_eq!(vm.published()?.len(), 1);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As there.
    pub fn published(&self) -> Result<Vec<Published>> {
        let vm = Arc::clone(&self.0);
        run(async move { vm.published().await })
    }

    /// As [`crate::Vm::forward`].
    ///
    /// ```no_run
    /// # fn example(vm: fleetbox::blocking::Vm) -> fleetbox::Result<()> {
    /// let url = format!("http://{}/", vm.forward(80)?); // some port of 127.0.0.1
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As there.
    pub fn forward(&self, guest_port: u16) -> Result<SocketAddr> {
        let vm = Arc::clone(&self.0);
        run(async move { vm.forward(guest_port).await })
    }

    /// As [`crate::Vm::wait_ready`].
    ///
    /// ```no_run
    /// # fn example(vm: fleetbox::blocking::Vm) -> fleetbox::Result<()> {
    /// vm.ssh("sudo systemctl reboot --no-block")?;
    /// vm.wait_ready(std::time::Duration::from_secs(120))?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As there.
    pub fn wait_ready(&self, timeout: Duration) -> Result<()> {
        let vm = Arc::clone(&self.0);
        run(async move { vm.wait_ready(timeout).await })
    }

    /// As [`crate::Vm::copy_to`].
    ///
    /// ```no_run
    /// # fn example(vm: fleetbox::blocking::Vm) -> fleetbox::Result<()> {
    /// vm.copy_to("target/debug/server", "/tmp/")?;
    /// assert!(vm.ssh("/tmp/server --version")?.success());
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As there.
    pub fn copy_to(&self, host: impl AsRef<Path>, guest: &str) -> Result<Copied> {
        self.copy_to_with(host, guest, &FileOptions::new())
    }

    /// As [`crate::Vm::copy_to_with`].
    ///
    /// ```no_run
    /// # fn example(vm: fleetbox::blocking::Vm) -> fleetbox::Result<()> {
    /// use fleetbox::files::FileOptions;
    ///
    /// vm.copy_to_with("etc", "/etc/app", &FileOptions::new().as_root())?;
    /// # Ok(()) }
    /// ```
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
    /// ```no_run
    /// # fn example(vm: fleetbox::blocking::Vm) -> fleetbox::Result<()> {
    /// let copied = vm.copy_from("coverage", "target/coverage")?;
    /// println!("{} files", copied.files);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As there.
    pub fn copy_from(&self, guest: &str, host: impl AsRef<Path>) -> Result<Copied> {
        self.copy_from_with(guest, host, &FileOptions::new())
    }

    /// As [`crate::Vm::copy_from_with`].
    ///
    /// ```no_run
    /// # fn example(vm: fleetbox::blocking::Vm) -> fleetbox::Result<()> {
    /// use fleetbox::files::FileOptions;
    ///
    /// vm.copy_from_with("/var/log", "logs", &FileOptions::new().as_root().limit(100 << 20))?;
    /// # Ok(()) }
    /// ```
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
    /// ```no_run
    /// # fn example(vm: fleetbox::blocking::Vm) -> fleetbox::Result<()> {
    /// vm.write("app.toml", "port = 80\n")?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As there.
    pub fn write(&self, path: &str, bytes: impl AsRef<[u8]>) -> Result<()> {
        self.write_with(path, bytes, &FileOptions::new())
    }

    /// As [`crate::Vm::write_with`].
    ///
    /// ```no_run
    /// # fn example(vm: fleetbox::blocking::Vm) -> fleetbox::Result<()> {
    /// use fleetbox::files::FileOptions;
    ///
    /// let script = FileOptions::new().as_root().mode(0o755);
    /// vm.write_with("/usr/local/bin/hello", "#!/bin/sh\necho hello\n", &script)?;
    /// # Ok(()) }
    /// ```
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
    /// ```no_run
    /// # fn example(vm: fleetbox::blocking::Vm) -> fleetbox::Result<()> {
    /// assert!(vm.read("/etc/os-release")?.starts_with(b"PRETTY_NAME"));
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As there.
    pub fn read(&self, path: &str) -> Result<Vec<u8>> {
        self.read_with(path, &FileOptions::new())
    }

    /// As [`crate::Vm::read_with`].
    ///
    /// ```no_run
    /// # fn example(vm: fleetbox::blocking::Vm) -> fleetbox::Result<()> {
    /// use fleetbox::files::FileOptions;
    ///
    /// let secret = vm.read_with("/etc/shadow", &FileOptions::new().as_root())?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As there.
    pub fn read_with(&self, path: &str, options: &FileOptions) -> Result<Vec<u8>> {
        let (vm, path, options) = (Arc::clone(&self.0), path.to_owned(), options.clone());
        run(async move { vm.read_with(&path, &options).await })
    }

    /// As [`crate::Vm::console`], as a stream for blocking reads and writes.
    ///
    /// ```no_run
    /// # fn example(vm: fleetbox::blocking::Vm) -> fleetbox::Result<()> {
    /// use std::io::BufRead;
    ///
    /// for line in std::io::BufReader::new(vm.console()?).lines().map_while(Result::ok) {
    ///     println!("{line}");
    /// }
    /// # Ok(()) }
    /// ```
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
    /// ```no_run
    /// # fn example(vm: fleetbox::blocking::Vm) -> fleetbox::Result<()> {
    /// use fleetbox::Event;
    ///
    /// for event in vm.events()? {
    ///     if let Event::Panic { message } = event?.event {
    ///         println!("the guest's kernel panicked: {message}");
    ///     }
    /// }
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As there.
    pub fn events(&self) -> Result<Events> {
        let vm = Arc::clone(&self.0);
        run(async move { vm.events().await }).map(|events| Events(Some(events)))
    }

    /// As [`crate::Vm::wait_for`].
    ///
    /// ```no_run
    /// # fn example(vm: fleetbox::blocking::Vm) -> fleetbox::Result<()> {
    /// use fleetbox::Ready;
    /// use std::time::Duration;
    ///
    /// vm.ssh("sudo systemctl start nginx")?;
    /// vm.wait_for(Ready::Port(80), Duration::from_secs(10))?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As there.
    pub fn wait_for(&self, ready: Ready, timeout: Duration) -> Result<()> {
        let vm = Arc::clone(&self.0);
        run(async move { vm.wait_for(ready, timeout).await })
    }

    /// As [`crate::Vm::console_tail`].
    ///
    /// ```no_run
    /// # fn example(vm: fleetbox::blocking::Vm) -> fleetbox::Result<()> {
    /// println!("the console says: {:?}", vm.console_tail()?.lines().last());
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As there.
    pub fn console_tail(&self) -> Result<String> {
        let vm = Arc::clone(&self.0);
        run(async move { vm.console_tail().await })
    }

    /// As [`crate::Vm::stop`].
    ///
    /// ```no_run
    /// # fn example(vm: fleetbox::blocking::Vm) -> fleetbox::Result<()> {
    /// assert_eq!(vm.stop()?, fleetbox::Stopped::PoweredOff);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As there.
    pub fn stop(&self) -> Result<Stopped> {
        let vm = Arc::clone(&self.0);
        run(async move { vm.stop().await })
    }

    /// As [`crate::Vm::stop_within`].
    ///
    /// ```no_run
    /// # fn example(vm: fleetbox::blocking::Vm) -> fleetbox::Result<()> {
    /// vm.stop_within(std::time::Duration::from_secs(10))?; // it is killed then
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As there.
    pub fn stop_within(&self, deadline: Duration) -> Result<Stopped> {
        let vm = Arc::clone(&self.0);
        run(async move { vm.stop_within(deadline).await })
    }

    /// As [`crate::Vm::kill`].
    ///
    /// ```no_run
    /// # fn example(vm: fleetbox::blocking::Vm) -> fleetbox::Result<()> {
    /// vm.ssh("echo precious > data && sync")?;
    /// vm.kill()?; // as if the power had failed
    /// vm.start()?;
    /// assert_eq!(vm.read("data")?, b"precious\n");
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As there.
    pub fn kill(&self) -> Result<()> {
        let vm = Arc::clone(&self.0);
        run(async move { vm.kill().await })
    }

    /// As [`crate::Vm::start`].
    ///
    /// ```no_run
    /// # fn example(vm: fleetbox::blocking::Vm) -> fleetbox::Result<()> {
    /// vm.stop()?;
    /// vm.start()?; // the same disk, the same address
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As there.
    pub fn start(&self) -> Result<()> {
        let vm = Arc::clone(&self.0);
        run(async move { vm.start().await })
    }

    /// As [`crate::Vm::restart`].
    ///
    /// ```no_run
    /// # fn example(vm: fleetbox::blocking::Vm) -> fleetbox::Result<()> {
    /// vm.ssh("sudo systemctl enable app")?;
    /// vm.restart()?;
    /// assert!(vm.ssh("systemctl is-active app")?.success());
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As there.
    pub fn restart(&self) -> Result<()> {
        let vm = Arc::clone(&self.0);
        run(async move { vm.restart().await })
    }

    /// As [`crate::Vm::wait`].
    ///
    /// ```no_run
    /// # fn example(vm: fleetbox::blocking::Vm) -> fleetbox::Result<()> {
    /// vm.ssh("sudo systemctl poweroff --no-block")?;
    /// vm.wait()?; // an error if it ends in another way
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As there.
    pub fn wait(&self) -> Result<()> {
        let vm = Arc::clone(&self.0);
        run(async move { vm.wait().await })
    }

    /// As [`crate::Vm::destroy`].
    ///
    /// ```no_run
    /// # use fleetbox::blocking::Vm;
    /// Vm::open("web")?.destroy()?; // whoever started it
    /// # Ok::<(), fleetbox::Error>(())
    /// ```
    ///
    /// # Errors
    /// As there.
    pub fn destroy(self) -> Result<()> {
        run(async move { self.0.remove().await })
    }
}
