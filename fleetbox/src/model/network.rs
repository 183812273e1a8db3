//! The network of a cluster.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::util::readable::readable_debug;

/// The network of a cluster, chosen when its first member is created.
///
/// ```
/// use fleetbox::Network;
///
/// assert_eq!("bridge".parse(), Ok(Network::Bridge));
/// assert_eq!(Network::default(), Network::User);
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Network {
    /// A network in user space, over the host's ordinary sockets. It does not need root, and the
    /// host cannot reach the guests' addresses.
    #[default]
    User,
    /// The same network, joined to the host by a bridge. The host reaches the guests at their
    /// addresses, and the guests reach the outside world through the host, with masquerading. It
    /// works on Linux only and needs CAP_NET_ADMIN.
    Bridge,
}

impl Network {
    pub(crate) fn is_user(&self) -> bool {
        *self == Self::User
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::User => "user",
            Self::Bridge => "bridge",
        })
    }
}

/// A text is not the name of a [`Network`].
#[derive(Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown network {0:?}; choose user or bridge")]
pub struct InvalidNetwork(String);

readable_debug!(InvalidNetwork);

impl FromStr for Network {
    type Err = InvalidNetwork;

    fn from_str(text: &str) -> Result<Self, InvalidNetwork> {
        match text {
            "user" => Ok(Self::User),
            "bridge" => Ok(Self::Bridge),
            _ => Err(InvalidNetwork(text.to_owned())),
        }
    }
}
