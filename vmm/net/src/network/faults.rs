//! Faults of a network's links.

use std::collections::BTreeSet;

use super::Network;
use crate::error::NetworkError;
use crate::faults::{LinkConditions, LinkEnd};

impl Network {
    /// Separates two groups. From now on no frame passes between an end of `a` and an end of `b`, not even one that is
    /// under way. Links inside each group and to all other members still work. So does the gateway, with DNS and the
    /// host's connections, unless [`LinkEnd::Gateway`] is in a group. Several partitions add up.
    ///
    /// ```no_run
    /// # use fleetbox_net::{LinkEnd, Network, NetworkError};
    /// # fn example(network: Network) -> Result<(), NetworkError> {
    /// network.partition(&["node-1"], &["node-2", "node-3"])?;
    /// // … the minority must not accept writes …
    /// network.heal()?;
    /// // Cut off from the world, but not from its peers:
    /// network.partition(&["node-1"], &[LinkEnd::Gateway])?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`NetworkError::NoMember`] for a name that is not registered and that no member has or had.
    pub fn partition<A, B>(&self, a: &[A], b: &[B]) -> Result<(), NetworkError>
    where
        A: Clone + Into<LinkEnd>,
        B: Clone + Into<LinkEnd>,
    {
        let a: Vec<LinkEnd> = a.iter().cloned().map(Into::into).collect();
        let b: Vec<LinkEnd> = b.iter().cloned().map(Into::into).collect();
        self.call(move |switch| {
            let ends = |ends: Vec<LinkEnd>| {
                let ends = ends.into_iter().map(|end| switch.members.link_end(end));
                ends.collect::<Result<BTreeSet<_>, _>>()
            };
            switch.faults.partition(ends(a)?, ends(b)?);
            Ok(())
        })?
    }

    /// Ends all partitions. Latency, loss and bandwidth stay.
    ///
    /// # Errors
    /// The network has ended.
    pub fn heal(&self) -> Result<(), NetworkError> {
        self.call(|switch| switch.faults.heal())
    }

    /// Sets the conditions of the link between two ends, replacing earlier ones. [`LinkConditions::default`] removes
    /// them. Frames that are already under way are not affected.
    ///
    /// Whether a frame is lost depends on the seed ([`Self::seed_links`]), on the names of sender and receiver, and on
    /// how many frames have gone this way since this call: the n-th frame from one end to the other has the same fate
    /// in each run. The guests determine which frame is the n-th. Frames that a partition stops do not count.
    ///
    /// A frame is subject to the conditions of all links of its sender, then those of the link, then those of all links
    /// of its receiver ([`Self::set_links_of`]).
    ///
    /// ```no_run
    /// # use fleetbox_net::{LinkConditions, LinkEnd, Network, NetworkError};
    /// # fn example(network: Network) -> Result<(), NetworkError> {
    /// let lossy = LinkConditions { loss: 0.05, ..LinkConditions::default() };
    /// network.set_link("node-1", "node-2", lossy)?;
    /// // Half a megabit for the downloads of one member:
    /// let slow = LinkConditions { bandwidth: Some(500_000), ..LinkConditions::default() };
    /// network.set_link("node-3", LinkEnd::Gateway, slow)?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`NetworkError::Condition`] for invalid conditions, [`NetworkError::NoMember`] as for [`Self::partition`].
    pub fn set_link(
        &self,
        a: impl Into<LinkEnd>,
        b: impl Into<LinkEnd>,
        conditions: LinkConditions,
    ) -> Result<(), NetworkError> {
        conditions.check()?;
        let (a, b) = (a.into(), b.into());
        self.call(move |switch| {
            let (a, b) = (switch.members.link_end(a)?, switch.members.link_end(b)?);
            switch.faults.set_pair(a, b, conditions);
            Ok(())
        })?
    }

    /// Sets the conditions of all links of one end, including the one to the gateway. They share the
    /// bandwidth. See [`Self::set_link`].
    ///
    /// # Errors
    /// As for [`Self::set_link`].
    pub fn set_links_of(
        &self,
        end: impl Into<LinkEnd>,
        conditions: LinkConditions,
    ) -> Result<(), NetworkError> {
        conditions.check()?;
        let end = end.into();
        self.call(move |switch| {
            switch
                .faults
                .set_end(switch.members.link_end(end)?, conditions);
            Ok(())
        })?
    }

    /// The conditions that [`Self::set_link`] has set for two ends.
    ///
    /// # Errors
    /// [`NetworkError::NoMember`] as for [`Self::partition`].
    pub fn link(
        &self,
        a: impl Into<LinkEnd>,
        b: impl Into<LinkEnd>,
    ) -> Result<LinkConditions, NetworkError> {
        let (a, b) = (a.into(), b.into());
        self.call(move |switch| {
            Ok(switch
                .faults
                .pair(switch.members.link_end(a)?, switch.members.link_end(b)?))
        })?
    }

    /// The conditions that [`Self::set_links_of`] has set for an end.
    ///
    /// # Errors
    /// [`NetworkError::NoMember`] as for [`Self::partition`].
    pub fn links_of(&self, end: impl Into<LinkEnd>) -> Result<LinkConditions, NetworkError> {
        let end = end.into();
        self.call(move |switch| Ok(switch.faults.end(&switch.members.link_end(end)?)))?
    }

    /// Ends all partitions and all conditions of links.
    ///
    /// # Errors
    /// The network has ended.
    pub fn clear_links(&self) -> Result<(), NetworkError> {
        self.call(|switch| switch.faults.clear())
    }

    /// Sets the seed of all losses, which is 0 at the start, and restarts the counting of frames.
    ///
    /// # Errors
    /// The network has ended.
    pub fn seed_links(&self, seed: u64) -> Result<(), NetworkError> {
        self.call(move |switch| switch.faults.reseed(seed))
    }
}
