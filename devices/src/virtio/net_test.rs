use fleetbox_packet::testing::{check, large};
pub(super) use std::os::fd::AsRawFd;

pub(super) use fleetbox_packet::{MIN_FRAME, Packet};
pub(super) use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, setsockopt, socketpair, sockopt};
pub(super) use nix::sys::socket::{MsgFlags, recv, send};

pub(super) use super::worker::TX;

use super::super::F_EVENT_IDX;
use super::super::testing::{Driver, WRITE, eventually};
use super::*;
use crate::pci::PciDevice;

pub(super) const MAC: [u8; 6] = [0x52, 0x54, 0, 1, 2, 3];
pub(super) const RX_AT: u64 = 0x20_0000;
pub(super) const TX_AT: u64 = 0x40_0000;
const CHECKSUM: u64 = 1 << VIRTIO_NET_F_CSUM;
const CUT: u64 = 1 << VIRTIO_NET_F_HOST_TSO4;
pub(super) const MERGEABLE: u64 = 1 << VIRTIO_NET_F_MRG_RXBUF;

pub(super) fn pair() -> (OwnedFd, OwnedFd) {
    let kind = SockType::SeqPacket;
    socketpair(AddressFamily::Unix, kind, None, SockFlag::SOCK_CLOEXEC).unwrap()
}

fn setup(without: u64) -> (Driver, OwnedFd) {
    let (ours, theirs) = pair();
    let driver = Driver::new(Net::new("net0", MAC, ours, LinkFormat::Frames, 1));
    driver.start(without);
    (driver, theirs)
}

pub(super) fn frame(len: usize, tag: u8) -> Vec<u8> {
    (0..len).map(|i| i as u8 ^ tag).collect()
}

pub(super) fn send_frame(peer: &OwnedFd, data: &[u8]) {
    send(peer.as_raw_fd(), data, MsgFlags::empty()).unwrap();
}

/// A frame that the device sent, within a deadline.
pub(super) fn receive_frame(peer: &OwnedFd) -> Vec<u8> {
    let mut data = vec![0; 70000];
    let mut len = 0;
    eventually("a frame", || {
        match recv(peer.as_raw_fd(), &mut data, MsgFlags::MSG_DONTWAIT) {
            Ok(n) => len = n,
            Err(Errno::EAGAIN) => return false,
            Err(e) => panic!("{e}"),
        }
        true
    });
    data.truncate(len);
    data
}

pub(super) fn nothing_to_receive(peer: &OwnedFd) -> bool {
    let result = recv(peer.as_raw_fd(), &mut [0; 64], MsgFlags::MSG_DONTWAIT);
    result == Err(Errno::EAGAIN)
}

/// Offers receive buffer `i` of `len` bytes.
pub(super) fn offer_buffer(driver: &Driver, i: u16, len: u32) {
    driver.send(RX as u16, i, &[(RX_AT + 0x1000 * u64::from(i), len, WRITE)]);
    driver.notify(RX as u16);
}

/// Sends what is in buffer `i`, header included, in two pieces.
pub(super) fn transmit(driver: &Driver, i: u16, data: &[u8]) {
    let at = TX_AT + 0x1000 * u64::from(i);
    driver.fill(at, data);
    let first = 12.min(data.len() as u32);
    let rest = data.len() as u32 - first;
    driver.send(TX as u16, 2 * i, &[(at, first, 0), (at + 12, rest, 0)]);
    driver.notify(TX as u16);
}

/// Waits until the device has seen all buffers that were offered before, by a frame on the queue
/// of pair 0 that comes after them: a device looks at its queues in their order.
pub(super) fn offers_are_seen(driver: &Driver, peer: &OwnedFd, transmit: impl FnOnce(&Driver)) {
    let done = driver.used_idx(TX as u16);
    transmit(driver);
    receive_frame(peer);
    driver.wait_used(TX as u16, done.wrapping_add(1));
}

pub(super) fn with_header(frame: &[u8]) -> Vec<u8> {
    [&[0; 12], frame].concat()
}

#[test]
fn the_configuration_describes_the_device() {
    let (driver, _peer) = setup(0);
    let mut mac = [0; 6];
    driver.function.read_bar(0, 0x2000, &mut mac);
    assert_eq!(mac, MAC);
    assert_eq!(driver.read(0x2006, 2), 1);
    assert_eq!(driver.read(0x200a, 2), 1500);
    assert_eq!(driver.read(0x2010, 4), 0xffff_ffff);
}

#[test]
fn frames_pass_both_ways() {
    for without in [0, MERGEABLE, F_EVENT_IDX, MERGEABLE | F_EVENT_IDX] {
        let (driver, peer) = setup(without);
        for i in 0..4 {
            offer_buffer(&driver, i, 2048);
        }
        for (i, len) in [(0, 60), (1, 1514), (2, 14), (3, 1518)] {
            send_frame(&peer, &frame(len, i as u8));
            driver.wait_used(RX as u16, i + 1);
            assert_eq!(driver.used(RX as u16, i), (i.into(), len as u32 + 12));
            let got = driver.bytes(RX_AT + 0x1000 * u64::from(i), len + 12);
            assert_eq!(got[..12], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
            assert_eq!(got[12..], frame(len, i as u8));
        }
        driver.msi.wait(1, 1);
        for (i, len) in [(0, 60), (1, 1514), (2, 14), (3, 1518)] {
            transmit(&driver, i, &with_header(&frame(len, i as u8)));
            assert_eq!(receive_frame(&peer), frame(len, i as u8));
            driver.wait_used(TX as u16, i + 1);
        }
        driver.msi.wait(2, 1);
        assert_eq!(driver.status(), 0xf);
    }
}

#[test]
fn a_large_frame_fills_several_buffers() {
    let (driver, peer) = setup(0);
    send_frame(&peer, &frame(1000, 7));
    send_frame(&peer, &frame(20, 8));
    // 1530 bytes are needed for whatever may come: six buffers are not enough.
    for i in 0..6 {
        offer_buffer(&driver, i, 250);
    }
    offers_are_seen(&driver, &peer, |driver| {
        transmit(driver, 0, &with_header(&frame(60, 9)));
    });
    assert_eq!(driver.used_idx(RX as u16), 0);
    offer_buffer(&driver, 6, 250);
    driver.wait_used(RX as u16, 5);
    let lens: Vec<_> = (0..5).map(|i| driver.used(RX as u16, i)).collect();
    assert_eq!(lens, [(0, 250), (1, 250), (2, 250), (3, 250), (4, 12)]);
    let mut got = Vec::new();
    for (i, len) in lens {
        got.extend(driver.bytes(RX_AT + 0x1000 * u64::from(i), len as usize));
    }
    assert_eq!(got[10..12], [5, 0]);
    assert_eq!(got[12..], frame(1000, 7));
    // The next frame waits for room, and comes with the first buffer that makes it.
    for i in 7..12 {
        assert_eq!(driver.used_idx(RX as u16), 5);
        offer_buffer(&driver, i, 250);
    }
    driver.wait_used(RX as u16, 6);
    assert_eq!(driver.used(RX as u16, 5), (5, 32));
}

#[test]
fn without_buffers_frames_wait_in_the_socket() {
    let (driver, peer) = setup(0);
    setsockopt(&peer, sockopt::SndBuf, &8192).unwrap();
    let mut sent = 0u16;
    while send(
        peer.as_raw_fd(),
        &frame(600, sent as u8),
        MsgFlags::MSG_DONTWAIT,
    )
    .is_ok()
    {
        sent += 1;
        assert!(sent < 1000, "the socket never fills");
    }
    for i in 0..sent {
        offer_buffer(&driver, i % 16, 2048);
        driver.wait_used(RX as u16, i + 1);
        let at = RX_AT + 0x1000 * u64::from(i % 16);
        assert_eq!(driver.bytes(at + 12, 600), frame(600, i as u8));
    }
}

#[test]
fn a_full_socket_holds_frames_back_and_reception_goes_on() {
    let (ours, peer) = pair();
    setsockopt(&ours, sockopt::SndBuf, &4096).unwrap();
    let driver = Driver::new(Net::new("net0", MAC, ours, LinkFormat::Frames, 1));
    driver.start(0);
    // More than the socket holds.
    let sent = 8;
    for i in 0..sent {
        transmit(&driver, i, &with_header(&frame(1500, i as u8)));
    }
    eventually("a frame", || driver.used_idx(TX as u16) > 0);
    // The second comes after the device has seen all that is to be sent.
    for i in 0..2 {
        offer_buffer(&driver, i, 2048);
        send_frame(&peer, &frame(60, 1));
        driver.wait_used(RX as u16, i + 1);
    }
    let done = driver.used_idx(TX as u16);
    assert!(done < sent, "the socket holds all {sent} frames");
    for i in 0..sent {
        assert_eq!(receive_frame(&peer), frame(1500, i as u8), "in order");
    }
    driver.wait_used(TX as u16, sent);
    assert!(nothing_to_receive(&peer));
}

#[test]
fn oversize_and_runt_frames_are_dropped() {
    let (driver, peer) = setup(0);
    offer_buffer(&driver, 0, 4000);
    for len in [1519, 3000, 65000, 13, 1] {
        send_frame(&peer, &frame(len, 0));
    }
    send_frame(&peer, &frame(60, 9));
    driver.wait_used(RX as u16, 1);
    assert_eq!(driver.bytes(RX_AT + 12, 60), frame(60, 9));
    for (i, len) in [(0, 13), (1, 1519), (2, 3000), (3, 0)] {
        transmit(&driver, i, &with_header(&frame(len, 0)));
    }
    driver.wait_used(TX as u16, 4);
    assert!(nothing_to_receive(&peer));
    transmit(&driver, 4, &with_header(&frame(60, 3)));
    assert_eq!(receive_frame(&peer), frame(60, 3));
}

#[test]
fn offloads_that_were_not_agreed_on_are_refused() {
    let (header, packet) = large(&[7; 4000], 1448, false);
    let all = [header, packet].concat();
    for (without, requests) in [
        (CHECKSUM | CUT, &[(1, 0), (0, 1), (1, 1), (0xff, 0xff)][..]),
        (CUT, &[(0, 1), (1, 1), (2, 0), (4, 0)]),
        (CHECKSUM, &[(1, 0), (1, 1)]),
        (0, &[(0, 1), (1, 3), (1, 4), (1, 0x81), (1, 0xff)]),
    ] {
        let (driver, peer) = setup(without);
        let mut sent = 0;
        for (flags, gso) in requests {
            // As a frame that could be sent, and as a packet that is too large for that.
            for len in [72, all.len()] {
                let mut data = all[..len].to_vec();
                data[..2].copy_from_slice(&[*flags, *gso]);
                transmit(&driver, sent % 8, &data);
                sent += 1;
                driver.wait_used(TX as u16, sent);
            }
        }
        let seen = !nothing_to_receive(&peer);
        assert!(!seen, "{without:x}");
        assert_eq!(driver.status(), 0xf);
    }
}

#[test]
fn a_checksum_is_filled_in() {
    for without in [0, CUT] {
        let (driver, peer) = setup(without);
        let (mut header, packet) = large(b"some payload", 0, false);
        header[1] = 0;
        transmit(&driver, 0, &[header, packet].concat());
        let (_, _, payload) = check(&receive_frame(&peer), false);
        assert_eq!(payload, b"some payload");
        // Frames that need none pass as they are.
        transmit(&driver, 1, &with_header(&frame(60, 3)));
        assert_eq!(receive_frame(&peer), frame(60, 3));
    }
}

#[test]
fn a_large_packet_is_cut_even_when_the_socket_fills_up() {
    let (ours, theirs) = pair();
    setsockopt(&ours, sockopt::SndBuf, &4096).unwrap();
    let driver = Driver::new(Net::new("net0", MAC, ours, LinkFormat::Frames, 1));
    driver.start(0);
    // As much as IPv4 can say.
    let data: Vec<u8> = (0..65535u32 - 52).map(|i| (i / 7) as u8).collect();
    let (header, packet) = large(&data, 1448, false);
    let all = [header, packet].concat();
    driver.fill(TX_AT, &all);
    for i in 0..2u16 {
        let len = all.len() as u32;
        driver.send(
            TX as u16,
            2 * i,
            &[(TX_AT, 5000, 0), (TX_AT + 5000, len - 5000, 0)],
        );
    }
    driver.notify(TX as u16);
    for _ in 0..2 {
        let mut received = Vec::new();
        while received.len() < data.len() {
            let (sequence, _, part) = check(&receive_frame(&theirs), false);
            assert_eq!(sequence, 0xffff_ff00u32.wrapping_add(received.len() as u32));
            received.extend(part);
        }
        assert!(received == data);
    }
    driver.wait_used(TX as u16, 2);
    assert!(nothing_to_receive(&theirs));
    assert_eq!(driver.status(), 0xf);
}

#[test]
fn without_mergeable_buffers_a_frame_that_does_not_fit_is_dropped() {
    let (driver, peer) = setup(MERGEABLE);
    offer_buffer(&driver, 0, 100);
    send_frame(&peer, &frame(89, 1));
    send_frame(&peer, &frame(88, 2));
    driver.wait_used(RX as u16, 1);
    assert_eq!(driver.used(RX as u16, 0), (0, 100));
    assert_eq!(driver.bytes(RX_AT + 12, 88), frame(88, 2));
}

#[test]
fn malformed_buffers_break_the_device() {
    for (queue, buffer) in [
        (RX, (RX_AT, 11, WRITE)),
        (RX, (RX_AT, 2000, 0)),
        (RX, (8 << 20, 2000, WRITE)),
        (TX, (TX_AT, 11, 0)),
        (TX, (TX_AT, 2000, WRITE)),
        (TX, (8 << 20, 100, 0)),
        (TX, (u64::MAX - 50, 100, 0)),
    ] {
        let (driver, peer) = setup(0);
        driver.send(queue as u16, 0, &[buffer]);
        driver.notify(queue as u16);
        send_frame(&peer, &frame(60, 0));
        driver.wait_broken();
        driver.start(0);
        assert_eq!(driver.status(), 0xf);
    }
}

#[test]
fn when_the_peer_closes_the_link_goes_down() {
    let (driver, peer) = setup(0);
    offer_buffer(&driver, 0, 2048);
    offer_buffer(&driver, 1, 2048);
    send_frame(&peer, &frame(60, 1));
    let generation = driver.read(21, 1);
    drop(peer);
    // What it had sent still arrives.
    driver.wait_used(RX as u16, 1);
    eventually("link down", || driver.read(0x2006, 2) == 0);
    driver.msi.wait(0, 1);
    assert_ne!(driver.read(21, 1), generation);
    assert_eq!(driver.status(), 0xf, "which is no failure");
    // Frames go nowhere, and the queue does not fill up.
    for i in 0..3 {
        transmit(&driver, i, &with_header(&frame(60, 0)));
    }
    driver.wait_used(TX as u16, 3);
}

#[test]
fn sending_to_a_peer_that_is_gone_takes_the_link_down() {
    let (driver, peer) = setup(0);
    drop(peer);
    transmit(&driver, 0, &with_header(&frame(60, 0)));
    driver.wait_used(TX as u16, 1);
    assert_eq!(driver.read(0x2006, 2), 0);
}

#[test]
fn a_saved_device_goes_on_where_it_was() {
    let (ours, peer) = pair();
    let driver = Driver::new(Net::new(
        "net0",
        MAC,
        ours.try_clone().unwrap(),
        LinkFormat::Frames,
        1,
    ));
    driver.start(F_EVENT_IDX);
    offer_buffer(&driver, 0, 2048);
    offer_buffer(&driver, 1, 2048);
    send_frame(&peer, &frame(60, 1));
    transmit(&driver, 0, &with_header(&frame(70, 2)));
    driver.wait_used(RX as u16, 1);
    driver.wait_used(TX as u16, 1);
    driver.function.pause();
    send_frame(&peer, &frame(80, 3));
    transmit(&driver, 1, &with_header(&frame(90, 4)));
    let state = driver.function.save();
    let other = Driver::with_memory(
        Net::new("net0", MAC, ours, LinkFormat::Frames, 1),
        driver.memory.clone(),
    );
    drop(driver);
    other.function.restore(&state).unwrap();
    assert_eq!(other.function.save(), state);
    other.function.resume();
    other.wait_used(RX as u16, 2);
    assert_eq!(other.bytes(RX_AT + 0x1000 + 12, 80), frame(80, 3));
    other.wait_used(TX as u16, 2);
    assert_eq!(receive_frame(&peer), frame(70, 2));
    assert_eq!(receive_frame(&peer), frame(90, 4));
    let another = Driver::new(Net::new("net0", [0; 6], pair().0, LinkFormat::Frames, 1));
    assert!(another.function.restore(&state).is_err());
}

#[test]
fn many_small_frames_both_ways() {
    const COUNT: u16 = 3000;
    let (driver, peer) = setup(0);
    let echo = std::thread::spawn(move || {
        let mut data = [0; 2048];
        for _ in 0..COUNT {
            let len = recv(peer.as_raw_fd(), &mut data, MsgFlags::empty()).unwrap();
            send_frame(&peer, &data[..len]);
        }
        peer
    });
    for i in 0..8 {
        offer_buffer(&driver, i, 2048);
    }
    for i in 0..COUNT {
        transmit(&driver, i % 8, &with_header(&frame(64, i as u8)));
        driver.wait_used(TX as u16, i + 1);
        driver.wait_used(RX as u16, i + 1);
        let at = RX_AT + 0x1000 * u64::from(i % 8);
        assert_eq!(driver.bytes(at + 12, 64), frame(64, i as u8));
        offer_buffer(&driver, i % 8, 2048);
    }
    drop(echo.join().unwrap());
}
