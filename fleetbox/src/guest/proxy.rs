//! A proxy on loopback that reaches guests by name. It speaks SOCKS5 (RFC 1928) and HTTP (RFC 9110,
//! `CONNECT` and plain requests) on one port.
//!
//! With it, `curl --proxy socks5h://127.0.0.1:1080 http://web` or a browser reaches VMs, without root and without
//! changing the host's name resolution. `NAME` means a running VM. If several clusters have a VM with that name, use
//! `NAME.CLUSTER`. Both also work with `.fleetbox` appended. Other names and addresses are reached as from this host,
//! so a browser can use the proxy for everything.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::error::{Error, Result};
use crate::model::names::{Name, Reference};
use crate::vm::fleet::Fleet;

/// How long a client may take to send its request.
const GREETING: Duration = Duration::from_secs(20);
/// How long it may take to connect to the target.
const CONNECT: Duration = Duration::from_secs(30);
/// Maximum bytes of an HTTP request before its body.
const HEAD_LIMIT: usize = 64 << 10;
/// Maximum number of connections at once.
const CONNECTIONS: usize = 1000;
/// The top-level name of guests.
const DOMAIN: &str = ".fleetbox";

/// A listening proxy.
///
/// ```no_run
/// # async fn example() -> fleetbox::Result<()> {
/// use fleetbox::{Fleet, proxy::Proxy};
///
/// let proxy = Proxy::bind(&Fleet::new(), ([127, 0, 0, 1], 1080).into()).await?;
/// println!("socks5h://{}", proxy.address());
/// proxy.serve().await
/// # }
/// ```
#[derive(Debug)]
pub struct Proxy {
    listener: TcpListener,
    address: SocketAddr,
    fleet: Fleet,
}

impl Proxy {
    /// Listens on `address`. It must be a loopback address, because everyone who can connect
    /// reaches all VMs of `fleet`. Port 0 picks a free port.
    ///
    /// # Errors
    /// [`Error::Io`] if the address is not a loopback address, or is in use.
    pub async fn bind(fleet: &Fleet, address: SocketAddr) -> Result<Self> {
        const ACTION: &str = "listen for connections to the proxy";
        if !address.ip().is_loopback() {
            return Err(Error::io(ACTION)(io::Error::other(format!(
                "{address} is not a loopback address, so other hosts could reach the VMs; use 127.0.0.1"
            ))));
        }
        let named =
            |source: io::Error| io::Error::new(source.kind(), format!("{address}: {source}"));
        let listener = TcpListener::bind(address)
            .await
            .map_err(|source| Error::io(ACTION)(named(source)))?;
        let address = listener.local_addr().map_err(Error::io(ACTION))?;
        Ok(Self {
            listener,
            address,
            fleet: fleet.clone(),
        })
    }

    /// The address it listens on.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves connections until the future is dropped.
    ///
    /// # Errors
    /// None at present. A failed connection does not affect the others.
    pub async fn serve(self) -> Result<()> {
        let fleet = Arc::new(self.fleet);
        let slots = Arc::new(Semaphore::new(CONNECTIONS));
        loop {
            let Ok(slot) = Arc::clone(&slots).acquire_owned().await else {
                return Ok(());
            };
            match self.listener.accept().await {
                Ok((client, _)) => {
                    let fleet = Arc::clone(&fleet);
                    tokio::spawn(async move {
                        if let Err(error) = serve_client(client, &fleet).await {
                            tracing::debug!(%error, "a proxied connection ended");
                        }
                        drop(slot);
                    });
                }
                Err(error) => {
                    // The process may be out of descriptors. Connections that close will free some.
                    tracing::warn!(%error, "cannot accept");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
}

/// A byte stream in both directions.
trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// Why a connection to the target failed.
enum Failure {
    /// The VM does not exist, or does not run.
    Unknown(String),
    /// The target refuses the connection or does not answer.
    Refused(String),
}

async fn serve_client(mut client: TcpStream, fleet: &Fleet) -> io::Result<()> {
    let mut first = [0];
    timeout(GREETING, client.peek(&mut first)).await??;
    if first == [5] {
        socks(client, fleet).await
    } else {
        http(&mut client, fleet).await
    }
}

/// The VM that a name may stand for: `NAME` or `NAME.CLUSTER`, with or without the domain.
fn guest_of(host: &str) -> Option<Reference> {
    let host = host.strip_suffix('.').unwrap_or(host);
    let name = host.strip_suffix(DOMAIN).unwrap_or(host);
    // `localhost` always means this host (RFC 6761 section 6.3), even if a VM has that name.
    if host == "localhost" || host.ends_with(".localhost") {
        return None;
    }
    match name.split_once('.') {
        Some((name, cluster)) => {
            let cluster = Name::new(cluster).ok()?;
            Some(Reference::new(cluster, Name::new(name).ok()?))
        }
        None => Name::new(name).ok().map(Reference::from),
    }
}

async fn connect(fleet: &Fleet, host: &str, port: u16) -> Result<Box<dyn Duplex>, Failure> {
    let shown = crate::util::text::printable(host.as_bytes());
    let late = || Failure::Refused(format!("{shown} does not answer"));
    let host = host.to_ascii_lowercase();
    if let Some(name) = guest_of(&host) {
        let vm = match fleet.open(name.as_str()).await {
            Ok(vm) => Some(vm),
            // Without the domain, it may be a name in the host's network or on the Internet.
            Err(Error::NoVm { .. } | Error::NoMember { .. })
                if !host.trim_end_matches('.').ends_with(DOMAIN) =>
            {
                None
            }
            Err(error) => return Err(Failure::Unknown(error.to_string())),
        };
        if let Some(vm) = vm {
            let stream = timeout(CONNECT, vm.connect(port)).await;
            let stream = stream.map_err(|_| late())?;
            return Ok(Box::new(
                stream.map_err(|error| Failure::Refused(error.to_string()))?,
            ));
        }
    }
    let stream = timeout(CONNECT, TcpStream::connect((host.as_str(), port))).await;
    match stream.map_err(|_| late())? {
        Ok(stream) => Ok(Box::new(stream)),
        Err(error) => Err(Failure::Refused(format!(
            "cannot connect to {shown} port {port}: {error}"
        ))),
    }
}

/// Serves SOCKS5 (RFC 1928).
async fn socks(mut client: TcpStream, fleet: &Fleet) -> io::Result<()> {
    const SUCCEEDED: u8 = 0;
    const UNREACHABLE: u8 = 4;
    const REFUSED: u8 = 5;
    const NO_COMMAND: u8 = 7;
    const NO_ADDRESS: u8 = 8;
    let greeting = async {
        // Version and methods. Only the method "no authentication" is supported.
        let [_, count] = read_array(&mut client).await?;
        let mut methods = vec![0; count.into()];
        client.read_exact(&mut methods).await?;
        let method = if methods.contains(&0) { 0 } else { 0xff };
        client.write_all(&[5, method]).await?;
        if method != 0 {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        let [_, command, _, kind] = read_array(&mut client).await?;
        let host = match kind {
            1 => Some(Ipv4Addr::from(read_array::<4>(&mut client).await?).to_string()),
            3 => {
                let [length] = read_array(&mut client).await?;
                let mut name = vec![0; length.into()];
                client.read_exact(&mut name).await?;
                String::from_utf8(name).ok()
            }
            4 => Some(Ipv6Addr::from(read_array::<16>(&mut client).await?).to_string()),
            _ => None,
        };
        let port = match kind {
            1 | 3 | 4 => u16::from_be_bytes(read_array(&mut client).await?),
            _ => 0,
        };
        Ok::<_, io::Error>((command, host, port))
    };
    let (command, host, port) = timeout(GREETING, greeting).await??;
    // Clients do not need the bound address, so it is all zeros.
    let answer = |code: u8| [5, code, 0, 1, 0, 0, 0, 0, 0, 0];
    let connected = match (command, host) {
        (1, Some(host)) => connect(fleet, &host, port).await,
        (1, None) => return client.write_all(&answer(NO_ADDRESS)).await,
        _ => return client.write_all(&answer(NO_COMMAND)).await,
    };
    match connected {
        Ok(mut server) => {
            client.write_all(&answer(SUCCEEDED)).await?;
            copy_bidirectional(&mut client, &mut server).await.map(drop)
        }
        Err(Failure::Unknown(why)) => {
            tracing::debug!(why, "proxy");
            client.write_all(&answer(UNREACHABLE)).await
        }
        Err(Failure::Refused(why)) => {
            tracing::debug!(why, "proxy");
            client.write_all(&answer(REFUSED)).await
        }
    }
}

async fn read_array<const N: usize>(stream: &mut TcpStream) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes).await?;
    Ok(bytes)
}

/// The request of an HTTP client.
#[derive(Debug, PartialEq, Eq)]
struct HttpRequest {
    host: String,
    port: u16,
    /// The head to send to the server; `None` for CONNECT.
    head: Option<Vec<u8>>,
}

async fn http(client: &mut TcpStream, fleet: &Fleet) -> io::Result<()> {
    let (head, body) = timeout(GREETING, read_head(client)).await??;
    let request = match parse(&head) {
        Ok(request) => request,
        Err(why) => return refuse(client, "400 Bad Request", why).await,
    };
    let mut server = match connect(fleet, &request.host, request.port).await {
        Ok(server) => server,
        Err(Failure::Unknown(why)) => return refuse(client, "404 Not Found", &why).await,
        Err(Failure::Refused(why)) => return refuse(client, "502 Bad Gateway", &why).await,
    };
    match &request.head {
        None => client.write_all(b"HTTP/1.1 200 Connected\r\n\r\n").await?,
        Some(head) => server.write_all(head).await?,
    }
    server.write_all(&body).await?;
    copy_bidirectional(client, &mut server).await.map(drop)
}

async fn refuse(client: &mut TcpStream, status: &str, why: &str) -> io::Result<()> {
    let answer = format!(
        "HTTP/1.1 {status}\r\ncontent-type: text/plain; charset=utf-8\r\ncontent-length: {}\r\n\
         connection: close\r\n\r\n{why}\n",
        why.len() + 1
    );
    client.write_all(answer.as_bytes()).await?;
    client.shutdown().await
}

/// The head of a request, including the empty line, and the bytes that came after it.
async fn read_head(client: &mut TcpStream) -> io::Result<(Vec<u8>, Vec<u8>)> {
    let mut bytes = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let n = client.read(&mut buffer).await?;
        if n == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        // The end mark may have begun in the earlier bytes.
        let from = bytes.len().saturating_sub(3);
        bytes.extend_from_slice(buffer.get(..n).unwrap_or_default());
        let recent = bytes.get(from..).unwrap_or_default();
        if let Some(at) = recent.windows(4).position(|end| end == b"\r\n\r\n") {
            let body = bytes.split_off(from + at + 4);
            return Ok((bytes, body));
        }
        if bytes.len() > HEAD_LIMIT {
            return Err(io::ErrorKind::InvalidData.into());
        }
    }
}

/// Parses a request's head and builds the head for the server. That one has only the path in its
/// request line and leaves out headers meant for the proxy. It asks the server to close the
/// connection, since the next request may be for another server.
fn parse(head: &[u8]) -> Result<HttpRequest, &'static str> {
    let head = std::str::from_utf8(head).map_err(|_| "the request is not text")?;
    let (line, headers) = head
        .split_once("\r\n")
        .ok_or("the request line is missing")?;
    let mut words = line.split(' ');
    let (Some(method), Some(target), Some(version), None) =
        (words.next(), words.next(), words.next(), words.next())
    else {
        return Err("the request line must have three words");
    };
    if !version.starts_with("HTTP/1.") {
        return Err("only HTTP/1 is supported");
    }
    if method == "CONNECT" {
        let (host, port) = authority(target, None)?;
        return Ok(HttpRequest {
            host,
            port,
            head: None,
        });
    }
    let rest = target
        .get(..7)
        .filter(|scheme| scheme.eq_ignore_ascii_case("http://"))
        .and_then(|_| target.get(7..))
        .ok_or("this is a proxy: the URL must begin with http://")?;
    let at = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (place, path) = rest.split_at(at);
    // Drop a user name and password in front of the server's name.
    let place = place.rsplit('@').next().unwrap_or(place);
    let (host, port) = authority(place, Some(80))?;
    let path = path.split('#').next().unwrap_or_default();
    let slash = if path.starts_with('/') { "" } else { "/" };
    let mut new = format!("{method} {slash}{path} {version}\r\n");
    let upgrade = headers
        .split("\r\n")
        .any(|line| name_of(line).eq_ignore_ascii_case("upgrade"));
    for line in headers.split("\r\n").filter(|line| !line.is_empty()) {
        let name = name_of(line);
        let own = name.eq_ignore_ascii_case("proxy-connection")
            || name.eq_ignore_ascii_case("proxy-authorization")
            || (name.eq_ignore_ascii_case("connection") && !upgrade);
        if !own {
            new.push_str(line);
            new.push_str("\r\n");
        }
    }
    if !upgrade {
        new.push_str("connection: close\r\n");
    }
    new.push_str("\r\n");
    Ok(HttpRequest {
        host,
        port,
        head: Some(new.into_bytes()),
    })
}

fn name_of(header: &str) -> &str {
    header.split(':').next().unwrap_or_default()
}

/// Parses `HOST:PORT` or `[IPv6]:PORT`.
fn authority(text: &str, default: Option<u16>) -> Result<(String, u16), &'static str> {
    const WRONG: &str = "the address is not HOST:PORT";
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (host, rest) = rest.split_once(']').ok_or(WRONG)?;
            (host, rest.strip_prefix(':'))
        }
        None => match text.rsplit_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        },
    };
    let port = match port {
        Some(port) => port.parse().ok().filter(|port| *port != 0),
        None => default,
    };
    match port {
        Some(port) if !host.is_empty() => Ok((host.to_owned(), port)),
        _ => Err(WRONG),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(head: &str) -> Result<HttpRequest, &'static str> {
        parse(head.as_bytes())
    }

    #[test]
    fn plain_requests_are_rewritten() {
        let parsed = request(
            "GET http://web:8080/a?b#c HTTP/1.1\r\nHost: web:8080\r\nProxy-Connection: keep-alive\r\n\
             Connection: keep-alive\r\nX: y\r\n\r\n",
        )
        .unwrap();
        assert_eq!((parsed.host.as_str(), parsed.port), ("web", 8080));
        assert_eq!(
            String::from_utf8(parsed.head.unwrap()).unwrap(),
            "GET /a?b HTTP/1.1\r\nHost: web:8080\r\nX: y\r\nconnection: close\r\n\r\n"
        );
        let parsed = request("GET HTTP://user:pw@web HTTP/1.0\r\n\r\n").unwrap();
        assert_eq!((parsed.host.as_str(), parsed.port), ("web", 80));
        assert!(parsed.head.unwrap().starts_with(b"GET / HTTP/1.0\r\n"));
        let parsed = request("GET http://[::1]:81?x HTTP/1.1\r\n\r\n").unwrap();
        assert_eq!((parsed.host.as_str(), parsed.port), ("::1", 81));
        assert!(parsed.head.unwrap().starts_with(b"GET /?x HTTP/1.1\r\n"));
        let head = "GET http://web/ HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
        let head = request(head).unwrap().head.unwrap();
        assert!(
            String::from_utf8(head)
                .unwrap()
                .contains("Connection: Upgrade")
        );
    }

    #[test]
    fn connect_needs_a_port_and_nonsense_is_refused() {
        let parsed = request("CONNECT web.fleetbox:443 HTTP/1.1\r\n\r\n").unwrap();
        assert_eq!(
            parsed,
            HttpRequest {
                host: "web.fleetbox".to_owned(),
                port: 443,
                head: None
            }
        );
        for wrong in [
            "",
            "GET /",
            "CONNECT web HTTP/1.1\r\n\r\n",
            "CONNECT :1 HTTP/1.1\r\n\r\n",
            "CONNECT web:0 HTTP/1.1\r\n\r\n",
            "CONNECT web:99999 HTTP/1.1\r\n\r\n",
            "CONNECT [::1 HTTP/1.1\r\n\r\n",
            "GET / HTTP/1.1\r\n\r\n",
            "GET https://web/ HTTP/1.1\r\n\r\n",
            "GET http:///x HTTP/1.1\r\n\r\n",
            "GET http://web/ HTTP/2\r\n\r\n",
            "GET  http://web/ HTTP/1.1\r\n\r\n",
            "é\r\n\r\n",
        ] {
            assert!(request(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn guests_have_a_domain() {
        for (host, vm) in [
            ("web", Some("web")),
            ("web.fleetbox", Some("web")),
            ("web.fleetbox.", Some("web")),
            ("node-1.shop", Some("shop/node-1")),
            ("node-1.shop.fleetbox", Some("shop/node-1")),
            ("node-1.shop.fleetbox.", Some("shop/node-1")),
            // The domain is no cluster, but there may be one of that name.
            ("web.fleetbox.fleetbox", Some("fleetbox/web")),
            ("node-1.shop.example", None),
            ("localhost", None),
            ("x.localhost", None),
            ("127.0.0.1", None),
            ("::1", None),
            (".fleetbox", None),
            ("", None),
        ] {
            let found = guest_of(host);
            assert_eq!(found.as_ref().map(Reference::as_str), vm, "{host}");
        }
    }

    #[tokio::test]
    async fn clusters_tell_vms_of_one_name_apart() {
        let (proxy, _, home) = proxy().await;
        for vm in ["kept/node-1", "shop/node-1"] {
            let path = home.path().join("clusters").join(vm);
            std::fs::create_dir_all(&path).unwrap();
            std::fs::write(path.join("vm.json"), "{}").unwrap();
            std::fs::write(path.join("lock"), "").unwrap();
        }
        for (host, why) in [
            ("node-1", "kept/node-1, shop/node-1"),
            ("node-1.fleetbox", "kept/node-1, shop/node-1"),
            ("node-1.shop", "shop/node-1 is not running"),
            ("Node-1.kept.fleetbox", "kept/node-1 is not running"),
            ("node-2.shop.fleetbox", "shop has no member node-2"),
            ("node-1.none.fleetbox", "none has no member node-1"),
        ] {
            let request = format!("GET http://{host}/ HTTP/1.1\r\n\r\n");
            let answer = exchange(proxy, request.as_bytes()).await;
            let answer = String::from_utf8(answer).unwrap();
            assert!(
                answer.starts_with("HTTP/1.1 404 ") && answer.contains(why),
                "{host}: {answer}"
            );
        }
    }

    /// A proxy, and a server of the host that answers what it was sent.
    async fn proxy() -> (SocketAddr, SocketAddr, tempfile::TempDir) {
        let home = tempfile::tempdir().unwrap();
        let any = ([127, 0, 0, 1], 0).into();
        let proxy = Proxy::bind(&Fleet::at(home.path()), any).await.unwrap();
        let address = proxy.address();
        tokio::spawn(proxy.serve());
        let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let echo = server.local_addr().unwrap();
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = server.accept().await.unwrap();
                tokio::spawn(async move {
                    let (mut read, mut write) = stream.split();
                    let _ = tokio::io::copy(&mut read, &mut write).await;
                });
            }
        });
        (address, echo, home)
    }

    async fn exchange(proxy: SocketAddr, bytes: &[u8]) -> Vec<u8> {
        let mut stream = TcpStream::connect(proxy).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn both_protocols_reach_a_server() {
        let (proxy, echo, _home) = proxy().await;
        let port = echo.port().to_be_bytes();
        let mut socks = vec![5, 1, 0, 5, 1, 0, 3, 9];
        socks.extend(b"localhost");
        socks.extend(port);
        socks.extend(b"hello");
        let answer = exchange(proxy, &socks).await;
        assert_eq!(answer[..4], [5, 0, 5, 0]);
        assert!(answer.ends_with(b"hello"), "{answer:?}");
        let mut socks = vec![5, 2, 1, 0, 5, 1, 0, 1, 127, 0, 0, 1];
        socks.extend(port);
        socks.extend(b"four");
        assert!(exchange(proxy, &socks).await.ends_with(b"four"));
        let connect = format!("CONNECT {echo} HTTP/1.1\r\nHost: x\r\n\r\nthrough");
        let answer = exchange(proxy, connect.as_bytes()).await;
        assert_eq!(answer, b"HTTP/1.1 200 Connected\r\n\r\nthrough");
        let get = format!("POST http://{echo}/x HTTP/1.1\r\n\r\nbody");
        let answer = exchange(proxy, get.as_bytes()).await;
        assert_eq!(answer, b"POST /x HTTP/1.1\r\nconnection: close\r\n\r\nbody");
    }

    #[tokio::test]
    async fn what_is_not_there_is_said() {
        let (proxy, _, _home) = proxy().await;
        let answer = exchange(proxy, b"GET http://web.fleetbox/ HTTP/1.1\r\n\r\n").await;
        let answer = String::from_utf8(answer).unwrap();
        assert!(
            answer.starts_with("HTTP/1.1 404 ") && answer.contains("no VM named web"),
            "{answer}"
        );
        let mut socks = vec![5, 1, 0, 5, 1, 0, 3, 12];
        socks.extend(b"web.fleetbox\0\x50");
        assert_eq!(exchange(proxy, &socks).await[2..4], [5, 4]);
        // Other commands, other addresses, other ways to log in.
        assert_eq!(
            exchange(proxy, &[5, 1, 0, 5, 2, 0, 1, 0, 0, 0, 0, 0, 80]).await[3],
            7
        );
        assert_eq!(exchange(proxy, &[5, 1, 0, 5, 1, 0, 9]).await[3], 8);
        assert_eq!(exchange(proxy, &[5, 1, 2]).await, [5, 0xff]);
        let answer = exchange(proxy, b"GET / HTTP/1.1\r\n\r\n").await;
        assert!(answer.starts_with(b"HTTP/1.1 400 "));
        let error = Proxy::bind(&Fleet::new(), ([0, 0, 0, 0], 0).into())
            .await
            .unwrap_err();
        assert!(error.to_string().contains("loopback"), "{error}");
    }
}
