//! The bridge network: a tap on a bridge joins a cluster's switch to the host. The host then routes to the guests'
//! addresses, and masquerades what they send to the outside. This needs CAP_NET_ADMIN; the [user
//! network](crate::Network::User) needs no privileges.
//!
//! The host gets a bridge with an address, a tap that the worker holds open and an nf_tables table, and `ip_forward` is
//! turned on. All of this is recorded in `bridges/` of the state directory before it is created, so that the next
//! process can remove it after a kill ([`sweep`]).
//!
//! All of this is behind the feature `bridge`. Without it the same functions return [`BridgeError::Disabled`].

mod error;
#[cfg(feature = "bridge")]
mod forwarding;
#[cfg(feature = "bridge")]
mod host;
#[cfg(feature = "bridge")]
mod ipv6;
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

/// The prefix length of every cluster's network.
const PREFIX: u8 = 24;

/// The link between a cluster's switch and the host.
#[derive(Debug)]
pub(crate) struct Uplink {
    /// The tap, open.
    pub(crate) tap: OwnedFd,
    /// The bridge's hardware address.
    pub(crate) mac: [u8; 6],
    /// The bridge's address, which is the guests' default route.
    pub(crate) router: Ipv4Addr,
}

/// The network of a cluster's existing members, if they are on a bridge.
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

/// The network that contains the address of a member.
fn around(ip: Ipv4Addr) -> Option<Subnet> {
    Subnet::new(ip, PREFIX).ok()
}
