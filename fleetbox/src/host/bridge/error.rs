//! The errors of bridge networks.

use std::io;

use fleetbox_net::Subnet;

use crate::model::names::Name;
use crate::model::network::Network;
use crate::store::StoreError;
use crate::util::readable::readable_debug;

/// Why there is no bridge network.
///
/// ```no_run
/// # async fn example() -> fleetbox::Result<()> {
/// use fleetbox::{BridgeError, Error, Network, Vm};
///
/// match Vm::test().network(Network::Bridge).start().await {
///     Err(Error::Bridge(BridgeError::NotPermitted)) => println!("skipped: not root"),
///     vm => println!("{}", vm?.ip()), // the host reaches it by this address
/// }
/// # Ok(()) }
/// ```
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum BridgeError {
    /// This build of the library has no bridge networks.
    #[error("fleetbox was built without the feature `bridge`; enable it, or use the user network")]
    Disabled,
    /// The process may not change the host's network.
    #[error(
        "a bridge network needs the capability CAP_NET_ADMIN, which this process does not have; run it as root, or use the user network, which needs no privileges"
    )]
    NotPermitted,
    /// The addresses of a cluster are now used by something else on this host.
    #[error(
        "the network {subnet} of cluster {cluster} overlaps {with} of this host; remove the latter, or recreate the cluster to give it other addresses"
    )]
    Collision {
        /// The cluster.
        cluster: Name,
        /// Its network.
        subnet: Subnet,
        /// What it overlaps on the host.
        with: String,
    },
    /// No network is free for a bridge.
    #[error(
        "no private network of 256 addresses is free for a bridge: the routes of this host cover all candidates (10.128.0.0/9, 172.16.0.0/12, 192.168.0.0/16)"
    )]
    NoneFree,
    /// The members of a cluster share one network.
    #[error(
        "{name} cannot have a {asked} network: the other members of cluster {cluster} have a {has} network; do not ask for a network, or add it to another cluster"
    )]
    Mixed {
        /// The member.
        name: Name,
        /// The cluster.
        cluster: Name,
        /// The network asked for.
        asked: Network,
        /// The network of the cluster.
        has: Network,
    },
    /// Another process is changing the host's network and does not finish.
    #[error(
        "another fleetbox process is changing this host's network and does not finish; find it with `pgrep -af fleetbox`, end it if it hangs, and try again"
    )]
    Busy,
    /// The state directory.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The record of a bridge cannot be read or written.
    #[error("cannot {action} {path}: {source}")]
    Record {
        /// The action.
        action: &'static str,
        /// The file.
        path: std::path::PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The host refused something.
    #[error(
        "cannot {action}: {source}; run `fleetbox doctor` as the same user to see what a bridge network needs"
    )]
    Host {
        /// The action.
        action: &'static str,
        /// Why it failed.
        source: io::Error,
    },
}

readable_debug!(BridgeError);

#[cfg(feature = "bridge")]
impl BridgeError {
    /// The error of an action that the host refused.
    pub(super) fn host(action: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| match source.raw_os_error() {
            Some(libc::EPERM) => Self::NotPermitted,
            _ => Self::Host { action, source },
        }
    }
}
