//! Waiting until a guest can be reached over SSH.

use std::future::Future;
use std::io;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, sleep, timeout_at};

use super::{Client, SshError, Target};

/// How long a connection attempt may take. A guest that has not booted yet does not answer at all,
/// and lost packets are repeated at growing intervals, so a new attempt is better than a long wait.
const CONNECT_LIMIT: Duration = Duration::from_secs(3);
/// How long a server may take from accepting a connection to a log-in. The limit is long because
/// emulated guests are slow.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(60);
/// Pause after an attempt that failed at once.
const SHORTEST_PAUSE: Duration = Duration::from_millis(25);
/// Longest pause between attempts.
const LONGEST_PAUSE: Duration = Duration::from_millis(400);
/// How long a different host key is tolerated. It may come with the image, and cloud-init may be
/// about to replace it.
const HOST_KEY_GRACE: Duration = Duration::from_secs(30);

/// Connects and logs in as soon as the guest allows it, at the latest by `deadline`.
///
/// `connect` opens a stream to the guest's SSH port. While the guest boots, it is expected to fail,
/// and log-ins may be refused too.
///
/// ```no_run
/// # use std::time::Duration;
/// # use fleetbox::ssh::{SshError, Target, wait_ready};
/// # async fn example(target: Target) -> Result<(), SshError> {
/// let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
/// let connect = || tokio::net::TcpStream::connect("192.0.2.7:22");
/// let client = wait_ready(connect, &target, deadline).await?;
/// # Ok(()) }
/// ```
///
/// # Errors
/// [`SshError::NotReady`] at the deadline, with the last failure; [`SshError::HostKeyMismatch`] if
/// the host key stays different; [`SshError::Key`] at once.
pub async fn wait_ready<S, C, F>(
    mut connect: C,
    target: &Target,
    deadline: Instant,
) -> Result<Client, SshError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    C: FnMut() -> F,
    F: Future<Output = io::Result<S>>,
{
    let begun = Instant::now();
    let mut attempts = 0;
    let mut pause = SHORTEST_PAUSE;
    let mut mismatch_since = None;
    loop {
        attempts += 1;
        let error = match attempt(&mut connect, target, deadline).await {
            Ok(client) => return Ok(client),
            Err(error) => error,
        };
        tracing::debug!(%error, attempts, "SSH is not ready");
        match &error {
            SshError::HostKeyMismatch { .. } => {
                let since = *mismatch_since.get_or_insert_with(Instant::now);
                if since.elapsed() >= HOST_KEY_GRACE {
                    return Err(error);
                }
            }
            SshError::Key { .. } => return Err(error),
            _ => mismatch_since = None,
        }
        if Instant::now() + pause >= deadline {
            return Err(SshError::NotReady {
                waited: begun.elapsed(),
                attempts,
                last: Box::new(error),
            });
        }
        sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

async fn attempt<S, C, F>(
    connect: &mut C,
    target: &Target,
    deadline: Instant,
) -> Result<Client, SshError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    C: FnMut() -> F,
    F: Future<Output = io::Result<S>>,
{
    let begun = Instant::now();
    let stream = match timeout_at(deadline.min(begun + CONNECT_LIMIT), connect()).await {
        Ok(stream) => stream.map_err(|source| SshError::Connect { source })?,
        Err(_) => {
            return Err(SshError::Connect {
                source: io::Error::new(io::ErrorKind::TimedOut, "no answer"),
            });
        }
    };
    let begun = Instant::now();
    match timeout_at(
        deadline.min(begun + HANDSHAKE_LIMIT),
        Client::connect(stream, target),
    )
    .await
    {
        Ok(result) => result,
        Err(_) => Err(SshError::HandshakeTimeout(begun.elapsed())),
    }
}
