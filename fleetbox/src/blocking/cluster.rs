//! Clusters.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::facade::{options, values, waits};
use super::{Vm, VmBuilder, run};
use crate::error::Result;
use crate::model::network::Network;
use crate::model::size::Size;
use crate::model::timing::Timings;
use crate::progress::Progress;
use crate::vm::cluster;
use crate::vm::links::{LinkConditions, LinkEnd};

/// [`crate::ClusterBuilder`] with methods that block.
///
/// ```no_run
/// use fleetbox::blocking::Cluster;
///
/// let cluster = Cluster::test().count(2).member("node-2", |vm| vm.cpus(4)).start()?;
/// assert_eq!(cluster.members().len(), 2);
/// # Ok::<(), fleetbox::Error>(())
/// ```
#[derive(Debug, Clone)]
#[must_use = "call `start` to start the cluster"]
pub struct ClusterBuilder(cluster::ClusterBuilder);

impl From<cluster::ClusterBuilder> for ClusterBuilder {
    fn from(builder: cluster::ClusterBuilder) -> Self {
        Self(builder)
    }
}

impl From<ClusterBuilder> for cluster::ClusterBuilder {
    fn from(builder: ClusterBuilder) -> Self {
        builder.0
    }
}

impl ClusterBuilder {
    options! { "ClusterBuilder":
        fn network(network: Network);
        fn count(count: u32);
        fn image(image: impl Into<String>);
        fn cpus(cpus: u32);
        fn memory(memory: Size);
        fn disk(disk: Size);
        fn user(user: impl Into<String>);
        fn home(home: impl Into<PathBuf>);
        fn boot_timeout(timeout: Duration);
        fn progress(progress: impl Into<Arc<dyn Progress>>);
        fn detached();
    }

    /// See [`crate::ClusterBuilder::member`].
    pub fn member(
        self,
        name: impl Into<String>,
        configure: impl Fn(VmBuilder) -> VmBuilder + Send + Sync + 'static,
    ) -> Self {
        Self(self.0.member(name, move |vm| configure(VmBuilder(vm)).0))
    }

    /// See [`crate::ClusterBuilder::each`].
    pub fn each(self, configure: impl FnOnce(VmBuilder) -> VmBuilder) -> Self {
        Self(self.0.each(|vm| configure(VmBuilder(vm)).0))
    }

    /// See [`crate::ClusterBuilder::start`].
    ///
    /// # Errors
    /// Those of the asynchronous method.
    pub fn start(self) -> Result<Cluster> {
        run(self.0.start()).map(Cluster)
    }

    /// See [`crate::ClusterBuilder::restart`].
    ///
    /// # Errors
    /// Those of the asynchronous method.
    pub fn restart(self, deadline: Duration) -> Result<Cluster> {
        run(self.0.restart(deadline)).map(Cluster)
    }
}

/// [`crate::Cluster`] with methods that block.
///
/// ```no_run
/// use fleetbox::blocking::Cluster;
///
/// let cluster = Cluster::test().count(2).start()?;
/// cluster.partition(&["node-1"], &["node-2"])?;
/// assert!(!cluster.vm("node-1")?.ssh("ping -c 1 node-2")?.success());
/// cluster.heal()?;
/// # Ok::<(), fleetbox::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Cluster(pub(super) cluster::Cluster);

impl From<cluster::Cluster> for Cluster {
    fn from(cluster: cluster::Cluster) -> Self {
        Self(cluster)
    }
}

impl Cluster {
    /// See [`crate::Cluster::builder`].
    pub fn builder(name: impl Into<String>) -> ClusterBuilder {
        ClusterBuilder(cluster::Cluster::builder(name))
    }

    /// See [`crate::Cluster::test`].
    pub fn test() -> ClusterBuilder {
        ClusterBuilder(cluster::Cluster::test())
    }

    /// See [`crate::Cluster::open`].
    ///
    /// # Errors
    /// Those of the asynchronous method.
    pub fn open(name: &str) -> Result<Self> {
        run(cluster::Cluster::open(name)).map(Self)
    }

    /// See [`crate::Cluster::members`].
    pub fn members(&self) -> Vec<Vm> {
        self.0.members().iter().cloned().map(Vm).collect()
    }

    /// See [`crate::Cluster::vm`].
    ///
    /// # Errors
    /// Those of the asynchronous method.
    pub fn vm(&self, name: &str) -> Result<Vm> {
        self.0.vm(name).cloned().map(Vm)
    }

    /// See [`crate::Cluster::with_progress`].
    #[must_use]
    pub fn with_progress(self, progress: impl Into<Arc<dyn Progress>>) -> Self {
        Self(self.0.with_progress(progress))
    }

    /// See [`crate::Cluster::add`].
    ///
    /// # Errors
    /// Those of the asynchronous method.
    pub fn add(
        &mut self,
        name: &str,
        configure: impl FnOnce(VmBuilder) -> VmBuilder + Send,
    ) -> Result<Vm> {
        run(self.0.add(name, |vm| configure(VmBuilder(vm)).0)).map(Vm)
    }

    /// See [`crate::Cluster::remove`].
    ///
    /// # Errors
    /// Those of the asynchronous method.
    pub fn remove(&mut self, name: &str) -> Result<()> {
        run(self.0.remove(name))
    }

    /// See [`crate::Cluster::destroy`].
    ///
    /// # Errors
    /// Those of the asynchronous method.
    pub fn destroy(self) -> Result<()> {
        run(self.0.destroy())
    }

    /// See [`crate::Cluster::partition`].
    ///
    /// # Errors
    /// Those of the asynchronous method.
    pub fn partition<A, B>(&self, a: &[A], b: &[B]) -> Result<()>
    where
        A: Clone + Into<LinkEnd>,
        B: Clone + Into<LinkEnd>,
    {
        let a: Vec<LinkEnd> = a.iter().cloned().map(Into::into).collect();
        let b: Vec<LinkEnd> = b.iter().cloned().map(Into::into).collect();
        run(self.0.partition(&a, &b))
    }

    values! { "Cluster":
        fn name() -> &str;
        fn timings() -> Timings;
    }

    waits! { "Cluster":
        fn start() -> ();
        fn stop() -> ();
        fn stop_within(deadline: Duration) -> ();
        fn restart() -> ();
        fn heal() -> ();
        fn latency(a: impl Into<LinkEnd> + Send, b: impl Into<LinkEnd> + Send, latency: Duration) -> ();
        fn loss(a: impl Into<LinkEnd> + Send, b: impl Into<LinkEnd> + Send, loss: f64) -> ();
        fn bandwidth(
            a: impl Into<LinkEnd> + Send,
            b: impl Into<LinkEnd> + Send,
            bits_per_second: Option<u64>
        ) -> ();
        fn set_link(
            a: impl Into<LinkEnd> + Send,
            b: impl Into<LinkEnd> + Send,
            conditions: LinkConditions
        ) -> ();
        fn set_links_of(end: impl Into<LinkEnd> + Send, conditions: LinkConditions) -> ();
        fn clear_links() -> ();
        fn seed_links(seed: u64) -> ();
    }
}
