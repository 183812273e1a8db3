//! The terminal as the guest's serial console.

use std::io::{self, IsTerminal, Read};

use fleetbox_vmm::machine::Handle;
use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};

/// Ends the guest: Ctrl-], as in telnet.
const ESCAPE: u8 = 0x1d;

/// Raw mode for as long as the value lives, if standard input is a terminal.
pub(super) struct RawMode(Option<Termios>);

impl RawMode {
    pub(super) fn enter() -> io::Result<Self> {
        let stdin = io::stdin();
        if !stdin.is_terminal() {
            return Ok(Self(None));
        }
        let before = tcgetattr(&stdin)?;
        let mut raw = before.clone();
        cfmakeraw(&mut raw);
        tcsetattr(&stdin, SetArg::TCSANOW, &raw)?;
        Ok(Self(Some(before)))
    }

    pub(super) fn active(&self) -> bool {
        self.0.is_some()
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            let _ = tcsetattr(io::stdin(), SetArg::TCSANOW, before);
        }
    }
}

/// Types standard input into the guest until it ends; on a terminal the escape key kills the guest
/// and calls `escaped`. The thread ends with the process: it may wait in a read for ever.
pub(super) fn forward_input(handle: Handle, terminal: bool, escaped: impl Fn() + Send + 'static) {
    std::thread::spawn(move || {
        let mut buffer = [0; 256];
        loop {
            let bytes = match io::stdin().lock().read(&mut buffer) {
                Ok(0) => return,
                Ok(n) => &buffer[..n],
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => return,
            };
            if terminal && bytes.contains(&ESCAPE) {
                escaped();
                handle.kill();
                return;
            }
            handle.serial_input(bytes);
        }
    });
}
