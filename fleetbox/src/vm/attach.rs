//! Finding the worker of a VM, or starting one and becoming its owner.
//!
//! The process that takes a cluster's lock may create its VM and start its worker. The worker then
//! takes over the lock. A process that does not get the lock talks to the worker that has it. If
//! the worker is just starting or ending, the process waits until it can do one or the other.

use std::collections::HashMap;
use std::fs::OpenOptions;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::{Arc, LazyLock, Mutex, Weak};
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::host::bridge;
use crate::model::lifetime::Lifetime;
use crate::model::names::Name;
use crate::process::{Client, Lifeline, ProcessError, WorkerConfig, start_worker};
use crate::store::{ClusterDir, Store};
use crate::util::sync::lock;

/// How long a worker may take to start or end while another process waits for its cluster.
const PATIENCE: Duration = Duration::from_secs(60);

/// How often a held lock is tried again.
const POLL: Duration = Duration::from_millis(20);

/// How often to look for another worker when the one that was found is about to end.
const ATTEMPTS: u32 = 5;

/// Decides whether to repeat a request to a worker: the worker that was found may have been about to end.
pub(crate) struct Attempts(u32);

impl Attempts {
    pub(crate) fn new() -> Self {
        Self(ATTEMPTS)
    }

    /// True if one of the errors means that the worker is gone, and this was not the last attempt.
    pub(crate) fn again<'a>(&mut self, errors: impl IntoIterator<Item = &'a Error>) -> bool {
        self.0 -= 1;
        let gone = |error: &Error| matches!(error, Error::Process(error) if error.is_worker_gone());
        self.0 > 0 && errors.into_iter().any(gone)
    }
}

/// A running worker, and whether this process owns it.
#[derive(Debug)]
pub(crate) struct Attachment {
    pub(crate) client: Client,
    /// Present if this process owns a bound worker.
    pub(crate) lifeline: Option<Arc<Lifeline>>,
}

/// Attaches to the worker of a cluster, and starts it if it does not run. `prepare` creates the VMs
/// that do not exist. It is called while the cluster's lock is held, or while the worker runs.
///
/// It blocks on the file system and on the start of a process, so call it on a thread for blocking
/// work. `runtime` is where it talks to a worker.
pub(crate) fn attach(
    store: &Store,
    cluster: &Name,
    lifetime: Lifetime,
    runtime: &tokio::runtime::Handle,
    prepare: impl FnOnce() -> Result<()>,
) -> Result<Attachment> {
    let cluster = store.cluster(cluster);
    let name = cluster.name();
    let client = client(&cluster);
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(lock) = cluster.try_lock()? {
            if let Err(error) = prepare().and_then(|()| check_network(store, &cluster)) {
                drop(lock);
                if let Err(error) = cluster.remove_if_unused() {
                    tracing::debug!(%error, "cannot remove the directory of the cluster");
                }
                return Err(error);
            }
            let config = WorkerConfig {
                home: store.home().to_owned(),
                cluster: name.clone(),
                detached: lifetime == Lifetime::Detached,
            };
            let log = OpenOptions::new()
                .create(true)
                .write(true)
                .truncate(true)
                .mode(0o600)
                .open(cluster.log())
                .map_err(|source| ProcessError::StartWorker {
                    cluster: name.to_string(),
                    source,
                })?;
            let lock = lock.into_file();
            let lifeline = start_worker(&config, lock.as_fd(), log)?;
            let lifeline = (lifetime != Lifetime::Detached).then(|| own(&cluster, lifeline));
            return Ok(Attachment { client, lifeline });
        }
        match runtime.block_on(client.list()) {
            Ok(_) => {
                prepare()?;
                return Ok(Attachment {
                    client,
                    lifeline: owned(&cluster),
                });
            }
            Err(error) if error.is_worker_gone() => {}
            // The host may just be busy.
            Err(error) if !error.is_silence() || Instant::now() > deadline => {
                return Err(error.into());
            }
            Err(_) => {}
        }
        if Instant::now() > deadline {
            return Err(Error::Busy {
                name: name.clone(),
                waited: PATIENCE,
            });
        }
        std::thread::sleep(POLL);
    }
}

/// The lifelines of this process, by the cluster's directory. All handles on a VM share one, so the
/// VM runs until the last handle is dropped.
static OWNED: LazyLock<Mutex<HashMap<PathBuf, Weak<Lifeline>>>> = LazyLock::new(Mutex::default);

fn own(cluster: &ClusterDir, lifeline: Lifeline) -> Arc<Lifeline> {
    let lifeline = Arc::new(lifeline);
    let mut owned = lock(&OWNED);
    owned.retain(|_, lifeline| lifeline.strong_count() > 0);
    owned.insert(cluster.path().to_owned(), Arc::downgrade(&lifeline));
    lifeline
}

/// The lifeline of this process, if it owns the cluster's worker.
pub(crate) fn owned(cluster: &ClusterDir) -> Option<Arc<Lifeline>> {
    let owned = lock(&OWNED);
    owned.get(cluster.path())?.upgrade()
}

/// A client for the cluster's worker, running or not.
pub(crate) fn client(cluster: &ClusterDir) -> Client {
    Client::new(cluster.name().as_str(), cluster.path())
}

/// How long the machines of a killed worker may take to end.
pub(crate) const ENDING: Duration = Duration::from_secs(5);

/// Kills a worker that does not answer, and with it all machines of its cluster. Nothing happens if it has just ended.
///
/// # Errors
/// The worker cannot be reached, or belongs to another user.
pub(crate) async fn end_worker(cluster: &ClusterDir) -> Result<()> {
    if client(cluster).end_worker().await? {
        let deadline = tokio::time::Instant::now() + ENDING;
        // Another process may start the next worker at once.
        while cluster.is_running()? && tokio::time::Instant::now() < deadline {
            tokio::time::sleep(POLL).await;
        }
    }
    Ok(())
}

/// Checks the host's network before a worker joins it, so that the caller gets a precise error
/// rather than that of a worker. The cluster's lock is held.
fn check_network(store: &Store, cluster: &ClusterDir) -> Result<()> {
    if let Some(subnet) = bridge::of_cluster(cluster)? {
        bridge::permitted()?;
        // Leftovers of a killed worker would get in the way.
        bridge::down(store, cluster.name())?;
        bridge::check(cluster.name(), subnet)?;
    }
    Ok(())
}
