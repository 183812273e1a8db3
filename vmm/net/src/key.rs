//! What a flow is found by.

use std::net::SocketAddr;

/// What tells flows apart. Addresses of both families fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct FlowKey {
    pub(crate) port: u32,
    pub(crate) guest: SocketAddr,
    pub(crate) remote: SocketAddr,
}
