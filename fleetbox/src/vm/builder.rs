//! The description of a VM.

use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use crate::disk::extra_disk::ExtraDisk;
use crate::disk::fixture::{self, Fixture};
use crate::disk::seed::{self, DEFAULT_USER, GuestConfig};
use crate::error::{CPUS, Differing, Error, MEMORY, Result};
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
use crate::store::{VmDir, VmRecord};
use crate::vm::Vm;
use crate::vm::extras::Extras;
use crate::vm::fleet::Fleet;

/// The options of a VM, and the methods that start it. Made by [`Vm::builder`] and [`Vm::test`].
///
/// The options are checked by [`VmBuilder::start`], all of them before it creates anything.
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
#[must_use = "call `start` to start the VM"]
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
    /// Whether to refuse a VM of this name that already exists.
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
    /// Describes a VM with a name. Its disk stays until [`Vm::destroy`]. `CLUSTER/NAME` means a
    /// member of that cluster, which is added if it does not exist.
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

    /// Describes a VM for a test. It gets a unique name made from the name of the test, and it is
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

/// A VM's description after it was checked.
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

    /// The image: an alias such as `debian-12` (the default), a path such as `./disk.qcow2`, or a
    /// URL.
    ///
    /// ```
    /// use fleetbox::Vm;
    ///
    /// let by_alias = Vm::test().image("debian-13");
    /// let by_path = Vm::test().image("./target/appliance.qcow2");
    /// let by_url = Vm::test().image("https://example.org/appliance.raw");
    /// ```
    pub fn image(mut self, image: impl Into<String>) -> Self {
        self.image = Some(image.into());
        self
    }

    /// Number of virtual CPUs. The default is [`DEFAULT_CPUS`].
    pub fn cpus(mut self, cpus: u32) -> Self {
        self.cpus = Some(cpus);
        self
    }

    /// Memory. The default is [`DEFAULT_MEMORY`]. The guest takes host memory only as it uses it.
    pub fn memory(mut self, memory: Size) -> Self {
        self.memory = Some(memory);
        self
    }

    /// Size of the disk, which must not be smaller than the image. The default is [`DEFAULT_DISK`].
    /// The host stores only what the guest writes.
    pub fn disk(mut self, disk: Size) -> Self {
        self.disk = Some(disk);
        self
    }

    /// Name of the user that is created in the guest, with password-less sudo. The default is
    /// `fleetbox`.
    pub fn user(mut self, user: impl Into<String>) -> Self {
        self.user = Some(user.into());
        self
    }

    /// Gives the guest a read-only copy of the host's directory `host_dir`, mounted at `guest`. A
    /// VM can have up to [`MAX_FIXTURES`](crate::fixture::MAX_FIXTURES) of them.
    ///
    /// The copy keeps modes, modification times, symbolic and hard links and holes. Everything in
    /// it belongs to the guest's user (see [`crate::fixture`]). The list of fixtures is fixed when
    /// the VM is created. Their content is copied again each time the VM is started, but not when
    /// the guest reboots itself.
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

    /// The network. The default is that of the cluster's other members, or [`Network::User`] for a
    /// new cluster. All members of a cluster have the same network.
    ///
    /// ```no_run
    /// # async fn example() -> fleetbox::Result<()> {
    /// use fleetbox::{Network, Vm};
    ///
    /// // Needs CAP_NET_ADMIN. The host can then reach the guest at its address.
    /// let vm = Vm::builder("web").network(Network::Bridge).start().await?;
    /// let stream = std::net::TcpStream::connect((vm.ip(), 22));
    /// # Ok(()) }
    /// ```
    pub fn network(mut self, network: Network) -> Self {
        self.network = Some(network);
        self
    }

    /// The state directory. The default is `$FLEETBOX_HOME`, or `~/.fleetbox` if that is not set.
    pub fn home(mut self, home: impl Into<PathBuf>) -> Self {
        self.fleet = Fleet::at(home);
        self
    }

    /// How long the guest may take until it answers over SSH. The default is
    /// [`DEFAULT_BOOT_TIMEOUT`].
    pub fn boot_timeout(mut self, timeout: Duration) -> Self {
        self.boot_timeout = timeout;
        self
    }

    /// Receives progress: the download of an image, waits for memory and the phases of a start. By default nothing is
    /// shown. See [`progress::stderr`](crate::progress::stderr).
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

    /// The memory that all VMs of the host may use together. The default is [`Budget::from_env`]. A
    /// start that does not fit waits for its turn; see [`budget`](crate::budget).
    pub fn memory_budget(mut self, budget: Budget) -> Self {
        self.budget = Some(budget);
        self
    }

    /// Keeps the VM running after this process has ended, until it is stopped. Without this option
    /// the VM ends with this process, even if the process is killed.
    ///
    /// A test VM that is detached becomes an ordinary VM.
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

    /// Destroys the VM when its last handle is dropped or this process ends, like a VM of
    /// [`Vm::test`].
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

    /// Fails if a VM of this name already exists, rather than attaching to it or booting it. This
    /// holds even if another process creates the VM while this start waits for its image or for
    /// memory.
    ///
    /// ```no_run
    /// # use fleetbox::{Error, Vm};
    /// # async fn example() -> fleetbox::Result<()> {
    /// match Vm::builder("scratch").create_new().start().await {
    ///     Err(Error::Store(error)) => eprintln!("it exists already: {error}"),
    ///     started => started?.destroy().await?,
    /// }
    /// # Ok(()) }
    /// ```
    pub fn create_new(mut self) -> Self {
        self.create_new = true;
        self
    }

    /// Names the VM after the test at `path`, unless it already has a name.
    pub(crate) fn named_after(mut self, path: &str) -> Self {
        if self.lifetime == Lifetime::Ephemeral {
            self.name = test_name::for_test(path);
        }
        self
    }

    /// Checks all options that can be checked without looking at the host: names, sizes, mount points of fixtures,
    /// user data, and conditions to wait for. [`VmBuilder::start`] would refuse them anyway. Nothing is created.
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
    /// [`Error::Invalid`], [`Error::Fixture`], [`Error::Seed`] or [`Error::Ready`].
    pub fn check(&self) -> Result<()> {
        self.plan().map(drop)
    }

    /// The same options with another name.
    pub(crate) fn named(mut self, name: &Name) -> Self {
        name.as_str().clone_into(&mut self.name);
        self
    }

    /// The same options with another state directory.
    pub(super) fn of(mut self, fleet: &Fleet) -> Self {
        self.fleet = fleet.clone();
        self
    }

    /// True if the VM needs KVM.
    pub(crate) fn needs_kvm(&self) -> bool {
        self.backend.has_guest()
    }

    /// Passes the options for running the VM to its handle.
    pub(crate) fn configure(&self, vm: Vm) -> Vm {
        vm.run_by(self.backend.clone(), self.boot_timeout, self.budget)
            .with_conditions(self.extras.conditions.clone())
            .with_progress(Arc::clone(&self.progress))
    }

    /// Checks what can be checked without looking at the host.
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
        seed::check_config(&user, &config)?;
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

    /// What a new VM needs from the host.
    pub(crate) fn asked(&self, plan: &Plan) -> Request {
        let empty = self.extras.empty_disks();
        let disks = [self.disk, empty].into_iter().flatten();
        Request {
            cpus: self.cpus.map(|_| plan.cpus),
            memory: self.memory,
            disks: disks.reduce(Size::plus),
        }
    }

    /// Checks that an existing VM is what the options that were given describe.
    ///
    /// # Errors
    /// [`Error::Differs`] with the options that differ; a record that cannot be read.
    pub(crate) fn agree(&self, plan: &Plan, vm: &VmDir) -> Result<()> {
        let record = vm.record()?;
        let differing = self.differing(plan, &record);
        if differing.is_empty() {
            return Ok(());
        }
        Err(Error::Differs {
            vm: Box::new(vm.reference()),
            differing,
        })
    }

    /// The options that were given and differ from those of an existing VM.
    fn differing(&self, plan: &Plan, record: &VmRecord) -> Vec<Differing> {
        let mut differing = Vec::new();
        let mut note = |option: &'static str, has: Option<String>, asked: Option<String>| {
            differing.push(Differing { option, has, asked });
        };
        if let Some(image) = &self.image
            && !is_image(image, plan, record)
        {
            let has = record.image.reference.clone();
            note("image", Some(has), Some(image.clone()));
        }
        if self.cpus.is_some() && plan.cpus != record.cpus {
            note(
                CPUS,
                Some(record.cpus.to_string()),
                Some(plan.cpus.to_string()),
            );
        }
        for (option, asked, has) in [
            (MEMORY, self.memory, record.memory),
            ("disk size", self.disk, record.disk),
        ] {
            if let Some(asked) = asked.filter(|asked| *asked != has) {
                note(option, Some(has.to_string()), Some(asked.to_string()));
            }
        }
        if self.user.is_some() && plan.user != record.ssh_user {
            note(
                "user",
                Some(record.ssh_user.clone()),
                Some(plan.user.clone()),
            );
        }
        if let Some(network) = self.network.filter(|network| *network != record.network) {
            let has = record.network.to_string();
            note("network", Some(has), Some(network.to_string()));
        }
        for (option, differs) in [
            (
                "fixtures",
                !self.fixtures.is_empty() && plan.fixtures != record.fixtures,
            ),
            (
                "settings for the guest",
                !plan.config.is_empty() && plan.config != record.config,
            ),
            (
                "extra disks",
                !plan.extra_disks.is_empty() && plan.extra_disks != record.extra_disks,
            ),
        ] {
            if differs {
                note(option, None, None);
            }
        }
        differing
    }
}

/// True if `image` names the image of an existing VM, perhaps by another path.
fn is_image(image: &str, plan: &Plan, record: &VmRecord) -> bool {
    if *image == record.image.reference {
        return true;
    }
    match &plan.image {
        ImageRef::Path(path) => match (path.canonicalize(), record.image.path.canonicalize()) {
            (Ok(asked), Ok(has)) => asked == has,
            _ => false,
        },
        ImageRef::Alias(_) | ImageRef::Url(_) => false,
    }
}
