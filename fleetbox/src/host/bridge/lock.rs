//! The lock of a network namespace. All fleetbox processes in a namespace share its interfaces and
//! `ip_forward`, so only one of them may change these at a time. There may be many state
//! directories, so the lock is not a file but an abstract Unix socket, whose name belongs to the
//! namespace. It is freed when its holder ends, in any way.

use std::io::ErrorKind;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::time::{Duration, Instant};

use super::error::BridgeError;

const NAME: &[u8] = b"fleetbox-bridges";

/// How long to wait for it. Holders keep it for milliseconds.
const PATIENCE: Duration = Duration::from_secs(20);

/// The lock, held until it is dropped.
pub(super) struct HostLock {
    _socket: UnixListener,
}

impl HostLock {
    /// Waits for the lock.
    pub(super) fn acquire() -> Result<Self, BridgeError> {
        let host = BridgeError::host("lock the host's network");
        let address = match SocketAddr::from_abstract_name(NAME) {
            Ok(address) => address,
            Err(error) => return Err(host(error)),
        };
        let deadline = Instant::now() + PATIENCE;
        loop {
            match UnixListener::bind_addr(&address) {
                Ok(socket) => return Ok(Self { _socket: socket }),
                Err(error) if error.kind() != ErrorKind::AddrInUse => return Err(host(error)),
                Err(_) if Instant::now() > deadline => return Err(BridgeError::Busy),
                Err(_) => std::thread::sleep(Duration::from_millis(10)),
            }
        }
    }
}
