//! Packets with the header in front of them.

use crate::checksum::{fold, sum};
use crate::header::{Header, LARGE_TCP_IPV4, NEEDS_CHECKSUM};
use crate::large::Large;
use crate::layout::{
    ETHERNET, HEADER, MAX_FRAME, MIN_FRAME, PROTO_TCP, TCP, TCP_CHECKSUM, TYPE_IPV4, put, two,
};

/// A packet with the header in front of it: a complete frame, a frame of TCP or UDP over IPv4 whose
/// checksum is missing, or a large packet of TCP over IPv4.
///
/// ```text
/// header, 12 bytes | Ethernet header, 14 bytes | payload
/// ```
///
/// ```
/// use fleetbox_packet::{HEADER, Packet};
///
/// let bytes = [0; HEADER + 60];
/// let packet = Packet::parse(&bytes).unwrap();
/// assert_eq!(packet.frame(), [0; 60]);
/// let mut count = 0;
/// packet.for_each_frame(|frame| count += frame.len());
/// assert_eq!(count, 60);
/// assert!(Packet::parse(&bytes[..HEADER]).is_none());
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet<'a> {
    bytes: &'a [u8],
    header: Header,
    large: Option<Large>,
}

impl<'a> Packet<'a> {
    /// Parses a packet with the header in front of it. `None` if it breaks the rules above, or its
    /// length is not the one that it states. A checksum may be missing only at its place in TCP or
    /// UDP, so that filling it in changes nothing else.
    pub fn parse(bytes: &'a [u8]) -> Option<Self> {
        let header = Header::parse(bytes)?;
        let frame = bytes.get(HEADER..)?;
        if frame.len() < MIN_FRAME {
            return None;
        }
        let mut large = None;
        if header.is_large() {
            let parsed = Large::parse(&header, frame, MAX_FRAME)?;
            let total = two(frame, ETHERNET + 2)?;
            if parsed.ip != ETHERNET
                || usize::from(u16::from_be_bytes(total)) != frame.len() - ETHERNET
            {
                return None;
            }
            large = Some(parsed);
        } else if frame.len() > MAX_FRAME || !(header.is_ready() || header.lacks_checksum(frame)) {
            return None;
        }
        Some(Self {
            bytes,
            header,
            large,
        })
    }

    /// All bytes, including the header.
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// The frame or large packet.
    pub fn frame(&self) -> &'a [u8] {
        self.bytes.get(HEADER..).unwrap_or_default()
    }

    /// True if it is a complete frame, so that nothing is left to do.
    pub fn is_ready(&self) -> bool {
        self.header.is_ready()
    }

    /// What is left to do.
    pub fn header(&self) -> Header {
        self.header
    }

    /// How to cut it, or `None` if it is a frame.
    pub fn large(&self) -> Option<Large> {
        self.large
    }

    /// Calls `take` with each frame of the packet, in order. They are complete and have at most
    /// [`MAX_FRAME`] bytes.
    pub fn for_each_frame(&self, mut take: impl FnMut(&[u8])) {
        if self.is_ready() {
            return take(self.frame());
        }
        let mut buffer = [0; MAX_FRAME];
        if let Some(large) = &self.large {
            let mut index = 0;
            while let Some(len) = large.write(self.frame(), index, &mut buffer) {
                take(buffer.get(..len).unwrap_or_default());
                index += 1;
            }
        } else if let Some(buffer) = buffer.get_mut(..self.frame().len()) {
            buffer.copy_from_slice(self.frame());
            if self.header.fill_checksum(buffer) {
                take(buffer);
            }
        }
    }
}

/// Leaves the checksum and the cutting of a TCP packet over IPv4 to the receiver.
///
/// `bytes` has room for the header, followed by the packet from its Ethernet header on. This writes
/// the header, IPv4's total length and checksum, and the sum of TCP's pseudo header. The receiver
/// cuts the packet if it has more than `segment` bytes of payload, unless `segment` is 0.
///
/// Returns false, and leaves `bytes` in any state, if this is not a TCP packet over IPv4.
pub fn offload_tcp(bytes: &mut [u8], segment: u16) -> bool {
    try_offload_tcp(bytes, segment).is_some()
}

fn try_offload_tcp(bytes: &mut [u8], segment: u16) -> Option<()> {
    let (header, packet) = bytes.split_at_mut_checked(HEADER)?;
    let tcp = ETHERNET + usize::from(*packet.get(ETHERNET)? & 15) * 4;
    let headers = tcp + usize::from(*packet.get(tcp + 12)? >> 4) * 4;
    let payload = packet.len().checked_sub(headers)?;
    let total = u16::try_from(packet.len() - ETHERNET).ok()?;
    if two(packet, ETHERNET - 2)? != TYPE_IPV4
        || packet.get(ETHERNET)? >> 4 != 4
        || tcp < ETHERNET + 20
        || headers < tcp + TCP
        || *packet.get(ETHERNET + 9)? != PROTO_TCP
    {
        return None;
    }
    put(packet, ETHERNET + 2, &total.to_be_bytes());
    put(packet, ETHERNET + 10, &[0, 0]);
    let checksum = fold(sum(packet.get(ETHERNET..tcp)?));
    put(packet, ETHERNET + 10, &checksum);
    let covered = u16::try_from(packet.len() - tcp).ok()?;
    let addresses = sum(packet.get(ETHERNET + 12..ETHERNET + 20)?);
    let pseudo = fold(sum(&[0, PROTO_TCP]) + sum(&covered.to_be_bytes()) + addresses);
    put(packet, tcp + 16, &[!pseudo[0], !pseudo[1]]);
    let cut = segment > 0 && payload > usize::from(segment);
    header.fill(0);
    put(header, 0, &[NEEDS_CHECKSUM]);
    if cut {
        put(header, 1, &[LARGE_TCP_IPV4]);
        put(header, 2, &u16::try_from(headers).ok()?.to_le_bytes());
        put(header, 4, &segment.to_le_bytes());
    }
    put(header, 6, &u16::try_from(tcp).ok()?.to_le_bytes());
    put(header, 8, &TCP_CHECKSUM.to_le_bytes());
    Some(())
}
