//! A running VM.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex as StdMutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::Serialize;
use tokio::io::AsyncWriteExt as _;
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::budget::{self, Budget, Lease, Want};
use crate::builder::{blocking, machine_spec, open_store, test_name};
use crate::event::Events;
use crate::fixture;
use crate::images::Progress;
use crate::images::progress::Silent;
use crate::lifecycle::{self, Attached, Lifetime};
use crate::names::{Name, Reference};
use crate::process::{Backend, Client, Lifeline, MachineSpec, ProcessError, last_lines};
use crate::ready::Awaited;
use crate::ssh::{self, Child, Keypair, Output, PtyRequest, PublicKey, SshError, Target};
use crate::store::{Lock, Store, StoreError, VmDir, VmRecord};
use crate::{DEFAULT_BOOT_TIMEOUT, Error, Network, Result, Size, Stream, Timings, VmBuilder};

/// How long [`Vm::stop`] gives a guest to power off.
///
/// ```
/// assert_eq!(fleetbox::STOP_DEADLINE.as_secs(), 60);
/// ```
pub const STOP_DEADLINE: Duration = Duration::from_secs(60);

/// Lines of the console that an error carries.
const CONSOLE_LINES: usize = 40;

const SSH_PORT: u16 = 22;

/// Most bytes of a command's output that are kept.
const OUTPUT_LIMIT: usize = 256 << 20;

/// A virtual machine that runs.
///
/// A VM of [`Vm::test`] is destroyed when this is dropped, or when the process ends in whatever
/// way. One of [`Vm::builder`] is only powered off then, without notice to the guest (call
/// [`Vm::stop`] first for an orderly shutdown); its disk stays and it can be started again. One
/// that is [detached](VmBuilder::detached), or that was found running, runs on.
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
    /// A VM with a name, whose disk stays until [`Vm::destroy`]. `CLUSTER/NAME` is a member of that
    /// cluster, which is added to it if it does not exist.
    ///
    /// ```no_run
    /// # async fn example() -> fleetbox::Result<()> {
    /// let vm = fleetbox::Vm::builder("web").start().await?;
    /// assert_eq!(vm.name(), "web");
    /// # Ok(()) }
    /// ```
    pub fn builder(name: impl Into<String>) -> VmBuilder {
        VmBuilder::new(name.into(), Lifetime::Bound)
    }

    /// A VM for a test: its name is made up from that of the test and no other VM's, and it is
    /// destroyed when its handle is dropped.
    ///
    /// ```no_run
    /// # async fn example() -> fleetbox::Result<()> {
    /// let vm = fleetbox::Vm::test().cpus(2).start().await?;
    /// assert!(vm.ssh("true").await?.success());
    /// drop(vm); // it is gone, with its disk
    /// # Ok(()) }
    /// ```
    pub fn test() -> VmBuilder {
        VmBuilder::new(test_name(), Lifetime::Ephemeral)
    }

    /// The running VM of that name, or `CLUSTER/NAME`, whoever started it. Dropping the handle changes
    /// nothing.
    ///
    /// ```no_run
    /// # async fn example() -> fleetbox::Result<()> {
    /// let vm = fleetbox::Vm::open("web").await?;
    /// println!("{}", vm.ssh("uptime").await?.stdout_text());
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As [`find`], and [`Error::NotRunning`].
    pub async fn open(name: &str) -> Result<Self> {
        Self::open_in(None, name).await
    }

    /// As [`Vm::open`], in a state directory of the caller's choice.
    ///
    /// ```no_run
    /// # async fn example() -> fleetbox::Result<()> {
    /// use std::path::Path;
    ///
    /// let vm = fleetbox::Vm::open_in(Some(Path::new("/srv/vms")), "web").await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As [`Vm::open`].
    pub async fn open_in(home: Option<&Path>, name: &str) -> Result<Self> {
        let (store, dir) = meant(home, name).await?;
        if !dir.is_running()? {
            return Err(Error::NotRunning {
                name: dir.reference(),
            });
        }
        Self::found(&store, dir)
    }

    /// A VM that exists, running or not.
    pub(crate) fn found(store: &Store, dir: VmDir) -> Result<Self> {
        let attached = Attached {
            client: lifecycle::client(&store.cluster(dir.cluster())),
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
        blocking(move || lifecycle::unmark_ephemeral(&dir)).await?;
        let lifeline = lock(&self.lifeline).clone();
        match lifeline {
            Some(lifeline) => lifeline.let_go().map_err(Error::io("keep the VM running")),
            None => Ok(()),
        }
    }

    /// What the VM is called among those of all clusters.
    ///
    /// ```no_run
    /// # async fn example(cluster: fleetbox::Cluster) -> fleetbox::Result<()> {
    /// let member = cluster.vm("node-1")?;
    /// assert_eq!(member.reference().as_str(), format!("{}/node-1", cluster.name()));
    /// # Ok(()) }
    /// ```
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

    /// Who is told that it waits for memory when it is started again.
    pub(crate) fn telling(mut self, progress: Arc<dyn Progress>) -> Self {
        self.progress = progress;
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

    /// Has the worker start the machine, with what is in the fixtures now; true if it runs already.
    pub(crate) async fn start_machine(&self) -> Result<bool> {
        if !self.record.fixtures.is_empty() && !self.dir.is_running()? {
            let (fixtures, paths) = (self.record.fixtures.clone(), self.dir.paths().clone());
            blocking(move || Ok(fixture::build(&fixtures, &paths)?)).await?;
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
    /// there is one.
    pub(crate) async fn wait_until_up(&self, deadline: Instant) -> Result<()> {
        if self.awaited.is_empty() && self.backend.has_guest() {
            self.wait_for_ssh(deadline).await?;
        }
        let begun = Instant::now();
        for awaited in &self.awaited {
            let deadline = awaited.within.map_or(deadline, |within| begun + within);
            self.wait_until(&awaited.what, deadline).await?;
        }
        Ok(())
    }

    /// The error of a VM that does not come up, with what its console showed last.
    pub(crate) async fn not_ready(&self, why: String) -> Error {
        let console = self.console_tail().await.unwrap_or_default();
        Error::NotReady {
            name: self.name.clone(),
            why,
            console: last_lines(&console, CONSOLE_LINES).to_owned(),
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

    /// The VM's name, which is also the guest's hostname.
    ///
    /// ```no_run
    /// # async fn example(vm: fleetbox::Vm) -> fleetbox::Result<()> {
    /// println!("{} of {} at {}, made from {}", vm.name(), vm.cluster(), vm.ip(), vm.image());
    /// # Ok(()) }
    /// ```
    pub fn name(&self) -> &str {
        self.name.as_str()
    }

    /// The cluster that the VM is a member of; a VM that was made alone has one of its own.
    pub fn cluster(&self) -> &str {
        self.dir.cluster().as_str()
    }

    /// The guest's address in its cluster's network, which it keeps for good. That network exists in the worker process
    /// only: use [`Vm::connect`] and [`Vm::forward`] to reach the guest from this host.
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

    /// How long the steps of [`VmBuilder::start`] took; empty for a VM found by [`Vm::open`].
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

    /// Options given to [`VmBuilder::start`] that differ from what the VM, which existed, was
    /// created with. They were ignored.
    pub fn ignored_options(&self) -> &[&'static str] {
        &self.ignored
    }

    /// Runs a shell command in the guest and collects what it writes. A command that fails is no
    /// error: look at [`Output::status`].
    ///
    /// ```no_run
    /// # async fn example(vm: fleetbox::Vm) -> fleetbox::Result<()> {
    /// let out = vm.ssh("grep -c processor /proc/cpuinfo || exit 3").await?;
    /// match out.status.code() {
    ///     Some(0) => println!("{} CPUs", out.stdout_text().trim()),
    ///     _ => println!("failed: {}", out.stderr_text()),
    /// }
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Error::Ssh`], [`Error::Process`] if the guest cannot be reached.
    pub async fn ssh(&self, command: &str) -> Result<Output> {
        Ok(self.session().await?.exec(command).await?)
    }

    /// Runs a shell command in the guest with `stdin` as its standard input, and collects what it
    /// writes.
    ///
    /// ```no_run
    /// # async fn example(vm: fleetbox::Vm) -> fleetbox::Result<()> {
    /// let out = vm.ssh_with_input("sha256sum", b"some bytes").await?;
    /// assert!(out.success());
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As [`Vm::ssh`].
    pub async fn ssh_with_input(&self, command: &str, stdin: &[u8]) -> Result<Output> {
        let mut child = self.ssh_spawn(command).await?;
        let input = child.stdin.take();
        let write = async {
            if let Some(mut input) = input {
                // A command need not read all of its input.
                let _ = input.write_all(stdin).await;
                let _ = input.shutdown().await;
            }
        };
        let (output, ()) = tokio::join!(child.output(OUTPUT_LIMIT), write);
        Ok(output?)
    }

    /// Starts a shell command in the guest with its standard streams as pipes.
    ///
    /// ```no_run
    /// # async fn example(vm: fleetbox::Vm) -> Result<(), Box<dyn std::error::Error>> {
    /// use tokio::io::{AsyncBufReadExt, BufReader};
    ///
    /// let mut child = vm.ssh_spawn("ping -c 3 127.0.0.1").await?;
    /// if let Some(stdout) = child.stdout.take() {
    ///     let mut lines = BufReader::new(stdout).lines();
    ///     while let Some(line) = lines.next_line().await? {
    ///         println!("{line}");
    ///     }
    /// }
    /// assert!(child.wait().await?.success());
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As [`Vm::ssh`].
    pub async fn ssh_spawn(&self, command: &str) -> Result<Child> {
        Ok(self.session().await?.spawn(command).await?)
    }

    /// Starts a command, or the login shell, on a new terminal in the guest.
    ///
    /// ```no_run
    /// # async fn example(vm: fleetbox::Vm) -> fleetbox::Result<()> {
    /// use fleetbox::ssh::PtyRequest;
    ///
    /// let pty = PtyRequest { term: "xterm".to_owned(), columns: 80, rows: 24 };
    /// let child = vm.ssh_pty(&pty, Some("top -b -n 1")).await?;
    /// child.resize(120, 40).await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As [`Vm::ssh`].
    pub async fn ssh_pty(&self, pty: &PtyRequest, command: Option<&str>) -> Result<Child> {
        Ok(self.session().await?.spawn_pty(pty, command).await?)
    }

    /// The SSH connection, which commands share; a new one if it was lost.
    pub(crate) async fn session(&self) -> Result<Arc<ssh::Client>> {
        let mut session = self.session.lock().await;
        if let Some(session) = session.as_ref().filter(|session| !session.is_closed()) {
            return Ok(Arc::clone(session));
        }
        let stream = self.client.dial(self.name.as_str(), SSH_PORT).await?;
        let limit = Duration::from_secs(60);
        let connected = tokio::time::timeout(limit, ssh::Client::connect(stream, &self.target));
        let client = match connected.await {
            Ok(client) => Arc::new(client?),
            Err(_) => return Err(SshError::HandshakeTimeout(limit).into()),
        };
        *session = Some(Arc::clone(&client));
        Ok(client)
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

    /// Connects to a TCP port of the guest.
    ///
    /// ```no_run
    /// # async fn example(vm: fleetbox::Vm) -> Result<(), Box<dyn std::error::Error>> {
    /// use tokio::io::{AsyncReadExt, AsyncWriteExt};
    ///
    /// let mut stream = vm.connect(80).await?;
    /// stream.write_all(b"GET / HTTP/1.0\r\n\r\n").await?;
    /// let mut answer = String::new();
    /// stream.read_to_string(&mut answer).await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Error::Process`] if the guest refuses or does not answer, or does not run.
    pub async fn connect(&self, port: u16) -> Result<Stream> {
        Ok(Stream(self.client.dial(self.name.as_str(), port).await?))
    }

    /// A loopback address of this host whose connections go to a TCP port of the guest, for as
    /// long as the VM runs. Asked again it is the same.
    ///
    /// ```no_run
    /// # async fn example(vm: fleetbox::Vm) -> fleetbox::Result<()> {
    /// let address = vm.forward(5432).await?;
    /// println!("postgres://{address}/test"); // 127.0.0.1 and some port
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Error::Process`] if no address is free, or the VM does not run.
    pub async fn forward(&self, guest_port: u16) -> Result<SocketAddr> {
        self.publish(0, guest_port).await
    }

    /// As [`Vm::forward`], by a port of the caller's choice on loopback; 0 is any that is free.
    ///
    /// ```no_run
    /// # async fn example(vm: fleetbox::Vm) -> fleetbox::Result<()> {
    /// let address = vm.publish(8080, 80).await?;
    /// assert_eq!(address.to_string(), "127.0.0.1:8080");
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As [`Vm::forward`], and if the port is taken or one that this user may not have.
    pub async fn publish(&self, host_port: u16, guest_port: u16) -> Result<SocketAddr> {
        let name = self.name.as_str();
        Ok(self.client.forward(name, host_port, guest_port).await?)
    }

    /// The serial console as it is now: the last of what was printed, then all that follows, byte
    /// for byte, until the VM ends. What is written to the stream is typed at the console; what
    /// the guest does not read is lost. Several such streams see the same.
    ///
    /// ```no_run
    /// # async fn example(vm: fleetbox::Vm) -> Result<(), Box<dyn std::error::Error>> {
    /// use tokio::io::{AsyncBufReadExt, BufReader};
    ///
    /// let mut lines = BufReader::new(vm.console().await?).lines();
    /// while let Some(line) = lines.next_line().await? {
    ///     println!("{line}");
    /// }
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Error::Process`] if the VM was not started since its worker was.
    pub async fn console(&self) -> Result<Stream> {
        Ok(Stream(self.client.serial(self.name.as_str()).await?))
    }

    /// What has happened to the VM since it was started (the last 256 events), then each event as
    /// it happens, to the VM's end.
    ///
    /// ```no_run
    /// # async fn example(vm: fleetbox::Vm) -> fleetbox::Result<()> {
    /// let mut events = vm.events().await?;
    /// while let Some(event) = events.next().await? {
    ///     println!("{} ms: {:?}", event.at, event.event);
    /// }
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As [`Vm::console`].
    pub async fn events(&self) -> Result<Events> {
        let stream = self.client.events(self.name.as_str()).await?;
        Ok(Events::new(self.cluster(), stream))
    }

    /// The last of the console's output, at most 32 KiB, without escape sequences.
    ///
    /// ```no_run
    /// # async fn example(vm: fleetbox::Vm) -> fleetbox::Result<()> {
    /// if let Some(line) = vm.console_tail().await?.lines().last() {
    ///     println!("the console says: {line}");
    /// }
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Error::Process`] if the VM's worker does not run.
    pub async fn console_tail(&self) -> Result<String> {
        Ok(self.client.console(self.name.as_str()).await?)
    }

    /// Waits until the VM ends: `Ok` if the guest powered off or the VM was stopped.
    ///
    /// ```no_run
    /// # async fn example(vm: fleetbox::Vm) -> fleetbox::Result<()> {
    /// vm.ssh("sudo systemctl poweroff --no-block").await?;
    /// vm.wait().await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Error::Process`] with the reason and the console's last lines if it failed.
    pub async fn wait(&self) -> Result<()> {
        match self.client.wait(self.name.as_str()).await?.failure {
            None => Ok(()),
            Some(failure) => Err(ProcessError::Failed(failure).into()),
        }
    }

    /// Presses the power button, waits for the guest to power off, and kills the VM after
    /// [`STOP_DEADLINE`]. The disk stays; [`Vm::builder`] starts the VM again.
    ///
    /// ```no_run
    /// # async fn example(vm: fleetbox::Vm) -> fleetbox::Result<()> {
    /// use fleetbox::Stopped;
    ///
    /// if vm.stop().await? == Stopped::Forced {
    ///     println!("{} did not power off in time", vm.name());
    /// }
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Error::Process`] if it does not run.
    pub async fn stop(&self) -> Result<Stopped> {
        self.stop_within(STOP_DEADLINE).await
    }

    /// As [`Vm::stop`], with a deadline of the caller's choice; zero kills at once.
    ///
    /// ```no_run
    /// # async fn example(vm: fleetbox::Vm) -> fleetbox::Result<()> {
    /// # use std::time::Duration;
    /// vm.stop_within(Duration::from_secs(10)).await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As [`Vm::stop`].
    pub async fn stop_within(&self, deadline: Duration) -> Result<Stopped> {
        *self.session.lock().await = None;
        let forced = self.client.stop(self.name.as_str(), deadline).await?;
        self.await_unlocked().await?;
        Ok(if forced {
            Stopped::Forced
        } else {
            Stopped::PoweredOff
        })
    }

    /// Kills the VM, as a power failure would. The disk stays.
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
    /// As [`Vm::stop`].
    pub async fn kill(&self) -> Result<()> {
        self.stop_within(Duration::ZERO).await.map(drop)
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
    /// As [`VmBuilder::start`].
    pub async fn start(&self) -> Result<()> {
        let lease = Self::await_memory(&[self]).await?;
        self.boot().await?;
        // Its own lock counts as long as it runs.
        drop(lease);
        self.come_up().await
    }

    /// Waits until there is memory for those of `vms` that do not run, for all of them at once. The
    /// lease is to be held until they are booted; `None` if all run.
    pub(crate) async fn await_memory(vms: &[&Self]) -> Result<Option<Lease>> {
        let mut wants = Vec::new();
        for vm in vms {
            if !vm.dir.is_running()? {
                let cluster = vm.dir.cluster().clone();
                wants.push(Want::new(cluster, vm.name.clone(), vm.current()?.memory));
            }
        }
        let (Some(first), false) = (vms.first(), wants.is_empty()) else {
            return Ok(None);
        };
        let budget = match first.budget {
            Some(budget) => budget,
            None => Budget::from_env()?,
        };
        let progress = first.progress.as_ref();
        let lease = budget::acquire(&first.store, budget, wants, progress).await?;
        Ok(Some(lease))
    }

    /// Starts the machine, and the worker if it has ended.
    pub(crate) async fn boot(&self) -> Result<()> {
        *self.session.lock().await = None;
        let mut attempts = 3;
        loop {
            self.attach().await?;
            match self.start_machine().await {
                Ok(_) => return Ok(()),
                // The worker was about to end when it was found.
                Err(Error::Process(ProcessError::NoWorker { .. } | ProcessError::Lost { .. }))
                    if attempts > 1 =>
                {
                    attempts -= 1;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Waits, as long as its builder allows, until a VM that was booted is up.
    pub(crate) async fn come_up(&self) -> Result<()> {
        self.wait_until_up(Instant::now() + self.boot_timeout).await
    }

    /// Stops the VM, if it runs, and starts it again.
    ///
    /// ```no_run
    /// # async fn example(vm: fleetbox::Vm) -> fleetbox::Result<()> {
    /// let before = vm.ssh("cat /proc/sys/kernel/random/boot_id").await?;
    /// vm.restart().await?;
    /// let after = vm.ssh("cat /proc/sys/kernel/random/boot_id").await?;
    /// assert_ne!(before.stdout, after.stdout);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As [`Vm::stop`] and [`Vm::start`].
    pub async fn restart(&self) -> Result<()> {
        match self.stop().await {
            Ok(_) => self.start().await,
            Err(error) if error.is_not_running() => self.start().await,
            Err(error) => Err(error),
        }
    }

    /// Finds the worker, or starts one if it has ended.
    async fn attach(&self) -> Result<()> {
        let owned = lock(&self.lifeline).is_some();
        let lifetime = match (lifecycle::is_ephemeral(&self.dir), owned) {
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
            lifecycle::attach(&store, dir.cluster(), lifetime, &runtime, prepare)
        })
        .await?;
        if let Some(lifeline) = attached.lifeline {
            *lock(&self.lifeline) = Some(lifeline);
        }
        Ok(())
    }

    /// Kills the VM and removes it with its disk.
    ///
    /// ```no_run
    /// # async fn example(vm: fleetbox::Vm) -> fleetbox::Result<()> {
    /// vm.destroy().await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// The file system, or a process that does not end.
    pub async fn destroy(self) -> Result<()> {
        self.remove().await
    }

    pub(crate) async fn remove(&self) -> Result<()> {
        let lifeline = lock(&self.lifeline).take();
        destroy(&self.store, &self.dir, &self.client, lifeline).await
    }

    /// Waits until no process has the VM's lock.
    async fn await_unlocked(&self) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(20);
        while self.dir.is_running()? {
            if Instant::now() > deadline {
                return Err(Error::Busy {
                    name: self.name.clone(),
                    waited: Duration::from_secs(20),
                });
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    }
}

/// How a VM was stopped.
///
/// ```no_run
/// # async fn example(vm: fleetbox::Vm) -> fleetbox::Result<()> {
/// # use std::time::Duration;
/// use fleetbox::Stopped;
///
/// match vm.stop_within(Duration::from_secs(5)).await? {
///     Stopped::PoweredOff => println!("in good order"),
///     Stopped::Forced => println!("it did not listen"),
/// }
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stopped {
    /// The guest powered itself off.
    PoweredOff,
    /// It did not in time, and was killed.
    Forced,
}

fn lock<T>(mutex: &StdMutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Deletes the VM; with the last of its cluster the worker ends.
async fn destroy(
    store: &Store,
    dir: &VmDir,
    client: &Client,
    lifeline: Option<Arc<Lifeline>>,
) -> Result<()> {
    let cluster = store.cluster(dir.cluster());
    let others = cluster.vms()?.iter().any(|vm| vm.name() != dir.name());
    let asked = if others {
        client.forget(dir.name().as_str()).await
    } else {
        client.shutdown().await
    };
    match asked {
        Ok(()) | Err(ProcessError::NoWorker { .. } | ProcessError::Lost { .. }) => {}
        Err(error) => return Err(error.into()),
    }
    if !others {
        drop(lifeline);
        lifecycle::worker_ended(&cluster).await?;
    }
    let dir = dir.clone();
    blocking(move || lifecycle::delete(&dir)).await?;
    // The worker may have held the directory when it deleted the VM itself.
    blocking(move || Ok(cluster.remove_if_unused()?)).await
}

/// What a VM is doing.
///
/// ```no_run
/// # async fn example() -> fleetbox::Result<()> {
/// for vm in fleetbox::list(None).await? {
///     if vm.state == fleetbox::VmState::Failed {
///         println!("{}: {}", vm.name, vm.failure.unwrap_or_default());
///     }
/// }
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum VmState {
    /// A machine process has it.
    Running,
    /// It can be started.
    Stopped,
    /// It ended otherwise than by its guest's power-off or by a wish of its user, and can be
    /// started; [`VmInfo::failure`] says why.
    Failed,
}

impl std::fmt::Display for VmState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Running => "running",
            Self::Stopped => "stopped",
            Self::Failed => "failed",
        })
    }
}

/// A VM in a listing.
///
/// ```no_run
/// # async fn example() -> fleetbox::Result<()> {
/// let mine = fleetbox::list(None).await?.into_iter().find(|vm| vm.name == "web");
/// if let Some(vm) = mine {
///     println!("{} of {}: {} CPUs, {}, {}", vm.name, vm.cluster, vm.cpus, vm.memory, vm.ip);
/// }
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, Serialize)]
pub struct VmInfo {
    /// Its name.
    pub name: String,
    /// The cluster it is a member of; a VM that was made alone has one of its own name.
    pub cluster: String,
    /// What it is doing.
    pub state: VmState,
    /// Why it failed, if it has.
    pub failure: Option<String>,
    /// Its image, as it was named when the VM was created.
    pub image: String,
    /// Number of vCPUs.
    pub cpus: u8,
    /// Memory in bytes.
    pub memory: Size,
    /// Size of the disk in bytes, as the guest sees it.
    pub disk: Size,
    /// Its address in its cluster's network.
    pub ip: Ipv4Addr,
    /// Its cluster's network.
    pub network: Network,
    /// When it was created, in seconds since 1970 (UTC).
    pub created: u64,
    /// It is deleted when the process that owns it ends.
    pub ephemeral: bool,
    /// It does not run and nobody uses its cluster: [`prune`] would delete it.
    pub unused: bool,
}

/// All VMs of a state directory (the default one if none is given), by cluster and name.
///
/// ```no_run
/// # async fn example() -> fleetbox::Result<()> {
/// for vm in fleetbox::list(None).await? {
///     println!("{} is {}, {} of memory", vm.name, vm.state, vm.memory);
/// }
/// # Ok(()) }
/// ```
///
/// # Errors
/// The file system, or a damaged record.
pub async fn list(home: Option<&Path>) -> Result<Vec<VmInfo>> {
    let store = open_store(home).await?;
    blocking(move || {
        let mut vms = Vec::new();
        for vm in store.vms()? {
            let record = match vm.record() {
                Ok(record) => record,
                // Removed in this moment.
                Err(_) if !vm.paths().dir().exists() => continue,
                Err(error) => return Err(error.into()),
            };
            let running = vm.is_running()?;
            let ephemeral = lifecycle::is_ephemeral(&vm);
            let failure = if running { None } else { vm.failure()? };
            vms.push(VmInfo {
                name: record.name.to_string(),
                cluster: record.cluster.to_string(),
                state: match (running, &failure) {
                    (true, _) => VmState::Running,
                    (false, None) => VmState::Stopped,
                    (false, Some(_)) => VmState::Failed,
                },
                failure,
                image: record.image.reference,
                cpus: record.cpus,
                memory: record.memory,
                disk: record.disk,
                ip: record.ip,
                network: record.network,
                created: record.created,
                ephemeral,
                unused: !running && !ephemeral && !store.cluster(vm.cluster()).is_used()?,
            });
        }
        Ok(vms)
    })
    .await
}

/// Stops a VM, running or not: `None` if it did not run.
///
/// ```no_run
/// # async fn example() -> fleetbox::Result<()> {
/// let stopped = fleetbox::stop(None, "web", fleetbox::STOP_DEADLINE).await?;
/// if stopped.is_none() {
///     println!("it did not run");
/// }
/// # Ok(()) }
/// ```
///
/// # Errors
/// As [`find`], or a worker that cannot be talked to.
pub async fn stop(home: Option<&Path>, name: &str, deadline: Duration) -> Result<Option<Stopped>> {
    let store = open_store(home).await?;
    blocking(move || {
        lifecycle::sweep_bridges(&store);
        Ok(())
    })
    .await?;
    match Vm::open_in(home, name).await {
        Ok(vm) => match vm.stop_within(deadline).await {
            Ok(stopped) => Ok(Some(stopped)),
            // It ended in between.
            Err(error) if error.is_not_running() => Ok(None),
            Err(error) => Err(error),
        },
        Err(Error::NotRunning { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Deletes a VM with its disk, killing it if it runs.
///
/// ```no_run
/// # async fn example() -> fleetbox::Result<()> {
/// fleetbox::remove(None, "web").await?;
/// # Ok(()) }
/// ```
///
/// # Errors
/// As [`find`], or a process that does not end.
pub async fn remove(home: Option<&Path>, name: &str) -> Result<()> {
    let (store, dir) = meant(home, name).await?;
    let client = lifecycle::client(&store.cluster(dir.cluster()));
    destroy(&store, &dir, &client, None).await
}

/// Deletes all VMs of a state directory (the default one if none is given) that do not run, with
/// their disks, and what killed processes have left. Returns what was deleted, as `NAME` or, for a
/// member of a cluster, `CLUSTER/NAME`.
///
/// A VM that a living process has a [`Vm`] of, or of another member of its cluster, is kept, stopped
/// or not: tests and programs find what they have stopped. So is a VM that is just being started.
///
/// ```no_run
/// # async fn example() -> fleetbox::Result<()> {
/// for name in fleetbox::prune(None).await? {
///     println!("{name} is deleted");
/// }
/// # Ok(()) }
/// ```
///
/// # Errors
/// The file system. What was deleted until then stays deleted.
pub async fn prune(home: Option<&Path>) -> Result<Vec<String>> {
    let store = open_store(home).await?;
    blocking(move || {
        lifecycle::sweep(&store)?;
        let mut pruned = Vec::new();
        for vm in store.vms()? {
            let serving = store.cluster(vm.cluster()).is_running()?;
            // Its first start is under way as long as there is no console log.
            let in_use = lifecycle::is_ephemeral(&vm) || !vm.paths().console_log().exists();
            if vm.is_running()? || (serving && in_use) {
                continue;
            }
            // Nobody begins to use it before it is gone.
            let Some(_claim) = claim(&store, &vm)? else {
                continue;
            };
            match vm.destroy() {
                Ok(()) if vm.name() == vm.cluster() => pruned.push(vm.name().to_string()),
                Ok(()) => pruned.push(format!("{}/{}", vm.cluster(), vm.name())),
                // Started in this moment.
                Err(StoreError::Running { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(pruned)
    })
    .await
}

/// Takes the cluster of a VM from all who may want to use it; `None` if somebody uses it, or it is
/// gone.
fn claim(store: &Store, vm: &VmDir) -> Result<Option<Lock>> {
    match store.cluster(vm.cluster()).try_claim() {
        Err(_) if !vm.paths().dir().exists() => Ok(None),
        claim => Ok(claim?),
    }
}

/// The VM that a name means, running or not: `NAME`, or `CLUSTER/NAME`. VMs of running tests are meant
/// by a bare `NAME` only where there is no other.
///
/// ```no_run
/// # async fn example() -> fleetbox::Result<()> {
/// let vm = fleetbox::find(None, "node-1").await?;
/// println!("{} has {} of memory", vm.reference(), vm.record()?.memory);
/// # Ok(()) }
/// ```
///
/// # Errors
/// [`Error::NoVm`], or [`Error::NoMember`] of a cluster that is named; [`Error::Ambiguous`] if several
/// clusters have such a VM and none is named.
pub async fn find(home: Option<&Path>, name: &str) -> Result<VmDir> {
    Ok(meant(home, name).await?.1)
}

async fn meant(home: Option<&Path>, text: &str) -> Result<(Store, VmDir)> {
    let reference: Reference = text.parse()?;
    let store = open_store(home).await?;
    blocking(move || {
        let name = reference.name().clone();
        if let Some(cluster) = reference.cluster() {
            let cluster = store.cluster(cluster);
            if let Some(vm) = cluster.vm(&name) {
                return Ok((store, vm));
            }
            let members = cluster.vms()?;
            return Err(Error::NoMember {
                cluster: cluster.name().clone(),
                name: name.to_string(),
                members: members.iter().map(|vm| vm.name().to_string()).collect(),
            });
        }
        let mut found = store.find(&name)?;
        // Those of running tests are meant only where there is no other.
        if !found.iter().all(lifecycle::is_ephemeral) {
            found.retain(|vm| !lifecycle::is_ephemeral(vm));
        }
        let clusters = || found.iter().map(|vm| vm.cluster().clone()).collect();
        match found.as_slice() {
            [] => Err(Error::NoVm { name }),
            [vm] => Ok((store, vm.clone())),
            _ => Err(Error::Ambiguous {
                name,
                clusters: clusters(),
            }),
        }
    })
    .await
}
