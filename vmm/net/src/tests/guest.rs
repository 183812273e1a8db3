//! A guest in process: a second smoltcp on the other end of the link.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use fleetbox_packet::{HEADER, MAX_PACKET, Packet, offload_tcp};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, recv, send};
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{
    Checksum, ChecksumCapabilities, Device, DeviceCapabilities, Medium, PacketMeta, RxToken,
    TxToken,
};
use smoltcp::socket::{dhcpv4, tcp, udp};
use smoltcp::wire::{EthernetAddress, IpCidr, Ipv4Cidr};

use crate::frame::{self, ETHERNET, IPV4, Ipv4, Ipv4Header, Mac};
use crate::{Attachment, Member, Network, NetworkConfig};

/// Where tests see the host's loopback.
pub(super) const HOST: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
/// Longer than anything takes on a busy machine.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);

pub(super) fn config() -> NetworkConfig {
    let mut config = NetworkConfig {
        resolvers: Some(Vec::new()),
        ..NetworkConfig::default()
    };
    config
        .host_map
        .insert(HOST, IpAddr::V4(Ipv4Addr::LOCALHOST));
    config
}

pub(super) fn mac(number: u8) -> [u8; 6] {
    [2, 0, 0, 0, 0, number]
}

pub(super) fn attach(network: &Network, name: &str, number: u8) -> Attachment {
    let port = Member {
        name: name.to_owned(),
        mac: mac(number),
        ip: None,
    };
    network.attach(port).unwrap()
}

/// The protocol for experiments (RFC 3692, 2.1), which nothing answers.
pub(super) const NOTE: u8 = 253;

/// A frame that only carries a text, from an address that nobody has.
pub(super) fn note(to: Mac, from: Mac, text: &[u8]) -> Vec<u8> {
    let mut frame = vec![0; ETHERNET + IPV4];
    frame.extend_from_slice(text);
    frame::ethernet(&mut frame, to, from, frame::TYPE_IPV4);
    let total = frame.len() - ETHERNET;
    let [source, to] = [200, 201].map(|number| Ipv4Addr::new(10, 187, 41, number));
    Ipv4Header::new(source, to, NOTE).write(&mut frame[ETHERNET..], total);
    frame
}

/// The text of a [`note`].
pub(super) fn text(frame: &[u8]) -> Option<&[u8]> {
    let is_ipv4 = frame.get(12..14)? == frame::TYPE_IPV4.to_be_bytes();
    let packet = Ipv4::parse(frame.get(ETHERNET..)?).filter(|_| is_ipv4)?;
    (packet.protocol == NOTE).then_some(packet.payload)
}

/// A guest's end of a link, and a device that leaves nothing to the network but takes frames only.
pub(super) struct Wire {
    pub(super) socket: OwnedFd,
    /// Frames of a large packet.
    frames: RefCell<VecDeque<Vec<u8>>>,
    /// It leaves checksums and the cutting of large packets to the network, and takes what others
    /// left.
    large: bool,
    /// Its packets are frames without a header: the other end of the uplink.
    is_bare: bool,
}

impl Wire {
    pub(super) fn new(socket: OwnedFd) -> Self {
        Self {
            socket,
            frames: RefCell::default(),
            large: false,
            is_bare: false,
        }
    }

    /// The other end of the uplink.
    pub(super) fn bare(socket: OwnedFd) -> Self {
        let mut wire = Self::new(socket);
        wire.is_bare = true;
        wire
    }

    pub(super) fn send(&self, frame: &[u8]) -> nix::Result<usize> {
        if self.is_bare {
            return self.send_packet(frame);
        }
        self.send_packet(&[&[0; HEADER], frame].concat())
    }

    /// Sends a packet with the header in front of it.
    pub(super) fn send_packet(&self, packet: &[u8]) -> nix::Result<usize> {
        send(self.socket.as_raw_fd(), packet, MsgFlags::MSG_DONTWAIT)
    }

    /// The next packet as it comes.
    pub(super) fn receive_packet(&self) -> Option<Vec<u8>> {
        let mut packet = vec![0; HEADER + MAX_PACKET];
        let len = recv(self.socket.as_raw_fd(), &mut packet, MsgFlags::MSG_DONTWAIT).ok()?;
        packet.truncate(len);
        (len > 0).then_some(packet)
    }

    pub(super) fn receive(&self) -> Option<Vec<u8>> {
        let mut frames = self.frames.borrow_mut();
        if frames.is_empty() {
            let packet = self.receive_packet()?;
            if self.is_bare {
                return Some(packet);
            }
            let packet = Packet::parse(&packet).expect("a packet");
            packet.for_each_frame(|frame| frames.push_back(frame.to_vec()));
        }
        frames.pop_front()
    }

    /// The next frame that `wanted` takes.
    pub(super) fn expect(&self, mut wanted: impl FnMut(&[u8]) -> bool) -> Vec<u8> {
        let end = Instant::now() + PATIENCE;
        while Instant::now() < end {
            match self.receive() {
                Some(frame) if wanted(&frame) => return frame,
                Some(_) => {}
                None => self.wait(Duration::from_millis(100)),
            }
        }
        panic!("the frame did not come");
    }

    pub(super) fn wait(&self, limit: Duration) {
        if !self.frames.borrow().is_empty() {
            return;
        }
        let mut fds = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
        let limit = PollTimeout::try_from(limit.as_millis().max(1)).unwrap();
        poll(&mut fds, limit).unwrap();
    }
}

pub(super) struct Received(Vec<u8>);
pub(super) struct Sending<'a> {
    wire: &'a Wire,
    segment: u16,
}

impl RxToken for Received {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

impl TxToken for Sending<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut bytes = vec![0; HEADER + len];
        let result = f(&mut bytes[HEADER..]);
        if self.wire.large && !offload_tcp(&mut bytes, self.segment) {
            bytes[..HEADER].fill(0);
        }
        let _ = self.wire.send_packet(&bytes);
        result
    }

    fn set_meta(&mut self, meta: PacketMeta) {
        self.segment = meta.segmentation_offload_size.map_or(0, Into::into);
    }
}

impl Device for Wire {
    type RxToken<'a> = Received;
    type TxToken<'a> = Sending<'a>;

    fn receive(&mut self, _: smoltcp::time::Instant) -> Option<(Received, Sending<'_>)> {
        let frame = if self.large {
            self.receive_packet()?.split_off(HEADER)
        } else {
            Wire::receive(self)?
        };
        let sending = self.transmit(smoltcp::time::Instant::ZERO)?;
        Some((Received(frame), sending))
    }

    fn transmit(&mut self, _: smoltcp::time::Instant) -> Option<Sending<'_>> {
        Some(Sending {
            wire: self,
            segment: 0,
        })
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = 1514;
        if self.large {
            capabilities.checksum = ChecksumCapabilities::ignored();
            capabilities.checksum.ipv4 = Checksum::Both;
            capabilities.segmentation.tcpv4 = NonZeroUsize::new(14 + 65535);
        }
        capabilities
    }
}

pub(super) struct Guest {
    pub(super) wire: Wire,
    pub(super) interface: Interface,
    pub(super) sockets: SocketSet<'static>,
    pub(super) ip: Ipv4Addr,
    start: Instant,
    next_port: u16,
}

impl Guest {
    /// A guest that has not configured its network yet.
    pub(super) fn bare(attachment: Attachment, number: u8) -> Self {
        Self::with_wire(Wire::new(attachment.link), attachment.ip, number)
    }

    pub(super) fn with_wire(mut wire: Wire, ip: Ipv4Addr, number: u8) -> Self {
        let mut config = Config::new(EthernetAddress(mac(number)).into());
        config.random_seed = u64::from(number);
        let interface = Interface::new(config, &mut wire, smoltcp::time::Instant::ZERO);
        Self {
            wire,
            interface,
            sockets: SocketSet::new(Vec::new()),
            ip,
            start: Instant::now(),
            next_port: 40000,
        }
    }

    /// A guest with its address.
    pub(super) fn join(network: &Network, name: &str, number: u8) -> Self {
        Self::bare(attach(network, name, number), number).configured(network)
    }

    /// A guest with its address whose device leaves to others what it may.
    pub(super) fn join_large(network: &Network, name: &str, number: u8) -> Self {
        let attachment = attach(network, name, number);
        let mut wire = Wire::new(attachment.link);
        wire.large = true;
        Self::with_wire(wire, attachment.ip, number).configured(network)
    }

    pub(super) fn configured(self, network: &Network) -> Self {
        let mut guest = self;
        let gateway = network.config().subnet.gateway();
        guest.configure(
            Ipv4Cidr::new(guest.ip, network.config().subnet.prefix()),
            gateway,
        );
        guest
    }

    pub(super) fn configure(&mut self, address: Ipv4Cidr, gateway: Ipv4Addr) {
        self.interface
            .update_ip_addrs(|list| list.push(IpCidr::Ipv4(address)).unwrap());
        let routes = self.interface.routes_mut();
        routes.add_default_ipv4_route(gateway).unwrap();
    }

    pub(super) fn now(&self) -> smoltcp::time::Instant {
        smoltcp::time::Instant::from_micros(self.start.elapsed().as_micros() as i64)
    }

    pub(super) fn step(&mut self) {
        let now = self.now();
        self.interface.poll(now, &mut self.wire, &mut self.sockets);
    }

    /// Runs the guest until `done` gives something.
    pub(super) fn until<R>(&mut self, mut done: impl FnMut(&mut Self) -> Option<R>) -> R {
        let end = Instant::now() + PATIENCE;
        loop {
            self.step();
            if let Some(result) = done(self) {
                self.step();
                return result;
            }
            assert!(Instant::now() < end, "the guest waited too long");
            let now = self.now();
            let delay = self.interface.poll_delay(now, &self.sockets);
            let delay = delay.map_or(20, |delay| delay.total_millis()).min(20);
            if delay > 0 {
                self.wire.wait(Duration::from_millis(delay));
            }
        }
    }

    pub(super) fn dhcp(&mut self) -> dhcpv4::Config<'static> {
        let handle = self.sockets.add(dhcpv4::Socket::new());
        self.until(
            |guest| match guest.sockets.get_mut::<dhcpv4::Socket<'_>>(handle).poll() {
                Some(dhcpv4::Event::Configured(config)) => Some(dhcpv4::Config {
                    packet: None,
                    server: config.server,
                    address: config.address,
                    router: config.router,
                    dns_servers: config.dns_servers.clone(),
                }),
                _ => None,
            },
        )
    }

    pub(super) fn tcp(&mut self, handle: SocketHandle) -> &mut tcp::Socket<'static> {
        self.sockets.get_mut(handle)
    }

    fn tcp_socket(&mut self, buffer: usize) -> SocketHandle {
        let mut socket = tcp::Socket::new(
            tcp::SocketBuffer::new(vec![0; buffer]),
            tcp::SocketBuffer::new(vec![0; buffer]),
        );
        socket.set_ack_delay(None);
        socket.set_nagle_enabled(false);
        self.sockets.add(socket)
    }

    pub(super) fn start_connect(&mut self, to: SocketAddr, buffer: usize) -> SocketHandle {
        let handle = self.tcp_socket(buffer);
        self.next_port += 1;
        let SocketAddr::V4(to) = to else { panic!() };
        let socket = self.sockets.get_mut::<tcp::Socket<'_>>(handle);
        socket
            .connect(self.interface.context(), to, self.next_port)
            .unwrap();
        handle
    }

    /// Connects; `None` if refused.
    pub(super) fn connect(&mut self, to: SocketAddr) -> Option<SocketHandle> {
        let handle = self.start_connect(to, 256 << 10);
        self.until(|guest| match guest.tcp(handle).state() {
            tcp::State::SynSent => None,
            tcp::State::Closed => Some(None),
            _ => Some(Some(handle)),
        })
    }

    pub(super) fn listen(&mut self, port: u16) -> SocketHandle {
        let handle = self.tcp_socket(256 << 10);
        self.tcp(handle).listen(port).unwrap();
        handle
    }

    /// Sends all of `data`.
    pub(super) fn send(&mut self, handle: SocketHandle, mut data: &[u8]) {
        self.until(|guest| {
            let socket = guest.tcp(handle);
            if socket.can_send() {
                let sent = socket.send_slice(data).unwrap();
                data = &data[sent..];
            }
            data.is_empty().then_some(())
        });
    }

    /// Appends what has come by a connection to `all`, and returns its socket.
    pub(super) fn drain(
        &mut self,
        handle: SocketHandle,
        all: &mut Vec<u8>,
    ) -> &mut tcp::Socket<'static> {
        let socket = self.tcp(handle);
        while socket.can_recv() {
            socket
                .recv(|data| {
                    all.extend_from_slice(data);
                    (data.len(), ())
                })
                .unwrap();
        }
        socket
    }

    /// Receives until the peer closes; `None` if it resets.
    pub(super) fn receive_all(&mut self, handle: SocketHandle) -> Option<Vec<u8>> {
        let mut all = Vec::new();
        self.until(|guest| match guest.drain(handle, &mut all).state() {
            tcp::State::Established | tcp::State::FinWait1 | tcp::State::FinWait2 => None,
            tcp::State::Closed => Some(None),
            _ => Some(Some(())),
        })?;
        Some(all)
    }

    /// Receives exactly `len` bytes.
    pub(super) fn receive(&mut self, handle: SocketHandle, len: usize) -> Vec<u8> {
        let mut all = Vec::new();
        self.until(|guest| {
            let socket = guest.tcp(handle);
            if socket.can_recv() {
                let wanted = len - all.len();
                socket
                    .recv(|data| {
                        let part = &data[..data.len().min(wanted)];
                        all.extend_from_slice(part);
                        (part.len(), ())
                    })
                    .unwrap();
            }
            (all.len() == len).then_some(())
        });
        all
    }

    pub(super) fn udp(&mut self, port: u16) -> SocketHandle {
        let buffer =
            || udp::PacketBuffer::new(vec![udp::PacketMetadata::EMPTY; 16], vec![0; 16 << 10]);
        let mut socket = udp::Socket::new(buffer(), buffer());
        socket.bind(port).unwrap();
        self.sockets.add(socket)
    }

    pub(super) fn send_to(&mut self, handle: SocketHandle, to: SocketAddr, data: &[u8]) {
        let SocketAddr::V4(to) = to else { panic!() };
        let socket = self.sockets.get_mut::<udp::Socket<'_>>(handle);
        socket.send_slice(data, to).unwrap();
        self.step();
    }

    pub(super) fn receive_from(&mut self, handle: SocketHandle) -> Vec<u8> {
        self.until(|guest| {
            let socket = guest.sockets.get_mut::<udp::Socket<'_>>(handle);
            socket.recv().ok().map(|(data, _)| data.to_vec())
        })
    }
}

/// A server on one thread for `count` connections at once, each of which asks by a number for
/// `len` bytes of the pattern of that number and then closes.
pub(super) fn serve_many(count: usize, len: usize) -> (SocketAddr, JoinHandle<()>) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    allow_descriptors();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let port = listener.local_addr().unwrap().port();
    let thread = std::thread::spawn(move || {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = runtime.enable_all().build().unwrap();
        runtime.block_on(async move {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            let mut tasks = tokio::task::JoinSet::new();
            for _ in 0..count {
                let (mut stream, _) = listener.accept().await.unwrap();
                tasks.spawn(async move {
                    let number = stream.read_u32_le().await.unwrap();
                    stream.write_all(&pattern(len, number)).await.unwrap();
                    assert_eq!(stream.read(&mut [0]).await.unwrap(), 0);
                });
            }
            while let Some(result) = tasks.join_next().await {
                result.unwrap();
            }
        });
    });
    ((HOST, port).into(), thread)
}

/// Raises the limit of open descriptors as far as this process may; many have 1024.
fn allow_descriptors() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, most, most).unwrap();
}

/// Bytes that show any loss, repetition or exchange.
pub(super) fn pattern(len: usize, seed: u32) -> Vec<u8> {
    let mut state = seed | 1;
    let mut bytes = Vec::with_capacity(len + 4);
    while bytes.len() < len {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        bytes.extend((state >> 8).to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}
