use proptest::prelude::*;

use super::*;

/// The checksum as RFC 1071 has it, two bytes at a time.
fn plain(parts: &[&[u8]]) -> u16 {
    let mut sum = 0u32;
    for part in parts {
        for pair in part.chunks(2) {
            sum += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
            sum = (sum & 0xffff) + (sum >> 16);
        }
    }
    !(sum as u16)
}

/// An Ethernet frame with a TCP packet whose checksum is left to the device, and its header.
pub(crate) fn large(payload: &[u8], segment: u16, vlan: bool) -> (Vec<u8>, Vec<u8>) {
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

/// Checks a frame by itself and gives back its sequence number, flags and payload.
pub(crate) fn check(frame: &[u8], vlan: bool) -> (u32, u8, Vec<u8>) {
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

#[test]
fn checksums_are_filled_in() {
    let (header, mut frame) = large(b"odd", 0, false);
    let request = Request {
        kind: 0,
        ..Request::parse(&header).unwrap()
    };
    assert!(!request.is_none() && !request.is_large());
    assert!(request.finish(&mut frame));
    let tcp = &frame[34..];
    let len = (tcp.len() as u16).to_be_bytes();
    assert_eq!(plain(&[&frame[26..34], &[0, 6], &len, tcp]), 0);
}

#[test]
fn a_checksum_that_would_be_zero_is_not() {
    let request = Request {
        flags: 1,
        checksum_start: 14,
        checksum_offset: 2,
        ..Request::default()
    };
    let mut frame = vec![0; 14];
    frame.extend([0xff, 0xf0, 0, 0x0f]);
    assert!(request.finish(&mut frame));
    assert_eq!(frame[16..], [0xff, 0xff]);
}

#[test]
fn places_outside_of_the_frame_are_refused() {
    for (start, offset) in [(61, 0), (59, 0), (14, 45), (14, u16::MAX), (u16::MAX, 0)] {
        let request = Request {
            flags: 1,
            checksum_start: start,
            checksum_offset: offset,
            ..Request::default()
        };
        assert!(!request.finish(&mut [0; 60]), "{start} {offset}");
    }
    // Nor flags that nobody offered.
    let request = Request {
        flags: 4,
        ..Request::default()
    };
    assert!(!request.finish(&mut [0; 60]));
}

#[test]
fn what_is_no_tcp_packet_is_not_cut() {
    let (header, frame) = large(&[7; 4000], 1448, false);
    let request = Request::parse(&header).unwrap();
    assert!(Large::parse(&request, &frame, 1518).is_some());
    let with = |change: fn(&mut Request)| {
        let mut request = request;
        change(&mut request);
        Large::parse(&request, &frame, 1518)
    };
    assert_eq!(with(|request| request.kind = 4), None);
    assert_eq!(with(|request| request.kind = 0x81), None);
    assert_eq!(with(|request| request.flags = 0), None);
    assert_eq!(with(|request| request.segment = 0), None);
    assert_eq!(with(|request| request.segment = 1500), None);
    assert_eq!(with(|request| request.checksum_start = 38), None);
    assert_eq!(with(|request| request.checksum_offset = 6), None);
    for (at, value) in [
        (12, 9),
        (14, 0x65),
        (14, 0x44),
        (20, 0x20),
        (21, 1),
        (23, 17),
        (46, 0x40),
    ] {
        let mut frame = frame.clone();
        frame[at] = value;
        assert_eq!(Large::parse(&request, &frame, 1518), None, "{at}");
    }
    assert_eq!(Large::parse(&request, &frame[..66], 1518), None);
}

proptest! {
    #[test]
    fn the_segments_are_the_packet(
        payload in prop::collection::vec(any::<u8>(), 1..9000),
        segment in 8u16..1449,
        vlan: bool,
    ) {
        let (header, packet) = large(&payload, segment, vlan);
        let request = Request::parse(&header).unwrap();
        let large = Large::parse(&request, &packet, 1518).unwrap();
        let mut all = Vec::new();
        let mut frame = [0xaa; 1518];
        for index in 0..large.count() {
            let len = large.write(&packet, index, &mut frame).unwrap();
            let (sequence, flags, part) = check(&frame[..len], vlan);
            prop_assert_eq!(sequence, 0xffff_ff00u32.wrapping_add(all.len() as u32));
            let (first, last) = (index == 0, index + 1 == large.count());
            prop_assert_eq!(flags & 0x80 != 0, first);
            prop_assert_eq!(flags & 0x09, if last { 0x09 } else { 0 });
            prop_assert_eq!(flags & 0x10, 0x10);
            prop_assert!(last || part.len() == usize::from(segment));
            all.extend(part);
        }
        prop_assert_eq!(large.write(&packet, large.count(), &mut frame), None);
        prop_assert_eq!(all, payload);
    }

    #[test]
    fn any_packet_is_survived(
        header in prop::collection::vec(any::<u8>(), 0..12),
        mut packet in prop::collection::vec(any::<u8>(), 0..300),
        near in any::<bool>(),
        damage in prop::collection::vec((0usize..80, any::<u8>()), 0..4),
    ) {
        let mut header = header;
        if near {
            (header, packet) = large(&packet, 100, false);
            for (at, value) in damage {
                put(&mut packet, at, &[value]);
                put(&mut header, at, &[value]);
            }
        }
        if let Some(request) = Request::parse(&header) {
            let mut frame = [0; 1518];
            if let Some(large) = Large::parse(&request, &packet, frame.len()) {
                for index in 0..large.count() {
                    let len = large.write(&packet, index, &mut frame).unwrap();
                    prop_assert!(len <= 1518);
                }
            }
            let _ = request.finish(&mut packet);
        }
    }
}
