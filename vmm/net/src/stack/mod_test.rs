use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::rc::Rc;

use nix::sys::socket::{MsgFlags, recv, send};
use proptest::prelude::*;

use super::*;
use crate::frame::{ACK, FIN, Ipv4Header, PROTO_TCP, RST, SYN, put};
use crate::port::{NewPort, new_link};

const GUEST: Ipv4Addr = Ipv4Addr::new(10, 187, 41, 2);
const REMOTE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);
const BUFFER: usize = 256 << 10;
/// The guest's first sequence number, near the end of their range.
const START: u32 = u32::MAX - 1000;

struct Peer {
    port: Rc<Port>,
    link: OwnedFd,
    stack: Stack,
    now: Instant,
    /// The next sequence number of ours that the guest acknowledges.
    ours: u32,
}

fn packet(sequence: u32, acknowledgement: u32, flags: u8, options: &[u8], data: &[u8]) -> Vec<u8> {
    let mut packet = vec![0; IPV4 + TCP];
    let header = Tcp {
        source: 4000,
        to: 80,
        sequence,
        acknowledgement,
        flags,
        payload: 0,
    };
    header.write(&mut packet[IPV4..], GUEST, REMOTE);
    put(
        &mut packet,
        IPV4 + 12,
        &[((TCP + options.len()) as u8 / 4) << 4],
    );
    put(&mut packet, IPV4 + 14, &[0xff, 0xff]);
    packet.extend(options);
    packet.extend(data);
    let total = packet.len();
    Ipv4Header::new(GUEST, REMOTE, PROTO_TCP).write(&mut packet, total);
    packet
}

/// A maximum segment size, and a window scale.
const OPTIONS: [u8; 8] = [2, 4, 5, 0xb4, 1, 3, 3, 7];

impl Peer {
    /// A port whose socket is known to be writable.
    async fn port() -> (Rc<Port>, OwnedFd) {
        let new = NewPort {
            name: "web".to_owned(),
            mac: [2, 0, 0, 0, 0, 1],
            ip: None,
            uplink: false,
        };
        let (ours, link) = new_link().unwrap();
        let port = Port::new(1, &new, GUEST, ours, Rc::default()).unwrap();
        send(link.as_raw_fd(), b"x", MsgFlags::empty()).unwrap();
        std::future::poll_fn(|cx| port.poll_readable(cx))
            .await
            .unwrap();
        (Rc::new(port), link)
    }

    fn device<'a>(port: &'a Port, packet: Option<&'a [u8]>) -> FlowDevice<'a> {
        FlowDevice {
            port,
            mac: port.mac,
            packet,
            frames_only: false,
        }
    }

    /// A connection whose SYN was answered.
    async fn accepted(options: &[u8]) -> Self {
        let (port, link) = Self::port().await;
        let now = Instant::ZERO;
        let syn = packet(START, 0, SYN, options, &[]);
        let mut device = Self::device(&port, Some(&syn));
        let stack = Stack::accept(&mut device, now, (REMOTE, 80).into(), BUFFER).unwrap();
        let mut peer = Self {
            port,
            link,
            stack,
            now,
            ours: 0,
        };
        peer.transmit();
        peer.ours = peer.answer().sequence.wrapping_add(1);
        peer
    }

    /// A connection that was opened to the guest, and that the guest accepts.
    async fn connected(options: &[u8]) -> Self {
        let (port, link) = Self::port().await;
        let now = Instant::ZERO;
        let mut device = Self::device(&port, None);
        let (local, remote) = ((REMOTE, 80).into(), (GUEST, 4000).into());
        let stack = Stack::connect(&mut device, now, local, remote, BUFFER).unwrap();
        let mut peer = Self {
            port,
            link,
            stack,
            now,
            ours: 0,
        };
        peer.transmit();
        peer.ours = peer.answer().sequence.wrapping_add(1);
        peer.give(&packet(START, peer.ours, SYN | ACK, options, &[]));
        peer
    }

    fn transmit(&mut self) {
        self.stack
            .transmit(&mut Self::device(&self.port, None), self.now);
        self.port.flush();
    }

    /// The last segment that the guest has got.
    fn answer(&self) -> Tcp {
        let mut last = None;
        let mut buffer = vec![0; HEADER + MAX_PACKET];
        while let Ok(len) = recv(self.link.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
            let ip = Ipv4::parse(&buffer[HEADER + ETHERNET..len]).unwrap();
            last = Some(Tcp::parse(ip.payload).unwrap());
        }
        last.expect("a segment")
    }

    fn give(&mut self, packet: &[u8]) {
        let mut device = Self::device(&self.port, Some(packet));
        self.stack.receive(&mut device, self.now);
        assert!(!self.stack.has_failed(), "smoltcp has panicked");
    }

    /// Gives data at an offset from the guest's first byte.
    fn data(&mut self, offset: u32, flags: u8, data: &[u8]) {
        let sequence = START.wrapping_add(1).wrapping_add(offset);
        self.give(&packet(sequence, self.ours, ACK | flags, &[], data));
    }

    fn received(&mut self) -> Vec<u8> {
        let mut all = Vec::new();
        while self.stack.socket().can_recv() {
            self.stack.take(|bytes| {
                all.extend_from_slice(bytes);
                (bytes.len(), ())
            });
        }
        all
    }
}

#[tokio::test]
async fn data_behind_the_first_window_is_not_taken() {
    for passive in [true, false] {
        let peer = async || match passive {
            true => Peer::accepted(&OPTIONS).await,
            false => Peer::connected(&OPTIONS).await,
        };
        for offset in [300_000, BUFFER as u32, BUFFER as u32 - 1, 65_536, 500_000] {
            let mut peer = peer().await;
            peer.data(0, 0, b"");
            peer.data(offset, 0, &[7; 1000]);
            // The connection goes on.
            peer.data(0, 0, b"hello");
            assert_eq!(peer.received(), b"hello", "{offset}");
        }
        // In the segment that completes the handshake, too.
        let mut peer = peer().await;
        peer.data(300_000, 0, &[7; 1000]);
        peer.data(0, 0, b"hello");
        assert_eq!(peer.received(), b"hello");
    }
}

#[tokio::test]
async fn more_than_the_buffer_in_one_turn_is_cut() {
    let mut peer = Peer::accepted(&OPTIONS).await;
    let sent: Vec<u8> = (0..300_000u32).map(|at| (at / 251) as u8).collect();
    for (index, part) in sent.chunks(60_000).enumerate() {
        peer.data(index as u32 * 60_000, 0, part);
    }
    assert_eq!(peer.received(), sent[..BUFFER]);
    peer.transmit();
    assert_eq!(
        peer.answer().acknowledgement,
        START.wrapping_add(1 + BUFFER as u32)
    );
    peer.data(BUFFER as u32, 0, &sent[BUFFER..]);
    assert_eq!(peer.received(), sent[BUFFER..]);
}

#[tokio::test]
async fn nothing_is_inside_behind_a_full_window() {
    for flags in [0, FIN, RST, SYN] {
        for len in [0, 1, 1000] {
            for beyond in [0x7fff_fffe, 0x7fff_ffff, 0x8000_0000, 0x8000_0001, 1] {
                let mut peer = Peer::accepted(&OPTIONS).await;
                peer.data(0, 0, b"");
                for index in 0..4 {
                    peer.data(index << 16, 0, &[7; 1 << 16][..65_000]);
                    peer.data((index << 16) + 65_000, 0, &[7; 536]);
                    peer.transmit();
                }
                let end = BUFFER as u32;
                peer.data(end, FIN, b"");
                peer.data(end.wrapping_add(beyond), flags, &vec![7; len]);
            }
        }
    }
}

#[tokio::test]
async fn a_probe_of_a_full_window_is_answered() {
    let mut peer = Peer::accepted(&OPTIONS).await;
    peer.data(0, 0, b"");
    for index in 0..5u32 {
        peer.data(index * 60_000, 0, &[7; 60_000]);
    }
    peer.transmit();
    peer.answer();
    peer.now += Duration::from_secs(2);
    peer.data(BUFFER as u32, 0, &[7]);
    peer.port.flush();
    let answer = peer.answer();
    assert_eq!(
        answer.acknowledgement,
        START.wrapping_add(1 + BUFFER as u32)
    );
}

#[tokio::test]
async fn tiny_segments_are_sent_as_frames() {
    for (size, whole) in [(48u16, false), (128, false), (129, true), (1460, true)] {
        let [high, low] = size.to_be_bytes();
        let mut peer = Peer::accepted(&[2, 4, high, low]).await;
        peer.data(0, 0, b"");
        peer.stack.socket().send_slice(&[7; 60_000]).unwrap();
        peer.transmit();
        let mut buffer = vec![0; HEADER + MAX_PACKET];
        let mut large = 0;
        while let Ok(len) = recv(peer.link.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
            // The receiver would refuse a packet that makes too many frames.
            let packet = fleetbox_packet::Packet::parse(&buffer[..len]).unwrap();
            large += usize::from(packet.large().is_some());
        }
        assert_eq!(large > 0, whole, "{size}");
    }
}

#[test]
fn the_segment_size_is_read_among_other_options() {
    let size = |options: &[u8]| max_segment(&packet(1, 0, SYN, options, &[]));
    assert_eq!(size(&OPTIONS), Some(1460));
    assert_eq!(size(&[1, 1, 4, 2, 2, 4, 0, 48]), Some(48));
    for none in [
        &[][..],
        &[0, 2, 4, 5],
        &[3, 1, 2, 4],
        &[3, 9, 0, 0],
        &[2, 4, 5, 2],
    ] {
        assert_ne!(size(none), Some(1460), "{none:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    /// Whatever a guest sends, smoltcp does not panic.
    #[test]
    fn any_segments_are_survived(
        passive in any::<bool>(),
        scaled in any::<bool>(),
        segments in prop::collection::vec(
            (
                // Where it begins, from the next expected byte, and from interesting places.
                prop_oneof![
                    4 => -3i32..70_000,
                    1 => 200_000i32..600_000,
                    1 => prop::sample::select(vec![i32::MAX, i32::MIN, i32::MIN + 1, 1 << 30]),
                    1 => any::<i32>(),
                ],
                prop_oneof![6 => Just(0i32), 2 => -3i32..3000, 1 => any::<i32>()],
                prop_oneof![6 => Just(ACK), 2 => Just(ACK | FIN), 1 => any::<u8>()],
                any::<u16>(),
                prop_oneof![2 => Just(0usize), 2 => 1usize..3000, 1 => 60_000usize..65_000],
                // What happens before: nothing, we send, we read, time passes, we close.
                0u8..12,
            ),
            1..40,
        ),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let options = if scaled { &OPTIONS[..] } else { &[] };
        let mut peer = runtime.block_on(async {
            if passive { Peer::accepted(options).await } else { Peer::connected(options).await }
        });
        let mut next = START.wrapping_add(1);
        for (place, acknowledged, flags, window, len, before) in segments {
            match before {
                0..4 => peer.transmit(),
                4 => { peer.received(); }
                5 => {
                    let _ = peer.stack.socket().send_slice(&[7; 2000]);
                    peer.transmit();
                }
                6 => peer.now += Duration::from_secs(70),
                7 => peer.stack.socket().close(),
                _ => {}
            }
            let sequence = next.wrapping_add_signed(place);
            let acknowledgement = peer.ours.wrapping_add_signed(acknowledged);
            let mut bytes = packet(sequence, acknowledgement, flags, &[], &vec![7; len]);
            put(&mut bytes, IPV4 + 14, &window.to_be_bytes());
            peer.give(&bytes);
            if place == 0 {
                next = next.wrapping_add(len as u32);
            }
        }
        peer.transmit();
        prop_assert!(!peer.stack.has_failed());
    }
}
