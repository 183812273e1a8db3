//! From a guest to the world, and from the host to a guest.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use fleetbox::Vm;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::host;
use crate::report::Must;
use crate::suite::{Suite, sha256};

/// The answer of the suite's DNS server, of a network that is for documentation (RFC 5737).
const ANSWER: [u8; 4] = [192, 0, 2, 77];
/// A silent peer is given up after so long.
const PATIENCE: Duration = Duration::from_secs(60);

/// A server on an address of this host that guests reach as they would any other host's: it tells its text to
/// whoever connects, and ends the connection when the client has.
pub(crate) struct Echo {
    address: SocketAddr,
    text: String,
}

impl Echo {
    pub(crate) fn start() -> Self {
        let listener = TcpListener::bind((host::outer_address(), 0)).must("cannot listen");
        let address = listener.local_addr().must("cannot tell the address");
        let text = format!("hello from {address}");
        let told = text.clone();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let told = told.clone();
                thread::spawn(move || {
                    let _ = stream.set_read_timeout(Some(PATIENCE));
                    let mut stream = stream;
                    // The half-closed direction still delivers: the text comes after the client's end of file.
                    let mut asked = Vec::new();
                    if stream.read_to_end(&mut asked).is_ok() {
                        let _ = stream
                            .write_all(format!("{told}, you said {}", sha256(&asked)).as_bytes());
                    }
                });
            }
        });
        Self { address, text }
    }

    /// What a guest that says "hi" is told.
    pub(crate) fn answer(&self) -> String {
        format!("{}, you said {}", self.text, sha256(b"hi"))
    }

    /// What the guest `vm` is told.
    pub(crate) fn asked_by(&self, suite: &Suite, vm: &Vm) -> String {
        suite.sh(
            vm,
            &format!(
                "printf hi | nc -w 60 {} {}",
                self.address.ip(),
                self.address.port()
            ),
        )
    }
}

pub(crate) fn tcp_out(suite: &Suite) {
    let vm = suite.shared();
    let server = Echo::start();
    assert_eq!(server.asked_by(suite, &vm), server.answer());
    // The guest leaves checksums (bit 0) and the cutting of large packets (bit 11) to its device, takes both of others
    // (bits 1 and 7) in merged buffers (bit 15), and megabytes that go so arrive as they were.
    let features = suite.sh(&vm, "cut -c1,2,8,12,16 /sys/class/net/*/device/features");
    assert_eq!(features.trim(), "11111", "offloads of the network device");
    let (ip, port) = (server.address.ip(), server.address.port());
    let told = suite.sh(
        &vm,
        &format!(
            "head -c 4194304 /dev/urandom >/tmp/up; sha256sum </tmp/up; nc -w 60 {ip} {port} </tmp/up; rm /tmp/up"
        ),
    );
    let (sum, answer) = told.split_once('\n').unwrap_or_default();
    let sum = sum.trim_end_matches([' ', '-']);
    assert_eq!(answer.trim(), format!("{}, you said {sum}", server.text));
    // Megabytes, by HTTP, from the host's own address.
    let listener = TcpListener::bind((host::outer_address(), 0)).must("cannot listen");
    let address = listener.local_addr().must("cannot tell the address");
    let body: Vec<u8> = (0..16_usize << 20)
        .map(|i| (i ^ (i >> 7) ^ (i >> 15)) as u8)
        .collect();
    let sum = sha256(&body);
    thread::spawn(move || {
        let (mut stream, _) = listener.accept()?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut head = [0; 4096];
        let _ = stream.read(&mut head)?;
        write!(
            stream,
            "HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n",
            body.len()
        )?;
        stream.write_all(&body)
    });
    let got = suite.sh(
        &vm,
        &format!("wget -q -O - http://{address}/body | sha256sum"),
    );
    assert!(got.starts_with(&sum), "{got} is not {sum}");
}

/// A port that nobody listens on is refused in the guest at once, not left without an answer.
pub(crate) fn tcp_refused(suite: &Suite) {
    let vm = suite.shared();
    let listener = TcpListener::bind((host::outer_address(), 0)).must("cannot listen");
    let address = listener.local_addr().must("cannot tell the address");
    drop(listener);
    let began = Instant::now();
    let output = suite.output(
        &vm,
        &format!("nc -w 50 {} {} </dev/null", address.ip(), address.port()),
    );
    let error = output.stderr_text();
    assert!(
        !output.success() && error.contains("refused"),
        "{:?}: {error}",
        output.status
    );
    assert!(
        began.elapsed() < Duration::from_secs(20),
        "the refusal took {:?}",
        began.elapsed()
    );
    // The host's loopback is not the guest's to reach, by whatever name.
    let loopback = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).must("cannot listen");
    let port = loopback.local_addr().must("cannot tell the address").port();
    let gateway = suite.sh(
        &vm,
        "ip route | sed -n 's/^default via \\([0-9.]*\\).*/\\1/p'",
    );
    let output = suite.output(&vm, &format!("nc -w 5 {gateway} {port} </dev/null"));
    assert!(
        !output.success(),
        "a loopback port of the host was reached through the gateway"
    );
}

/// Makes the suite's DNS server the host's resolver where that may be done. What is asked for, and the address that
/// is expected, if a particular one is.
pub(crate) fn dns_name() -> (String, Option<Ipv4Addr>) {
    static STARTED: OnceLock<()> = OnceLock::new();
    if host::is_emulated() {
        STARTED.get_or_init(|| {
            let address = SocketAddr::new(host::outer_address(), 53);
            host::start_dns(address, ANSWER);
            std::fs::write("/etc/resolv.conf", format!("nameserver {}\n", address.ip()))
                .must("cannot write the emulated host's resolver configuration");
        });
        (
            "somewhere.fleetbox-e2e.test".to_owned(),
            Some(ANSWER.into()),
        )
    } else {
        (
            std::env::var("FLEETBOX_E2E_NAME").unwrap_or_else(|_| "deb.debian.org".to_owned()),
            None,
        )
    }
}

/// Checks that `resolved` (lines of addresses) is what was expected of a name.
#[track_caller]
pub(crate) fn assert_resolved(name: &str, resolved: &str, expected: Option<Ipv4Addr>) {
    let addresses: Vec<Ipv4Addr> = resolved
        .split_ascii_whitespace()
        .filter_map(|word| word.parse().ok())
        .collect();
    match expected {
        Some(address) => assert!(
            addresses.contains(&address),
            "{name} is {resolved:?}, not {address}"
        ),
        None => assert!(!addresses.is_empty(), "{name} is {resolved:?}: no address"),
    }
}

pub(crate) fn dns(suite: &Suite) {
    let vm = suite.shared();
    let (name, expected) = dns_name();
    let resolved = suite.sh(&vm, &format!("getent ahostsv4 {name} || nslookup {name}"));
    assert_resolved(&name, &resolved, expected);
    // Its own name is answered by the gateway.
    let own = suite.sh(
        &vm,
        &format!(
            "nslookup {}.fleetbox | sed -n 's/^Address[^:]*: *//p'",
            vm.name()
        ),
    );
    assert_resolved(vm.name(), &own, Some(vm.ip()));
}

/// The host reaches any port of the guest.
pub(crate) fn connect_and_forward(suite: &Suite) {
    let vm = suite.shared();
    suite.sh(&vm, "nc -ll -p 7777 -e cat >/dev/null 2>&1 & sleep 1; echo");
    suite.block(async {
        let mut stream = vm.connect(7777).await.must("cannot connect");
        stream.write_all(b"by connect").await.must("cannot write");
        stream.shutdown().await.must("cannot half-close");
        let mut back = String::new();
        let read = tokio::time::timeout(PATIENCE, stream.read_to_string(&mut back)).await;
        read.must("no answer").must("cannot read");
        assert_eq!(back, "by connect");
    });
    let address = suite.block(vm.forward(7777)).must("cannot forward");
    assert!(address.ip().is_loopback());
    assert_eq!(
        suite.block(vm.forward(7777)).must("cannot forward"),
        address
    );
    let mut clients: Vec<_> = (0..4)
        .map(|_| TcpStream::connect(address).must("cannot connect"))
        .collect();
    for (index, client) in clients.iter_mut().enumerate() {
        client
            .set_read_timeout(Some(PATIENCE))
            .must("cannot set a deadline");
        let text = format!("client {index}");
        client.write_all(text.as_bytes()).must("cannot write");
        client.shutdown(Shutdown::Write).must("cannot half-close");
        let mut back = String::new();
        client.read_to_string(&mut back).must("cannot read");
        assert_eq!(back, text);
    }
    let refused = suite.block(vm.connect(7778)).err();
    let refused = refused
        .expect("a port nobody listens on was connected to")
        .to_string();
    assert!(refused.contains("7778"), "{refused}");
    suite.sh(&vm, "killall nc; echo");
}

/// A thousand connections at once from a guest that has Python, each with an answer of its own.
pub(crate) fn thousand_flows(suite: &Suite, vm: &Vm) {
    const FLOWS: u32 = 1000;
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).must("cannot tell a limit");
    setrlimit(Resource::RLIMIT_NOFILE, most, most).must("cannot raise a limit");
    let address = suite.block(async {
        let listener = tokio::net::TcpListener::bind((host::outer_address(), 0)).await;
        let listener = listener.must("cannot listen");
        let address = listener.local_addr().must("cannot tell the address");
        suite.spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let (mut from, mut to) = stream.split();
                    tokio::io::copy(&mut from, &mut to).await
                });
            }
        });
        address
    });
    let script = format!(
        "import socket\n\
         flows = [socket.create_connection(('{}', {}), 100) for _ in range({FLOWS})]\n\
         for i, flow in enumerate(flows): flow.sendall(b'%4d' % i)\n\
         print(sum(flow.recv(4, socket.MSG_WAITALL) == b'%4d' % i for i, flow in enumerate(flows)))",
        address.ip(),
        address.port()
    );
    let answered = suite.sh(vm, &format!("python3 -c \"{script}\""));
    assert_eq!(answered, FLOWS.to_string());
}
