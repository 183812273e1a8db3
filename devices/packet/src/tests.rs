use proptest::prelude::*;

use crate::header::{Header, LARGE_TCP_IPV4, NEEDS_CHECKSUM, NOT_LARGE};
use crate::large::Large;
use crate::layout::{MAX_FRAMES, put};
use crate::packet::Packet;
use crate::testing::{check, large, plain};

#[test]
fn the_constants_are_those_of_virtio() {
    use virtio_bindings::virtio_net;
    let constants = [
        (NEEDS_CHECKSUM, virtio_net::VIRTIO_NET_HDR_F_NEEDS_CSUM),
        (NOT_LARGE, virtio_net::VIRTIO_NET_HDR_GSO_NONE),
        (LARGE_TCP_IPV4, virtio_net::VIRTIO_NET_HDR_GSO_TCPV4),
    ];
    for (ours, theirs) in constants {
        assert_eq!(u32::from(ours), theirs);
    }
}

#[test]
fn checksums_are_filled_in() {
    let (header, mut frame) = large(b"odd", 0, false);
    let header = Header {
        kind: 0,
        ..Header::parse(&header).unwrap()
    };
    assert!(!header.is_ready() && !header.is_large());
    assert!(header.fill_checksum(&mut frame));
    let tcp = &frame[34..];
    let len = (tcp.len() as u16).to_be_bytes();
    assert_eq!(plain(&[&frame[26..34], &[0, 6], &len, tcp]), 0);
}

#[test]
fn a_checksum_that_would_be_zero_is_not() {
    let header = Header {
        flags: 1,
        checksum_start: 14,
        checksum_offset: 2,
        ..Header::default()
    };
    let mut frame = vec![0; 14];
    frame.extend([0xff, 0xf0, 0, 0x0f]);
    assert!(header.fill_checksum(&mut frame));
    assert_eq!(frame[16..], [0xff, 0xff]);
}

#[test]
fn places_outside_of_the_frame_are_refused() {
    for (start, offset) in [(61, 0), (59, 0), (14, 45), (14, u16::MAX), (u16::MAX, 0)] {
        let header = Header {
            flags: 1,
            checksum_start: start,
            checksum_offset: offset,
            ..Header::default()
        };
        assert!(!header.fill_checksum(&mut [0; 60]), "{start} {offset}");
    }
    // Nor flags that were not offered.
    let header = Header {
        flags: 4,
        ..Header::default()
    };
    assert!(!header.fill_checksum(&mut [0; 60]));
}

#[test]
fn a_packet_does_not_make_thousands_of_frames() {
    let count = |len: usize, segment: u16| {
        let (header, frame) = large(&vec![7; len], segment, false);
        let bytes = [&header, &frame[..]].concat();
        let packet = Packet::parse(&bytes)?;
        let mut count = 0;
        packet.for_each_frame(|_| count += 1);
        assert_eq!(packet.large().map(|large| large.count()), Some(count));
        Some(count)
    };
    assert_eq!(count(60_000, 8), None);
    assert_eq!(count(60_000, 117), None);
    assert_eq!(count(60_000, 118), Some(509));
    assert_eq!(count(60_000, 1448), Some(42));
    // Small packets may have small segments.
    assert_eq!(count(4096, 8), Some(MAX_FRAMES));
    assert_eq!(count(4097, 8), None);
    assert_eq!(count(100, 7), None);
}

#[test]
fn what_is_no_tcp_packet_is_not_cut() {
    let (header, frame) = large(&[7; 4000], 1448, false);
    let header = Header::parse(&header).unwrap();
    assert!(Large::parse(&header, &frame, 1518).is_some());
    let with = |change: fn(&mut Header)| {
        let mut header = header;
        change(&mut header);
        Large::parse(&header, &frame, 1518)
    };
    assert_eq!(with(|header| header.kind = 4), None);
    assert_eq!(with(|header| header.kind = 0x81), None);
    assert_eq!(with(|header| header.flags = 0), None);
    assert_eq!(with(|header| header.segment = 0), None);
    assert_eq!(with(|header| header.segment = 1500), None);
    assert_eq!(with(|header| header.checksum_start = 38), None);
    assert_eq!(with(|header| header.checksum_offset = 6), None);
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
        assert_eq!(Large::parse(&header, &frame, 1518), None, "{at}");
    }
    assert_eq!(Large::parse(&header, &frame[..66], 1518), None);
}

proptest! {
    #[test]
    fn the_segments_are_the_packet(
        payload in prop::collection::vec(any::<u8>(), 1..9000),
        segment in 8u16..1449,
        vlan: bool,
    ) {
        let (header, packet) = large(&payload, segment, vlan);
        let header = Header::parse(&header).unwrap();
        let large = Large::parse(&header, &packet, 1518);
        let too_many = payload.len().div_ceil(usize::from(segment)) > MAX_FRAMES;
        prop_assert_eq!(large.is_none(), too_many);
        let Some(large) = large else { return Ok(()) };
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
        if let Some(header) = Header::parse(&header) {
            let mut frame = [0; 1518];
            if let Some(large) = Large::parse(&header, &packet, frame.len()) {
                for index in 0..large.count() {
                    let len = large.write(&packet, index, &mut frame).unwrap();
                    prop_assert!(len <= 1518);
                }
            }
            let _ = header.fill_checksum(&mut packet);
        }
    }
}
