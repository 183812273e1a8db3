//! Finds and asks the host's resolvers.

use std::cell::RefCell;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};

use super::message::{DNS_PORT, Question, disguise, restore};
use crate::config::NetworkConfig;
use crate::socket::{any_for, failure};

/// Maximum bytes of a resolver's answer over UDP.
const MAX_ANSWER: usize = 64 << 10;
/// Maximum bytes of the configuration file.
const MAX_RESOLV_CONF: u64 = 64 << 10;
/// Maximum number of resolvers that are tried, as in the C library.
const MAX_RESOLVERS: usize = 3;
/// How long one resolver may take over UDP before the next is asked.
const UDP_TIMEOUT: Duration = Duration::from_millis(2500);
/// How long one resolver may take over TCP.
const TCP_TIMEOUT: Duration = Duration::from_secs(8);
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

/// The identity of a version of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Version {
    modified: SystemTime,
    len: u64,
    inode: u64,
}

/// The host's resolvers.
#[derive(Debug)]
pub(crate) struct Resolvers {
    fixed: Option<Vec<SocketAddr>>,
    path: PathBuf,
    read: RefCell<(Option<Version>, Vec<SocketAddr>)>,
}

impl Resolvers {
    pub(crate) fn new(config: &NetworkConfig) -> Self {
        Self {
            fixed: config.resolvers.clone(),
            path: config.resolv_conf.clone(),
            read: RefCell::default(),
        }
    }

    /// The resolvers in the host's current configuration.
    pub(crate) fn current(&self) -> Vec<SocketAddr> {
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

fn read_bounded(path: &Path) -> io::Result<String> {
    use std::io::Read;
    let mut bytes = Vec::new();
    std::fs::File::open(path)?
        .take(MAX_RESOLV_CONF)
        .read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum Transport {
    Udp,
    Tcp,
}

async fn ask_udp(resolver: SocketAddr, query: &[u8], question: &Question) -> io::Result<Vec<u8>> {
    // The kernel chooses a random port, and hands over what comes from the resolver only.
    let socket = UdpSocket::bind((any_for(resolver), 0)).await?;
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

/// Asks one resolver.
pub(crate) async fn ask(
    transport: Transport,
    resolver: SocketAddr,
    query: &[u8],
    question: &Question,
) -> io::Result<Vec<u8>> {
    match transport {
        Transport::Udp => ask_udp(resolver, query, question).await,
        Transport::Tcp => ask_tcp(resolver, query, question).await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        let resolvers = Resolvers::new(&NetworkConfig {
            resolv_conf: file.path().to_owned(),
            ..NetworkConfig::default()
        });
        assert_eq!(resolvers.current(), ["192.0.2.1:53".parse().unwrap()]);
        std::fs::write(file.path(), "nameserver 192.0.2.77\n").unwrap();
        assert_eq!(resolvers.current(), ["192.0.2.77:53".parse().unwrap()]);
        std::fs::remove_file(file.path()).unwrap();
        assert_eq!(resolvers.current(), []);
    }
}
