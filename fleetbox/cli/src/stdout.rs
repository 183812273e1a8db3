//! Standard output: all that commands print, or pass on from a guest, goes through this module.
//!
//! The first error is kept, and nothing is written after it. `main` makes it the exit status
//! ([`crate::output::conclude`]), so no command loses output and succeeds. A command whose work is its output also ends
//! then; one that changes VMs does its work to the end.

use std::io::{self, IsTerminal};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::io::{AsyncRead, AsyncReadExt as _};

/// Bytes of a stream that are passed on at once.
const CHUNK: usize = 64 << 10;

/// How often a command that is waiting looks for its reader.
const LOOK: Duration = Duration::from_millis(200);

static FAILURE: OnceLock<Failure> = OnceLock::new();

/// One writer at a time, so that lines do not mix.
static TURN: Mutex<()> = Mutex::new(());

/// Where output goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stream {
    Output,
    /// Only for what a command in the guest writes there: its loss is a loss of output, too.
    Errors,
}

impl Stream {
    fn with<T>(self, work: impl FnOnce(BorrowedFd<'_>) -> T) -> T {
        match self {
            Self::Output => work(io::stdout().as_fd()),
            Self::Errors => work(io::stderr().as_fd()),
        }
    }
}

/// The first error, and where it occurred.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Failure {
    pub(crate) stream: Stream,
    pub(crate) error: Errno,
}

impl Failure {
    /// True if the reader is gone: it has seen enough, and no message is printed.
    pub(crate) fn is_quiet(self) -> bool {
        self.error == Errno::EPIPE
    }
}

/// The first error, if output was lost.
pub(crate) fn failure() -> Option<Failure> {
    FAILURE.get().copied()
}

/// Writes all of `bytes`, however slow the reader is. False if output was lost, now or before.
pub(crate) fn write(bytes: &[u8]) -> bool {
    write_to(Stream::Output, bytes)
}

fn write_to(stream: Stream, bytes: &[u8]) -> bool {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    if failure().is_some() {
        return false;
    }
    match stream.with(|fd| write_all(fd, bytes)) {
        Ok(()) => true,
        Err(error) => {
            let _ = FAILURE.set(Failure { stream, error });
            false
        }
    }
}

/// Past the standard library, which takes a descriptor that cannot be written to for success.
fn write_all(fd: BorrowedFd<'_>, mut bytes: &[u8]) -> Result<(), Errno> {
    while !bytes.is_empty() {
        match nix::unistd::write(fd, bytes) {
            Ok(0) => return Err(Errno::EIO),
            Ok(n) => bytes = bytes.get(n..).unwrap_or_default(),
            Err(Errno::EINTR) => {}
            // Another program with the same pipe or terminal has made it non-blocking.
            Err(Errno::EAGAIN) => {
                match poll(
                    &mut [PollFd::new(fd, PollFlags::POLLOUT)],
                    PollTimeout::NONE,
                ) {
                    Ok(_) | Err(Errno::EINTR) => {}
                    Err(error) => return Err(error),
                }
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Like [`write`], without blocking the thread of an asynchronous task.
pub(crate) async fn send(bytes: Vec<u8>) -> bool {
    send_to(Stream::Output, bytes).await.is_some()
}

/// Returns the buffer, unless output was lost.
async fn send_to(stream: Stream, bytes: Vec<u8>) -> Option<Vec<u8>> {
    let written = tokio::task::spawn_blocking(move || write_to(stream, &bytes).then_some(bytes));
    written.await.ok().flatten()
}

/// Passes on what `from` has, until its end. False if output was lost.
///
/// # Errors
/// `from` cannot be read.
pub(crate) async fn copy(mut from: impl AsyncRead + Unpin, stream: Stream) -> io::Result<bool> {
    let mut buffer = Vec::with_capacity(CHUNK);
    loop {
        buffer.clear();
        if from.read_buf(&mut buffer).await? == 0 {
            return Ok(true);
        }
        match send_to(stream, buffer).await {
            Some(written) => buffer = written,
            None => return Ok(false),
        }
    }
}

/// Waits until the reader is gone, which a command that has nothing to write does not notice.
pub(crate) async fn closed() {
    while !is_closed() {
        tokio::time::sleep(LOOK).await;
    }
}

/// True if the reader is gone.
pub(crate) fn is_closed() -> bool {
    let gone = Stream::Output.with(|fd| {
        let mut fds = [PollFd::new(fd, PollFlags::empty())];
        let polled = poll(&mut fds, PollTimeout::ZERO);
        let gone = PollFlags::POLLERR | PollFlags::POLLHUP;
        polled.is_ok() && fds[0].revents().is_some_and(|what| what.intersects(gone))
    });
    if gone {
        let _ = FAILURE.set(Failure {
            stream: Stream::Output,
            error: Errno::EPIPE,
        });
    }
    gone
}

/// True if standard output may have colours.
pub(crate) fn colours() -> bool {
    colours_on(&io::stdout())
}

/// True if a stream may have colours: it is a terminal, and `NO_COLOR` is not set
/// (<https://no-color.org>).
pub(crate) fn colours_on(stream: &impl IsTerminal) -> bool {
    stream.is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// Columns of the terminal; `None` if standard output is not a terminal, or its size is unknown.
pub(crate) fn width() -> Option<usize> {
    let stdout = io::stdout();
    if !stdout.is_terminal() {
        return None;
    }
    let size = rustix::termios::tcgetwinsize(stdout).ok()?;
    Some(usize::from(size.ws_col)).filter(|columns| *columns > 0)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Read as _;
    use std::os::fd::AsFd as _;

    use nix::fcntl::{FcntlArg, OFlag, fcntl};

    use super::*;

    #[test]
    fn each_error_of_a_descriptor_is_told() {
        let full = File::options().write(true).open("/dev/full").unwrap();
        assert_eq!(write_all(full.as_fd(), b"x"), Err(Errno::ENOSPC));
        let read_only = File::open("/dev/null").unwrap();
        assert_eq!(write_all(read_only.as_fd(), b"x"), Err(Errno::EBADF));
        let (reader, writer) = io::pipe().unwrap();
        drop(reader);
        assert_eq!(write_all(writer.as_fd(), b"x"), Err(Errno::EPIPE));
    }

    #[test]
    fn a_slow_reader_of_a_pipe_that_does_not_block_gets_everything() {
        let (mut reader, writer) = io::pipe().unwrap();
        fcntl(&writer, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
        // More than a pipe holds.
        let sent = vec![7; 300 << 10];
        let expected = sent.len();
        let writing = std::thread::spawn(move || write_all(writer.as_fd(), &sent));
        std::thread::sleep(Duration::from_millis(50));
        let mut read = Vec::new();
        reader.read_to_end(&mut read).unwrap();
        assert_eq!(writing.join().unwrap(), Ok(()));
        assert_eq!(read.len(), expected);
    }
}
