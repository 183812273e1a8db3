//! Guests reach the world.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use smoltcp::socket::tcp::State;

use super::guest::{Guest, HOST, PATIENCE, Wire, attach, config, mac, pattern, serve_many};
use crate::frame::{self, ETHERNET, GATEWAY_MAC, IPV4, Ipv4, Ipv4Header, PROTO_UDP, UDP, Udp};
use crate::{Limits, Network, NetworkConfig};

/// A server for `count` connections, each on a thread of its own.
fn serve<R: Send + 'static>(
    count: usize,
    work: impl Fn(TcpStream) -> R + Send + Sync + Clone + 'static,
) -> (SocketAddr, JoinHandle<Vec<R>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let thread = std::thread::spawn(move || {
        let threads: Vec<_> = (0..count)
            .map(|_| {
                let (stream, _) = listener.accept().unwrap();
                stream.set_read_timeout(Some(PATIENCE)).unwrap();
                let work = work.clone();
                std::thread::spawn(move || work(stream))
            })
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect()
    });
    ((HOST, port).into(), thread)
}

#[test]
fn data_goes_both_ways_unharmed() {
    const LEN: usize = 12 << 20;
    let (to, server) = serve(1, |mut stream| {
        let mut sender = stream.try_clone().unwrap();
        let sending = std::thread::spawn(move || {
            sender.write_all(&pattern(LEN, 1)).unwrap();
            sender.shutdown(Shutdown::Write).unwrap();
        });
        let mut received = Vec::new();
        stream.read_to_end(&mut received).unwrap();
        sending.join().unwrap();
        received == pattern(LEN, 2)
    });
    let network = Network::start(config()).unwrap();
    let mut guest = Guest::join(&network, "web", 1);
    let handle = guest.connect(to).unwrap();
    let sent = pattern(LEN, 2);
    let mut at = 0;
    let mut received = Vec::new();
    guest.until(|guest| {
        let socket = guest.tcp(handle);
        if at < LEN && socket.can_send() {
            at += socket.send_slice(&sent[at..]).unwrap();
            if at == LEN {
                socket.close();
            }
        }
        guest.drain(handle, &mut received);
        (at == LEN && received.len() >= LEN).then_some(())
    });
    assert!(received == pattern(LEN, 1));
    assert_eq!(server.join().unwrap(), [true]);
}

#[test]
fn a_refused_port_is_refused_in_the_guest() {
    let free = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let network = Network::start(config()).unwrap();
    let mut guest = Guest::join(&network, "web", 1);
    let start = Instant::now();
    assert_eq!(guest.connect((HOST, free).into()), None);
    assert!(start.elapsed() < Duration::from_secs(5));
    assert_eq!(network.status().unwrap().tcp_refused, 1);
}

#[test]
fn a_half_closed_connection_still_delivers() {
    // The guest closes first and then receives.
    let (to, server) = serve(1, |mut stream| {
        let mut question = Vec::new();
        stream.read_to_end(&mut question).unwrap();
        std::thread::sleep(Duration::from_millis(100));
        stream.write_all(&pattern(3 << 20, 5)).unwrap();
        question
    });
    let network = Network::start(config()).unwrap();
    let mut guest = Guest::join(&network, "web", 1);
    let handle = guest.connect(to).unwrap();
    guest.send(handle, b"question");
    guest.tcp(handle).close();
    assert_eq!(guest.receive_all(handle), Some(pattern(3 << 20, 5)));
    assert_eq!(server.join().unwrap(), [b"question"]);

    // The host closes first and then receives, slowly.
    let (to, server) = serve(1, |mut stream| {
        stream.write_all(b"hello").unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        std::thread::sleep(Duration::from_millis(300));
        let mut received = Vec::new();
        stream.read_to_end(&mut received).unwrap();
        received == pattern(3 << 20, 6)
    });
    let handle = guest.connect(to).unwrap();
    guest.until(|guest| (guest.tcp(handle).state() == State::CloseWait).then_some(()));
    assert_eq!(guest.receive(handle, 5), b"hello");
    guest.send(handle, &pattern(3 << 20, 6));
    guest.tcp(handle).close();
    guest.until(|_| server.is_finished().then_some(()));
    assert_eq!(server.join().unwrap(), [true]);
    // Both flows end by themselves.
    guest.until(|_| (network.status().unwrap().tcp_flows == 0).then_some(()));
}

#[test]
fn resets_go_through() {
    // The guest resets.
    let (to, server) = serve(1, |mut stream| {
        let mut buffer = [0; 100];
        loop {
            match stream.read(&mut buffer) {
                Ok(0) => return "closed",
                Ok(_) => {}
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => {
                    return "reset";
                }
                Err(_) => return "failed",
            }
        }
    });
    let network = Network::start(config()).unwrap();
    let mut guest = Guest::join(&network, "web", 1);
    let handle = guest.connect(to).unwrap();
    guest.send(handle, b"x");
    guest.until(|guest| (guest.tcp(handle).send_queue() == 0).then_some(()));
    guest.tcp(handle).abort();
    guest.until(|_| server.is_finished().then_some(()));
    assert_eq!(server.join().unwrap(), ["reset"]);

    // The host resets: closing with unread data does.
    let (to, server) = serve(1, |stream| {
        stream.peek(&mut [0]).unwrap();
    });
    let handle = guest.connect(to).unwrap();
    guest.send(handle, b"never read");
    assert_eq!(guest.receive_all(handle), None);
    server.join().unwrap();
    guest.until(|_| (network.status().unwrap().tcp_flows == 0).then_some(()));
}

#[test]
fn what_the_host_said_before_its_reset_arrives() {
    // An answer to a request that is not read to its end, whose rest comes before and after it.
    const LEN: usize = 1000;
    let (to, server) = serve(1, |mut stream| {
        stream.peek(&mut [0]).unwrap();
        stream.write_all(&pattern(LEN, 1)).unwrap();
    });
    let network = Network::start(config()).unwrap();
    let mut guest = Guest::join(&network, "web", 1);
    let handle = guest.connect(to).unwrap();
    guest.send(handle, &pattern(64 << 10, 2));
    let mut received = Vec::new();
    guest.until(|guest| {
        let socket = guest.drain(handle, &mut received);
        (socket.state() == State::Closed).then_some(())
    });
    assert_eq!(received, pattern(LEN, 1));
    server.join().unwrap();
    guest.until(|_| (network.status().unwrap().tcp_flows == 0).then_some(()));
}

#[test]
fn a_stuck_flow_holds_up_no_other() {
    const LEN: usize = 4 << 20;
    // Never stops sending, and reads nothing.
    let (stuck, _server) = serve(2, |mut stream| {
        let _ = stream.set_write_timeout(Some(Duration::from_millis(500)));
        while stream.write(&[7; 65536]).is_ok() {}
        std::thread::sleep(Duration::from_secs(30));
    });
    let (to, server) = serve(1, |mut stream| {
        stream.write_all(&pattern(LEN, 3)).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut received = Vec::new();
        stream.read_to_end(&mut received).unwrap();
        received.len()
    });
    let network = Network::start(config()).unwrap();
    let mut guest = Guest::join(&network, "web", 1);
    // One whose data the guest does not take, one whose data the host does not.
    guest.connect(stuck).unwrap();
    let full = guest.connect(stuck).unwrap();
    let end = Instant::now() + Duration::from_millis(800);
    guest.until(|guest| {
        let socket = guest.tcp(full);
        if socket.can_send() {
            socket.send_slice(&[1; 65536]).unwrap();
        }
        (Instant::now() > end).then_some(())
    });
    assert!(!guest.tcp(full).can_send());

    let start = Instant::now();
    let handle = guest.connect(to).unwrap();
    assert_eq!(guest.receive_all(handle), Some(pattern(LEN, 3)));
    guest.send(handle, &pattern(LEN, 4));
    guest.tcp(handle).close();
    guest.until(|_| server.is_finished().then_some(()));
    assert_eq!(server.join().unwrap(), [LEN]);
    assert!(start.elapsed() < Duration::from_secs(10));
}

#[test]
fn a_thousand_flows_at_once() {
    const COUNT: usize = 1000;
    const LEN: usize = 20_000;
    let (to, server) = serve_many(COUNT, LEN);
    let network = Network::start(config()).unwrap();
    let mut guest = Guest::join(&network, "web", 1);
    let handles: Vec<_> = (0..COUNT)
        .map(|_| guest.start_connect(to, 8 << 10))
        .collect();
    guest.until(|guest| {
        let all = handles.iter().all(|handle| guest.tcp(*handle).may_send());
        all.then_some(())
    });
    let status = network.status().unwrap();
    assert_eq!((status.tcp_flows, status.tcp_refused), (COUNT, 0));
    for (number, handle) in handles.iter().enumerate() {
        let number = (number as u32).to_le_bytes();
        guest.tcp(*handle).send_slice(&number).unwrap();
    }
    let mut received = vec![Vec::new(); COUNT];
    guest.until(|guest| {
        let mut whole = true;
        for (handle, received) in handles.iter().zip(&mut received) {
            guest.drain(*handle, received);
            whole &= received.len() >= LEN;
        }
        whole.then_some(())
    });
    assert_eq!(network.status().unwrap().tcp_flows, COUNT);
    for (number, received) in received.iter().enumerate() {
        assert!(*received == pattern(LEN, number as u32), "{number}");
        guest.tcp(handles[number]).close();
    }
    guest.until(|_| (network.status().unwrap().tcp_flows == 0).then_some(()));
    server.join().unwrap();
}

#[test]
fn flows_are_bounded() {
    let (to, _server) = serve(4, |_stream| std::thread::sleep(Duration::from_secs(30)));
    let network = Network::start(NetworkConfig {
        limits: Limits {
            tcp_flows: 3,
            ..Limits::default()
        },
        ..config()
    })
    .unwrap();
    let mut guest = Guest::join(&network, "web", 1);
    let open: Vec<_> = (0..3).map(|_| guest.connect(to).unwrap()).collect();
    // None of them has been idle long enough to give way.
    assert_eq!(guest.connect(to), None);
    let status = network.status().unwrap();
    assert_eq!((status.tcp_flows, status.tcp_opened), (3, 3));
    assert_eq!((status.tcp_refused, status.tcp_evicted), (1, 0));
    // Once one of them has ended there is room again.
    guest.tcp(open[0]).abort();
    guest.until(|_| (network.status().unwrap().tcp_flows == 2).then_some(()));
    assert!(guest.connect(to).is_some());
}

#[test]
fn datagram_flows_are_bounded() {
    // The table of datagram flows gives the place of the longest idle one to a new one.
    let server = UdpSocket::bind("127.0.0.1:0").unwrap();
    let port = server.local_addr().unwrap().port();
    let network = Network::start(NetworkConfig {
        limits: Limits {
            udp_flows: 4,
            ..Limits::default()
        },
        ..config()
    })
    .unwrap();
    let attachment = attach(&network, "web", 1);
    let wire = Wire::new(attachment.link);
    for source in 7000..7020 {
        wire.send(&datagram(attachment.ip, source, (HOST, port), b"x"))
            .unwrap();
        server.recv(&mut [0; 10]).unwrap();
    }
    let status = network.status().unwrap();
    assert_eq!((status.udp_flows, status.udp_evicted), (4, 16));
}

#[test]
fn datagrams_go_both_ways() {
    let server = UdpSocket::bind("127.0.0.1:0").unwrap();
    let port = server.local_addr().unwrap().port();
    std::thread::spawn(move || {
        let mut buffer = [0; 2000];
        while let Ok((len, from)) = server.recv_from(&mut buffer) {
            buffer[..len].reverse();
            server.send_to(&buffer[..len], from).unwrap();
        }
    });
    let network = Network::start(config()).unwrap();
    let mut guest = Guest::join(&network, "web", 1);
    let socket = guest.udp(6000);
    for message in [&b"first"[..], b"second"] {
        guest.send_to(socket, (HOST, port).into(), message);
        let reversed: Vec<u8> = message.iter().rev().copied().collect();
        assert_eq!(guest.receive_from(socket), reversed);
    }
    assert_eq!(network.status().unwrap().udp_flows, 1);
}

fn datagram(source: Ipv4Addr, port: u16, to: (Ipv4Addr, u16), payload: &[u8]) -> Vec<u8> {
    let total = IPV4 + UDP + payload.len();
    let mut frame = vec![0; ETHERNET + total];
    frame::ethernet(&mut frame, GATEWAY_MAC, mac(1), frame::TYPE_IPV4);
    Ipv4Header::new(source, to.0, PROTO_UDP).write(&mut frame[ETHERNET..], total);
    let udp = Udp {
        source: port,
        to: to.1,
        payload,
    };
    udp.write(&mut frame[ETHERNET + IPV4..], source, to.0);
    frame
}

#[test]
fn a_closed_udp_port_is_reported() {
    let free = UdpSocket::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let network = Network::start(config()).unwrap();
    let attachment = attach(&network, "web", 1);
    let wire = Wire::new(attachment.link);
    let gateway = network.config().subnet.gateway();
    for (to, port) in [(HOST, free), (gateway, 999)] {
        wire.send(&datagram(attachment.ip, 7000, (to, port), b"?"))
            .unwrap();
        let error = wire.expect(|frame| frame.get(ETHERNET + 9) == Some(&1));
        let error = Ipv4::parse(&error[ETHERNET..]).unwrap();
        assert_eq!(error.payload[..2], [3, 3], "port unreachable");
        // What was sent, as far as it is quoted.
        let quoted = &error.payload[8..];
        assert_eq!(quoted[12..16], attachment.ip.octets());
        assert_eq!(quoted[16..20], to.octets());
        assert_eq!(quoted[20..24], [0x1b, 0x58, (port >> 8) as u8, port as u8]);
    }
}

#[test]
fn a_large_datagram_arrives_in_fragments() {
    let server = UdpSocket::bind("127.0.0.1:0").unwrap();
    let port = server.local_addr().unwrap().port();
    let network = Network::start(config()).unwrap();
    let attachment = attach(&network, "web", 1);
    let wire = Wire::new(attachment.link);
    wire.send(&datagram(attachment.ip, 7000, (HOST, port), b"send"))
        .unwrap();
    let (_, from) = server.recv_from(&mut [0; 10]).unwrap();
    let sent = pattern(4000, 9);
    server.send_to(&sent, from).unwrap();
    let mut whole = Vec::new();
    loop {
        let frame = wire.expect(|frame| frame.get(ETHERNET + 9) == Some(&17));
        let part = Ipv4::parse(&frame[ETHERNET..]).unwrap();
        let flags = frame::be16(part.packet, 6).unwrap();
        assert_eq!(usize::from(flags & 0x1fff) * 8, whole.len());
        whole.extend_from_slice(part.payload);
        if flags & frame::MORE_FRAGMENTS == 0 {
            break;
        }
    }
    assert_eq!(Udp::parse(&whole).unwrap().payload, sent);
}

/// The frames of a datagram in fragments of at most 1480 bytes.
fn fragments(whole: &[u8], id: u16) -> Vec<Vec<u8>> {
    let payload = &whole[ETHERNET + IPV4..];
    let source = Ipv4::parse(&whole[ETHERNET..]).unwrap();
    let parts = payload.chunks(1480).enumerate().map(|(index, part)| {
        let mut frame = whole[..ETHERNET + IPV4].to_vec();
        frame.extend_from_slice(part);
        let mut header = Ipv4Header::new(source.source, source.to, PROTO_UDP);
        header.id = id;
        header.fragment = (index * 185) as u16;
        if (index + 1) * 1480 < payload.len() {
            header.fragment |= frame::MORE_FRAGMENTS;
        }
        header.write(&mut frame[ETHERNET..], IPV4 + part.len());
        frame
    });
    parts.collect()
}

#[test]
fn a_large_datagram_goes_both_ways() {
    let server = UdpSocket::bind("127.0.0.1:0").unwrap();
    server.set_read_timeout(Some(PATIENCE)).unwrap();
    let port = server.local_addr().unwrap().port();
    let network = Network::start(config()).unwrap();
    let attachment = attach(&network, "web", 1);
    let wire = Wire::new(attachment.link);
    for (id, len) in [(1, 1473), (2, 4000), (3, 65_507)] {
        let sent = pattern(len, id.into());
        let mut frames = fragments(&datagram(attachment.ip, 7000, (HOST, port), &sent), id);
        // In the order in which some systems send them.
        frames.reverse();
        for frame in frames {
            wire.send(&frame).unwrap();
        }
        let mut buffer = vec![0; 65_536];
        let (len, from) = server.recv_from(&mut buffer).unwrap();
        assert!(buffer[..len] == sent, "{id}");
        server.send_to(&buffer[..len], from).unwrap();
        let mut whole = Vec::new();
        loop {
            let frame = wire.expect(|frame| frame.get(ETHERNET + 9) == Some(&17));
            let part = Ipv4::parse(&frame[ETHERNET..]).unwrap();
            assert_eq!(part.offset, whole.len());
            whole.extend_from_slice(part.payload);
            if frame::be16(part.packet, 6).unwrap() & frame::MORE_FRAGMENTS == 0 {
                break;
            }
        }
        assert!(Udp::parse(&whole).unwrap().payload == sent, "{id}");
    }
    assert_eq!(network.status().unwrap().udp_flows, 1);
}

#[test]
fn a_detached_member_loses_its_connections() {
    let (to, server) = serve(1, |mut stream| stream.read(&mut [0; 10]).is_err());
    let network = Network::start(config()).unwrap();
    let mut guest = Guest::join(&network, "web", 1);
    guest.connect(to).unwrap();
    network.detach("web").unwrap();
    assert_eq!(server.join().unwrap(), [true], "reset");
    let status = network.status().unwrap();
    assert_eq!((status.ports.len(), status.tcp_flows), (0, 0));
}
