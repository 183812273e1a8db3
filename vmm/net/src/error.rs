//! Errors of the network.

use std::io;
use std::net::IpAddr;

/// Why the network could not be started or changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NetworkError {
    /// A subnet is malformed or unusable.
    #[error("{subnet} cannot be the guests' network: {why}")]
    Subnet {
        /// The value.
        subnet: String,
        /// What is wrong with it, or how to write it.
        why: &'static str,
    },
    /// The host lacks a resource.
    #[error("cannot {what}: {source}")]
    Host {
        /// The action.
        what: &'static str,
        /// The host's error.
        source: io::Error,
    },
    /// A name is not a valid host name.
    #[error(
        "invalid name `{0}` for a member of the network: use at most 63 letters, digits and hyphens"
    )]
    Name(String),
    /// Another member has the name, the MAC address or the IP address.
    #[error("another member of the network has the {what} {value}; detach it first")]
    Taken {
        /// `name`, `MAC address` or `IP address`.
        what: &'static str,
        /// The value.
        value: String,
    },
    /// A guest cannot have the address.
    #[error("{value} cannot be the {what} of a guest on {subnet}")]
    Address {
        /// `MAC address` or `IP address`.
        what: &'static str,
        /// The address.
        value: String,
        /// The network.
        subnet: String,
    },
    /// A block of addresses is malformed.
    #[error(
        "invalid addresses `{0}`: write them as ADDRESS or ADDRESS/BITS, for example 192.0.2.7 or 10.0.0.0/8"
    )]
    Block(String),
    /// The conditions of a link are invalid.
    #[error("invalid {what} {value} of a link: {why}")]
    Condition {
        /// `latency`, `loss` or `bandwidth`.
        what: &'static str,
        /// The value.
        value: String,
        /// What is valid.
        why: &'static str,
    },
    /// The network has no room for another member.
    #[error("the network is full: it has {0} members; use a larger subnet or a higher limit")]
    Full(usize),
    /// There is no such member.
    #[error("the network has no member {0}")]
    NoMember(String),
    /// The network's thread has ended.
    #[error("the network has been shut down")]
    Closed,
}

impl From<NetworkError> for io::Error {
    fn from(error: NetworkError) -> Self {
        let kind = match &error {
            NetworkError::Host { source, .. } => source.kind(),
            NetworkError::Taken { .. } => io::ErrorKind::AlreadyExists,
            NetworkError::NoMember(_) => io::ErrorKind::NotFound,
            NetworkError::Closed => io::ErrorKind::NotConnected,
            NetworkError::Full(_) => io::ErrorKind::QuotaExceeded,
            _ => io::ErrorKind::InvalidInput,
        };
        Self::new(kind, error)
    }
}

/// Why a connection into a guest failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// The guest refuses the connection, because nothing listens on the port.
    #[error("{ip} refuses connections to port {port}: nothing listens there")]
    Refused {
        /// The guest.
        ip: IpAddr,
        /// The guest's port.
        port: u16,
    },
    /// No guest answers at the address. It is off, still booting, or has no address yet.
    #[error(
        "no guest answers at {ip}: it is off, still booting, or has not configured its network"
    )]
    Unreachable {
        /// The guest.
        ip: IpAddr,
    },
    /// The guest is up, but does not answer on this port.
    #[error("{ip} does not answer on port {port}: a firewall in the guest may drop it")]
    TimedOut {
        /// The guest.
        ip: IpAddr,
        /// The guest's port.
        port: u16,
    },
    /// No member has the address.
    #[error("the network has no member at {ip}")]
    NoMember {
        /// The requested address.
        ip: IpAddr,
    },
    /// The member is at its limit of connections, and all of them are in use.
    #[error("{ip} has {limit} connections in use, which is the limit")]
    TooMany {
        /// The guest.
        ip: IpAddr,
        /// The limit, [`Limits::tcp_flows`](crate::Limits::tcp_flows).
        limit: usize,
    },
    /// The network has been shut down, or the member detached.
    #[error("the network has been shut down, or the member at {ip} has been detached")]
    Closed {
        /// The guest.
        ip: IpAddr,
    },
}

impl From<ConnectError> for io::Error {
    fn from(error: ConnectError) -> Self {
        let kind = match error {
            ConnectError::Refused { .. } => io::ErrorKind::ConnectionRefused,
            ConnectError::Unreachable { .. } => io::ErrorKind::HostUnreachable,
            ConnectError::TimedOut { .. } => io::ErrorKind::TimedOut,
            ConnectError::NoMember { .. } => io::ErrorKind::NotFound,
            ConnectError::TooMany { .. } => io::ErrorKind::QuotaExceeded,
            ConnectError::Closed { .. } => io::ErrorKind::NotConnected,
        };
        Self::new(kind, error)
    }
}
