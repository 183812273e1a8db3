//! The cluster's network as its worker uses it.

use std::net::Ipv4Addr;

use fleetbox_net::{
    Attachment, ConnectError, Forward, GuestStream, Member, Network, NetworkConfig, NetworkError,
};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::protocol::{LinkChange, LinkOrder};
use crate::host::bridge;
use crate::model::names::MAX_COUNT;
use crate::store::{ClusterDir, Store};

/// Raises the limit of open descriptors as far as the host lets anybody: each connection through
/// the gateway takes one, and the usual limit of 1024 is kept low only for select(2).
fn allow_descriptors() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, most)| setrlimit(Resource::RLIMIT_NOFILE, most, most));
    if let Err(error) = raised {
        tracing::warn!(%error, "cannot raise the limit of open descriptors");
    }
}

/// A cluster's switch and gateway.
pub(super) struct ClusterNetwork(Network);

impl ClusterNetwork {
    /// A network without members, joined to the host by a bridge if the members' records say so.
    /// Blocks for milliseconds; the worker holds the cluster's lock.
    ///
    /// # Errors
    /// The host lacks a thread or descriptors, or there is no bridge to be had.
    pub(super) fn start(store: &Store, cluster: &ClusterDir) -> Result<Self, String> {
        allow_descriptors();
        let mut config = NetworkConfig::default();
        config.limits.members = MAX_COUNT as usize;
        let Some(subnet) = bridge::of_cluster(cluster).map_err(|e| e.to_string())? else {
            let network = Network::start(config).map_err(|e| e.to_string())?;
            return Ok(Self(network));
        };
        let uplink = bridge::up(store, cluster.name(), subnet).map_err(|e| e.to_string())?;
        config.subnet = subnet;
        config.router = Some(uplink.router);
        let joined = Network::start(config).and_then(|network| {
            network.uplink(uplink.tap, uplink.mac, uplink.router)?;
            Ok(Self(network))
        });
        if joined.is_err() {
            Self::part(store, cluster);
        }
        joined.map_err(|e| e.to_string())
    }

    /// Takes what joined a cluster to the host away from there. What cannot be removed is left to
    /// the next sweep.
    pub(super) fn part(store: &Store, cluster: &ClusterDir) {
        if let Err(error) = bridge::down(store, cluster.name()) {
            tracing::warn!(%error, "the bridge is not removed");
        }
    }

    /// A link for a machine, with the addresses it was created with.
    ///
    /// # Errors
    /// Another member has one of the addresses.
    pub(super) fn attach(
        &self,
        name: &str,
        mac: [u8; 6],
        ip: Ipv4Addr,
    ) -> Result<Attachment, NetworkError> {
        // So that it has its name when it is stopped again.
        self.know(name, ip);
        self.0.attach(Member {
            name: name.to_owned(),
            mac,
            ip: Some(ip),
        })
    }

    /// Has the gateway's DNS answer for a member that may not run.
    pub(super) fn know(&self, name: &str, ip: Ipv4Addr) {
        if let Err(error) = self.0.register_name(name, ip) {
            tracing::warn!(vm = name, %error, "not known by name");
        }
    }

    /// Undoes [`ClusterNetwork::know`].
    pub(super) fn forget(&self, name: &str) {
        if let Err(error) = self.0.unregister_name(name) {
            tracing::debug!(vm = name, %error, "its name is still known");
        }
    }

    /// Changes what links do.
    ///
    /// # Errors
    /// No member has or had a name, or what is asked for is impossible.
    pub(super) fn order(&self, order: LinkOrder) -> Result<(), NetworkError> {
        let network = &self.0;
        match order {
            LinkOrder::Partition { a, b } => network.partition(&a, &b),
            LinkOrder::Heal => network.heal(),
            LinkOrder::Change { a, b, change } => {
                let mut conditions = network.link(a.clone(), b.clone())?;
                match change {
                    LinkChange::All(all) => conditions = all,
                    LinkChange::Latency(latency) => conditions.latency = latency,
                    LinkChange::Loss(loss) => conditions.loss = loss,
                    LinkChange::Bandwidth(bandwidth) => conditions.bandwidth = bandwidth,
                }
                network.set_link(a, b, conditions)
            }
            LinkOrder::SetAllOf { end, conditions } => network.set_links_of(end, conditions),
            LinkOrder::Clear => network.clear_links(),
            LinkOrder::Seed(seed) => network.seed_links(seed),
        }
    }

    /// Takes a machine that has ended off the network; its connections are reset.
    pub(super) fn detach(&self, name: &str) {
        if let Err(error) = self.0.detach(name) {
            tracing::debug!(vm = name, %error, "not detached");
        }
    }

    /// Connects to a port of a guest.
    ///
    /// # Errors
    /// It refuses, or does not answer.
    pub(super) async fn connect(
        &self,
        ip: Ipv4Addr,
        port: u16,
    ) -> Result<GuestStream, ConnectError> {
        self.0.connect(ip.into(), port).await
    }

    /// Opens a loopback port, or any if it is 0, that leads to a guest's until the result is
    /// dropped.
    ///
    /// # Errors
    /// The port is taken, or none or no descriptor is left.
    pub(super) fn forward(
        &self,
        host: u16,
        ip: Ipv4Addr,
        port: u16,
    ) -> Result<Forward, NetworkError> {
        self.0.forward_from(host, ip.into(), port)
    }
}
