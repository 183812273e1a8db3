//! Decides which addresses guests may reach, and maps them to addresses on the host.

use std::net::{IpAddr, Ipv4Addr};

use crate::config::NetworkConfig;

/// True if guests may reach an address, which must be beyond the host. The host's loopback,
/// link-local addresses (cloud providers serve credentials at 169.254.169.254) and multicast groups
/// are out of reach.
fn may_reach(address: Ipv4Addr) -> bool {
    let first = address.octets()[0];
    !(address.is_loopback()
        || address.is_link_local()
        || address.is_multicast()
        || first == 0
        || first >= 240)
}

/// The address on the host's network for a guest's packets to `address`; `None` if they are
/// refused.
pub(crate) fn translate(config: &NetworkConfig, address: Ipv4Addr) -> Option<IpAddr> {
    if let Some(mapped) = config.host_map.get(&address) {
        return Some(*mapped);
    }
    (address != config.subnet.gateway() && may_reach(address)).then_some(IpAddr::V4(address))
}
