//! The gateway: handles packets for itself, and packets to the outside unless another router does.

use std::net::Ipv4Addr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use fleetbox_packet::checksum::{fold, sum};

use crate::config::NetworkConfig;
use crate::dhcp;
use crate::dns::{DNS_PORT, Dns};
use crate::fragments::Fragments;
use crate::frame::{
    Arp, BROADCAST, GATEWAY_MAC, Ipv4, Mac, PROTO_ICMP, PROTO_TCP, PROTO_UDP, Udp, Unreachable, put,
};
use crate::members::Members;
use crate::output::Output;
use crate::port::Port;
use crate::tcp::TcpFlows;
use crate::udp::UdpFlows;

/// The gateway of a network.
#[derive(Debug)]
pub(crate) struct Gateway {
    config: Arc<NetworkConfig>,
    output: Rc<Output>,
    fragments: Fragments,
    pub(crate) tcp: Rc<TcpFlows>,
    pub(crate) udp: Rc<UdpFlows>,
    pub(crate) dns: Rc<Dns>,
}

impl Gateway {
    pub(crate) fn new(config: Arc<NetworkConfig>, members: Rc<Members>) -> Self {
        let output = Rc::new(Output::new(config.subnet));
        let dns = Dns::new(config.clone(), members.clone(), output.clone());
        let dns = Rc::new(dns);
        let tcp = TcpFlows::new(config.clone(), members, output.clone(), dns.clone());
        Self {
            tcp: Rc::new(tcp),
            udp: Rc::new(UdpFlows::new(config.clone(), output.clone())),
            dns,
            output,
            fragments: Fragments::default(),
            config,
        }
    }

    /// Ends all flows of a member.
    pub(crate) fn end_port(&self, port: &Port) {
        self.tcp.table().end_port(port.id);
        self.udp.end_port(port.id);
        self.fragments.forget(port.id);
    }

    /// Tells the sender that its packet is to an address that guests must not reach.
    pub(crate) fn refuse(&self, port: &Port, from: Mac, packet: &Ipv4<'_>) {
        if packet.protocol != PROTO_ICMP && packet.offset == 0 && !port.uplink {
            let code = Unreachable::Prohibited;
            self.output
                .send_unreachable(port, from, code, packet.packet);
        }
    }

    /// Answers a request for the gateway's hardware address.
    pub(crate) fn answer_arp(&self, port: &Port, request: &Arp) {
        let reply = Arp {
            operation: Arp::REPLY,
            sender_mac: GATEWAY_MAC,
            sender_ip: request.target_ip,
            target_mac: request.sender_mac,
            target_ip: request.sender_ip,
        };
        self.output.send_arp(port, request.sender_mac, &reply);
    }

    /// Handles a packet for the gateway, or to the outside.
    pub(crate) fn input(&self, port: &Rc<Port>, from: Mac, packet: &Ipv4<'_>) {
        let subnet = self.config.subnet;
        let gateway = subnet.gateway();
        let to_all = packet.to == Ipv4Addr::BROADCAST || packet.to == subnet.broadcast();
        if !to_all && packet.to != gateway && self.config.router.is_some() {
            // Another router leads to the outside. What went through the sockets of this process
            // would pass by its rules.
            return;
        }
        if packet.fragment {
            if let Some(whole) = self.fragments.add(port.id, packet, Instant::now())
                && let Some(whole) = Ipv4::parse(&whole)
            {
                self.input(port, from, &whole);
            }
            return;
        }
        if to_all || packet.to == gateway {
            if packet.protocol == PROTO_UDP
                && let Some(udp) = Udp::parse(packet.payload)
                && udp.to == dhcp::SERVER_PORT
            {
                self.answer_dhcp(port, udp.payload);
                return;
            }
            if to_all {
                return;
            }
        } else if subnet.contains(packet.to) || !subnet.contains(packet.source) {
            // Members are reached directly, and only they use the gateway.
            return;
        } else if packet.to.is_multicast() {
            // The gateway passes no multicast on, and must not answer with an error (RFC 1122, 3.2.2).
            return;
        }
        if packet.ttl <= 1 && packet.to != gateway {
            return;
        }
        match packet.protocol {
            PROTO_TCP => self.tcp.input(port, from, packet),
            PROTO_UDP => self.udp_input(port, from, packet),
            PROTO_ICMP if packet.to == gateway => self.answer_echo(port, from, packet),
            PROTO_ICMP => self.udp.input_echo(port, from, packet),
            _ => {}
        }
    }

    fn answer_dhcp(&self, port: &Port, message: &[u8]) {
        if port.uplink {
            return;
        }
        let client = dhcp::Client {
            name: &port.name,
            mac: port.mac,
            ip: port.ip,
        };
        let Some(reply) = dhcp::answer(&self.config, client, message) else {
            return;
        };
        let udp = Udp {
            source: dhcp::SERVER_PORT,
            to: dhcp::CLIENT_PORT,
            payload: &reply.message,
        };
        let mac = if reply.to == Ipv4Addr::BROADCAST {
            BROADCAST
        } else {
            port.mac
        };
        self.output
            .send_udp(port, mac, self.config.subnet.gateway(), reply.to, &udp);
    }

    fn answer_echo(&self, port: &Port, from: Mac, packet: &Ipv4<'_>) {
        if packet.payload.first() != Some(&8) || packet.payload.len() < 8 {
            return;
        }
        let mut reply = packet.payload.to_vec();
        put(&mut reply, 0, &[0, 0, 0, 0]);
        let checksum = fold(sum(&reply));
        put(&mut reply, 2, &checksum);
        self.output
            .send_ip(port, from, packet.to, packet.source, PROTO_ICMP, &reply);
        port.flush();
    }

    fn udp_input(&self, port: &Rc<Port>, from: Mac, packet: &Ipv4<'_>) {
        let Some(udp) = Udp::parse(packet.payload) else {
            return;
        };
        if packet.to == self.config.subnet.gateway() && udp.to == DNS_PORT {
            self.dns.datagram(port, from, packet.source, &udp);
        } else {
            self.udp.input(port, from, packet, &udp);
        }
    }
}
