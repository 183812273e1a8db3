//! Input for a running guest: keys, and SIGTERM as its power button.

use std::io;
use std::os::fd::AsFd;

use fleetbox_devices::event::Event;
use fleetbox_vmm::machine::Handle;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::signals::Terminations;

/// Ends the guest: Ctrl-], as in telnet.
const ESCAPE: u8 = 0x1d;
/// Exit status when the escape key ended the guest, as if by SIGINT.
const ESCAPED: u8 = 130;
/// Exit status when a second SIGTERM ended the guest, as if by SIGTERM.
const TERMINATED: u8 = 143;

/// The source of the guest's keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Keys {
    /// No input.
    None,
    /// Standard input that is not a terminal: every byte goes to the guest.
    Input,
    /// A terminal: the escape key is not passed to the guest.
    Terminal,
}

/// Serves the guest on this thread until `ended` is signalled. It types standard input into the guest, and presses the
/// power button at the first SIGTERM. At the second, or at the escape key, it kills the guest.
///
/// Returns the exit status for a guest that was killed.
pub(super) fn serve(
    handle: &Handle,
    mut keys: Keys,
    terminations: &Terminations,
    ended: &Event,
) -> io::Result<u8> {
    let stdin = io::stdin();
    let mut status = 0;
    let mut warned = false;
    loop {
        let wait = |fd| PollFd::new(fd, PollFlags::POLLIN);
        let mut fds = [
            wait(ended.as_fd()),
            wait(terminations.as_fd()),
            wait(stdin.as_fd()),
        ];
        let count = if keys == Keys::None { 2 } else { 3 };
        match poll(&mut fds[..count], PollTimeout::NONE) {
            Ok(_) => {}
            Err(Errno::EINTR) => continue,
            Err(e) => return Err(e.into()),
        }
        let [over, terminated, typed] =
            fds.map(|fd| fd.revents().is_some_and(|what| !what.is_empty()));
        if over {
            return Ok(status);
        }
        if terminated && terminations.take() {
            if warned {
                status = TERMINATED;
                handle.kill();
            } else {
                warned = true;
                handle.power_button();
            }
        }
        if typed && keys != Keys::None {
            // Past the standard library's buffer, of which `poll` knows nothing.
            let mut buffer = [0; 256];
            match nix::unistd::read(&stdin, &mut buffer) {
                Err(Errno::EINTR | Errno::EAGAIN) => {}
                Ok(0) | Err(_) => keys = Keys::None,
                Ok(n) => {
                    let bytes = buffer.get(..n).unwrap_or_default();
                    if keys == Keys::Terminal && bytes.contains(&ESCAPE) {
                        status = ESCAPED;
                        keys = Keys::None;
                        handle.kill();
                    } else {
                        handle.serial_input(bytes);
                    }
                }
            }
        }
    }
}
