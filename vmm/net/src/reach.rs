//! Which addresses guests may reach, and what they stand for on the host.

use std::net::{IpAddr, Ipv4Addr};

use crate::config::NetworkConfig;

/// Whether guests may reach an address: only what lies beyond the host. Its loopback, its links
/// (where cloud providers serve credentials at 169.254.169.254) and groups are out of reach.
fn may_reach(address: Ipv4Addr) -> bool {
    let first = address.octets()[0];
    !(address.is_loopback()
        || address.is_link_local()
        || address.is_multicast()
        || first == 0
        || first >= 240)
}

/// The address of the host's network that a guest's packets to `address` go to; `None` if they are
/// refused.
pub(crate) fn translate(config: &NetworkConfig, address: Ipv4Addr) -> Option<IpAddr> {
    if let Some(mapped) = config.host_map.get(&address) {
        return Some(*mapped);
    }
    (address != config.subnet.gateway() && may_reach(address)).then_some(IpAddr::V4(address))
}
