//! Faults of a cluster's links: partitions, latency, loss and bandwidth.

use std::time::Duration;

pub use fleetbox_net::{LinkConditions, LinkEnd};

use crate::error::Result;
use crate::process::{LinkChange, LinkOrder};
use crate::vm::cluster::Cluster;

/// What is set holds from the moment the call returns until it is changed or the cluster's worker
/// ends, and outlives members that are stopped and started again. Ends are named by members'
/// names; [`LinkEnd::Gateway`] is the gateway, and through it the host and the world.
///
/// The host's own connections to a member, SSH among them, come through the gateway: no fault
/// between members is felt there.
impl Cluster {
    /// Separates two groups of members: no frame passes between them in either direction, not
    /// even one that is under way. Within the groups, and with all others, everything goes on.
    /// Several partitions add up.
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
    /// [`Error::Process`](crate::Error::Process) for a name that is no member's, or if the
    /// cluster's worker does not run.
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

    /// Ends all partitions. Latency, loss and bandwidth stay.
    ///
    /// # Errors
    /// As [`Cluster::partition`].
    pub async fn heal(&self) -> Result<()> {
        Ok(self.client().order(LinkOrder::Heal).await?)
    }

    /// Sets how long each frame between two ends takes to arrive, in each direction; 60 s at most.
    /// What else is set for the link stays.
    ///
    /// ```no_run
    /// # use std::time::Duration;
    /// # async fn example(cluster: fleetbox::Cluster) -> fleetbox::Result<()> {
    /// cluster.latency("node-1", "node-2", Duration::from_millis(40)).await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As [`Cluster::partition`], and for a latency that is impossible.
    pub async fn latency(
        &self,
        a: impl Into<LinkEnd>,
        b: impl Into<LinkEnd>,
        latency: Duration,
    ) -> Result<()> {
        self.change(a, b, LinkChange::Latency(latency)).await
    }

    /// Sets the part of the frames between two ends that is lost, from 0 to 1. What else is set
    /// for the link stays. Which frames are lost is decided by the seed ([`Cluster::seed_links`]).
    ///
    /// # Errors
    /// As [`Cluster::partition`], and for a part that is none.
    pub async fn loss(
        &self,
        a: impl Into<LinkEnd>,
        b: impl Into<LinkEnd>,
        loss: f64,
    ) -> Result<()> {
        self.change(a, b, LinkChange::Loss(loss)).await
    }

    /// Sets the bits per second that pass between two ends in each direction; `None` for no
    /// limit. What else is set for the link stays.
    ///
    /// # Errors
    /// As [`Cluster::partition`], and for a bandwidth of 0.
    pub async fn bandwidth(
        &self,
        a: impl Into<LinkEnd>,
        b: impl Into<LinkEnd>,
        bits_per_second: Option<u64>,
    ) -> Result<()> {
        self.change(a, b, LinkChange::Bandwidth(bits_per_second))
            .await
    }

    /// Sets all conditions of the link of two ends; the default ends them.
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
    /// As [`Cluster::partition`], and for conditions that are impossible.
    pub async fn set_link(
        &self,
        a: impl Into<LinkEnd>,
        b: impl Into<LinkEnd>,
        conditions: LinkConditions,
    ) -> Result<()> {
        self.change(a, b, LinkChange::All(conditions)).await
    }

    /// Sets conditions for all that one end sends or receives, from and to wherever: its
    /// bandwidth is shared by all its links.
    ///
    /// # Errors
    /// As [`Cluster::set_link`].
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

    /// Ends all partitions and all conditions of links.
    ///
    /// # Errors
    /// As [`Cluster::partition`].
    pub async fn clear_links(&self) -> Result<()> {
        Ok(self.client().order(LinkOrder::Clear).await?)
    }

    /// Sets the seed that decides which frames are lost (0 at the start), and begins to count
    /// frames anew: with the same seed the n-th frame from one member to another has the same
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
    /// As [`Cluster::partition`].
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
