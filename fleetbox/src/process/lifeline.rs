//! Starts a worker and keeps it alive.

use std::fs::File;
use std::io::{self, Write as _};
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::process::Stdio;
use std::time::Duration;

use super::protocol::{Readiness, WorkerConfig};
use super::spawn::{self, Role};
use super::{ProcessError, wire};

/// How long a worker may take from its start until it serves.
const START: Duration = Duration::from_secs(30);

/// The owner's end of the socket to a bound worker. The worker ends when this is dropped, or when
/// the process that holds it ends in any way.
#[derive(Debug)]
pub(crate) struct Lifeline(StdUnixStream);

impl Lifeline {
    /// Turns the worker into a detached one, which lives on without an owner.
    ///
    /// # Errors
    /// The worker is gone.
    pub(crate) fn let_go(&self) -> io::Result<()> {
        (&self.0).write_all(b".")
    }
}

impl Drop for Lifeline {
    fn drop(&mut self) {
        // Closing would not do as long as a child that is about to execute something has it, too.
        if let Err(error) = self.0.shutdown(Shutdown::Both) {
            tracing::debug!(%error, "the worker is already gone");
        }
    }
}

/// Starts a worker that takes over `lock`, and waits until it serves. Blocks the thread.
///
/// # Errors
/// The process cannot be started, or the worker reports why it cannot serve.
pub(crate) fn start_worker(
    config: &WorkerConfig,
    lock: BorrowedFd<'_>,
    log: File,
) -> Result<Lifeline, ProcessError> {
    let failed = |source| ProcessError::StartWorker {
        cluster: config.cluster.to_string(),
        source,
    };
    let (mut ours, theirs) = StdUnixStream::pair().map_err(failed)?;
    let mut child = spawn::command(
        Role::Worker,
        config.cluster.as_str(),
        &[theirs.as_fd(), lock],
    )
    .and_then(|mut command| command.stderr(Stdio::from(log)).spawn())
    .map_err(failed)?;
    drop(theirs);
    // A child that is not waited for stays as a zombie for as long as this process lives.
    std::thread::Builder::new()
        .name("fleetbox-reaper".to_owned())
        .stack_size(64 * 1024)
        .spawn(move || child.wait())
        .map_err(failed)?;
    ours.set_read_timeout(Some(START)).map_err(failed)?;
    wire::send(&mut ours, config).map_err(failed)?;
    match wire::receive(&mut ours).map_err(failed)? {
        Readiness::Ready => Ok(Lifeline(ours)),
        Readiness::Failed(message) => Err(failed(io::Error::other(message))),
    }
}
