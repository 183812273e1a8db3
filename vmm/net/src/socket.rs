//! Sockets of the host.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use tokio::io::Interest;
use tokio::net::UdpSocket;

/// The address to bind a socket for `remote` to: the wildcard address of the same family.
pub(crate) fn any_for(remote: SocketAddr) -> IpAddr {
    match remote {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    }
}

/// Waits for an error of a connected socket, such as a closed port. Such an error does not make the
/// socket readable.
pub(crate) async fn failure(socket: &UdpSocket) -> io::Error {
    loop {
        if let Err(error) = socket.ready(Interest::ERROR).await {
            return error;
        }
        let error = socket.take_error();
        // Clears the readiness, which nothing else does.
        let _ = socket.try_io(Interest::ERROR, || {
            Err::<(), _>(io::Error::from(io::ErrorKind::WouldBlock))
        });
        if let Ok(Some(error)) | Err(error) = error {
            return error;
        }
    }
}
