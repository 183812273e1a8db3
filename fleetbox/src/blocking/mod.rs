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
use std::panic::{AssertUnwindSafe, resume_unwind};
use std::path::Path;
use std::sync::OnceLock;
use std::time::Duration;

mod builder;
mod child;
mod cluster;
mod vm;

pub use builder::VmBuilder;
pub use child::{Child, Stderr, Stdin, Stdout};
pub use cluster::{Cluster, ClusterBuilder};
pub use vm::Vm;

use futures::FutureExt as _;
use tokio::runtime::Runtime;

use crate::error::{Error, Result};
use crate::model::event::TimedEvent;
use crate::model::names::Reference;
use crate::store::{VmDir, VmRecord};
use crate::util::task::ShuttingDown;
use crate::vm::list::{Resolution, VmInfo};
use crate::vm::resize::Resize;
use crate::vm::stop::Stopped;

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
        Err(_) => Err(ShuttingDown.into()),
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
    run(async move { crate::vm::list::list(home.as_deref()).await })
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
    run(async move { crate::vm::list::find(home.as_deref(), &name).await })
}

/// See [`crate::resolve`].
///
/// ```no_run
/// use fleetbox::Resolution;
///
/// let free = matches!(fleetbox::blocking::resolve(None, "web")?, Resolution::Nothing);
/// # Ok::<(), fleetbox::Error>(())
/// ```
///
/// # Errors
/// Those of [`crate::resolve`].
pub fn resolve(home: Option<&Path>, name: &str) -> Result<Resolution> {
    let (home, name) = (home.map(Path::to_owned), name.to_owned());
    run(async move { crate::vm::list::resolve(home.as_deref(), &name).await })
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
    run(async move { crate::vm::stop::stop(home.as_deref(), &name, deadline).await })
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
    run(async move { crate::vm::resize::resize(home.as_deref(), &name, change).await })
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
    run(async move { crate::vm::remove::prune(home.as_deref()).await })
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
    run(async move { crate::vm::remove::prune_only(home.as_deref(), &vms).await })
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
    run(async move { crate::vm::remove::remove(home.as_deref(), &name).await })
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
pub struct Events(Option<crate::vm::events::Events>);

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
