//! A network for virtual machines without root: a switch that joins guests, and a gateway that gives
//! them addresses, names and the world, all in this process.
//!
//! A [`Network`] runs on a thread of its own. So it works the same for synchronous callers and on any
//! async runtime, and a test that blocks its runtime does not stop its guests. A guest's NIC is one
//! end of a socket pair ([`Network::attach`]), which carries one
//! [packet](https://docs.rs/fleetbox-packet) at a time. Guests reach each other through the switch
//! and the world through the host's own sockets. The host reaches guests by [`Network::connect`] and
//! [`Network::forward`].
//!
//! Guests are not trusted. Frames are checked before anything else reads them, [`Limits`] bound what
//! one guest can make the host hold, and no guest can take the gateway's address or another's. Guests
//! cannot reach the host's loopback or link-local addresses unless [`NetworkConfig::host_map`] allows
//! it.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use fleetbox_net::{Member, Network, NetworkConfig};
//!
//! let network = Network::start(NetworkConfig::default())?;
//! let nic = network.attach(Member { name: "web".into(), mac: [2, 0, 0, 0, 0, 1], ip: None })?;
//! // … hand `nic.link` to a machine, and then:
//! let stream = network.connect(nic.ip.into(), 22).await?;
//! let forward = network.forward(nic.ip.into(), 80)?;
//! println!("http://{}", forward.address());
//! # Ok(()) }
//! ```

mod config;
mod dhcp;
mod dns;
mod error;
mod faults;
mod frame;
mod gateway;
mod key;
mod members;
mod name;
mod network;
mod output;
mod port;
mod queue;
mod reach;
mod socket;
mod stack;
mod status;
mod stream;
mod switch;
mod tap;
mod tcp;
#[cfg(test)]
mod tests;
mod timer;
mod udp;

pub use crate::config::{Limits, NetworkConfig, Subnet};
pub use crate::error::{ConnectError, NetworkError};
pub use crate::faults::{FaultCounts, LinkConditions, LinkEnd};
pub use crate::network::{Attachment, Forward, Member, Network};
pub use crate::status::{NetworkStatus, PortStatus};
pub use crate::stream::GuestStream;
pub use crate::tap::open_tap;
