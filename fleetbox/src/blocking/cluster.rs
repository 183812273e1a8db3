//! The façade of [`crate::Cluster`].

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::{Vm, VmBuilder, run};
use crate::images::Progress;
use crate::{LinkConditions, LinkEnd, Result, Size, Timings};

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
pub struct ClusterBuilder(crate::ClusterBuilder);

impl From<crate::ClusterBuilder> for ClusterBuilder {
    fn from(builder: crate::ClusterBuilder) -> Self {
        Self(builder)
    }
}

impl From<ClusterBuilder> for crate::ClusterBuilder {
    fn from(builder: ClusterBuilder) -> Self {
        builder.0
    }
}

impl ClusterBuilder {
    /// As [`crate::ClusterBuilder::network`].
    pub fn network(self, network: crate::Network) -> Self {
        Self(self.0.network(network))
    }

    /// As [`crate::ClusterBuilder::count`].
    pub fn count(self, count: u32) -> Self {
        Self(self.0.count(count))
    }

    /// As [`crate::ClusterBuilder::member`].
    pub fn member(
        self,
        name: impl Into<String>,
        configure: impl Fn(VmBuilder) -> VmBuilder + Send + Sync + 'static,
    ) -> Self {
        Self(self.0.member(name, move |vm| configure(VmBuilder(vm)).0))
    }

    /// As [`crate::ClusterBuilder::each`].
    pub fn each(self, configure: impl FnOnce(VmBuilder) -> VmBuilder) -> Self {
        Self(self.0.each(|vm| configure(VmBuilder(vm)).0))
    }

    /// As [`crate::ClusterBuilder::image`].
    pub fn image(self, image: impl Into<String>) -> Self {
        Self(self.0.image(image))
    }

    /// As [`crate::ClusterBuilder::cpus`].
    pub fn cpus(self, cpus: u32) -> Self {
        Self(self.0.cpus(cpus))
    }

    /// As [`crate::ClusterBuilder::memory`].
    pub fn memory(self, memory: Size) -> Self {
        Self(self.0.memory(memory))
    }

    /// As [`crate::ClusterBuilder::disk`].
    pub fn disk(self, disk: Size) -> Self {
        Self(self.0.disk(disk))
    }

    /// As [`crate::ClusterBuilder::user`].
    pub fn user(self, user: impl Into<String>) -> Self {
        Self(self.0.user(user))
    }

    /// As [`crate::ClusterBuilder::home`].
    pub fn home(self, home: impl Into<PathBuf>) -> Self {
        Self(self.0.home(home))
    }

    /// As [`crate::ClusterBuilder::boot_timeout`].
    pub fn boot_timeout(self, timeout: Duration) -> Self {
        Self(self.0.boot_timeout(timeout))
    }

    /// As [`crate::ClusterBuilder::progress`].
    pub fn progress(self, progress: impl Into<Arc<dyn Progress>>) -> Self {
        Self(self.0.progress(progress))
    }

    /// As [`crate::ClusterBuilder::detached`].
    pub fn detached(self) -> Self {
        Self(self.0.detached())
    }

    /// As [`crate::ClusterBuilder::start`].
    ///
    /// # Errors
    /// As there.
    pub fn start(self) -> Result<Cluster> {
        run(self.0.start()).map(Cluster)
    }

    /// As [`crate::ClusterBuilder::restart`].
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
pub struct Cluster(crate::Cluster);

impl From<crate::Cluster> for Cluster {
    fn from(cluster: crate::Cluster) -> Self {
        Self(cluster)
    }
}

impl Cluster {
    /// As [`crate::Cluster::builder`].
    pub fn builder(name: impl Into<String>) -> ClusterBuilder {
        ClusterBuilder(crate::Cluster::builder(name))
    }

    /// As [`crate::Cluster::test`].
    pub fn test() -> ClusterBuilder {
        ClusterBuilder(crate::Cluster::test())
    }

    /// As [`crate::Cluster::open`].
    ///
    /// # Errors
    /// As there.
    pub fn open(name: &str) -> Result<Self> {
        let name = name.to_owned();
        run(async move { crate::Cluster::open(&name).await }).map(Self)
    }

    /// As [`crate::Cluster::name`].
    pub fn name(&self) -> &str {
        self.0.name()
    }

    /// As [`crate::Cluster::members`].
    pub fn members(&self) -> Vec<Vm> {
        self.0.members().iter().cloned().map(Vm).collect()
    }

    /// As [`crate::Cluster::vm`].
    ///
    /// # Errors
    /// As there.
    pub fn vm(&self, name: &str) -> Result<Vm> {
        self.0.vm(name).cloned().map(Vm)
    }

    /// As [`crate::Cluster::with_progress`].
    #[must_use]
    pub fn with_progress(self, progress: impl Into<Arc<dyn Progress>>) -> Self {
        Self(self.0.with_progress(progress))
    }

    /// As [`crate::Cluster::timings`].
    pub fn timings(&self) -> Timings {
        self.0.timings()
    }

    /// As [`crate::Cluster::add`].
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
    /// # Errors
    /// As there.
    pub fn start(&self) -> Result<()> {
        let cluster = self.0.clone();
        run(async move { cluster.start().await })
    }

    /// As [`crate::Cluster::stop`].
    ///
    /// # Errors
    /// As there.
    pub fn stop(&self) -> Result<()> {
        let cluster = self.0.clone();
        run(async move { cluster.stop().await })
    }

    /// As [`crate::Cluster::stop_within`].
    ///
    /// # Errors
    /// As there.
    pub fn stop_within(&self, deadline: Duration) -> Result<()> {
        let cluster = self.0.clone();
        run(async move { cluster.stop_within(deadline).await })
    }

    /// As [`crate::Cluster::restart`].
    ///
    /// # Errors
    /// As there.
    pub fn restart(&self) -> Result<()> {
        let cluster = self.0.clone();
        run(async move { cluster.restart().await })
    }

    /// As [`crate::Cluster::destroy`].
    ///
    /// # Errors
    /// As there.
    pub fn destroy(self) -> Result<()> {
        run(self.0.destroy())
    }

    /// As [`crate::Cluster::partition`].
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
    /// # Errors
    /// As there.
    pub fn heal(&self) -> Result<()> {
        let cluster = self.0.clone();
        run(async move { cluster.heal().await })
    }

    /// As [`crate::Cluster::latency`].
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
    /// # Errors
    /// As there.
    pub fn loss(&self, a: impl Into<LinkEnd>, b: impl Into<LinkEnd>, loss: f64) -> Result<()> {
        let cluster = self.0.clone();
        let (a, b) = (a.into(), b.into());
        run(async move { cluster.loss(a, b, loss).await })
    }

    /// As [`crate::Cluster::bandwidth`].
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
    /// # Errors
    /// As there.
    pub fn set_links_of(&self, end: impl Into<LinkEnd>, conditions: LinkConditions) -> Result<()> {
        let cluster = self.0.clone();
        let end = end.into();
        run(async move { cluster.set_links_of(end, conditions).await })
    }

    /// As [`crate::Cluster::clear_links`].
    ///
    /// # Errors
    /// As there.
    pub fn clear_links(&self) -> Result<()> {
        let cluster = self.0.clone();
        run(async move { cluster.clear_links().await })
    }

    /// As [`crate::Cluster::seed_links`].
    ///
    /// # Errors
    /// As there.
    pub fn seed_links(&self, seed: u64) -> Result<()> {
        let cluster = self.0.clone();
        run(async move { cluster.seed_links(seed).await })
    }
}
