//! The network as a guest meets it.

mod faults;
mod guest;
mod inbound;
mod large;
mod link;
mod names;
mod outbound;
mod speed;
mod uplink;
