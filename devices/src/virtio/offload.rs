//! What a driver leaves to a network device: checksums, and cutting large TCP packets into frames
//! (virtio 1.2, section 5.1.6.2).
//!
//! All of it is done here, so that the link carries whole frames only and whoever is at its other
//! end need not know. Packets and headers come from the guest: every length is checked.

use virtio_bindings::virtio_net::{
    VIRTIO_NET_HDR_F_NEEDS_CSUM, VIRTIO_NET_HDR_GSO_NONE, VIRTIO_NET_HDR_GSO_TCPV4,
};

const ETHERNET: usize = 14;
const TYPE_IPV4: [u8; 2] = [8, 0];
const TYPE_VLAN: [u8; 2] = [0x81, 0];
const PROTO_TCP: u8 = 6;
const TCP: usize = 20;
const CWR: u8 = 0x80;
const FIN_AND_PSH: u8 = 0x09;
/// Less payload a frame makes no sense, and would make thousands of frames of one packet.
const MIN_SEGMENT: usize = 8;

/// struct virtio_net_hdr as far as it is about sending.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Request {
    flags: u8,
    kind: u8,
    segment: u16,
    checksum_start: u16,
    checksum_offset: u16,
}

impl Request {
    /// Reads a header; `None` if it is too short.
    pub(super) fn parse(header: &[u8]) -> Option<Self> {
        Some(Self {
            flags: *header.first()?,
            kind: *header.get(1)?,
            segment: u16::from_le_bytes(two(header, 4)?),
            checksum_start: u16::from_le_bytes(two(header, 6)?),
            checksum_offset: u16::from_le_bytes(two(header, 8)?),
        })
    }

    /// Whether the frame is to be sent as it is.
    pub(super) fn is_none(&self) -> bool {
        self.flags == 0 && u32::from(self.kind) == VIRTIO_NET_HDR_GSO_NONE
    }

    /// Whether the packet is to be cut into frames.
    pub(super) fn is_large(&self) -> bool {
        u32::from(self.kind) != VIRTIO_NET_HDR_GSO_NONE
    }

    /// Fills in the checksum of a frame that needs one; false if it cannot be.
    pub(super) fn finish(&self, frame: &mut [u8]) -> bool {
        if u32::from(self.flags) != VIRTIO_NET_HDR_F_NEEDS_CSUM {
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

/// A TCP packet that is larger than a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Large {
    ip: usize,
    tcp: usize,
    /// Bytes of all headers.
    headers: usize,
    /// Bytes of payload in each frame but the last.
    segment: usize,
    payload: usize,
}

impl Large {
    /// Understands a packet of which frames of at most `max` bytes are to be made; `None` for what
    /// is no such packet or not what its header says.
    pub(super) fn parse(request: &Request, packet: &[u8], max: usize) -> Option<Self> {
        if u32::from(request.kind) != VIRTIO_NET_HDR_GSO_TCPV4
            || u32::from(request.flags) != VIRTIO_NET_HDR_F_NEEDS_CSUM
        {
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
            || usize::from(request.checksum_start) != tcp
            || request.checksum_offset != 16
        {
            return None;
        }
        let offset = usize::from(*packet.get(tcp + 12)? >> 4) * 4;
        let headers = tcp + offset;
        let payload = packet.len().checked_sub(headers)?;
        let segment = usize::from(request.segment);
        if offset < TCP || payload == 0 || segment < MIN_SEGMENT || headers + segment > max {
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

    /// How many frames the packet makes.
    pub(super) fn count(&self) -> usize {
        self.payload.div_ceil(self.segment)
    }

    /// Writes the frame number `index` of `packet` to `frame`; its length, or `None` if there is
    /// no such frame.
    pub(super) fn write(&self, packet: &[u8], index: usize, frame: &mut [u8]) -> Option<usize> {
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
        let header = fold(sum(frame.get(self.ip..self.tcp)?));
        put(frame, self.ip + 10, &header);

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

fn two(data: &[u8], at: usize) -> Option<[u8; 2]> {
    data.get(at..at.checked_add(2)?)?.try_into().ok()
}

fn put(data: &mut [u8], at: usize, bytes: &[u8]) -> bool {
    let place = data.get_mut(at..at.saturating_add(bytes.len()));
    place.is_some_and(|place| {
        place.copy_from_slice(bytes);
        true
    })
}

/// The sum of RFC 1071, in the byte order of the host and not yet folded to 16 bits. Eight bytes a
/// step; 2^32 is 1 modulo 0xffff.
fn sum(data: &[u8]) -> u64 {
    let (chunks, tail) = data.as_chunks::<8>();
    let mut sum: u64 = 0;
    for chunk in chunks {
        let value = u64::from_ne_bytes(*chunk);
        sum += (value & 0xffff_ffff) + (value >> 32);
    }
    let mut rest = [0; 8];
    put(&mut rest, 0, tail);
    let value = u64::from_ne_bytes(rest);
    sum + (value & 0xffff_ffff) + (value >> 32)
}

/// The checksum that a sum makes, as it stands in a packet.
fn fold(mut sum: u64) -> [u8; 2] {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!(sum as u16)).to_ne_bytes()
}

/// UDP means by zero that there is no checksum (RFC 768); for TCP both forms are the same.
fn never_zero(checksum: [u8; 2]) -> [u8; 2] {
    if checksum == [0, 0] {
        [0xff, 0xff]
    } else {
        checksum
    }
}

#[cfg(test)]
#[path = "offload_test.rs"]
pub(crate) mod tests;
