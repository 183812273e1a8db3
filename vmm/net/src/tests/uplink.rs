//! The uplink, with a socket in place of the tap, and its other end in place of the host.

use std::net::Ipv4Addr;

use super::guest::{Wire, attach, config, mac, note, text};
use crate::frame::{self, Arp, ETHERNET, IPV4, Ipv4Header, PROTO_UDP, TYPE_ARP, TYPE_IPV4};
use crate::port::new_link;
use crate::{Attachment, LinkEnd, Network, NetworkError, Subnet};

const ROUTER: Ipv4Addr = Ipv4Addr::new(10, 187, 41, 254);
const ROUTER_MAC: [u8; 6] = [2, 0, 0, 0, 1, 254];

fn start() -> (Network, Wire) {
    let network = Network::start(config()).unwrap();
    let (tap, host) = new_link().unwrap();
    network.uplink(tap, ROUTER_MAC, ROUTER).unwrap();
    (network, Wire::bare(host))
}

fn wire(attachment: Attachment) -> (Wire, Ipv4Addr) {
    (Wire::new(attachment.link), attachment.ip)
}

fn marked(to: [u8; 6], from: [u8; 6], number: u8) -> Vec<u8> {
    note(to, from, &[number])
}

/// The number of the next marked frame.
fn next(wire: &Wire) -> u8 {
    let frame = wire.expect(|frame| text(frame).is_some());
    text(&frame).unwrap()[0]
}

fn arp(operation: u16, from: ([u8; 6], Ipv4Addr), target: Ipv4Addr) -> Vec<u8> {
    let mut frame = vec![0; ETHERNET + Arp::LEN];
    frame::ethernet(&mut frame, frame::BROADCAST, from.0, TYPE_ARP);
    let message = Arp {
        operation,
        sender_mac: from.0,
        sender_ip: from.1,
        target_mac: [0; 6],
        target_ip: target,
    };
    message.write(&mut frame[ETHERNET..]);
    frame
}

fn packet(to: [u8; 6], from: [u8; 6], addresses: (Ipv4Addr, Ipv4Addr), payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![0; ETHERNET + IPV4];
    frame.extend_from_slice(payload);
    frame::ethernet(&mut frame, to, from, TYPE_IPV4);
    let total = frame.len() - ETHERNET;
    Ipv4Header::new(addresses.0, addresses.1, PROTO_UDP).write(&mut frame[ETHERNET..], total);
    frame
}

#[test]
fn members_and_what_is_behind_the_uplink_reach_each_other() {
    let (network, host) = start();
    let (web, web_ip) = wire(attach(&network, "web", 1));
    let (db, _) = wire(attach(&network, "db", 2));

    web.send(&marked(ROUTER_MAC, mac(1), 1)).unwrap();
    assert_eq!(next(&host), 1);
    host.send(&marked(mac(1), ROUTER_MAC, 2)).unwrap();
    assert_eq!(next(&web), 2);
    // What is for all goes everywhere, and what is for a member only there.
    web.send(&marked(frame::BROADCAST, mac(1), 3)).unwrap();
    assert_eq!((next(&host), next(&db)), (3, 3));
    web.send(&marked(mac(2), mac(1), 4)).unwrap();
    web.send(&marked(ROUTER_MAC, mac(1), 5)).unwrap();
    assert_eq!((next(&db), next(&host)), (4, 5));

    // Another machine behind the tap, with packets of any source.
    let other = [2, 0, 0, 0, 2, 1];
    let world = Ipv4Addr::new(198, 51, 100, 2);
    host.send(&packet(mac(1), other, (world, web_ip), &[0; 8]))
        .unwrap();
    web.expect(|frame| frame[6..12] == other);
    web.send(&marked(other, mac(1), 6)).unwrap();
    assert_eq!(next(&host), 6);

    // The gateway answers the host, too.
    host.send(&arp(
        Arp::REQUEST,
        (ROUTER_MAC, ROUTER),
        Subnet::default().gateway(),
    ))
    .unwrap();
    host.expect(|frame| frame[12..14] == TYPE_ARP.to_be_bytes() && frame[20..22] == [0, 2]);
}

#[test]
fn the_routers_and_members_addresses_cannot_be_taken() {
    let (network, host) = start();
    let (web, web_ip) = wire(attach(&network, "web", 1));
    let (db, _) = wire(attach(&network, "db", 2));

    // A member as the router, by its hardware address and by ARP.
    web.send(&marked(frame::BROADCAST, ROUTER_MAC, 1)).unwrap();
    web.send(&arp(Arp::REPLY, (mac(1), ROUTER), ROUTER))
        .unwrap();
    // The host as a member.
    host.send(&marked(frame::BROADCAST, mac(1), 1)).unwrap();
    host.send(&arp(Arp::REPLY, (ROUTER_MAC, web_ip), web_ip))
        .unwrap();
    // Address assignment from beyond the uplink.
    let mut offer = vec![0; 8];
    offer[..4].copy_from_slice(&[0, 67, 0, 68]);
    let addresses = (ROUTER, Ipv4Addr::BROADCAST);
    host.send(&packet(frame::BROADCAST, ROUTER_MAC, addresses, &offer))
        .unwrap();
    for wire in [&web, &host] {
        let from = if std::ptr::eq(wire, &raw const web) {
            mac(1)
        } else {
            ROUTER_MAC
        };
        wire.send(&marked(mac(2), from, 9)).unwrap();
        // The first that arrives of this end.
        let first = db.expect(|_| true);
        assert_eq!(first, marked(mac(2), from, 9));
    }
    let refused = |name: &str| {
        let status = network.status().unwrap();
        status
            .ports
            .iter()
            .find(|port| port.name == name)
            .unwrap()
            .refused
    };
    assert_eq!((refused("web"), refused("uplink")), (2, 3));
}

#[test]
fn the_uplink_is_no_member() {
    let (network, _host) = start();
    let taken = |result| matches!(result, Err(NetworkError::Taken { .. }));
    let (tap, _other) = new_link().unwrap();
    let second = Ipv4Addr::new(10, 187, 41, 253);
    assert!(taken(network.uplink(tap, [2, 0, 0, 0, 1, 253], second)));
    let member = |name: &str, ip| {
        let name = name.to_owned();
        let port = crate::Member {
            name,
            mac: mac(1),
            ip,
        };
        network.attach(port).map(drop)
    };
    assert!(taken(member("web", Some(ROUTER))));
    // It has no name, and does not count as a member.
    assert!(network.partition(&["uplink"], &["uplink"]).is_err());
    member("uplink", None).unwrap();
    network.detach("uplink").unwrap();
    assert!(network.forward(ROUTER.into(), 22).is_err());
}

#[test]
fn faults_of_the_gateways_links_are_those_of_the_uplink() {
    let (network, host) = start();
    let (web, _) = wire(attach(&network, "web", 1));
    let (db, _) = wire(attach(&network, "db", 2));
    network.partition(&["web"], &[LinkEnd::Gateway]).unwrap();
    web.send(&marked(frame::BROADCAST, mac(1), 1)).unwrap();
    assert_eq!(next(&db), 1);
    db.send(&marked(ROUTER_MAC, mac(2), 2)).unwrap();
    assert_eq!(next(&host), 2);
    network.heal().unwrap();
    web.send(&marked(ROUTER_MAC, mac(1), 3)).unwrap();
    assert_eq!(next(&host), 3);
}
