//! Cuts large TCP packets into frames.

use crate::checksum::{fold, sum};
use crate::header::{Header, LARGE_TCP_IPV4, NEEDS_CHECKSUM};
use crate::layout::{
    ETHERNET, MAX_FRAMES, PROTO_TCP, TCP, TCP_CHECKSUM, TYPE_IPV4, TYPE_VLAN, put, two,
};

const CWR: u8 = 0x80;
const FIN_AND_PSH: u8 = 0x09;
/// Minimum payload of a frame in bytes, as in Linux (`TCP_MIN_GSO_SIZE`).
const MIN_SEGMENT: usize = 8;

/// A TCP packet over IPv4 that is larger than a frame, and how to cut it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Large {
    /// Offset of the IPv4 header.
    pub(crate) ip: usize,
    /// Offset of the TCP header.
    tcp: usize,
    /// Bytes of all headers.
    headers: usize,
    /// Bytes of payload in each frame except the last.
    segment: usize,
    payload: usize,
}

impl Large {
    /// Parses a packet that can be cut into frames of at most `max` bytes. `None` if it cannot be cut, or does not
    /// match `header`.
    pub fn parse(header: &Header, packet: &[u8], max: usize) -> Option<Self> {
        if header.kind != LARGE_TCP_IPV4 || header.flags != NEEDS_CHECKSUM {
            return None;
        }
        let mut ip = ETHERNET;
        if two(packet, ip - 2)? == TYPE_VLAN {
            ip += 4;
        }
        let version = *packet.get(ip)?;
        let tcp = ip + usize::from(version & 15) * 4;
        let is_ipv4 = two(packet, ip - 2)? == TYPE_IPV4 && version >> 4 == 4;
        // Neither a fragment nor anything but TCP, with its checksum where TCP has it.
        let whole = two(packet, ip + 6)?[0] & 0x3f == 0 && *packet.get(ip + 7)? == 0;
        if !is_ipv4
            || !whole
            || *packet.get(ip + 9)? != PROTO_TCP
            || tcp < ip + 20
            || usize::from(header.checksum_start) != tcp
            || header.checksum_offset != TCP_CHECKSUM
        {
            return None;
        }
        let offset = usize::from(*packet.get(tcp + 12)? >> 4) * 4;
        let headers = tcp + offset;
        let payload = packet.len().checked_sub(headers)?;
        let segment = usize::from(header.segment);
        if offset < TCP || payload == 0 || segment < MIN_SEGMENT || headers + segment > max {
            return None;
        }
        if payload.div_ceil(segment) > MAX_FRAMES {
            return None;
        }
        Some(Self {
            ip,
            tcp,
            headers,
            segment,
            payload,
        })
    }

    /// Bytes of all headers.
    pub fn headers(&self) -> usize {
        self.headers
    }

    /// Bytes of payload in each frame except the last.
    pub fn segment(&self) -> u16 {
        self.segment as u16
    }

    /// The number of frames that the packet is cut into.
    pub fn count(&self) -> usize {
        self.payload.div_ceil(self.segment)
    }

    /// Writes frame number `index` of `packet` to `frame` and returns its length. `None` if the packet
    /// has fewer frames, or `frame` is too small.
    pub fn write(&self, packet: &[u8], index: usize, frame: &mut [u8]) -> Option<usize> {
        let skipped = index.checked_mul(self.segment)?;
        let from = self.headers.checked_add(skipped)?;
        let payload = packet.get(from..)?;
        let payload = payload.get(..self.segment).unwrap_or(payload);
        if payload.is_empty() {
            return None;
        }
        let len = self.headers + payload.len();
        let frame = frame.get_mut(..len)?;
        frame
            .get_mut(..self.headers)?
            .copy_from_slice(packet.get(..self.headers)?);
        frame.get_mut(self.headers..)?.copy_from_slice(payload);

        let total = u16::try_from(len - self.ip).ok()?;
        put(frame, self.ip + 2, &total.to_be_bytes());
        let id = u16::from_be_bytes(two(frame, self.ip + 4)?).wrapping_add(index as u16);
        put(frame, self.ip + 4, &id.to_be_bytes());
        put(frame, self.ip + 10, &[0, 0]);
        let checksum = fold(sum(frame.get(self.ip..self.tcp)?));
        put(frame, self.ip + 10, &checksum);

        let sequence = frame.get(self.tcp + 4..self.tcp + 8)?.try_into().ok()?;
        let sequence = u32::from_be_bytes(sequence).wrapping_add(skipped as u32);
        put(frame, self.tcp + 4, &sequence.to_be_bytes());
        let flags = frame.get_mut(self.tcp + 13)?;
        if index > 0 {
            // The window was reduced once (RFC 3168, 6.1.2).
            *flags &= !CWR;
        }
        if index + 1 < self.count() {
            *flags &= !FIN_AND_PSH;
        }
        put(frame, self.tcp + 16, &[0, 0]);
        let covered = u16::try_from(len - self.tcp).ok()?;
        let addresses = sum(frame.get(self.ip + 12..self.ip + 20)?);
        let pseudo = sum(&[0, PROTO_TCP]) + sum(&covered.to_be_bytes()) + addresses;
        let checksum = fold(pseudo + sum(frame.get(self.tcp..)?));
        put(frame, self.tcp + 16, &checksum);
        Some(len)
    }
}
