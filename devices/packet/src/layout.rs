//! Sizes and offsets in packets, and access to their bytes.

/// Bytes of the header in front of a packet: `struct virtio_net_hdr` with `num_buffers` at its end
/// (virtio 1.2, section 5.1.6).
pub const HEADER: usize = 12;
/// Bytes of the largest frame: an Ethernet header with a VLAN tag and 1500 bytes of payload, without
/// FCS.
pub const MAX_FRAME: usize = 18 + 1500;
/// Bytes of the smallest frame: an Ethernet header.
pub const MIN_FRAME: usize = 14;
/// Bytes of the largest packet, without the header in front of it: an Ethernet header and the
/// largest IPv4 packet.
pub const MAX_PACKET: usize = 14 + 65535;

/// Maximum number of frames that a large packet is cut into. A full packet needs 46 with the usual segments of 1448
/// bytes. Without a limit, one packet with tiny segments would make thousands of frames.
pub const MAX_FRAMES: usize = 512;

/// Bytes of an Ethernet header.
pub(crate) const ETHERNET: usize = 14;
/// Bytes of a TCP header without options.
pub(crate) const TCP: usize = 20;
pub(crate) const TYPE_IPV4: [u8; 2] = [8, 0];
pub(crate) const TYPE_VLAN: [u8; 2] = [0x81, 0];
pub(crate) const PROTO_TCP: u8 = 6;
pub(crate) const PROTO_UDP: u8 = 17;
/// Offset of the checksum in a TCP header.
pub(crate) const TCP_CHECKSUM: u16 = 16;
/// Offset of the checksum in a UDP header.
pub(crate) const UDP_CHECKSUM: u16 = 6;

/// The two bytes at `at`.
pub(crate) fn two(data: &[u8], at: usize) -> Option<[u8; 2]> {
    data.get(at..at.checked_add(2)?)?.try_into().ok()
}

/// Writes `bytes` at `at`. Returns false if they do not fit.
pub(crate) fn put(data: &mut [u8], at: usize, bytes: &[u8]) -> bool {
    let place = data.get_mut(at..at.saturating_add(bytes.len()));
    place.is_some_and(|place| {
        place.copy_from_slice(bytes);
        true
    })
}
