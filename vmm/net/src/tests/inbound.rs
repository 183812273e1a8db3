//! The host reaches guests.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use smoltcp::socket::tcp::State;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::guest::{Guest, PATIENCE, Wire, attach, config, pattern};
use crate::frame::{ETHERNET, IPV4, PROTO_TCP, RST, SYN, TYPE_ARP};
use crate::{ConnectError, GuestStream, Network, NetworkConfig, NetworkError};

/// Runs `work` on a runtime of its own while the test drives the guest.
fn host<R: Send + 'static>(
    work: impl Future<Output = R> + Send + 'static,
) -> std::thread::JoinHandle<R> {
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        runtime.unwrap().block_on(work)
    })
}

fn finish<R>(guest: &mut Guest, thread: std::thread::JoinHandle<R>) -> R {
    guest.until(|_| thread.is_finished().then_some(()));
    thread.join().unwrap()
}

fn network() -> Arc<Network> {
    Arc::new(Network::start(config()).unwrap())
}

fn connect(
    network: &Arc<Network>,
    ip: Ipv4Addr,
    port: u16,
) -> std::thread::JoinHandle<Result<GuestStream, ConnectError>> {
    let network = network.clone();
    host(async move { network.connect(ip.into(), port).await })
}

#[test]
fn a_stream_leads_into_a_guest() {
    const LEN: usize = 4 << 20;
    let network = network();
    let mut guest = Guest::join(&network, "web", 1);
    let listener = guest.listen(22);
    let client = {
        let (network, ip) = (network.clone(), guest.ip);
        host(async move {
            let mut stream = network.connect(ip.into(), 22).await.unwrap();
            assert_eq!(stream.peer_addr(), (ip, 22).into());
            stream.write_all(&pattern(LEN, 1)).await.unwrap();
            stream.shutdown().await.unwrap();
            let mut received = Vec::new();
            stream.read_to_end(&mut received).await.unwrap();
            received
        })
    };
    guest.until(|guest| guest.tcp(listener).may_send().then_some(()));
    assert!(guest.receive_all(listener) == Some(pattern(LEN, 1)));
    guest.send(listener, &pattern(LEN, 2));
    guest.tcp(listener).close();
    assert!(finish(&mut guest, client) == pattern(LEN, 2));
}

#[test]
fn failures_are_told_apart() {
    let mut config = config();
    config.limits.guest_timeout = Duration::from_millis(700);
    let network = Arc::new(Network::start(config).unwrap());
    let mut guest = Guest::join(&network, "web", 1);
    let silent = attach(&network, "off", 2);
    let ip = guest.ip;
    let refused = connect(&network, ip, 9);
    assert_eq!(
        finish(&mut guest, refused).unwrap_err(),
        ConnectError::Refused {
            ip: ip.into(),
            port: 9
        }
    );
    let off = connect(&network, silent.ip, 22);
    assert_eq!(
        finish(&mut guest, off).unwrap_err(),
        ConnectError::Unreachable {
            ip: silent.ip.into()
        }
    );
    let nobody = Ipv4Addr::new(10, 187, 41, 99);
    let none = connect(&network, nobody, 22);
    assert_eq!(
        finish(&mut guest, none).unwrap_err(),
        ConnectError::NoMember { ip: nobody.into() }
    );
    assert!(matches!(
        network.forward(nobody.into(), 22),
        Err(NetworkError::NoMember(_))
    ));
    // There, but silent on the port: the guest answers ARP and nothing else from here on.
    let dropped = connect(&network, ip, 9);
    let end = Instant::now() + PATIENCE;
    while !dropped.is_finished() && Instant::now() < end {
        guest.wire.wait(Duration::from_millis(10));
        while guest.wire.receive().is_some() {}
    }
    assert_eq!(
        dropped.join().unwrap().unwrap_err(),
        ConnectError::TimedOut {
            ip: ip.into(),
            port: 9
        }
    );
    assert_eq!(network.status().unwrap().tcp_flows, 0);
}

#[test]
fn a_guest_is_found_as_soon_as_it_is_up() {
    let network = network();
    let attachment = attach(&network, "web", 1);
    let ip = attachment.ip;
    let waiting = connect(&network, ip, 22);
    // It is looked for while it is off.
    let wire = Wire::new(attachment.link);
    for _ in 0..4 {
        wire.expect(|frame| frame[12..14] == TYPE_ARP.to_be_bytes());
    }
    let mut guest = Guest::with_wire(wire, ip, 1);
    let lease = guest.dhcp();
    guest.configure(lease.address, lease.router.unwrap());
    guest.listen(22);
    let up = Instant::now();
    assert!(finish(&mut guest, waiting).is_ok());
    assert!(
        up.elapsed() < Duration::from_millis(900),
        "{:?}",
        up.elapsed()
    );
}

#[test]
fn giving_up_leaves_nothing_behind() {
    let network = network();
    let attachment = attach(&network, "web", 1);
    let ip = attachment.ip;
    let give_up = || {
        let network = network.clone();
        host(async move {
            let connect = network.connect(ip.into(), 22);
            let limit = Duration::from_millis(50);
            tokio::time::timeout(limit, connect).await.is_err()
        })
    };
    // The guest is off.
    assert!(give_up().join().unwrap());
    assert_eq!(network.status().unwrap().tcp_opened, 0);

    // It is there, and answers no SYN.
    let mut guest = Guest::bare(attachment, 1).configured(&network);
    let refused = connect(&network, ip, 9);
    assert!(finish(&mut guest, refused).is_err());
    assert!(give_up().join().unwrap());
    let end = Instant::now() + PATIENCE;
    while network.status().unwrap().tcp_flows > 0 {
        assert!(Instant::now() < end, "a flow is left");
    }
    // The guest is told with a reset. The first attempt has opened no connection, even now that the
    // guest can be reached.
    let wire = &guest.wire;
    wire.expect(|frame| frame[ETHERNET + 9] == PROTO_TCP && frame[ETHERNET + IPV4 + 13] & RST != 0);
    assert_eq!(network.status().unwrap().tcp_opened, 2);
}

#[test]
fn a_reset_shows_in_the_stream() {
    let network = network();
    let mut guest = Guest::join(&network, "web", 1);
    let listener = guest.listen(22);
    let client = {
        let (network, ip) = (network.clone(), guest.ip);
        host(async move {
            let mut stream = network.connect(ip.into(), 22).await.unwrap();
            stream.read(&mut [0; 10]).await.unwrap_err().kind()
        })
    };
    guest.until(|guest| guest.tcp(listener).may_send().then_some(()));
    guest.tcp(listener).abort();
    assert_eq!(
        finish(&mut guest, client),
        std::io::ErrorKind::ConnectionReset
    );
}

#[test]
fn a_dropped_stream_closes_the_connection() {
    let network = network();
    let mut guest = Guest::join(&network, "web", 1);
    let listener = guest.listen(22);
    let client = connect(&network, guest.ip, 22);
    let stream = finish(&mut guest, client).unwrap();
    drop(stream);
    guest.until(|guest| (guest.tcp(listener).state() == State::CloseWait).then_some(()));
    guest.tcp(listener).close();
    guest.until(|_| (network.status().unwrap().tcp_flows == 0).then_some(()));
}

#[test]
fn a_forwarded_port_leads_into_a_guest() {
    let network = network();
    let mut guest = Guest::join(&network, "web", 1);
    let listener = guest.listen(80);
    let forward = network.forward(guest.ip.into(), 80).unwrap();
    let address = forward.address();
    assert!(address.ip().is_loopback());
    let client = std::thread::spawn(move || {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.write_all(b"request").unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        answer
    });
    guest.until(|guest| guest.tcp(listener).may_send().then_some(()));
    assert_eq!(guest.receive_all(listener), Some(b"request".to_vec()));
    guest.send(listener, b"answer");
    guest.tcp(listener).close();
    assert_eq!(finish(&mut guest, client), b"answer");

    // Nothing listens any more: the connection is reset.
    let client = std::thread::spawn(move || {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.read(&mut [0; 10]).is_err()
    });
    assert!(finish(&mut guest, client));

    drop(forward);
    let refused = || TcpStream::connect_timeout(&address, Duration::from_secs(1)).is_err();
    guest.until(|_| refused().then_some(()));
}

#[test]
fn a_forwarded_connection_waits_for_a_busy_guest() {
    let mut config = config();
    config.limits.guest_timeout = Duration::from_millis(700);
    let network = Arc::new(Network::start(config).unwrap());
    let mut guest = Guest::join(&network, "web", 1);
    // The guest shows that it is there.
    let refused = connect(&network, guest.ip, 9);
    assert!(finish(&mut guest, refused).is_err());
    let forward = network.forward(guest.ip.into(), 80).unwrap();
    let address = forward.address();
    let client = std::thread::spawn(move || {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.write_all(b"request").unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).map(|_| answer)
    });
    // A full queue of the listener: SYNs are dropped. The second comes a second after the first.
    for _ in 0..2 {
        guest.wire.expect(|frame| {
            frame[ETHERNET + 9] == PROTO_TCP && frame[ETHERNET + IPV4 + 13] & SYN != 0
        });
    }
    let listener = guest.listen(80);
    assert_eq!(guest.receive(listener, 7), b"request");
    guest.send(listener, b"answer");
    guest.tcp(listener).close();
    assert_eq!(finish(&mut guest, client).unwrap(), b"answer");
}

#[test]
fn dropping_the_network_ends_its_streams() {
    let network = Network::start(NetworkConfig::default()).unwrap();
    let mut guest = Guest::join(&network, "web", 1);
    guest.listen(22);
    let network = Arc::new(network);
    let client = connect(&network, guest.ip, 22);
    let mut stream = finish(&mut guest, client).unwrap();
    drop(network);
    let read = host(async move { stream.read(&mut [0; 10]).await });
    assert!(matches!(read.join().unwrap(), Ok(0) | Err(_)));
}
