//! The switch, addresses, and frames no honest guest sends.

use std::net::Ipv4Addr;
use std::time::Duration;

use fleetbox_packet::checksum::{fold, sum};
use proptest::prelude::*;

use super::guest::{Guest, HOST, Wire, attach, config, mac, note};
use crate::frame::{
    self, Arp, ETHERNET, GATEWAY_MAC, IPV4, Ipv4, Ipv4Header, PROTO_ICMP, PROTO_UDP, Udp,
};
use crate::{Limits, Member, Network, NetworkConfig, NetworkError, Subnet};

fn frame(to: [u8; 6], from: [u8; 6], ethertype: u16, body: &[u8]) -> Vec<u8> {
    let mut frame = vec![0; ETHERNET];
    frame::ethernet(&mut frame, to, from, ethertype);
    frame.extend_from_slice(body);
    frame
}

fn packet(source: Ipv4Addr, to: Ipv4Addr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0; IPV4];
    packet.extend_from_slice(payload);
    let total = packet.len();
    Ipv4Header::new(source, to, protocol).write(&mut packet, total);
    packet
}

fn arp(sender_mac: [u8; 6], sender_ip: Ipv4Addr, target_ip: Ipv4Addr) -> Vec<u8> {
    let mut body = vec![0; Arp::LEN];
    let request = Arp {
        operation: Arp::REQUEST,
        sender_mac,
        sender_ip,
        target_mac: [0; 6],
        target_ip,
    };
    request.write(&mut body);
    frame(frame::BROADCAST, sender_mac, frame::TYPE_ARP, &body)
}

/// Waits until the network has dealt with all that was sent before.
fn settle(network: &Network, name: &str, frames: u64) {
    let end = std::time::Instant::now() + Duration::from_secs(10);
    loop {
        let status = network.status().unwrap();
        let port = status.ports.iter().find(|port| port.name == name).unwrap();
        if port.frames_in >= frames {
            return;
        }
        assert!(std::time::Instant::now() < end, "{port:?}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Checks that nothing has come for the second of two members since it was last read: the next it
/// gets is what the first sends now.
fn assert_next_is_marker(from: &Wire, to: &Wire, numbers: (u8, u8)) {
    let marker = note(mac(numbers.1), mac(numbers.0), b"marker");
    from.send(&marker).unwrap();
    assert_eq!(to.expect(|_| true), marker);
}

#[test]
fn dhcp_gives_a_guest_its_address() {
    let network = Network::start(config()).unwrap();
    let attachment = attach(&network, "web", 1);
    let ip = attachment.ip;
    let mut guest = Guest::bare(attachment, 1);
    let lease = guest.dhcp();
    assert_eq!(lease.address.address(), ip);
    assert_eq!(lease.address.prefix_len(), 24);
    assert_eq!(lease.router, Some(Ipv4Addr::new(10, 187, 41, 1)));
    assert_eq!(
        lease.dns_servers.as_slice(),
        [Ipv4Addr::new(10, 187, 41, 1)]
    );
}

#[test]
fn members_are_checked_and_keep_their_addresses() {
    let network = Network::start(config()).unwrap();
    let port = |name: &str, number, ip| Member {
        name: name.to_owned(),
        mac: mac(number),
        ip,
    };
    let a = network.attach(port("a", 1, None)).unwrap();
    let b = network.attach(port("b", 2, None)).unwrap();
    assert_ne!(a.ip, b.ip);
    assert!(matches!(
        network.attach(port("a", 3, None)),
        Err(NetworkError::Taken { what: "name", .. })
    ));
    assert!(matches!(
        network.attach(port("c", 2, None)),
        Err(NetworkError::Taken {
            what: "MAC address",
            ..
        })
    ));
    assert!(matches!(
        network.attach(port("c", 3, Some(a.ip))),
        Err(NetworkError::Taken {
            what: "IP address",
            ..
        })
    ));
    for name in ["", "-a", "a.b", "ä", &"x".repeat(64)] {
        assert!(matches!(
            network.attach(port(name, 3, None)),
            Err(NetworkError::Name(_))
        ));
    }
    let gateway = Some(network.config().subnet.gateway());
    assert!(matches!(
        network.attach(port("c", 3, gateway)),
        Err(NetworkError::Address { .. })
    ));
    let group = Member {
        mac: [1, 0, 0, 0, 0, 1],
        ..port("c", 3, None)
    };
    assert!(matches!(
        network.attach(group),
        Err(NetworkError::Address { .. })
    ));

    network.detach("a").unwrap();
    assert!(matches!(
        network.detach("a"),
        Err(NetworkError::NoMember(_))
    ));
    let c = network.attach(port("c", 3, None)).unwrap();
    assert_ne!(c.ip, a.ip, "a's address waits for a");
    assert_eq!(network.attach(port("a", 4, None)).unwrap().ip, a.ip);

    // A member whose machine has ended makes room for the next of its name.
    drop(b);
    let again = (0..1000).find_map(|_| {
        std::thread::sleep(Duration::from_millis(2));
        network.attach(port("b", 5, None)).ok()
    });
    assert!(again.is_some());
}

#[test]
fn a_full_network_says_so() {
    let network = Network::start(NetworkConfig {
        subnet: Subnet::new(Ipv4Addr::new(10, 9, 9, 0), 30).unwrap(),
        ..config()
    })
    .unwrap();
    let port = |name: &str, number| Member {
        name: name.into(),
        mac: mac(number),
        ip: None,
    };
    let _a = network.attach(port("a", 1)).unwrap();
    assert!(matches!(
        network.attach(port("b", 2)),
        Err(NetworkError::Full(1))
    ));
    let network = Network::start(NetworkConfig {
        limits: Limits {
            members: 1,
            ..Limits::default()
        },
        ..config()
    })
    .unwrap();
    let _a = network.attach(port("a", 1)).unwrap();
    assert!(matches!(
        network.attach(port("b", 2)),
        Err(NetworkError::Full(1))
    ));
}

#[test]
fn the_gateway_answers_arp_and_echo() {
    let network = Network::start(config()).unwrap();
    let attachment = attach(&network, "web", 1);
    let wire = Wire::new(attachment.link);
    let gateway = network.config().subnet.gateway();
    wire.send(&arp(mac(1), attachment.ip, gateway)).unwrap();
    let reply = wire.expect(|frame| frame[12..14] == [8, 6]);
    let reply = Arp::parse(&reply[ETHERNET..]).unwrap();
    assert_eq!(reply.operation, Arp::REPLY);
    assert_eq!((reply.sender_mac, reply.sender_ip), (GATEWAY_MAC, gateway));

    let mut echo = vec![8, 0, 0, 0, 0, 7, 0, 1];
    echo.extend(b"payload");
    let request = packet(attachment.ip, gateway, PROTO_ICMP, &echo);
    wire.send(&frame(GATEWAY_MAC, mac(1), frame::TYPE_IPV4, &request))
        .unwrap();
    let reply = wire.expect(|frame| frame[12..14] == [8, 0]);
    let reply = Ipv4::parse(&reply[ETHERNET..]).unwrap();
    assert_eq!((reply.source, reply.to), (gateway, attachment.ip));
    assert_eq!(reply.payload[0], 0);
    assert_eq!(reply.payload[4..], echo[4..]);
    assert_eq!(fold(sum(reply.payload)), [0, 0]);
}

#[test]
fn members_reach_each_other_directly() {
    let network = Network::start(config()).unwrap();
    let mut a = Guest::join(&network, "a", 1);
    let mut b = Guest::join(&network, "b", 2);
    let (from, to) = (a.udp(1000), b.udp(2000));
    a.send_to(from, (b.ip, 2000).into(), b"hello");
    let received = a.until(|_| {
        b.step();
        let socket = b.sockets.get_mut::<smoltcp::socket::udp::Socket<'_>>(to);
        socket.recv().ok().map(|(data, _)| data.to_vec())
    });
    assert_eq!(received, b"hello");
}

#[test]
fn a_broadcast_reaches_all_others_and_a_learned_address_one() {
    let network = Network::start(config()).unwrap();
    let wires: Vec<_> = (1..=3)
        .map(|number| Wire::new(attach(&network, &format!("m{number}"), number).link))
        .collect();
    wires[0]
        .send(&note(frame::BROADCAST, mac(1), b"to all"))
        .unwrap();
    for wire in &wires[1..] {
        assert!(wire.expect(|_| true).ends_with(b"to all"));
    }
    // A second address behind the first member, as of a container.
    wires[0].send(&note(mac(2), mac(77), b"learn")).unwrap();
    wires[1].expect(|frame| frame.ends_with(b"learn"));
    wires[1].send(&note(mac(77), mac(2), b"found")).unwrap();
    wires[0].expect(|frame| frame.ends_with(b"found"));
    assert_next_is_marker(&wires[1], &wires[2], (2, 3));
}

#[test]
fn made_up_addresses_take_no_others_room() {
    let network = Network::start(config()).unwrap();
    let wires: Vec<_> = (1..=3)
        .map(|number| Wire::new(attach(&network, &format!("m{number}"), number).link))
        .collect();
    const COUNT: u16 = 3000;
    for number in 0..COUNT {
        let [high, low] = number.to_be_bytes();
        let made_up = note(mac(2), [2, 9, 9, 9, high, low], b"noise");
        while wires[0].send(&made_up).is_err() {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    settle(&network, "m1", COUNT.into());
    // A container behind the second member speaks and is found, and no other member hears it.
    wires[1].send(&note(mac(3), mac(77), b"here")).unwrap();
    wires[2].expect(|frame| frame.ends_with(b"here"));
    wires[2].send(&note(mac(77), mac(3), b"found")).unwrap();
    wires[1].expect(|frame| frame.ends_with(b"found"));
    assert_next_is_marker(&wires[2], &wires[0], (3, 1));
    // It moves behind the third.
    wires[2].send(&note(mac(2), mac(77), b"moved")).unwrap();
    wires[1].expect(|frame| frame.ends_with(b"moved"));
    wires[1].send(&note(mac(77), mac(2), b"again")).unwrap();
    wires[2].expect(|frame| frame.ends_with(b"again"));
    assert_next_is_marker(&wires[1], &wires[0], (2, 1));
}

#[test]
fn forged_and_malformed_frames_go_nowhere() {
    let network = Network::start(config()).unwrap();
    let a = attach(&network, "a", 1);
    let b = attach(&network, "b", 2);
    let gateway = network.config().subnet.gateway();
    let wire = Wire::new(a.link);
    let other = Wire::new(b.link);
    let udp = |from: u16, to: u16| {
        let mut datagram = vec![0; 12];
        let udp = Udp {
            source: from,
            to,
            payload: b"hiya",
        };
        udp.write(&mut datagram, a.ip, b.ip);
        datagram
    };
    let ip = |source, to: u16| packet(source, b.ip, PROTO_UDP, &udp(to, 9));
    // Tagged with a priority and no VLAN.
    let priority = |frame: &[u8]| [&frame[..12], &[0x81, 0, 0xe0, 0], &frame[12..]].concat();
    let forged = [
        vec![0; 5],
        vec![0xff; 13],
        note(mac(2), mac(1), &[0; 1600]),
        note(mac(2), GATEWAY_MAC, b"the gateway's address"),
        note(mac(2), mac(2), b"another member's address"),
        note(mac(2), [3, 0, 0, 0, 0, 1], b"a group as the source"),
        arp(mac(1), gateway, b.ip),
        arp(mac(1), b.ip, b.ip),
        frame(mac(2), mac(1), frame::TYPE_IPV4, &ip(gateway, 1000)),
        frame(mac(2), mac(1), frame::TYPE_IPV4, &ip(b.ip, 1000)),
        // A DHCP server among the guests.
        frame(mac(2), mac(1), frame::TYPE_IPV4, &ip(a.ip, 67)),
        frame(mac(2), mac(1), frame::TYPE_IPV4, &[0x45, 0, 0, 200]),
        frame(mac(2), mac(1), frame::TYPE_ARP, &[0; 10]),
        priority(&arp(mac(1), gateway, b.ip)),
        priority(&frame(mac(2), mac(1), frame::TYPE_IPV4, &ip(gateway, 1000))),
    ];
    for frame in &forged {
        wire.send(frame).unwrap();
    }
    wire.send(&note(mac(2), mac(1), b"honest")).unwrap();
    assert!(other.expect(|_| true).ends_with(b"honest"));
    settle(&network, "a", forged.len() as u64 + 1);
    let status = network.status().unwrap();
    assert_eq!(status.ports[0].refused, forged.len() as u64);
}

#[test]
fn a_member_that_takes_nothing_holds_up_no_other() {
    let network = Network::start(config()).unwrap();
    let a = Wire::new(attach(&network, "a", 1).link);
    let _stuck = attach(&network, "stuck", 2);
    let c = Wire::new(attach(&network, "c", 3).link);
    let junk = note(mac(2), mac(1), &[7; 1400]);
    let mut sent = 0;
    while sent < 8000 {
        match a.send(&junk) {
            Ok(_) => sent += 1,
            Err(_) => std::thread::sleep(Duration::from_millis(1)),
        }
    }
    settle(&network, "a", 8000);
    a.send(&note(mac(3), mac(1), b"through")).unwrap();
    c.expect(|frame| frame.ends_with(b"through"));
    let status = network.status().unwrap();
    assert!(status.ports[1].dropped > 0, "{status:?}");
}

#[test]
fn a_storm_of_broadcasts_is_damped() {
    let network = Network::start(config()).unwrap();
    let a = Wire::new(attach(&network, "a", 1).link);
    let b = Wire::new(attach(&network, "b", 2).link);
    let storm = note(frame::BROADCAST, mac(1), b"storm");
    let mut sent = 0u64;
    let start = std::time::Instant::now();
    let mut seen = 0;
    while sent < 20_000 {
        while b.receive().is_some() {
            seen += 1;
        }
        match a.send(&storm) {
            Ok(_) => sent += 1,
            Err(_) => std::thread::sleep(Duration::from_millis(1)),
        }
    }
    let last = note(mac(2), mac(1), b"last");
    while a.send(&last).is_err() {
        std::thread::sleep(Duration::from_millis(1));
    }
    while b.expect(|_| true) != last {
        seen += 1;
    }
    let allowed = 2000 + start.elapsed().as_millis() as u64 * 2 + 100;
    assert!((1..=allowed).contains(&seen), "{seen} of at most {allowed}");
}

/// Frames near enough to real ones to get past the first checks.
fn mutated() -> impl Strategy<Value = Vec<u8>> {
    let guest = Ipv4Addr::new(10, 187, 41, 2);
    let kind = prop_oneof![
        Just(frame::TYPE_IPV4),
        Just(frame::TYPE_IPV4),
        Just(frame::TYPE_IPV4),
        Just(frame::TYPE_ARP),
        any::<u16>()
    ];
    let to = prop_oneof![
        Just(HOST),
        Just(Ipv4Addr::new(10, 187, 41, 1)),
        Just(Ipv4Addr::BROADCAST),
        any::<u32>().prop_map(|bits| Ipv4Addr::from(bits | 0xe000_0000)),
    ];
    let payload = (
        prop_oneof![Just(6u8), Just(6), Just(17), Just(1), any::<u8>()],
        prop::collection::vec(any::<u8>(), 0..200),
        prop_oneof![Just(53u16), Just(67), Just(1), any::<u16>()],
        any::<u8>(),
        0..16u8,
        0..4u8,
    );
    let damage = prop::collection::vec((0..80usize, any::<u8>()), 0..3);
    (kind, to, payload, damage).prop_map(
        move |(kind, to, (protocol, mut payload, port, flags, offset, source), damage)| {
            frame::put(&mut payload, 0, &(50_000 + u16::from(source)).to_be_bytes());
            frame::put(&mut payload, 2, &port.to_be_bytes());
            if protocol == 6 {
                frame::put(&mut payload, 12, &[offset << 4, flags & 0x3f]);
            } else if protocol == 17 {
                let len = payload.len() as u16;
                frame::put(&mut payload, 4, &len.to_be_bytes());
            }
            let body = packet(guest, to, protocol, &payload);
            let mut frame = frame(GATEWAY_MAC, mac(1), kind, &body);
            for (at, byte) in damage {
                frame::put(&mut frame, at, &[byte]);
            }
            frame
        },
    )
}

/// A segment of the connection from port 4000 to `port` of the host.
fn segment(from: Ipv4Addr, port: u16, numbers: (u32, u32), flags: u8, rest: &[u8]) -> Vec<u8> {
    let mut tcp = vec![0; frame::TCP];
    let header = frame::Tcp {
        source: 4000,
        to: port,
        sequence: numbers.0,
        acknowledgement: numbers.1,
        flags,
        payload: 0,
    };
    header.write(&mut tcp, from, HOST);
    tcp.extend_from_slice(rest);
    let body = packet(from, HOST, 6, &tcp);
    frame(GATEWAY_MAC, mac(1), frame::TYPE_IPV4, &body)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    /// A guest that has opened a connection and then sends what it likes harms that connection at
    /// most.
    #[test]
    fn an_open_connection_survives_any_segments(
        segments in prop::collection::vec(
            (
                prop_oneof![4 => -3i32..3000, 1 => any::<i32>()],
                prop_oneof![4 => -3i32..3000, 1 => any::<i32>()],
                prop_oneof![4 => Just(frame::ACK), 1 => any::<u8>()],
                // Window and options, if the header says that there are any.
                prop_oneof![4 => Just(5u8), 1 => 0u8..16],
                any::<u16>(),
                prop::collection::vec(any::<u8>(), 0..100),
            ),
            1..60,
        ),
    ) {
        use std::io::Write;
        let network = Network::start(config()).unwrap();
        let attachment = attach(&network, "fuzz", 1);
        let (wire, ip) = (Wire::new(attachment.link), attachment.ip);
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        wire.send(&segment(ip, port, (999, 0), frame::SYN, &[])).unwrap();
        let answer = wire.expect(|frame| frame[12..14] == [8, 0]);
        let answer = frame::Tcp::parse(&answer[ETHERNET + IPV4..]).unwrap();
        prop_assert!(answer.has(frame::SYN | frame::ACK));
        let ours = answer.sequence.wrapping_add(1);
        wire.send(&segment(ip, port, (1000, ours), frame::ACK, &[])).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        server.set_nonblocking(true).unwrap();
        let mut sent = 2;
        for (sequence, acknowledgement, flags, header, window, rest) in segments {
            // Something to acknowledge.
            let _ = server.write(&[7; 50]);
            let numbers = (
                1000u32.wrapping_add_signed(sequence),
                ours.wrapping_add_signed(acknowledgement),
            );
            let mut bytes = segment(ip, port, numbers, flags, &rest);
            frame::put(&mut bytes, ETHERNET + IPV4 + 12, &[header << 4]);
            frame::put(&mut bytes, ETHERNET + IPV4 + 14, &window.to_be_bytes());
            if wire.send(&bytes).is_ok() {
                sent += 1;
            }
            while wire.receive().is_some() {}
        }
        settle(&network, "fuzz", sent);
        prop_assert!(network.status().unwrap().ports[0].up);
        // Others are served as before.
        let other = listener.local_addr().unwrap().port();
        let mut guest = Guest::join(&network, "other", 2);
        prop_assert!(guest.connect((HOST, other).into()).is_some());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]
    #[test]
    fn the_network_survives_any_frames(
        frames in prop::collection::vec(
            prop_oneof![
                4 => mutated(),
                1 => prop::collection::vec(any::<u8>(), 1..1700),
            ],
            1..60,
        ),
    ) {
        let network = Network::start(config()).unwrap();
        let wire = Wire::new(attach(&network, "fuzz", 1).link);
        for frame in &frames {
            wire.send(frame).unwrap();
        }
        settle(&network, "fuzz", frames.len() as u64);
        prop_assert!(network.status().unwrap().ports[0].up);
    }
}
