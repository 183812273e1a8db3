//! The key of a flow.

use std::net::SocketAddr;

/// Identifies a flow. Addresses of both families fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct FlowKey {
    pub(crate) port: u32,
    pub(crate) guest: SocketAddr,
    pub(crate) remote: SocketAddr,
}
