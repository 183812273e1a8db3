//! The packets that a virtio network device and a virtual network exchange.
//!
//! A driver may leave work to its network device: computing checksums, and cutting large TCP
//! packets into frames (virtio 1.2, section 5.1.6.2). If the other end of the device's link
//! supports it, the work is passed on. Often it is never done at all: a large packet goes from one
//! guest to another unchanged.
//!
//! A [`Packet`] has a [`Header`] that says what is left to do, and an Ethernet frame, or as much TCP
//! as fits into one IPv4 packet. Packets come from guests, so nothing in them is trusted: every
//! length is checked, and what breaks the rules of [`Packet`] is refused.
//!
//! ```
//! use fleetbox_packet::{HEADER, MAX_FRAME, Packet, offload_tcp};
//!
//! // 4000 bytes of TCP, behind the headers of virtio, Ethernet, IPv4 and TCP.
//! let mut bytes = vec![0; HEADER + 14 + 20 + 20 + 4000];
//! bytes[HEADER + 12..][..3].copy_from_slice(&[0x08, 0x00, 0x45]);
//! bytes[HEADER + 14 + 9] = 6;
//! bytes[HEADER + 14 + 20 + 12] = 0x50;
//! // The receiver is to cut it into frames of 1460 bytes of payload.
//! assert!(offload_tcp(&mut bytes, 1460));
//!
//! let packet = Packet::parse(&bytes).unwrap();
//! let mut lengths = Vec::new();
//! packet.for_each_frame(|frame| lengths.push(frame.len()));
//! assert_eq!(lengths, [1514, 1514, 1134]);
//! assert!(lengths.iter().all(|len| *len <= MAX_FRAME));
//! ```

pub mod checksum;
mod flow;
mod header;
mod large;
mod layout;
mod packet;
#[cfg(any(test, feature = "test-utils"))]
pub mod testing;
#[cfg(test)]
mod tests;

pub use flow::flow;
pub use header::Header;
pub use large::Large;
pub use layout::{HEADER, MAX_FRAME, MAX_FRAMES, MAX_PACKET, MIN_FRAME};
pub use packet::{Packet, offload_tcp};
