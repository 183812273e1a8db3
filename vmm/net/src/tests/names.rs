//! DNS on the gateway.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::guest::{Guest, PATIENCE, config};
use crate::{Network, NetworkConfig, NetworkError};

fn query(id: u16, name: &str, kind: u16) -> Vec<u8> {
    let mut message = id.to_be_bytes().to_vec();
    message.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    for label in name.split('.') {
        message.push(label.len() as u8);
        message.extend(label.as_bytes());
    }
    message.push(0);
    message.extend(kind.to_be_bytes());
    message.extend([0, 1]);
    message
}

fn gateway(network: &Network, port: u16) -> SocketAddr {
    (network.config().subnet.gateway(), port).into()
}

fn code(message: &[u8]) -> u8 {
    message[3] & 15
}

/// A resolver that answers every question with an error, and the number of questions that it gets.
fn resolver_without_answers(code: u8) -> (SocketAddr, Arc<AtomicUsize>) {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let at = socket.local_addr().unwrap();
    let count = Arc::new(AtomicUsize::new(0));
    let asked = count.clone();
    std::thread::spawn(move || {
        let mut buffer = [0; 512];
        loop {
            let (len, from) = socket.recv_from(&mut buffer).unwrap();
            asked.fetch_add(1, Ordering::SeqCst);
            buffer[2] |= 0x80;
            buffer[3] = 0x80 | code;
            socket.send_to(&buffer[..len], from).unwrap();
        }
    });
    (at, count)
}

/// A resolver that answers `count` questions with `address`, after it has seen all of them, in
/// reverse order.
fn resolver(address: [u8; 4], count: usize) -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let at = socket.local_addr().unwrap();
    std::thread::spawn(move || {
        let mut questions = Vec::new();
        let mut buffer = [0; 512];
        while questions.len() < count {
            let (len, from) = socket.recv_from(&mut buffer).unwrap();
            questions.push((buffer[..len].to_vec(), from));
        }
        for (mut message, from) in questions.into_iter().rev() {
            // A forged answer first, which must not be believed.
            let mut forged = message.clone();
            forged[0] ^= 1;
            forged[2] |= 0x80;
            socket.send_to(&forged, from).unwrap();
            message[2] |= 0x80;
            message[7] = 1;
            message.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
            message.extend(address);
            socket.send_to(&message, from).unwrap();
        }
    });
    at
}

#[test]
fn members_have_names() {
    let network = Network::start(config()).unwrap();
    let mut web = Guest::join(&network, "web", 1);
    let db = Guest::join(&network, "db", 2);
    let to = gateway(&network, 53);
    let socket = web.udp(5000);
    for name in ["db", "DB.fleetbox"] {
        web.send_to(socket, to, &query(7, name, 1));
        let answer = web.receive_from(socket);
        assert_eq!(answer[..2], [0, 7]);
        assert_eq!(code(&answer), 0, "{name}");
        assert!(answer.ends_with(&db.ip.octets()), "{name}");
    }
    // No address of the other family, but a name that exists.
    web.send_to(socket, to, &query(8, "db.fleetbox", 28));
    let answer = web.receive_from(socket);
    assert_eq!((code(&answer), answer[7]), (0, 0));
    web.send_to(socket, to, &query(9, "nobody.fleetbox", 1));
    assert_eq!(code(&web.receive_from(socket)), 3);
    let [a, b, c, d] = db.ip.octets();
    web.send_to(
        socket,
        to,
        &query(10, &format!("{d}.{c}.{b}.{a}.in-addr.arpa"), 12),
    );
    assert!(web.receive_from(socket).ends_with(b"\x02db\x08fleetbox\0"));
    // Without any resolver other names fail at once.
    web.send_to(socket, to, &query(11, "example.org", 1));
    assert_eq!(code(&web.receive_from(socket)), 2);
    assert_eq!(network.status().unwrap().dns_local, 5);
}

#[test]
fn names_come_and_go_and_registered_ones_stay() {
    let unanswered = UdpSocket::bind("127.0.0.1:0").unwrap();
    let network = Network::start(NetworkConfig {
        resolvers: Some(vec![unanswered.local_addr().unwrap()]),
        ..config()
    })
    .unwrap();
    let mut web = Guest::join(&network, "web", 1);
    let to = gateway(&network, 53);
    let socket = web.udp(5000);
    let mut ask = |name: &str, kind: u16| {
        web.send_to(socket, to, &query(7, name, kind));
        web.receive_from(socket)
    };
    let reverse = |ip: Ipv4Addr| {
        let [a, b, c, d] = ip.octets();
        format!("{d}.{c}.{b}.{a}.in-addr.arpa")
    };

    let db = Guest::join(&network, "db", 2);
    assert!(ask("db.FLEETBOX", 1).ends_with(&db.ip.octets()));
    network.detach("db").unwrap();
    assert_eq!(code(&ask("db.fleetbox", 1)), 3);
    assert_eq!(code(&ask(&reverse(db.ip), 12)), 3);

    network.register_name("DB", db.ip).unwrap();
    for name in ["db", "Db", "db.fleetbox"] {
        let answer = ask(name, 1);
        assert!(answer.ends_with(&db.ip.octets()), "{name}");
    }
    let aaaa = ask("db", 28);
    assert_eq!((code(&aaaa), aaaa[7]), (0, 0));
    assert!(ask(&reverse(db.ip), 12).ends_with(b"\x02db\x08fleetbox\0"));
    // The address waits for the name, and for no other.
    let other = Guest::join(&network, "other", 3);
    assert_ne!(other.ip, db.ip);
    let again = Guest::join(&network, "db", 4);
    assert_eq!(again.ip, db.ip);

    assert!(network.unregister_name("db").unwrap());
    assert!(!network.unregister_name("db").unwrap());
    assert!(ask("db", 1).ends_with(&db.ip.octets()), "it is attached");
    network.detach("db").unwrap();
    assert_eq!(code(&ask("db.fleetbox", 1)), 3);

    // Nothing about the domain goes to the host's resolvers, whatever is asked.
    let domain = ask("fleetbox", 1);
    assert_eq!((code(&domain), domain[7]), (0, 0));
    assert_eq!(code(&ask("a.b.fleetbox", 16)), 3);
    let mut chaos = query(9, "db.fleetbox", 1);
    let class = chaos.len() - 1;
    chaos[class] = 3;
    web.send_to(socket, to, &chaos);
    assert_eq!(code(&web.receive_from(socket)), 3);
    // The first that they hear of is the next question.
    let asked = query(10, "example.org", 1);
    web.send_to(socket, to, &asked);
    let mut buffer = [0; 512];
    unanswered.set_read_timeout(Some(PATIENCE)).unwrap();
    let len = unanswered.recv(&mut buffer).unwrap();
    assert_eq!(buffer[2..len], asked[2..]);
}

#[test]
fn what_is_registered_is_checked() {
    let network = Network::start(config()).unwrap();
    let ip = Ipv4Addr::new(10, 187, 41, 77);
    for name in ["", "a.b", "-a"] {
        let refused = network.register_name(name, ip);
        assert!(matches!(refused, Err(NetworkError::Name(_))), "{name}");
    }
    for ip in [
        network.config().subnet.gateway(),
        Ipv4Addr::new(192, 0, 2, 9),
    ] {
        let refused = network.register_name("db", ip);
        assert!(matches!(refused, Err(NetworkError::Address { .. })), "{ip}");
    }
}

#[test]
fn other_names_are_asked_of_the_host() {
    // The first resolver refuses, the second answers.
    let silent = UdpSocket::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let network = Network::start(NetworkConfig {
        resolvers: Some(vec![silent, resolver([198, 51, 100, 7], 3)]),
        ..config()
    })
    .unwrap();
    let mut web = Guest::join(&network, "web", 1);
    let socket = web.udp(5000);
    for id in 1..=3 {
        web.send_to(
            socket,
            gateway(&network, 53),
            &query(id, &format!("h{id}.example"), 1),
        );
    }
    let mut ids = Vec::new();
    for _ in 0..3 {
        let answer = web.receive_from(socket);
        assert!(answer.ends_with(&[198, 51, 100, 7]));
        assert_eq!(
            answer[14],
            b'0' + answer[1],
            "the answer to its own question"
        );
        ids.push(answer[1]);
    }
    ids.sort_unstable();
    assert_eq!(ids, [1, 2, 3]);
}

#[test]
fn a_resolver_that_cannot_answer_is_not_the_last() {
    // SERVFAIL, NOTIMP and REFUSED.
    for error in [2, 4, 5] {
        let (unable, asked) = resolver_without_answers(error);
        let network = Network::start(NetworkConfig {
            resolvers: Some(vec![unable, resolver([198, 51, 100, 7], 1)]),
            ..config()
        })
        .unwrap();
        let mut web = Guest::join(&network, "web", 1);
        let socket = web.udp(5000);
        web.send_to(socket, gateway(&network, 53), &query(1, "h1.example", 1));
        assert!(
            web.receive_from(socket).ends_with(&[198, 51, 100, 7]),
            "{error}"
        );
        assert_eq!(asked.load(Ordering::SeqCst), 1);
        let status = network.status().unwrap();
        assert_eq!((status.dns_forwarded, status.dns_failed), (1, 0));
    }
}

#[test]
fn the_first_error_is_told_if_no_resolver_can_answer() {
    let (refuses, _) = resolver_without_answers(5);
    let (fails, asked) = resolver_without_answers(2);
    let network = Network::start(NetworkConfig {
        resolvers: Some(vec![refuses, fails]),
        ..config()
    })
    .unwrap();
    let mut web = Guest::join(&network, "web", 1);
    let socket = web.udp(5000);
    web.send_to(socket, gateway(&network, 53), &query(1, "h1.example", 1));
    assert_eq!(code(&web.receive_from(socket)), 5);
    assert_eq!(asked.load(Ordering::SeqCst), 1);
}

#[test]
fn that_a_name_does_not_exist_is_an_answer() {
    let (knows, _) = resolver_without_answers(3);
    let (other, asked) = resolver_without_answers(2);
    let network = Network::start(NetworkConfig {
        resolvers: Some(vec![knows, other]),
        ..config()
    })
    .unwrap();
    let mut web = Guest::join(&network, "web", 1);
    let socket = web.udp(5000);
    web.send_to(socket, gateway(&network, 53), &query(1, "h1.example", 1));
    assert_eq!(code(&web.receive_from(socket)), 3);
    assert_eq!(asked.load(Ordering::SeqCst), 0);
}

#[test]
fn names_are_served_by_tcp_too() {
    let network = Network::start(config()).unwrap();
    let mut web = Guest::join(&network, "web", 1);
    let handle = web.connect(gateway(&network, 53)).unwrap();
    for id in [3u16, 4] {
        let message = query(id, "web", 1);
        let mut framed = (message.len() as u16).to_be_bytes().to_vec();
        framed.extend(message);
        web.send(handle, &framed);
        let len = web.receive(handle, 2);
        let answer = web.receive(handle, usize::from(u16::from_be_bytes([len[0], len[1]])));
        assert_eq!(answer[1], id as u8);
        assert!(answer.ends_with(&web.ip.octets()));
    }
}

#[test]
fn a_flood_of_questions_is_bounded() {
    // A resolver that never answers.
    let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
    let mut config = config();
    config.resolvers = Some(vec![silent.local_addr().unwrap()]);
    config.limits.dns_questions = 8;
    let network = Network::start(config).unwrap();
    let mut web = Guest::join(&network, "web", 1);
    let socket = web.udp(5000);
    web.send_to(socket, gateway(&network, 53), &query(99, "web", 1));
    web.receive_from(socket);
    for id in 0..100 {
        web.send_to(socket, gateway(&network, 53), &query(id, "example.org", 1));
    }
    // The allowance arrives whole, however long the network's thread takes to pass it on.
    silent.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut buffer = [0; 512];
    for question in 1..=8 {
        silent
            .recv(&mut buffer)
            .unwrap_or_else(|error| panic!("question {question} of 8: {error}"));
    }
    // Members' names are answered all the same, and after what was asked before. A question is
    // passed on in the turn after it was read, so one more answer is waited for.
    for id in [200, 201] {
        web.send_to(socket, gateway(&network, 53), &query(id, "web", 1));
        let answer = web.receive_from(socket);
        assert_eq!(answer[..2], id.to_be_bytes());
        assert!(answer.ends_with(&web.ip.octets()));
    }
    silent.set_nonblocking(true).unwrap();
    let more = std::iter::from_fn(|| silent.recv(&mut buffer).ok()).count();
    assert_eq!(more, 0);
}
