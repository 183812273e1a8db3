//! A worker's control socket, wherever the state directory is.
//!
//! The address of a Unix socket holds a path of at most 107 bytes, and temporary directories are
//! often longer. So the directory is opened, and the socket is addressed relative to it as
//! `/proc/self/fd/N/worker.sock`, which is always short.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd as _, AsRawFd, FromRawFd as _, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::poll::{PollFd, PollFlags, PollTimeout};

/// The socket's name in its directory.
pub(crate) const NAME: &str = "worker.sock";

fn short_path(dir: &Path) -> io::Result<(File, PathBuf)> {
    let dir = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_PATH | libc::O_DIRECTORY | libc::O_CLOEXEC)
        .open(dir)?;
    let path = PathBuf::from(format!("/proc/self/fd/{}/{NAME}", dir.as_raw_fd()));
    Ok((dir, path))
}

/// Listens in `dir`, replacing the socket of a worker that was killed. The caller must hold the
/// cluster's lock, so that no living worker listens there.
///
/// # Errors
/// The directory is missing or not writable.
pub(crate) fn listen(dir: &Path) -> io::Result<std::os::unix::net::UnixListener> {
    let (_dir, path) = short_path(dir)?;
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    std::os::unix::net::UnixListener::bind(&path)
}

/// Connects to the worker that listens in `dir`.
///
/// # Errors
/// No worker listens.
pub(crate) async fn connect(dir: &Path) -> io::Result<tokio::net::UnixStream> {
    let (_dir, path) = short_path(dir)?;
    tokio::net::UnixStream::connect(&path).await
}

/// Kills the worker at the other end of a connection. False if it has ended already.
///
/// # Errors
/// The process cannot be found, or belongs to another user.
pub(crate) fn kill_peer(stream: &tokio::net::UnixStream) -> io::Result<bool> {
    let pid = stream.peer_cred()?.pid().ok_or(io::ErrorKind::NotFound)?;
    // SAFETY: pidfd_open(2) takes two numbers, and touches no memory.
    let opened = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let Ok(fd @ 0..) = i32::try_from(opened) else {
        let error = io::Error::last_os_error();
        return match error.raw_os_error() {
            Some(libc::ESRCH) => Ok(false),
            _ => Err(error),
        };
    };
    // SAFETY: the call above has returned this descriptor, which nothing else has.
    let process = unsafe { OwnedFd::from_raw_fd(fd) };
    // A hang-up is reported without being asked for. The id was the worker's when it began to listen. As long as the connection is open, the worker lives, so it
    // still is, and the descriptor is the worker's. No other process has its sockets.
    let mut poll = [PollFd::new(stream.as_fd(), PollFlags::empty())];
    nix::poll::poll(&mut poll, PollTimeout::ZERO)?;
    if poll[0].any().unwrap_or(true) {
        return Ok(false);
    }
    // SAFETY: pidfd_send_signal(2) with a descriptor that is open, and no information to read.
    let sent = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            process.as_raw_fd(),
            libc::SIGKILL,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    };
    match sent {
        0 => Ok(true),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_long_directory_is_no_obstacle() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("d".repeat(120)).join("e".repeat(120));
        std::fs::create_dir_all(&dir).unwrap();
        assert!(connect(&dir).await.is_err());
        let first = listen(&dir).unwrap();
        drop(first);
        // The socket stays behind, refuses, and is replaced.
        assert!(dir.join(NAME).exists());
        assert!(connect(&dir).await.is_err());
        let _second = listen(&dir).unwrap();
        connect(&dir).await.unwrap();
    }
}
