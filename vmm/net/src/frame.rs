//! Reads and writes Ethernet, ARP, IPv4, UDP, TCP and ICMP, as far as the gateway needs it.
//!
//! Readers return `None` for anything short or malformed, and check every length that a guest wrote
//! before they use it. Writers fill buffers whose size the caller has computed with the constants
//! of this module.

use std::net::Ipv4Addr;

use fleetbox_packet::checksum::{fold, never_zero, sum};

/// A hardware address.
pub(crate) type Mac = [u8; 6];

/// The gateway's hardware address: locally administered, and never given to a guest.
pub(crate) const GATEWAY_MAC: Mac = [0x02, 0xf1, 0xee, 0x7b, 0x0c, 0x01];

pub(crate) const BROADCAST: Mac = [0xff; 6];
/// Bytes of an Ethernet header.
pub(crate) const ETHERNET: usize = 14;
/// Bytes of an IPv4 header without options (RFC 791).
pub(crate) const IPV4: usize = 20;
/// Bytes of a UDP header (RFC 768).
pub(crate) const UDP: usize = 8;
/// Bytes of a TCP header without options (RFC 9293).
pub(crate) const TCP: usize = 20;
/// The largest IP packet on the network.
pub(crate) const MTU: usize = 1500;

pub(crate) const TYPE_IPV4: u16 = 0x0800;
pub(crate) const TYPE_ARP: u16 = 0x0806;

pub(crate) const PROTO_ICMP: u8 = 1;
pub(crate) const PROTO_TCP: u8 = 6;
pub(crate) const PROTO_UDP: u8 = 17;

// Indexing by a checked offset, rather than slices and conversions: these run several times for
// each frame, and every call into the standard library costs in builds without optimisation.

pub(crate) fn be16(data: &[u8], at: usize) -> Option<u16> {
    if at + 2 > data.len() {
        return None;
    }
    Some((data[at] as u16) << 8 | data[at + 1] as u16)
}

pub(crate) fn be32(data: &[u8], at: usize) -> Option<u32> {
    if at + 4 > data.len() {
        return None;
    }
    let high = (data[at] as u32) << 24 | (data[at + 1] as u32) << 16;
    Some(high | (data[at + 2] as u32) << 8 | data[at + 3] as u32)
}

pub(crate) fn ipv4_at(data: &[u8], at: usize) -> Option<Ipv4Addr> {
    be32(data, at).map(Ipv4Addr::from)
}

pub(crate) fn mac_at(data: &[u8], at: usize) -> Option<Mac> {
    let mac = data.get(at..at + 6)?;
    Some([mac[0], mac[1], mac[2], mac[3], mac[4], mac[5]])
}

/// Copies `part` to `at`. Bytes that do not fit are left out.
pub(crate) fn put(buffer: &mut [u8], at: usize, part: &[u8]) {
    if let Some(slot) = buffer.get_mut(at..at + part.len()) {
        slot.copy_from_slice(part);
    }
}

/// The pseudo header of TCP and UDP over IPv4.
pub(crate) fn pseudo_header(source: Ipv4Addr, to: Ipv4Addr, protocol: u8, len: u16) -> u64 {
    let mut header = [0; 12];
    put(&mut header, 0, &source.octets());
    put(&mut header, 4, &to.octets());
    put(&mut header, 9, &[protocol]);
    put(&mut header, 10, &len.to_be_bytes());
    sum(&header)
}

/// Writes an Ethernet header.
pub(crate) fn ethernet(frame: &mut [u8], to: Mac, from: Mac, ethertype: u16) {
    put(frame, 0, &to);
    put(frame, 6, &from);
    put(frame, 12, &ethertype.to_be_bytes());
}

/// An IPv4 packet whose lengths have been checked.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ipv4<'a> {
    pub(crate) source: Ipv4Addr,
    pub(crate) to: Ipv4Addr,
    pub(crate) protocol: u8,
    pub(crate) fragment: bool,
    /// Where the payload belongs in the payload of the whole datagram, in bytes.
    pub(crate) offset: usize,
    pub(crate) ttl: u8,
    /// The whole packet, without padding.
    pub(crate) packet: &'a [u8],
    /// The bytes after the header.
    pub(crate) payload: &'a [u8],
}

impl<'a> Ipv4<'a> {
    /// Parses the packet after an Ethernet header. The header's checksum is not verified, because
    /// the link is memory, and a guest that writes a wrong checksum harms only itself.
    pub(crate) fn parse(data: &'a [u8]) -> Option<Self> {
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
            offset: usize::from(be16(data, 6)? & FRAGMENT_OFFSET) * 8,
            ttl: *data.get(8)?,
            packet,
            payload: packet.get(header..)?,
        })
    }
}

/// The fields of an IPv4 header.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ipv4Header {
    pub(crate) source: Ipv4Addr,
    pub(crate) to: Ipv4Addr,
    pub(crate) protocol: u8,
    /// Identification, for fragments.
    pub(crate) id: u16,
    /// The flags and the fragment offset in units of 8 bytes (RFC 791, 3.1).
    pub(crate) fragment: u16,
}

/// Do not fragment.
pub(crate) const DONT_FRAGMENT: u16 = 0x4000;
/// More fragments follow.
pub(crate) const MORE_FRAGMENTS: u16 = 0x2000;
/// A fragment's place, in units of 8 bytes.
pub(crate) const FRAGMENT_OFFSET: u16 = 0x1fff;

impl Ipv4Header {
    pub(crate) fn new(source: Ipv4Addr, to: Ipv4Addr, protocol: u8) -> Self {
        Self {
            source,
            to,
            protocol,
            id: 0,
            fragment: DONT_FRAGMENT,
        }
    }

    /// Writes the header of a packet of `total` bytes, including the header.
    pub(crate) fn write(&self, packet: &mut [u8], total: usize) {
        put(packet, 0, &[0x45, 0]);
        put(packet, 2, &(total as u16).to_be_bytes());
        put(packet, 4, &self.id.to_be_bytes());
        put(packet, 6, &self.fragment.to_be_bytes());
        put(packet, 8, &[64, self.protocol, 0, 0]);
        put(packet, 12, &self.source.octets());
        put(packet, 16, &self.to.octets());
        if let Some(header) = packet.get(..IPV4) {
            let checksum = fold(sum(header));
            put(packet, 10, &checksum);
        }
    }
}

/// A UDP datagram.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Udp<'a> {
    pub(crate) source: u16,
    pub(crate) to: u16,
    pub(crate) payload: &'a [u8],
}

impl<'a> Udp<'a> {
    pub(crate) fn parse(data: &'a [u8]) -> Option<Self> {
        let len = usize::from(be16(data, 4)?);
        Some(Self {
            source: be16(data, 0)?,
            to: be16(data, 2)?,
            payload: data.get(UDP..len)?,
        })
    }

    /// Writes the datagram, whose `UDP + payload.len()` bytes are at most 65515, into `buffer`.
    pub(crate) fn write(&self, buffer: &mut [u8], source: Ipv4Addr, to: Ipv4Addr) {
        let len = UDP + self.payload.len();
        put(buffer, 0, &self.source.to_be_bytes());
        put(buffer, 2, &self.to.to_be_bytes());
        put(buffer, 4, &(len as u16).to_be_bytes());
        put(buffer, 6, &[0, 0]);
        put(buffer, UDP, self.payload);
        if let Some(datagram) = buffer.get(..len) {
            let pseudo = pseudo_header(source, to, PROTO_UDP, len as u16);
            let checksum = never_zero(fold(sum(datagram) + pseudo));
            put(buffer, 6, &checksum);
        }
    }
}

pub(crate) const FIN: u8 = 1;
pub(crate) const SYN: u8 = 2;
pub(crate) const RST: u8 = 4;
pub(crate) const ACK: u8 = 16;

/// The fixed part of a TCP segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tcp {
    pub(crate) source: u16,
    pub(crate) to: u16,
    pub(crate) sequence: u32,
    pub(crate) acknowledgement: u32,
    pub(crate) flags: u8,
    /// Bytes of payload.
    pub(crate) payload: usize,
}

impl Tcp {
    pub(crate) fn parse(data: &[u8]) -> Option<Self> {
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

    /// True if it opens a connection.
    pub(crate) fn is_opening(&self) -> bool {
        self.has(SYN) && !self.has(ACK) && !self.has(RST)
    }

    pub(crate) fn has(&self, flags: u8) -> bool {
        self.flags & flags == flags
    }

    /// The reset that answers this segment if no connection takes it (RFC 9293, 3.10.7.1).
    pub(crate) fn reset(&self) -> Option<Self> {
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
    pub(crate) fn write(&self, buffer: &mut [u8], source: Ipv4Addr, to: Ipv4Addr) {
        put(buffer, 0, &self.source.to_be_bytes());
        put(buffer, 2, &self.to.to_be_bytes());
        put(buffer, 4, &self.sequence.to_be_bytes());
        put(buffer, 8, &self.acknowledgement.to_be_bytes());
        put(buffer, 12, &[0x50, self.flags, 0, 0, 0, 0, 0, 0]);
        if let Some(segment) = buffer.get(..TCP) {
            let pseudo = pseudo_header(source, to, PROTO_TCP, TCP as u16);
            put(buffer, 16, &fold(sum(segment) + pseudo));
        }
    }
}

/// Why a packet could not be delivered: the code of an ICMP "destination unreachable" (RFC 792).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Unreachable {
    Network = 0,
    Host = 1,
    Port = 3,
    Prohibited = 13,
}

/// The bytes of an ICMP "destination unreachable" about `original`, an IPv4 packet: its header
/// and the 8 bytes that follow.
pub(crate) fn unreachable(code: Unreachable, original: &[u8]) -> Vec<u8> {
    let header = usize::from(original.first().copied().unwrap_or(0) & 15) * 4;
    let quoted = original.get(..header + 8).unwrap_or(original);
    let mut message = vec![0; 8 + quoted.len()];
    put(&mut message, 0, &[3, code as u8]);
    put(&mut message, 8, quoted);
    let checksum = fold(sum(&message));
    put(&mut message, 2, &checksum);
    message
}

/// An ARP packet for IPv4 over Ethernet (RFC 826).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Arp {
    pub(crate) operation: u16,
    pub(crate) sender_mac: Mac,
    pub(crate) sender_ip: Ipv4Addr,
    pub(crate) target_mac: Mac,
    pub(crate) target_ip: Ipv4Addr,
}

impl Arp {
    pub(crate) const REQUEST: u16 = 1;
    pub(crate) const REPLY: u16 = 2;
    /// Bytes on the wire.
    pub(crate) const LEN: usize = 28;

    pub(crate) fn parse(data: &[u8]) -> Option<Self> {
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

    pub(crate) fn write(&self, buffer: &mut [u8]) {
        put(buffer, 0, &[0, 1, 8, 0, 6, 4]);
        put(buffer, 6, &self.operation.to_be_bytes());
        put(buffer, 8, &self.sender_mac);
        put(buffer, 14, &self.sender_ip.octets());
        put(buffer, 18, &self.target_mac);
        put(buffer, 24, &self.target_ip.octets());
    }
}

/// A MAC address in its usual notation.
pub(crate) fn show(mac: Mac) -> String {
    let [a, b, c, d, e, f] = mac;
    format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
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
