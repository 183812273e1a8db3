//! The network of a cluster.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

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
    /// In user space, by the host's ordinary sockets: it needs no root, and the host cannot see the
    /// guests' addresses.
    #[default]
    User,
    /// The same joined to the host by a bridge: the host reaches the guests by their addresses, and
    /// they reach the world by its routes, masqueraded. Linux only; needs CAP_NET_ADMIN.
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

/// A text that names no [`Network`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("there is no network {0:?}; there are user and bridge")]
pub struct InvalidNetwork(String);

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
