//! SIGTERM, with which service managers and scripts end a program.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

/// SIGTERM as a file descriptor.
pub(super) struct Terminations(SignalFd);

impl Terminations {
    /// Blocks the signal. Call this while there is only one thread, because later threads inherit
    /// the block.
    pub(super) fn hold() -> io::Result<Self> {
        let mut set = SigSet::empty();
        set.add(Signal::SIGTERM);
        set.thread_block()?;
        let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        Ok(Self(SignalFd::with_flags(&set, flags)?))
    }

    /// True if a signal has arrived since the last call.
    pub(super) fn take(&self) -> bool {
        matches!(self.0.read_signal(), Ok(Some(_)))
    }
}

impl AsFd for Terminations {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
