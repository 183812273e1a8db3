//! The cluster's network as its worker uses it.

use std::net::Ipv4Addr;

use fleetbox_net::{
    AddressBlock, Attachment, ConnectError, Forward, GuestStream, Member, Network, NetworkConfig,
    NetworkError,
};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::protocol::{LinkChange, LinkOrder};
use crate::host::bridge;
use crate::model::names::MAX_COUNT;
use crate::store::{ClusterDir, Store};

/// Raises the limit of open descriptors to the hard limit. Each connection through the gateway
/// takes one, and the usual soft limit of 1024 exists only for select(2).
fn allow_descriptors() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, most)| setrlimit(Resource::RLIMIT_NOFILE, most, most));
    if let Err(error) = raised {
        tracing::warn!(%error, "cannot raise the limit of open descriptors");
    }
}

/// Names addresses that guests must not reach, in addition to the built-in ones: blocks with commas between them.
const REFUSE: &str = "FLEETBOX_REFUSE";

/// The addresses that the user has refused to guests.
///
/// # Errors
/// The value is malformed. Nothing starts then: the user relies on it.
fn refused() -> Result<Vec<AddressBlock>, String> {
    let Some(text) = std::env::var_os(REFUSE) else {
        return Ok(Vec::new());
    };
    let text = text.to_string_lossy();
    let blocks = text
        .split(',')
        .map(str::trim)
        .filter(|block| !block.is_empty());
    let parsed = blocks.map(|block| block.parse::<AddressBlock>());
    parsed
        .collect::<Result<_, _>>()
        .map_err(|error| format!("{REFUSE}: {error}"))
}

/// A cluster's switch and gateway.
pub(super) struct ClusterNetwork(Network);

impl ClusterNetwork {
    /// Starts a network without members. It is joined to the host by a bridge if the members'
    /// records say so. Blocks for milliseconds; the worker must hold the cluster's lock.
    ///
    /// # Errors
    /// The host is out of threads or descriptors, the bridge cannot be created, or `FLEETBOX_REFUSE` is malformed.
    pub(super) fn start(store: &Store, cluster: &ClusterDir) -> Result<Self, String> {
        allow_descriptors();
        let mut config = NetworkConfig::default();
        config.limits.members = MAX_COUNT as usize;
        config.refuse = refused()?;
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
            Self::disconnect(store, cluster);
        }
        joined.map_err(|e| e.to_string())
    }

    /// Removes the bridge of a cluster from the host. What cannot be removed is left to the next
    /// sweep.
    pub(super) fn disconnect(store: &Store, cluster: &ClusterDir) {
        if let Err(error) = bridge::down(store, cluster.name()) {
            tracing::warn!(%error, "cannot remove the bridge");
        }
    }

    /// Attaches a machine, with the addresses it was created with, and returns its link.
    ///
    /// # Errors
    /// Another member has one of the addresses.
    pub(super) fn attach(
        &self,
        name: &str,
        mac: [u8; 6],
        ip: Ipv4Addr,
    ) -> Result<Attachment, NetworkError> {
        // So that its name still resolves once it is stopped.
        self.know(name, ip);
        self.0.attach(Member {
            name: name.to_owned(),
            mac,
            ip: Some(ip),
        })
    }

    /// Adds a member, which need not be running, to the gateway's DNS.
    pub(super) fn know(&self, name: &str, ip: Ipv4Addr) {
        if let Err(error) = self.0.register_name(name, ip) {
            tracing::warn!(vm = name, %error, "cannot add its name to the DNS");
        }
    }

    /// Undoes [`ClusterNetwork::know`].
    pub(super) fn forget(&self, name: &str) {
        if let Err(error) = self.0.unregister_name(name) {
            tracing::debug!(vm = name, %error, "cannot remove its name from the DNS");
        }
    }

    /// Changes the conditions of links.
    ///
    /// # Errors
    /// A name belongs to no member, past or present, or the request is impossible.
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

    /// Detaches a machine that has ended; its connections are reset.
    pub(super) fn detach(&self, name: &str) {
        if let Err(error) = self.0.detach(name) {
            tracing::debug!(vm = name, %error, "cannot detach it from the network");
        }
    }

    /// Connects to a port of a guest.
    ///
    /// # Errors
    /// The guest refuses, or does not answer.
    pub(super) async fn connect(
        &self,
        ip: Ipv4Addr,
        port: u16,
    ) -> Result<GuestStream, ConnectError> {
        self.0.connect(ip.into(), port).await
    }

    /// Forwards a loopback port, or any free one if it is 0, to a guest's port until the result is
    /// dropped.
    ///
    /// # Errors
    /// The port is taken, or no port or descriptor is free.
    pub(super) fn forward(
        &self,
        host: u16,
        ip: Ipv4Addr,
        port: u16,
    ) -> Result<Forward, NetworkError> {
        self.0.forward_from(host, ip.into(), port)
    }
}
