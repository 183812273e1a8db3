//! Describing a VM, and starting it.

use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use crate::disk::extra_disk::ExtraDisk;
use crate::disk::fixture::{self, Fixture};
use crate::disk::seed::{self, DEFAULT_USER, GuestConfig};
use crate::error::Result;
use crate::host::budget::Budget;
use crate::host::resources::Request;
use crate::images::{DEFAULT_IMAGE, ImageRef};
use crate::model::defaults::{DEFAULT_BOOT_TIMEOUT, DEFAULT_CPUS, DEFAULT_DISK, DEFAULT_MEMORY};
use crate::model::lifetime::Lifetime;
use crate::model::names::{Name, check_cpus};
use crate::model::network::Network;
use crate::model::size::Size;
use crate::model::test_name;
use crate::process::Backend;
use crate::progress::Progress;
use crate::progress::Silent;
use crate::store::VmRecord;
use crate::vm::Vm;
use crate::vm::extras::Extras;
use crate::vm::fleet::Fleet;

/// Options of a VM, and what starts it. Made by [`Vm::builder`] and [`Vm::test`].
///
/// Nothing is checked before [`VmBuilder::start`], and nothing is created before all is checked.
///
/// ```no_run
/// # async fn example() -> fleetbox::Result<()> {
/// use std::time::Duration;
/// use fleetbox::{Size, Vm};
///
/// let vm = Vm::test()
///     .image("ubuntu-24.04")
///     .cpus(4)
///     .memory(Size::gib(4))
///     .disk(Size::gib(40))
///     .user("admin")
///     .boot_timeout(Duration::from_secs(120))
///     .start()
///     .await?;
/// # Ok(()) }
/// ```
#[derive(Clone)]
#[must_use = "a VM is started by `start`"]
pub struct VmBuilder {
    pub(super) name: String,
    pub(super) lifetime: Lifetime,
    image: Option<String>,
    cpus: Option<u32>,
    memory: Option<Size>,
    disk: Option<Size>,
    user: Option<String>,
    fixtures: Vec<(PathBuf, String)>,
    pub(super) network: Option<Network>,
    pub(super) fleet: Fleet,
    /// Whether a VM of this name that exists is refused.
    pub(crate) create_new: bool,
    pub(crate) boot_timeout: Duration,
    pub(crate) progress: Arc<dyn Progress>,
    pub(crate) budget: Option<Budget>,
    pub(crate) backend: Backend,
    pub(crate) extras: Extras,
}

impl std::fmt::Debug for VmBuilder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("VmBuilder")
            .field("name", &self.name)
            .field("lifetime", &self.lifetime)
            .field("image", &self.image)
            .field("cpus", &self.cpus)
            .field("memory", &self.memory)
            .field("disk", &self.disk)
            .field("fixtures", &self.fixtures)
            .field("network", &self.network)
            .field("extras", &self.extras)
            .finish_non_exhaustive()
    }
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
        VmBuilder::new(test_name::of_this_thread(), Lifetime::Ephemeral)
    }
}

/// A description that has been checked.
pub(crate) struct Plan {
    pub(crate) name: Name,
    pub(crate) image: ImageRef,
    pub(super) cpus: u8,
    pub(crate) memory: Size,
    pub(super) disk: Size,
    pub(super) user: String,
    pub(crate) fixtures: Vec<Fixture>,
    pub(super) config: GuestConfig,
    pub(super) extra_disks: Vec<ExtraDisk>,
    pub(super) network: Option<Network>,
}

impl Plan {
    /// True if it asks for a bridge.
    pub(crate) fn is_bridged(&self) -> bool {
        self.network == Some(Network::Bridge)
    }
}

impl VmBuilder {
    pub(crate) fn new(name: String, lifetime: Lifetime) -> Self {
        Self {
            name,
            lifetime,
            image: None,
            cpus: None,
            memory: None,
            disk: None,
            user: None,
            fixtures: Vec::new(),
            network: None,
            fleet: Fleet::new(),
            create_new: false,
            boot_timeout: DEFAULT_BOOT_TIMEOUT,
            progress: Arc::new(Silent),
            budget: None,
            backend: Backend::usual(),
            extras: Extras::default(),
        }
    }

    /// The image: an alias such as `debian-12` (the default), a path such as `./disk.qcow2`, or
    /// an address.
    ///
    /// ```
    /// use fleetbox::Vm;
    ///
    /// let by_alias = Vm::test().image("debian-13");
    /// let by_path = Vm::test().image("./target/appliance.qcow2");
    /// let by_address = Vm::test().image("https://example.org/appliance.raw");
    /// ```
    pub fn image(mut self, image: impl Into<String>) -> Self {
        self.image = Some(image.into());
        self
    }

    /// Number of virtual CPUs ([`DEFAULT_CPUS`] if not given).
    pub fn cpus(mut self, cpus: u32) -> Self {
        self.cpus = Some(cpus);
        self
    }

    /// Memory ([`DEFAULT_MEMORY`] if not given); the host gives only what the guest touches.
    pub fn memory(mut self, memory: Size) -> Self {
        self.memory = Some(memory);
        self
    }

    /// Size of the disk ([`DEFAULT_DISK`] if not given), no less than the image's. The host
    /// stores only what the guest writes.
    pub fn disk(mut self, disk: Size) -> Self {
        self.disk = Some(disk);
        self
    }

    /// The user that is created in the guest, with password-less sudo (`fleetbox` if not given).
    pub fn user(mut self, user: impl Into<String>) -> Self {
        self.user = Some(user.into());
        self
    }

    /// A directory of this host that the guest has at `guest`, read-only, as it is when the VM is
    /// started. May be given for up to [`MAX_FIXTURES`](crate::fixture::MAX_FIXTURES) directories.
    ///
    /// Modes, modification times, symbolic and hard links and holes are kept; everything belongs
    /// to the guest's user ([`crate::fixture`]). Which fixtures a VM has is settled when
    /// it is created; what is in them is copied anew whenever it is started, but not when the
    /// guest reboots itself.
    ///
    /// ```no_run
    /// # async fn example() -> fleetbox::Result<()> {
    /// use fleetbox::Vm;
    ///
    /// let vm = Vm::test().fixture("tests/data", "/work").start().await?;
    /// let out = vm.ssh("ls -l /work").await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn fixture(mut self, host_dir: impl Into<PathBuf>, guest: impl Into<String>) -> Self {
        self.fixtures.push((host_dir.into(), guest.into()));
        self
    }

    /// The network ([`Network::User`] if not given, or that of the cluster's other members). All
    /// members of a cluster have the same.
    ///
    /// ```no_run
    /// # async fn example() -> fleetbox::Result<()> {
    /// use fleetbox::{Network, Vm};
    ///
    /// // Needs CAP_NET_ADMIN; the host then reaches the guest's ports by its address.
    /// let vm = Vm::builder("web").network(Network::Bridge).start().await?;
    /// let stream = std::net::TcpStream::connect((vm.ip(), 22));
    /// # Ok(()) }
    /// ```
    pub fn network(mut self, network: Network) -> Self {
        self.network = Some(network);
        self
    }

    /// The state directory (`$FLEETBOX_HOME`, else `~/.fleetbox`, if not given).
    pub fn home(mut self, home: impl Into<PathBuf>) -> Self {
        self.fleet = Fleet::at(home);
        self
    }

    /// How long the guest may take until it answers by SSH ([`DEFAULT_BOOT_TIMEOUT`] if not
    /// given).
    pub fn boot_timeout(mut self, timeout: Duration) -> Self {
        self.boot_timeout = timeout;
        self
    }

    /// Who is told of an image's download, of waiting for memory and of the phases of a start (nobody if
    /// not given); see
    /// [`progress::stderr`](crate::progress::stderr).
    ///
    /// ```no_run
    /// # async fn example() -> fleetbox::Result<()> {
    /// use fleetbox::progress;
    ///
    /// let vm = fleetbox::Vm::test().progress(progress::stderr()).start().await?;
    /// # Ok(()) }
    /// ```
    pub fn progress(mut self, progress: impl Into<Arc<dyn Progress>>) -> Self {
        self.progress = progress.into();
        self
    }

    /// The memory that all VMs of the host may have together ([`Budget::from_env`] if
    /// not given); a start that does not fit waits its turn, see [`budget`](crate::budget).
    pub fn memory_budget(mut self, budget: Budget) -> Self {
        self.budget = Some(budget);
        self
    }

    /// The VM goes on running when this process ends, until it is stopped. Without, it ends with
    /// this process, whatever way that ends.
    ///
    /// A test VM that is detached is an ordinary one from then on.
    ///
    /// ```no_run
    /// # async fn example() -> fleetbox::Result<()> {
    /// let vm = fleetbox::Vm::builder("web").detached().start().await?;
    /// drop(vm); // it runs on; `fleetbox ssh web` reaches it
    /// # Ok(()) }
    /// ```
    pub fn detached(mut self) -> Self {
        self.lifetime = Lifetime::Detached;
        self
    }

    /// The VM is destroyed when its last handle is dropped or this process ends, as one of
    /// [`Vm::test`] is.
    ///
    /// ```no_run
    /// # async fn example() -> fleetbox::Result<()> {
    /// let vm = fleetbox::Vm::builder("scratch").ephemeral().start().await?;
    /// drop(vm); // nothing is left of it
    /// # Ok(()) }
    /// ```
    pub fn ephemeral(mut self) -> Self {
        self.lifetime = Lifetime::Ephemeral;
        self
    }

    /// Refuses a VM of this name that exists, rather than attaching to it or booting it, even if
    /// somebody creates it while this start waits for its image or for memory.
    ///
    /// ```no_run
    /// # use fleetbox::{Error, Vm};
    /// # async fn example() -> fleetbox::Result<()> {
    /// match Vm::builder("scratch").create_new().start().await {
    ///     Err(Error::Store(error)) => eprintln!("not mine: {error}"),
    ///     started => started?.destroy().await?,
    /// }
    /// # Ok(()) }
    /// ```
    pub fn create_new(mut self) -> Self {
        self.create_new = true;
        self
    }

    /// The same for the test of that path, unless its user has given it a name.
    pub(crate) fn named_after(mut self, path: &str) -> Self {
        if self.lifetime == Lifetime::Ephemeral {
            self.name = test_name::for_test(path);
        }
        self
    }

    /// Checks everything that [`VmBuilder::start`] would refuse whatever there is on this host: names, sizes,
    /// fixtures' places, user data, what is waited for. Nothing is created.
    ///
    /// ```
    /// use fleetbox::{Ready, Vm};
    ///
    /// let vm = Vm::builder("web").wait_for(Ready::Console("login: [".into()));
    /// println!("{}", vm.check().unwrap_err()); // says where the pattern is wrong
    /// assert!(Vm::builder("web").cpus(2).check().is_ok());
    /// ```
    ///
    /// # Errors
    /// [`Error::Invalid`](crate::Error::Invalid), [`Error::Fixture`](crate::Error::Fixture), [`Error::Seed`](crate::Error::Seed) or [`Error::Ready`](crate::Error::Ready).
    pub fn check(&self) -> Result<()> {
        self.plan().map(drop)
    }

    /// The same for a VM of another name.
    pub(crate) fn named(mut self, name: &Name) -> Self {
        name.as_str().clone_into(&mut self.name);
        self
    }

    /// The same for a VM of that state directory.
    pub(super) fn of(mut self, fleet: &Fleet) -> Self {
        self.fleet = fleet.clone();
        self
    }

    /// True if this host's KVM is needed.
    pub(crate) fn needs_kvm(&self) -> bool {
        self.backend.has_guest()
    }

    /// Tells a VM's handle how it is run.
    pub(crate) fn configure(&self, vm: Vm) -> Vm {
        vm.run_by(self.backend.clone(), self.boot_timeout, self.budget)
            .awaiting(self.extras.awaited.clone())
            .with_progress(Arc::clone(&self.progress))
    }

    /// Checks everything that can be without looking at the host.
    pub(crate) fn plan(&self) -> Result<Plan> {
        let user = self.user.clone().unwrap_or_else(|| DEFAULT_USER.to_owned());
        seed::check_user(&user)?;
        let fixtures = self
            .fixtures
            .iter()
            .map(|(host, guest)| Fixture::new(host, guest))
            .collect::<Result<Vec<_>, _>>()?;
        fixture::check(&fixtures, &user)?;
        let (config, extra_disks) = self.extras.check()?;
        Ok(Plan {
            name: Name::new(self.name.clone())?,
            image: ImageRef::from_str(self.image.as_deref().unwrap_or(DEFAULT_IMAGE))?,
            cpus: check_cpus(self.cpus.unwrap_or(DEFAULT_CPUS))?,
            memory: self.memory.unwrap_or(DEFAULT_MEMORY).check_memory()?,
            disk: self.disk.unwrap_or(DEFAULT_DISK).check_disk()?,
            user,
            fixtures,
            config,
            extra_disks,
            network: self.network,
        })
    }

    /// What a new VM needs of the host.
    pub(crate) fn asked(&self, plan: &Plan) -> Request {
        let empty = self.extras.empty_disks();
        let disks = [self.disk, empty].into_iter().flatten();
        Request {
            cpus: self.cpus.map(|_| plan.cpus),
            memory: self.memory,
            disks: disks.reduce(Size::plus),
        }
    }

    /// Options that were given and differ from those of a VM that exists.
    pub(crate) fn ignored(&self, plan: &Plan, record: &VmRecord) -> Vec<&'static str> {
        let given = [
            (
                "image",
                self.image
                    .as_ref()
                    .is_some_and(|image| *image != record.image.reference),
            ),
            (
                "cpus",
                self.cpus.is_some_and(|cpus| cpus != u32::from(record.cpus)),
            ),
            (
                "memory",
                self.memory.is_some_and(|memory| memory != record.memory),
            ),
            ("disk", self.disk.is_some_and(|disk| disk != record.disk)),
            (
                "user",
                self.user
                    .as_ref()
                    .is_some_and(|user| *user != record.ssh_user),
            ),
            (
                "fixtures",
                !self.fixtures.is_empty() && plan.fixtures != record.fixtures,
            ),
            (
                "configuration",
                !plan.config.is_empty() && plan.config != record.config,
            ),
            (
                "extra disks",
                !plan.extra_disks.is_empty() && plan.extra_disks != record.extra_disks,
            ),
            (
                "network",
                self.network
                    .is_some_and(|network| network != record.network),
            ),
        ];
        given
            .into_iter()
            .filter(|(_, differs)| *differs)
            .map(|(option, _)| option)
            .collect()
    }
}
