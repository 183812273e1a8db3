//! What the switch passes. A frame passes if [`RULES`] has a line for it and the line's checks hold.
//! Every other frame is dropped: IPv6, VLAN tags, LLDP, spanning tree and whatever else a guest can
//! send that the network does not need. docs/networking.md has the same table, and a test compares
//! both.

use std::net::Ipv4Addr;

use crate::config::NetworkConfig;
use crate::dhcp::{CLIENT_PORT, SERVER_PORT};
use crate::frame::{
    self, Arp, BROADCAST, ETHERNET, GATEWAY_MAC, Ipv4, Mac, PROTO_ICMP, PROTO_UDP, TYPE_ARP,
    TYPE_IPV4, UDP, be16,
};
use crate::members::Members;
use crate::port::Port;
use crate::reach::may_leave;

/// An end of the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    Member,
    Uplink,
    Gateway,
}

impl End {
    pub(crate) fn of(port: &Port) -> Self {
        if port.uplink {
            Self::Uplink
        } else {
            Self::Member
        }
    }
}

/// A kind of frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Arp,
    /// A question to a DHCP server.
    Dhcp,
    /// All other IPv4.
    Ipv4,
}

/// What must be true of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Check {
    /// ARP's sender is the frame's sender.
    SameSender,
    /// ARP's sender has its own IP address, or a free one; or it is a question without a sender
    /// (RFC 5227).
    ClaimsOwn,
    /// The source is the sender's own IP address, or a free one of the network.
    Own,
    /// The source is the sender's own IP address, or unset.
    OwnOrUnset,
    /// The source is no IP address that a member, the gateway or a registered name has.
    NotTaken,
    /// It is no message of a DHCP server, and no ICMP message of a router about routes.
    NoService,
    /// The destination is in the network, or one that guests may reach.
    Reachable,
}

/// One line of the table.
struct Rule {
    from: End,
    kind: Kind,
    to: &'static [End],
    checks: &'static [Check],
}

/// All that passes.
const RULES: [Rule; 5] = [
    Rule {
        from: End::Member,
        kind: Kind::Arp,
        to: &[End::Member, End::Uplink, End::Gateway],
        checks: &[Check::SameSender, Check::ClaimsOwn],
    },
    Rule {
        from: End::Member,
        kind: Kind::Dhcp,
        to: &[End::Gateway],
        checks: &[Check::OwnOrUnset, Check::NoService],
    },
    Rule {
        from: End::Member,
        kind: Kind::Ipv4,
        to: &[End::Member, End::Uplink, End::Gateway],
        checks: &[Check::Own, Check::NoService, Check::Reachable],
    },
    Rule {
        from: End::Uplink,
        kind: Kind::Arp,
        to: &[End::Member, End::Gateway],
        checks: &[Check::SameSender, Check::ClaimsOwn],
    },
    Rule {
        from: End::Uplink,
        kind: Kind::Ipv4,
        to: &[End::Member, End::Gateway],
        checks: &[Check::NotTaken, Check::NoService],
    },
];

/// A frame's content, parsed.
#[derive(Debug)]
pub(crate) enum Content<'a> {
    Arp(Arp),
    Ip(Ipv4<'a>),
}

/// A frame that passes.
#[derive(Debug)]
pub(crate) struct Admitted<'a> {
    pub(crate) to: Mac,
    pub(crate) from: Mac,
    pub(crate) content: Content<'a>,
    ends: &'static [End],
}

impl Admitted<'_> {
    /// True if it may go to such an end.
    pub(crate) fn may_go_to(&self, end: End) -> bool {
        self.ends.contains(&end)
    }
}

/// Why a frame does not pass.
#[derive(Debug)]
pub(crate) enum Refusal<'a> {
    /// It is malformed, forged, or of a kind that nothing needs.
    Dropped,
    /// A packet to an address that guests must not reach. The sender may be told so.
    OutOfReach(Mac, Ipv4<'a>),
}

/// Decides about a frame that `port` sends.
pub(crate) fn admit<'a>(
    config: &NetworkConfig,
    members: &Members,
    port: &Port,
    frame: &'a [u8],
) -> Result<Admitted<'a>, Refusal<'a>> {
    let (to, from, content, kind) = parse(frame).ok_or(Refusal::Dropped)?;
    let sender = End::of(port);
    let mut rules = RULES.iter();
    let rule = rules
        .find(|rule| rule.from == sender && rule.kind == kind)
        .ok_or(Refusal::Dropped)?;
    for check in rule.checks {
        if !check.holds(config, members, port, to, from, &content) {
            return Err(match content {
                Content::Ip(packet) if *check == Check::Reachable => {
                    Refusal::OutOfReach(from, packet)
                }
                _ => Refusal::Dropped,
            });
        }
    }
    // Last, because it is remembered.
    members.learn(port, from).ok_or(Refusal::Dropped)?;
    Ok(Admitted {
        to,
        from,
        content,
        ends: rule.to,
    })
}

/// The addresses and the content of a frame, if it has a form that any rule takes.
fn parse(frame: &[u8]) -> Option<(Mac, Mac, Content<'_>, Kind)> {
    let to = frame::mac_at(frame, 0)?;
    let from = frame::mac_at(frame, 6)?;
    if from[0] & 1 != 0 || from == GATEWAY_MAC || from == [0; 6] {
        return None;
    }
    let body = frame.get(ETHERNET..)?;
    let group = to[0] & 1 != 0;
    match be16(frame, 12)? {
        TYPE_ARP if !group || to == BROADCAST => {
            let arp = Arp::parse(body)?;
            Some((to, from, Content::Arp(arp), Kind::Arp))
        }
        TYPE_IPV4 if !group || to == BROADCAST || is_ipv4_group(to) => {
            let packet = Ipv4::parse(body)?;
            // The ports are in the first fragment, whole.
            let udp = packet.protocol == PROTO_UDP && packet.offset == 0;
            if udp && packet.payload.len() < UDP {
                return None;
            }
            let dhcp = udp && be16(packet.payload, 2) == Some(SERVER_PORT);
            let kind = if dhcp { Kind::Dhcp } else { Kind::Ipv4 };
            Some((to, from, Content::Ip(packet), kind))
        }
        _ => None,
    }
}

/// True for the hardware address of an IPv4 multicast group (RFC 1112, 6.4).
fn is_ipv4_group(mac: Mac) -> bool {
    mac[0] == 1 && mac[1] == 0 && mac[2] == 0x5e && mac[3] & 0x80 == 0
}

impl Check {
    fn holds(
        self,
        config: &NetworkConfig,
        members: &Members,
        port: &Port,
        to: Mac,
        from: Mac,
        content: &Content<'_>,
    ) -> bool {
        let own_or_free = |ip: Ipv4Addr| members.is_own(port, ip) || members.is_free(ip);
        match (self, content) {
            (Self::SameSender, Content::Arp(arp)) => arp.sender_mac == from,
            (Self::ClaimsOwn, Content::Arp(arp)) => match arp.operation {
                Arp::REQUEST => arp.sender_ip.is_unspecified() || own_or_free(arp.sender_ip),
                Arp::REPLY => own_or_free(arp.sender_ip),
                _ => false,
            },
            (Self::Own, Content::Ip(packet)) => own_or_free(packet.source),
            (Self::OwnOrUnset, Content::Ip(packet)) => {
                packet.source.is_unspecified() || members.is_own(port, packet.source)
            }
            (Self::NotTaken, Content::Ip(packet)) => {
                members.is_own(port, packet.source)
                    || !(members.is_taken(packet.source) || packet.source.is_unspecified())
            }
            (Self::NoService, Content::Ip(packet)) => is_no_service(packet),
            (Self::Reachable, Content::Ip(packet)) => {
                // What is for the gateway it refuses itself, as each protocol does.
                to[0] & 1 != 0
                    || to == GATEWAY_MAC
                    || config.subnet.contains(packet.to)
                    || may_leave(config, packet.to)
            }
            _ => false,
        }
    }
}

/// Only the gateway assigns addresses and announces routes.
fn is_no_service(packet: &Ipv4<'_>) -> bool {
    if packet.offset != 0 {
        return true;
    }
    match packet.protocol {
        PROTO_UDP => {
            be16(packet.payload, 0) != Some(SERVER_PORT)
                && be16(packet.payload, 2) != Some(CLIENT_PORT)
        }
        // Redirects (RFC 792), and routers' announcements (RFC 1256).
        PROTO_ICMP => !matches!(packet.payload.first(), Some(5 | 9)),
        _ => true,
    }
}

#[cfg(test)]
#[path = "policy_test.rs"]
mod tests;
