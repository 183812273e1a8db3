//! A network with three guests that send what they like: raw frames, and segments of TCP connections that they have
//! opened or accepted. A small model of each connection knows the numbers, so that segments meet open connections.
//!
//! Guests talk to the gateway only, and no resolver is asked: nothing leaves the process.

use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::panic;
use std::pin::Pin;
use std::sync::Once;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Waker};
use std::time::{Duration, Instant};

use fleetbox_net::{ConnectError, GuestStream, LinkConditions, Member, Network, NetworkConfig};
use nix::sys::socket::{MsgFlags, recv, send};

const GUESTS: usize = 3;
/// Bytes of the header of a packet, of Ethernet and of IPv4 (fleetbox-packet).
const HEADER: usize = 12;
const ETHERNET: usize = 14;
const IPV4: usize = 20;
const TCP: usize = 20;
/// The network's own hardware address.
const GATEWAY_MAC: [u8; 6] = [0x02, 0xf1, 0xee, 0x7b, 0x0c, 0x01];
const GATEWAY: [u8; 4] = [10, 187, 41, 1];
/// Connections that a guest keeps in mind.
const MAX_CONNECTIONS: usize = 8;
const MAX_STEPS: usize = 200;
/// Longer than anything takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// The bytes that decide what happens.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn byte(&mut self) -> u8 {
        let (first, rest) = self.0.split_first().unwrap_or((&0, &[]));
        self.0 = rest;
        *first
    }

    fn below(&mut self, limit: usize) -> usize {
        usize::from(self.byte()) % limit
    }

    fn number(&mut self) -> u16 {
        u16::from_be_bytes([self.byte(), self.byte()])
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        let (bytes, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        bytes.to_vec()
    }

    /// A distance from where something is expected: mostly none, or one where faults are likely.
    fn distance(&mut self) -> u32 {
        match self.byte() {
            0..128 => 0,
            128..160 => u32::from(self.byte()),
            160..176 => u32::from(self.byte()).wrapping_neg(),
            176..208 => u32::from(self.number()) * 10,
            208..224 => (1 << 31) + u32::from(self.byte()) - 128,
            224..232 => 1 << 30,
            _ => u32::from(self.number()) << 16 | u32::from(self.number()),
        }
    }
}

/// What a guest knows of a connection.
#[derive(Clone, Copy)]
struct Connection {
    own_port: u16,
    port: u16,
    /// The next numbers of the guest and of the gateway.
    own: u32,
    other: u32,
}

struct Guest {
    link: OwnedFd,
    mac: [u8; 6],
    ip: [u8; 4],
    sent: u64,
    connections: Vec<Connection>,
}

type Connecting<'a> = Pin<Box<dyn Future<Output = Result<GuestStream, ConnectError>> + 'a>>;

/// Panics of the network's thread, which it contains.
static PANICS: AtomicUsize = AtomicUsize::new(0);

/// Lets the guests do what the input says.
///
/// # Panics
/// A fault was found: the network's thread has panicked, or stands still.
pub fn run(input: &[u8]) {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let next = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if std::thread::current().name() == Some("fleetbox-net") {
                PANICS.fetch_add(1, Ordering::SeqCst);
            }
            next(info);
        }));
    });
    let before = PANICS.load(Ordering::SeqCst);
    play(&mut Input(input));
    let after = PANICS.load(Ordering::SeqCst);
    assert_eq!(after, before, "the network's thread has panicked");
}

fn play(input: &mut Input<'_>) {
    let config = NetworkConfig {
        resolvers: Some(Vec::new()),
        ..NetworkConfig::default()
    };
    let network = Network::start(config).expect("a network");
    let mut guests: Vec<_> = (0..GUESTS).map(|number| attach(&network, number)).collect();
    let mut connecting: Vec<Connecting<'_>> = Vec::new();
    for _ in 0..MAX_STEPS {
        if input.0.is_empty() {
            break;
        }
        let number = input.below(GUESTS);
        let step = input.byte() % 16;
        let guest = &mut guests[number];
        match step {
            0..2 => {
                let len = usize::from(input.number()) % 1600;
                let frame = input.bytes(len);
                guest.send(&[&[0; HEADER], &frame[..]].concat());
            }
            2 => {
                let len = usize::from(input.number()) % 3000;
                let packet = input.bytes(len);
                guest.send(&packet);
            }
            3..5 => guest.open(input),
            5..12 => guest.segment(input),
            12 => guest.datagram(input),
            13 => {
                guest.announce();
                let (ip, port) = (Ipv4Addr::from(guest.ip), input.number());
                // The network gets the request when this is first polled.
                let mut attempt: Connecting<'_> = Box::pin(network.connect(ip.into(), port));
                let mut context = Context::from_waker(Waker::noop());
                if attempt.as_mut().poll(&mut context).is_pending() && connecting.len() < 8 {
                    connecting.push(attempt);
                }
            }
            14 => {
                let conditions = LinkConditions {
                    loss: f64::from(input.byte() % 3) / 4.0,
                    ..LinkConditions::default()
                };
                network.set_links_of(format!("m{number}").as_str(), conditions).expect("conditions");
            }
            _ => {
                network.detach(&format!("m{number}")).expect("a member");
                *guest = attach(&network, number);
            }
        }
        settle(&network, &guests);
        guests.iter_mut().for_each(Guest::listen);
    }
}

fn attach(network: &Network, number: usize) -> Guest {
    let mac = [2, 0, 0, 0, 0, number as u8 + 1];
    let member = Member {
        name: format!("m{number}"),
        mac,
        ip: None,
    };
    let attachment = network.attach(member).expect("a member");
    Guest {
        link: attachment.link,
        mac,
        ip: attachment.ip.octets(),
        sent: 0,
        connections: Vec::new(),
    }
}

/// Waits until the network has read all that guests have sent.
fn settle(network: &Network, guests: &[Guest]) {
    let end = Instant::now() + PATIENCE;
    loop {
        let status = network.status().expect("the network's thread");
        let has_read = |guest: &Guest| {
            let mut ports = status.ports.iter();
            ports.any(|port| port.mac == guest.mac && (port.frames_in >= guest.sent || !port.up))
        };
        if guests.iter().all(has_read) {
            return;
        }
        assert!(Instant::now() < end, "the network stands still");
        std::thread::yield_now();
    }
}

impl Guest {
    fn send(&mut self, packet: &[u8]) {
        let sent = send(self.link.as_raw_fd(), packet, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL);
        // An empty packet would be the end of the link.
        self.sent += u64::from(sent.is_ok_and(|len| len > 0));
    }

    /// Sends an IPv4 packet to the gateway. `header` is that of virtio.
    fn packet(&mut self, header: [u8; HEADER], protocol: u8, fragment: u16, body: &[u8]) {
        let mut packet = header.to_vec();
        packet.extend(GATEWAY_MAC);
        packet.extend(self.mac);
        packet.extend([8, 0, 0x45, 0]);
        packet.extend(((IPV4 + body.len()) as u16).to_be_bytes());
        packet.extend([0, 7]);
        packet.extend(fragment.to_be_bytes());
        packet.extend([64, protocol, 0, 0]);
        packet.extend(self.ip);
        packet.extend(GATEWAY);
        packet.extend(body);
        self.send(&packet);
    }

    /// Says that the guest uses its address.
    fn announce(&mut self) {
        let mut packet = vec![0; HEADER];
        packet.extend([0xff; 6]);
        packet.extend(self.mac);
        packet.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
        packet.extend(self.mac);
        packet.extend(self.ip);
        packet.extend([0; 6]);
        packet.extend(GATEWAY);
        self.send(&packet);
    }

    /// Opens a connection to the gateway's DNS.
    fn open(&mut self, input: &mut Input<'_>) {
        let options: &[u8] = match input.below(4) {
            0 => &[],
            1 => &[2, 4, 5, 0xb4, 1, 3, 3, 7],
            2 => &[2, 4, 0, 48, 4, 2, 1, 1],
            _ => &input.bytes(20),
        };
        let connection = Connection {
            own_port: 20_000 + u16::from(input.byte() % 32),
            port: 53,
            own: u32::from(input.number()) << 16 | 0xff00,
            other: 0,
        };
        self.tcp(connection, 2, 0xffff, options, &[]);
        self.remember(Connection {
            own: connection.own.wrapping_add(1),
            ..connection
        });
    }

    /// Sends a segment of a connection.
    fn segment(&mut self, input: &mut Input<'_>) {
        if self.connections.is_empty() {
            return;
        }
        let index = input.below(self.connections.len());
        let known = self.connections[index];
        let (own, other) = (input.distance(), input.distance());
        let connection = Connection {
            own: known.own.wrapping_add(own),
            other: known.other.wrapping_add(other),
            ..known
        };
        let flags = match input.byte() {
            0..128 => 0x10,
            128..160 => 0x18,
            160..192 => 0x11,
            192..208 => 0x14,
            _ => input.byte(),
        };
        let window = match input.below(3) {
            0 => 0xffff,
            1 => 0,
            _ => input.number(),
        };
        let payload = match input.below(5) {
            0 => Vec::new(),
            1 => vec![7; usize::from(input.byte())],
            // More questions than one, with a length before each.
            2 => [&[0, 17, 0, 9, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 1][..]; 50].concat(),
            3 => vec![0; usize::from(input.number())],
            _ => {
                let len = usize::from(input.byte());
                input.bytes(len)
            }
        };
        self.tcp(connection, flags, window, &[], &payload);
        if own == 0 && flags & 2 == 0 {
            let sent = payload.len() as u32 + u32::from(flags & 1);
            self.connections[index].own = known.own.wrapping_add(sent);
        }
    }

    fn tcp(&mut self, connection: Connection, flags: u8, window: u16, options: &[u8], data: &[u8]) {
        let mut body = connection.own_port.to_be_bytes().to_vec();
        body.extend(connection.port.to_be_bytes());
        body.extend(connection.own.to_be_bytes());
        body.extend(connection.other.to_be_bytes());
        let mut options = options.to_vec();
        options.resize(options.len().next_multiple_of(4), 0);
        body.extend([((TCP + options.len()) as u8 / 4) << 4, flags]);
        body.extend(window.to_be_bytes());
        body.extend([0; 4]);
        body.extend(&options);
        let room = usize::from(u16::MAX) - IPV4 - body.len();
        body.extend(&data[..data.len().min(room)]);
        let mut header = [0; HEADER];
        if ETHERNET + IPV4 + body.len() > 1514 {
            // A large packet of TCP, whose checksum is missing.
            header[..2].copy_from_slice(&[1, 1]);
            header[4..6].copy_from_slice(&1400u16.to_le_bytes());
            header[6..8].copy_from_slice(&((ETHERNET + IPV4) as u16).to_le_bytes());
            header[8..10].copy_from_slice(&16u16.to_le_bytes());
        }
        self.packet(header, 6, 0, &body);
    }

    /// Sends a datagram, or a fragment of one, to the gateway's ports of DNS or DHCP.
    fn datagram(&mut self, input: &mut Input<'_>) {
        let port = if input.byte() & 1 == 0 { 53u16 } else { 67 };
        let fragment = if input.byte() & 1 == 0 { 0 } else { input.number() };
        let len = usize::from(input.number()) % 1400;
        let data = input.bytes(len);
        let mut body = 68u16.to_be_bytes().to_vec();
        body.extend(port.to_be_bytes());
        body.extend(((8 + data.len()) as u16).to_be_bytes());
        body.extend([0, 0]);
        body.extend(data);
        self.packet([0; HEADER], 17, fragment, &body);
    }

    fn remember(&mut self, connection: Connection) {
        let same = |other: &Connection| {
            (other.own_port, other.port) == (connection.own_port, connection.port)
        };
        self.connections.retain(|other| !same(other));
        if self.connections.len() == MAX_CONNECTIONS {
            self.connections.remove(0);
        }
        self.connections.push(connection);
    }

    /// Reads what has come, and keeps what it says of connections.
    fn listen(&mut self) {
        let mut packet = vec![0; HEADER + ETHERNET + usize::from(u16::MAX)];
        while let Ok(len) = recv(self.link.as_raw_fd(), &mut packet, MsgFlags::MSG_DONTWAIT) {
            let Some(frame) = packet.get(HEADER..len).filter(|frame| !frame.is_empty()) else {
                return;
            };
            self.understand(frame);
        }
    }

    fn understand(&mut self, frame: &[u8]) -> Option<()> {
        let segment = frame.get(ETHERNET + IPV4..)?;
        if frame.get(12..14)? != [8, 0] || frame[ETHERNET + 9] != 6 {
            return None;
        }
        let number = |at: usize| Some(u16::from_be_bytes(segment.get(at..at + 2)?.try_into().ok()?));
        let long = |at: usize| Some(u32::from_be_bytes(segment.get(at..at + 4)?.try_into().ok()?));
        let (port, own_port, sequence) = (number(0)?, number(2)?, long(4)?);
        let header = usize::from(segment.get(12)? >> 4) * 4;
        let flags = *segment.get(13)?;
        let occupied = segment.len().checked_sub(header)? as u32 + u32::from(flags & 3 != 0);
        let next = sequence.wrapping_add(occupied);
        let mut known = self.connections.iter_mut();
        match known.find(|known| (known.own_port, known.port) == (own_port, port)) {
            Some(known) => known.other = next,
            // The gateway opens a connection: it is accepted.
            None if flags & 0x12 == 2 => {
                let connection = Connection {
                    own_port,
                    port,
                    own: 0xffff_ff00,
                    other: next,
                };
                self.tcp(connection, 0x12, 0xffff, &[2, 4, 5, 0xb4, 1, 3, 3, 7], &[]);
                self.remember(Connection {
                    own: 0xffff_ff01,
                    ..connection
                });
            }
            None => {}
        }
        Some(())
    }
}
