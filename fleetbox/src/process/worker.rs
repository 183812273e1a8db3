//! The worker process: owns one cluster's network and the life cycle of its machines.
//!
//! While it lives it holds the cluster's lock (inherited, so there is no moment without) and
//! serves the control socket. A bound worker ends when the socket to its owner reads as closed;
//! a detached one when none of its machines runs any more.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex as StdMutex, PoisonError};
use std::time::Duration;

use fleetbox_net::GuestStream;
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{Mutex, watch};
use tokio::time::{Instant, sleep_until, timeout};

use super::entry::exit_status;
use super::member::{Member, State};
use super::network::ClusterNetwork;
use super::protocol::{
    Hello, MachineSpec, MachineStatus, Readiness, Reason, Reply, Request, WorkerConfig,
};
use super::{socket, wire};
use crate::model::names::MAX_COUNT;
use crate::store::ephemeral;
use crate::store::{ClusterDir, Store};

/// How long a client may take from connecting to its request.
const REQUEST_DEADLINE: Duration = Duration::from_secs(20);

/// How long a detached worker without machines waits for work.
const IDLE: Duration = Duration::from_secs(20);

/// Maximum bytes that are typed at a console at once.
const TYPED: usize = 4096;

/// What is shown to a follower of a console in place of what it was too slow for.
const MISSED: &[u8] = b"\n[console output was missed]\n";

/// Maximum number of machines of one cluster.
const MAX_MACHINES: usize = MAX_COUNT as usize;

/// Entry point of the role. The inherited descriptors are the socket to the owner and the
/// cluster's held lock.
pub(super) fn main(fds: Vec<OwnedFd>) -> i32 {
    let mut fds = fds.into_iter();
    let Some(mut owner) = fds.next().map(StdUnixStream::from) else {
        return exit_status::USAGE;
    };
    let Some(lock) = fds.next() else {
        return exit_status::USAGE;
    };
    let config: WorkerConfig = match wire::receive(&mut owner) {
        Ok(config) => config,
        Err(error) => {
            tracing::error!(%error, "no configuration");
            return exit_status::USAGE;
        }
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("worker")
        .enable_all()
        .build();
    let result = match runtime {
        Ok(runtime) => runtime.block_on(run(config, &mut owner, lock)),
        Err(error) => Err(format!("cannot start the worker's threads: {error}")),
    };
    match result {
        Ok(()) => exit_status::OK,
        Err(message) => {
            tracing::error!(%message, "worker failed");
            // The owner may be gone; then nobody wants to know.
            let _ = wire::send(&mut owner, &Readiness::Failed(message));
            exit_status::FAILED
        }
    }
}

async fn run(config: WorkerConfig, owner: &mut StdUnixStream, lock: OwnedFd) -> Result<(), String> {
    let store = Store::open(&config.home).map_err(|e| e.to_string())?;
    let cluster = store.cluster(&config.cluster);
    let listener = socket::listen(cluster.path()).and_then(|listener| {
        listener.set_nonblocking(true)?;
        UnixListener::from_std(listener)
    });
    let listener =
        listener.map_err(|e| format!("cannot listen in {}: {e}", cluster.path().display()))?;
    let network = {
        let (store, cluster) = (store.clone(), cluster.clone());
        // It waits for the kernel, and for other processes that change the host's network.
        tokio::task::spawn_blocking(move || ClusterNetwork::start(&store, &cluster)).await
    };
    let network = network
        .map_err(|e| e.to_string())
        .and_then(|network| network.map_err(|e| e.to_string()))
        .map_err(|e| format!("cannot start the network of {}: {e}", config.cluster))?;
    let result = serve_cluster(&config, owner, &cluster, listener, network).await;
    match result {
        Ok(()) => clear_away(&store, &config, lock),
        Err(_) => ClusterNetwork::part(&store, &cluster),
    }
    result
}

/// Serves as long as the cluster is needed; then none of its machines runs.
async fn serve_cluster(
    config: &WorkerConfig,
    owner: &mut StdUnixStream,
    cluster: &ClusterDir,
    listener: UnixListener,
    network: ClusterNetwork,
) -> Result<(), String> {
    for vm in cluster.vms().map_err(|e| e.to_string())? {
        // Members that do not run have names too. What is damaged is told when it is started.
        match vm.record() {
            Ok(record) => network.know(vm.name().as_str(), record.ip),
            Err(error) => tracing::warn!(vm = %vm.name(), %error, "not known by name"),
        }
    }
    let owned = if config.detached {
        None
    } else {
        let watched = owner.try_clone();
        Some(watched.map_err(|e| format!("cannot watch the owner: {e}"))?)
    };
    let worker = Arc::new(Worker {
        network,
        owner: owned,
        let_go: AtomicBool::new(false),
        closed: AtomicBool::new(false),
        members: Mutex::new(BTreeMap::new()),
        activity: watch::Sender::new(Activity {
            running: 0,
            connections: 0,
        }),
        shutdown: watch::Sender::new(false),
    });
    wire::send(owner, &Readiness::Ready).map_err(|e| format!("the owner is gone: {e}"))?;
    let owner = if config.detached {
        None
    } else {
        let watched = owner.try_clone().and_then(|owner| {
            owner.set_nonblocking(true)?;
            UnixStream::from_std(owner)
        });
        Some(watched.map_err(|e| format!("cannot watch the owner: {e}"))?)
    };
    tracing::info!(cluster = %config.cluster, detached = config.detached, "worker serves");

    let mut terminate =
        signal(SignalKind::terminate()).map_err(|e| format!("cannot watch for signals: {e}"))?;
    let serving = tokio::spawn(serve(Arc::clone(&worker), listener));
    let mut shutdown = worker.shutdown.subscribe();
    tokio::select! {
        why = worker.needless(owner) => tracing::info!("{why}"),
        _ = shutdown.wait_for(|down| *down) => tracing::info!("told to end"),
        _ = terminate.recv() => tracing::info!("terminated"),
    }
    serving.abort();
    worker.kill_all().await;
    Ok(())
}

/// Leaves nothing of a cluster that ends, but the VMs that are to be kept.
fn clear_away(store: &Store, config: &WorkerConfig, lock: OwnedFd) {
    let cluster = store.cluster(&config.cluster);
    if let Err(error) = std::fs::remove_file(cluster.path().join(socket::NAME)) {
        tracing::debug!(%error, "socket not removed");
    }
    let members = cluster.vms().unwrap_or_else(|error| {
        tracing::warn!(%error, "cannot look for VMs to delete");
        Vec::new()
    });
    for vm in members.into_iter().filter(ephemeral::is_ephemeral) {
        if let Err(error) = ephemeral::delete(&vm) {
            tracing::warn!(vm = %vm.name(), %error, "cannot delete");
        }
    }
    ClusterNetwork::part(store, &cluster);
    // The directory goes with its last VM, but not while the lock says that it is in use.
    drop(lock);
    if let Err(error) = cluster.remove_if_unused() {
        tracing::debug!(%error, "cluster directory not removed");
    }
}

async fn serve(worker: Arc<Worker>, listener: UnixListener) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let guard = Connection::new(Arc::clone(&worker));
                tokio::spawn(async move {
                    if let Err(error) = guard.0.converse(stream).await {
                        tracing::debug!(%error, "connection ended");
                    }
                    drop(guard);
                });
            }
            Err(error) => {
                // Out of descriptors, perhaps: others will be closed.
                tracing::warn!(%error, "cannot accept");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// What keeps a detached worker alive.
#[derive(Debug, Clone, Copy)]
struct Activity {
    running: usize,
    connections: usize,
}

/// Counts an open connection for as long as it exists.
struct Connection(Arc<Worker>);

impl Connection {
    fn new(worker: Arc<Worker>) -> Self {
        worker
            .activity
            .send_modify(|activity| activity.connections += 1);
        Self(worker)
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.0
            .activity
            .send_modify(|activity| activity.connections -= 1);
    }
}

struct Worker {
    network: ClusterNetwork,
    /// The socket to the owner of a bound worker.
    owner: Option<StdUnixStream>,
    /// The owner has said farewell, and its end means nothing any more.
    let_go: AtomicBool,
    /// No machine is started any more. It is set with `members` locked.
    closed: AtomicBool,
    members: Mutex<BTreeMap<String, Arc<Member>>>,
    activity: watch::Sender<Activity>,
    shutdown: watch::Sender<bool>,
}

impl Worker {
    /// Returns when this worker is no longer needed, and says why: its owner is gone or, without an
    /// owner, it has nothing left to do.
    async fn needless(&self, owner: Option<UnixStream>) -> &'static str {
        if let Some(mut owner) = owner {
            let mut byte = [0];
            match owner.read(&mut byte).await {
                // What it sends after the configuration is its farewell.
                Ok(1..) => {
                    self.let_go.store(true, Ordering::Release);
                    tracing::info!("the owner lets its machines run on");
                }
                _ => return "the owner is gone",
            }
        }
        self.idle().await;
        "no machine runs any more"
    }

    /// Returns when a detached worker has nothing left to do.
    async fn idle(&self) {
        let mut activity = self.activity.subscribe();
        let mut started = false;
        let mut deadline = Instant::now() + IDLE;
        loop {
            let now = *activity.borrow_and_update();
            started |= now.running > 0;
            if now.running > 0 || now.connections > 0 {
                deadline = Instant::now() + IDLE;
                if activity.changed().await.is_err() {
                    return;
                }
                continue;
            }
            if started && self.close_if_idle().await {
                return;
            }
            if started {
                continue;
            }
            tokio::select! {
                () = sleep_until(deadline) => if self.close_if_idle().await { return },
                changed = activity.changed() => if changed.is_err() { return },
            }
        }
    }

    /// Starts no machine any more, unless somebody may just want that.
    async fn close_if_idle(&self) -> bool {
        let _members = self.members.lock().await;
        let now = *self.activity.borrow();
        let idle = now.running == 0 && now.connections == 0;
        if idle {
            self.closed.store(true, Ordering::Release);
        }
        idle
    }

    /// True if what is started now would be killed at once. That the owner is gone is seen here as
    /// soon as it is, whenever [`Worker::needless`] has its turn.
    fn is_ending(&self) -> bool {
        let orphaned = || {
            let owner = self.owner.as_ref().map(StdUnixStream::as_raw_fd);
            let peek = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
            match owner.map(|owner| recv(owner, &mut [0], peek)) {
                None | Some(Ok(1..) | Err(Errno::EAGAIN | Errno::EINTR)) => false,
                Some(Ok(0) | Err(_)) => !self.let_go.load(Ordering::Acquire),
            }
        };
        self.closed.load(Ordering::Acquire) || orphaned()
    }

    async fn kill_all(&self) {
        let members = {
            let mut members = self.members.lock().await;
            self.closed.store(true, Ordering::Release);
            std::mem::take(&mut *members)
        };
        for member in members.values() {
            member.kill();
        }
        for member in members.values() {
            member.ended().await;
        }
    }

    async fn converse(self: &Arc<Self>, mut stream: UnixStream) -> io::Result<()> {
        let same_user = stream.peer_cred()?.uid() == nix::unistd::geteuid().as_raw();
        let root = stream.peer_cred()?.uid() == 0;
        if !same_user && !root {
            return Err(io::Error::from(io::ErrorKind::PermissionDenied));
        }
        let request = timeout(REQUEST_DEADLINE, async {
            let hello: Hello = wire::receive_async(&mut stream).await?;
            wire::send_async(&mut stream, &Hello::own()).await?;
            if hello.protocol != Hello::own().protocol {
                return Ok(None);
            }
            wire::receive_async(&mut stream).await.map(Some)
        });
        match request.await?? {
            None => Ok(()),
            Some(Request::Dial { vm, port }) => self.dial(stream, &vm, port).await,
            Some(Request::Serial { vm }) => self.serial(stream, &vm).await,
            Some(Request::Events { vm }) => self.events(stream, &vm).await,
            Some(Request::Wait { vm }) => {
                // The client may lose interest before the machine ends.
                let (mut read, mut write) = stream.split();
                let mut byte = [0];
                tokio::select! {
                    reply = self.wait(&vm) => wire::send_async(&mut write, &reply).await,
                    _ = read.read(&mut byte) => Ok(()),
                }
            }
            // Whoever asks this wants to start a machine, and finds or starts another worker.
            Some(Request::List | Request::Start(_)) if self.is_ending() => Err(ending()),
            Some(Request::Start(spec)) => {
                let reply = self.start(*spec).await.ok_or_else(ending)?;
                wire::send_async(&mut stream, &reply).await
            }
            Some(request) => {
                // Carried out to its end even if the client goes away in between.
                let end = matches!(request, Request::Shutdown);
                let reply = self.answer(request).await;
                let sent = wire::send_async(&mut stream, &reply).await;
                if end {
                    self.shutdown.send_replace(true);
                }
                sent
            }
        }
    }

    async fn answer(self: &Arc<Self>, request: Request) -> Reply {
        match request {
            Request::List => Reply::Machines(self.list().await),
            Request::Console { vm } => match self.member(&vm).await {
                Ok(member) => Reply::Console(member.console_tail()),
                Err(reply) => reply,
            },
            Request::Forward { vm, host, port } => self.forward(&vm, host, port).await,
            Request::Forwards { vm } => match self.member(&vm).await {
                Ok(member) if !member.has_ended() => Reply::Forwards(member.forwards()),
                Ok(_) => not_running(&vm),
                Err(reply) => reply,
            },
            Request::Stop { vm, deadline_ms } => {
                self.stop(&vm, Duration::from_millis(deadline_ms)).await
            }
            Request::Links(order) => match self.network.order(order) {
                Ok(()) => Reply::Done,
                Err(error) => failed(Reason::Other, format!("cannot change the links: {error}")),
            },
            Request::Forget { vm } => {
                self.forget(&vm).await;
                Reply::Done
            }
            Request::Shutdown => {
                self.kill_all().await;
                Reply::Done
            }
            Request::Start(_)
            | Request::Dial { .. }
            | Request::Wait { .. }
            | Request::Serial { .. }
            | Request::Events { .. } => failed(
                Reason::Other,
                "not a request that is answered here".to_owned(),
            ),
        }
    }

    /// The machine of that name, running or ended.
    async fn member(&self, vm: &str) -> Result<Arc<Member>, Reply> {
        self.members
            .lock()
            .await
            .get(vm)
            .cloned()
            .ok_or_else(|| not_running(vm))
    }

    /// Starts a machine; no answer if the worker is ending. Carried out to its end even if the client
    /// goes away in between.
    async fn start(self: &Arc<Self>, spec: MachineSpec) -> Option<Reply> {
        let name = spec.name.clone();
        let refused = |why| Some(failed(Reason::Other, why));
        let mut claim = None;
        let (member, already) = loop {
            let mut members = self.members.lock().await;
            if self.is_ending() {
                return None;
            }
            match members.get(&name) {
                Some(member) if !member.has_ended() => break (Arc::clone(member), true),
                old => {
                    if claim.is_none()
                        && let Some(wanted) = spec.claim.clone()
                    {
                        // That may wait for others, for whom the other members must not.
                        drop(members);
                        let hold = move || wanted.hold().map_err(io::Error::other);
                        claim = match tokio::task::spawn_blocking(hold).await {
                            Ok(Ok(held)) => Some(held),
                            Ok(Err(error)) => return refused(unstarted(&name, error)),
                            Err(error) => return refused(unstarted(&name, error.into())),
                        };
                        continue;
                    }
                    if old.is_none() && members.len() >= MAX_MACHINES {
                        return refused(format!(
                            "cannot start {name}: a cluster has at most {MAX_MACHINES} VMs"
                        ));
                    }
                    if old.is_some() {
                        self.network.detach(&name);
                    }
                    let link = match self.network.attach(&name, spec.mac, spec.ip) {
                        Ok(link) => link,
                        Err(error) => {
                            return refused(format!(
                                "cannot attach {name} to its network: {error}"
                            ));
                        }
                    };
                    match Member::spawn(spec, link, claim).await {
                        Ok(member) => {
                            members.insert(name.clone(), Arc::clone(&member));
                            self.count(Arc::clone(&member));
                            break (member, false);
                        }
                        Err(error) => return refused(unstarted(&name, error)),
                    }
                }
            }
        };
        match member.settled().await {
            State::Ended(report) => refused(
                report
                    .failure
                    .unwrap_or_else(|| format!("{name} powered off at once")),
            ),
            State::Starting | State::Running => Some(Reply::Started {
                already,
                ip: Some(member.ip()),
            }),
        }
    }

    /// Counts the machine as running until it ends, and then takes it off the network.
    fn count(self: &Arc<Self>, member: Arc<Member>) {
        let worker = Arc::clone(self);
        worker
            .activity
            .send_modify(|activity| activity.running += 1);
        tokio::spawn(async move {
            member.ended().await;
            {
                let members = worker.members.lock().await;
                // If it has been started again, its place on the network is the new one's.
                if members
                    .get(member.name())
                    .is_some_and(|now| Arc::ptr_eq(now, &member))
                {
                    worker.network.detach(member.name());
                }
            }
            worker
                .activity
                .send_modify(|activity| activity.running -= 1);
        });
    }

    async fn list(&self) -> Vec<MachineStatus> {
        let members = self.members.lock().await;
        members
            .values()
            .map(|member| MachineStatus {
                name: member.name().to_owned(),
                running: !member.has_ended(),
                ip: Some(member.ip()),
            })
            .collect()
    }

    async fn wait(&self, vm: &str) -> Reply {
        match self.member(vm).await {
            Ok(member) => Reply::Ended(member.ended().await),
            Err(reply) => reply,
        }
    }

    async fn stop(&self, vm: &str, deadline: Duration) -> Reply {
        let member = match self.member(vm).await {
            Ok(member) if !member.has_ended() => member,
            Ok(_) => return not_running(vm),
            Err(reply) => return reply,
        };
        let forced = if deadline.is_zero() {
            // As a power failure: the guest learns nothing.
            true
        } else {
            member.press_power_button();
            timeout(deadline, member.ended()).await.is_err()
        };
        if forced {
            tracing::info!(vm, ?deadline, "the guest did not power off, killed");
            member.kill();
            member.ended().await;
        }
        Reply::Stopped { forced }
    }

    async fn forget(&self, vm: &str) {
        let Ok(member) = self.member(vm).await else {
            return;
        };
        member.kill();
        member.ended().await;
        let mut members = self.members.lock().await;
        // Unless it was started again meanwhile.
        if members.get(vm).is_some_and(|now| Arc::ptr_eq(now, &member)) {
            members.remove(vm);
            self.network.detach(vm);
            self.network.forget(vm);
        }
    }

    async fn dial(&self, mut stream: UnixStream, vm: &str, port: u16) -> io::Result<()> {
        let mut byte = [0];
        let connected = tokio::select! {
            connected = self.connect(vm, port) => connected,
            // The client says nothing before it is connected: it has given up.
            _ = stream.read(&mut byte) => return Ok(()),
        };
        let mut guest = match connected {
            Ok(guest) => guest,
            Err(reply) => return wire::send_async(&mut stream, &reply).await,
        };
        wire::send_async(&mut stream, &Reply::Connected).await?;
        tokio::io::copy_bidirectional(&mut stream, &mut guest).await?;
        stream.shutdown().await
    }

    /// The serial console, both ways, until the machine or the client ends.
    async fn serial(&self, mut stream: UnixStream, vm: &str) -> io::Result<()> {
        let member = match self.member(vm).await {
            Ok(member) => member,
            Err(reply) => return wire::send_async(&mut stream, &reply).await,
        };
        wire::send_async(&mut stream, &Reply::Connected).await?;
        let (recent, mut live) = member.follow_console();
        let (mut read, mut write) = stream.split();
        write.write_all(&recent).await?;
        let mut typed = [0; TYPED];
        let mut ended = pin!(member.ended());
        let mut typing = true;
        loop {
            tokio::select! {
                // Output that came before the end stands before it.
                biased;
                output = live.recv() => match output {
                    Ok(bytes) => write.write_all(&bytes).await?,
                    Err(RecvError::Lagged(_)) => write.write_all(MISSED).await?,
                    Err(RecvError::Closed) => break,
                },
                length = read.read(&mut typed), if typing => match length? {
                    // The client's other direction may go on.
                    0 => typing = false,
                    length => member.type_in(typed.get(..length).unwrap_or_default()),
                },
                _ = &mut ended => break,
            }
        }
        write.shutdown().await
    }

    /// What happens to a machine, until it ends or the client does.
    async fn events(&self, mut stream: UnixStream, vm: &str) -> io::Result<()> {
        let member = match self.member(vm).await {
            Ok(member) => member,
            Err(reply) => return wire::send_async(&mut stream, &reply).await,
        };
        wire::send_async(&mut stream, &Reply::Connected).await?;
        let (past, mut live) = member.follow_events();
        let (mut read, mut write) = stream.split();
        let mut last = false;
        for event in &past {
            last = event.event.is_end();
            wire::send_async(&mut write, event).await?;
        }
        let mut byte = [0];
        while !last {
            tokio::select! {
                event = live.recv() => match event {
                    Ok(event) => {
                        last = event.event.is_end();
                        wire::send_async(&mut write, &event).await?;
                    }
                    // Some are missed, as by everybody who looks too late.
                    Err(RecvError::Lagged(_)) => {}
                    Err(RecvError::Closed) => break,
                },
                // The client says nothing: it is gone.
                _ = read.read(&mut byte) => break,
            }
        }
        write.shutdown().await
    }

    async fn connect(&self, vm: &str, port: u16) -> Result<GuestStream, Reply> {
        let member = self.member(vm).await?;
        if member.has_ended() {
            return Err(not_running(vm));
        }
        tokio::select! {
            connected = self.network.connect(member.ip(), port) => connected.map_err(|error| {
                failed(Reason::Refused, format!("cannot connect to port {port} of {vm}: {error}"))
            }),
            _ = member.ended() => Err(not_running(vm)),
        }
    }

    async fn forward(&self, vm: &str, host: u16, port: u16) -> Reply {
        let member = match self.member(vm).await {
            Ok(member) if !member.has_ended() => member,
            Ok(_) => return not_running(vm),
            Err(reply) => return reply,
        };
        let ip = member.ip();
        match member.forward((host, port), || self.network.forward(host, ip, port)) {
            Ok(address) => Reply::Forwarded(address),
            Err(error) => failed(
                Reason::Other,
                match host {
                    0 => format!("cannot forward to port {port} of {vm}: {error}"),
                    host => format!(
                        "cannot publish port {port} of {vm} as port {host} of this host: {error}"
                    ),
                },
            ),
        }
    }
}

/// Closes a connection without an answer.
fn ending() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionAborted, "this worker is ending")
}

fn failed(reason: Reason, message: String) -> Reply {
    Reply::Failed { reason, message }
}

/// Why a machine has no process.
fn unstarted(vm: &str, error: io::Error) -> String {
    format!("cannot start a process for {vm}: {error}")
}

fn not_running(vm: &str) -> Reply {
    failed(
        Reason::NotRunning,
        format!("{vm} is not running; start it with `fleetbox up {vm}`"),
    )
}

/// A lock whose holder never panics with it held in a way that matters here.
pub(super) fn lock<T>(mutex: &StdMutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
