//! Loopback ports of the host that lead to ports of a guest.

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

use super::worker::lock;

/// Connections that one forwarded port carries at once; more wait.
const CONNECTIONS: usize = 512;

/// The forwarded ports of one machine; they close when this is dropped.
#[derive(Debug, Default)]
pub(super) struct Forwards {
    ports: Mutex<BTreeMap<u16, Forward>>,
}

#[derive(Debug)]
struct Forward {
    address: SocketAddr,
    task: JoinHandle<()>,
}

impl Drop for Forward {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Forwards {
    /// The address that leads to the guest's `port`, opened if there is none; `connect` makes the
    /// connection to the guest.
    ///
    /// # Errors
    /// No port is free.
    pub(super) async fn open<S, C, F>(&self, port: u16, connect: C) -> io::Result<SocketAddr>
    where
        C: Fn() -> F + Send + Sync + 'static,
        F: Future<Output = io::Result<S>> + Send + 'static,
        S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
    {
        if let Some(forward) = lock(&self.ports).get(&port) {
            return Ok(forward.address);
        }
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let mut ports = lock(&self.ports);
        // Another request may have been quicker; its port is kept.
        let forward = ports.entry(port).or_insert_with(|| Forward {
            address,
            task: tokio::spawn(serve(listener, connect)),
        });
        Ok(forward.address)
    }

    /// Closes all of them, and the connections they carry.
    pub(super) fn close(&self) {
        lock(&self.ports).clear();
    }
}

async fn serve<S, C, F>(listener: TcpListener, connect: C)
where
    C: Fn() -> F + Send + Sync + 'static,
    F: Future<Output = io::Result<S>> + Send + 'static,
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let connect = Arc::new(connect);
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    // Aborted with this task.
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let Ok(permit) = Arc::clone(&room).acquire_owned().await else {
            return;
        };
        while connections.try_join_next().is_some() {}
        match listener.accept().await {
            Ok((host, _)) => {
                let connect = Arc::clone(&connect);
                connections.spawn(async move {
                    if let Err(error) = carry(host, connect()).await {
                        tracing::debug!(%error, "forwarded connection ended");
                    }
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn carry<S>(mut host: TcpStream, guest: impl Future<Output = io::Result<S>>) -> io::Result<()>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    let mut guest = match guest.await {
        Ok(guest) => guest,
        Err(error) => {
            // What the guest refuses is refused here, as far as an accepted connection can be.
            host.set_zero_linger()?;
            return Err(error);
        }
    };
    host.set_nodelay(true)?;
    copy_bidirectional(&mut host, &mut guest).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test]
    async fn bytes_go_both_ways_and_a_half_closed_connection_still_delivers() {
        let guest = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let guest_address = guest.local_addr().unwrap();
        tokio::spawn(async move {
            let (mut stream, _) = guest.accept().await.unwrap();
            let mut all = String::new();
            stream.read_to_string(&mut all).await.unwrap();
            stream
                .write_all(all.to_uppercase().as_bytes())
                .await
                .unwrap();
        });
        let forwards = Forwards::default();
        let connect = move || TcpStream::connect(guest_address);
        let address = forwards.open(80, connect).await.unwrap();
        assert_eq!(
            forwards.open(80, connect).await.unwrap(),
            address,
            "the same again"
        );
        assert_ne!(forwards.open(81, connect).await.unwrap(), address);

        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(b"hello").await.unwrap();
        stream.shutdown().await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert_eq!(answer, "HELLO");

        forwards.close();
        tokio::task::yield_now().await;
        let closed = async {
            while TcpStream::connect(address).await.is_ok() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), closed)
            .await
            .unwrap();
    }

    #[tokio::test]
    async fn what_the_guest_refuses_is_reset() {
        let forwards = Forwards::default();
        let refuse =
            || async { Err::<TcpStream, _>(io::Error::from(io::ErrorKind::ConnectionRefused)) };
        let address = forwards.open(80, refuse).await.unwrap();
        let mut stream = TcpStream::connect(address).await.unwrap();
        let error = stream.read(&mut [0]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }
}
