//! What a network tells of itself.

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use crate::faults::FaultCounts;

/// What a network is doing.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkStatus {
    /// Its members, and the uplink.
    pub ports: Vec<PortStatus>,
    /// TCP connections now open or being opened.
    pub tcp_flows: usize,
    /// TCP connections begun since the start.
    pub tcp_opened: u64,
    /// TCP connections of guests that were refused, here or by the host.
    pub tcp_refused: u64,
    /// Idle TCP connections that made room for new ones.
    pub tcp_evicted: u64,
    /// UDP and ICMP echo flows now known.
    pub udp_flows: usize,
    /// UDP and ICMP echo flows that made room for new ones.
    pub udp_evicted: u64,
    /// DNS questions about members.
    pub dns_local: u64,
    /// DNS questions that a resolver of the host answered.
    pub dns_forwarded: u64,
    /// DNS questions that no resolver answered.
    pub dns_failed: u64,
    /// Frames that faults of links stopped or hold.
    #[serde(default)]
    pub faults: FaultCounts,
}

/// What a member is doing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortStatus {
    /// Its name.
    pub name: String,
    /// Its hardware address.
    pub mac: [u8; 6],
    /// Its address.
    pub ip: Ipv4Addr,
    /// Whether the guest's end of the link is open.
    pub up: bool,
    /// Whether the guest has been seen to use its address.
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
