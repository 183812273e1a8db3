//! Packets from the gateway to members.

use std::cell::Cell;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use crate::config::Subnet;
use crate::frame::{
    self, Arp, BROADCAST, ETHERNET, GATEWAY_MAC, IPV4, Ipv4, Ipv4Header, MTU, Mac, PROTO_ICMP,
    PROTO_TCP, PROTO_UDP, TCP, TYPE_ARP, TYPE_IPV4, Tcp, UDP, Udp, Unreachable, put,
};
use crate::port::Port;

/// Writes the gateway's packets.
#[derive(Debug)]
pub(crate) struct Output {
    gateway: Ipv4Addr,
    /// Identification of the next fragmented packet.
    packet_id: Cell<u16>,
}

impl Output {
    pub(crate) fn new(subnet: Subnet) -> Self {
        Self {
            gateway: subnet.gateway(),
            packet_id: Cell::new(rand::random()),
        }
    }

    pub(crate) fn send_arp(&self, port: &Port, to: Mac, arp: &Arp) {
        port.push_from_gateway(ETHERNET + Arp::LEN, |frame| {
            frame::ethernet(frame, to, GATEWAY_MAC, TYPE_ARP);
            if let Some(body) = frame.get_mut(ETHERNET..) {
                arp.write(body);
            }
        });
        port.flush();
    }

    /// Asks the guest whether it uses its address, unless that was done a moment ago.
    pub(crate) fn probe(&self, port: &Port) {
        let now = Instant::now();
        let recently = |at: Instant| now.duration_since(at) < Duration::from_millis(150);
        if port.asked.get().is_some_and(recently) {
            return;
        }
        port.asked.set(Some(now));
        let request = Arp {
            operation: Arp::REQUEST,
            sender_mac: GATEWAY_MAC,
            sender_ip: self.gateway,
            target_mac: [0; 6],
            target_ip: port.ip,
        };
        self.send_arp(port, BROADCAST, &request);
    }

    /// Answers a segment with a reset.
    pub(crate) fn send_reset(&self, port: &Port, from: Mac, packet: &Ipv4<'_>, segment: &Tcp) {
        let Some(reset) = segment.reset() else {
            return;
        };
        let mut bytes = [0; TCP];
        reset.write(&mut bytes, packet.to, packet.source);
        self.send_ip(port, from, packet.to, packet.source, PROTO_TCP, &bytes);
        port.flush();
    }

    /// Tells the guest that one of its packets could not be delivered.
    pub(crate) fn send_unreachable(
        &self,
        port: &Port,
        to: Mac,
        code: Unreachable,
        original: &[u8],
    ) {
        let Some(guest) = frame::ipv4_at(original, 12) else {
            return;
        };
        let message = frame::unreachable(code, original);
        let gateway = self.gateway;
        self.send_ip(port, to, gateway, guest, PROTO_ICMP, &message);
        port.flush();
    }

    /// Sends a datagram to the guest.
    pub(crate) fn send_udp(
        &self,
        port: &Port,
        mac: Mac,
        source: Ipv4Addr,
        to: Ipv4Addr,
        udp: &Udp<'_>,
    ) {
        let len = UDP + udp.payload.len();
        if len + IPV4 > usize::from(u16::MAX) {
            return;
        }
        let mut datagram = vec![0; len];
        udp.write(&mut datagram, source, to);
        self.send_ip(port, mac, source, to, PROTO_UDP, &datagram);
        port.flush();
    }

    /// Queues a packet for the guest, in fragments if it is too large for the link.
    pub(crate) fn send_ip(
        &self,
        port: &Port,
        mac: Mac,
        source: Ipv4Addr,
        to: Ipv4Addr,
        protocol: u8,
        payload: &[u8],
    ) {
        /// Payload of a fragment: a multiple of 8 (RFC 791).
        const PART: usize = (MTU - IPV4) / 8 * 8;
        let whole = payload.len() <= MTU - IPV4;
        let mut header = Ipv4Header::new(source, to, protocol);
        if !whole {
            header.id = self.packet_id.get();
            self.packet_id.set(header.id.wrapping_add(1));
        }
        let step = if whole { MTU } else { PART };
        for (index, part) in payload.chunks(step).enumerate() {
            if !whole {
                let offset = index * PART;
                let more = offset + part.len() < payload.len();
                header.fragment =
                    (offset / 8) as u16 | if more { frame::MORE_FRAGMENTS } else { 0 };
            }
            let total = IPV4 + part.len();
            let sent = port.push_from_gateway(ETHERNET + total, |frame| {
                frame::ethernet(frame, mac, GATEWAY_MAC, TYPE_IPV4);
                if let Some(packet) = frame.get_mut(ETHERNET..) {
                    header.write(packet, total);
                    put(packet, IPV4, part);
                }
            });
            if !sent {
                break;
            }
        }
    }
}
