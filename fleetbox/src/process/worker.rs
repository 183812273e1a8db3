//! The worker process: owns one cluster's network and the life cycle of its machines.
//!
//! While it lives it holds the cluster's lock and serves the control socket. The lock is inherited,
//! so it is held without a gap. A bound worker ends when the socket to its owner reads as closed. A
//! detached one ends when none of its machines is running any more.

use std::collections::BTreeMap;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv};
use tokio::io::AsyncReadExt;
use tokio::net::{UnixListener, UnixStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Mutex, watch};
use tokio::time::{Instant, sleep_until};

use super::entry::exit_status;
use super::member::Member;
use super::network::ClusterNetwork;
use super::protocol::{Readiness, WorkerConfig};
use super::{socket, wire};
use crate::store::ephemeral;
use crate::store::{ClusterDir, Store};

/// How long a detached worker without machines waits for work.
const IDLE: Duration = Duration::from_secs(20);

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
            tracing::error!(%error, "cannot read the configuration");
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
            // The owner may be gone.
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
        Err(_) => ClusterNetwork::disconnect(&store, &cluster),
    }
    result
}

/// Serves as long as the cluster is needed. None of its machines is running afterwards.
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
            Err(error) => tracing::warn!(vm = %vm.name(), %error, "cannot add its name to the DNS"),
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
    tracing::info!(cluster = %config.cluster, detached = config.detached, "the worker is serving");

    let mut terminate =
        signal(SignalKind::terminate()).map_err(|e| format!("cannot watch for signals: {e}"))?;
    let serving = tokio::spawn(serve(Arc::clone(&worker), listener));
    let mut shutdown = worker.shutdown.subscribe();
    tokio::select! {
        why = worker.until_unneeded(owner) => tracing::info!("{why}"),
        _ = shutdown.wait_for(|down| *down) => tracing::info!("ending on request"),
        _ = terminate.recv() => tracing::info!("ending on SIGTERM"),
    }
    serving.abort();
    worker.kill_all().await;
    Ok(())
}

/// Removes everything of a cluster that ends, except the VMs to keep.
fn clear_away(store: &Store, config: &WorkerConfig, lock: OwnedFd) {
    let cluster = store.cluster(&config.cluster);
    if let Err(error) = std::fs::remove_file(cluster.path().join(socket::NAME)) {
        tracing::debug!(%error, "cannot remove the socket");
    }
    let members = cluster.vms().unwrap_or_else(|error| {
        tracing::warn!(%error, "cannot look for VMs to delete");
        Vec::new()
    });
    for vm in members.into_iter().filter(ephemeral::is_ephemeral) {
        if let Err(error) = ephemeral::delete(&vm) {
            tracing::warn!(vm = %vm.name(), %error, "cannot delete the VM");
        }
    }
    ClusterNetwork::disconnect(store, &cluster);
    // The directory goes with its last VM, but not while the lock says that it is in use.
    drop(lock);
    if let Err(error) = cluster.remove_if_unused() {
        tracing::debug!(%error, "cannot remove the cluster's directory");
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
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// The activity that keeps a detached worker alive.
#[derive(Debug, Clone, Copy)]
pub(super) struct Activity {
    pub(super) running: usize,
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

pub(super) struct Worker {
    pub(super) network: ClusterNetwork,
    /// The socket to the owner of a bound worker.
    pub(super) owner: Option<StdUnixStream>,
    /// The owner has let the worker go, so the owner's end no longer matters.
    pub(super) let_go: AtomicBool,
    /// No more machines are started. It is set with `members` locked.
    pub(super) closed: AtomicBool,
    pub(super) members: Mutex<BTreeMap<String, Arc<Member>>>,
    pub(super) activity: watch::Sender<Activity>,
    pub(super) shutdown: watch::Sender<bool>,
}

impl Worker {
    /// Waits until this worker is no longer needed, and returns why: its owner is gone or, without
    /// an owner, it has nothing left to do.
    async fn until_unneeded(&self, owner: Option<UnixStream>) -> &'static str {
        if let Some(mut owner) = owner {
            let mut byte = [0];
            match owner.read(&mut byte).await {
                // What it sends after the configuration is its farewell.
                Ok(1..) => {
                    self.let_go.store(true, Ordering::Release);
                    tracing::info!("the owner has let the worker go; its machines keep running");
                }
                _ => return "the owner is gone",
            }
        }
        self.idle().await;
        "no machine is running any more"
    }

    /// Waits until a detached worker has nothing left to do.
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

    /// Stops starting machines, unless a client may be about to ask for that.
    async fn close_if_idle(&self) -> bool {
        let _members = self.members.lock().await;
        let now = *self.activity.borrow();
        let idle = now.running == 0 && now.connections == 0;
        if idle {
            self.closed.store(true, Ordering::Release);
        }
        idle
    }

    /// True if a machine started now would be killed at once. This checks the owner itself, because
    /// [`Worker::until_unneeded`] may notice later that the owner is gone.
    pub(super) fn is_ending(&self) -> bool {
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

    pub(super) async fn kill_all(&self) {
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
}
