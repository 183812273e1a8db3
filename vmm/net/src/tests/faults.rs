//! Faults of links, as guests meet them.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::time::{Duration, Instant};

use smoltcp::iface::SocketHandle;
use smoltcp::socket::udp;
use smoltcp::wire::{EthernetAddress, HardwareAddress};

use super::guest::{Guest, HOST, PATIENCE, Wire, attach, config, mac, note, pattern, text};
use crate::frame::{self, Arp, BROADCAST, ETHERNET, GATEWAY_MAC, TYPE_ARP};
use crate::{LinkConditions, LinkEnd, Network, NetworkError};

/// A note with a number.
fn numbered(to: u8, from: u8, number: u32) -> Vec<u8> {
    note(mac(to), mac(from), &number.to_be_bytes())
}

/// The numbers of the frames that come until number `last`.
fn numbers(wire: &Wire, last: u32) -> Vec<u32> {
    let mut seen = Vec::new();
    while seen.last() != Some(&last) {
        let frame = wire.expect(|frame| text(frame).is_some());
        seen.push(u32::from_be_bytes(
            text(&frame).unwrap().try_into().unwrap(),
        ));
    }
    seen
}

/// Sends a datagram from `a` to `b`, and gives back the socket of `b` that it is for.
fn send(a: &mut Guest, b: &mut Guest, port: u16) -> SocketHandle {
    let (from, to) = (a.udp(port), b.udp(port));
    a.send_to(from, (b.ip, port).into(), b"hello");
    to
}

fn has_received(guest: &Guest, socket: SocketHandle) -> bool {
    guest.sockets.get::<udp::Socket<'_>>(socket).can_recv()
}

/// Waits until a datagram of `a` has reached `b`. Both run: they ask for each other's hardware
/// address.
fn assert_reaches(a: &mut Guest, b: &mut Guest, port: u16) {
    let socket = send(a, b, port);
    a.until(|_| {
        b.step();
        has_received(b, socket).then_some(())
    });
}

/// Asks for the gateway's hardware address, and returns the frames that come before the answer. All
/// that the guest has sent before has then been switched.
fn until_answer(network: &Network, guest: &Guest) -> Vec<Vec<u8>> {
    let mut request = vec![0; ETHERNET + Arp::LEN];
    let HardwareAddress::Ethernet(EthernetAddress(own)) = guest.interface.hardware_addr() else {
        panic!()
    };
    let gateway = network.config().subnet.gateway();
    frame::ethernet(&mut request, BROADCAST, own, TYPE_ARP);
    let arp = Arp {
        operation: Arp::REQUEST,
        sender_mac: own,
        sender_ip: guest.ip,
        target_mac: [0; 6],
        target_ip: gateway,
    };
    arp.write(&mut request[ETHERNET..]);
    guest.wire.send(&request).unwrap();
    let mut before = Vec::new();
    guest.wire.expect(|frame| {
        let is_answer = frame[6..12] == GATEWAY_MAC && frame[12..14] == TYPE_ARP.to_be_bytes();
        if !is_answer {
            before.push(frame.to_vec());
        }
        is_answer
    });
    before
}

/// Checks that a partition stops what `a` sends to `b`, a question for its hardware address included.
fn assert_cut_off(network: &Network, a: &mut Guest, b: &mut Guest, port: u16) {
    let cut = || network.status().unwrap().faults.cut;
    let before = cut();
    let socket = send(a, b, port);
    until_answer(network, a);
    let frames = until_answer(network, b);
    let HardwareAddress::Ethernet(EthernetAddress(from)) = a.interface.hardware_addr() else {
        panic!()
    };
    assert!(
        frames.iter().all(|frame| frame[6..12] != from),
        "{frames:?}"
    );
    assert!(!has_received(b, socket));
    assert!(cut() > before);
}

#[test]
fn a_partition_is_felt_and_healed() {
    let network = Network::start(config()).unwrap();
    let mut a = Guest::join(&network, "a", 1);
    let mut b = Guest::join(&network, "b", 2);
    let mut c = Guest::join(&network, "c", 3);
    assert_reaches(&mut a, &mut b, 1000);
    network.partition(&["A"], &["b", "c"]).unwrap();
    assert_cut_off(&network, &mut a, &mut b, 1001);
    assert_cut_off(&network, &mut c, &mut a, 1002);
    assert_reaches(&mut b, &mut c, 1003);
    assert!(network.status().unwrap().faults.cut > 0);

    // The host and the world are as near as before.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let host = (HOST, listener.local_addr().unwrap().port()).into();
    assert!(a.connect(host).is_some());

    // The member that joins anew is behind the same partition.
    network.detach("a").unwrap();
    let mut a = Guest::join(&network, "a", 4);
    assert_cut_off(&network, &mut a, &mut b, 1004);
    network.heal().unwrap();
    assert_reaches(&mut a, &mut b, 1005);
    assert_reaches(&mut c, &mut a, 1006);
}

#[test]
fn the_gateway_is_cut_off_when_asked() {
    let network = Network::start(config()).unwrap();
    let mut a = Guest::join(&network, "a", 1);
    let mut b = Guest::join(&network, "b", 2);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let host = (HOST, listener.local_addr().unwrap().port()).into();
    // Now it knows the gateway's hardware address, so the SYN itself is what is cut below.
    assert!(a.connect(host).is_some());
    let _first = listener.accept().unwrap();
    network
        .partition(&[LinkEnd::from("a")], &[LinkEnd::Gateway])
        .unwrap();
    let handle = a.start_connect(host, 4096);
    // Once this has arrived, the SYN before it has been switched.
    assert_reaches(&mut a, &mut b, 1000);
    assert!(network.status().unwrap().faults.cut > 0);
    // The host accepts in order: what comes next is the connection of the other member.
    assert!(b.connect(host).is_some());
    let _second = listener.accept().unwrap();
    listener.set_nonblocking(true).unwrap();
    assert!(listener.accept().is_err(), "a is cut off");
    // And nothing that came for it before this is an answer.
    assert_reaches(&mut b, &mut a, 1001);
    assert_eq!(
        a.tcp(handle).state(),
        smoltcp::socket::tcp::State::SynSent,
        "neither accepted nor refused"
    );
    network.heal().unwrap();
    a.until(|a| a.tcp(handle).may_send().then_some(()));
}

#[test]
fn latency_delays_and_keeps_the_order() {
    let network = Network::start(config()).unwrap();
    let a = Wire::new(attach(&network, "a", 1).link);
    let b = Wire::new(attach(&network, "b", 2).link);
    let latency = Duration::from_millis(40);
    let slow = LinkConditions {
        latency,
        ..LinkConditions::default()
    };
    network.set_link("a", "b", slow).unwrap();
    assert_eq!(network.link("b", "a").unwrap(), slow);
    let start = Instant::now();
    for number in 0..200 {
        a.send(&numbered(2, 1, number)).unwrap();
    }
    b.expect(|frame| frame.ends_with(&[0, 0, 0, 0]));
    assert!(start.elapsed() >= latency - Duration::from_millis(1));
    assert_eq!(numbers(&b, 199), (1..200).collect::<Vec<_>>());
    network.clear_links().unwrap();
    assert!(network.link("a", "b").unwrap().is_default());
    assert_eq!(network.status().unwrap().faults.held, 0);
}

#[test]
fn losses_are_the_same_in_each_run() {
    let run = |seed| {
        let network = Network::start(config()).unwrap();
        let a = Wire::new(attach(&network, "a", 1).link);
        let b = Wire::new(attach(&network, "b", 2).link);
        let lossy = LinkConditions {
            loss: 0.2,
            ..LinkConditions::default()
        };
        network.set_links_of("b", lossy).unwrap();
        network.seed_links(seed).unwrap();
        for number in 0..150 {
            a.send(&numbered(2, 1, number)).unwrap();
        }
        while network.status().unwrap().ports[0].frames_in < 150 {
            std::thread::sleep(Duration::from_millis(1));
        }
        network.clear_links().unwrap();
        a.send(&numbered(2, 1, 150)).unwrap();
        let seen = numbers(&b, 150);
        let lost = network.status().unwrap().faults.lost;
        assert_eq!(lost, 151 - seen.len() as u64);
        seen
    };
    let first = run(7);
    assert_eq!(first, run(7));
    assert_ne!(first, run(8));
    assert!((100..145).contains(&first.len()), "{}", first.len());
}

#[test]
fn a_connection_through_a_slow_and_lossy_link_delivers_everything() {
    let network = Network::start(config()).unwrap();
    let mut guest = Guest::join(&network, "a", 1);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let host = (HOST, listener.local_addr().unwrap().port()).into();
    const LEN: usize = 300_000;
    let data = pattern(LEN, 5);
    let served = data.clone();
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(&served).unwrap();
        let mut received = vec![0; LEN];
        stream.read_exact(&mut received).unwrap();
        received
    });
    let conditions = LinkConditions {
        latency: Duration::from_millis(2),
        loss: 0.005,
        // 300 000 bytes take a fifth of a second.
        bandwidth: Some(12_000_000),
        // The guest here has no congestion control, and would overrun less.
        queue: 512 << 10,
    };
    network.set_link("a", LinkEnd::Gateway, conditions).unwrap();
    let start = Instant::now();
    let handle = guest.connect(host).unwrap();
    assert!(guest.receive(handle, LEN) == data);
    assert!(start.elapsed() >= Duration::from_millis(190));
    guest.send(handle, &data);
    guest.until(|_| server.is_finished().then_some(()));
    assert!(server.join().unwrap() == data);
    assert!(start.elapsed() >= Duration::from_millis(380));
    let faults = network.status().unwrap().faults;
    assert!(faults.lost > 0, "{faults:?}");
}

#[test]
fn links_of_unknown_members_and_impossible_links_are_refused() {
    let network = Network::start(config()).unwrap();
    let _a = attach(&network, "a", 1);
    let good = LinkConditions::default();
    assert!(matches!(
        network.set_link("a", "nobody", good),
        Err(NetworkError::NoMember(name)) if name == "nobody"
    ));
    assert!(matches!(
        network.partition(&["a"], &["nobody"]),
        Err(NetworkError::NoMember(_))
    ));
    assert!(matches!(
        network.set_links_of("a", LinkConditions { loss: 2.0, ..good }),
        Err(NetworkError::Condition { what: "loss", .. })
    ));
    // A member that is known and not there yet will do.
    network
        .register_name("later", Ipv4Addr::new(10, 187, 41, 9))
        .unwrap();
    network.set_link("a", "later", good).unwrap();
}
