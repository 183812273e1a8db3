//! Clusters: VMs that share a network.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;

use crate::error::{Error, Result};
use crate::model::lifetime::Lifetime;
use crate::model::names::{Name, check_count};
use crate::model::network::Network;
use crate::model::size::Size;
use crate::model::test_name;
use crate::model::timing::Timings;
use crate::process::Client;
use crate::progress::Progress;
use crate::store::Store;
use crate::store::ephemeral;
use crate::util::task::blocking;
use crate::vm::Vm;
use crate::vm::attach;
use crate::vm::builder::VmBuilder;
use crate::vm::fleet::Fleet;
use crate::vm::launch::Launch;
use crate::vm::stop::STOP_DEADLINE;

/// Prefix of the members' names in a test cluster: `node-1`, `node-2`.
const TEST_MEMBER: &str = "node";

type Configure = Arc<dyn Fn(VmBuilder) -> VmBuilder + Send + Sync>;

/// The options of a cluster, and the methods that start it. Made by [`Cluster::builder`] and
/// [`Cluster::test`].
///
/// The builder's own methods set the options of all members. [`ClusterBuilder::member`] sets those
/// of one. All options are checked before anything is created.
///
/// ```no_run
/// # async fn example() -> fleetbox::Result<()> {
/// use fleetbox::{Cluster, Size};
///
/// let cluster = Cluster::builder("node")
///     .count(3)
///     .image("debian-12")
///     .cpus(2)
///     .memory(Size::gib(1))
///     .disk(Size::gib(10))
///     .detached()
///     .start()
///     .await?;
/// # Ok(()) }
/// ```
#[derive(Clone)]
#[must_use = "call `start` to start the cluster"]
pub struct ClusterBuilder {
    name: String,
    /// Prefix of the members' names; a number follows.
    stem: String,
    lifetime: Lifetime,
    count: Option<u32>,
    template: VmBuilder,
    members: Vec<(String, Configure)>,
}

impl std::fmt::Debug for ClusterBuilder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names: Vec<_> = self.members.iter().map(|(name, _)| name).collect();
        f.debug_struct("ClusterBuilder")
            .field("name", &self.name)
            .field("lifetime", &self.lifetime)
            .field("count", &self.count)
            .field("template", &self.template)
            .field("members", &names)
            .finish_non_exhaustive()
    }
}

impl ClusterBuilder {
    fn new(name: String, stem: String, lifetime: Lifetime) -> Self {
        Self {
            template: VmBuilder::new(String::new(), lifetime),
            name,
            stem,
            lifetime,
            count: None,
            members: Vec::new(),
        }
    }

    /// Names the cluster after the test at `path`, unless it already has a name.
    pub(crate) fn named_after(mut self, path: &str) -> Self {
        if self.lifetime == Lifetime::Ephemeral {
            self.name = test_name::for_test(path);
        }
        self
    }

    /// True if the members need KVM.
    pub(crate) fn needs_kvm(&self) -> bool {
        self.template.needs_kvm()
    }

    /// Number of members. They are named `NAME-1`, `NAME-2` and so on; in a test cluster `node-1`,
    /// `node-2`.
    pub fn count(mut self, count: u32) -> Self {
        self.count = Some(count);
        self
    }

    /// Configures one member. A name that [`ClusterBuilder::count`] does not cover adds a member.
    ///
    /// ```no_run
    /// # use fleetbox::{Cluster, Size};
    /// # async fn example() -> fleetbox::Result<()> {
    /// let cluster = Cluster::builder("node")
    ///     .count(2)
    ///     .member("node-1", |vm| vm.cpus(4).memory(Size::gib(4)))
    ///     .member("db", |vm| vm.disk(Size::gib(50)))
    ///     .start()
    ///     .await?;
    /// assert_eq!(cluster.members().len(), 3);
    /// # Ok(()) }
    /// ```
    pub fn member(
        mut self,
        name: impl Into<String>,
        configure: impl Fn(VmBuilder) -> VmBuilder + Send + Sync + 'static,
    ) -> Self {
        self.members.push((name.into(), Arc::new(configure)));
        self
    }

    /// The network that the members share. The default is [`Network::User`].
    pub fn network(mut self, network: Network) -> Self {
        self.template = self.template.network(network);
        self
    }

    /// Sets options for all members; [`ClusterBuilder::member`] overrides them for one. The state
    /// directory and the lifetime belong to the whole cluster: see [`ClusterBuilder::home`] and
    /// [`ClusterBuilder::detached`].
    ///
    /// ```
    /// use fleetbox::Cluster;
    ///
    /// let cluster = Cluster::test().count(2).each(|vm| vm.package("etcd-server").env("ETCD_NAME", "x"));
    /// ```
    pub fn each(mut self, configure: impl FnOnce(VmBuilder) -> VmBuilder) -> Self {
        self.template = configure(self.template);
        self
    }

    /// The image of all members; see [`VmBuilder::image`].
    pub fn image(self, image: impl Into<String>) -> Self {
        self.each(|vm| vm.image(image))
    }

    /// Number of virtual CPUs of each member; see [`VmBuilder::cpus`].
    pub fn cpus(self, cpus: u32) -> Self {
        self.each(|vm| vm.cpus(cpus))
    }

    /// Memory of each member; see [`VmBuilder::memory`].
    pub fn memory(self, memory: Size) -> Self {
        self.each(|vm| vm.memory(memory))
    }

    /// Size of each member's disk; see [`VmBuilder::disk`].
    pub fn disk(self, disk: Size) -> Self {
        self.each(|vm| vm.disk(disk))
    }

    /// The user that is created in each guest; see [`VmBuilder::user`].
    pub fn user(self, user: impl Into<String>) -> Self {
        self.each(|vm| vm.user(user))
    }

    /// The state directory; see [`VmBuilder::home`].
    pub fn home(self, home: impl Into<PathBuf>) -> Self {
        self.each(|vm| vm.home(home))
    }

    /// How long each guest may take until it answers over SSH; see [`VmBuilder::boot_timeout`].
    pub fn boot_timeout(self, timeout: Duration) -> Self {
        self.each(|vm| vm.boot_timeout(timeout))
    }

    /// Receives progress; see [`VmBuilder::progress`].
    pub fn progress(self, progress: impl Into<Arc<dyn Progress>>) -> Self {
        self.each(|vm| vm.progress(progress))
    }

    /// Keeps the members running after this process has ended, until they are stopped; see
    /// [`VmBuilder::detached`].
    pub fn detached(mut self) -> Self {
        self.lifetime = Lifetime::Detached;
        self
    }

    /// Starts the members in parallel, creates those that do not exist, and waits until all answer
    /// over SSH. Without [`ClusterBuilder::count`] and [`ClusterBuilder::member`] it starts the
    /// existing members.
    ///
    /// Either all members start or none: when one fails, the members that this call created are
    /// deleted, and the existing members that it started are killed.
    ///
    /// ```no_run
    /// # async fn example() -> fleetbox::Result<()> {
    /// let cluster = fleetbox::Cluster::builder("node").count(3).start().await?;
    /// for vm in &cluster {
    ///     println!("{} has {}", vm.name(), vm.ip());
    /// }
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// Those of [`VmBuilder::start`], for any member. [`Error::NameTaken`] if a VM of another
    /// cluster has the name of a member.
    pub async fn start(self) -> Result<Cluster> {
        let launch = self.launch().await?;
        let name = launch.cluster.clone();
        Ok(self.into_cluster(name, launch.start().await?))
    }

    /// Stops the members that run, and starts all members again as [`ClusterBuilder::start`] does: in parallel, with
    /// memory for all of them at once, all or none. All members must exist. If it is clear beforehand that they could
    /// not be started again, nothing is stopped.
    ///
    /// # Errors
    /// [`Error::NoVm`] for a member that does not exist; those of [`ClusterBuilder::start`] and
    /// [`Cluster::stop_within`].
    pub async fn restart(self, deadline: Duration) -> Result<Cluster> {
        let launch = self.launch().await?;
        let name = launch.cluster.clone();
        Ok(self.into_cluster(name, launch.restart(deadline).await?))
    }

    fn into_cluster(self, name: Name, (store, members): (Store, Vec<Vm>)) -> Cluster {
        Cluster {
            name,
            store,
            lifetime: self.lifetime,
            template: self.template,
            members: members.into_iter().map(Arc::new).collect(),
        }
    }

    /// Checks all members and plans their start.
    async fn launch(&self) -> Result<Launch> {
        let name = Name::new(self.name.clone())?;
        let stem = Name::new(self.stem.clone())?;
        let mut names = Vec::new();
        for index in 1..=self.count.map_or(Ok(0), check_count)? {
            names.push(stem.member(index)?);
        }
        for (member, _) in &self.members {
            let member = Name::new(member.clone())?;
            if !names.contains(&member) {
                names.push(member);
            }
        }
        if names.is_empty() {
            let store = self.template.fleet.store().await?;
            let cluster = store.cluster(&name);
            let existing = blocking(move || cluster.vms()).await?;
            names.extend(existing.iter().map(|vm| vm.name().clone()));
        }
        let count = u32::try_from(names.len()).unwrap_or(u32::MAX);
        check_count(count)?;
        let members = names.iter().map(|member| {
            let configure = self
                .members
                .iter()
                .filter(|(name, _)| name == member.as_str());
            let template = self.template.clone().named(member);
            configure.fold(template, |vm, (_, configure)| configure(vm))
        });
        Ok(Launch {
            cluster: name,
            anywhere: false,
            alone: false,
            lifetime: self.lifetime,
            fleet: self.template.fleet.clone(),
            members: members.collect(),
        })
    }
}

/// VMs that share a network. They reach each other by address and by name (`node-1` or
/// `node-1.fleetbox`).
///
/// ```no_run
/// # async fn example() -> fleetbox::Result<()> {
/// use fleetbox::Cluster;
///
/// let cluster = Cluster::test().count(3).image("debian-12").start().await?;
/// let ping = cluster.vm("node-1")?.ssh("ping -c 1 node-2").await?;
/// assert!(ping.status.success());
/// # Ok(())
/// # } // dropped here: the members are destroyed
/// ```
///
/// When one member fails, the others keep running. The members run as long as there is a handle on
/// the cluster or on one of its members; see [`Vm`].
#[derive(Debug, Clone)]
pub struct Cluster {
    name: Name,
    store: Store,
    lifetime: Lifetime,
    template: VmBuilder,
    members: Vec<Arc<Vm>>,
}

impl Fleet {
    /// Opens the cluster with this name and all its members, running or not, no matter which process started them.
    /// Dropping the handle changes nothing.
    ///
    /// ```no_run
    /// # async fn example() -> fleetbox::Result<()> {
    /// let cluster = fleetbox::Fleet::at("/srv/vms").open_cluster("node").await?;
    /// cluster.start().await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Error::NoCluster`] if it has no members.
    pub async fn open_cluster(&self, name: &str) -> Result<Cluster> {
        let name = Name::new(name)?;
        let store = self.store().await?;
        let template = VmBuilder::new(String::new(), Lifetime::Detached).of(self);
        blocking(move || {
            let vms = store.cluster(&name).vms()?;
            let Some(first) = vms.first() else {
                return Err(Error::NoCluster { name });
            };
            let lifetime = if ephemeral::is_ephemeral(first) {
                Lifetime::Ephemeral
            } else {
                Lifetime::Detached
            };
            let members = vms
                .into_iter()
                .map(|vm| Vm::found(&store, vm).map(Arc::new));
            Ok(Cluster {
                lifetime,
                template,
                members: members.collect::<Result<_>>()?,
                name,
                store,
            })
        })
        .await
    }
}

impl Cluster {
    /// Describes a cluster with a name. The disks of its members stay until [`Cluster::destroy`].
    pub fn builder(name: impl Into<String>) -> ClusterBuilder {
        let name = name.into();
        ClusterBuilder::new(name.clone(), name, Lifetime::Bound)
    }

    /// Describes a cluster for a test. Its name is made from the name of the test, its members are
    /// named `node-1`, `node-2` and so on, and it is destroyed when its last handle is dropped.
    /// Tests that run at the same time do not see each other's clusters.
    ///
    /// ```no_run
    /// # async fn example() -> fleetbox::Result<()> {
    /// let cluster = fleetbox::Cluster::test().count(2).start().await?;
    /// assert!(cluster.vm("node-1")?.ssh("ping -c 1 node-2").await?.success());
    /// # Ok(()) }
    /// ```
    pub fn test() -> ClusterBuilder {
        ClusterBuilder::new(
            test_name::of_this_thread(),
            TEST_MEMBER.to_owned(),
            Lifetime::Ephemeral,
        )
    }

    /// Opens the cluster with this name and all its members, running or not, no matter which
    /// process started them. Dropping the handle changes nothing.
    ///
    /// ```no_run
    /// # async fn example() -> fleetbox::Result<()> {
    /// let cluster = fleetbox::Cluster::open("node").await?;
    /// cluster.start().await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Error::NoCluster`] if it has no members.
    pub async fn open(name: &str) -> Result<Self> {
        Fleet::new().open_cluster(name).await
    }

    /// Receives progress when members are started again and wait for memory, and when the image of a new member is
    /// downloaded. The default is the builder's setting; after [`Cluster::open`] nothing is shown.
    #[must_use]
    pub fn with_progress(mut self, progress: impl Into<Arc<dyn Progress>>) -> Self {
        let progress = progress.into();
        for vm in &mut self.members {
            // Other handles have the same member.
            *vm = Arc::new(vm.another().with_progress(Arc::clone(&progress)));
        }
        self.template = self.template.progress(progress);
        self
    }

    pub(crate) fn client(&self) -> Client {
        attach::client(&self.store.cluster(&self.name))
    }

    /// The cluster's name.
    pub fn name(&self) -> &str {
        self.name.as_str()
    }

    /// The members, in the builder's order, or sorted by name after [`Cluster::open`].
    ///
    /// ```no_run
    /// # async fn example(cluster: fleetbox::Cluster) -> fleetbox::Result<()> {
    /// for vm in cluster.members() {
    ///     println!("{} of {}", vm.name(), cluster.name());
    /// }
    /// # Ok(()) }
    /// ```
    pub fn members(&self) -> &[Arc<Vm>] {
        &self.members
    }

    /// The member with this name.
    ///
    /// ```no_run
    /// # async fn example(cluster: fleetbox::Cluster) -> fleetbox::Result<()> {
    /// let leader = cluster.vm("node-1")?;
    /// println!("{}", leader.ip());
    /// assert!(cluster.vm("node-9").is_err());
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Error::NoMember`] if the cluster has no such member.
    pub fn vm(&self, name: &str) -> Result<&Arc<Vm>> {
        self.members
            .iter()
            .find(|vm| vm.name() == name)
            .ok_or_else(|| Error::NoMember {
                cluster: self.name.clone(),
                name: name.to_owned(),
                members: self.members.iter().map(|vm| vm.name().to_owned()).collect(),
            })
    }

    /// How long the steps of [`ClusterBuilder::start`] took.
    pub fn timings(&self) -> Timings {
        self.members
            .first()
            .map(|vm| vm.timings().clone())
            .unwrap_or_default()
    }

    /// Adds a member and waits until it answers over SSH. It has the options that the cluster's
    /// builder set for all members, and those of `configure`. A member that already exists is
    /// started if it does not run.
    ///
    /// ```no_run
    /// # async fn example(mut cluster: fleetbox::Cluster) -> fleetbox::Result<()> {
    /// let late = cluster.add("node-4", |vm| vm.cpus(1)).await?;
    /// assert!(late.ssh("getent hosts node-1").await?.status.success());
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// Those of [`ClusterBuilder::start`]. The new member is then removed, and the others keep
    /// running.
    pub async fn add(
        &mut self,
        name: &str,
        configure: impl FnOnce(VmBuilder) -> VmBuilder,
    ) -> Result<Arc<Vm>> {
        let launch = Launch {
            cluster: self.name.clone(),
            anywhere: false,
            alone: false,
            lifetime: self.lifetime,
            fleet: Fleet::at(self.store.home()),
            members: vec![configure(self.template.clone().named(&Name::new(name)?))],
        };
        let (_, vms) = launch.start().await?;
        let vm = vms.into_iter().next().map(Arc::new);
        let vm = vm.ok_or_else(|| Error::NoMember {
            cluster: self.name.clone(),
            name: name.to_owned(),
            members: Vec::new(),
        })?;
        self.members.retain(|member| member.name() != vm.name());
        self.members.push(Arc::clone(&vm));
        Ok(vm)
    }

    /// Kills a member and removes it with its disk. The others keep running.
    ///
    /// ```no_run
    /// # async fn example(mut cluster: fleetbox::Cluster) -> fleetbox::Result<()> {
    /// cluster.remove("node-3").await?;
    /// assert!(cluster.vm("node-3").is_err());
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Error::NoMember`] if the cluster has no such member; an error of the file system; or a
    /// process that does not end.
    pub async fn remove(&mut self, name: &str) -> Result<()> {
        self.vm(name)?.remove().await?;
        self.members.retain(|member| member.name() != name);
        Ok(())
    }

    /// Starts the members that do not run, in parallel, and waits until all answer over SSH. They
    /// keep their addresses. They wait for memory together, as when the cluster was created; see
    /// [`budget`](crate::budget).
    ///
    /// # Errors
    /// The error of the first member that fails. The others are started anyway.
    pub async fn start(&self) -> Result<()> {
        let members: Vec<&Vm> = self.members.iter().map(Arc::as_ref).collect();
        let lease = Vm::await_memory(&members).await?;
        let booted = join_all(members.iter().map(|vm| vm.boot())).await;
        // Running members are now counted by their own locks.
        drop(lease);
        all(members.iter().zip(booted).map(async |(vm, booted)| {
            booted?;
            vm.wait_until_ready().await
        }))
        .await
    }

    /// Powers all members off in parallel, and kills those that take longer than [`STOP_DEADLINE`].
    /// Their disks stay.
    ///
    /// # Errors
    /// The first error; the other members are stopped anyway. A member that does not run is not an
    /// error.
    pub async fn stop(&self) -> Result<()> {
        self.stop_within(STOP_DEADLINE).await
    }

    /// Like [`Cluster::stop`], but with your own deadline. Zero kills at once.
    ///
    /// # Errors
    /// Those of [`Cluster::stop`].
    pub async fn stop_within(&self, deadline: Duration) -> Result<()> {
        let stop = async |vm: &Arc<Vm>| match vm.stop_within(deadline).await {
            Ok(_) => Ok(()),
            Err(error) if error.is_not_running() => Ok(()),
            Err(error) => Err(error),
        };
        all(self.members.iter().map(stop)).await
    }

    /// Stops the members that run, then starts all: [`Cluster::stop`] followed by [`Cluster::start`]. If it is
    /// clear beforehand that one of them could not be started again, nothing is stopped (see [`Vm::restart`]).
    ///
    /// # Errors
    /// Those of [`Cluster::stop`], after which nothing is started, and those of [`Cluster::start`].
    pub async fn restart(&self) -> Result<()> {
        let members: Vec<&Vm> = self.members.iter().map(Arc::as_ref).collect();
        Vm::check_startable(&members).await?;
        self.stop().await?;
        self.start().await
    }

    /// Kills all members and removes them with their disks.
    ///
    /// # Errors
    /// An error of the file system, or a process that does not end.
    pub async fn destroy(self) -> Result<()> {
        for vm in &self.members {
            vm.remove().await?;
        }
        Ok(())
    }
}

impl<'a> IntoIterator for &'a Cluster {
    type Item = &'a Arc<Vm>;
    type IntoIter = std::slice::Iter<'a, Arc<Vm>>;

    fn into_iter(self) -> Self::IntoIter {
        self.members.iter()
    }
}

/// Runs all of `work`, and returns the first failure.
async fn all(work: impl IntoIterator<Item = impl Future<Output = Result<()>>>) -> Result<()> {
    join_all(work).await.into_iter().collect()
}
