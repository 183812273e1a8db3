//! Two members and a socket of the host, without a VM and without root.
//!
//! `left` and `right` are the ends of two links. `right` is a small guest, which echoes what it receives on TCP port 7.
//! `left` writes a frame with an IPv4 packet and sends it to `right`. Then the host connects to `right`: through a stream
//! in this process, and through a port on loopback. Run it with `cargo run -p fleetbox-net --example two_links`.

use std::collections::VecDeque;
use std::error::Error;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use fleetbox_net::{Attachment, Member, Network, NetworkConfig};
use fleetbox_packet::{HEADER, MAX_PACKET, Packet};
use nix::sys::socket::{MsgFlags, recv, send};
use smoltcp::iface::{Config, Interface, SocketSet};
use smoltcp::phy::{ChecksumCapabilities, Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp;
use smoltcp::wire::{EthernetAddress, IpCidr, IpProtocol, Ipv4Packet, Ipv4Repr};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const LEFT: [u8; 6] = [2, 0, 0, 0, 0, 1];
const RIGHT: [u8; 6] = [2, 0, 0, 0, 0, 2];
/// Bytes of the headers of Ethernet and of IPv4.
const HEADERS: usize = 14 + 20;
/// An IP protocol for experiments (RFC 3692).
const EXPERIMENT: u8 = 253;

/// Runs the example.
pub(crate) fn main() -> Result<(), Box<dyn Error>> {
    let network = Network::start(NetworkConfig::default())?;
    let attach = |name: &str, mac| {
        let name = name.to_owned();
        network.attach(Member {
            name,
            mac,
            ip: None,
        })
    };
    let (left, right) = (attach("left", LEFT)?, attach("right", RIGHT)?);
    let right_ip = right.ip;
    let address = right_ip.into();
    let (found, frames) = channel();
    let (running, stop) = channel();
    let guest = std::thread::spawn(move || serve(right, &found, &stop));

    // From a member to a member: a header which says that nothing is left to do, and a frame.
    let header = [0; HEADER];
    let frame = experiment(left.ip, right_ip, b"hello");
    let packet = [&header[..], &frame].concat();
    send(left.link.as_raw_fd(), &packet, MsgFlags::empty())?;
    let frame = frames.recv_timeout(Duration::from_secs(20))?;
    assert_eq!(frame[HEADERS..], *b"hello");
    println!("left -> right: a frame of {} bytes", frame.len());

    // From the host to a member, by a stream in this process.
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let answer = runtime.enable_all().build()?.block_on(async {
        let mut stream = network.connect(address, 7).await?;
        stream.write_all(b"stream").await?;
        let mut answer = [0; 6];
        stream.read_exact(&mut answer).await?;
        Ok::<_, Box<dyn Error>>(answer)
    })?;
    assert_eq!(answer, *b"stream");
    println!("host -> right: echoed through a stream");

    // From the host to a member, by a port on loopback that any program can use.
    let forward = network.forward(address, 7)?;
    let mut socket = TcpStream::connect(forward.address())?;
    socket.set_read_timeout(Some(Duration::from_secs(20)))?;
    socket.write_all(b"socket")?;
    let mut answer = [0; 6];
    socket.read_exact(&mut answer)?;
    assert_eq!(answer, *b"socket");
    println!("host -> right: echoed through {}", forward.address());

    drop(running);
    guest.join().map_err(|_| "the guest has panicked".into())
}

/// A frame from `left` to `right` with an experimental packet. The network drops frames of other kinds than ARP and IPv4.
fn experiment(from: Ipv4Addr, to: Ipv4Addr, payload: &[u8]) -> Vec<u8> {
    let ip = Ipv4Repr {
        src_addr: from,
        dst_addr: to,
        next_header: IpProtocol::Unknown(EXPERIMENT),
        payload_len: payload.len(),
        hop_limit: 64,
    };
    let mut header = [0; HEADERS - 14];
    ip.emit(
        &mut Ipv4Packet::new_unchecked(&mut header[..]),
        &ChecksumCapabilities::default(),
    );
    [&RIGHT[..], &LEFT, &[0x08, 0x00], &header, payload].concat()
}

/// The guest: echoes on port 7, and passes on experimental packets, until `stop` is closed.
fn serve(attachment: Attachment, found: &Sender<Vec<u8>>, stop: &Receiver<()>) {
    let mut nic = Nic {
        link: attachment.link,
        frames: VecDeque::new(),
        found: found.clone(),
    };
    let start = Instant::now();
    let now = || smoltcp::time::Instant::from_micros(start.elapsed().as_micros() as i64);
    let config = Config::new(EthernetAddress(RIGHT).into());
    let mut interface = Interface::new(config, &mut nic, now());
    interface.update_ip_addrs(|list| {
        let _ = list.push(IpCidr::new(attachment.ip.into(), 24));
    });
    let mut sockets = SocketSet::new(Vec::new());
    let buffer = || tcp::SocketBuffer::new(vec![0; 4096]);
    // One for each connection that the example makes.
    let handles = [(); 2].map(|()| sockets.add(tcp::Socket::new(buffer(), buffer())));
    for handle in handles {
        let socket = sockets.get_mut::<tcp::Socket<'_>>(handle);
        socket.listen(7).expect("a new socket can listen");
    }
    while stop.try_recv() != Err(std::sync::mpsc::TryRecvError::Disconnected) {
        interface.poll(now(), &mut nic, &mut sockets);
        for handle in handles {
            let socket = sockets.get_mut::<tcp::Socket<'_>>(handle);
            let mut bytes = [0; 4096];
            if socket.can_recv()
                && let Ok(len) = socket.recv_slice(&mut bytes)
            {
                let _ = socket.send_slice(&bytes[..len]);
            }
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A network device on a link. It does the work that senders leave to it frame by frame.
struct Nic {
    link: std::os::fd::OwnedFd,
    frames: VecDeque<Vec<u8>>,
    found: Sender<Vec<u8>>,
}

impl Nic {
    fn next(&mut self) -> Option<Vec<u8>> {
        while self.frames.is_empty() {
            let mut bytes = vec![0; HEADER + MAX_PACKET];
            let len = recv(self.link.as_raw_fd(), &mut bytes, MsgFlags::MSG_DONTWAIT).ok()?;
            let packet = Packet::parse(&bytes[..len])?;
            packet.for_each_frame(|frame| match frame.get(23) == Some(&EXPERIMENT) {
                true => drop(self.found.send(frame.to_vec())),
                false => self.frames.push_back(frame.to_vec()),
            });
        }
        self.frames.pop_front()
    }
}

impl Device for Nic {
    type RxToken<'a> = Incoming;
    type TxToken<'a> = Outgoing<'a>;

    fn receive(&mut self, _: smoltcp::time::Instant) -> Option<(Incoming, Outgoing<'_>)> {
        let frame = self.next()?;
        Some((Incoming(frame), Outgoing(self)))
    }

    fn transmit(&mut self, _: smoltcp::time::Instant) -> Option<Outgoing<'_>> {
        Some(Outgoing(self))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = 1514;
        capabilities
    }
}

struct Incoming(Vec<u8>);

impl RxToken for Incoming {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, read: F) -> R {
        read(&self.0)
    }
}

struct Outgoing<'a>(&'a Nic);

impl TxToken for Outgoing<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, write: F) -> R {
        let mut packet = vec![0; HEADER + len];
        let result = write(&mut packet[HEADER..]);
        // A full link loses the frame, as any network may.
        let _ = send(self.0.link.as_raw_fd(), &packet, MsgFlags::MSG_DONTWAIT);
        result
    }
}
