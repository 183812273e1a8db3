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
//! A [`Cluster`] is a group of VMs that share a network.
//!
//! [`Vm`], [`Cluster`], [`Fleet`] and the builders have all methods of the asynchronous types. Parts that tests
//! rarely use have no blocking version: images, work trees, ports and statistics of a guest, and the proxy. Use them
//! with [`block_on`] and [`Vm::as_async`].
//!
//! These functions can be called from anywhere. In an asynchronous function they block its thread.

use std::future::Future;
use std::panic::resume_unwind;
use std::sync::OnceLock;

mod builder;
mod child;
mod cluster;
mod facade;
mod fleet;
mod vm;

pub use builder::VmBuilder;
pub use child::{Child, Stderr, Stdin, Stdout};
pub use cluster::{Cluster, ClusterBuilder};
pub use fleet::Fleet;
pub use vm::Vm;

use tokio::runtime::{Handle, Runtime};

use crate::error::{Error, Result};
use crate::model::event::TimedEvent;

/// The runtime that does the work, shared by the whole process.
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
    // If two threads get here at once, one runtime is used and the other is dropped.
    Ok(RUNTIME.get_or_init(|| runtime))
}

/// Runs `work` to its end. A thread that belongs to a runtime must not block on another runtime. If the caller is on
/// such a thread, the work runs on a new one.
fn run<T, E>(work: impl Future<Output = Result<T, E>> + Send) -> Result<T>
where
    T: Send,
    E: Into<Error> + Send,
{
    let runtime = runtime()?;
    let work = || runtime.block_on(work).map_err(Into::into);
    if Handle::try_current().is_err() {
        return work();
    }
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("fleetbox".to_owned());
        let thread = thread
            .spawn_scoped(scope, work)
            .map_err(Error::io("start a thread"))?;
        thread.join().unwrap_or_else(|panic| resume_unwind(panic))
    })
}

/// Runs asynchronous code of this crate that has no blocking version, and waits for its end.
///
/// ```no_run
/// use fleetbox::blocking::{Vm, block_on};
/// use fleetbox::guest;
///
/// let vm = Vm::open("web")?;
/// let inner = vm.as_async();
/// let stats = block_on(guest::stats(&inner))?;
/// println!("{:.0} % of {} CPUs", stats.cpu * 100.0, stats.cpus);
/// # Ok::<(), fleetbox::Error>(())
/// ```
///
/// # Errors
/// Those of `work`.
///
/// # Panics
/// If `work` panics.
pub fn block_on<T, E>(work: impl Future<Output = Result<T, E>> + Send) -> Result<T>
where
    T: Send,
    E: Into<Error> + Send,
{
    run(work)
}

/// [`crate::Events`] as an iterator. It ends when the VM ends, and after an error.
///
/// ```no_run
/// # fn example(vm: fleetbox::blocking::Vm) -> fleetbox::Result<()> {
/// for event in vm.events()? {
///     println!("{:?}", event?.event);
/// }
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct Events(Option<crate::vm::events::Events>);

impl Iterator for Events {
    type Item = Result<TimedEvent>;

    fn next(&mut self) -> Option<Self::Item> {
        let next = run(self.0.as_mut()?.next()).transpose();
        if !matches!(next, Some(Ok(_))) {
            self.0 = None;
        }
        next
    }
}
