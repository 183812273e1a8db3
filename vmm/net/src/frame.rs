//! Ethernet, ARP, IPv4, UDP, TCP and ICMP as far as the gateway reads and writes them itself.
//!
//! Readers return `None` for anything short or malformed; nothing here indexes by a length that
//! a guest wrote without checking it first. Writers fill buffers whose size the caller computed
//! with the constants of this module.

use std::net::Ipv4Addr;

/// A hardware address.
pub(super) type Mac = [u8; 6];

pub(super) const BROADCAST: Mac = [0xff; 6];
/// Bytes of an Ethernet header.
pub(super) const ETHERNET: usize = 14;
/// Bytes of an IPv4 header without options (RFC 791).
pub(super) const IPV4: usize = 20;
/// Bytes of a UDP header (RFC 768).
pub(super) const UDP: usize = 8;
/// Bytes of a TCP header without options (RFC 9293).
pub(super) const TCP: usize = 20;
/// The largest IP packet on the network.
pub(super) const MTU: usize = 1500;

pub(super) const TYPE_IPV4: u16 = 0x0800;
pub(super) const TYPE_ARP: u16 = 0x0806;
/// Types of frames with a customer's or a service's VLAN tag (IEEE 802.1Q, 9.5).
pub(super) const TYPE_C_TAG: u16 = 0x8100;
pub(super) const TYPE_S_TAG: u16 = 0x88A8;
/// The VLAN's number in a tag.
pub(super) const VLAN_ID: u16 = 0x0FFF;

pub(super) const PROTO_ICMP: u8 = 1;
pub(super) const PROTO_TCP: u8 = 6;
pub(super) const PROTO_UDP: u8 = 17;

// Indexing by a checked offset, rather than slices and conversions: these run several times for
// each frame, and every call into the standard library costs in builds without optimisation.

pub(super) fn be16(data: &[u8], at: usize) -> Option<u16> {
    if at + 2 > data.len() {
        return None;
    }
    Some((data[at] as u16) << 8 | data[at + 1] as u16)
}

pub(super) fn be32(data: &[u8], at: usize) -> Option<u32> {
    if at + 4 > data.len() {
        return None;
    }
    let high = (data[at] as u32) << 24 | (data[at + 1] as u32) << 16;
    Some(high | (data[at + 2] as u32) << 8 | data[at + 3] as u32)
}

pub(super) fn ipv4_at(data: &[u8], at: usize) -> Option<Ipv4Addr> {
    be32(data, at).map(Ipv4Addr::from)
}

pub(super) fn mac_at(data: &[u8], at: usize) -> Option<Mac> {
    let mac = data.get(at..at + 6)?;
    Some([mac[0], mac[1], mac[2], mac[3], mac[4], mac[5]])
}

/// Copies `part` to `at`; what does not fit is left out.
pub(super) fn put(buffer: &mut [u8], at: usize, part: &[u8]) {
    if let Some(slot) = buffer.get_mut(at..at + part.len()) {
        slot.copy_from_slice(part);
    }
}

/// The one's complement sum of RFC 1071, in memory order, not inverted.
///
/// Sixteen bytes a step and without iterators, because this also runs in builds without
/// optimisation.
pub(super) fn sum(data: &[u8], initial: u64) -> u64 {
    const LOW: u128 = u64::MAX as u128;
    // Halves of 64 bits in 128 leave room for more carries than there is memory.
    let mut sum = initial as u128;
    let (chunks, tail) = data.as_chunks::<16>();
    let mut index = 0;
    while index < chunks.len() {
        let value = u128::from_ne_bytes(chunks[index]);
        sum += (value & LOW) + (value >> 64);
        index += 1;
    }
    let mut rest = [0; 16];
    put(&mut rest, 0, tail);
    let value = u128::from_ne_bytes(rest);
    sum += (value & LOW) + (value >> 64);
    // 2^64 and 2^32 are both 1 modulo 0xffff, so folding keeps the value.
    let folded = (sum & LOW) + (sum >> 64);
    let folded = (folded & LOW) + (folded >> 64);
    let folded = folded as u64;
    (folded & 0xffff_ffff) + (folded >> 32)
}

/// Folds a [`sum`] to the checksum as it stands in a packet.
pub(super) fn finish(mut sum: u64) -> [u8; 2] {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!(sum as u16)).to_ne_bytes()
}

/// The pseudo header of TCP and UDP over IPv4.
pub(super) fn pseudo_header(source: Ipv4Addr, to: Ipv4Addr, protocol: u8, len: u16) -> u64 {
    let mut header = [0; 12];
    put(&mut header, 0, &source.octets());
    put(&mut header, 4, &to.octets());
    put(&mut header, 9, &[protocol]);
    put(&mut header, 10, &len.to_be_bytes());
    sum(&header, 0)
}

/// Writes an Ethernet header.
pub(super) fn ethernet(frame: &mut [u8], to: Mac, from: Mac, ethertype: u16) {
    put(frame, 0, &to);
    put(frame, 6, &from);
    put(frame, 12, &ethertype.to_be_bytes());
}

/// An IPv4 packet whose lengths have been checked.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ipv4<'a> {
    pub(super) source: Ipv4Addr,
    pub(super) to: Ipv4Addr,
    pub(super) protocol: u8,
    pub(super) fragment: bool,
    pub(super) ttl: u8,
    /// The whole packet, without padding.
    pub(super) packet: &'a [u8],
    /// What follows the header.
    pub(super) payload: &'a [u8],
}

impl<'a> Ipv4<'a> {
    /// Reads the packet after an Ethernet header. The header's checksum is not verified: the
    /// link is memory, and a guest that writes a wrong one harms only itself.
    pub(super) fn parse(data: &'a [u8]) -> Option<Self> {
        let first = *data.first()?;
        let header = usize::from(first & 15) * 4;
        let total = usize::from(be16(data, 2)?);
        if first >> 4 != 4 || header < IPV4 || total < header {
            return None;
        }
        let packet = data.get(..total)?;
        Some(Self {
            source: ipv4_at(data, 12)?,
            to: ipv4_at(data, 16)?,
            protocol: *data.get(9)?,
            fragment: be16(data, 6)? & 0x3fff != 0,
            ttl: *data.get(8)?,
            packet,
            payload: packet.get(header..)?,
        })
    }
}

/// What goes into an IPv4 header.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ipv4Header {
    pub(super) source: Ipv4Addr,
    pub(super) to: Ipv4Addr,
    pub(super) protocol: u8,
    /// Identification, for fragments.
    pub(super) id: u16,
    /// The flags and the fragment offset in units of 8 bytes (RFC 791, 3.1).
    pub(super) fragment: u16,
}

/// Do not fragment.
pub(super) const DONT_FRAGMENT: u16 = 0x4000;
/// More fragments follow.
pub(super) const MORE_FRAGMENTS: u16 = 0x2000;

impl Ipv4Header {
    pub(super) fn new(source: Ipv4Addr, to: Ipv4Addr, protocol: u8) -> Self {
        Self {
            source,
            to,
            protocol,
            id: 0,
            fragment: DONT_FRAGMENT,
        }
    }

    /// Writes the header of a packet of `total` bytes, header included.
    pub(super) fn write(&self, packet: &mut [u8], total: usize) {
        put(packet, 0, &[0x45, 0]);
        put(packet, 2, &(total as u16).to_be_bytes());
        put(packet, 4, &self.id.to_be_bytes());
        put(packet, 6, &self.fragment.to_be_bytes());
        put(packet, 8, &[64, self.protocol, 0, 0]);
        put(packet, 12, &self.source.octets());
        put(packet, 16, &self.to.octets());
        if let Some(header) = packet.get(..IPV4) {
            let checksum = finish(sum(header, 0));
            put(packet, 10, &checksum);
        }
    }
}

/// A UDP datagram.
#[derive(Debug, Clone, Copy)]
pub(super) struct Udp<'a> {
    pub(super) source: u16,
    pub(super) to: u16,
    pub(super) payload: &'a [u8],
}

impl<'a> Udp<'a> {
    pub(super) fn parse(data: &'a [u8]) -> Option<Self> {
        let len = usize::from(be16(data, 4)?);
        Some(Self {
            source: be16(data, 0)?,
            to: be16(data, 2)?,
            payload: data.get(UDP..len)?,
        })
    }

    /// Writes the datagram, whose `UDP + payload.len()` bytes are at most 65515, into `buffer`.
    pub(super) fn write(&self, buffer: &mut [u8], source: Ipv4Addr, to: Ipv4Addr) {
        let len = UDP + self.payload.len();
        put(buffer, 0, &self.source.to_be_bytes());
        put(buffer, 2, &self.to.to_be_bytes());
        put(buffer, 4, &(len as u16).to_be_bytes());
        put(buffer, 6, &[0, 0]);
        put(buffer, UDP, self.payload);
        if let Some(datagram) = buffer.get(..len) {
            let pseudo = pseudo_header(source, to, PROTO_UDP, len as u16);
            let mut checksum = finish(sum(datagram, pseudo));
            if checksum == [0, 0] {
                // Zero means "no checksum" (RFC 768).
                checksum = [0xff, 0xff];
            }
            put(buffer, 6, &checksum);
        }
    }
}

pub(super) const FIN: u8 = 1;
pub(super) const SYN: u8 = 2;
pub(super) const RST: u8 = 4;
pub(super) const ACK: u8 = 16;

/// The fixed part of a TCP segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Tcp {
    pub(super) source: u16,
    pub(super) to: u16,
    pub(super) sequence: u32,
    pub(super) acknowledgement: u32,
    pub(super) flags: u8,
    /// Bytes of payload.
    pub(super) payload: usize,
}

impl Tcp {
    pub(super) fn parse(data: &[u8]) -> Option<Self> {
        let header = usize::from(*data.get(12)? >> 4) * 4;
        if header < TCP {
            return None;
        }
        Some(Self {
            source: be16(data, 0)?,
            to: be16(data, 2)?,
            sequence: be32(data, 4)?,
            acknowledgement: be32(data, 8)?,
            flags: *data.get(13)?,
            payload: data.len().checked_sub(header)?,
        })
    }

    pub(super) fn has(&self, flags: u8) -> bool {
        self.flags & flags == flags
    }

    /// The reset that answers this segment where there is no connection (RFC 9293, 3.10.7.1).
    pub(super) fn reset(&self) -> Option<Self> {
        if self.has(RST) {
            return None;
        }
        let occupied = self.payload + usize::from(self.has(SYN)) + usize::from(self.has(FIN));
        let (sequence, acknowledgement, flags) = if self.has(ACK) {
            (self.acknowledgement, 0, RST)
        } else {
            (0, self.sequence.wrapping_add(occupied as u32), RST | ACK)
        };
        Some(Self {
            source: self.to,
            to: self.source,
            sequence,
            acknowledgement,
            flags,
            payload: 0,
        })
    }

    /// Writes the 20 bytes of a segment without payload.
    pub(super) fn write(&self, buffer: &mut [u8], source: Ipv4Addr, to: Ipv4Addr) {
        put(buffer, 0, &self.source.to_be_bytes());
        put(buffer, 2, &self.to.to_be_bytes());
        put(buffer, 4, &self.sequence.to_be_bytes());
        put(buffer, 8, &self.acknowledgement.to_be_bytes());
        put(buffer, 12, &[0x50, self.flags, 0, 0, 0, 0, 0, 0]);
        if let Some(segment) = buffer.get(..TCP) {
            let pseudo = pseudo_header(source, to, PROTO_TCP, TCP as u16);
            put(buffer, 16, &finish(sum(segment, pseudo)));
        }
    }
}

/// Why a packet went nowhere: the code of an ICMP "destination unreachable" (RFC 792).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Unreachable {
    Network = 0,
    Host = 1,
    Port = 3,
    Prohibited = 13,
}

/// The bytes of an ICMP "destination unreachable" about `original`, an IPv4 packet: its header
/// and the 8 bytes that follow.
pub(super) fn unreachable(code: Unreachable, original: &[u8]) -> Vec<u8> {
    let header = usize::from(original.first().copied().unwrap_or(0) & 15) * 4;
    let quoted = original.get(..header + 8).unwrap_or(original);
    let mut message = vec![0; 8 + quoted.len()];
    put(&mut message, 0, &[3, code as u8]);
    put(&mut message, 8, quoted);
    let checksum = finish(sum(&message, 0));
    put(&mut message, 2, &checksum);
    message
}

/// An ARP packet for IPv4 over Ethernet (RFC 826).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Arp {
    pub(super) operation: u16,
    pub(super) sender_mac: Mac,
    pub(super) sender_ip: Ipv4Addr,
    pub(super) target_mac: Mac,
    pub(super) target_ip: Ipv4Addr,
}

impl Arp {
    pub(super) const REQUEST: u16 = 1;
    pub(super) const REPLY: u16 = 2;
    /// Bytes on the wire.
    pub(super) const LEN: usize = 28;

    pub(super) fn parse(data: &[u8]) -> Option<Self> {
        if data.get(..6)? != [0, 1, 8, 0, 6, 4] {
            return None;
        }
        Some(Self {
            operation: be16(data, 6)?,
            sender_mac: mac_at(data, 8)?,
            sender_ip: ipv4_at(data, 14)?,
            target_mac: mac_at(data, 18)?,
            target_ip: ipv4_at(data, 24)?,
        })
    }

    pub(super) fn write(&self, buffer: &mut [u8]) {
        put(buffer, 0, &[0, 1, 8, 0, 6, 4]);
        put(buffer, 6, &self.operation.to_be_bytes());
        put(buffer, 8, &self.sender_mac);
        put(buffer, 14, &self.sender_ip.octets());
        put(buffer, 18, &self.target_mac);
        put(buffer, 24, &self.target_ip.octets());
    }
}

/// A MAC address as people write it.
pub(super) fn show(mac: Mac) -> String {
    let [a, b, c, d, e, f] = mac;
    format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_that_of_rfc_1071() {
        // The example of RFC 1071, section 3: the sum is 0xddf2.
        let data = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(finish(sum(&data, 0)), (!0xddf2u16).to_be_bytes());
    }

    proptest::proptest! {
        #[test]
        fn the_checksum_equals_the_plain_one(data in proptest::collection::vec(0u8.., 0..2000)) {
            let mut plain = 0u32;
            for pair in data.chunks(2) {
                plain += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
                plain = (plain & 0xffff) + (plain >> 16);
            }
            assert_eq!(finish(sum(&data, 0)), (!(plain as u16)).to_be_bytes());
        }

        #[test]
        fn readers_take_anything(data in proptest::collection::vec(0u8.., 0..120)) {
            let _ = Arp::parse(&data);
            let _ = Tcp::parse(&data).map(|tcp| tcp.reset());
            let _ = Udp::parse(&data);
            let _ = Ipv4::parse(&data);
            let _ = unreachable(Unreachable::Host, &data);
        }
    }

    #[test]
    fn smoltcp_accepts_what_is_written() {
        use smoltcp::wire;
        let (from, to) = (Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 0, 2));
        let mut packet = vec![0; IPV4 + UDP + 5];
        let total = packet.len();
        Ipv4Header::new(from, to, PROTO_UDP).write(&mut packet, total);
        let udp = Udp {
            source: 53,
            to: 999,
            payload: b"hello",
        };
        udp.write(&mut packet[IPV4..], from, to);
        let ip = wire::Ipv4Packet::new_checked(&packet[..]).unwrap();
        assert!(ip.verify_checksum());
        let parsed = wire::UdpPacket::new_checked(ip.payload()).unwrap();
        assert!(parsed.verify_checksum(&from.into(), &to.into()));
        assert_eq!(parsed.payload(), b"hello");

        let syn = Tcp {
            source: 1000,
            to: 80,
            sequence: 7,
            acknowledgement: 0,
            flags: SYN,
            payload: 0,
        };
        let reset = syn.reset().unwrap();
        assert_eq!((reset.acknowledgement, reset.flags), (8, RST | ACK));
        let mut segment = vec![0; TCP];
        reset.write(&mut segment, from, to);
        let parsed = wire::TcpPacket::new_checked(&segment[..]).unwrap();
        assert!(parsed.verify_checksum(&from.into(), &to.into()));
        assert!(parsed.rst());
        assert_eq!(reset.reset(), None);
    }
}
