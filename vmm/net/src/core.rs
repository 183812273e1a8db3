//! The switch: which frame goes to which member, to the gateway, or nowhere.
//!
//! Everything here runs on the network's own thread, so its state needs no locks.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::Ipv4Addr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fleetbox_packet::{HEADER, Packet};

use super::config::NetworkConfig;
use super::dhcp;
use super::dns::Dns;
use super::error::NetworkError;
use super::frame::{
    self, ACK, Arp, BROADCAST, ETHERNET, IPV4, Ipv4, Ipv4Header, MTU, Mac, PROTO_ICMP, PROTO_TCP,
    PROTO_UDP, SYN, TCP, TYPE_ARP, TYPE_C_TAG, TYPE_IPV4, TYPE_S_TAG, Tcp, UDP, Udp, Unreachable,
    VLAN_ID, be16, put,
};
use super::links::{LinkEnd, Links};
use super::pipe::{Arrival, Fate, GATEWAY};
use super::port::{Port, RECEIVE_BUFFER, count, is_gone};
use super::tcp::{TcpTable, Timer};
use super::udp::UdpTable;

/// The gateway's hardware address: locally administered, and never given to a guest.
pub(super) const GATEWAY_MAC: Mac = [0x02, 0xf1, 0xee, 0x7b, 0x0c, 0x01];

/// Packets read from one member before others have their turn, and their bytes.
const TURN: usize = 64;
const TURN_BYTES: usize = 512 << 10;
/// Frames that arrive from impaired links before others have their turn.
const ARRIVALS: usize = 256;
/// Learned hardware addresses of one member; frames to more are flooded, as by a switch whose table
/// is full.
const MAX_LEARNED: usize = 256;
/// How long a learned hardware address is good for.
const LEARNED_AGE: Duration = Duration::from_secs(300);

/// The state of the network's thread.
#[derive(Debug)]
pub(super) struct Core {
    pub(super) config: Arc<NetworkConfig>,
    pub(super) ports: RefCell<Vec<Rc<Port>>>,
    /// The addresses members were given, kept for when they come back.
    addresses: RefCell<HashMap<String, Ipv4Addr>>,
    /// Names that are answered whether or not a member has them now, in lower case.
    pub(super) names: RefCell<BTreeMap<String, Ipv4Addr>>,
    next_port: Cell<u32>,
    pub(super) tcp: TcpTable,
    pub(super) udp: UdpTable,
    pub(super) dns: Dns,
    pub(super) links: Rc<Links>,
    /// Where smoltcp's clock starts.
    pub(super) epoch: Instant,
    /// Identification of fragmented packets.
    packet_id: Cell<u16>,
}

/// What a frame has for the gateway.
#[derive(Debug)]
enum ForGateway<'a> {
    Arp(Arp),
    Ip(Ipv4<'a>),
}

/// A new member, checked as far as it can be without the others.
#[derive(Debug, Clone)]
pub(super) struct Joining {
    pub(super) name: String,
    pub(super) mac: Mac,
    pub(super) ip: Option<Ipv4Addr>,
    pub(super) uplink: bool,
}

impl Joining {
    /// Whether there cannot be both.
    fn replaces(&self, port: &Port) -> bool {
        if self.uplink {
            port.uplink
        } else {
            port.is_named(&self.name)
        }
    }
}

impl Core {
    pub(super) fn new(config: Arc<NetworkConfig>) -> Self {
        Self {
            dns: Dns::new(&config),
            config,
            ports: RefCell::default(),
            addresses: RefCell::default(),
            names: RefCell::default(),
            next_port: Cell::new(1),
            tcp: TcpTable::default(),
            udp: UdpTable::default(),
            links: Rc::default(),
            epoch: Instant::now(),
            packet_id: Cell::new(rand::random()),
        }
    }

    /// Adds a member and starts to serve its link.
    pub(super) fn attach(
        self: &Rc<Self>,
        joining: Joining,
        socket: std::os::fd::OwnedFd,
    ) -> Result<Ipv4Addr, NetworkError> {
        // A member whose machine has ended makes room for its successor.
        let ended: Vec<_> = self
            .ports
            .borrow()
            .iter()
            .filter(|port| joining.replaces(port) && !port.up.get())
            .cloned()
            .collect();
        for port in ended {
            self.remove(&port);
        }
        let limit = self.config.limits.ports;
        let members = self.ports.borrow();
        if !joining.uplink && members.iter().filter(|port| !port.uplink).count() >= limit {
            return Err(NetworkError::Full(limit));
        }
        drop(members);
        let taken = |what, value: String| Err(NetworkError::Taken { what, value });
        for port in self.ports.borrow().iter() {
            if joining.replaces(port) {
                return taken("name", joining.name);
            }
            if port.mac == joining.mac {
                return taken("MAC address", frame::show(joining.mac));
            }
            if Some(port.ip) == joining.ip {
                return taken("IP address", port.ip.to_string());
            }
        }
        let ip = self.address_for(&joining)?;
        let id = self.next_port.get();
        self.next_port.set(id.wrapping_add(1).max(GATEWAY + 1));
        let port = Port::new(id, &joining, ip, socket, self.links.clone()).map_err(|source| {
            NetworkError::Host {
                what: "register the member's socket",
                source,
            }
        })?;
        let port = Rc::new(port);
        if port.uplink {
            // What is behind it are the host and the world.
            self.links.join(id, LinkEnd::Gateway);
        } else {
            self.links.join(id, port.name.as_str().into());
            self.addresses.borrow_mut().insert(joining.name, ip);
        }
        for other in self.ports.borrow().iter() {
            other.learned.borrow_mut().remove(&port.mac);
        }
        self.ports.borrow_mut().push(port.clone());
        tokio::task::spawn_local(serve(self.clone(), port));
        Ok(ip)
    }

    fn address_for(&self, joining: &Joining) -> Result<Ipv4Addr, NetworkError> {
        let ports = self.ports.borrow();
        let mut addresses = self.addresses.borrow_mut();
        if let Some(ip) = joining.ip {
            addresses.retain(|name, other| *other != ip || *name == joining.name);
            return Ok(ip);
        }
        let names = self.names.borrow();
        let own_name = joining.name.to_ascii_lowercase();
        let in_use = |ip: &Ipv4Addr| {
            let mut registered = names.iter();
            ports.iter().any(|port| port.ip == *ip)
                || registered.any(|(name, other)| other == ip && *name != own_name)
        };
        if let Some(ip) = names.get(&own_name).filter(|ip| !in_use(ip)) {
            return Ok(*ip);
        }
        if let Some(ip) = addresses.get(&joining.name).filter(|ip| !in_use(ip)) {
            return Ok(*ip);
        }
        let remembered = |ip: &Ipv4Addr| addresses.values().any(|other| other == ip);
        // First one that nobody has had, then one whose member is gone.
        let mut guests = self.config.subnet.guests();
        let fresh = guests.find(|ip| !in_use(ip) && !remembered(ip));
        fresh
            .or_else(|| self.config.subnet.guests().find(|ip| !in_use(ip)))
            .ok_or(NetworkError::Full(ports.len()))
    }

    /// Removes a member: its link closes and its connections are reset.
    pub(super) fn detach(&self, name: &str) -> Result<(), NetworkError> {
        let port = self.member(name);
        let port = port.ok_or_else(|| NetworkError::NoMember(name.to_owned()))?;
        self.remove(&port);
        Ok(())
    }

    fn remove(&self, port: &Rc<Port>) {
        self.down(port);
        self.ports.borrow_mut().retain(|other| other.id != port.id);
    }

    /// Ends all that belongs to a member's link.
    fn down(&self, port: &Port) {
        port.shut();
        self.links.leave(port.id);
        self.tcp.end_port(port.id);
        self.udp.end_port(port.id);
        port.learned.borrow_mut().clear();
    }

    pub(super) fn member(&self, name: &str) -> Option<Rc<Port>> {
        let ports = self.ports.borrow();
        ports.iter().find(|port| port.is_named(name)).cloned()
    }

    fn member_by_id(&self, id: u32) -> Option<Rc<Port>> {
        let ports = self.ports.borrow();
        ports.iter().find(|port| port.id == id).cloned()
    }

    /// An end of a link as links are kept: a member that is, was or is to be attached.
    pub(super) fn link_end(&self, end: LinkEnd) -> Result<LinkEnd, NetworkError> {
        let end = end.normal();
        if let LinkEnd::Member(name) = &end {
            let known = |other: &String| other.eq_ignore_ascii_case(name);
            let known = self.names.borrow().contains_key(name)
                || self.member(name).is_some()
                || self.addresses.borrow().keys().any(known);
            if !known {
                return Err(NetworkError::NoMember(name.clone()));
            }
        }
        Ok(end)
    }

    pub(super) fn member_at(&self, ip: Ipv4Addr) -> Option<Rc<Port>> {
        let ports = self.ports.borrow();
        let mut members = ports.iter().filter(|port| !port.uplink);
        members.find(|port| port.ip == ip).cloned()
    }

    /// Switches one packet of a member.
    pub(super) fn input(self: &Rc<Self>, port: &Rc<Port>, bytes: &[u8]) {
        count(&port.counters.frames_in, 1);
        count(&port.counters.bytes_in, bytes.len().saturating_sub(HEADER));
        if self.switch(port, bytes).is_none() {
            count(&port.counters.refused, 1);
        }
    }

    /// `None` refuses the packet: malformed or forged.
    fn switch(self: &Rc<Self>, port: &Rc<Port>, bytes: &[u8]) -> Option<()> {
        let packet = Packet::parse(bytes)?;
        let frame = packet.frame();
        let to = frame::mac_at(frame, 0)?;
        let from = frame::mac_at(frame, 6)?;
        let ethertype = be16(frame, 12)?;
        if from[0] & 1 != 0 || from == GATEWAY_MAC || from == [0; 6] {
            return None;
        }
        let body = frame.get(ETHERNET..)?;
        // A tag that names no VLAN only gives a priority: a receiver takes the frame as one without
        // (IEEE 802.1Q, 6.9.1), and what is in it would pass by the checks below.
        if matches!(ethertype, TYPE_C_TAG | TYPE_S_TAG) && be16(body, 0)? & VLAN_ID == 0 {
            return None;
        }
        self.learn(port, from)?;
        let group = to[0] & 1 != 0;
        let mut others = true;
        let mut for_gateway = None;
        match ethertype {
            TYPE_ARP => {
                let arp = Arp::parse(body)?;
                self.check_source(port, arp.sender_ip)?;
                others = arp.target_ip != self.config.subnet.gateway();
                if !others && arp.operation == Arp::REQUEST {
                    for_gateway = Some(ForGateway::Arp(arp));
                }
            }
            TYPE_IPV4 => {
                let ip = Ipv4::parse(body)?;
                self.check_source(port, ip.source)?;
                if ip.protocol == PROTO_UDP && !ip.fragment {
                    // Address assignment is the gateway's alone: clients' questions are for no
                    // other member, and no member answers them.
                    if be16(ip.payload, 0) == Some(dhcp::SERVER_PORT) {
                        return None;
                    }
                    others = be16(ip.payload, 2) != Some(dhcp::SERVER_PORT);
                }
                if to == GATEWAY_MAC || group {
                    for_gateway = Some(ForGateway::Ip(ip));
                }
            }
            _ => {}
        }
        if let Some(content) = for_gateway {
            match self.links.path(port.id, GATEWAY) {
                // Large packets and checksums that are yet to be filled in are no matter here.
                None => self.to_gateway(port, from, &content),
                Some(path) => packet.for_each_frame(|frame| {
                    if self.links.send(&path, frame) == Fate::Now {
                        self.frame_to_gateway(port, frame);
                    }
                }),
            }
        }
        if to == GATEWAY_MAC || !others {
            return Some(());
        }
        match self.port_of(to).filter(|_| !group) {
            Some(target) if target.id == port.id => {}
            Some(target) => self.to_member(port, &target, &packet),
            None if port.may_flood() => {
                for target in self.ports.borrow().iter() {
                    if target.id != port.id {
                        self.to_member(port, target, &packet);
                    }
                }
            }
            None => count(&port.counters.dropped, 1),
        }
        Some(())
    }

    /// Hands a packet over as it is, unless something is set for the link: faults are those of
    /// frames.
    fn to_member(&self, port: &Port, target: &Port, packet: &Packet<'_>) {
        let Some(path) = self.links.path(port.id, target.id) else {
            return target.pass(packet);
        };
        packet.for_each_frame(|frame| {
            if self.links.send(&path, frame) == Fate::Now {
                target.push(frame.len(), |slot| slot.copy_from_slice(frame));
            }
        });
    }

    fn to_gateway(self: &Rc<Self>, port: &Rc<Port>, from: Mac, content: &ForGateway<'_>) {
        match content {
            ForGateway::Arp(arp) => self.answer_arp(port, arp),
            ForGateway::Ip(packet) => self.gateway(port, from, packet),
        }
    }

    /// Hands over a frame that an impaired link has delayed.
    fn deliver(self: &Rc<Self>, arrival: &Arrival) {
        let frame = &arrival.frame[..];
        if arrival.to != GATEWAY {
            if let Some(target) = self.member_by_id(arrival.to) {
                target.push(frame.len(), |slot| slot.copy_from_slice(frame));
            }
            return;
        }
        if let Some(port) = self.member_by_id(arrival.from) {
            self.frame_to_gateway(&port, frame);
        }
    }

    /// Hands the gateway a frame that was checked when it was sent.
    fn frame_to_gateway(self: &Rc<Self>, port: &Rc<Port>, frame: &[u8]) {
        let Some(from) = frame::mac_at(frame, 6) else {
            return;
        };
        let body = frame.get(ETHERNET..).unwrap_or_default();
        let content = match be16(frame, 12) {
            Some(TYPE_ARP) => Arp::parse(body).map(ForGateway::Arp),
            _ => Ipv4::parse(body).map(ForGateway::Ip),
        };
        if let Some(content) = content {
            self.to_gateway(port, from, &content);
        }
    }

    /// Notes that `mac` is behind `port`; `None` if it is another member's own. Each member has
    /// room of its own for such addresses: one that makes them up takes it from no other.
    fn learn(&self, port: &Port, mac: Mac) -> Option<()> {
        if mac == port.mac {
            return Some(());
        }
        let ports = self.ports.borrow();
        if ports.iter().any(|other| other.mac == mac) {
            return None;
        }
        let now = Instant::now();
        let mut learned = port.learned.borrow_mut();
        if let Some(since) = learned.get_mut(&mac) {
            *since = now;
            return Some(());
        }
        // It has moved, if it was elsewhere before; whether or not there is room for it here.
        for other in ports.iter().filter(|other| other.id != port.id) {
            other.learned.borrow_mut().remove(&mac);
        }
        if learned.len() >= MAX_LEARNED {
            learned.retain(|_, since| now.duration_since(*since) < LEARNED_AGE);
        }
        if learned.len() < MAX_LEARNED {
            learned.insert(mac, now);
        }
        Some(())
    }

    fn port_of(&self, mac: Mac) -> Option<Rc<Port>> {
        let ports = self.ports.borrow();
        if let Some(port) = ports.iter().find(|port| port.mac == mac) {
            return Some(port.clone());
        }
        let mut behind = ports.iter();
        behind
            .find(|port| port.learned.borrow().contains_key(&mac))
            .cloned()
    }

    /// Refuses the gateway's address and other members' as a source.
    fn check_source(&self, port: &Port, source: Ipv4Addr) -> Option<()> {
        if source == port.ip {
            port.seen.set(Some(Instant::now()));
            return Some(());
        }
        let forged = source == self.config.subnet.gateway()
            || self.ports.borrow().iter().any(|other| other.ip == source);
        (!forged).then_some(())
    }

    fn answer_arp(&self, port: &Port, request: &Arp) {
        let reply = Arp {
            operation: Arp::REPLY,
            sender_mac: GATEWAY_MAC,
            sender_ip: request.target_ip,
            target_mac: request.sender_mac,
            target_ip: request.sender_ip,
        };
        self.send_arp(port, request.sender_mac, &reply);
    }

    fn send_arp(&self, port: &Port, to: Mac, arp: &Arp) {
        port.push_from_gateway(ETHERNET + Arp::LEN, |frame| {
            frame::ethernet(frame, to, GATEWAY_MAC, TYPE_ARP);
            if let Some(body) = frame.get_mut(ETHERNET..) {
                arp.write(body);
            }
        });
        port.flush();
    }

    /// Asks the guest whether it uses its address, unless it was asked a moment ago.
    pub(super) fn probe(&self, port: &Port) {
        let now = Instant::now();
        let recently = |at: Instant| now.duration_since(at) < Duration::from_millis(150);
        if port.asked.get().is_some_and(recently) {
            return;
        }
        port.asked.set(Some(now));
        let request = Arp {
            operation: Arp::REQUEST,
            sender_mac: GATEWAY_MAC,
            sender_ip: self.config.subnet.gateway(),
            target_mac: [0; 6],
            target_ip: port.ip,
        };
        self.send_arp(port, BROADCAST, &request);
    }

    /// What the gateway does with a packet that is for it, or for the world beyond it.
    fn gateway(self: &Rc<Self>, port: &Rc<Port>, from: Mac, packet: &Ipv4<'_>) {
        let subnet = self.config.subnet;
        let gateway = subnet.gateway();
        let to_all = packet.to == Ipv4Addr::BROADCAST || packet.to == subnet.broadcast();
        if packet.fragment {
            // Fragments are rare from a guest whose path MTU is the link's, and reassembly is a
            // classic way to make a gateway hold memory: they are dropped.
            tracing::debug!(member = %port.name, "a fragmented packet to the gateway is dropped");
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
            // For members or nobody, and never answered with an error (RFC 1122, 3.2.2).
            return;
        }
        if packet.ttl <= 1 && packet.to != gateway {
            return;
        }
        match packet.protocol {
            PROTO_TCP => self.tcp_input(port, from, packet),
            PROTO_UDP => self.udp_input(port, from, packet),
            PROTO_ICMP if packet.to == gateway => self.answer_echo(port, from, packet),
            PROTO_ICMP => self.echo_input(port, from, packet),
            _ => {}
        }
    }

    fn answer_dhcp(&self, port: &Port, message: &[u8]) {
        if port.uplink {
            return;
        }
        let member = dhcp::Member {
            name: &port.name,
            mac: port.mac,
            ip: port.ip,
        };
        let Some(reply) = dhcp::answer(&self.config, member, message) else {
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
        self.send_udp(port, mac, self.config.subnet.gateway(), reply.to, &udp);
    }

    fn answer_echo(&self, port: &Port, from: Mac, packet: &Ipv4<'_>) {
        if packet.payload.first() != Some(&8) || packet.payload.len() < 8 {
            return;
        }
        let mut reply = packet.payload.to_vec();
        put(&mut reply, 0, &[0, 0, 0, 0]);
        let checksum = frame::finish(frame::sum(&reply, 0));
        put(&mut reply, 2, &checksum);
        self.send_ip(port, from, packet.to, packet.source, PROTO_ICMP, &reply);
        port.flush();
    }

    /// Answers a segment with a reset.
    pub(super) fn refuse(&self, port: &Port, from: Mac, packet: &Ipv4<'_>, segment: &Tcp) {
        let Some(reset) = segment.reset() else {
            return;
        };
        let mut bytes = [0; TCP];
        reset.write(&mut bytes, packet.to, packet.source);
        self.send_ip(port, from, packet.to, packet.source, PROTO_TCP, &bytes);
        port.flush();
    }

    /// Tells the guest that a packet of its went nowhere.
    pub(super) fn send_unreachable(
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
        let gateway = self.config.subnet.gateway();
        self.send_ip(port, to, gateway, guest, PROTO_ICMP, &message);
        port.flush();
    }

    /// Sends a datagram to the guest.
    pub(super) fn send_udp(
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

    /// Queues a packet for the guest, in fragments if it is larger than the link takes.
    pub(super) fn send_ip(
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

    /// A segment that belongs to no flow and opens none.
    pub(super) fn is_opening(segment: &Tcp) -> bool {
        segment.has(SYN) && !segment.has(ACK) && !segment.has(frame::RST)
    }

    /// The time as smoltcp counts it.
    pub(super) fn now(&self) -> smoltcp::time::Instant {
        let micros = self.epoch.elapsed().as_micros();
        smoltcp::time::Instant::from_micros(i64::try_from(micros).unwrap_or(i64::MAX))
    }

    /// The moment that smoltcp's clock calls `at`.
    pub(super) fn instant(&self, at: smoltcp::time::Instant) -> Instant {
        let micros = u64::try_from(at.total_micros()).unwrap_or(0);
        self.epoch + Duration::from_micros(micros)
    }

    /// Sends what the last frames made members wait for.
    fn flush(&self) {
        for port in self.ports.borrow().iter() {
            port.flush();
        }
    }
}

/// Hands over what arrives from impaired links, and tells flows when these have room. One task
/// with one timer for all of them.
pub(super) async fn pump(core: Rc<Core>) {
    use std::task::Poll;
    let mut timer = Timer::new();
    std::future::poll_fn(|cx| -> Poll<()> {
        core.links.set_pump(cx.waker());
        let now = Instant::now();
        let mut arrivals = 0;
        while arrivals < ARRIVALS
            && let Some(arrival) = core.links.arrived(now)
        {
            core.deliver(&arrival);
            arrivals += 1;
        }
        if arrivals > 0 {
            core.flush();
        }
        if arrivals == ARRIVALS {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let mut next = core.links.next();
        for port in core.ports.borrow().iter().filter(|port| port.is_awaited()) {
            match core.links.room_at(port.id) {
                Some(at) => next = Some(next.map_or(at, |next| next.min(at))),
                None => port.wake_waiting(),
            }
        }
        if let Some(next) = next {
            timer.arm(cx, next);
        }
        Poll::Pending
    })
    .await;
}

/// Reads a member's frames and sends what waits for it, until its link ends.
async fn serve(core: Rc<Core>, port: Rc<Port>) {
    let mut buffer = vec![0; RECEIVE_BUFFER];
    let ended = std::future::poll_fn(|cx| {
        use std::task::Poll;
        if !port.up.get() {
            return Poll::Ready(Ok(()));
        }
        if let Poll::Ready(result) = port.poll_writer(cx) {
            return Poll::Ready(result);
        }
        loop {
            match port.poll_readable(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Ready(Ok(())) => {}
            }
            let mut bytes = 0;
            for _ in 0..TURN {
                if bytes >= TURN_BYTES {
                    break;
                }
                match port.receive(&mut buffer) {
                    Ok(0) => return Poll::Ready(Ok(())),
                    Ok(len) => {
                        core.input(&port, buffer.get(..len).unwrap_or_default());
                        bytes += len;
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(error) if is_gone(&error) => return Poll::Ready(Err(error)),
                    Err(_) => {}
                }
                if !port.up.get() {
                    return Poll::Ready(Ok(()));
                }
            }
            core.flush();
            // Flows and other members have their turn before the next frames are read.
            if let Poll::Ready(Ok(())) = port.poll_readable(cx) {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
        }
    })
    .await;
    if let Err(error) = ended {
        tracing::debug!(member = %port.name, %error, "the member's link ended");
    }
    core.down(&port);
}
