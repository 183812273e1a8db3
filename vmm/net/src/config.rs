//! The configuration of a network, and limits on the host's resources that guests can use.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::block::AddressBlock;
use crate::error::NetworkError;

/// An IPv4 network such as `10.187.41.0/24`.
///
/// ```
/// use fleetbox_net::Subnet;
///
/// let subnet: Subnet = "172.20.3.0/24".parse()?;
/// assert_eq!(subnet.gateway().to_string(), "172.20.3.1");
/// assert!(subnet.is_guest("172.20.3.7".parse().unwrap()));
/// assert!(!subnet.is_guest(subnet.broadcast()));
/// # Ok::<(), fleetbox_net::NetworkError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Subnet {
    network: Ipv4Addr,
    prefix: u8,
}

impl Subnet {
    /// The network that contains `address`, with a mask of `prefix` bits.
    ///
    /// # Errors
    /// The prefix is longer than 30 bits, which leaves no room for a gateway and a guest, or shorter
    /// than 8; or the address is not an ordinary unicast address.
    pub fn new(address: Ipv4Addr, prefix: u8) -> Result<Self, NetworkError> {
        let refuse = |why| NetworkError::Subnet {
            subnet: format!("{address}/{prefix}"),
            why,
        };
        if !(8..=30).contains(&prefix) {
            return Err(refuse("the prefix must be between 8 and 30 bits"));
        }
        if address.is_loopback()
            || address.is_multicast()
            || address.is_link_local()
            || address.octets()[0] == 0
            || address.octets()[0] >= 240
        {
            return Err(refuse("it is not a unicast network"));
        }
        let subnet = Self {
            network: address,
            prefix,
        };
        Ok(Self {
            network: Ipv4Addr::from(u32::from(address) & u32::from(subnet.mask())),
            prefix,
        })
    }

    /// The first address, which names the network.
    pub fn network(&self) -> Ipv4Addr {
        self.network
    }

    /// The length of the mask in bits.
    pub fn prefix(&self) -> u8 {
        self.prefix
    }

    /// The mask, such as 255.255.255.0.
    pub fn mask(&self) -> Ipv4Addr {
        Ipv4Addr::from(u32::MAX << (32 - u32::from(self.prefix)))
    }

    /// The gateway: the first host address.
    pub fn gateway(&self) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.network) + 1)
    }

    /// The broadcast address: the last one.
    pub fn broadcast(&self) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.network) | !u32::from(self.mask()))
    }

    /// True if `address` is in the network.
    pub fn contains(&self, address: Ipv4Addr) -> bool {
        u32::from(address) & u32::from(self.mask()) == u32::from(self.network)
    }

    /// True if a guest may have `address`: it is in the network, and not one of its special addresses.
    pub fn is_guest(&self, address: Ipv4Addr) -> bool {
        self.contains(address)
            && address != self.network
            && address != self.gateway()
            && address != self.broadcast()
    }

    /// The addresses that guests may have, in order.
    pub fn guests(&self) -> impl Iterator<Item = Ipv4Addr> + use<> {
        (u32::from(self.network) + 2..u32::from(self.broadcast())).map(Ipv4Addr::from)
    }
}

impl Default for Subnet {
    fn default() -> Self {
        Self {
            network: Ipv4Addr::new(10, 187, 41, 0),
            prefix: 24,
        }
    }
}

impl std::fmt::Display for Subnet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.network, self.prefix)
    }
}

impl FromStr for Subnet {
    type Err = NetworkError;

    fn from_str(text: &str) -> Result<Self, NetworkError> {
        let refuse = || NetworkError::Subnet {
            subnet: text.to_owned(),
            why: "write it as ADDRESS/BITS, for example 10.187.41.0/24",
        };
        let (address, prefix) = text.split_once('/').ok_or_else(refuse)?;
        let address = address.parse().map_err(|_| refuse())?;
        let prefix = prefix.parse().map_err(|_| refuse())?;
        Self::new(address, prefix)
    }
}

impl TryFrom<String> for Subnet {
    type Error = NetworkError;

    fn try_from(text: String) -> Result<Self, NetworkError> {
        text.parse()
    }
}

impl From<Subnet> for String {
    fn from(subnet: Subnet) -> Self {
        subnet.to_string()
    }
}

/// The configuration of a [`Network`](crate::Network). `NetworkConfig::default()` suits most uses.
///
/// ```
/// use fleetbox_net::NetworkConfig;
///
/// let mut config = NetworkConfig { subnet: "10.9.8.0/24".parse()?, ..NetworkConfig::default() };
/// config.limits.tcp_flows = 64;
/// assert_eq!(config.domain, "fleetbox");
/// # Ok::<(), fleetbox_net::NetworkError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NetworkConfig {
    /// The guests' network. It exists only in this process. It may equal a network of the host, but then guests cannot
    /// reach the host's.
    pub subnet: Subnet,
    /// The router that DHCP announces to guests; `None` for the gateway, which reaches the outside through sockets of
    /// this process. Set it if an [uplink](crate::Network::uplink) leads to a router. Then the gateway passes nothing on
    /// to the outside: it only answers DHCP, DNS and ping.
    pub router: Option<Ipv4Addr>,
    /// The domain under which members find each other: `NAME` and `NAME.DOMAIN`.
    pub domain: String,
    /// The resolvers that answer all other names; `None` for those of [`Self::resolv_conf`].
    pub resolvers: Option<Vec<SocketAddr>>,
    /// The host's resolver configuration. It is read again whenever it changes.
    pub resolv_conf: PathBuf,
    /// How long a DHCP lease lasts. A member's address never changes, so a short lease only makes the
    /// guest ask more often.
    pub lease: Duration,
    /// Addresses that guests see, and the addresses that are dialled instead. With `192.0.2.1 -> 127.0.0.1` guests can
    /// reach services on the host's loopback, which are otherwise out of reach. An address that is mapped to itself is
    /// reached in spite of [`Self::refuse`] and of the built-in list.
    pub host_map: BTreeMap<Ipv4Addr, IpAddr>,
    /// Addresses that guests must not reach, in addition to loopback, link-local addresses and a built-in list of
    /// addresses at which clouds serve credentials
    /// ([networking.md](https://github.com/fleetbox/fleetbox/blob/main/docs/networking.md#out-of-reach)). This holds
    /// for the gateway and for an [uplink](crate::Network::uplink).
    pub refuse: Vec<AddressBlock>,
    /// Limits on the host's resources that one guest can use.
    pub limits: Limits,
}

impl Default for NetworkConfig {
    fn default() -> Self {
        Self {
            subnet: Subnet::default(),
            router: None,
            domain: "fleetbox".to_owned(),
            resolvers: None,
            resolv_conf: PathBuf::from("/etc/resolv.conf"),
            lease: Duration::from_secs(24 * 3600),
            host_map: BTreeMap::new(),
            refuse: Vec::new(),
            limits: Limits::default(),
        }
    }
}

/// Limits on the host's resources that one guest can use, and for how long.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Limits {
    /// Maximum number of members.
    pub members: usize,
    /// Maximum TCP connections of one member, in both directions. One more replaces the one that has been idle longest.
    /// It is refused if none has been idle for ten seconds.
    pub tcp_flows: usize,
    /// Maximum UDP and ICMP echo flows of one member. One more replaces the one that has been idle longest.
    pub udp_flows: usize,
    /// Maximum DNS queries of one member that wait for the host's resolvers. More are dropped.
    pub dns_questions: usize,
    /// How long the host may take to answer a guest's connection attempt, and a running guest a forwarded one.
    pub connect_timeout: Duration,
    /// How long a guest may take to answer a connection from the host.
    pub guest_timeout: Duration,
    /// A TCP connection without data for this long is reset.
    pub tcp_idle: Duration,
    /// A UDP or ICMP echo flow without datagrams for this long is forgotten (RFC 4787, REQ-5).
    pub udp_idle: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            members: 64,
            tcp_flows: 1024,
            udp_flows: 256,
            dns_questions: 64,
            connect_timeout: Duration::from_secs(60),
            guest_timeout: Duration::from_secs(10),
            // RFC 5382, REQ-5: at least two hours and four minutes.
            tcp_idle: Duration::from_secs(2 * 3600 + 600),
            udp_idle: Duration::from_secs(120),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subnet_is_read_and_written() {
        let subnet: Subnet = "172.20.3.77/20".parse().unwrap();
        assert_eq!(subnet.to_string(), "172.20.0.0/20");
        assert_eq!(subnet.gateway(), Ipv4Addr::new(172, 20, 0, 1));
        assert_eq!(subnet.broadcast(), Ipv4Addr::new(172, 20, 15, 255));
        assert_eq!(subnet.mask(), Ipv4Addr::new(255, 255, 240, 0));
        assert_eq!(subnet.guests().next(), Some(Ipv4Addr::new(172, 20, 0, 2)));
        assert_eq!(
            subnet.guests().last(),
            Some(Ipv4Addr::new(172, 20, 15, 254))
        );
        assert!(!subnet.is_guest(subnet.gateway()));
        assert!(!subnet.is_guest(Ipv4Addr::new(172, 20, 16, 2)));
    }

    #[test]
    fn a_subnet_that_cannot_work_is_refused() {
        for text in [
            "10.0.0.0",
            "10.0.0.0/31",
            "10.0.0.0/4",
            "127.0.0.0/24",
            "224.1.2.0/24",
            "ten/24",
            "0.0.0.0/24",
        ] {
            assert!(text.parse::<Subnet>().is_err(), "{text}");
        }
    }

    #[test]
    fn the_configuration_survives_a_round_trip() {
        let mut config = NetworkConfig::default();
        config
            .host_map
            .insert(Ipv4Addr::new(192, 0, 2, 1), "127.0.0.1".parse().unwrap());
        let json = serde_json::to_string(&config).unwrap();
        assert_eq!(
            serde_json::from_str::<NetworkConfig>(&json).unwrap(),
            config
        );
        assert_eq!(
            serde_json::from_str::<NetworkConfig>("{}").unwrap(),
            NetworkConfig::default()
        );
    }
}
