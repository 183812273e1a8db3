//! The bridge network: a cluster's switch joined to the host by a tap on a bridge, so that the host
//! routes to the guests' addresses and masquerades what they send into the world. It needs
//! CAP_NET_ADMIN; the [user network](crate::Network::User) needs nothing.
//!
//! What is made on the host: a bridge with an address, a tap that the worker has open, a table of
//! nf_tables, and `ip_forward`. Before any of it is made it is written down in `bridges/` of the state
//! directory, so that whoever comes after a kill can take it away ([`sweep`]).

mod error;
mod forwarding;
mod host;
mod lock;
mod nat;
mod record;
mod route;
mod subnet;
#[cfg(test)]
mod tests;

pub use self::error::BridgeError;
pub(crate) use self::host::{down, permitted, sweep, up};
pub(crate) use self::subnet::{check, free, of_cluster};
