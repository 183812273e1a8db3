//! Links that carry packets with headers: what passes whole, and for whom it is cut.

use fleetbox_packet::testing::{check, large};
use proptest::prelude::*;

use super::super::testing::{Driver, WRITE, eventually};
use super::tests::*;
use super::*;

const OPEN: u64 = 1 << VIRTIO_NET_F_GUEST_CSUM;
const LARGE: u64 = 1 << VIRTIO_NET_F_GUEST_TSO4;

fn setup(without: u64) -> (Driver, OwnedFd) {
    let (ours, theirs) = pair();
    let driver = Driver::new(Net::new("net0", MAC, ours, LinkFormat::Packets, 1));
    driver.start(without);
    (driver, theirs)
}

/// Header and packet in one.
fn packet(payload: &[u8], segment: u16) -> Vec<u8> {
    let (header, packet) = large(payload, segment, false);
    [header, packet].concat()
}

fn payload(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i / 7) as u8).collect()
}

fn send_large(driver: &Driver, bytes: &[u8]) {
    driver.fill(TX_AT, bytes);
    let len = bytes.len() as u32;
    let first = len.min(5000);
    let buffers = [(TX_AT, first, 0), (TX_AT + 5000, len - first, 0)];
    let count = 1 + usize::from(len > first);
    driver.send(TX as u16, 0, &buffers[..count]);
    driver.notify(TX as u16);
}

/// The receive buffers that were used from `from` on, as many as the header of the first says.
fn received(driver: &Driver, from: u16) -> (Vec<u8>, u16) {
    eventually("a used buffer", || driver.used_idx(RX as u16) > from);
    let buffer = |i: u16| {
        let (head, len) = driver.used(RX as u16, i);
        driver.bytes(RX_AT + 0x1_0000 * u64::from(head), len as usize)
    };
    let mut bytes = buffer(from);
    let count = u16::from_le_bytes([bytes[10], bytes[11]]);
    for i in 1..count {
        bytes.extend(buffer(from + i));
    }
    (bytes, from + count)
}

fn offer(driver: &Driver, i: u16, len: u32) {
    let at = RX_AT + 0x1_0000 * u64::from(i);
    driver.send(RX as u16, i, &[(at, len, WRITE)]);
    driver.notify(RX as u16);
}

#[test]
fn a_large_packet_passes_whole() {
    let (driver, peer) = setup(0);
    for len in [1449, 4000, 65535 - 52] {
        let sent = packet(&payload(len), 1448);
        let done = driver.used_idx(TX as u16);
        send_large(&driver, &sent);
        let got = receive_frame(&peer);
        assert!(got == sent, "{len}");
        driver.wait_used(TX as u16, done + 1);
    }
    // A packet that makes one frame is a frame without its checksum, and nothing more.
    send_large(&driver, &packet(b"small", 1448));
    let got = receive_frame(&peer);
    assert_eq!(got[..12], [1, 0, 0, 0, 0, 0, 34, 0, 16, 0, 0, 0]);
    assert_eq!(Packet::parse(&got).unwrap().frame()[66..], *b"small");
    assert!(nothing_to_receive(&peer));
}

#[test]
fn what_a_sloppy_driver_leaves_open_is_written_anew() {
    let (driver, peer) = setup(0);
    let sent = packet(&payload(4000), 1448);
    let mut sloppy = sent.clone();
    // The headers' length, IP's length and checksum, and TCP's sum.
    for range in [2..4, 28..30, 36..38, 62..64] {
        sloppy[range].fill(0);
    }
    send_large(&driver, &sloppy);
    assert!(receive_frame(&peer) == sent);
}

#[test]
fn checksums_in_other_places_are_filled_in_by_the_device() {
    let (driver, peer) = setup(0);
    // At the source address of IP, where nobody after the switch may write.
    let mut sent = packet(b"some payload", 0);
    sent[..12].copy_from_slice(&[1, 0, 0, 0, 0, 0, 14, 0, 12, 0, 0, 0]);
    transmit(&driver, 0, &sent);
    let got = receive_frame(&peer);
    assert_eq!(got[..12], [0; 12]);
    assert_ne!(
        got[38..40],
        sent[38..40],
        "the guest did it to itself, before the switch looks"
    );
    // And in a packet that goes on after its end.
    let mut sent = packet(b"some payload", 0);
    sent[1] = 0;
    sent.extend([1, 2, 3]);
    transmit(&driver, 1, &sent);
    assert_eq!(receive_frame(&peer)[..12], [0; 12]);
    // With a VLAN tag it is cut.
    let (header, tagged) = large(&payload(2000), 1448, true);
    send_large(&driver, &[header, tagged].concat());
    let mut all = Vec::new();
    for _ in 0..2 {
        let got = receive_frame(&peer);
        assert_eq!(got[..12], [0; 12]);
        all.extend(check(&got[12..], true).2);
    }
    assert_eq!(all, payload(2000));
}

#[test]
fn malformed_requests_go_nowhere() {
    let (driver, peer) = setup(0);
    let good = packet(&payload(4000), 1448);
    let mut sent = 0;
    for (at, value) in [
        (0, 0),
        (0, 2),
        (1, 3),
        (1, 4),
        (1, 0x81),
        (4, 0),
        (6, 35),
        (8, 6),
        (26, 0x65),
    ] {
        let mut bad = good.clone();
        bad[at] = value;
        if at == 4 {
            bad[5] = 0;
        }
        sent += 1;
        send_large(&driver, &bad);
        driver.wait_used(TX as u16, sent);
        assert!(nothing_to_receive(&peer), "{at}");
    }
    assert_eq!(driver.status(), 0xf);
}

#[test]
fn a_driver_gets_a_large_packet_whole() {
    for without in [0, MERGEABLE] {
        let (driver, peer) = setup(without);
        let sent = packet(&payload(60000), 1448);
        let sizes: &[u32] = if without == 0 {
            &[20000, 20000, 20000, 20000]
        } else {
            &[0xf000, 0xff00]
        };
        for (i, size) in (0..).zip(sizes) {
            offer(&driver, i, *size);
        }
        send_frame(&peer, &sent);
        let (got, next) = received(&driver, 0);
        assert_eq!(got[..10], sent[..10]);
        assert!(got[12..] == sent[12..]);
        // Frames without checksum too.
        let (mut header, open) = large(b"open", 0, false);
        header[1] = 0;
        offer(&driver, 8, 2000);
        send_frame(&peer, &[&header[..], &open].concat());
        let (got, _) = received(&driver, next);
        assert_eq!(got[..12], [1, 0, 0, 0, 0, 0, 34, 0, 16, 0, 1, 0]);
        assert_eq!(got[12..], open);
    }
}

#[test]
fn a_large_packet_waits_for_room() {
    let (driver, peer) = setup(0);
    offer(&driver, 0, 2000);
    send_frame(&peer, &packet(&payload(9000), 1448));
    for i in 1..5 {
        offers_are_seen(&driver, &peer, |driver| send_large(driver, &[0; 72]));
        assert_eq!(driver.used_idx(RX as u16), 0);
        offer(&driver, i, 2000);
    }
    let (got, next) = received(&driver, 0);
    assert_eq!(next, 5);
    assert!(got[78..] == payload(9000));
}

/// The payload of frames for the guest until there is all of it.
fn payload_of_frames(driver: &Driver, len: usize) -> Vec<u8> {
    let (mut all, mut next) = (Vec::new(), 0);
    while all.len() < len {
        let (got, after) = received(driver, next);
        assert_eq!(got[..10], [0; 10]);
        let (sequence, _, part) = check(&got[12..], false);
        assert_eq!(sequence, 0xffff_ff00u32.wrapping_add(all.len() as u32));
        all.extend(part);
        // The same buffers again.
        for i in next..after {
            let (head, _) = driver.used(RX as u16, i);
            driver.offer(RX as u16, head as u16);
        }
        driver.notify(RX as u16);
        next = after;
    }
    all
}

#[test]
fn who_does_not_take_large_packets_gets_frames() {
    for without in [
        LARGE,
        OPEN,
        LARGE | OPEN,
        LARGE | MERGEABLE,
        OPEN | MERGEABLE,
    ] {
        let (driver, peer) = setup(without);
        for i in 0..3 {
            offer(&driver, i, 2000);
        }
        send_frame(&peer, &packet(&payload(60000), 1448));
        assert!(
            payload_of_frames(&driver, 60000) == payload(60000),
            "{without:x}"
        );
        assert_eq!(driver.status(), 0xf);
    }
    // A checksum is filled in.
    let (driver, peer) = setup(OPEN);
    offer(&driver, 0, 2000);
    let (mut header, open) = large(b"open", 0, false);
    header[1] = 0;
    send_frame(&peer, &[header, open].concat());
    assert_eq!(payload_of_frames(&driver, 4), b"open");
}

#[test]
fn buffers_that_will_never_do_get_frames() {
    // All buffers of the queue together, and the one in which it must fit.
    for (without, count) in [(0, 16), (MERGEABLE, 3)] {
        let (driver, peer) = setup(without);
        for i in 0..count {
            offer(&driver, i, 1600);
        }
        send_frame(&peer, &packet(&payload(60000), 1448));
        assert!(
            payload_of_frames(&driver, 60000) == payload(60000),
            "{without:x}"
        );
    }
}

#[test]
fn what_the_link_must_not_carry_is_dropped() {
    let (driver, peer) = setup(0);
    for i in 0..2 {
        offer(&driver, i, 0xff00);
    }
    let good = packet(&payload(4000), 1448);
    for (at, value) in [
        (0, 0),
        (0, 3),
        (1, 3),
        (4, 1),
        (6, 14),
        (8, 0),
        (24, 9),
        (28, 0),
        (35, 17),
    ] {
        let mut bad = good.clone();
        bad[at] = value;
        if at == 4 {
            bad[5] = 0;
        }
        send_frame(&peer, &bad);
    }
    for len in [1, 11, 12, 25] {
        send_frame(&peer, &vec![0; len]);
    }
    send_frame(&peer, &vec![0; 12 + 1519]);
    send_frame(&peer, &vec![0; 12 + 65535 + 15]);
    send_frame(&peer, &with_header(&frame(60, 9)));
    let (got, _) = received(&driver, 0);
    assert_eq!(got[12..], frame(60, 9));
    assert_eq!(driver.status(), 0xf);
}

#[test]
fn what_is_pending_does_not_hinder_a_reset() {
    let (driver, peer) = setup(LARGE);
    offer(&driver, 0, 2000);
    send_frame(&peer, &packet(&payload(60000), 1448));
    driver.wait_used(RX as u16, 1);
    driver.start(0);
    offer(&driver, 0, 2000);
    send_frame(&peer, &with_header(&frame(60, 9)));
    let (got, _) = received(&driver, 0);
    assert_eq!(got[12..], frame(60, 9));
}

/// Bytes of payload in the largest packet that [`large`] makes.
const MOST: usize = 65535 - 52;
const CASES: u32 = 100;

/// Headers near to those of honest drivers, and bytes.
fn hostile_header() -> impl Strategy<Value = Vec<u8>> {
    let near = (
        prop::sample::select(vec![0u8, 1, 1, 2, 0xff]),
        prop::sample::select(vec![0u8, 1, 1, 3, 4, 0x81]),
        prop_oneof![Just(1448u16), 0u16..20, any::<u16>()],
        prop_oneof![Just(34u16), Just(38), any::<u16>()],
        prop_oneof![Just(16u16), Just(6), any::<u16>()],
    );
    let near = near.prop_map(|(flags, kind, segment, start, offset)| {
        let mut header = vec![0; HEADER];
        header[0] = flags;
        header[1] = kind;
        header[4..6].copy_from_slice(&segment.to_le_bytes());
        header[6..8].copy_from_slice(&start.to_le_bytes());
        header[8..10].copy_from_slice(&offset.to_le_bytes());
        header
    });
    prop_oneof![4 => near, 1 => prop::collection::vec(any::<u8>(), HEADER)]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: CASES, ..ProptestConfig::default() })]

    /// Whatever a driver sends, the device goes on, and on the link is only what belongs there.
    #[test]
    fn anything_may_be_sent(
        format in prop::sample::select(vec![LinkFormat::Frames, LinkFormat::Packets]),
        sent in prop::collection::vec(
            (
                hostile_header(),
                prop_oneof![0usize..60, 1000usize..1600, 0usize..65_600],
                prop::collection::vec((0usize..80, any::<u8>()), 0..3),
                any::<bool>(),
                any::<bool>(),
            ),
            1..8,
        ),
    ) {
        let (ours, peer) = pair();
        let driver = Driver::new(Net::new("net0", MAC, ours, format, 1));
        driver.start(0);
        for (header, len, damage, vlan, cut) in sent {
            let mut bytes = [header, large(&vec![7; len.saturating_sub(52).min(MOST)], 0, vlan).1].concat();
            for (at, byte) in damage {
                if let Some(place) = bytes.get_mut(HEADER + at) {
                    *place = byte;
                }
            }
            if cut {
                bytes.resize(HEADER + len, 0);
            }
            driver.fill(TX_AT, &bytes);
            let (first, rest) = (bytes.len() as u32 / 2, bytes.len() as u32);
            let rest = rest - first;
            let at = TX_AT + u64::from(first);
            let done = driver.used_idx(TX as u16);
            driver.send(TX as u16, 0, &[(TX_AT, first, 0), (at, rest, 0)]);
            driver.notify(TX as u16);
            let mut data = vec![0; 70_000];
            // The socket may be full before the device is done with a packet.
            eventually("a used buffer", || {
                while let Ok(len) = recv(peer.as_raw_fd(), &mut data, MsgFlags::MSG_DONTWAIT) {
                    match format {
                        LinkFormat::Frames => assert!((MIN_FRAME..=MAX_FRAME).contains(&len)),
                        LinkFormat::Packets => assert!(Packet::parse(&data[..len]).is_some()),
                    }
                }
                driver.used_idx(TX as u16) != done
            });
            // A panic of the device's thread would end here, too.
            prop_assert_eq!(driver.status() & 0x40, 0);
        }
    }

    /// Whatever comes by the link, and however small the driver's buffers are, the device goes on.
    #[test]
    fn anything_may_be_received(
        format in prop::sample::select(vec![LinkFormat::Frames, LinkFormat::Packets]),
        without in prop::sample::select(vec![0, MERGEABLE, 1 << VIRTIO_NET_F_GUEST_TSO4]),
        buffers in prop::collection::vec(12u32..3000, 1..16),
        came in prop::collection::vec(
            (
                hostile_header(),
                prop_oneof![1usize..60, 1000usize..1600, 0usize..65_600],
                prop::collection::vec((0usize..80, any::<u8>()), 0..2),
                any::<bool>(),
            ),
            1..8,
        ),
    ) {
        let (ours, peer) = pair();
        let driver = Driver::new(Net::new("net0", MAC, ours, format, 1));
        driver.start(without);
        for (header, len, damage, whole) in came {
            let (good, frame) = large(&vec![7; len.min(MOST)], 1448, false);
            let mut bytes = [if whole { good } else { header }, frame].concat();
            for (at, byte) in damage {
                if let Some(place) = bytes.get_mut(at) {
                    *place = byte;
                }
            }
            // What does not fit is lost, as on any link.
            let _ = send(peer.as_raw_fd(), &bytes, MsgFlags::MSG_DONTWAIT);
        }
        for (i, len) in (0..).zip(&buffers) {
            offer_buffer(&driver, i, *len);
        }
        let mut quiet = 0;
        let mut before = driver.used_idx(RX as u16);
        eventually("an end of it", || {
            let now = driver.used_idx(RX as u16);
            quiet = if now == before { quiet + 1 } else { 0 };
            before = now;
            quiet >= 3
        });
        let mut used = 0;
        while used < before {
            let (head, len) = driver.used(RX as u16, used);
            prop_assert!(len <= buffers[head as usize], "{len} bytes in buffer {head}");
            used += 1;
        }
        prop_assert_eq!(driver.status() & 0x40, 0);
    }
}
