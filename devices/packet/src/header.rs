//! The header in front of a packet, which says what is left to do with it.

use crate::checksum::{fold, never_zero, sum};
use crate::layout::{
    ETHERNET, PROTO_TCP, PROTO_UDP, TCP_CHECKSUM, TYPE_IPV4, UDP_CHECKSUM, put, two,
};

/// VIRTIO_NET_HDR_F_NEEDS_CSUM: the checksum is missing.
pub(crate) const NEEDS_CHECKSUM: u8 = 1;
/// VIRTIO_NET_HDR_GSO_NONE: the packet is a frame.
pub(crate) const NOT_LARGE: u8 = 0;
/// VIRTIO_NET_HDR_GSO_TCPV4: the packet is a large one of TCP over IPv4.
pub(crate) const LARGE_TCP_IPV4: u8 = 1;

/// What is left to do with a packet: `struct virtio_net_hdr` without what only concerns receive
/// buffers (virtio 1.2, section 5.1.6).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Header {
    pub(crate) flags: u8,
    /// `gso_type`.
    pub(crate) kind: u8,
    /// `gso_size`: bytes of payload in each frame of a large packet.
    pub(crate) segment: u16,
    pub(crate) checksum_start: u16,
    pub(crate) checksum_offset: u16,
}

impl Header {
    /// Reads a header; `None` if it is too short.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        Some(Self {
            flags: *bytes.first()?,
            kind: *bytes.get(1)?,
            segment: u16::from_le_bytes(two(bytes, 4)?),
            checksum_start: u16::from_le_bytes(two(bytes, 6)?),
            checksum_offset: u16::from_le_bytes(two(bytes, 8)?),
        })
    }

    /// Fills `bytes` with the header and zeros. `headers` is the length of a large packet's
    /// headers, from Ethernet to TCP.
    pub fn write(&self, bytes: &mut [u8], headers: usize) {
        bytes.fill(0);
        if self.is_ready() {
            return;
        }
        put(bytes, 0, &[self.flags, self.kind]);
        if self.is_large() {
            put(bytes, 2, &(headers as u16).to_le_bytes());
            put(bytes, 4, &self.segment.to_le_bytes());
        }
        put(bytes, 6, &self.checksum_start.to_le_bytes());
        put(bytes, 8, &self.checksum_offset.to_le_bytes());
    }

    /// True if nothing is left to do because the packet is a complete frame.
    pub fn is_ready(&self) -> bool {
        self.flags == 0 && self.kind == NOT_LARGE
    }

    /// True if the packet must be cut into frames.
    pub fn is_large(&self) -> bool {
        self.kind != NOT_LARGE
    }

    /// True if `frame` lacks only its checksum of TCP or UDP over IPv4, and has the length that it
    /// states.
    pub fn lacks_checksum(&self, frame: &[u8]) -> bool {
        self.try_lacks_checksum(frame).unwrap_or(false)
    }

    fn try_lacks_checksum(&self, frame: &[u8]) -> Option<bool> {
        let version = *frame.get(ETHERNET)?;
        let start = ETHERNET + usize::from(version & 15) * 4;
        let fragment = two(frame, ETHERNET + 6)?;
        let total = usize::from(u16::from_be_bytes(two(frame, ETHERNET + 2)?));
        let place = match *frame.get(ETHERNET + 9)? {
            PROTO_TCP => TCP_CHECKSUM,
            PROTO_UDP => UDP_CHECKSUM,
            _ => return None,
        };
        let end = start + usize::from(place) + 2;
        Some(
            self.flags == NEEDS_CHECKSUM
                && !self.is_large()
                && two(frame, ETHERNET - 2)? == TYPE_IPV4
                && version >> 4 == 4
                && start >= ETHERNET + 20
                && fragment[0] & 0x3f == 0
                && fragment[1] == 0
                && total == frame.len() - ETHERNET
                && usize::from(self.checksum_start) == start
                && self.checksum_offset == place
                && end <= frame.len(),
        )
    }

    /// Fills in the checksum of `frame` if it is missing. Returns false if that is impossible.
    pub fn fill_checksum(&self, frame: &mut [u8]) -> bool {
        if self.flags != NEEDS_CHECKSUM {
            return self.flags == 0;
        }
        let start = usize::from(self.checksum_start);
        let at = start + usize::from(self.checksum_offset);
        // The place of the checksum holds the sum of the pseudo header.
        let Some(covered) = frame.get(start..) else {
            return false;
        };
        let checksum = fold(sum(covered));
        put(frame, at, &never_zero(checksum))
    }
}
