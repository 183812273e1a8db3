//! A network for virtual machines without root. It has a switch that joins guests, and a gateway that gives them
//! addresses, names and access to the outside, all in this process.
//!
//! A [`Network`] runs on a separate thread. So it works with synchronous callers and with any async runtime, and a test
//! that blocks its runtime does not stop its guests. A guest's NIC is one end of a socket pair ([`Network::attach`]),
//! which carries one [packet](https://docs.rs/fleetbox-packet) at a time. Guests reach each other through the switch,
//! and the outside through the host's own sockets. The host reaches guests with [`Network::connect`] and
//! [`Network::forward`].
//!
//! Guests are not trusted. Frames are checked before anything else reads them. [`Limits`] bound the host's resources
//! that one guest can use. No guest can take the address of the gateway or of another guest, running or not. The switch
//! passes ARP and IPv4 only. Guests cannot reach the host's loopback, link-local addresses, or addresses at which clouds
//! serve credentials, unless [`NetworkConfig::host_map`] allows it; [`NetworkConfig::refuse`] adds to the list.
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

mod block;
mod config;
mod dhcp;
mod dns;
mod error;
mod faults;
mod fragments;
mod frame;
mod gateway;
mod key;
mod members;
mod name;
mod network;
mod output;
mod policy;
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

pub use crate::block::AddressBlock;
pub use crate::config::{Limits, NetworkConfig, Subnet};
pub use crate::error::{ConnectError, NetworkError};
pub use crate::faults::{FaultCounts, LinkConditions, LinkEnd};
pub use crate::network::{Attachment, Forward, Member, Network};
pub use crate::status::{NetworkStatus, PortStatus};
pub use crate::stream::GuestStream;
pub use crate::tap::open_tap;
