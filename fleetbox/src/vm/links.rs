//! Faults of a cluster's links: partitions, latency, loss and bandwidth.

use std::time::Duration;

pub use fleetbox_net::{LinkConditions, LinkEnd};

use crate::error::Result;
use crate::process::{LinkChange, LinkOrder};
use crate::vm::cluster::Cluster;

/// A setting takes effect before the call returns. It lasts until it is changed or the cluster's
/// worker ends, so it survives a restart of members. The ends of a link are named by the names of
/// members. [`LinkEnd::Gateway`] stands for the gateway, and so for the host and the outside world.
///
/// The host's connections to a member, including SSH, come through the gateway. Faults between
/// members do not affect them.
impl Cluster {
    /// Separates two groups of members. No frame passes between them in either direction, not even
    /// one already in flight. Traffic within each group and with all other members goes on. Several
    /// partitions add up.
    ///
    /// ```no_run
    /// # async fn example(cluster: fleetbox::Cluster) -> fleetbox::Result<()> {
    /// cluster.partition(&["node-1"], &["node-2", "node-3"]).await?;
    /// // … the minority must not accept writes …
    /// cluster.heal().await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Error::Process`](crate::Error::Process) for a name that no member has, or if the cluster's
    /// worker does not run.
    pub async fn partition<A, B>(&self, a: &[A], b: &[B]) -> Result<()>
    where
        A: Clone + Into<LinkEnd>,
        B: Clone + Into<LinkEnd>,
    {
        let order = LinkOrder::Partition {
            a: a.iter().cloned().map(Into::into).collect(),
            b: b.iter().cloned().map(Into::into).collect(),
        };
        Ok(self.client().order(order).await?)
    }

    /// Removes all partitions. Latency, loss and bandwidth stay.
    ///
    /// # Errors
    /// Those of [`Cluster::partition`].
    pub async fn heal(&self) -> Result<()> {
        Ok(self.client().order(LinkOrder::Heal).await?)
    }

    /// Sets how long each frame between two ends takes to arrive, in each direction; 60 s at most.
    /// The link's other settings stay.
    ///
    /// ```no_run
    /// # use std::time::Duration;
    /// # async fn example(cluster: fleetbox::Cluster) -> fleetbox::Result<()> {
    /// cluster.latency("node-1", "node-2", Duration::from_millis(40)).await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// Those of [`Cluster::partition`], and [`Error::Process`](crate::Error::Process) if `latency`
    /// is out of range.
    pub async fn latency(
        &self,
        a: impl Into<LinkEnd>,
        b: impl Into<LinkEnd>,
        latency: Duration,
    ) -> Result<()> {
        self.change(a, b, LinkChange::Latency(latency)).await
    }

    /// Sets the share of frames between two ends that is lost, from 0 to 1. The link's other
    /// settings stay. The seed decides which frames are lost; see [`Cluster::seed_links`].
    ///
    /// # Errors
    /// Those of [`Cluster::partition`], and [`Error::Process`](crate::Error::Process) if `loss` is
    /// not in 0..=1.
    pub async fn loss(
        &self,
        a: impl Into<LinkEnd>,
        b: impl Into<LinkEnd>,
        loss: f64,
    ) -> Result<()> {
        self.change(a, b, LinkChange::Loss(loss)).await
    }

    /// Sets the bits per second that pass between two ends in each direction; `None` for no limit.
    /// The link's other settings stay.
    ///
    /// # Errors
    /// Those of [`Cluster::partition`], and [`Error::Process`](crate::Error::Process) if the
    /// bandwidth is 0.
    pub async fn bandwidth(
        &self,
        a: impl Into<LinkEnd>,
        b: impl Into<LinkEnd>,
        bits_per_second: Option<u64>,
    ) -> Result<()> {
        self.change(a, b, LinkChange::Bandwidth(bits_per_second))
            .await
    }

    /// Sets all conditions of the link between two ends. The default value removes them.
    ///
    /// ```no_run
    /// # async fn example(cluster: fleetbox::Cluster) -> fleetbox::Result<()> {
    /// use fleetbox::{LinkConditions, LinkEnd};
    ///
    /// let slow = LinkConditions { bandwidth: Some(500_000), loss: 0.01, ..LinkConditions::default() };
    /// cluster.set_link("node-3", LinkEnd::Gateway, slow).await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// Those of [`Cluster::partition`], and [`Error::Process`](crate::Error::Process) if a
    /// condition is out of range.
    pub async fn set_link(
        &self,
        a: impl Into<LinkEnd>,
        b: impl Into<LinkEnd>,
        conditions: LinkConditions,
    ) -> Result<()> {
        self.change(a, b, LinkChange::All(conditions)).await
    }

    /// Sets conditions for everything that one end sends or receives, whatever the other end is.
    /// All its links share the bandwidth.
    ///
    /// # Errors
    /// Those of [`Cluster::set_link`].
    pub async fn set_links_of(
        &self,
        end: impl Into<LinkEnd>,
        conditions: LinkConditions,
    ) -> Result<()> {
        let order = LinkOrder::SetAllOf {
            end: end.into(),
            conditions,
        };
        Ok(self.client().order(order).await?)
    }

    /// Removes all partitions and all conditions of links.
    ///
    /// # Errors
    /// Those of [`Cluster::partition`].
    pub async fn clear_links(&self) -> Result<()> {
        Ok(self.client().order(LinkOrder::Clear).await?)
    }

    /// Sets the seed that decides which frames are lost, and restarts the count of frames. The seed
    /// is 0 at first. With the same seed, the n-th frame from one member to another has the same
    /// fate in every run.
    ///
    /// ```no_run
    /// # async fn example(cluster: fleetbox::Cluster) -> fleetbox::Result<()> {
    /// for seed in 0..3 {
    ///     cluster.seed_links(seed).await?;
    ///     cluster.loss("node-1", "node-2", 0.1).await?;
    ///     // … the protocol under test has to live with each …
    /// }
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// Those of [`Cluster::partition`].
    pub async fn seed_links(&self, seed: u64) -> Result<()> {
        Ok(self.client().order(LinkOrder::Seed(seed)).await?)
    }

    async fn change(
        &self,
        a: impl Into<LinkEnd>,
        b: impl Into<LinkEnd>,
        change: LinkChange,
    ) -> Result<()> {
        let (a, b) = (a.into(), b.into());
        Ok(self
            .client()
            .order(LinkOrder::Change { a, b, change })
            .await?)
    }
}
