//! Describing a VM, and starting it.

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use fleetbox_devices::block::{Base, Format, LayerOptions, create_layer};
use tokio::time::Instant;

use crate::budget::{self, Budget, Want};
use crate::images::progress::Silent;
use crate::images::{DEFAULT_IMAGE, Image, ImageFormat, ImageRef, Images, Progress};
use crate::lifecycle::{self, Lifetime};
use crate::names::{Name, check_cpus};
use crate::process::{BootSpec, DiskFormat, DiskSpec, MachineSpec, ProcessError};
use crate::seed::{self, DEFAULT_USER, Seed};
use crate::ssh::Keypair;
use crate::store::{ImageRecord, MacAddr, Store, VmDir, VmPaths, VmRecord, now};
use crate::timing::{Clock, Phase};
use crate::vm::{self, Vm};
use crate::{Error, Result, Size, preflight};

/// vCPUs of a VM for which no number is given.
pub const DEFAULT_CPUS: u32 = 2;
/// Memory of a VM for which no size is given. The host gives what the guest touches.
pub const DEFAULT_MEMORY: Size = Size::gib(2);
/// Disk of a VM for which no size is given. The host stores what the guest writes.
pub const DEFAULT_DISK: Size = Size::gib(20);
/// How long a guest may take from its first instruction to an SSH log-in.
pub const DEFAULT_BOOT_TIMEOUT: Duration = Duration::from_secs(300);

/// A VM that is to be started. Made by [`Vm::builder`] and [`Vm::test`].
///
/// Nothing is checked before [`VmBuilder::start`], and nothing is created before all is checked.
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
    home: Option<PathBuf>,
    boot_timeout: Duration,
    progress: Arc<dyn Progress>,
    budget: Option<Budget>,
    #[cfg(test)]
    pub(crate) fake: Option<crate::process::fake::Script>,
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
            .finish_non_exhaustive()
    }
}

/// A description that has been checked.
struct Plan {
    name: Name,
    image: ImageRef,
    cpus: u8,
    memory: Size,
    disk: Size,
    user: String,
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
            home: None,
            boot_timeout: DEFAULT_BOOT_TIMEOUT,
            progress: Arc::new(Silent),
            budget: None,
            #[cfg(test)]
            fake: None,
        }
    }

    /// The image: an alias such as `debian-12` (the default), a path such as `./disk.qcow2`, or
    /// an address.
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

    /// The state directory (`$FLEETBOX_HOME`, else `~/.fleetbox`, if not given).
    pub fn home(mut self, home: impl Into<PathBuf>) -> Self {
        self.home = Some(home.into());
        self
    }

    /// How long the guest may take until it answers by SSH ([`DEFAULT_BOOT_TIMEOUT`] if not
    /// given).
    pub fn boot_timeout(mut self, timeout: Duration) -> Self {
        self.boot_timeout = timeout;
        self
    }

    /// Who is told of an image's download and of waiting for memory (nobody if not given); see
    /// [`progress::stderr`](crate::images::progress::stderr).
    pub fn progress(mut self, progress: impl Into<Arc<dyn Progress>>) -> Self {
        self.progress = progress.into();
        self
    }

    /// The memory that all VMs of the state directory may have together ([`Budget::from_env`] if
    /// not given); a start that does not fit waits its turn, see [`budget`](crate::budget).
    pub fn memory_budget(mut self, budget: Budget) -> Self {
        self.budget = Some(budget);
        self
    }

    /// The VM goes on running when this process ends, until it is stopped. Without, it ends with
    /// this process, whatever way that ends.
    ///
    /// A test VM that is detached is an ordinary one from then on.
    pub fn detached(mut self) -> Self {
        self.lifetime = Lifetime::Detached;
        self
    }

    /// Starts the VM, creating it if there is none of its name, and waits until it answers by
    /// SSH. A VM that runs already, in whatever process, is attached to; one that exists is
    /// booted as it was created, and options that differ are ignored with a warning (see
    /// [`Vm::ignored_options`]).
    ///
    /// # Errors
    /// [`Error::Invalid`] for a bad name, size, count or image, [`Error::Host`] if VMs cannot run
    /// here, both before anything is downloaded or created; [`Error::Budget`] if there is no memory
    /// for it and none will come free; [`Error::NotReady`] with the
    /// console's last lines if the guest fails or does not answer in time.
    pub async fn start(self) -> Result<Vm> {
        let mut clock = Clock::start();
        let plan = self.plan()?;
        let home = match self.home.clone() {
            Some(home) => home,
            None => Store::default_home()?,
        };
        let budget = match self.budget {
            Some(budget) => budget,
            None => Budget::from_env()?,
        };
        if self.needs_kvm() {
            preflight::check()?;
        }
        clock.done(Phase::Preflight);
        let store = blocking(move || Ok(Store::open(home)?)).await?;
        let images = Images::new(&store)?;
        {
            let store = store.clone();
            blocking(move || {
                // What cannot be swept hinders no start.
                if let Err(error) = lifecycle::sweep(&store) {
                    tracing::warn!(%error, "cannot remove what killed processes left");
                }
                Ok(())
            })
            .await?;
        }
        let existing = store.cluster(&plan.name).vm(&plan.name);
        let want = match &existing {
            Some(vm) if vm.is_running()? => None,
            Some(vm) => Some(vm.record()?.memory),
            None => Some(plan.memory),
        };
        let wants: Vec<Want> = want
            .map(|memory| Want::new(plan.name.clone(), plan.name.clone(), memory))
            .into_iter()
            .collect();
        budget.check(&wants)?;
        let image = match &existing {
            Some(_) => None,
            None => {
                let resolved = images.resolve(&plan.image)?;
                Some(images.pull(&resolved, self.progress.as_ref()).await?)
            }
        };
        clock.done(Phase::Image);

        let lease = budget::acquire(&store, budget, wants, self.progress.as_ref()).await?;
        clock.done(Phase::Memory);
        let plan = Arc::new(plan);
        let vm = self
            .run(&mut clock, &store, plan, image, existing.is_some())
            .await?;
        // It holds its own lock now, which counts as long as it runs.
        drop(lease);
        clock.done(Phase::Machine);
        if self.needs_kvm() {
            vm.wait_for_ssh(Instant::now() + self.boot_timeout).await?;
        }
        clock.done(Phase::Boot);
        let timings = clock.finish();
        tracing::info!(vm = %vm.name(), %timings, "started");
        Ok(vm.with_timings(timings))
    }

    /// Finds or starts the VM's worker, and has it start the machine.
    async fn run(
        &self,
        clock: &mut Clock,
        store: &Store,
        plan: Arc<Plan>,
        image: Option<Image>,
        existed: bool,
    ) -> Result<Vm> {
        let mut attempts = 3;
        loop {
            let attached = {
                let (store, plan, image) = (store.clone(), Arc::clone(&plan), image.clone());
                let lifetime = self.lifetime;
                let runtime = tokio::runtime::Handle::current();
                let work = move || {
                    let create = || match &image {
                        Some(image) => create(&store, &plan, image, lifetime),
                        // Another process has removed it since it was looked up.
                        None => Err(Error::NoVm {
                            name: plan.name.clone(),
                        }),
                    };
                    lifecycle::attach(&store, &plan.name, lifetime, &runtime, create)
                };
                blocking(work).await?
            };
            clock.done(Phase::Create);
            let record = attached.vm.record()?;
            let ignored = if existed {
                self.ignored(&record)
            } else {
                Vec::new()
            };
            if !ignored.is_empty() {
                tracing::warn!(vm = %plan.name, ?ignored, "the VM exists; these options are ignored");
            }
            let spec = self.spec(&attached.vm, &record);
            let mut vm = Vm::attached(store.clone(), attached, record, ignored)?;
            match vm.start_machine(spec).await {
                Ok(()) => return Ok(vm),
                // The worker was about to end when it was found.
                Err(Error::Process(ProcessError::NoWorker { .. } | ProcessError::Lost { .. }))
                    if attempts > 1 =>
                {
                    attempts -= 1;
                }
                Err(error) => return Err(error),
            }
        }
    }

    #[cfg(not(test))]
    fn needs_kvm(&self) -> bool {
        true
    }

    #[cfg(test)]
    fn needs_kvm(&self) -> bool {
        self.fake.is_none()
    }

    /// Checks everything that can be without looking at the host.
    fn plan(&self) -> Result<Plan> {
        let user = self.user.clone().unwrap_or_else(|| DEFAULT_USER.to_owned());
        seed::check_user(&user)?;
        Ok(Plan {
            name: Name::new(self.name.clone())?,
            image: ImageRef::from_str(self.image.as_deref().unwrap_or(DEFAULT_IMAGE))?,
            cpus: check_cpus(self.cpus.unwrap_or(DEFAULT_CPUS))?,
            memory: self.memory.unwrap_or(DEFAULT_MEMORY).check_memory()?,
            disk: self.disk.unwrap_or(DEFAULT_DISK).check_disk()?,
            user,
        })
    }

    /// Options that were given and differ from those of a VM that exists.
    fn ignored(&self, record: &VmRecord) -> Vec<&'static str> {
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
        ];
        given
            .into_iter()
            .filter(|(_, differs)| *differs)
            .map(|(option, _)| option)
            .collect()
    }

    fn spec(&self, vm: &VmDir, record: &VmRecord) -> MachineSpec {
        let disk = |path: PathBuf, format, read_only, serial: &str| DiskSpec {
            path,
            format,
            read_only,
            durable: self.lifetime != Lifetime::Ephemeral,
            serial: serial.to_owned(),
        };
        MachineSpec {
            name: record.name.to_string(),
            cpus: record.cpus,
            memory: record.memory.bytes(),
            boot: BootSpec::Auto,
            disks: vec![
                disk(vm.paths().disk_layer(), DiskFormat::Layer, false, "disk"),
                disk(vm.paths().seed(), DiskFormat::Raw, true, "seed"),
            ],
            mac: record.mac.0,
            ip: record.ip,
            console_log: vm.paths().console_log(),
            lock: vm.paths().lock(),
            #[cfg(test)]
            fake: self.fake.clone(),
        }
    }
}

/// Makes a VM: its keys, its disk over the image, its seed and its record.
fn create(store: &Store, plan: &Plan, image: &Image, lifetime: Lifetime) -> Result<VmDir> {
    let draft = store.create_vm(&plan.name, &plan.name)?;
    let paths = draft.paths();
    let login = Keypair::of_store(store)?;
    let host_key = Keypair::generate(&format!("{} host key", plan.name))?;
    host_key.save(&paths.host_key())?;
    let disk = create_disk(paths, plan, image, lifetime)?;
    let mac = MacAddr::random();
    let instance_id = uuid::Uuid::new_v4().to_string();
    Seed {
        instance_id: instance_id.clone(),
        hostname: plan.name.clone(),
        user: plan.user.clone(),
        authorized_keys: vec![login.public().to_string()],
        host_key: host_key.clone(),
        mac,
    }
    .write(&paths.seed())?;
    if lifetime == Lifetime::Ephemeral {
        lifecycle::mark_ephemeral(paths.dir())
            .map_err(Error::io("mark the VM as one to delete with its owner"))?;
    }
    let record = VmRecord {
        name: plan.name.clone(),
        cluster: plan.name.clone(),
        image: ImageRecord {
            reference: image.reference.clone(),
            path: image.path.clone(),
            sha256: image.sha256.map(|sum| sum.to_string()),
        },
        cpus: plan.cpus,
        memory: plan.memory,
        disk,
        mac,
        ip: vm::FIRST_IP,
        created: now(),
        instance_id,
        ssh_user: plan.user.clone(),
        ssh_key: login.public().to_string(),
        host_key: host_key.public().to_string(),
    };
    let (vm, lock) = draft.commit(&record)?;
    // Nobody else looks for it before the cluster's lock is free, which the caller holds; the
    // machine process takes the VM's own.
    drop(lock);
    Ok(vm)
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

/// A name for a test VM: that of the thread, which test harnesses name after the test, and
/// something that no other has.
pub(crate) fn test_name() -> String {
    let thread = std::thread::current();
    let stem: String = thread
        .name()
        .filter(|name| *name != "main")
        .and_then(|name| name.rsplit("::").next())
        .unwrap_or("test")
        .chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() {
                c.to_ascii_lowercase()
            } else {
                '-'
            }
        })
        .take(40)
        .collect();
    let stem = stem.trim_matches('-');
    let stem = if stem.is_empty() { "test" } else { stem };
    let unique = uuid::Uuid::new_v4().simple().to_string();
    format!("{stem}-{}", &unique[..8])
}

/// The state directory of a builder or the default one.
pub(crate) async fn open_store(home: Option<&Path>) -> Result<Store> {
    let home = match home {
        Some(home) => home.to_owned(),
        None => Store::default_home()?,
    };
    blocking(move || Ok(Store::open(home)?)).await
}
