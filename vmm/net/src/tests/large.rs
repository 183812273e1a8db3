//! Packets that are larger than a frame: they pass whole, and are frames where faults count them.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::time::Duration;

use fleetbox_packet::{HEADER, MAX_FRAME, Packet, offload_tcp};
use proptest::prelude::*;

use super::guest::{Guest, HOST, PATIENCE, Wire, attach, config, mac, pattern};
use crate::frame::{self, ETHERNET, GATEWAY_MAC, IPV4, Ipv4Header, PROTO_TCP, TCP};
use crate::port::new_link;
use crate::{LinkConditions, Network};

const HEADERS: usize = HEADER + ETHERNET + IPV4 + TCP;

/// A large TCP segment between two addresses, with the header in front of it.
fn large(to: [u8; 6], source: std::net::Ipv4Addr, target: std::net::Ipv4Addr) -> Vec<u8> {
    let mut bytes = vec![0; HEADERS];
    bytes.extend(pattern(50_000, 3));
    let (_, frame) = bytes.split_at_mut(HEADER);
    frame::ethernet(frame, to, mac(1), frame::TYPE_IPV4);
    let total = frame.len() - ETHERNET;
    Ipv4Header::new(source, target, PROTO_TCP).write(&mut frame[ETHERNET..], total);
    frame[ETHERNET + IPV4..][..14]
        .copy_from_slice(&[0, 9, 0, 80, 0, 0, 0, 1, 0, 0, 0, 2, 0x50, 16]);
    assert!(offload_tcp(&mut bytes, 1460));
    bytes
}

fn next_packet(wire: &Wire) -> Vec<u8> {
    loop {
        if let Some(packet) = wire.receive_packet() {
            return packet;
        }
        wire.wait(PATIENCE);
    }
}

#[test]
fn a_large_packet_passes_whole_between_members() {
    let network = Network::start(config()).unwrap();
    let (a, b) = (attach(&network, "a", 1), attach(&network, "b", 2));
    let sent = large(mac(2), a.ip, b.ip);
    let (a, b) = (Wire::new(a.link), Wire::new(b.link));
    a.send_packet(&sent).unwrap();
    assert!(next_packet(&b) == sent);

    // Over a link with faults it goes in frames, each of which has its own fate.
    let latency = Duration::from_millis(1);
    let slow = LinkConditions {
        latency,
        ..LinkConditions::default()
    };
    network.set_link("a", "b", slow).unwrap();
    a.send_packet(&sent).unwrap();
    let mut all: Vec<u8> = Vec::new();
    while all.len() < 50_000 {
        let packet = next_packet(&b);
        let packet = Packet::parse(&packet).unwrap();
        assert!(packet.is_ready() && packet.frame().len() <= MAX_FRAME);
        all.extend(&packet.frame()[HEADERS - HEADER..]);
    }
    assert!(all == pattern(50_000, 3));
    let lossy = LinkConditions {
        loss: 1.0,
        ..LinkConditions::default()
    };
    network.set_link("a", "b", lossy).unwrap();
    a.send_packet(&sent).unwrap();
    while network.status().unwrap().faults.lost < 35 {
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(network.status().unwrap().faults.lost, 35);
}

#[test]
fn what_leaves_by_the_uplink_leaves_in_frames() {
    let network = Network::start(config()).unwrap();
    let (tap, host) = new_link().unwrap();
    let router = [2, 0, 0, 0, 1, 254];
    let address = "10.187.41.254".parse().unwrap();
    network.uplink(tap, router, address).unwrap();
    let a = attach(&network, "a", 1);
    let sent = large(router, a.ip, address);
    let (a, host) = (Wire::new(a.link), Wire::bare(host));
    a.send_packet(&sent).unwrap();
    let mut all: Vec<u8> = Vec::new();
    while all.len() < 50_000 {
        let frame = host.expect(|frame| frame[12..14] == [8, 0]);
        assert!(frame.len() <= MAX_FRAME);
        let ip = smoltcp::wire::Ipv4Packet::new_checked(&frame[ETHERNET..]).unwrap();
        assert!(ip.verify_checksum());
        let segment = smoltcp::wire::TcpPacket::new_checked(ip.payload()).unwrap();
        assert!(segment.verify_checksum(&ip.src_addr().into(), &ip.dst_addr().into()));
        all.extend(segment.payload());
    }
    assert!(all == pattern(50_000, 3));
}

#[test]
fn connections_use_large_packets_both_ways() {
    const LEN: usize = 4 << 20;
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let to = (HOST, listener.local_addr().unwrap().port()).into();
    let host = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(&pattern(LEN, 1)).unwrap();
        let mut all = vec![0; LEN];
        stream.read_exact(&mut all).unwrap();
        assert!(all == pattern(LEN, 2));
    });
    let network = Network::start(config()).unwrap();
    let mut guest = Guest::join_large(&network, "web", 1);
    let handle = guest.connect(to).unwrap();
    let mut all = Vec::new();
    guest.until(|guest| {
        guest.drain(handle, &mut all);
        (all.len() == LEN).then_some(())
    });
    assert!(all == pattern(LEN, 1));
    guest.send(handle, &pattern(LEN, 2));
    guest.until(|_| host.is_finished().then_some(()));
    host.join().unwrap();
    let port = &network.status().unwrap().ports[0];
    assert_eq!((port.refused, port.dropped), (0, 0), "{port:?}");
    // Acknowledgements are among the frames.
    assert!(port.bytes_out / port.frames_out > 2 * 1514, "{port:?}");
    assert!(port.bytes_in / port.frames_in > 2 * 1514, "{port:?}");
}

#[test]
fn faults_of_the_gateways_links_see_frames() {
    const LEN: usize = 1 << 20;
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let to = (HOST, listener.local_addr().unwrap().port()).into();
    let host = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut all = vec![0; LEN];
        stream.write_all(&pattern(LEN, 1)).unwrap();
        stream.read_exact(&mut all).unwrap();
        assert!(all == pattern(LEN, 2));
    });
    let network = Network::start(config()).unwrap();
    let mut guest = Guest::join_large(&network, "web", 1);
    // It stands before there are faults, and goes on in frames.
    let handle = guest.connect(to).unwrap();
    let slow = LinkConditions {
        latency: Duration::from_millis(1),
        ..LinkConditions::default()
    };
    network.set_links_of("web", slow).unwrap();
    let mut left = LEN;
    guest.until(|guest| {
        let socket = guest.tcp(handle);
        while socket.can_recv() {
            left -= socket.recv(|data| (data.len(), data.len())).unwrap();
        }
        (left == 0).then_some(())
    });
    let port = &network.status().unwrap().ports[0];
    // What had come before is in there too.
    assert!(port.bytes_out / port.frames_out < 3 * 1514, "{port:?}");
    guest.send(handle, &pattern(LEN, 2));
    guest.until(|_| host.is_finished().then_some(()));
    host.join().unwrap();
}

#[test]
fn headers_that_lie_are_refused() {
    let network = Network::start(config()).unwrap();
    let (a, b) = (attach(&network, "a", 1), attach(&network, "b", 2));
    let good = large(mac(2), a.ip, b.ip);
    let (a, b) = (Wire::new(a.link), Wire::new(b.link));
    let mut refused = 0;
    // Among them checksums at the addresses of Ethernet and IP, and lengths that are not the
    // packet's: what is checked here must be what arrives.
    for change in [
        &[(0, 0)][..],
        &[(0, 3)],
        &[(1, 0)],
        &[(1, 3)],
        &[(1, 4)],
        &[(4, 0), (5, 0)],
        &[(4, 0xff), (5, 0xff)],
        &[(6, 0), (8, 6)],
        &[(6, 14), (8, 12)],
        &[(8, 6)],
        &[(28, 1)],
        &[(32, 0x20)],
        &[(35, 17)],
    ] {
        let mut bad = good.clone();
        for (at, value) in change {
            bad[*at] = *value;
        }
        a.send_packet(&bad).unwrap();
        refused += 1;
    }
    for len in [1, HEADER, HEADER + 13] {
        a.send_packet(&good[..len]).unwrap();
        refused += 1;
    }
    a.send_packet(&good).unwrap();
    assert!(next_packet(&b) == good);
    let port = &network.status().unwrap().ports[0];
    assert_eq!(port.refused, refused, "{port:?}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn any_header_is_survived(
        packets in prop::collection::vec(
            (prop::collection::vec((0..HEADERS, any::<u8>()), 0..4), any::<bool>(), HEADER..4000),
            1..40,
        ),
    ) {
        let network = Network::start(config()).unwrap();
        let (a, b) = (attach(&network, "a", 1), attach(&network, "b", 2));
        let (to_member, to_gateway) = (large(mac(2), a.ip, b.ip), large(GATEWAY_MAC, a.ip, HOST));
        let (a, b) = (Wire::new(a.link), Wire::new(b.link));
        for (changes, member, len) in packets {
            let mut bad = if member { to_member.clone() } else { to_gateway.clone() };
            bad.truncate(len);
            for (at, value) in changes {
                if let Some(byte) = bad.get_mut(at) {
                    *byte = value;
                }
            }
            a.send_packet(&bad).unwrap();
        }
        a.send_packet(&to_member).unwrap();
        // Whatever comes before is a packet by the rules.
        loop {
            let packet = next_packet(&b);
            prop_assert!(Packet::parse(&packet).is_some());
            if packet == to_member {
                break;
            }
        }
    }
}
