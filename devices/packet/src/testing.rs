//! Packets for tests.

/// The checksum as defined by RFC 1071, two bytes at a time.
pub(crate) fn plain(parts: &[&[u8]]) -> u16 {
    let mut sum = 0u32;
    for part in parts {
        for pair in part.chunks(2) {
            sum += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
            sum = (sum & 0xffff) + (sum >> 16);
        }
    }
    !(sum as u16)
}

/// The header and the Ethernet frame of a TCP packet whose checksum is missing.
pub fn large(payload: &[u8], segment: u16, vlan: bool) -> (Vec<u8>, Vec<u8>) {
    let mut frame = vec![2; 12];
    if vlan {
        frame.extend([0x81, 0, 0, 7]);
    }
    frame.extend([8, 0]);
    let ip = frame.len();
    // 20 bytes of IP, 32 of TCP with a time stamp option.
    let total = (20 + 32 + payload.len()) as u16;
    frame.extend([0x45, 0]);
    frame.extend(total.to_be_bytes());
    frame.extend([0xff, 0xfe, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    let tcp = frame.len();
    let checksum = plain(&[&frame[ip..]]);
    frame[ip + 10..ip + 12].copy_from_slice(&checksum.to_be_bytes());
    // Sequence numbers and identifiers wrap around; FIN, PSH, ACK and CWR are set.
    frame.extend([
        1, 2, 0, 80, 0xff, 0xff, 0xff, 0, 0, 0, 0, 9, 0x80, 0x99, 1, 0, 0, 0, 0, 0,
    ]);
    frame.extend([1, 1, 8, 10, 1, 2, 3, 4, 5, 6, 7, 8]);
    frame.extend(payload);
    let pseudo = !plain(&[
        &frame[ip + 12..ip + 20],
        &[0, 6],
        &(total - 20).to_be_bytes(),
    ]);
    frame[tcp + 16..tcp + 18].copy_from_slice(&pseudo.to_be_bytes());
    let mut header = vec![1, 1];
    for field in [(tcp + 32) as u16, segment, tcp as u16, 16, 0] {
        header.extend(field.to_le_bytes());
    }
    (header, frame)
}

/// Checks a frame of [`large`]'s packet, and returns its sequence number, flags and payload.
///
/// # Panics
/// A length or a checksum is wrong.
pub fn check(frame: &[u8], vlan: bool) -> (u32, u8, Vec<u8>) {
    let ip = &frame[if vlan { 18 } else { 14 }..];
    assert_eq!(usize::from(u16::from_be_bytes([ip[2], ip[3]])), ip.len());
    assert_eq!(plain(&[&ip[..20]]), 0, "the header's checksum");
    let tcp = &ip[20..];
    let len = (tcp.len() as u16).to_be_bytes();
    assert_eq!(
        plain(&[&ip[12..20], &[0, 6], &len, tcp]),
        0,
        "TCP's checksum"
    );
    let sequence = u32::from_be_bytes(tcp[4..8].try_into().unwrap());
    (sequence, tcp[13], tcp[32..].to_vec())
}
