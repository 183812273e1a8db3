//! The network as a guest meets it.

mod faults;
mod guest;
mod inbound;
mod large;
mod link;
mod names;
mod namespace;
mod outbound;
mod policy;
mod reach;
mod speed;
mod uplink;
