//! VMs.

use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::facade::{values, waits};
use super::{Child, Events, VmBuilder, run};
use crate::error::{Error, Result};
use crate::files::{CopySummary, FileOptions};
use crate::model::names::Reference;
use crate::model::ready::Ready;
use crate::model::stream::Stream;
use crate::model::timing::Timings;
use crate::progress::Progress;
use crate::ssh::{Output, PtyRequest};
use crate::vm;
use crate::vm::remote::PublishedPort;
use crate::vm::stop::StopOutcome;

/// [`crate::Vm`] with methods that block.
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
pub struct Vm(pub(super) Arc<vm::Vm>);

impl From<vm::Vm> for Vm {
    fn from(vm: vm::Vm) -> Self {
        Self(Arc::new(vm))
    }
}

impl Vm {
    /// See [`crate::Vm::builder`].
    pub fn builder(name: impl Into<String>) -> VmBuilder {
        VmBuilder(vm::Vm::builder(name))
    }

    /// See [`crate::Vm::test`].
    pub fn test() -> VmBuilder {
        VmBuilder(vm::Vm::test())
    }

    /// See [`crate::Vm::open`].
    ///
    /// # Errors
    /// Those of the asynchronous method.
    pub fn open(name: &str) -> Result<Self> {
        run(vm::Vm::open(name)).map(Self::from)
    }

    /// The same VM for asynchronous code, such as code in [`block_on`](super::block_on).
    ///
    /// ```no_run
    /// # fn example(vm: fleetbox::blocking::Vm) -> fleetbox::Result<()> {
    /// use fleetbox::{blocking::block_on, guest};
    ///
    /// let inner = vm.as_async();
    /// for listener in block_on(guest::ports(&inner))? {
    ///     println!("{listener:?}");
    /// }
    /// # Ok(()) }
    /// ```
    pub fn as_async(&self) -> Arc<vm::Vm> {
        Arc::clone(&self.0)
    }

    /// See [`crate::Vm::with_progress`].
    #[must_use]
    pub fn with_progress(self, progress: impl Into<Arc<dyn Progress>>) -> Self {
        Self::from(self.0.another().with_progress(progress))
    }

    /// See [`crate::Vm::destroy`].
    ///
    /// # Errors
    /// Those of the asynchronous method.
    pub fn destroy(self) -> Result<()> {
        run(self.0.remove())
    }

    values! { "Vm":
        fn reference() -> Reference;
        fn name() -> &str;
        fn cluster() -> &str;
        fn ip() -> Ipv4Addr;
        fn image() -> &str;
        fn was_running() -> bool;
        fn timings() -> &Timings;
    }

    waits! { "Vm":
        fn ssh(command: &str) -> Output;
        fn ssh_spawn(command: &str) -> Child = child;
        fn ssh_pty(pty: &PtyRequest, command: Option<&str>) -> Child = child;
        fn ssh_with_input(command: &str, stdin: &[u8]) -> Output;
        fn connect(port: u16) -> UnixStream = socket;
        fn publish(host_port: u16, guest_port: u16) -> SocketAddr;
        fn published() -> Vec<PublishedPort>;
        fn forward(guest_port: u16) -> SocketAddr;
        fn wait_ready(timeout: Duration) -> ();
        fn wait_for(ready: Ready, timeout: Duration) -> ();
        fn copy_to(host: impl AsRef<Path> + Send, guest: &str) -> CopySummary;
        fn copy_to_with(host: impl AsRef<Path> + Send, guest: &str, options: &FileOptions) -> CopySummary;
        fn copy_from(guest: &str, host: impl AsRef<Path> + Send) -> CopySummary;
        fn copy_from_with(guest: &str, host: impl AsRef<Path> + Send, options: &FileOptions) -> CopySummary;
        fn write(path: &str, bytes: impl AsRef<[u8]> + Send) -> ();
        fn write_with(path: &str, bytes: impl AsRef<[u8]> + Send, options: &FileOptions) -> ();
        fn read(path: &str) -> Vec<u8>;
        fn read_with(path: &str, options: &FileOptions) -> Vec<u8>;
        fn console() -> UnixStream = socket;
        fn console_tail() -> String;
        fn events() -> Events = events;
        fn stop() -> StopOutcome;
        fn stop_within(deadline: Duration) -> StopOutcome;
        fn kill() -> ();
        fn start() -> ();
        fn restart() -> ();
        fn wait() -> ();
    }
}

fn child(child: crate::ssh::Child) -> Result<Child> {
    Ok(Child::new(child))
}

fn events(events: vm::events::Events) -> Result<Events> {
    Ok(Events(Some(events)))
}

/// Turns a stream into a blocking one. It has to leave its runtime, so this runs on the runtime.
fn socket(stream: Stream) -> Result<UnixStream> {
    run(async move {
        stream
            .into_std()
            .map_err(Error::io("make a stream blocking"))
    })
}
