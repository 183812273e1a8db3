//! A byte stream to a port of the guest.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;

/// A TCP connection to the guest. Shutting it down ends the direction to the guest.
///
/// ```no_run
/// # async fn example(vm: fleetbox::Vm) -> Result<(), Box<dyn std::error::Error>> {
/// use tokio::io::AsyncWriteExt;
///
/// let mut stream = vm.connect(7).await?;
/// stream.write_all(b"hello").await?;
/// stream.shutdown().await?; // the guest reads to the end; its answer still arrives
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct Stream(pub(crate) UnixStream);

impl Stream {
    /// The same stream for blocking reads and writes.
    ///
    /// ```no_run
    /// # async fn example(vm: fleetbox::Vm) -> Result<(), Box<dyn std::error::Error>> {
    /// use std::io::Read;
    ///
    /// let mut stream = vm.connect(22).await?.into_std()?;
    /// let mut greeting = [0; 8];
    /// stream.read_exact(&mut greeting)?;
    /// assert_eq!(&greeting, b"SSH-2.0-");
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// If the operating system refuses to change the socket's mode.
    pub fn into_std(self) -> io::Result<std::os::unix::net::UnixStream> {
        let stream = self.0.into_std()?;
        stream.set_nonblocking(false)?;
        Ok(stream)
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
