//! The façade of [`crate::Cluster`].

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::{Vm, VmBuilder, run};
use crate::error::Result;
use crate::model::size::Size;
use crate::model::timing::Timings;
use crate::progress::Progress;
use crate::vm::links::{LinkConditions, LinkEnd};

/// As [`crate::ClusterBuilder`].
///
/// ```no_run
/// use fleetbox::Size;
/// use fleetbox::blocking::Cluster;
///
/// let cluster = Cluster::builder("node")
///     .count(2)
///     .memory(Size::gib(1))
///     .member("node-1", |vm| vm.cpus(4))
///     .start()?;
/// cluster.partition(&["node-1"], &["node-2"])?;
/// cluster.heal()?;
/// cluster.stop()?;
/// # Ok::<(), fleetbox::Error>(())
/// ```
#[derive(Debug, Clone)]
#[must_use = "a cluster is started by `start`"]
pub struct ClusterBuilder(crate::vm::cluster::ClusterBuilder);

impl From<crate::vm::cluster::ClusterBuilder> for ClusterBuilder {
    fn from(builder: crate::vm::cluster::ClusterBuilder) -> Self {
        Self(builder)
    }
}

impl From<ClusterBuilder> for crate::vm::cluster::ClusterBuilder {
    fn from(builder: ClusterBuilder) -> Self {
        builder.0
    }
}

impl ClusterBuilder {
    /// As [`crate::ClusterBuilder::network`].
    ///
    /// ```
    /// use fleetbox::{Network, blocking::Cluster};
    ///
    /// let cluster = Cluster::builder("node").count(2).network(Network::Bridge);
    /// ```
    pub fn network(self, network: crate::model::network::Network) -> Self {
        Self(self.0.network(network))
    }

    /// As [`crate::ClusterBuilder::count`].
    ///
    /// ```no_run
    /// # use fleetbox::blocking::Cluster;
    /// let cluster = Cluster::test().count(3).start()?;
    /// assert_eq!(cluster.members()[2].name(), "node-3");
    /// # Ok::<(), fleetbox::Error>(())
    /// ```
    pub fn count(self, count: u32) -> Self {
        Self(self.0.count(count))
    }

    /// As [`crate::ClusterBuilder::member`].
    ///
    /// ```
    /// # use fleetbox::{Size, blocking::Cluster};
    /// let cluster = Cluster::builder("shop").count(2).member("db", |vm| vm.disk(Size::gib(50)));
    /// ```
    pub fn member(
        self,
        name: impl Into<String>,
        configure: impl Fn(VmBuilder) -> VmBuilder + Send + Sync + 'static,
    ) -> Self {
        Self(self.0.member(name, move |vm| configure(VmBuilder(vm)).0))
    }

    /// As [`crate::ClusterBuilder::each`].
    ///
    /// ```
    /// # use fleetbox::blocking::Cluster;
    /// let cluster = Cluster::test().count(3).each(|vm| vm.package("etcd-server"));
    /// ```
    pub fn each(self, configure: impl FnOnce(VmBuilder) -> VmBuilder) -> Self {
        Self(self.0.each(|vm| configure(VmBuilder(vm)).0))
    }

    /// As [`crate::ClusterBuilder::image`].
    ///
    /// ```
    /// # use fleetbox::blocking::Cluster;
    /// let cluster = Cluster::test().count(2).image("ubuntu-24.04");
    /// ```
    pub fn image(self, image: impl Into<String>) -> Self {
        Self(self.0.image(image))
    }

    /// As [`crate::ClusterBuilder::cpus`].
    ///
    /// ```
    /// # use fleetbox::blocking::Cluster;
    /// let cluster = Cluster::test().count(2).cpus(1);
    /// ```
    pub fn cpus(self, cpus: u32) -> Self {
        Self(self.0.cpus(cpus))
    }

    /// As [`crate::ClusterBuilder::memory`].
    ///
    /// ```
    /// # use fleetbox::{Size, blocking::Cluster};
    /// let cluster = Cluster::test().count(2).memory(Size::mib(768)); // each has that
    /// ```
    pub fn memory(self, memory: Size) -> Self {
        Self(self.0.memory(memory))
    }

    /// As [`crate::ClusterBuilder::disk`].
    ///
    /// ```
    /// # use fleetbox::{Size, blocking::Cluster};
    /// let cluster = Cluster::test().count(2).disk(Size::gib(40));
    /// ```
    pub fn disk(self, disk: Size) -> Self {
        Self(self.0.disk(disk))
    }

    /// As [`crate::ClusterBuilder::user`].
    ///
    /// ```
    /// # use fleetbox::blocking::Cluster;
    /// let cluster = Cluster::test().count(2).user("admin");
    /// ```
    pub fn user(self, user: impl Into<String>) -> Self {
        Self(self.0.user(user))
    }

    /// As [`crate::ClusterBuilder::home`].
    ///
    /// ```
    /// # use fleetbox::blocking::Cluster;
    /// let cluster = Cluster::builder("node").count(2).home("/srv/vms");
    /// ```
    pub fn home(self, home: impl Into<PathBuf>) -> Self {
        Self(self.0.home(home))
    }

    /// As [`crate::ClusterBuilder::boot_timeout`].
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use fleetbox::blocking::Cluster;
    /// let cluster = Cluster::test().count(2).boot_timeout(Duration::from_secs(60));
    /// ```
    pub fn boot_timeout(self, timeout: Duration) -> Self {
        Self(self.0.boot_timeout(timeout))
    }

    /// As [`crate::ClusterBuilder::progress`].
    ///
    /// ```
    /// use fleetbox::{blocking::Cluster, progress};
    ///
    /// let cluster = Cluster::test().count(2).progress(progress::stderr());
    /// ```
    pub fn progress(self, progress: impl Into<Arc<dyn Progress>>) -> Self {
        Self(self.0.progress(progress))
    }

    /// As [`crate::ClusterBuilder::detached`].
    ///
    /// ```no_run
    /// # use fleetbox::blocking::Cluster;
    /// Cluster::builder("node").count(3).detached().start()?; // and this program may end
    /// # Ok::<(), fleetbox::Error>(())
    /// ```
    pub fn detached(self) -> Self {
        Self(self.0.detached())
    }

    /// As [`crate::ClusterBuilder::start`].
    ///
    /// ```no_run
    /// # use fleetbox::blocking::Cluster;
    /// let cluster = Cluster::builder("node").count(3).start()?; // all three, or none
    /// for vm in cluster.members() {
    ///     println!("{} has {}", vm.name(), vm.ip());
    /// }
    /// # Ok::<(), fleetbox::Error>(())
    /// ```
    ///
    /// # Errors
    /// As there.
    pub fn start(self) -> Result<Cluster> {
        run(self.0.start()).map(Cluster)
    }

    /// As [`crate::ClusterBuilder::restart`].
    ///
    /// ```no_run
    /// use fleetbox::{STOP_DEADLINE, blocking::Cluster};
    ///
    /// let cluster = Cluster::builder("node").detached().restart(STOP_DEADLINE)?;
    /// # Ok::<(), fleetbox::Error>(())
    /// ```
    ///
    /// # Errors
    /// As there.
    pub fn restart(self, deadline: Duration) -> Result<Cluster> {
        run(self.0.restart(deadline)).map(Cluster)
    }
}

/// As [`crate::Cluster`], with methods that block.
///
/// ```no_run
/// use fleetbox::blocking::Cluster;
///
/// let cluster = Cluster::test().count(2).image("debian-12").start()?;
/// let ping = cluster.vm("node-1")?.ssh("ping -c 1 node-2")?;
/// assert!(ping.status.success());
/// # Ok::<(), fleetbox::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Cluster(crate::vm::cluster::Cluster);

impl From<crate::vm::cluster::Cluster> for Cluster {
    fn from(cluster: crate::vm::cluster::Cluster) -> Self {
        Self(cluster)
    }
}

impl Cluster {
    /// As [`crate::Cluster::builder`].
    ///
    /// ```no_run
    /// # use fleetbox::blocking::Cluster;
    /// let cluster = Cluster::builder("node").count(2).start()?;
    /// cluster.stop()?; // `Cluster::builder("node").start()` boots the same two again
    /// # Ok::<(), fleetbox::Error>(())
    /// ```
    pub fn builder(name: impl Into<String>) -> ClusterBuilder {
        ClusterBuilder(crate::vm::cluster::Cluster::builder(name))
    }

    /// As [`crate::Cluster::test`].
    ///
    /// ```no_run
    /// # use fleetbox::blocking::Cluster;
    /// let cluster = Cluster::test().count(2).start()?;
    /// drop(cluster); // nothing is left of it
    /// # Ok::<(), fleetbox::Error>(())
    /// ```
    pub fn test() -> ClusterBuilder {
        ClusterBuilder(crate::vm::cluster::Cluster::test())
    }

    /// As [`crate::Cluster::open`].
    ///
    /// ```no_run
    /// # use fleetbox::blocking::Cluster;
    /// Cluster::open("node")?.start()?;
    /// # Ok::<(), fleetbox::Error>(())
    /// ```
    ///
    /// # Errors
    /// As there.
    pub fn open(name: &str) -> Result<Self> {
        Self::open_in(None, name)
    }

    /// As [`crate::Cluster::open_in`].
    ///
    /// ```no_run
    /// # use fleetbox::blocking::Cluster;
    /// let cluster = Cluster::open_in(Some("/srv/vms".as_ref()), "node")?;
    /// # Ok::<(), fleetbox::Error>(())
    /// ```
    ///
    /// # Errors
    /// As there.
    pub fn open_in(home: Option<&Path>, name: &str) -> Result<Self> {
        let (home, name) = (home.map(Path::to_owned), name.to_owned());
        run(async move { crate::vm::cluster::Cluster::open_in(home.as_deref(), &name).await })
            .map(Self)
    }

    /// As [`crate::Cluster::name`].
    ///
    /// ```no_run
    /// # fn example(cluster: fleetbox::blocking::Cluster) -> fleetbox::Result<()> {
    /// println!("fleetbox rm {}", cluster.name()); // removes all of its members
    /// # Ok(()) }
    /// ```
    pub fn name(&self) -> &str {
        self.0.name()
    }

    /// As [`crate::Cluster::members`].
    ///
    /// ```no_run
    /// # fn example(cluster: fleetbox::blocking::Cluster) -> fleetbox::Result<()> {
    /// for vm in cluster.members() {
    ///     vm.write("peers", "node-1\nnode-2\nnode-3\n")?;
    /// }
    /// # Ok(()) }
    /// ```
    pub fn members(&self) -> Vec<Vm> {
        self.0.members().iter().cloned().map(Vm).collect()
    }

    /// As [`crate::Cluster::vm`].
    ///
    /// ```no_run
    /// # fn example(cluster: fleetbox::blocking::Cluster) -> fleetbox::Result<()> {
    /// let leader = cluster.vm("node-1")?;
    /// assert!(leader.ssh("ping -c 1 node-2")?.success());
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As there.
    pub fn vm(&self, name: &str) -> Result<Vm> {
        self.0.vm(name).cloned().map(Vm)
    }

    /// As [`crate::Cluster::with_progress`].
    ///
    /// ```no_run
    /// use fleetbox::{blocking::Cluster, progress};
    ///
    /// let cluster = Cluster::open("node")?.with_progress(progress::stderr());
    /// cluster.start()?; // says so if it has to wait for memory
    /// # Ok::<(), fleetbox::Error>(())
    /// ```
    #[must_use]
    pub fn with_progress(self, progress: impl Into<Arc<dyn Progress>>) -> Self {
        Self(self.0.with_progress(progress))
    }

    /// As [`crate::Cluster::timings`].
    ///
    /// ```no_run
    /// # fn example(cluster: fleetbox::blocking::Cluster) -> fleetbox::Result<()> {
    /// println!("{}", cluster.timings());
    /// # Ok(()) }
    /// ```
    pub fn timings(&self) -> Timings {
        self.0.timings()
    }

    /// As [`crate::Cluster::add`].
    ///
    /// ```no_run
    /// # use fleetbox::blocking::Cluster;
    /// let mut cluster = Cluster::open("node")?;
    /// let late = cluster.add("node-4", |vm| vm.cpus(1))?;
    /// assert!(late.ssh("ping -c 1 node-1")?.success());
    /// # Ok::<(), fleetbox::Error>(())
    /// ```
    ///
    /// # Errors
    /// As there.
    pub fn add(
        &mut self,
        name: &str,
        configure: impl FnOnce(VmBuilder) -> VmBuilder + Send + 'static,
    ) -> Result<Vm> {
        let (mut cluster, name) = (self.0.clone(), name.to_owned());
        let (cluster, vm) = run(async move {
            let vm = cluster.add(&name, |vm| configure(VmBuilder(vm)).0).await?;
            Ok((cluster, vm))
        })?;
        self.0 = cluster;
        Ok(Vm(vm))
    }

    /// As [`crate::Cluster::remove`].
    ///
    /// ```no_run
    /// # use fleetbox::blocking::Cluster;
    /// Cluster::open("node")?.remove("node-4")?; // with its disk
    /// # Ok::<(), fleetbox::Error>(())
    /// ```
    ///
    /// # Errors
    /// As there.
    pub fn remove(&mut self, name: &str) -> Result<()> {
        let (mut cluster, name) = (self.0.clone(), name.to_owned());
        self.0 = run(async move {
            cluster.remove(&name).await?;
            Ok(cluster)
        })?;
        Ok(())
    }

    /// As [`crate::Cluster::start`].
    ///
    /// ```no_run
    /// # fn example(cluster: fleetbox::blocking::Cluster) -> fleetbox::Result<()> {
    /// cluster.vm("node-2")?.kill()?;
    /// cluster.start()?; // boots what does not run, which is node-2
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As there.
    pub fn start(&self) -> Result<()> {
        let cluster = self.0.clone();
        run(async move { cluster.start().await })
    }

    /// As [`crate::Cluster::stop`].
    ///
    /// ```no_run
    /// # fn example(cluster: fleetbox::blocking::Cluster) -> fleetbox::Result<()> {
    /// cluster.stop()?; // all at once; their disks stay
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As there.
    pub fn stop(&self) -> Result<()> {
        let cluster = self.0.clone();
        run(async move { cluster.stop().await })
    }

    /// As [`crate::Cluster::stop_within`].
    ///
    /// ```no_run
    /// # fn example(cluster: fleetbox::blocking::Cluster) -> fleetbox::Result<()> {
    /// cluster.stop_within(std::time::Duration::from_secs(10))?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As there.
    pub fn stop_within(&self, deadline: Duration) -> Result<()> {
        let cluster = self.0.clone();
        run(async move { cluster.stop_within(deadline).await })
    }

    /// As [`crate::Cluster::restart`].
    ///
    /// ```no_run
    /// # fn example(cluster: fleetbox::blocking::Cluster) -> fleetbox::Result<()> {
    /// cluster.restart()?; // members keep their addresses
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As there.
    pub fn restart(&self) -> Result<()> {
        let cluster = self.0.clone();
        run(async move { cluster.restart().await })
    }

    /// As [`crate::Cluster::destroy`].
    ///
    /// ```no_run
    /// # use fleetbox::blocking::Cluster;
    /// Cluster::open("node")?.destroy()?;
    /// # Ok::<(), fleetbox::Error>(())
    /// ```
    ///
    /// # Errors
    /// As there.
    pub fn destroy(self) -> Result<()> {
        run(self.0.destroy())
    }

    /// As [`crate::Cluster::partition`].
    ///
    /// ```no_run
    /// # fn example(cluster: fleetbox::blocking::Cluster) -> fleetbox::Result<()> {
    /// cluster.partition(&["node-1"], &["node-2", "node-3"])?;
    /// assert!(!cluster.vm("node-1")?.ssh("ping -c 1 -W 2 node-2")?.success());
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As there.
    pub fn partition<A, B>(&self, a: &[A], b: &[B]) -> Result<()>
    where
        A: Clone + Into<LinkEnd>,
        B: Clone + Into<LinkEnd>,
    {
        let cluster = self.0.clone();
        let a: Vec<LinkEnd> = a.iter().cloned().map(Into::into).collect();
        let b: Vec<LinkEnd> = b.iter().cloned().map(Into::into).collect();
        run(async move { cluster.partition(&a, &b).await })
    }

    /// As [`crate::Cluster::heal`].
    ///
    /// ```no_run
    /// # fn example(cluster: fleetbox::blocking::Cluster) -> fleetbox::Result<()> {
    /// cluster.partition(&["node-1"], &["node-2"])?;
    /// cluster.heal()?;
    /// assert!(cluster.vm("node-1")?.ssh("ping -c 1 node-2")?.success());
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As there.
    pub fn heal(&self) -> Result<()> {
        let cluster = self.0.clone();
        run(async move { cluster.heal().await })
    }

    /// As [`crate::Cluster::latency`].
    ///
    /// ```no_run
    /// # fn example(cluster: fleetbox::blocking::Cluster) -> fleetbox::Result<()> {
    /// use std::time::Duration;
    ///
    /// cluster.latency("node-1", "node-2", Duration::from_millis(100))?; // each way
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As there.
    pub fn latency(
        &self,
        a: impl Into<LinkEnd>,
        b: impl Into<LinkEnd>,
        latency: Duration,
    ) -> Result<()> {
        let cluster = self.0.clone();
        let (a, b) = (a.into(), b.into());
        run(async move { cluster.latency(a, b, latency).await })
    }

    /// As [`crate::Cluster::loss`].
    ///
    /// ```no_run
    /// # fn example(cluster: fleetbox::blocking::Cluster) -> fleetbox::Result<()> {
    /// cluster.loss("node-1", "node-2", 0.25)?; // every fourth packet, on average
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As there.
    pub fn loss(&self, a: impl Into<LinkEnd>, b: impl Into<LinkEnd>, loss: f64) -> Result<()> {
        let cluster = self.0.clone();
        let (a, b) = (a.into(), b.into());
        run(async move { cluster.loss(a, b, loss).await })
    }

    /// As [`crate::Cluster::bandwidth`].
    ///
    /// ```no_run
    /// # fn example(cluster: fleetbox::blocking::Cluster) -> fleetbox::Result<()> {
    /// cluster.bandwidth("node-1", "node-2", Some(10_000_000))?; // 10 Mbit/s
    /// cluster.bandwidth("node-1", "node-2", None)?; // as fast as it goes
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As there.
    pub fn bandwidth(
        &self,
        a: impl Into<LinkEnd>,
        b: impl Into<LinkEnd>,
        bits_per_second: Option<u64>,
    ) -> Result<()> {
        let cluster = self.0.clone();
        let (a, b) = (a.into(), b.into());
        run(async move { cluster.bandwidth(a, b, bits_per_second).await })
    }

    /// As [`crate::Cluster::set_link`].
    ///
    /// ```no_run
    /// # fn example(cluster: fleetbox::blocking::Cluster) -> fleetbox::Result<()> {
    /// use fleetbox::LinkConditions;
    /// use std::time::Duration;
    ///
    /// let far = Duration::from_millis(300);
    /// let satellite = LinkConditions { latency: far, loss: 0.01, ..LinkConditions::default() };
    /// cluster.set_link("node-1", "node-2", satellite)?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As there.
    pub fn set_link(
        &self,
        a: impl Into<LinkEnd>,
        b: impl Into<LinkEnd>,
        conditions: LinkConditions,
    ) -> Result<()> {
        let cluster = self.0.clone();
        let (a, b) = (a.into(), b.into());
        run(async move { cluster.set_link(a, b, conditions).await })
    }

    /// As [`crate::Cluster::set_links_of`].
    ///
    /// ```no_run
    /// # fn example(cluster: fleetbox::blocking::Cluster) -> fleetbox::Result<()> {
    /// use fleetbox::LinkConditions;
    ///
    /// let bad = LinkConditions { loss: 0.1, ..LinkConditions::default() };
    /// cluster.set_links_of("node-3", bad)?; // whomever it talks to
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As there.
    pub fn set_links_of(&self, end: impl Into<LinkEnd>, conditions: LinkConditions) -> Result<()> {
        let cluster = self.0.clone();
        let end = end.into();
        run(async move { cluster.set_links_of(end, conditions).await })
    }

    /// As [`crate::Cluster::clear_links`].
    ///
    /// ```no_run
    /// # fn example(cluster: fleetbox::blocking::Cluster) -> fleetbox::Result<()> {
    /// cluster.loss("node-1", "node-2", 0.5)?;
    /// cluster.clear_links()?; // all links are good again
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As there.
    pub fn clear_links(&self) -> Result<()> {
        let cluster = self.0.clone();
        run(async move { cluster.clear_links().await })
    }

    /// As [`crate::Cluster::seed_links`].
    ///
    /// ```no_run
    /// # fn example(cluster: fleetbox::blocking::Cluster) -> fleetbox::Result<()> {
    /// cluster.seed_links(42)?;
    /// cluster.loss("node-1", "node-2", 0.1)?; // loses the same packets in each run
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As there.
    pub fn seed_links(&self, seed: u64) -> Result<()> {
        let cluster = self.0.clone();
        run(async move { cluster.seed_links(seed).await })
    }
}
