//! Identifies the flow of a packet.

use crate::layout::{ETHERNET, PROTO_TCP, PROTO_UDP, TYPE_IPV4, two};

/// A hash of the flow that an IPv4 packet belongs to, the same in both directions. `None` for other
/// packets.
pub fn flow(frame: &[u8]) -> Option<u8> {
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
