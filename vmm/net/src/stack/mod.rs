//! One TCP connection of smoltcp with a separate interface.
//!
//! For each segment smoltcp searches all sockets of an interface. With one interface per flow there is only one socket,
//! and the switch finds the flow in a hash table. The interface has the remote's address, speaks bare IP (the switch
//! writes the Ethernet header) and therefore needs no ARP.

mod window;

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::panic::{AssertUnwindSafe, catch_unwind};

use smoltcp::iface::{Config, Interface, PollResult, SocketHandle, SocketSet};
use smoltcp::phy::{
    ChecksumCapabilities, Device, DeviceCapabilities, Medium, PacketMeta, RxToken, TxToken,
};
use smoltcp::socket::tcp::{Socket, SocketBuffer, State};
use smoltcp::time::{Duration, Instant};
use smoltcp::wire::{HardwareAddress, IpAddress, IpCidr, IpEndpoint};

use fleetbox_packet::{HEADER, MAX_FRAMES, MAX_PACKET, offload_tcp};

use self::window::{Fit, Window};
use crate::frame::{self, ETHERNET, GATEWAY_MAC, IPV4, Ipv4, MTU, Mac, TCP, TYPE_IPV4, Tcp};
use crate::port::Port;

/// A guest that has not answered for this long is gone.
const DEAD_AFTER: Duration = Duration::from_secs(300);
/// How often a silent guest is probed.
const KEEP_ALIVE: Duration = Duration::from_secs(75);
/// Maximum segments sent before it is another flow's turn.
const MAX_BURST: usize = 96;

/// The network device of one flow.
pub(crate) struct FlowDevice<'a> {
    pub(crate) port: &'a Port,
    pub(crate) mac: Mac,
    /// The packet to be received next.
    pub(crate) packet: Option<&'a [u8]>,
    /// Only single frames are sent.
    pub(crate) frames_only: bool,
}

impl FlowDevice<'_> {
    fn outgoing(&self) -> Outgoing<'_> {
        Outgoing {
            port: self.port,
            mac: self.mac,
            segment: 0,
        }
    }
}

pub(crate) struct Incoming<'a>(&'a [u8]);

impl RxToken for Incoming<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(self.0)
    }
}

pub(crate) struct Outgoing<'a> {
    port: &'a Port,
    mac: Mac,
    /// Bytes of payload in each frame that the packet is cut into; 0 if it is a frame.
    segment: u16,
}

impl TxToken for Outgoing<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let start = HEADER + ETHERNET;
        self.port.write_from_gateway(start + len, |bytes| {
            let Some(bytes) = bytes else {
                // No room: the segment is lost as on any network, and sent again.
                return f(&mut vec![0; len]);
            };
            // The place holds what an earlier frame left, perhaps another guest's.
            let (headers, _) = bytes.split_at_mut(bytes.len().min(start + IPV4 + TCP + 40));
            headers.fill(0);
            let (front, packet) = bytes.split_at_mut(start);
            let (_, ethernet) = front.split_at_mut(HEADER);
            frame::ethernet(ethernet, self.mac, GATEWAY_MAC, TYPE_IPV4);
            let result = f(packet);
            // The receiver fills in the checksum, if anything looks at it at all.
            offload_tcp(bytes, self.segment);
            result
        })
    }

    fn set_meta(&mut self, meta: PacketMeta) {
        self.segment = meta.segmentation_offload_size.map_or(0, Into::into);
    }
}

impl Device for FlowDevice<'_> {
    type RxToken<'b>
        = Incoming<'b>
    where
        Self: 'b;
    type TxToken<'b>
        = Outgoing<'b>
    where
        Self: 'b;

    fn receive(&mut self, _: Instant) -> Option<(Incoming<'_>, Outgoing<'_>)> {
        let packet = self.packet.take()?;
        Some((Incoming(packet), self.outgoing()))
    }

    fn transmit(&mut self, _: Instant) -> Option<Outgoing<'_>> {
        self.port.has_room().then(|| self.outgoing())
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = MTU;
        // The link is memory: what arrives is not verified. What is sent gets its checksums, and is
        // cut, only where that is needed.
        capabilities.checksum = ChecksumCapabilities::ignored();
        if !self.frames_only {
            capabilities.segmentation.tcpv4 = NonZeroUsize::new(usize::from(u16::MAX));
        }
        capabilities
    }
}

/// Converts an address for smoltcp; `None` for a family that the network does not support.
fn endpoint(address: SocketAddr) -> Option<IpEndpoint> {
    match address {
        SocketAddr::V4(address) => Some(address.into()),
        SocketAddr::V6(_) => None,
    }
}

/// Creates an interface of smoltcp. It asks for the device's capabilities only once, at its creation.
fn interface(device: &mut FlowDevice<'_>, now: Instant, local: IpAddress) -> Interface {
    let mut config = Config::new(HardwareAddress::Ip);
    config.random_seed = rand::random();
    let mut interface = Interface::new(config, device, now);
    interface.update_ip_addrs(|addresses| {
        // An empty list has room for one.
        let _ = addresses.push(IpCidr::new(local, 32));
    });
    // There are flows of this family only: smoltcp is built with the other because its segmentation
    // needs it.
    if let IpAddress::Ipv4(router) = local {
        // Lets smoltcp send to any address; without Ethernet the router is never resolved.
        let _ = interface.routes_mut().add_default_ipv4_route(router);
    }
    interface
}

/// One connection.
pub(crate) struct Stack {
    interface: Interface,
    /// True if the interface sends only single frames.
    frames_only: bool,
    local: IpAddress,
    sockets: SocketSet<'static>,
    handle: SocketHandle,
    /// Known once the guest's SYN was taken.
    window: Option<Window>,
    /// The guest takes such small segments that a large packet would make too many frames.
    has_tiny_segments: bool,
    failed: bool,
}

impl std::fmt::Debug for Stack {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stack").finish_non_exhaustive()
    }
}

impl Stack {
    /// A closed connection whose end on our side is `local`, with `buffer` bytes in each
    /// direction.
    fn new(device: &mut FlowDevice<'_>, now: Instant, local: IpAddress, buffer: usize) -> Self {
        let interface = interface(device, now, local);
        let mut socket = Socket::new(
            SocketBuffer::new(vec![0; buffer]),
            SocketBuffer::new(vec![0; buffer]),
        );
        // Segments are handled in batches, and each batch is worth one acknowledgement.
        socket.set_ack_delay(None);
        // The sender has decided already what to send together.
        socket.set_nagle_enabled(false);
        socket.set_timeout(Some(DEAD_AFTER));
        socket.set_keep_alive(Some(KEEP_ALIVE));
        let mut sockets = SocketSet::new(Vec::with_capacity(1));
        let handle = sockets.add(socket);
        Self {
            interface,
            frames_only: device.frames_only,
            local,
            sockets,
            handle,
            window: None,
            has_tiny_segments: false,
            failed: false,
        }
    }

    /// The stack for a connection that the packet of `device`, a SYN, opens; `None` if smoltcp refuses it.
    pub(crate) fn accept(
        device: &mut FlowDevice<'_>,
        now: Instant,
        local: SocketAddr,
        buffer: usize,
    ) -> Option<Self> {
        let local = endpoint(local)?;
        let mut stack = Self::new(device, now, local.addr, buffer);
        stack.socket().listen(local).ok()?;
        stack.receive(device, now);
        (stack.socket().state() == State::SynReceived).then_some(stack)
    }

    /// The stack for a connection to `remote`, about to be opened.
    pub(crate) fn connect(
        device: &mut FlowDevice<'_>,
        now: Instant,
        local: SocketAddr,
        remote: SocketAddr,
        buffer: usize,
    ) -> Option<Self> {
        let (local, remote) = (endpoint(local)?, endpoint(remote)?);
        let mut stack = Self::new(device, now, local.addr, buffer);
        let socket = stack.sockets.get_mut::<Socket<'_>>(stack.handle);
        socket
            .connect(stack.interface.context(), remote, local)
            .ok()?;
        Some(stack)
    }

    pub(crate) fn socket(&mut self) -> &mut Socket<'static> {
        self.sockets.get_mut(self.handle)
    }

    /// Takes bytes of the guest out of the receive buffer, as many as `work` says.
    pub(crate) fn take<R>(&mut self, work: impl FnOnce(&mut [u8]) -> (usize, R)) -> Option<R> {
        let window = &mut self.window;
        let socket = self.sockets.get_mut::<Socket<'_>>(self.handle);
        let taken = socket.recv(|bytes| {
            let (len, result) = work(bytes);
            if let Some(window) = window {
                window.take(len);
            }
            (len, result)
        });
        taken.ok()
    }

    /// Processes the packet of `device`.
    pub(crate) fn receive(&mut self, device: &mut FlowDevice<'_>, now: Instant) {
        let Some(packet) = device.packet else { return };
        let Some(segment) = Ipv4::parse(packet).and_then(|ip| Tcp::parse(ip.payload)) else {
            return;
        };
        let socket = self.socket();
        let was = socket.state();
        let is_opening = matches!(was, State::Listen | State::SynSent);
        if let Some(window) = self.window.filter(|_| !is_opening) {
            let socket = self.socket();
            let queued = socket.recv_queue();
            let is_closed = matches!(
                was,
                State::CloseWait | State::LastAck | State::Closing | State::TimeWait
            );
            let room = if is_closed {
                0
            } else {
                socket.recv_capacity() - queued
            };
            match window.fit(packet, &segment, queued, room) {
                Fit::All => self.process(device, now),
                Fit::Nothing => {}
                Fit::Instead(packet) => {
                    let mut device = FlowDevice {
                        port: device.port,
                        mac: device.mac,
                        packet: Some(&packet),
                        frames_only: device.frames_only,
                    };
                    self.process(&mut device, now);
                }
            }
            return;
        }
        self.process(device, now);
        let is_known = !matches!(
            self.socket().state(),
            State::Listen | State::SynSent | State::Closed
        );
        if is_opening && is_known {
            self.window = Some(Window::new(&segment));
            let tiny = MAX_PACKET.div_ceil(MAX_FRAMES);
            self.has_tiny_segments = max_segment(packet).is_some_and(|size| size < tiny);
        }
    }

    fn process(&mut self, device: &mut FlowDevice<'_>, now: Instant) {
        self.contain(|stack| {
            stack
                .interface
                .poll_ingress_single(now, device, &mut stack.sockets);
        });
    }

    /// Sends pending data as far as there is room. Returns true if there was any.
    pub(crate) fn transmit(&mut self, device: &mut FlowDevice<'_>, now: Instant) -> bool {
        let mut sent = false;
        device.frames_only |= self.has_tiny_segments;
        if self.frames_only != device.frames_only {
            self.interface = interface(device, now, self.local);
            self.frames_only = device.frames_only;
        }
        self.contain(|stack| {
            for _ in 0..MAX_BURST {
                match stack.interface.poll_egress(now, device, &mut stack.sockets) {
                    PollResult::None => break,
                    PollResult::SocketStateChanged => sent = true,
                }
            }
        });
        sent
    }

    /// Runs smoltcp on data from a guest. If it panics, only this connection fails. The network, which serves all
    /// guests, continues.
    fn contain(&mut self, work: impl FnOnce(&mut Self)) {
        if self.failed {
            return;
        }
        // A stack that has panicked is only dropped.
        let work = AssertUnwindSafe(|| work(self));
        if catch_unwind(work).is_err() {
            tracing::error!("giving up a TCP connection, because its state became inconsistent");
            self.failed = true;
        }
    }

    /// The connection must be given up.
    pub(crate) fn has_failed(&self) -> bool {
        self.failed
    }

    /// When [`Self::transmit`] must be called next, if nothing arrives before.
    pub(crate) fn next(&mut self, now: Instant) -> Option<Instant> {
        self.interface.poll_at(now, &self.sockets)
    }
}

/// The maximum segment size that the SYN in a packet announces (RFC 9293, 3.2).
fn max_segment(packet: &[u8]) -> Option<usize> {
    let payload = Ipv4::parse(packet)?.payload;
    let header = usize::from(*payload.get(12)? >> 4) * 4;
    let mut options = payload.get(TCP..header)?;
    loop {
        match *options {
            [1, ref rest @ ..] => options = rest,
            [2, 4, high, low, ..] => return Some(usize::from(u16::from_be_bytes([high, low]))),
            [kind, len, ..] if kind > 1 && len >= 2 => options = options.get(usize::from(len)..)?,
            _ => return None,
        }
    }
}

#[cfg(test)]
#[path = "mod_test.rs"]
mod tests;
