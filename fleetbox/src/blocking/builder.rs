//! The builder of a VM.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::facade::options;
use super::{Vm, run};
use crate::disk::extra_disk::ExtraDisk;
use crate::error::Result;
use crate::host::budget::Budget;
use crate::model::network::Network;
use crate::model::ready::Ready;
use crate::model::size::Size;
use crate::progress::Progress;
use crate::vm::builder;

/// [`crate::VmBuilder`] with methods that block.
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
#[must_use = "call `start` to start the VM"]
pub struct VmBuilder(pub(super) builder::VmBuilder);

impl From<builder::VmBuilder> for VmBuilder {
    fn from(builder: builder::VmBuilder) -> Self {
        Self(builder)
    }
}

impl From<VmBuilder> for builder::VmBuilder {
    fn from(builder: VmBuilder) -> Self {
        builder.0
    }
}

impl VmBuilder {
    options! { "VmBuilder":
        fn image(image: impl Into<String>);
        fn cpus(cpus: u32);
        fn memory(memory: Size);
        fn disk(disk: Size);
        fn user(user: impl Into<String>);
        fn fixture(host_dir: impl Into<PathBuf>, guest: impl Into<String>);
        fn network(network: Network);
        fn home(home: impl Into<PathBuf>);
        fn boot_timeout(timeout: Duration);
        fn progress(progress: impl Into<Arc<dyn Progress>>);
        fn memory_budget(budget: Budget);
        fn detached();
        fn ephemeral();
        fn create_new();
        fn user_data(document: impl Into<String>);
        fn package(name: impl Into<String>);
        fn run_command(command: impl Into<String>);
        fn env(name: impl Into<String>, value: impl Into<String>);
        fn ssh_key(key: impl Into<String>);
        fn extra_disk(disk: ExtraDisk);
        fn wait_for(ready: Ready);
        fn wait_for_within(ready: Ready, deadline: Duration);
    }

    /// See [`crate::VmBuilder::check`].
    ///
    /// # Errors
    /// Those of the asynchronous method.
    pub fn check(&self) -> Result<()> {
        self.0.check()
    }

    /// See [`crate::VmBuilder::create`].
    ///
    /// # Errors
    /// Those of the asynchronous method.
    pub fn create(self) -> Result<bool> {
        run(self.0.create())
    }

    /// See [`crate::VmBuilder::start`].
    ///
    /// # Errors
    /// Those of the asynchronous method.
    pub fn start(self) -> Result<Vm> {
        run(self.0.start()).map(Vm::from)
    }

    /// See [`crate::VmBuilder::restart`].
    ///
    /// # Errors
    /// Those of the asynchronous method.
    pub fn restart(self, deadline: Duration) -> Result<Vm> {
        run(self.0.restart(deadline)).map(Vm::from)
    }
}
