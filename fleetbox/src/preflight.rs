//! Whether this host can run VMs, before anything is downloaded or created.

pub use fleetbox_vmm::preflight::{Probe, probe};

use crate::{Error, Result};

/// Checks that this host can boot a distribution's image.
///
/// # Errors
/// [`Error::Host`] says in one sentence what is missing and what to do.
pub fn check() -> Result<()> {
    match probe() {
        probe if probe.hardware() => Ok(()),
        probe => Err(Error::Host(probe)),
    }
}

/// What [`Probe`] says of this host for a test that rather skips than fails: `None` if VMs run
/// here, else the reason.
///
/// ```no_run
/// if let Some(reason) = fleetbox::preflight::unavailable() {
///     eprintln!("skipped: {reason}");
///     return;
/// }
/// ```
pub fn unavailable() -> Option<String> {
    check().err().map(|error| error.to_string())
}
