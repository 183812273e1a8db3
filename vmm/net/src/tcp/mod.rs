//! TCP flows between guests and the host.
//!
//! A guest's SYN waits until the host's own connection is established, so the guest sees the same
//! result as the host. Each flow is a separate task with bounded buffers. It reads from the host
//! only what the guest has room for, and accepts from the guest only what the host has accepted. So
//! a flow whose peer is stuck stops by itself, and does not delay others.

mod flow;
mod relay;
mod table;

use std::cell::Cell;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::net::TcpStream;

use self::flow::{Context, Flow, Stage, buffer_size};
use self::relay::relay;
use self::table::TcpTable;
use crate::config::NetworkConfig;
use crate::dns::{DNS_PORT, Dns};
use crate::error::ConnectError;
use crate::frame::{Ipv4, Mac, Tcp};
use crate::key::FlowKey;
use crate::members::Members;
use crate::output::Output;
use crate::port::Port;
use crate::reach::translate;
use crate::stack::Stack;
use crate::stream::{GuestStream, Host};
use crate::timer::Clock;

/// How recently the guest must have been seen to try a connection without asking it first.
const SEEN: Duration = Duration::from_secs(5);

/// The destination of a guest's SYN.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Target {
    Host(SocketAddr),
    Dns,
}

/// TCP between guests and the host.
#[derive(Debug)]
pub(crate) struct TcpFlows {
    context: Context,
    members: Rc<Members>,
    dns: Rc<Dns>,
    table: TcpTable,
    /// The port of the gateway's last connection to a guest.
    last_port: Cell<u16>,
}

impl TcpFlows {
    pub(crate) fn new(
        config: Arc<NetworkConfig>,
        members: Rc<Members>,
        output: Rc<Output>,
        dns: Rc<Dns>,
    ) -> Self {
        Self {
            context: Context {
                config,
                output,
                clock: Clock::new(),
            },
            members,
            dns,
            table: TcpTable::default(),
            last_port: Cell::new(rand::random()),
        }
    }

    /// All flows, and the number of flows so far.
    pub(crate) fn table(&self) -> &TcpTable {
        &self.table
    }

    /// Processes a TCP segment of a guest.
    pub(crate) fn input(self: &Rc<Self>, port: &Rc<Port>, from: Mac, packet: &Ipv4<'_>) {
        let Some(segment) = Tcp::parse(packet.payload) else {
            return;
        };
        let key = FlowKey {
            port: port.id,
            guest: SocketAddr::new(packet.source.into(), segment.source),
            remote: SocketAddr::new(packet.to.into(), segment.to),
        };
        if let Some(flow) = self.table.get(&key) {
            if flow.input(&self.context, packet, &segment) {
                return;
            }
            // The guest uses the ports of a finished connection again.
            flow.end();
            self.table.remove(&flow);
        }
        if !segment.is_opening() || segment.source == 0 || segment.to == 0 {
            self.context.output.send_reset(port, from, packet, &segment);
            return;
        }
        let target = if packet.to == self.context.config.subnet.gateway() && segment.to == DNS_PORT
        {
            Target::Dns
        } else if let Some(address) = translate(&self.context.config, packet.to) {
            Target::Host(SocketAddr::new(address, segment.to))
        } else {
            self.table.count_refused();
            self.context.output.send_reset(port, from, packet, &segment);
            return;
        };
        let limit = self.context.config.limits.tcp_flows;
        if !self.table.admit(port, limit, Instant::now()) {
            self.table.count_refused();
            self.context.output.send_reset(port, from, packet, &segment);
            return;
        }
        let stage = Stage::Waiting(packet.packet.to_vec());
        let flow = Flow::new(self.table.new_id(), key, port.clone(), from, stage);
        self.table.insert(&flow);
        tokio::task::spawn_local(self.clone().dial(flow, target));
    }

    /// Waits until the guest uses its address.
    ///
    /// Most connections are tried while the guest boots. A SYN without an answer is repeated more
    /// and more slowly. Asking for the hardware address first finds the guest as soon as it is up.
    async fn until_present(&self, port: &Port, deadline: Instant) -> Result<(), ConnectError> {
        let ip = IpAddr::V4(port.ip);
        let mut pause = Duration::from_millis(1);
        while port.seen.get().is_none_or(|at| at.elapsed() >= SEEN) {
            if !port.up.get() {
                return Err(ConnectError::Closed { ip });
            }
            if Instant::now() >= deadline {
                return Err(ConnectError::Unreachable { ip });
            }
            self.context.output.probe(port);
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(50));
        }
        Ok(())
    }

    /// Opens a connection to a guest. Once the guest uses its address, it has `patience` to answer.
    async fn open(
        self: &Rc<Self>,
        ip: IpAddr,
        guest_port: u16,
        patience: Duration,
    ) -> Result<Rc<Flow>, ConnectError> {
        let IpAddr::V4(address) = ip else {
            return Err(ConnectError::NoMember { ip });
        };
        let port = self.members.at(address);
        let port = port.ok_or(ConnectError::NoMember { ip })?;
        let limits = &self.context.config.limits;
        let start = Instant::now();
        self.until_present(&port, start + limits.guest_timeout)
            .await?;
        let deadline = start + patience;
        if !self.table.admit(&port, limits.tcp_flows, Instant::now()) {
            return Err(ConnectError::TooMany {
                ip,
                limit: limits.tcp_flows,
            });
        }
        let gateway = IpAddr::V4(self.context.config.subnet.gateway());
        let guest = SocketAddr::new(ip, guest_port);
        let key = (0..64)
            .map(|_| FlowKey {
                port: port.id,
                guest,
                remote: SocketAddr::new(gateway, self.next_port()),
            })
            .find(|key| self.table.get(key).is_none())
            .ok_or(ConnectError::TooMany { ip, limit: 0x4000 })?;
        let mac = port.mac;
        let size = buffer_size(port.flows.get());
        let flow = Flow::new(self.table.new_id(), key, port, mac, Stage::Over);
        let stack = Stack::connect(
            &mut flow.device(None),
            self.context.clock.now(),
            key.remote,
            guest,
            size,
        )
        // Port 0 is all that smoltcp refuses here.
        .ok_or(ConnectError::Refused {
            ip,
            port: guest_port,
        })?;
        *flow.stage.borrow_mut() = Stage::Open(Box::new(stack));
        self.table.insert(&flow);
        // A caller that gives up, and drops this future, must leave no flow behind.
        let guard = HandshakeGuard {
            tcp: self.clone(),
            flow: flow.clone(),
            done: Cell::new(false),
        };
        flow.handshake(&self.context, deadline).await?;
        guard.done.set(true);
        Ok(flow)
    }

    /// A port of the gateway for a connection to a guest: one of the dynamic ports of RFC 6335, each in its turn. A port
    /// that was used a moment ago may still be in use for the guest, which waits for a minute after it has closed.
    fn next_port(&self) -> u16 {
        let port = self.last_port.get().wrapping_add(1) | 0xc000;
        self.last_port.set(port);
        port
    }

    /// Opens a connection to a guest that ends in a stream of this process.
    pub(crate) async fn connect(
        self: Rc<Self>,
        ip: IpAddr,
        guest_port: u16,
    ) -> Result<GuestStream, ConnectError> {
        let patience = self.context.config.limits.guest_timeout;
        let flow = self.open(ip, guest_port, patience).await?;
        let (host, stream) = Host::stream(SocketAddr::new(ip, guest_port));
        tokio::task::spawn_local(async move { self.relay(flow, host).await });
        Ok(stream)
    }

    /// Opens a connection to a guest for one that the host accepted.
    pub(crate) async fn forward(self: Rc<Self>, ip: IpAddr, guest_port: u16, stream: TcpStream) {
        let host = Host::tcp(stream);
        // As patient as for a connection of the host's own: a guest whose listener has a full queue drops SYNs and
        // takes them later.
        let limits = &self.context.config.limits;
        let patience = limits.guest_timeout.max(limits.connect_timeout);
        match self.open(ip, guest_port, patience).await {
            Ok(flow) => self.relay(flow, host).await,
            Err(error) => {
                tracing::debug!(%error, "resetting a forwarded connection");
                host.reset();
            }
        }
    }

    /// The task of a flow that a guest opens.
    async fn dial(self: Rc<Self>, flow: Rc<Flow>, target: Target) {
        let limit = self.context.config.limits.connect_timeout;
        let dial = async {
            match target {
                Target::Host(address) => {
                    match tokio::time::timeout(limit, TcpStream::connect(address)).await {
                        Ok(result) => result.map(Host::tcp),
                        Err(_) => Err(io::ErrorKind::TimedOut.into()),
                    }
                }
                Target::Dns => {
                    let (host, stream) = Host::stream(flow.key.guest);
                    let dns = self.dns.clone();
                    let member = flow.port.clone();
                    tokio::task::spawn_local(async move { dns.stream(member, stream).await });
                    Ok(host)
                }
            }
        };
        let connected = tokio::select! {
            biased;
            () = flow.until_ended() => None,
            result = dial => Some(result),
        };
        match connected {
            Some(Ok(host)) if flow.accept(&self.context) => self.relay(flow, host).await,
            Some(Ok(host)) => {
                host.reset();
                self.table.remove(&flow);
            }
            Some(Err(error)) => {
                tracing::debug!(key = ?flow.key, %error, "a guest's connection failed on the host");
                self.refuse(&flow, Some(&error));
            }
            None => self.refuse(&flow, None),
        }
    }

    /// Moves the data of a flow until it ends.
    async fn relay(self: Rc<Self>, flow: Rc<Flow>, host: Host) {
        relay(&self.context, &flow, host).await;
        self.table.remove(&flow);
    }

    /// Tells the guest that its SYN failed, and forgets the flow.
    fn refuse(&self, flow: &Rc<Flow>, error: Option<&io::Error>) {
        self.table.count_refused();
        flow.refuse(&self.context, error);
        self.table.remove(flow);
    }
}

/// Removes a flow whose handshake was given up.
struct HandshakeGuard {
    tcp: Rc<TcpFlows>,
    flow: Rc<Flow>,
    done: Cell<bool>,
}

impl Drop for HandshakeGuard {
    fn drop(&mut self) {
        if !self.done.get() {
            self.flow.abort(&self.tcp.context);
            self.tcp.table.remove(&self.flow);
        }
    }
}
