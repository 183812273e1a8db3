//! Describing a VM, and starting it.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use fleetbox_devices::block::{Base, Format, LayerOptions, create_layer};
use fleetbox_vmm::net::Subnet;

use crate::bridge::{self, BridgeError, Network};
use crate::budget::{Budget, Claim, Want};
use crate::configure::Extras;
use crate::extra_disk::ExtraDisk;
use crate::fixture::{self, Fixture};
use crate::images::progress::Silent;
use crate::images::{DEFAULT_IMAGE, Image, ImageFormat, ImageRef, Progress};
use crate::launch::Launch;
use crate::lifecycle::{self, Lifetime};
use crate::names::{Name, Reference, check_cpus};
use crate::process::{Backend, BootSpec, DiskFormat, DiskSpec, MachineSpec};
use crate::resources::Asked;
use crate::seed::{self, DEFAULT_USER, GuestConfig, Seed};
use crate::ssh::Keypair;
use crate::store::{ImageRecord, MacAddr, Store, VmDir, VmPaths, VmRecord, now};
use crate::vm::Vm;
use crate::{Error, Result, Size, testing};

/// vCPUs of a VM for which no number is given.
///
/// ```
/// use fleetbox::{DEFAULT_BOOT_TIMEOUT, DEFAULT_CPUS, DEFAULT_DISK, DEFAULT_MEMORY, Size};
///
/// assert_eq!((DEFAULT_CPUS, DEFAULT_MEMORY, DEFAULT_DISK), (2, Size::gib(2), Size::gib(20)));
/// assert_eq!(DEFAULT_BOOT_TIMEOUT.as_secs(), 300);
/// ```
pub const DEFAULT_CPUS: u32 = 2;
/// Memory of a VM for which no size is given. The host gives what the guest touches.
///
/// ```
/// use fleetbox::{DEFAULT_MEMORY, Vm};
///
/// let twice = Vm::test().memory(fleetbox::Size::from_bytes(2 * DEFAULT_MEMORY.bytes()));
/// ```
pub const DEFAULT_MEMORY: Size = Size::gib(2);
/// Disk of a VM for which no size is given. The host stores what the guest writes.
///
/// ```
/// assert_eq!(fleetbox::DEFAULT_DISK, fleetbox::Size::gib(20));
/// ```
pub const DEFAULT_DISK: Size = Size::gib(20);
/// How long a guest may take from its first instruction to an SSH log-in.
///
/// ```
/// use fleetbox::{DEFAULT_BOOT_TIMEOUT, Vm};
///
/// let emulated = Vm::test().boot_timeout(3 * DEFAULT_BOOT_TIMEOUT);
/// ```
pub const DEFAULT_BOOT_TIMEOUT: Duration = Duration::from_secs(300);

/// A VM that is to be started. Made by [`Vm::builder`] and [`Vm::test`].
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
    name: String,
    lifetime: Lifetime,
    image: Option<String>,
    cpus: Option<u32>,
    memory: Option<Size>,
    disk: Option<Size>,
    user: Option<String>,
    fixtures: Vec<(PathBuf, String)>,
    network: Option<Network>,
    home: Option<PathBuf>,
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

/// A description that has been checked.
pub(crate) struct Plan {
    pub(crate) name: Name,
    pub(crate) image: ImageRef,
    cpus: u8,
    pub(crate) memory: Size,
    disk: Size,
    user: String,
    pub(crate) fixtures: Vec<Fixture>,
    config: GuestConfig,
    extra_disks: Vec<ExtraDisk>,
    network: Option<Network>,
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
            home: None,
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
    ///
    /// ```
    /// # use fleetbox::Vm;
    /// let vm = Vm::test().cpus(4);
    /// ```
    pub fn cpus(mut self, cpus: u32) -> Self {
        self.cpus = Some(cpus);
        self
    }

    /// Memory ([`DEFAULT_MEMORY`] if not given); the host gives only what the guest touches.
    ///
    /// ```
    /// # use fleetbox::{Size, Vm};
    /// let vm = Vm::test().memory(Size::gib(4));
    /// ```
    pub fn memory(mut self, memory: Size) -> Self {
        self.memory = Some(memory);
        self
    }

    /// Size of the disk ([`DEFAULT_DISK`] if not given), no less than the image's. The host
    /// stores only what the guest writes.
    ///
    /// ```
    /// # use fleetbox::{Size, Vm};
    /// let vm = Vm::test().disk(Size::gib(40));
    /// ```
    pub fn disk(mut self, disk: Size) -> Self {
        self.disk = Some(disk);
        self
    }

    /// The user that is created in the guest, with password-less sudo (`fleetbox` if not given).
    ///
    /// ```no_run
    /// # async fn example() -> fleetbox::Result<()> {
    /// # use fleetbox::Vm;
    /// let vm = Vm::test().user("admin").start().await?;
    /// assert_eq!(vm.ssh("whoami").await?.stdout_text(), "admin\n");
    /// # Ok(()) }
    /// ```
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
    ///
    /// ```
    /// # use fleetbox::Vm;
    /// let vm = Vm::builder("web").home("/srv/vms");
    /// ```
    pub fn home(mut self, home: impl Into<PathBuf>) -> Self {
        self.home = Some(home.into());
        self
    }

    /// How long the guest may take until it answers by SSH ([`DEFAULT_BOOT_TIMEOUT`] if not
    /// given).
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use fleetbox::Vm;
    /// let vm = Vm::test().boot_timeout(Duration::from_secs(60));
    /// ```
    pub fn boot_timeout(mut self, timeout: Duration) -> Self {
        self.boot_timeout = timeout;
        self
    }

    /// Who is told of an image's download, of waiting for memory and of the phases of a start (nobody if
    /// not given); see
    /// [`progress::stderr`](crate::images::progress::stderr).
    ///
    /// ```no_run
    /// # async fn example() -> fleetbox::Result<()> {
    /// use fleetbox::images::progress;
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
    ///
    /// ```
    /// use fleetbox::budget::Budget;
    /// use fleetbox::{Size, Vm};
    ///
    /// let vm = Vm::test().memory_budget(Budget::of(Size::gib(8)));
    /// ```
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

    /// Starts the VM, creating it if there is none of its name, and waits until it answers by
    /// SSH, or for what [`VmBuilder::wait_for`] was given. A VM that runs already, in whatever process, is attached to; one that exists is
    /// booted as it was created, and options that differ are ignored with a warning (see
    /// [`Vm::ignored_options`]).
    ///
    /// ```no_run
    /// # async fn example() -> fleetbox::Result<()> {
    /// use fleetbox::Error;
    ///
    /// match fleetbox::Vm::builder("web").start().await {
    ///     Ok(vm) => println!("{} is up: {}", vm.name(), vm.timings()),
    ///     Err(Error::Host(probe)) => println!("no VMs here: {}", Error::Host(probe)),
    ///     Err(error) => return Err(error),
    /// }
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Error::Invalid`] for a bad name, size, count or image, [`Error::Host`] if VMs cannot run
    /// here, both before anything is downloaded or created; [`Error::Budget`] if there is no memory
    /// for it and none will come free; [`Error::NotReady`] with the
    /// console's last lines if the guest fails or does not answer in time.
    pub async fn start(self) -> Result<Vm> {
        let (name, launch) = self.launch()?;
        let (_, vms) = launch.start().await?;
        vms.into_iter().next().ok_or(Error::NoVm { name })
    }

    /// Stops the VM, which exists, if it runs, and starts it again as [`VmBuilder::start`] does. It is
    /// not stopped if it is known before that it could not be started.
    ///
    /// ```no_run
    /// # async fn example() -> fleetbox::Result<()> {
    /// use fleetbox::{STOP_DEADLINE, Vm};
    ///
    /// let vm = Vm::builder("web").detached().restart(STOP_DEADLINE).await?;
    /// assert!(!vm.was_running(), "it was booted anew");
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Error::NoVm`], and those of [`VmBuilder::start`] and [`Vm::stop_within`].
    pub async fn restart(self, deadline: Duration) -> Result<Vm> {
        let (name, launch) = self.launch()?;
        let (_, vms) = launch.restart(deadline).await?;
        vms.into_iter().next().ok_or(Error::NoVm { name })
    }

    /// The start of the VM, and its name.
    fn launch(self) -> Result<(Name, Launch)> {
        let reference: Reference = self.name.parse()?;
        let name = reference.name().clone();
        let launch = Launch {
            cluster: reference.cluster().unwrap_or(&name).clone(),
            anywhere: reference.cluster().is_none(),
            alone: true,
            lifetime: self.lifetime,
            home: self.home.clone(),
            members: vec![self.named(&name)],
        };
        Ok((name, launch))
    }

    /// The same for the test of that path, unless its user has given it a name.
    pub(crate) fn named_after(mut self, path: &str) -> Self {
        if self.lifetime == Lifetime::Ephemeral {
            self.name = testing::name::for_test(path);
        }
        self
    }

    /// Creates the VM without starting it, and so without a need for KVM: [`VmBuilder::start`] does
    /// that later. False if there is a VM of that name already, which stays as it is. It is an
    /// ordinary one that stays until it is removed.
    ///
    /// ```no_run
    /// # async fn example() -> fleetbox::Result<()> {
    /// fleetbox::Vm::builder("web").image("debian-12").create().await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As [`VmBuilder::start`], but for what has to do with running it; [`Error::Lacking`] all the same
    /// if this host has less than what is asked for.
    pub async fn create(self) -> Result<bool> {
        let (_, mut launch) = self.launch()?;
        launch.lifetime = Lifetime::Detached;
        Ok(!launch.create().await?.is_empty())
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
    /// [`Error::Invalid`], [`Error::Fixture`], [`Error::Seed`] or [`Error::Ready`].
    pub fn check(&self) -> Result<()> {
        self.plan().map(drop)
    }

    /// The same for a VM of another name.
    pub(crate) fn named(mut self, name: &Name) -> Self {
        name.as_str().clone_into(&mut self.name);
        self
    }

    /// The state directory, if one was given.
    pub(crate) fn home_dir(&self) -> Option<&Path> {
        self.home.as_deref()
    }

    /// True if this host's KVM is needed.
    pub(crate) fn needs_kvm(&self) -> bool {
        self.backend.has_guest()
    }

    /// Tells a VM's handle how it is run.
    pub(crate) fn equip(&self, vm: Vm) -> Vm {
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

    /// What is asked for of the host, for a VM that is to be created.
    pub(crate) fn asked(&self, plan: &Plan) -> Asked {
        let empty = self.extras.empty_disks();
        let disks = [self.disk, empty].into_iter().flatten();
        Asked {
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

/// What the VM's machine consists of.
pub(crate) fn machine_spec(vm: &VmDir, record: &VmRecord, backend: Backend) -> MachineSpec {
    let durable = !lifecycle::is_ephemeral(vm);
    let disk = |path: PathBuf, format, read_only, serial: &str| DiskSpec {
        path,
        format,
        read_only,
        durable,
        serial: serial.to_owned(),
    };
    let mut disks = vec![
        disk(vm.paths().disk_layer(), DiskFormat::Layer, false, "disk"),
        disk(vm.paths().seed(), DiskFormat::Raw, true, "seed"),
    ];
    for (i, extra) in record.extra_disks.iter().enumerate() {
        disks.push(disk(
            vm.paths().extra_disk(i + 1),
            DiskFormat::Layer,
            extra.is_read_only(),
            &format!("extra-{}", i + 1),
        ));
    }
    disks.extend(fixture::disks(&record.fixtures, vm.paths()));
    let want = Want::new(vm.cluster().clone(), vm.name().clone(), record.memory);
    MachineSpec {
        name: record.name.to_string(),
        cpus: record.cpus,
        memory: record.memory.bytes(),
        boot: BootSpec::Auto,
        disks,
        mac: record.mac.0,
        ip: record.ip,
        console_log: vm.paths().console_log(),
        failure_note: vm.paths().failure(),
        lock: vm.paths().lock(),
        claim: Some(Claim::new(vm.home(), want)),
        backend,
    }
}

/// Makes a VM: its keys, its disk over the image, its seed and its record.
pub(crate) fn create(
    store: &Store,
    cluster: &Name,
    plan: &Plan,
    image: &Image,
    lifetime: Lifetime,
) -> Result<VmDir> {
    let (network, subnet) = network(store, cluster, plan)?;
    let draft = store.create_vm(cluster, &plan.name)?;
    let paths = draft.paths();
    let login = Keypair::of_store(store)?;
    let host_key = Keypair::generate(&format!("{} host key", plan.name))?;
    host_key.save(&paths.host_key())?;
    let disk = create_disk(paths, plan, image, lifetime)?;
    for (i, disk) in plan.extra_disks.iter().enumerate() {
        disk.create(&paths.extra_disk(i + 1), lifetime != Lifetime::Ephemeral)?;
    }
    let mac = MacAddr::random();
    let instance_id = uuid::Uuid::new_v4().to_string();
    Seed {
        instance_id: instance_id.clone(),
        hostname: plan.name.clone(),
        user: plan.user.clone(),
        authorized_keys: vec![login.public().to_string()],
        host_key: host_key.clone(),
        mac,
        mounts: fixture::mounts(&plan.fixtures),
        config: plan.config.clone(),
    }
    .write(&paths.seed())?;
    if lifetime == Lifetime::Ephemeral {
        lifecycle::mark_ephemeral(paths.dir())
            .map_err(Error::io("mark the VM as one to delete with its owner"))?;
    }
    let record = VmRecord {
        name: plan.name.clone(),
        cluster: cluster.clone(),
        image: ImageRecord {
            reference: image.reference.clone(),
            path: image.path.clone(),
            sha256: image.sha256.map(|sum| sum.to_string()),
        },
        cpus: plan.cpus,
        memory: plan.memory,
        disk,
        mac,
        // The first that is free is given to it.
        ip: Ipv4Addr::UNSPECIFIED,
        created: now(),
        instance_id,
        ssh_user: plan.user.clone(),
        ssh_key: login.public().to_string(),
        host_key: host_key.public().to_string(),
        fixtures: plan.fixtures.clone(),
        config: plan.config.clone(),
        extra_disks: plan.extra_disks.clone(),
        network,
    };
    let (vm, lock) = draft.commit_in(&record, subnet)?;
    // The machine process takes it.
    drop(lock);
    Ok(vm)
}

/// The network of a new member: what the others have, or what is asked for, or the user network.
fn network(store: &Store, cluster: &Name, plan: &Plan) -> Result<(Network, Subnet)> {
    let dir = store.cluster(cluster);
    let of_others = dir
        .vms()?
        .iter()
        .find_map(|other| other.record().ok())
        .map(|record| record.network);
    let network = match (of_others, plan.network) {
        (Some(has), Some(asked)) if has != asked => {
            return Err(Error::Bridge(BridgeError::Mixed {
                name: plan.name.clone(),
                cluster: cluster.clone(),
                asked,
                has,
            }));
        }
        (of_others, asked) => of_others.or(asked).unwrap_or_default(),
    };
    let subnet = match network {
        Network::User => Subnet::default(),
        Network::Bridge => match bridge::of_cluster(&dir)? {
            Some(subnet) => subnet,
            None => bridge::free(store, cluster)?,
        },
    };
    Ok((network, subnet))
}

fn create_disk(paths: &VmPaths, plan: &Plan, image: &Image, lifetime: Lifetime) -> Result<Size> {
    let mut base = Base::new(
        &image.path,
        Some(match image.format {
            ImageFormat::Raw => Format::Raw,
            ImageFormat::Qcow2 => Format::Qcow2,
        }),
    );
    base.digest = image.sha256.map(|sum| sum.to_string());
    let options = LayerOptions {
        base: Some(base),
        size: Some(plan.disk.bytes()),
        durable: lifetime != Lifetime::Ephemeral,
    };
    let info = create_layer(&paths.disk_layer(), &options)?;
    Ok(Size::from_bytes(info.size))
}

/// Runs what blocks for moments where that is allowed.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => Err(Error::ShuttingDown),
        },
    }
}

/// A name for the VM of a test: test harnesses name its thread after the test.
pub(crate) fn test_name() -> String {
    let thread = std::thread::current();
    let path = thread.name().filter(|name| *name != "main");
    testing::name::for_test(path.unwrap_or_default())
}

/// The state directory of a builder or the default one.
pub(crate) async fn open_store(home: Option<&Path>) -> Result<Store> {
    let home = match home {
        Some(home) => home.to_owned(),
        None => Store::default_home()?,
    };
    blocking(move || Ok(Store::open(home)?)).await
}
