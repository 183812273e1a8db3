//! What a VM is described with.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::{Vm, run};
use crate::disk::extra_disk::ExtraDisk;
use crate::error::Result;
use crate::host::budget::Budget;
use crate::model::ready::Ready;
use crate::model::size::Size;
use crate::progress::Progress;

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
pub struct VmBuilder(pub(super) crate::vm::builder::VmBuilder);

impl From<crate::vm::builder::VmBuilder> for VmBuilder {
    fn from(builder: crate::vm::builder::VmBuilder) -> Self {
        Self(builder)
    }
}

impl From<VmBuilder> for crate::vm::builder::VmBuilder {
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
    pub fn network(self, network: crate::model::network::Network) -> Self {
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
    /// use fleetbox::{blocking::Vm, progress};
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
