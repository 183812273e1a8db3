//! The host's end of a flow: a socket of the host, or a stream in this process.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};
use tokio::net::TcpStream;

/// Maximum bytes that wait in each direction between a flow and a stream of this process.
const BUFFER: usize = 256 << 10;

/// The state that the two ends of a stream share, in addition to its bytes.
#[derive(Debug, Default)]
struct Shared {
    /// The guest reset the connection, or it was given up.
    reset: AtomicBool,
    /// The stream has been dropped.
    orphan: AtomicBool,
}

/// A TCP connection into a guest.
///
/// It works with any runtime. Shutting down the writing half closes it for the guest, which may
/// still send. Dropping the stream closes both halves. A reset by the guest is an error of kind
/// [`io::ErrorKind::ConnectionReset`].
#[derive(Debug)]
pub struct GuestStream {
    pipe: DuplexStream,
    shared: Arc<Shared>,
    peer: SocketAddr,
}

impl GuestStream {
    /// The guest's address and port.
    pub fn peer_addr(&self) -> SocketAddr {
        self.peer
    }
}

impl AsyncRead for GuestStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let wanted = buffer.remaining() > 0;
        let result = Pin::new(&mut self.pipe).poll_read(cx, buffer);
        let ended = matches!(result, Poll::Ready(Ok(()))) && buffer.filled().len() == before;
        if wanted && ended && self.shared.reset.load(Ordering::Acquire) {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        result
    }
}

impl AsyncWrite for GuestStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.pipe).poll_write(cx, bytes);
        if matches!(result, Poll::Ready(Err(_))) && self.shared.reset.load(Ordering::Acquire) {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        result
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.pipe).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.pipe).poll_shutdown(cx)
    }
}

impl Drop for GuestStream {
    fn drop(&mut self) {
        self.shared.orphan.store(true, Ordering::Release);
    }
}

/// The host's end of a flow, as the flow sees it.
#[derive(Debug)]
pub(crate) enum Host {
    /// A socket of the host.
    Tcp(TcpStream),
    /// A stream of this process.
    Stream(StreamEnd),
}

#[derive(Debug)]
pub(crate) struct StreamEnd {
    pipe: DuplexStream,
    shared: Arc<Shared>,
}

impl Host {
    pub(crate) fn tcp(stream: TcpStream) -> Self {
        // The guest's own Nagle algorithm has decided already what to send together.
        let _ = stream.set_nodelay(true);
        Self::Tcp(stream)
    }

    /// A stream of this process and the flow's end of it.
    pub(crate) fn stream(peer: SocketAddr) -> (Self, GuestStream) {
        let (ours, theirs) = tokio::io::duplex(BUFFER);
        let shared = Arc::new(Shared::default());
        let stream = GuestStream {
            pipe: theirs,
            shared: shared.clone(),
            peer,
        };
        (Self::Stream(StreamEnd { pipe: ours, shared }), stream)
    }

    pub(crate) fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let mut buffer = ReadBuf::new(buffer);
        let result = match self {
            Self::Tcp(stream) => Pin::new(stream).poll_read(cx, &mut buffer),
            Self::Stream(end) => Pin::new(&mut end.pipe).poll_read(cx, &mut buffer),
        };
        result.map_ok(|()| buffer.filled().len())
    }

    pub(crate) fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self {
            Self::Tcp(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Stream(end) => Pin::new(&mut end.pipe).poll_write(cx, bytes),
        }
    }

    pub(crate) fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Stream(end) => Pin::new(&mut end.pipe).poll_shutdown(cx),
        }
    }

    /// Makes dropping this end a reset for the peer.
    pub(crate) fn reset(&self) {
        match self {
            Self::Tcp(stream) => {
                let _ = stream.set_zero_linger();
            }
            Self::Stream(end) => end.shared.reset.store(true, Ordering::Release),
        }
    }

    /// True if the other end has been dropped.
    pub(crate) fn is_orphan(&self) -> bool {
        match self {
            Self::Tcp(_) => false,
            Self::Stream(end) => end.shared.orphan.load(Ordering::Acquire),
        }
    }
}
