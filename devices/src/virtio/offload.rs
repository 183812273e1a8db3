//! What a driver leaves to a network device: checksums, and cutting large TCP packets into frames
//! (virtio 1.2, section 5.1.6.2).
//!
//! On a link of [`LinkFormat::Packets`](super::LinkFormat::Packets) it may be left to whoever is
//! at the other end: a [`Packet`] there is a header that says what is yet to be done, and a frame,
//! or as much as IPv4 can say in one piece. Packets and headers come from guests: every length is
//! checked, and what is no [`Packet`] by the narrow rules here goes onto no link.

use virtio_bindings::virtio_net::{
    VIRTIO_NET_HDR_F_NEEDS_CSUM, VIRTIO_NET_HDR_GSO_NONE, VIRTIO_NET_HDR_GSO_TCPV4,
};

/// Bytes of the header in front of a packet: struct virtio_net_hdr with num_buffers at its end
/// (virtio 1.2, section 5.1.6).
pub const HEADER: usize = 12;
/// Bytes of the largest frame: an Ethernet header with a VLAN tag, and 1500 of payload; there is
/// no FCS.
pub const MAX_FRAME: usize = 18 + 1500;
/// Bytes of the smallest frame: an Ethernet header.
pub const MIN_FRAME: usize = 14;
/// Bytes of the largest packet, without the header in front of it: an Ethernet header, and as much
/// as IPv4 can say.
pub const MAX_PACKET: usize = 14 + 65535;

const ETHERNET: usize = 14;
const TYPE_IPV4: [u8; 2] = [8, 0];
const TYPE_VLAN: [u8; 2] = [0x81, 0];
const PROTO_TCP: u8 = 6;
const PROTO_UDP: u8 = 17;
/// Where TCP's and UDP's checksums are.
const TCP_CHECKSUM: u16 = 16;
const UDP_CHECKSUM: u16 = 6;
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

    /// Writes the header of a packet whose headers have `headers` bytes: what this says, and zero
    /// elsewhere.
    pub(super) fn write(&self, header: &mut [u8], headers: usize) {
        header.fill(0);
        if self.is_none() {
            return;
        }
        put(header, 0, &[self.flags, self.kind]);
        if self.is_large() {
            put(header, 2, &(headers as u16).to_le_bytes());
            put(header, 4, &self.segment.to_le_bytes());
        }
        put(header, 6, &self.checksum_start.to_le_bytes());
        put(header, 8, &self.checksum_offset.to_le_bytes());
    }

    /// Whether the frame is to be sent as it is.
    pub(super) fn is_none(&self) -> bool {
        self.flags == 0 && u32::from(self.kind) == VIRTIO_NET_HDR_GSO_NONE
    }

    /// Whether the packet is to be cut into frames.
    pub(super) fn is_large(&self) -> bool {
        u32::from(self.kind) != VIRTIO_NET_HDR_GSO_NONE
    }

    /// Whether nothing but the checksum of TCP or UDP over IPv4 is missing, and the frame ends
    /// where it says.
    pub(super) fn is_open(&self, frame: &[u8]) -> bool {
        self.try_is_open(frame).unwrap_or(false)
    }

    fn try_is_open(&self, frame: &[u8]) -> Option<bool> {
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
            u32::from(self.flags) == VIRTIO_NET_HDR_F_NEEDS_CSUM
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

/// A packet of a link of [`LinkFormat::Packets`](super::LinkFormat::Packets), with the header in
/// front of it: a frame that is ready, a frame of TCP or UDP over IPv4 without its checksum, or a
/// packet of TCP over IPv4 that is yet to be cut.
///
/// ```
/// use fleetbox_devices::virtio::offload::{HEADER, Packet};
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
    request: Request,
    large: Option<Large>,
}

impl<'a> Packet<'a> {
    /// Reads a packet with the header in front of it. `None` if it is none by the rules above, or
    /// has another length than it says: a checksum is left open only where TCP and UDP have it,
    /// so that nobody who fills it in changes anything else.
    pub fn parse(bytes: &'a [u8]) -> Option<Self> {
        let request = Request::parse(bytes)?;
        let frame = bytes.get(HEADER..)?;
        if frame.len() < MIN_FRAME {
            return None;
        }
        let mut large = None;
        if request.is_large() {
            let parsed = Large::parse(&request, frame, MAX_FRAME)?;
            let total = two(frame, ETHERNET + 2)?;
            if parsed.ip != ETHERNET
                || usize::from(u16::from_be_bytes(total)) != frame.len() - ETHERNET
            {
                return None;
            }
            large = Some(parsed);
        } else if frame.len() > MAX_FRAME || !(request.is_none() || request.is_open(frame)) {
            return None;
        }
        Some(Self {
            bytes,
            request,
            large,
        })
    }

    /// All bytes, those of the header among them.
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// The frame or large packet.
    pub fn frame(&self) -> &'a [u8] {
        self.bytes.get(HEADER..).unwrap_or_default()
    }

    /// Whether the frame has its checksums, and is none that is yet to be cut.
    pub fn is_ready(&self) -> bool {
        self.request.is_none()
    }

    /// What is yet to be done.
    pub(super) fn request(&self) -> Request {
        self.request
    }

    /// How it is to be cut.
    pub(super) fn large(&self) -> Option<Large> {
        self.large
    }

    /// Makes frames of at most [`MAX_FRAME`] bytes with all checksums, and hands them over in
    /// their order.
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
            if self.request.finish(buffer) {
                take(buffer);
            }
        }
    }
}

/// Leaves the rest of a TCP packet over IPv4 to whoever receives it. `bytes` are room for the
/// header and the packet, from its Ethernet header on; this writes the header, the total length and
/// checksum of IPv4, and the sum of TCP's pseudo header. The packet is to be cut if it has more than
/// `segment` bytes of payload and `segment` is not 0. False, with nothing promised about `bytes`,
/// if it is no such packet.
pub fn leave_tcp(bytes: &mut [u8], segment: u16) -> bool {
    try_leave_tcp(bytes, segment).is_some()
}

fn try_leave_tcp(bytes: &mut [u8], segment: u16) -> Option<()> {
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
    put(header, 0, &[VIRTIO_NET_HDR_F_NEEDS_CSUM as u8]);
    if cut {
        put(header, 1, &[VIRTIO_NET_HDR_GSO_TCPV4 as u8]);
        put(header, 2, &u16::try_from(headers).ok()?.to_le_bytes());
        put(header, 4, &segment.to_le_bytes());
    }
    put(header, 6, &u16::try_from(tcp).ok()?.to_le_bytes());
    put(header, 8, &TCP_CHECKSUM.to_le_bytes());
    Some(())
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
            || request.checksum_offset != TCP_CHECKSUM
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

    /// Bytes of all headers.
    pub(super) fn headers(&self) -> usize {
        self.headers
    }

    /// Bytes of payload in each frame but the last.
    pub(super) fn segment(&self) -> u16 {
        self.segment as u16
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

/// A hash of the flow that a packet over IPv4 belongs to, the same for both directions; `None` for
/// other packets.
pub(super) fn flow(frame: &[u8]) -> Option<u8> {
    let version = *frame.get(ETHERNET)?;
    if two(frame, ETHERNET - 2)? != TYPE_IPV4 || version >> 4 != 4 {
        return None;
    }
    let mut hash = [0u8; 2];
    let mut mix = |at: usize| -> Option<()> {
        let [high, low] = two(frame, at)?;
        hash = [hash[0] ^ high, hash[1] ^ low];
        Some(())
    };
    for at in (ETHERNET + 12..ETHERNET + 20).step_by(2) {
        mix(at)?;
    }
    let fragment = two(frame, ETHERNET + 6)?;
    let whole = fragment[0] & 0x3f == 0 && fragment[1] == 0;
    if whole && matches!(*frame.get(ETHERNET + 9)?, PROTO_TCP | PROTO_UDP) {
        let ports = ETHERNET + usize::from(version & 15) * 4;
        mix(ports)?;
        mix(ports + 2)?;
    }
    Some(hash[0] ^ hash[1])
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
