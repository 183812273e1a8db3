//! Addresses that guests must not reach, with listeners at each of them.

use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};

use super::guest::{HOST, PATIENCE, Wire, attach, config, mac};
use super::namespace::{add_address, in_namespace};
use crate::frame::{
    self, ETHERNET, GATEWAY_MAC, IPV4, Ipv4, Ipv4Header, Mac, PROTO_ICMP, PROTO_TCP, PROTO_UDP,
    RST, SYN, TCP, Tcp, UDP, Udp,
};
use crate::{Network, Subnet};

const FROM: Mac = [2, 0, 0, 0, 0, 1];

fn packet(addresses: (Ipv4Addr, Ipv4Addr), protocol: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![0; ETHERNET + IPV4];
    frame.extend(payload);
    frame::ethernet(&mut frame, GATEWAY_MAC, FROM, frame::TYPE_IPV4);
    let total = frame.len() - ETHERNET;
    Ipv4Header::new(addresses.0, addresses.1, protocol).write(&mut frame[ETHERNET..], total);
    frame
}

/// Opens a connection from a port of the guest, and returns the flags of the answer.
fn answer_to_syn(wire: &Wire, addresses: (Ipv4Addr, Ipv4Addr), port: u16) -> u8 {
    let mut payload = [0; TCP];
    let syn = Tcp {
        source: 4000,
        to: port,
        sequence: 1,
        acknowledgement: 0,
        flags: SYN,
        payload: 0,
    };
    syn.write(&mut payload, addresses.0, addresses.1);
    wire.send(&packet(addresses, PROTO_TCP, &payload)).unwrap();
    let is_answer = |frame: &[u8]| {
        let packet = Ipv4::parse(frame.get(ETHERNET..).unwrap_or_default());
        packet.is_some_and(|packet| packet.protocol == PROTO_TCP && packet.source == addresses.1)
    };
    let frame = wire.expect(is_answer);
    let segment = Tcp::parse(&frame[ETHERNET + IPV4..]).unwrap();
    segment.flags
}

fn send_datagram(wire: &Wire, addresses: (Ipv4Addr, Ipv4Addr), port: u16, payload: &[u8]) {
    let mut datagram = vec![0; UDP + payload.len()];
    let udp = Udp {
        source: 4000,
        to: port,
        payload,
    };
    udp.write(&mut datagram, addresses.0, addresses.1);
    wire.send(&packet(addresses, PROTO_UDP, &datagram)).unwrap();
}

/// Checks that a guest is refused at all of `addresses`, and that their listeners see nothing of it.
fn assert_out_of_reach(addresses: &[Ipv4Addr]) {
    let listener = TcpListener::bind("0.0.0.0:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let datagrams = UdpSocket::bind("0.0.0.0:0").unwrap();
    datagrams.set_read_timeout(Some(PATIENCE)).unwrap();
    let udp_port = datagrams.local_addr().unwrap().port();
    let network = Network::start(config()).unwrap();
    let attachment = attach(&network, "web", 1);
    assert_eq!(mac(1), FROM);
    let (wire, ip) = (Wire::new(attachment.link), attachment.ip);
    for address in addresses {
        // The host itself reaches the listener there.
        let own = TcpStream::connect((*address, port)).unwrap();
        let (accepted, peer) = listener.accept().unwrap();
        assert_eq!(peer, own.local_addr().unwrap());
        drop((own, accepted));

        let flags = answer_to_syn(&wire, (ip, *address), port);
        assert!(flags & RST != 0, "a connection to {address} is not refused");
        send_datagram(&wire, (ip, *address), udp_port, b"refused");
        let refusal = wire.expect(|frame| frame.get(ETHERNET + 9) == Some(&PROTO_ICMP));
        let refusal = Ipv4::parse(&refusal[ETHERNET..]).unwrap().payload;
        assert_eq!(refusal[..2], [3, 3], "port unreachable");
        assert_eq!(refusal[8 + 16..8 + 20], address.octets());
    }
    // What the listeners see first is what comes now.
    let flags = answer_to_syn(&wire, (ip, HOST), port);
    assert_eq!(flags & RST, 0);
    listener.accept().unwrap();
    listener.set_nonblocking(true).unwrap();
    assert!(listener.accept().is_err(), "one connection has been made");
    send_datagram(&wire, (ip, HOST), udp_port, b"allowed");
    let mut buffer = [0; 64];
    let len = datagrams.recv(&mut buffer).unwrap();
    assert_eq!(buffer[..len], *b"allowed");
    let status = network.status().unwrap();
    assert_eq!(status.tcp_refused, addresses.len() as u64);
    assert_eq!((status.tcp_opened, status.udp_flows), (1, 1));
}

#[test]
fn loopback_is_out_of_reach() {
    assert_out_of_reach(&[
        Ipv4Addr::LOCALHOST,
        Ipv4Addr::new(127, 0, 0, 2),
        Ipv4Addr::new(127, 255, 255, 254),
        // Another name of it, for Linux.
        Ipv4Addr::UNSPECIFIED,
    ]);
}

#[test]
fn link_local_addresses_are_out_of_reach() {
    in_namespace("reach::link_local_addresses_are_out_of_reach", || {
        // Where clouds serve credentials.
        let metadata = Ipv4Addr::new(169, 254, 169, 254);
        let other = Ipv4Addr::new(169, 254, 0, 1);
        add_address(1, metadata);
        add_address(2, other);
        assert_out_of_reach(&[metadata, other]);
    });
}

#[test]
fn the_gateway_leads_nowhere_on_the_host() {
    in_namespace("reach::the_gateway_leads_nowhere_on_the_host", || {
        // A host that has the gateway's address, too, in a network of its own.
        let gateway = Subnet::default().gateway();
        add_address(1, gateway);
        assert_out_of_reach(&[gateway]);
    });
}
