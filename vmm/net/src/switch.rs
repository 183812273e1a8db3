//! The switch: forwards each frame to members, to the gateway, or nowhere.
//!
//! Everything here runs on the network's thread, so its state needs no locks.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use fleetbox_packet::{HEADER, Packet};

use crate::config::NetworkConfig;
use crate::error::NetworkError;
use crate::faults::{Arrival, Fate, Faults, GATEWAY};
use crate::frame::{self, Arp, ETHERNET, GATEWAY_MAC, Ipv4, Mac, TYPE_ARP, be16};
use crate::gateway::Gateway;
use crate::members::Members;
use crate::policy::{Content, End, Refusal, admit};
use crate::port::{NewPort, Port, RECEIVE_BUFFER, count, is_gone};
use crate::status::{NetworkStatus, PortStatus};
use crate::timer::Timer;

/// Maximum packets, and their bytes, read from one member before it is another's turn.
const TURN: usize = 64;
const TURN_BYTES: usize = 512 << 10;
/// Maximum frames that one member's large packets are cut into before it is another's turn. With segments of the usual
/// size the limit of bytes comes first.
const TURN_FRAMES: usize = 1024;
/// Maximum frames delivered from links with faults before others have their turn.
const ARRIVALS: usize = 256;

/// A network, as its thread sees it.
#[derive(Debug)]
pub(crate) struct Switch {
    config: Arc<NetworkConfig>,
    pub(crate) members: Rc<Members>,
    pub(crate) faults: Rc<Faults>,
    pub(crate) gateway: Gateway,
}

impl Switch {
    pub(crate) fn new(config: Arc<NetworkConfig>) -> Self {
        let faults = Rc::<Faults>::default();
        let members = Rc::new(Members::new(config.clone(), faults.clone()));
        Self {
            gateway: Gateway::new(config.clone(), members.clone()),
            config,
            members,
            faults,
        }
    }

    /// Adds a member, and starts to serve its link.
    pub(crate) fn attach(
        self: &Rc<Self>,
        new: NewPort,
        socket: OwnedFd,
    ) -> Result<Ipv4Addr, NetworkError> {
        // A member whose machine has ended makes room for its successor.
        let is_ended = |port: &&Rc<Port>| new.replaces(port) && !port.up.get();
        let ended: Vec<_> = self
            .members
            .ports()
            .iter()
            .filter(is_ended)
            .cloned()
            .collect();
        for port in ended {
            self.remove(&port);
        }
        let port = self.members.add(new, socket)?;
        let ip = port.ip;
        tokio::task::spawn_local(serve(self.clone(), port));
        Ok(ip)
    }

    /// Removes a member. Its link closes, and its connections are reset.
    pub(crate) fn detach(&self, name: &str) -> Result<(), NetworkError> {
        let port = self.members.named(name);
        let port = port.ok_or_else(|| NetworkError::NoMember(name.to_owned()))?;
        self.remove(&port);
        Ok(())
    }

    fn remove(&self, port: &Rc<Port>) {
        self.down(port);
        self.members.remove(port);
    }

    /// Ends everything that belongs to a member's link.
    fn down(&self, port: &Port) {
        port.shut();
        self.faults.leave(port.id);
        self.gateway.end_port(port);
        port.learned.borrow_mut().clear();
    }

    /// Switches one packet of a member. Returns the number of frames that it was cut into, if it was, or 1.
    pub(crate) fn input(&self, port: &Rc<Port>, bytes: &[u8]) -> usize {
        count(&port.counters.frames_in, 1);
        count(&port.counters.bytes_in, bytes.len().saturating_sub(HEADER));
        let Some(packet) = Packet::parse(bytes) else {
            count(&port.counters.refused, 1);
            return 1;
        };
        let admitted = match admit(&self.config, &self.members, port, packet.frame()) {
            Ok(admitted) => admitted,
            Err(refusal) => {
                count(&port.counters.refused, 1);
                if let Refusal::OutOfReach(from, packet) = refusal {
                    self.gateway.refuse(port, from, &packet);
                }
                return 1;
            }
        };
        let mut frames = 1;
        if admitted.may_go_to(End::Gateway) && self.is_for_gateway(admitted.to, &admitted.content) {
            match self.faults.path(port.id, GATEWAY) {
                // The gateway reads large packets, and frames without checksums, as they are.
                None => self.to_gateway(port, admitted.from, &admitted.content),
                Some(path) => {
                    frames += count_frames(&packet);
                    packet.for_each_frame(|frame| {
                        if self.faults.send(&path, frame) == Fate::Now {
                            self.frame_to_gateway(port, frame);
                        }
                    });
                }
            }
        }
        if self.is_for_others(admitted.to, &admitted.content) {
            let may_go_to = |target: &Port| admitted.may_go_to(End::of(target));
            frames += self.to_members(port, admitted.to, &packet, may_go_to);
        }
        frames
    }

    /// True if the gateway takes a frame of this content.
    fn is_for_gateway(&self, to: Mac, content: &Content<'_>) -> bool {
        match content {
            Content::Arp(arp) => {
                arp.target_ip == self.config.subnet.gateway() && arp.operation == Arp::REQUEST
            }
            Content::Ip(_) => to == GATEWAY_MAC || to[0] & 1 != 0,
        }
    }

    /// True if others than the gateway take a frame of this content.
    fn is_for_others(&self, to: Mac, content: &Content<'_>) -> bool {
        let asks_gateway = match content {
            Content::Arp(arp) => arp.target_ip == self.config.subnet.gateway(),
            Content::Ip(_) => false,
        };
        to != GATEWAY_MAC && !asks_gateway
    }

    /// Delivers a packet to the port with an address, or to all others, as far as it may go there. Returns the number
    /// of frames that it was cut into.
    fn to_members(
        &self,
        port: &Port,
        to: Mac,
        packet: &Packet<'_>,
        may_go_to: impl Fn(&Port) -> bool,
    ) -> usize {
        let group = to[0] & 1 != 0;
        match self.members.port_of(to).filter(|_| !group) {
            Some(target) if target.id == port.id || !may_go_to(&target) => 0,
            Some(target) => self.to_member(port, &target, packet),
            // A large packet is TCP to an address that its sender should know: nobody needs it everywhere.
            None if packet.large().is_none() && port.may_flood() => {
                let ports = self.members.ports();
                let others = ports.iter().filter(|target| target.id != port.id);
                let others = others.filter(|target| may_go_to(target));
                others
                    .map(|target| self.to_member(port, target, packet))
                    .sum()
            }
            None => {
                count(&port.counters.dropped, 1);
                0
            }
        }
    }

    /// Delivers a packet unchanged, or as frames if the link has faults, because these apply to
    /// frames. Returns the number of frames that it was cut into.
    fn to_member(&self, port: &Port, target: &Port, packet: &Packet<'_>) -> usize {
        let Some(path) = self.faults.path(port.id, target.id) else {
            target.pass(packet);
            return if target.uplink {
                count_frames(packet)
            } else {
                0
            };
        };
        packet.for_each_frame(|frame| {
            if self.faults.send(&path, frame) == Fate::Now {
                target.push(frame.len(), |slot| slot.copy_from_slice(frame));
            }
        });
        count_frames(packet)
    }

    fn to_gateway(&self, port: &Rc<Port>, from: Mac, content: &Content<'_>) {
        match content {
            Content::Arp(arp) => self.gateway.answer_arp(port, arp),
            Content::Ip(packet) => self.gateway.input(port, from, packet),
        }
    }

    /// Delivers a frame that a link with faults has delayed.
    fn deliver(&self, arrival: &Arrival) {
        let frame = &arrival.frame[..];
        if arrival.to != GATEWAY {
            if let Some(target) = self.members.by_id(arrival.to) {
                target.push(frame.len(), |slot| slot.copy_from_slice(frame));
            }
            return;
        }
        if let Some(port) = self.members.by_id(arrival.from) {
            self.frame_to_gateway(&port, frame);
        }
    }

    /// Delivers to the gateway a frame that was checked when it was sent.
    fn frame_to_gateway(&self, port: &Rc<Port>, frame: &[u8]) {
        let Some(from) = frame::mac_at(frame, 6) else {
            return;
        };
        let body = frame.get(ETHERNET..).unwrap_or_default();
        let content = match be16(frame, 12) {
            Some(TYPE_ARP) => Arp::parse(body).map(Content::Arp),
            _ => Ipv4::parse(body).map(Content::Ip),
        };
        if let Some(content) = content {
            self.to_gateway(port, from, &content);
        }
    }

    /// The current status of the network.
    pub(crate) fn status(&self) -> NetworkStatus {
        let (tcp, udp, dns) = (&self.gateway.tcp, &self.gateway.udp, &self.gateway.dns);
        let tcp = tcp.table();
        NetworkStatus {
            ports: self
                .members
                .ports()
                .iter()
                .map(|port| port_status(port))
                .collect(),
            tcp_flows: tcp.len(),
            tcp_opened: tcp.opened.get(),
            tcp_refused: tcp.refused.get(),
            tcp_evicted: tcp.evicted.get(),
            udp_flows: udp.len(),
            udp_evicted: udp.evicted.get(),
            dns_local: dns.local.get(),
            dns_forwarded: dns.forwarded.get(),
            dns_failed: dns.failed.get(),
            faults: self.faults.counts(),
        }
    }

    /// Sends the packets that the last frames have queued for members.
    fn flush(&self) {
        for port in self.members.ports().iter() {
            port.flush();
        }
    }
}

/// Delivers frames from links with faults, and wakes flows when these links have room. One task
/// with one timer serves all of them.
pub(crate) async fn pump(switch: Rc<Switch>) {
    use std::task::Poll;
    let mut timer = Timer::new();
    std::future::poll_fn(|cx| -> Poll<()> {
        switch.faults.set_pump(cx.waker());
        let now = Instant::now();
        let mut arrivals = 0;
        while arrivals < ARRIVALS
            && let Some(arrival) = switch.faults.arrived(now)
        {
            switch.deliver(&arrival);
            arrivals += 1;
        }
        if arrivals > 0 {
            switch.flush();
        }
        if arrivals == ARRIVALS {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let mut next = switch.faults.next();
        for port in switch
            .members
            .ports()
            .iter()
            .filter(|port| port.is_awaited())
        {
            match switch.faults.room_at(port.id) {
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

/// Reads a member's frames and sends those that wait for it, until its link ends.
async fn serve(switch: Rc<Switch>, port: Rc<Port>) {
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
            let (mut bytes, mut frames) = (0, 0);
            for _ in 0..TURN {
                if bytes >= TURN_BYTES || frames >= TURN_FRAMES {
                    break;
                }
                match port.receive(&mut buffer) {
                    Ok(0) => return Poll::Ready(Ok(())),
                    Ok(len) => {
                        frames += switch.input(&port, buffer.get(..len).unwrap_or_default());
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
            switch.flush();
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
    switch.down(&port);
}

/// The number of frames that a packet is cut into.
fn count_frames(packet: &Packet<'_>) -> usize {
    packet.large().map_or(1, |large| large.count())
}

fn port_status(port: &Port) -> PortStatus {
    PortStatus {
        name: port.name.clone(),
        mac: port.mac,
        ip: port.ip,
        up: port.up.get(),
        configured: port.seen.get().is_some(),
        frames_in: port.counters.frames_in.get(),
        bytes_in: port.counters.bytes_in.get(),
        frames_out: port.counters.frames_out.get(),
        bytes_out: port.counters.bytes_out.get(),
        refused: port.counters.refused.get(),
        dropped: port.counters.dropped.get(),
    }
}
