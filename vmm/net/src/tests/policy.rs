//! What passes the switch, and what does not.

use std::net::{Ipv4Addr, TcpListener, UdpSocket};

use fleetbox_packet::checksum::{fold, sum};

use super::guest::{HOST, Wire, attach, config, mac, note};
use crate::frame::{
    self, Arp, BROADCAST, ETHERNET, GATEWAY_MAC, IPV4, Ipv4, Ipv4Header, MORE_FRAGMENTS, Mac,
    PROTO_ICMP, PROTO_TCP, PROTO_UDP, RST, SYN, TCP, TYPE_ARP, TYPE_IPV4, Tcp, UDP, Udp,
};
use crate::port::new_link;
use crate::{Network, NetworkConfig, Subnet};

const ROUTER: Ipv4Addr = Ipv4Addr::new(10, 187, 41, 254);
const ROUTER_MAC: Mac = [2, 0, 0, 0, 1, 254];
/// The address of a member that does not run.
const STOPPED: Ipv4Addr = Ipv4Addr::new(10, 187, 41, 77);
/// An address of the network that nobody has.
const FREE: Ipv4Addr = Ipv4Addr::new(10, 187, 41, 150);
const WORLD: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);
const LLDP: Mac = [0x01, 0x80, 0xc2, 0, 0, 0x0e];
const SPANNING_TREE: Mac = [0x01, 0x80, 0xc2, 0, 0, 0];
const ALL_IPV6: Mac = [0x33, 0x33, 0, 0, 0, 1];
const MDNS: Mac = [0x01, 0x00, 0x5e, 0, 0, 0xfb];

/// A network with two members, an uplink and a member that does not run.
struct Setup {
    network: Network,
    evil: (Wire, Ipv4Addr),
    web: (Wire, Ipv4Addr),
    host: Wire,
}

fn setup() -> Setup {
    let config = NetworkConfig {
        router: Some(ROUTER),
        ..config()
    };
    let network = Network::start(config).unwrap();
    let (tap, host) = new_link().unwrap();
    network.uplink(tap, ROUTER_MAC, ROUTER).unwrap();
    network.register_name("db", STOPPED).unwrap();
    let join = |name, number| {
        let attachment = attach(&network, name, number);
        (Wire::new(attachment.link), attachment.ip)
    };
    let (evil, web) = (join("evil", 1), join("web", 2));
    Setup {
        network,
        evil,
        web,
        host: Wire::bare(host),
    }
}

impl Setup {
    fn refused(&self, name: &str) -> u64 {
        let status = self.network.status().unwrap();
        let port = status.ports.iter().find(|port| port.name == name);
        port.unwrap().refused
    }

    /// Sends frames from a member or the uplink, and checks that none of them arrives anywhere.
    fn assert_dropped(&self, name: &str, frames: &[(String, Vec<u8>)]) {
        let (wire, from, others) = match name {
            "evil" => (&self.evil.0, mac(1), [&self.web.0, &self.host]),
            _ => (&self.host, ROUTER_MAC, [&self.evil.0, &self.web.0]),
        };
        let before = self.refused(name);
        for (index, (what, bytes)) in frames.iter().enumerate() {
            wire.send(bytes).unwrap();
            // What comes next is what was sent last.
            let honest = note(BROADCAST, from, &index.to_be_bytes());
            wire.send(&honest).unwrap();
            for other in others {
                assert_eq!(other.expect(|_| true), honest, "{what}");
            }
        }
        assert_eq!(self.refused(name) - before, frames.len() as u64);
    }

    /// Sends frames from a member or the uplink, and checks that `web` gets all of them.
    fn assert_passed(&self, name: &str, frames: &[(String, Vec<u8>)]) {
        let wire = if name == "evil" {
            &self.evil.0
        } else {
            &self.host
        };
        for (what, bytes) in frames {
            wire.send(bytes).unwrap();
            assert_eq!(&self.web.0.expect(|_| true), bytes, "{what}");
        }
        assert_eq!(self.refused(name), 0);
    }
}

fn frame(to: Mac, from: Mac, ethertype: u16, body: &[u8]) -> Vec<u8> {
    let mut frame = vec![0; ETHERNET];
    frame::ethernet(&mut frame, to, from, ethertype);
    frame.extend_from_slice(body);
    frame
}

fn arp_body(operation: u16, sender: (Mac, Ipv4Addr), target: Ipv4Addr) -> Vec<u8> {
    let mut body = vec![0; Arp::LEN];
    let arp = Arp {
        operation,
        sender_mac: sender.0,
        sender_ip: sender.1,
        target_mac: [0; 6],
        target_ip: target,
    };
    arp.write(&mut body);
    body
}

fn arp(operation: u16, sender: (Mac, Ipv4Addr), target: Ipv4Addr) -> Vec<u8> {
    frame(
        BROADCAST,
        sender.0,
        TYPE_ARP,
        &arp_body(operation, sender, target),
    )
}

/// A packet in a frame from `from` to `to`.
fn packet(
    to: Mac,
    from: Mac,
    addresses: (Ipv4Addr, Ipv4Addr),
    protocol: u8,
    fragment: u16,
    payload: &[u8],
) -> Vec<u8> {
    let mut body = vec![0; IPV4];
    body.extend_from_slice(payload);
    let total = body.len();
    let mut header = Ipv4Header::new(addresses.0, addresses.1, protocol);
    header.fragment = fragment;
    header.write(&mut body, total);
    frame(to, from, TYPE_IPV4, &body)
}

fn udp(from: u16, to: u16) -> Vec<u8> {
    let mut datagram = vec![0; UDP + 16];
    let udp = Udp {
        source: from,
        to,
        payload: &[7; 16],
    };
    udp.write(&mut datagram, Ipv4Addr::LOCALHOST, Ipv4Addr::LOCALHOST);
    datagram
}

fn router_advertisement() -> Vec<u8> {
    let mut body = vec![0x60, 0, 0, 0, 0, 16, 58, 255];
    body.extend([0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xfe, 0, 0, 1]);
    body.extend([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
    body.extend([134, 0, 0, 0, 64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0]);
    body
}

/// Types of frames that the network does not need: IPv6, VLAN tags, LLDP, MPLS, PPPoE, 802.1X, MACsec,
/// RARP, wake on LAN, and lengths, as spanning tree has.
const OTHER_TYPES: [u16; 19] = [
    0x86dd, 0x8100, 0x88a8, 0x9100, 0x88cc, 0x8847, 0x8863, 0x8864, 0x888e, 0x88e5, 0x8035, 0x0842,
    0x88b5, 0x22f0, 0x0026, 0x05dc, 0x0000, 0xffff, 0x0801,
];

/// What neither a member nor the uplink may send.
fn other_frames(from: Mac, own: Ipv4Addr) -> Vec<(String, Vec<u8>)> {
    let mut all = Vec::new();
    let inner = packet(mac(2), from, (own, FREE), 253, 0, &[7; 40]);
    for ethertype in OTHER_TYPES {
        for to in [mac(2), BROADCAST, SPANNING_TREE, LLDP, ALL_IPV6, MDNS] {
            let body = [&[0, 0, 8, 0], &inner[ETHERNET..]].concat();
            let what = format!("{ethertype:#06x} to {to:x?}");
            all.push((what, frame(to, from, ethertype, &body)));
        }
    }
    let advertisement = frame(ALL_IPV6, from, 0x86dd, &router_advertisement());
    all.push(("a router advertisement".to_owned(), advertisement));
    for to in [
        SPANNING_TREE,
        LLDP,
        ALL_IPV6,
        [0x01, 0x00, 0x5e, 0x80, 0, 1],
    ] {
        let what = format!("IPv4 to {to:x?}");
        all.push((what, packet(to, from, (own, FREE), 253, 0, &[7; 40])));
        let what = format!("ARP to {to:x?}");
        let body = arp_body(Arp::REQUEST, (from, own), FREE);
        all.push((what, frame(to, from, TYPE_ARP, &body)));
    }
    // The hardware address of another, of the gateway, of nobody and of a group.
    for source in [mac(2), GATEWAY_MAC, [0; 6], [3, 0, 0, 0, 0, 1]] {
        let what = format!("from {source:x?}");
        all.push((what, packet(BROADCAST, source, (own, FREE), 253, 0, b"x")));
    }
    let claim = |what: &str, operation, sender_mac, ip| {
        let body = arp_body(operation, (sender_mac, ip), FREE);
        let what = format!("ARP {operation} of {what}");
        (what, frame(BROADCAST, from, TYPE_ARP, &body))
    };
    for operation in [3, 4, 8, 9, 0, 0xffff] {
        all.push(claim("its own", operation, from, own));
    }
    all.push(claim("another's hardware address", Arp::REPLY, mac(9), own));
    all.push(claim("nothing", Arp::REPLY, from, Ipv4Addr::UNSPECIFIED));
    let mut short = arp(Arp::REQUEST, (from, own), FREE);
    short.truncate(ETHERNET + 20);
    all.push(("half of ARP".to_owned(), short));
    let mut token_ring = arp(Arp::REQUEST, (from, own), FREE);
    token_ring[ETHERNET + 1] = 6;
    all.push(("ARP of other hardware".to_owned(), token_ring));
    let foreign = [Ipv4Addr::new(192, 0, 2, 1), Ipv4Addr::new(169, 254, 1, 1)];
    let gateway = Subnet::default().gateway();
    for ip in [gateway, STOPPED].into_iter().chain(foreign) {
        for operation in [Arp::REQUEST, Arp::REPLY] {
            all.push(claim(&ip.to_string(), operation, from, ip));
        }
    }
    let mut ip = |what: &str, source, protocol, fragment, payload: &[u8]| {
        let bytes = packet(BROADCAST, from, (source, FREE), protocol, fragment, payload);
        all.push((what.to_owned(), bytes));
    };
    for source in [gateway, STOPPED, Ipv4Addr::UNSPECIFIED] {
        ip(&format!("IPv4 from {source}"), source, 253, 0, b"x");
    }
    ip("a DHCP server", own, PROTO_UDP, 0, &udp(67, 68));
    ip("a DHCP server's port", own, PROTO_UDP, 0, &udp(67, 9));
    ip("a DHCP client's port", own, PROTO_UDP, 0, &udp(1067, 68));
    let more = MORE_FRAGMENTS;
    ip(
        "a DHCP server in fragments",
        own,
        PROTO_UDP,
        more,
        &udp(67, 68),
    );
    ip(
        "a datagram without ports",
        own,
        PROTO_UDP,
        more,
        &[0, 67, 0, 68],
    );
    ip("a redirect", own, PROTO_ICMP, 0, &[5, 1, 0, 0, 1, 2, 3, 4]);
    ip("a router", own, PROTO_ICMP, 0, &[9, 0, 0, 0, 1, 2, 3, 4]);
    all
}

#[test]
fn what_the_network_does_not_need_does_not_leave_a_member() {
    let setup = setup();
    let own = setup.evil.1;
    let mut frames = other_frames(mac(1), own);
    let subnet = Subnet::default();
    for taken in [ROUTER, setup.web.1] {
        for operation in [Arp::REQUEST, Arp::REPLY] {
            let what = format!("ARP {operation} of {taken}");
            frames.push((what, arp(operation, (mac(1), taken), taken)));
        }
    }
    for source in [
        ROUTER,
        setup.web.1,
        WORLD,
        Ipv4Addr::LOCALHOST,
        Ipv4Addr::BROADCAST,
        Ipv4Addr::new(224, 0, 0, 1),
        Ipv4Addr::new(169, 254, 0, 9),
        subnet.network(),
        subnet.broadcast(),
    ] {
        for to in [mac(2), ROUTER_MAC, BROADCAST] {
            let what = format!("IPv4 from {source} to {to:x?}");
            frames.push((what, packet(to, mac(1), (source, WORLD), 253, 0, b"x")));
        }
    }
    setup.assert_dropped("evil", &frames);
}

#[test]
fn what_the_network_does_not_need_does_not_enter_by_the_uplink() {
    let setup = setup();
    let mut frames = other_frames(ROUTER_MAC, ROUTER);
    for taken in [setup.evil.1, setup.web.1] {
        let what = format!("ARP of {taken}");
        frames.push((what, arp(Arp::REPLY, (ROUTER_MAC, taken), taken)));
        let what = format!("IPv4 from {taken}");
        frames.push((
            what,
            packet(mac(2), ROUTER_MAC, (taken, FREE), 253, 0, b"x"),
        ));
    }
    // A DHCP client there.
    let addresses = (Ipv4Addr::UNSPECIFIED, Ipv4Addr::BROADCAST);
    let question = packet(BROADCAST, ROUTER_MAC, addresses, PROTO_UDP, 0, &udp(68, 67));
    frames.push(("a DHCP client".to_owned(), question));
    setup.assert_dropped("uplink", &frames);
}

#[test]
fn what_members_need_passes() {
    let setup = setup();
    let own = setup.evil.1;
    let mut frames = Vec::new();
    let mut add = |what: &str, bytes| frames.push((what.to_owned(), bytes));
    for (what, source) in [("its own", own), ("a floating address", FREE)] {
        add(what, packet(mac(2), mac(1), (source, WORLD), 253, 0, b"x"));
        add(
            what,
            packet(
                MDNS,
                mac(1),
                (source, Ipv4Addr::new(224, 0, 0, 251)),
                17,
                0,
                &udp(5353, 5353),
            ),
        );
        add(
            what,
            packet(
                BROADCAST,
                mac(1),
                (source, Ipv4Addr::BROADCAST),
                17,
                0,
                &udp(9, 9),
            ),
        );
        for operation in [Arp::REQUEST, Arp::REPLY] {
            add(what, arp(operation, (mac(1), source), source));
        }
    }
    add(
        "ARP that asks whether an address is used",
        arp(Arp::REQUEST, (mac(1), Ipv4Addr::UNSPECIFIED), STOPPED),
    );
    for protocol in [1, 2, 4, 6, 41, 47, 50, 89, 112, 132] {
        add(
            &protocol.to_string(),
            packet(mac(2), mac(1), (own, setup.web.1), protocol, 0, &[0; 40]),
        );
    }
    let first = udp(1000, 2000);
    add(
        "a first fragment",
        packet(
            mac(2),
            mac(1),
            (own, setup.web.1),
            PROTO_UDP,
            MORE_FRAGMENTS,
            &first,
        ),
    );
    // Not ports, but what looks like them.
    add(
        "a later fragment",
        packet(
            mac(2),
            mac(1),
            (own, setup.web.1),
            PROTO_UDP,
            185,
            &udp(67, 68),
        ),
    );
    // Another hardware address, as of a container.
    add(
        "a second address",
        packet(mac(2), mac(77), (FREE, WORLD), 253, 0, b"x"),
    );
    setup.assert_passed("evil", &frames);
}

#[test]
fn what_the_uplink_brings_from_the_world_passes() {
    let setup = setup();
    let frames = [WORLD, ROUTER, FREE, Ipv4Addr::new(169, 254, 169, 254)].map(|source| {
        let bytes = packet(mac(2), ROUTER_MAC, (source, setup.web.1), 253, 0, b"x");
        (source.to_string(), bytes)
    });
    setup.assert_passed("uplink", &frames);
    let claims = [Arp::REQUEST, Arp::REPLY];
    let frames = claims.map(|operation| {
        let bytes = arp(operation, (ROUTER_MAC, ROUTER), setup.web.1);
        (operation.to_string(), bytes)
    });
    setup.assert_passed("uplink", &frames);
}

#[test]
fn an_address_is_free_again_when_its_name_is_gone() {
    let setup = setup();
    let claim = arp(Arp::REPLY, (mac(1), STOPPED), STOPPED);
    setup.assert_dropped("evil", &[("a stopped member's".to_owned(), claim.clone())]);
    setup.network.unregister_name("db").unwrap();
    setup.evil.0.send(&claim).unwrap();
    assert_eq!(setup.web.0.expect(|_| true), claim);
    // Nor may its own member be kept from it.
    setup.network.register_name("Evil", setup.evil.1).unwrap();
    let own = arp(Arp::REPLY, (mac(1), setup.evil.1), setup.evil.1);
    setup.evil.0.send(&own).unwrap();
    assert_eq!(setup.web.0.expect(|_| true), own);
}

#[test]
fn nothing_passes_the_uplink_to_where_guests_must_not_get() {
    let mut config = config();
    config.router = Some(ROUTER);
    config.refuse = vec!["203.0.113.0/24".parse().unwrap()];
    // What is mapped is reached in spite of the list.
    let opened = Ipv4Addr::new(100, 100, 100, 200);
    config.host_map.insert(opened, opened.into());
    let network = Network::start(config).unwrap();
    let (tap, host) = new_link().unwrap();
    network.uplink(tap, ROUTER_MAC, ROUTER).unwrap();
    let host = Wire::bare(host);
    let attachment = attach(&network, "web", 1);
    let (web, ip) = (Wire::new(attachment.link), attachment.ip);
    for address in [
        [169, 254, 169, 254],
        [168, 63, 129, 16],
        [192, 0, 0, 192],
        [203, 0, 113, 9],
        [127, 0, 0, 1],
        [0, 0, 0, 0],
        [240, 0, 0, 1],
    ] {
        let address = Ipv4Addr::from(address);
        let bytes = packet(
            ROUTER_MAC,
            mac(1),
            (ip, address),
            PROTO_UDP,
            0,
            &udp(1000, 80),
        );
        web.send(&bytes).unwrap();
        // The guest is told.
        let refusal = web.expect(|frame| frame.get(ETHERNET + 9) == Some(&PROTO_ICMP));
        let refusal = Ipv4::parse(&refusal[ETHERNET..]).unwrap().payload;
        assert_eq!(refusal[..2], [3, 13], "prohibited");
        assert_eq!(refusal[8 + 16..8 + 20], address.octets());
        assert_eq!(fold(sum(refusal)), [0, 0]);
    }
    for address in [WORLD, opened, Ipv4Addr::new(203, 0, 114, 9)] {
        let bytes = packet(
            ROUTER_MAC,
            mac(1),
            (ip, address),
            PROTO_UDP,
            0,
            &udp(1000, 80),
        );
        web.send(&bytes).unwrap();
        assert_eq!(host.expect(|_| true), bytes, "{address}");
    }
}

#[test]
fn the_gateway_is_no_router_where_another_is() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let datagrams = UdpSocket::bind("127.0.0.1:0").unwrap();
    let (tcp, udp_port) = (
        listener.local_addr().unwrap().port(),
        datagrams.local_addr().unwrap().port(),
    );
    let Setup {
        network,
        evil: (wire, ip),
        ..
    } = &setup();
    let gateway = Subnet::default().gateway();
    let syn = |to: Ipv4Addr, port| {
        let mut segment = vec![0; TCP];
        let syn = Tcp {
            source: 4000,
            to: port,
            sequence: 1,
            acknowledgement: 0,
            flags: SYN,
            payload: 0,
        };
        syn.write(&mut segment, *ip, to);
        packet(GATEWAY_MAC, mac(1), (*ip, to), PROTO_TCP, 0, &segment)
    };
    wire.send(&syn(HOST, tcp)).unwrap();
    let to_host = packet(
        GATEWAY_MAC,
        mac(1),
        (*ip, HOST),
        PROTO_UDP,
        0,
        &udp(4000, udp_port),
    );
    wire.send(&to_host).unwrap();
    let echo = packet(
        GATEWAY_MAC,
        mac(1),
        (*ip, HOST),
        PROTO_ICMP,
        0,
        &[8, 0, 0, 0, 0, 1, 0, 1],
    );
    wire.send(&echo).unwrap();
    // The gateway's own ports are still refused, and its DNS is still there.
    wire.send(&syn(gateway, tcp)).unwrap();
    let flags = |frame: &[u8]| Tcp::parse(&frame[ETHERNET + IPV4..]).unwrap().flags;
    let is_tcp = |frame: &[u8]| frame.get(ETHERNET + 9) == Some(&PROTO_TCP);
    let first = wire.expect(|_| true);
    assert!(is_tcp(&first) && flags(&first) & RST != 0, "{first:x?}");
    wire.send(&syn(gateway, 53)).unwrap();
    assert_eq!(flags(&wire.expect(is_tcp)) & (SYN | RST), SYN);
    let status = network.status().unwrap();
    assert_eq!((status.tcp_opened, status.udp_flows), (1, 0));
    listener.set_nonblocking(true).unwrap();
    assert!(listener.accept().is_err());
    datagrams.set_nonblocking(true).unwrap();
    assert!(datagrams.recv(&mut [0; 64]).is_err());
}
