//! SIGTERM, by which service managers and scripts end a program.

use std::io;

use fleetbox_vmm::machine::Handle;
use nix::sys::signal::{SigSet, Signal};

/// SIGTERM, held back until [`Terminations::obey`].
pub(super) struct Terminations(SigSet);

impl Terminations {
    /// Called while this is the only thread: the others inherit what it holds back.
    pub(super) fn hold() -> io::Result<Self> {
        let mut set = SigSet::empty();
        set.add(Signal::SIGTERM);
        set.thread_block()?;
        Ok(Self(set))
    }

    /// Presses the power button at the first SIGTERM; at the second calls `impatient` and kills
    /// the guest. The thread ends with the process.
    pub(super) fn obey(self, handle: Handle, impatient: impl FnOnce() + Send + 'static) {
        std::thread::spawn(move || {
            if self.0.wait().is_err() {
                return;
            }
            handle.power_button();
            if self.0.wait().is_ok() {
                impatient();
                handle.kill();
            }
        });
    }
}
