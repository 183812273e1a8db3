//! The status of a network.

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use crate::faults::FaultCounts;

/// The status of a network.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkStatus {
    /// Its members, and the uplink.
    pub ports: Vec<PortStatus>,
    /// TCP connections now open or being opened.
    pub tcp_flows: usize,
    /// TCP connections opened since the start.
    pub tcp_opened: u64,
    /// TCP connections of guests that were refused by the network or by the host.
    pub tcp_refused: u64,
    /// Idle TCP connections that made room for new ones.
    pub tcp_evicted: u64,
    /// UDP and ICMP echo flows that are open now.
    pub udp_flows: usize,
    /// UDP and ICMP echo flows that made room for new ones.
    pub udp_evicted: u64,
    /// DNS queries about members.
    pub dns_local: u64,
    /// DNS queries that a resolver of the host answered.
    pub dns_forwarded: u64,
    /// DNS queries that no resolver answered.
    pub dns_failed: u64,
    /// Frames that link faults have stopped or delay.
    #[serde(default)]
    pub faults: FaultCounts,
}

/// The status of a member.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortStatus {
    /// Its name.
    pub name: String,
    /// Its hardware address.
    pub mac: [u8; 6],
    /// Its address.
    pub ip: Ipv4Addr,
    /// True if the guest's end of the link is open.
    pub up: bool,
    /// True if the guest has used its address.
    pub configured: bool,
    /// Frames the guest sent. A large TCP packet counts as one.
    pub frames_in: u64,
    /// Bytes the guest sent.
    pub bytes_in: u64,
    /// Frames sent to the guest. A large TCP packet counts as one.
    pub frames_out: u64,
    /// Bytes sent to the guest.
    pub bytes_out: u64,
    /// Frames of the guest that were malformed or forged.
    pub refused: u64,
    /// Frames lost because the guest did not take them, or sent too many broadcasts.
    pub dropped: u64,
}
