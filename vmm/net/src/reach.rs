//! Decides which addresses guests may reach, and maps them to addresses on the host.

use std::net::{IpAddr, Ipv4Addr};

use crate::config::NetworkConfig;

/// Addresses outside of 169.254.0.0/16 at which clouds serve credentials to their machines, or
/// control them. docs/networking.md lists them; a test compares both.
pub(crate) const CLOUD_SERVICES: [(Ipv4Addr, &str); 5] = [
    (
        Ipv4Addr::new(168, 63, 129, 16),
        "Azure: WireServer and DNS of the platform",
    ),
    (Ipv4Addr::new(100, 100, 100, 200), "Alibaba Cloud: metadata"),
    (Ipv4Addr::new(100, 96, 0, 96), "Volcano Engine: metadata"),
    (Ipv4Addr::new(100, 80, 80, 80), "UCloud: metadata"),
    (
        Ipv4Addr::new(192, 0, 0, 192),
        "Oracle Cloud Classic: metadata",
    ),
];

/// True if guests may reach an address, which must be beyond the network. The host's loopback,
/// link-local addresses (cloud providers serve credentials at 169.254.169.254), the other addresses
/// at which clouds do so, multicast groups and what the configuration refuses are out of reach.
pub(crate) fn may_leave(config: &NetworkConfig, address: Ipv4Addr) -> bool {
    let first = address.octets()[0];
    let is_special = address.is_loopback()
        || address.is_link_local()
        || address.is_multicast()
        || first == 0
        || first >= 240;
    let is_refused = || {
        CLOUD_SERVICES.iter().any(|(other, _)| *other == address)
            || config.refuse.iter().any(|block| block.contains(address))
    };
    config.host_map.contains_key(&address) || !(is_special || is_refused())
}

/// The address on the host's network for a guest's packets to `address`; `None` if they are
/// refused.
pub(crate) fn translate(config: &NetworkConfig, address: Ipv4Addr) -> Option<IpAddr> {
    if let Some(mapped) = config.host_map.get(&address) {
        return Some(*mapped);
    }
    let beyond = address != config.subnet.gateway() && may_leave(config, address);
    beyond.then_some(IpAddr::V4(address))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documentation_lists_the_clouds_addresses() {
        let docs = include_str!("../../../docs/networking.md");
        for (address, what) in CLOUD_SERVICES {
            let line = format!("| {address} | {what} |");
            assert!(docs.contains(&line), "{line}");
        }
    }

    #[test]
    fn what_clouds_and_the_configuration_serve_is_out_of_reach() {
        let mut config = NetworkConfig::default();
        let may =
            |config: &NetworkConfig, text: &str| translate(config, text.parse().unwrap()).is_some();
        let refused = [
            "169.254.169.254",
            "169.254.170.2",
            "168.63.129.16",
            "100.100.100.200",
            "192.0.0.192",
            "127.0.0.1",
            "0.0.0.0",
            "255.255.255.255",
            "240.0.0.1",
            "224.0.0.1",
        ];
        for address in refused {
            assert!(!may(&config, address), "{address}");
        }
        assert!(may(&config, "168.63.129.15") && may(&config, "198.51.100.7"));
        config.refuse = vec![
            "198.51.100.0/24".parse().unwrap(),
            "203.0.113.9".parse().unwrap(),
        ];
        for address in ["198.51.100.7", "198.51.100.255", "203.0.113.9"] {
            assert!(!may(&config, address), "{address}");
        }
        assert!(may(&config, "203.0.113.10") && may(&config, "198.51.101.0"));
        // What is mapped is allowed by name.
        let metadata = Ipv4Addr::new(168, 63, 129, 16);
        config.host_map.insert(metadata, metadata.into());
        assert!(may(&config, "168.63.129.16"));
    }
}
