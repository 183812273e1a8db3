//! DNS on the gateway (RFC 1035): names of members and registered names are answered here, all
//! others by the host's resolvers. Nothing about the network's own domain or its addresses is ever
//! asked of these.
//!
//! Only the header and the question of a message are read; the rest is handed through.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::rc::Rc;
use std::time::{Duration, SystemTime};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};

use super::config::NetworkConfig;
use super::core::Core;
use super::frame::{Mac, Udp, be16, put};
use super::port::Port;
use super::stream::GuestStream;
use super::tcp::DNS_PORT;
use super::udp::failure;

/// Bytes of a message's header.
const HEADER: usize = 12;
/// The largest answer by UDP that is taken from a resolver.
const MAX_ANSWER: usize = 64 << 10;
/// The largest configuration file that is read.
const MAX_RESOLV_CONF: u64 = 64 << 10;
/// Resolvers that are tried, as many as the C library does.
const MAX_RESOLVERS: usize = 3;
/// How long one resolver may take by UDP before the next is asked.
const UDP_TIMEOUT: Duration = Duration::from_millis(2500);
/// How long one resolver may take by TCP.
const TCP_TIMEOUT: Duration = Duration::from_secs(8);
/// A guest's TCP connection without a question for so long is closed (RFC 7766, 6.2.3).
const STREAM_IDLE: Duration = Duration::from_secs(30);
/// How long an answer about a member may be kept, in seconds: members come and go.
const TTL: u32 = 5;

const TYPE_A: u16 = 1;
const TYPE_PTR: u16 = 12;
const TYPE_ANY: u16 = 255;
const CLASS_IN: u16 = 1;

const NO_ERROR: u8 = 0;
const SERVFAIL: u8 = 2;
const NXDOMAIN: u8 = 3;
const NOT_IMPLEMENTED: u8 = 4;

/// A resource record without its owner: its type and its data.
type Record = (u16, Vec<u8>);

/// The question of a query.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Question {
    /// In lower case, labels joined by dots, without the final one.
    name: String,
    kind: u16,
    class: u16,
    /// Where the question section ends in the message.
    end: usize,
}

impl Question {
    /// Reads a query with exactly one question; names are not compressed there.
    fn parse(message: &[u8]) -> Option<Self> {
        // A response, or an operation other than a standard query, is no question.
        if message.get(2)? & 0xf8 != 0 || be16(message, 4)? != 1 {
            return None;
        }
        let mut name = String::new();
        let mut at = HEADER;
        loop {
            let len = usize::from(*message.get(at)?);
            at += 1;
            if len == 0 {
                break;
            }
            if len > 63 || name.len() + len > 254 {
                return None;
            }
            if !name.is_empty() {
                name.push('.');
            }
            for byte in message.get(at..at + len)? {
                // Whatever is no ordinary character can equal no name that is known here.
                name.push(char::from(byte.to_ascii_lowercase()));
            }
            at += len;
        }
        Some(Self {
            name,
            kind: be16(message, at)?,
            class: be16(message, at + 2)?,
            end: at + 4,
        })
    }
}

/// An answer to `query` with the given code and, in `records`, owner-less resource records.
fn answer(query: &[u8], end: usize, code: u8, records: &[Record]) -> Vec<u8> {
    let mut message = query.get(..end).unwrap_or(query).to_vec();
    if message.len() < HEADER {
        message.resize(HEADER, 0);
    }
    let recursion_desired = message[2] & 1;
    // A response; authoritative unless it is an error of forwarding; recursion available.
    let authoritative = if code == SERVFAIL { 0 } else { 4 };
    let operation = message[2] & 0x78;
    message[2] = 0x80 | operation | authoritative | recursion_desired;
    message[3] = 0x80 | code;
    let questions: u16 = if end > HEADER { 1 } else { 0 };
    put(&mut message, 4, &questions.to_be_bytes());
    put(&mut message, 6, &(records.len() as u16).to_be_bytes());
    put(&mut message, 8, &[0; 4]);
    for (kind, data) in records {
        // The owner is the question's name, which stands right after the header.
        message.extend([0xc0, HEADER as u8]);
        message.extend(kind.to_be_bytes());
        message.extend(CLASS_IN.to_be_bytes());
        message.extend(TTL.to_be_bytes());
        message.extend((data.len() as u16).to_be_bytes());
        message.extend(data);
    }
    message
}

/// A name as it stands in a message; labels are those of members and the domain, checked before.
pub(super) fn encode(name: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(name.len() + 2);
    for label in name.split('.').filter(|label| !label.is_empty()) {
        let label = label.as_bytes().get(..63).unwrap_or(label.as_bytes());
        bytes.push(label.len() as u8);
        bytes.extend(label);
    }
    bytes.push(0);
    bytes
}

/// The resolvers of a resolv.conf(5), in order.
fn parse_resolv_conf(text: &str) -> Vec<SocketAddr> {
    text.lines()
        .filter_map(|line| {
            let mut words = line.split_ascii_whitespace();
            if words.next()? != "nameserver" {
                return None;
            }
            let word = words.next()?;
            if let Some((address, scope)) = word.split_once('%') {
                let scope = nix::net::if_::if_nametoindex(scope).ok()?;
                let address = address.parse().ok()?;
                return Some(std::net::SocketAddrV6::new(address, DNS_PORT, 0, scope).into());
            }
            Some(SocketAddr::new(word.parse().ok()?, DNS_PORT))
        })
        .take(MAX_RESOLVERS)
        .collect()
}

/// What tells one version of a file from another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Version {
    modified: SystemTime,
    len: u64,
    inode: u64,
}

/// The state of the name service.
#[derive(Debug)]
pub(super) struct Dns {
    fixed: Option<Vec<SocketAddr>>,
    path: PathBuf,
    read: RefCell<(Option<Version>, Vec<SocketAddr>)>,
    /// Questions of each port that wait for a resolver.
    waiting: RefCell<HashMap<u32, usize>>,
    pub(super) local: Cell<u64>,
    pub(super) forwarded: Cell<u64>,
    pub(super) failed: Cell<u64>,
}

impl Dns {
    pub(super) fn new(config: &NetworkConfig) -> Self {
        Self {
            fixed: config.resolvers.clone(),
            path: config.resolv_conf.clone(),
            read: RefCell::default(),
            waiting: RefCell::default(),
            local: Cell::new(0),
            forwarded: Cell::new(0),
            failed: Cell::new(0),
        }
    }

    /// The resolvers to ask, as the host's configuration is now.
    fn resolvers(&self) -> Vec<SocketAddr> {
        use std::os::unix::fs::MetadataExt;
        if let Some(fixed) = &self.fixed {
            return fixed.clone();
        }
        let version = std::fs::metadata(&self.path).ok().and_then(|metadata| {
            Some(Version {
                modified: metadata.modified().ok()?,
                len: metadata.len(),
                inode: metadata.ino(),
            })
        });
        let mut read = self.read.borrow_mut();
        if version.is_none() {
            return Vec::new();
        }
        if version != read.0 {
            match read_bounded(&self.path) {
                Ok(text) => *read = (version, parse_resolv_conf(&text)),
                Err(error) => {
                    tracing::warn!(path = %self.path.display(), %error, "cannot read the resolvers");
                }
            }
        }
        read.1.clone()
    }
}

fn read_bounded(path: &std::path::Path) -> io::Result<String> {
    use std::io::Read;
    let mut bytes = Vec::new();
    std::fs::File::open(path)?
        .take(MAX_RESOLV_CONF)
        .read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The right to wait for a resolver.
struct Waiting {
    core: Rc<Core>,
    port: u32,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let mut waiting = self.core.dns.waiting.borrow_mut();
        if let Some(count) = waiting.get_mut(&self.port) {
            *count -= 1;
            if *count == 0 {
                waiting.remove(&self.port);
            }
        }
    }
}

impl Core {
    fn wait_for_dns(self: &Rc<Self>, port: &Port) -> Option<Waiting> {
        let mut waiting = self.dns.waiting.borrow_mut();
        let count = waiting.entry(port.id).or_insert(0);
        if *count >= self.config.limits.dns_questions {
            return None;
        }
        *count += 1;
        Some(Waiting {
            core: self.clone(),
            port: port.id,
        })
    }

    /// Takes a query that came by UDP.
    pub(super) fn dns_datagram(
        self: &Rc<Self>,
        port: &Rc<Port>,
        from: Mac,
        guest: Ipv4Addr,
        udp: &Udp<'_>,
    ) {
        if udp.payload.len() < HEADER || udp.payload.get(2).is_none_or(|flags| flags & 0x80 != 0) {
            return;
        }
        let reply = {
            let (core, port, client) = (self.clone(), port.clone(), udp.source);
            move |message: &[u8]| {
                let udp = Udp {
                    source: DNS_PORT,
                    to: client,
                    payload: message,
                };
                let gateway = core.config.subnet.gateway();
                core.send_udp(&port, from, gateway, guest, &udp);
            }
        };
        if let Some(message) = self.dns_local(udp.payload) {
            reply(&message);
            return;
        }
        // Beyond the limit questions are dropped; the guest's resolver asks again.
        let Some(waiting) = self.wait_for_dns(port) else {
            return;
        };
        let query = udp.payload.to_vec();
        tokio::task::spawn_local(async move {
            let message = waiting.core.dns_forward(&query, Transport::Udp).await;
            if let Some(message) = message {
                reply(&message);
            }
        });
    }

    /// Serves a guest's DNS connection (RFC 7766).
    pub(super) async fn dns_stream(self: Rc<Self>, port: Rc<Port>, mut stream: GuestStream) {
        while let Ok(Ok(len)) = tokio::time::timeout(STREAM_IDLE, stream.read_u16()).await {
            let mut query = vec![0; usize::from(len)];
            let read = tokio::time::timeout(STREAM_IDLE, stream.read_exact(&mut query)).await;
            if !matches!(read, Ok(Ok(_))) || query.len() < HEADER || query[2] & 0x80 != 0 {
                return;
            }
            let message = match self.dns_local(&query) {
                Some(message) => message,
                None => {
                    let Some(_waiting) = self.wait_for_dns(&port) else {
                        return;
                    };
                    match self.dns_forward(&query, Transport::Tcp).await {
                        Some(message) => message,
                        None => return,
                    }
                }
            };
            let Ok(len) = u16::try_from(message.len()) else {
                return;
            };
            let mut framed = len.to_be_bytes().to_vec();
            framed.extend(message);
            if stream.write_all(&framed).await.is_err() {
                return;
            }
        }
    }

    /// The answer to a query about a member, or to one that cannot be forwarded.
    fn dns_local(&self, query: &[u8]) -> Option<Vec<u8>> {
        let Some(question) = Question::parse(query) else {
            return Some(answer(query, HEADER, NOT_IMPLEMENTED, &[]));
        };
        let (code, records) = self.dns_records(&question)?;
        self.dns.local.set(self.dns.local.get() + 1);
        Some(answer(query, question.end, code, &records))
    }

    /// The code and the records for a name that is known here; `None` for all other names.
    fn dns_records(&self, question: &Question) -> Option<(u8, Vec<Record>)> {
        let asks = |kind| {
            question.class == CLASS_IN && (question.kind == kind || question.kind == TYPE_ANY)
        };
        let domain = self.config.domain.to_ascii_lowercase();
        if let Some(ip) = reverse(&question.name) {
            if !self.config.subnet.contains(ip) {
                return None;
            }
            return Some(match self.name_of(ip) {
                Some(name) if asks(TYPE_PTR) => {
                    let record = encode(&format!("{name}.{domain}"));
                    (NO_ERROR, vec![(TYPE_PTR, record)])
                }
                Some(_) => (NO_ERROR, Vec::new()),
                None => (NXDOMAIN, Vec::new()),
            });
        }
        let in_domain = question
            .name
            .strip_suffix(&domain)
            .and_then(|rest| rest.strip_suffix('.'))
            .filter(|_| !domain.is_empty());
        let host = in_domain.unwrap_or(&question.name);
        let ip = if in_domain.is_some() && host == "gateway" {
            Some(self.config.subnet.gateway())
        } else {
            self.address_of(host)
        };
        match ip {
            Some(ip) if asks(TYPE_A) => Some((NO_ERROR, vec![(TYPE_A, ip.octets().to_vec())])),
            // The name exists, with addresses of the other family only.
            Some(_) => Some((NO_ERROR, Vec::new())),
            None if in_domain.is_some() => Some((NXDOMAIN, Vec::new())),
            // The domain itself exists and has no records.
            None if question.name == domain => Some((NO_ERROR, Vec::new())),
            None => None,
        }
    }

    /// The address of a name, given in lower case: a member's, or a registered one.
    fn address_of(&self, name: &str) -> Option<Ipv4Addr> {
        let ports = self.ports.borrow();
        let mut named = ports.iter().filter(|port| port.is_named(name));
        let member = named.next().map(|port| port.ip);
        member.or_else(|| self.names.borrow().get(name).copied())
    }

    /// The name of an address of the guests' network.
    fn name_of(&self, ip: Ipv4Addr) -> Option<String> {
        if ip == self.config.subnet.gateway() {
            return Some("gateway".to_owned());
        }
        if let Some(port) = self.member_at(ip) {
            return Some(port.name.clone());
        }
        let names = self.names.borrow();
        let mut known = names.iter().filter(|(_, address)| **address == ip);
        known.next().map(|(name, _)| name.clone())
    }

    /// Asks the host's resolvers in turn; SERVFAIL if there is none or none answers.
    async fn dns_forward(&self, query: &[u8], transport: Transport) -> Option<Vec<u8>> {
        let question = Question::parse(query)?;
        for resolver in self.dns.resolvers() {
            let asked = match transport {
                Transport::Udp => ask_udp(resolver, query, &question).await,
                Transport::Tcp => ask_tcp(resolver, query, &question).await,
            };
            match asked {
                Ok(message) => {
                    self.dns.forwarded.set(self.dns.forwarded.get() + 1);
                    return Some(message);
                }
                Err(error) => tracing::debug!(%resolver, %error, "a resolver does not answer"),
            }
        }
        self.dns.failed.set(self.dns.failed.get() + 1);
        Some(answer(query, question.end, SERVFAIL, &[]))
    }
}

#[derive(Debug, Clone, Copy)]
enum Transport {
    Udp,
    Tcp,
}

/// The query with an identifier of its own, which nobody can guess who does not see it.
fn disguise(query: &[u8]) -> ([u8; 2], Vec<u8>) {
    let id = rand::random::<u16>().to_be_bytes();
    let mut message = query.to_vec();
    put(&mut message, 0, &id);
    (id, message)
}

/// Whether `message` answers what was asked; gives it the guest's identifier.
fn restore(query: &[u8], id: [u8; 2], question: &Question, message: &mut [u8]) -> bool {
    let is_response = message.get(2).is_some_and(|flags| flags & 0x80 != 0);
    if message.get(..2) != Some(&id) || !is_response {
        return false;
    }
    // Some servers leave the question out of an error.
    if be16(message, 4) != Some(0) {
        let asked = query.get(HEADER..question.end).unwrap_or_default();
        let repeated = message.get(HEADER..question.end).unwrap_or_default();
        if !repeated.eq_ignore_ascii_case(asked) {
            return false;
        }
    }
    put(message, 0, query.get(..2).unwrap_or_default());
    true
}

async fn ask_udp(resolver: SocketAddr, query: &[u8], question: &Question) -> io::Result<Vec<u8>> {
    // The kernel chooses a random port, and hands over what comes from the resolver only.
    let any: IpAddr = match resolver {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => std::net::Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(resolver).await?;
    let (id, message) = disguise(query);
    let exchange = async {
        socket.send(&message).await?;
        let mut answer = vec![0; MAX_ANSWER];
        loop {
            let len = tokio::select! {
                biased;
                received = socket.recv(&mut answer) => received?,
                error = failure(&socket) => return Err(error),
            };
            let received = answer.get_mut(..len).unwrap_or_default();
            if restore(query, id, question, received) {
                answer.truncate(len);
                return Ok(answer);
            }
        }
    };
    tokio::time::timeout(UDP_TIMEOUT, exchange)
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

async fn ask_tcp(resolver: SocketAddr, query: &[u8], question: &Question) -> io::Result<Vec<u8>> {
    let (id, message) = disguise(query);
    let exchange = async {
        let mut stream = TcpStream::connect(resolver).await?;
        let len = u16::try_from(message.len()).map_err(io::Error::other)?;
        let mut framed = len.to_be_bytes().to_vec();
        framed.extend(&message);
        stream.write_all(&framed).await?;
        let len = stream.read_u16().await?;
        let mut answer = vec![0; usize::from(len)];
        stream.read_exact(&mut answer).await?;
        if restore(query, id, question, &mut answer) {
            Ok(answer)
        } else {
            Err(io::ErrorKind::InvalidData.into())
        }
    };
    tokio::time::timeout(TCP_TIMEOUT, exchange)
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// The address that a name of the reverse tree stands for.
fn reverse(name: &str) -> Option<Ipv4Addr> {
    let digits = name.strip_suffix(".in-addr.arpa")?;
    let address: Ipv4Addr = digits.parse().ok()?;
    let [a, b, c, d] = address.octets();
    Some(Ipv4Addr::new(d, c, b, a))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(name: &str, kind: u16) -> Vec<u8> {
        let mut message = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        message.extend(encode(name));
        message.extend(kind.to_be_bytes());
        message.extend(CLASS_IN.to_be_bytes());
        message
    }

    #[test]
    fn a_question_is_read() {
        let message = query("Web.FLEETBOX", TYPE_A);
        let question = Question::parse(&message).unwrap();
        assert_eq!(question.name, "web.fleetbox");
        assert_eq!((question.kind, question.class), (TYPE_A, CLASS_IN));
        assert_eq!(question.end, message.len());
    }

    #[test]
    fn what_is_no_plain_question_is_refused() {
        let mut response = query("a", TYPE_A);
        response[2] |= 0x80;
        assert_eq!(Question::parse(&response), None);
        let mut two = query("a", TYPE_A);
        two[5] = 2;
        assert_eq!(Question::parse(&two), None);
        let mut compressed = query("a", TYPE_A);
        compressed[HEADER] = 0xc0;
        assert_eq!(Question::parse(&compressed), None);
        let long = vec!["x".repeat(60); 5].join(".");
        assert_eq!(Question::parse(&query(&long, TYPE_A)), None);
    }

    #[test]
    fn resolv_conf_is_read_as_the_c_library_does() {
        let text = "# comment\nsearch a.b\nnameserver 1.2.3.4\n nameserver\t::1 # x\n\
                    nameserver bad\nnameserver 5.6.7.8\nnameserver 9.9.9.9\noptions edns0\n";
        let expected: Vec<SocketAddr> = ["1.2.3.4:53", "[::1]:53", "5.6.7.8:53"]
            .map(|address| address.parse().unwrap())
            .to_vec();
        assert_eq!(parse_resolv_conf(text), expected);
    }

    #[test]
    fn a_changed_resolv_conf_is_read_again() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "nameserver 192.0.2.1\n").unwrap();
        let dns = Dns::new(&NetworkConfig {
            resolv_conf: file.path().to_owned(),
            ..NetworkConfig::default()
        });
        assert_eq!(dns.resolvers(), ["192.0.2.1:53".parse().unwrap()]);
        std::fs::write(file.path(), "nameserver 192.0.2.77\n").unwrap();
        assert_eq!(dns.resolvers(), ["192.0.2.77:53".parse().unwrap()]);
        std::fs::remove_file(file.path()).unwrap();
        assert_eq!(dns.resolvers(), []);
    }

    #[test]
    fn only_the_answer_to_the_question_is_taken() {
        let asked = query("example.org", TYPE_A);
        let question = Question::parse(&asked).unwrap();
        let (id, sent) = disguise(&asked);
        let mut right = answer(&sent, question.end, NO_ERROR, &[]);
        assert!(restore(&asked, id, &question, &mut right));
        assert_eq!(right[..2], asked[..2]);
        let other = query("example.com", TYPE_A);
        let mut wrong = answer(&other, other.len(), NO_ERROR, &[]);
        put(&mut wrong, 0, &id);
        assert!(!restore(&asked, id, &question, &mut wrong));
    }

    #[test]
    fn reverse_names_are_understood() {
        assert_eq!(
            reverse("9.41.187.10.in-addr.arpa"),
            Some(Ipv4Addr::new(10, 187, 41, 9))
        );
        assert_eq!(reverse("41.187.10.in-addr.arpa"), None);
        assert_eq!(reverse("web"), None);
    }

    proptest::proptest! {
        #[test]
        fn any_message_is_survived(message in proptest::collection::vec(0u8.., 0..200)) {
            if let Some(question) = Question::parse(&message) {
                let _ = answer(&message, question.end, NO_ERROR, &[(TYPE_A, vec![1, 2, 3, 4])]);
                let _ = restore(&message, [0, 0], &question, &mut message.clone());
            }
            let _ = answer(&message, HEADER, SERVFAIL, &[]);
        }
    }
}
