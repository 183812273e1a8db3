//! UDP and ICMP echo between guests and the outside. Each flow has one connected host socket, and
//! is removed when idle.
//!
//! Echo uses the host's unprivileged ICMP sockets if they are allowed (`net.ipv4.ping_group_range`
//! on Linux). Otherwise requests beyond the gateway get no answer.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use fleetbox_packet::checksum::{fold, sum};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, send, socket};
use tokio::net::UdpSocket;
use tokio::sync::Notify;

use crate::config::NetworkConfig;
use crate::frame::{
    self, IPV4, Ipv4, Ipv4Header, Mac, PROTO_ICMP, PROTO_UDP, UDP, Udp, Unreachable, put,
};
use crate::key::FlowKey;
use crate::output::Output;
use crate::port::Port;
use crate::reach::translate;
use crate::socket::{any_for, failure};

/// Maximum datagrams received from the host before it is another flow's turn.
const TURN: usize = 32;
/// Maximum payload of a datagram in bytes.
const MAX_DATAGRAM: usize = 65535 - IPV4 - UDP;

/// The protocol of a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Kind {
    Udp,
    /// ICMP echo; the identifier is used as the port.
    Echo,
}

/// All flows of datagrams.
#[derive(Debug)]
pub(crate) struct UdpFlows {
    config: Arc<NetworkConfig>,
    output: Rc<Output>,
    flows: RefCell<HashMap<(Kind, FlowKey), Rc<Flow>>>,
    /// Buffer for datagrams of the host on their way to a guest.
    scratch: RefCell<Vec<u8>>,
    pub(crate) evicted: Cell<u64>,
}

#[derive(Debug)]
struct Flow {
    kind: Kind,
    key: FlowKey,
    port: Rc<Port>,
    mac: Mac,
    socket: UdpSocket,
    active: Cell<Instant>,
    ended: Notify,
}

impl UdpFlows {
    pub(crate) fn new(config: Arc<NetworkConfig>, output: Rc<Output>) -> Self {
        Self {
            config,
            output,
            flows: RefCell::default(),
            scratch: RefCell::new(vec![0; MAX_DATAGRAM]),
            evicted: Cell::new(0),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.flows.borrow().len()
    }

    /// Ends all flows of a port.
    pub(crate) fn end_port(&self, port: u32) {
        self.flows.borrow_mut().retain(|(_, key), flow| {
            let keep = key.port != port;
            if !keep {
                flow.ended.notify_one();
            }
            keep
        });
    }

    /// Makes room for one more flow of a port.
    fn admit(&self, port: u32, limit: usize) {
        let mut flows = self.flows.borrow_mut();
        let own = || flows.values().filter(|flow| flow.key.port == port);
        if own().count() < limit {
            return;
        }
        let oldest = own().min_by_key(|flow| flow.active.get());
        let Some(key) = oldest.map(|flow| (flow.kind, flow.key)) else {
            return;
        };
        if let Some(flow) = flows.remove(&key) {
            self.evicted.set(self.evicted.get() + 1);
            flow.ended.notify_one();
        }
    }

    fn remove(&self, flow: &Rc<Flow>) {
        let mut flows = self.flows.borrow_mut();
        let key = (flow.kind, flow.key);
        if flows.get(&key).is_some_and(|other| Rc::ptr_eq(other, flow)) {
            flows.remove(&key);
        }
    }
}

/// Creates a host socket that only talks to `remote`.
fn open(kind: Kind, remote: SocketAddr) -> io::Result<UdpSocket> {
    let socket: std::net::UdpSocket = match kind {
        Kind::Udp => std::net::UdpSocket::bind((any_for(remote), 0))?,
        Kind::Echo => socket(
            AddressFamily::Inet,
            SockType::Datagram,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::Icmp,
        )?
        .into(),
    };
    socket.connect(remote)?;
    socket.set_nonblocking(true)?;
    UdpSocket::from_std(socket)
}

impl UdpFlows {
    /// Processes a UDP datagram of a guest.
    pub(crate) fn input(
        self: &Rc<Self>,
        port: &Rc<Port>,
        from: Mac,
        packet: &Ipv4<'_>,
        udp: &Udp<'_>,
    ) {
        let Some(address) = translate(&self.config, packet.to) else {
            self.output
                .send_unreachable(port, from, Unreachable::Port, packet.packet);
            return;
        };
        if udp.to == 0 || udp.source == 0 {
            return;
        }
        let key = FlowKey {
            port: port.id,
            guest: SocketAddr::new(packet.source.into(), udp.source),
            remote: SocketAddr::new(packet.to.into(), udp.to),
        };
        let remote = SocketAddr::new(address, udp.to);
        self.datagram(port, from, (Kind::Udp, key), remote, packet, udp.payload);
    }

    /// Processes an ICMP message of a guest to the outside.
    pub(crate) fn input_echo(self: &Rc<Self>, port: &Rc<Port>, from: Mac, packet: &Ipv4<'_>) {
        let message = packet.payload;
        if message.get(..2) != Some(&[8, 0]) || message.len() < 8 {
            return;
        }
        let Some(address) = translate(&self.config, packet.to) else {
            return;
        };
        let identifier = frame::be16(message, 4).unwrap_or(0);
        let key = FlowKey {
            port: port.id,
            guest: SocketAddr::new(packet.source.into(), identifier),
            remote: SocketAddr::new(packet.to.into(), 0),
        };
        let remote = SocketAddr::new(address, 0);
        self.datagram(port, from, (Kind::Echo, key), remote, packet, message);
    }

    fn datagram(
        self: &Rc<Self>,
        port: &Rc<Port>,
        from: Mac,
        key: (Kind, FlowKey),
        remote: SocketAddr,
        packet: &Ipv4<'_>,
        payload: &[u8],
    ) {
        let known = self.flows.borrow().get(&key).cloned();
        let flow = match known {
            Some(flow) => flow,
            None => {
                self.admit(port.id, self.config.limits.udp_flows);
                let socket = match open(key.0, remote) {
                    Ok(socket) => socket,
                    Err(error) => {
                        tracing::debug!(?key, %error, "a guest's datagram cannot be sent");
                        self.output
                            .send_unreachable(port, from, Unreachable::Host, packet.packet);
                        return;
                    }
                };
                let flow = Rc::new(Flow {
                    kind: key.0,
                    key: key.1,
                    port: port.clone(),
                    mac: from,
                    socket,
                    active: Cell::new(Instant::now()),
                    ended: Notify::new(),
                });
                self.flows.borrow_mut().insert(key, flow.clone());
                tokio::task::spawn_local(receive(self.clone(), flow.clone()));
                flow
            }
        };
        flow.active.set(Instant::now());
        // Not through tokio, which learns that a new socket is writable only later. A full
        // buffer loses the datagram, as any router would.
        let sent = send(flow.socket.as_raw_fd(), payload, MsgFlags::MSG_DONTWAIT);
        if let Err(error) = sent {
            flow.failed(&self.output, &io::Error::from(error));
        }
    }
}

/// Receives from the host for a flow until it has been idle too long.
async fn receive(flows: Rc<UdpFlows>, flow: Rc<Flow>) {
    let limit = flows.config.limits.udp_idle;
    loop {
        let expires = flow.active.get() + limit;
        tokio::select! {
            () = flow.ended.notified() => break,
            () = tokio::time::sleep_until(expires.into()) => {
                if flow.active.get().elapsed() >= limit {
                    break;
                }
            }
            ready = flow.socket.readable() => {
                if ready.is_err() {
                    break;
                }
                flow.take(&flows);
                tokio::task::yield_now().await;
            }
            error = failure(&flow.socket) => flow.failed(&flows.output, &error),
        }
    }
    flows.remove(&flow);
}

impl Flow {
    fn take(&self, flows: &UdpFlows) {
        let mut buffer = flows.scratch.borrow_mut();
        for _ in 0..TURN {
            match self.socket.try_recv(&mut buffer) {
                Ok(len) => {
                    self.active.set(Instant::now());
                    self.deliver(&flows.output, buffer.get_mut(..len).unwrap_or_default());
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => self.failed(&flows.output, &error),
            }
        }
    }

    fn deliver(&self, output: &Output, payload: &mut [u8]) {
        let (IpAddr::V4(guest), IpAddr::V4(remote)) = (self.key.guest.ip(), self.key.remote.ip())
        else {
            return;
        };
        match self.kind {
            Kind::Udp => {
                let udp = Udp {
                    source: self.key.remote.port(),
                    to: self.key.guest.port(),
                    payload,
                };
                output.send_udp(&self.port, self.mac, remote, guest, &udp);
            }
            Kind::Echo => {
                if payload.first() != Some(&0) || payload.len() < 8 {
                    return;
                }
                // The host used an identifier of its own.
                put(payload, 4, &self.key.guest.port().to_be_bytes());
                put(payload, 2, &[0, 0]);
                let checksum = fold(sum(payload));
                put(payload, 2, &checksum);
                output.send_ip(&self.port, self.mac, remote, guest, PROTO_ICMP, payload);
                self.port.flush();
            }
        }
    }

    /// Tells the guest about an error of the host's socket.
    fn failed(&self, output: &Output, error: &io::Error) {
        let code = match error.kind() {
            io::ErrorKind::ConnectionRefused => Unreachable::Port,
            io::ErrorKind::HostUnreachable => Unreachable::Host,
            io::ErrorKind::NetworkUnreachable => Unreachable::Network,
            _ => return,
        };
        let (IpAddr::V4(guest), IpAddr::V4(remote)) = (self.key.guest.ip(), self.key.remote.ip())
        else {
            return;
        };
        // What the guest recognises its datagram by; the payload is gone.
        let mut original = [0; IPV4 + UDP];
        let total = original.len();
        let protocol = match self.kind {
            Kind::Udp => PROTO_UDP,
            Kind::Echo => PROTO_ICMP,
        };
        Ipv4Header::new(guest, remote, protocol).write(&mut original, total);
        match self.kind {
            Kind::Udp => {
                put(&mut original, IPV4, &self.key.guest.port().to_be_bytes());
                put(
                    &mut original,
                    IPV4 + 2,
                    &self.key.remote.port().to_be_bytes(),
                );
                put(&mut original, IPV4 + 4, &(UDP as u16).to_be_bytes());
            }
            Kind::Echo => {
                put(&mut original, IPV4, &[8, 0]);
                put(
                    &mut original,
                    IPV4 + 4,
                    &self.key.guest.port().to_be_bytes(),
                );
            }
        }
        output.send_unreachable(&self.port, self.mac, code, &original);
    }
}
