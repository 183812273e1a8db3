//! The bridge network: a cluster's switch joined to the host by a tap on a bridge, so that the host
//! routes to the guests' addresses and masquerades what they send into the world. It needs
//! CAP_NET_ADMIN; the [user network](crate::Network::User) needs nothing.
//!
//! What is made on the host: a bridge with an address, a tap that the worker has open, a table of
//! nf_tables, and `ip_forward`. Before any of it is made it is written down in `bridges/` of the state
//! directory, so that the next process can remove it after a kill ([`sweep`]).
//!
//! All of it is behind the feature `bridge`. Without it the same functions say that it is not here.

mod error;
#[cfg(feature = "bridge")]
mod forwarding;
#[cfg(feature = "bridge")]
mod host;
#[cfg(feature = "bridge")]
mod lock;
#[cfg(feature = "bridge")]
mod nat;
#[cfg(not(feature = "bridge"))]
mod off;
#[cfg(feature = "bridge")]
mod record;
#[cfg(feature = "bridge")]
mod route;
#[cfg(feature = "bridge")]
mod subnet;
#[cfg(all(test, feature = "bridge"))]
mod tests;

use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;

use fleetbox_net::Subnet;

pub use self::error::BridgeError;
#[cfg(feature = "bridge")]
pub(crate) use self::host::{down, permitted, sweep, up};
#[cfg(not(feature = "bridge"))]
pub(crate) use self::off::{check, down, free, permitted, sweep, up};
#[cfg(feature = "bridge")]
pub(crate) use self::subnet::{check, free};
use crate::store::ClusterDir;

/// The length of the prefix of all clusters' networks.
const PREFIX: u8 = 24;

/// What joins a cluster's switch to the host.
#[derive(Debug)]
pub(crate) struct Uplink {
    /// The tap, open.
    pub(crate) tap: OwnedFd,
    /// The bridge's hardware address.
    pub(crate) mac: [u8; 6],
    /// The bridge's address, by which guests reach the world.
    pub(crate) router: Ipv4Addr,
}

/// The network that the members of a cluster have already, if they are on a bridge.
///
/// # Errors
/// The file system.
pub(crate) fn of_cluster(cluster: &ClusterDir) -> Result<Option<Subnet>, BridgeError> {
    for vm in cluster.vms()? {
        // What is damaged is told when it is started.
        if let Ok(record) = vm.record()
            && !record.network.is_user()
        {
            return Ok(around(record.ip));
        }
    }
    Ok(None)
}

/// The network that holds the address of a member.
fn around(ip: Ipv4Addr) -> Option<Subnet> {
    Subnet::new(ip, PREFIX).ok()
}
