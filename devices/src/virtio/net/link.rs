//! The socket of a network device.

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv, send};

use crate::virtio::Interrupt;

/// The socket, and whether its peer is connected.
pub(super) struct Link {
    pub(super) socket: Arc<OwnedFd>,
    pub(super) up: Arc<AtomicBool>,
    pub(super) interrupt: Interrupt,
}

/// The result of moving a frame.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It was moved or dropped. Has its length.
    Done(usize),
    /// It must wait.
    WouldBlock,
    /// The link is down.
    Down,
}

impl Link {
    pub(super) fn is_up(&self) -> bool {
        self.up.load(Ordering::Acquire)
    }

    fn take_down(&self) -> Outcome {
        if self.up.swap(false, Ordering::AcqRel) {
            tracing::debug!("the peer of a network device has closed the link");
            self.interrupt.config_changed();
        }
        Outcome::Down
    }

    /// Receives one frame into `frame`. The returned length may be more than fits.
    pub(super) fn receive(&self, frame: &mut [u8]) -> Outcome {
        if !self.is_up() {
            return Outcome::Down;
        }
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_TRUNC;
        loop {
            return match recv(self.socket.as_raw_fd(), frame, flags) {
                // The peer has closed its end; there are no empty frames.
                Ok(0) => self.take_down(),
                Ok(len) => Outcome::Done(len),
                Err(Errno::EAGAIN) => Outcome::WouldBlock,
                Err(Errno::EINTR) => continue,
                Err(_) => self.take_down(),
            };
        }
    }

    pub(super) fn send(&self, frame: &[u8]) -> Outcome {
        if !self.is_up() {
            return Outcome::Down;
        }
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        loop {
            return match send(self.socket.as_raw_fd(), frame, flags) {
                Ok(len) => Outcome::Done(len),
                Err(Errno::EAGAIN) => Outcome::WouldBlock,
                Err(Errno::EINTR) => continue,
                // The host is short of memory: a frame is lost, as frames may be.
                Err(Errno::ENOBUFS | Errno::ENOMEM | Errno::EMSGSIZE) => Outcome::Done(0),
                Err(_) => self.take_down(),
            };
        }
    }
}
