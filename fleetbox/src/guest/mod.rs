//! Inspecting a running guest over SSH, without an agent in it.
//!
//! It needs only what every Linux has: a POSIX shell and `/proc`.

mod ports;
pub mod proxy;
mod stats;
pub mod workspace;

pub use self::ports::{Listener, Protocol, ports};
pub use self::stats::{Stats, stats};

use crate::error::{Error, Result};
use crate::ssh::{ExitStatus, Output};
use crate::util::text::printable;
pub use crate::util::text::quote;
use crate::vm::Vm;

/// Maximum bytes of an answer that are read.
const ANSWER_LIMIT: usize = 16 << 20;

/// Runs a script in the guest and returns its output. It runs as root if sudo allows that.
async fn run_script(vm: &Vm, what: &'static str, script: &str) -> Result<String> {
    let script = quote(script);
    let command = format!(
        "if [ \"$(id -u)\" != 0 ] && sudo -n true 2>/dev/null; then exec sudo -n sh -c {script}; \
         else exec sh -c {script}; fi"
    );
    let child = vm.ssh_spawn(&command).await?;
    let output: Output = child.output(ANSWER_LIMIT).await?;
    if output.status != ExitStatus::Code(0) {
        return Err(Error::Guest {
            name: vm.reference().to_string(),
            what,
            why: printable(&output.stderr),
        });
    }
    Ok(output.stdout_text())
}
