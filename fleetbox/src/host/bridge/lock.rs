//! One process at a time changes what all fleetbox processes of a network namespace share: its
//! interfaces, and `ip_forward`. State directories are many, so the lock is an abstract Unix socket,
//! whose names belong to the namespace; its holder's end frees it, however it ends.

use std::io::ErrorKind;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::time::{Duration, Instant};

use super::error::BridgeError;

const NAME: &[u8] = b"fleetbox-bridges";

/// What is done with it held takes milliseconds.
const PATIENCE: Duration = Duration::from_secs(20);

/// The right to change the host's network, until it is dropped.
pub(super) struct HostLock {
    _socket: UnixListener,
}

impl HostLock {
    /// Waits for the lock.
    pub(super) fn acquire() -> Result<Self, BridgeError> {
        let host = BridgeError::host("take the lock of the host's network");
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
