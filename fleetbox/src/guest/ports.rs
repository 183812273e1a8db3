//! The listening sockets of a guest, from `/proc/net` and the descriptors of its processes.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use serde::Serialize;

use crate::error::Result;
use crate::util::text::printable;
use crate::vm::Vm;

/// Prints the socket tables, the sockets of each process, and the names of the processes. It runs
/// one `ls` for all processes, because one program per descriptor would take seconds.
const SCRIPT: &str = "cd /proc || exit; \
    for t in tcp tcp6 udp udp6; do echo \"=$t\"; cat net/$t 2>/dev/null; done; \
    echo =fd; ls -l [0-9]*/fd 2>/dev/null | grep -E '^[0-9]+/fd:|socket:'; \
    echo =name; grep ^Name: [0-9]*/status 2>/dev/null; exit 0";

/// Maximum number of listeners of a guest. The rest are left out.
const MOST: usize = 10_000;

/// A transport protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// The Transmission Control Protocol.
    Tcp,
    /// The User Datagram Protocol.
    Udp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

/// A listening socket in the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Listener {
    /// The transport protocol.
    pub protocol: Protocol,
    /// The address it listens on.
    pub address: SocketAddr,
    /// The name of the process that owns the socket, if it is visible. It comes from the guest, so
    /// it can be any text, without control characters.
    pub process: Option<String>,
    /// The process ID in the guest.
    pub pid: Option<u32>,
}

/// Lists the sockets in the guest that wait for connections (TCP) or datagrams (UDP), sorted by
/// port. If several processes share a socket, the first is named.
///
/// # Errors
/// [`Error::Ssh`](crate::Error::Ssh) and [`Error::Process`](crate::Error::Process) if the guest
/// cannot be reached; [`Error::Guest`](crate::Error::Guest) if the guest cannot list them.
///
/// ```no_run
/// # async fn example(vm: &fleetbox::Vm) -> fleetbox::Result<()> {
/// let ports = fleetbox::guest::ports(vm).await?;
/// assert!(ports.iter().any(|listener| listener.address.port() == 22));
/// # Ok(())
/// # }
/// ```
pub async fn ports(vm: &Vm) -> Result<Vec<Listener>> {
    Ok(parse(
        &super::run_script(vm, "list its listening ports", SCRIPT).await?,
    ))
}

fn parse(text: &str) -> Vec<Listener> {
    let mut section = "";
    let mut sockets = Vec::new();
    let mut owners: BTreeMap<u64, u32> = BTreeMap::new();
    let mut names: BTreeMap<u32, String> = BTreeMap::new();
    let mut pid = None;
    for line in text.lines() {
        if let Some(name) = line.strip_prefix('=') {
            section = name;
            continue;
        }
        match section {
            "tcp" | "tcp6" | "udp" | "udp6" if sockets.len() < MOST => {
                sockets.extend(socket(section, line));
            }
            "fd" => {
                if let Some(process) = line.strip_suffix("/fd:") {
                    pid = process.parse().ok();
                } else if let (Some(pid), Some(inode)) = (pid, inode_of(line)) {
                    owners.entry(inode).or_insert(pid);
                }
            }
            "name" => {
                if let Some((process, name)) = line.split_once("/status:Name:")
                    && let Ok(process) = process.parse()
                {
                    names.insert(process, printable(name.trim().as_bytes()));
                }
            }
            _ => {}
        }
    }
    let mut listeners: Vec<_> = sockets
        .into_iter()
        .map(|(protocol, address, inode)| {
            let pid = owners.get(&inode).copied();
            Listener {
                protocol,
                address,
                process: pid.and_then(|pid| names.get(&pid).cloned()),
                pid,
            }
        })
        .collect();
    listeners.sort_by_key(|l| (l.address.port(), l.protocol, l.address.ip()));
    listeners
}

/// `lrwx------ 1 root root 64 Jan 1 00:00 3 -> socket:[123]`
fn inode_of(line: &str) -> Option<u64> {
    let (_, rest) = line.split_once("socket:[")?;
    rest.strip_suffix(']')?.parse().ok()
}

/// A line of proc_pid_net(5): slot, local address, remote address, state, …, inode as the tenth
/// word. `None` for the header line and for sockets that do not listen.
fn socket(table: &str, line: &str) -> Option<(Protocol, SocketAddr, u64)> {
    let words: Vec<_> = line.split_ascii_whitespace().take(10).collect();
    let (local, remote, state) = (*words.get(1)?, *words.get(2)?, *words.get(3)?);
    let protocol = if table.starts_with("tcp") {
        Protocol::Tcp
    } else {
        Protocol::Udp
    };
    let listens = match protocol {
        // TCP_LISTEN
        Protocol::Tcp => state == "0A",
        // Bound, and not connected to a peer.
        Protocol::Udp => remote.ends_with(":0000"),
    };
    if !listens {
        return None;
    }
    let (ip, port) = local.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    Some((
        protocol,
        SocketAddr::new(address(ip)?, port),
        words.get(9)?.parse().ok()?,
    ))
}

/// Parses words of 32 bits in the guest's byte order, which is little-endian on all supported
/// architectures.
fn address(hex: &str) -> Option<IpAddr> {
    let word = |at: usize| {
        let digits = hex.get(at..at + 8)?;
        u32::from_str_radix(digits, 16).ok().map(u32::to_le_bytes)
    };
    match hex.len() {
        8 => Some(Ipv4Addr::from(word(0)?).into()),
        32 => {
            let mut bytes = [0; 16];
            for (index, chunk) in bytes.chunks_exact_mut(4).enumerate() {
                chunk.copy_from_slice(&word(index * 8)?);
            }
            Some(Ipv6Addr::from(bytes).into())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLE: &str = "=tcp
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 00000000:0016 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1001 1 0 100 0 0 10 0
   1: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 1002 1 0 100 0 0 10 0
   2: 0229BB0A:0016 0129BB0A:D431 01 00000000:00000000 02:000A7D8C 00000000     0        0 1003 2 0 20 4 30 10 -1
=tcp6
  sl  local_address                         remote_address                        st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 00000000000000000000000001000000:0277 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1004 1 0 100 0 0 10 0
=udp
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops
  10: 00000000:0044 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 1005 2 0 0
  11: 0229BB0A:9C40 0129BB0A:0035 01 00000000:00000000 00:00000000 00000000     0        0 1006 2 0 0
=udp6
=fd
1/fd:
7/fd:
lrwx------    1 root     root            64 Jan  1 00:00 3 -> socket:[1001]
9/fd:
lrwx------    1 root     root            64 Jan  1 00:00 3 -> socket:[1001]
lrwx------    1 root     root            64 Jan  1 00:00 4 -> socket:[1005]
=name
7/status:Name:\tsshd
9/status:Name:\tevil\x1b[2J
";

    #[test]
    fn listeners_have_their_processes() {
        let all = parse(SAMPLE);
        let shown: Vec<_> = all
            .iter()
            .map(|l| {
                let process = l.process.clone().unwrap_or_default();
                format!("{} {} {process} {:?}", l.protocol, l.address, l.pid)
            })
            .collect();
        assert_eq!(
            shown,
            [
                "tcp 0.0.0.0:22 sshd Some(7)",
                "udp 0.0.0.0:68 evil Some(9)",
                "tcp [::1]:631  None",
                "tcp 127.0.0.1:8080  None",
            ]
        );
    }

    #[test]
    fn nonsense_is_passed_over() {
        assert_eq!(parse(""), []);
        assert_eq!(
            parse("=tcp\nx\n 0: zz:zz 0:0 0A\n=fd\nx/fd:\nsocket:[\n=name\n:"),
            []
        );
        assert_eq!(parse("=tcp\n0: 000000é0:0016 0:0 0A a b c d e 5"), []);
    }

    #[test]
    fn this_host_is_understood_too() {
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let output = std::process::Command::new("sh")
            .args(["-c", SCRIPT])
            .output()
            .unwrap();
        let found = parse(&String::from_utf8_lossy(&output.stdout))
            .into_iter()
            .find(|l| l.address == address)
            .unwrap();
        assert_eq!(found.protocol, Protocol::Tcp);
        assert_eq!(found.pid, Some(std::process::id()));
    }
}
