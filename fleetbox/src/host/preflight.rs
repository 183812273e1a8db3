//! Checks whether this host can run VMs, before anything is downloaded or created.

use std::path::Path;

pub use fleetbox_vmm::preflight::{Probe, probe};

use crate::host::bridge::{self, BridgeError};
use crate::util::readable::readable_debug;

/// This host cannot run VMs. The message says what is missing and what to do.
#[derive(thiserror::Error)]
#[error("{0}")]
pub struct HostUnsupported(pub Probe);

readable_debug!(HostUnsupported);

/// Checks that this host can boot a distribution's image.
///
/// ```
/// if let Err(error) = fleetbox::preflight::check() {
///     eprintln!("no VMs here: {error}");
/// }
/// ```
///
/// # Errors
/// [`HostUnsupported`] says in one sentence what is missing and what to do.
pub fn check() -> Result<(), HostUnsupported> {
    match probe() {
        probe if probe.hardware() => Ok(()),
        probe => Err(HostUnsupported(probe)),
    }
}

/// Why this host cannot run VMs, or `None` if it can. For tests that should skip instead of fail.
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

/// True if guests can run VMs themselves. This host must have virtualisation hardware, and its KVM must allow nesting
/// (the module parameter `nested`). A guest then has /dev/kvm; no option is needed.
pub fn nested_virt_supported() -> bool {
    probe().hardware() && nested_in(Path::new("/sys/module"))
}

/// Checks that this process can use [`Network::Bridge`](crate::Network::Bridge), which needs CAP_NET_ADMIN and the
/// kernel's tap devices.
///
/// # Errors
/// [`BridgeError`] says what is missing.
pub fn bridge() -> Result<(), BridgeError> {
    bridge::permitted()?;
    std::fs::metadata("/dev/net/tun").map_err(|source| BridgeError::Host {
        action: "find /dev/net/tun (module tun)",
        source,
    })?;
    Ok(())
}

/// The setting of the KVM modules in the directory `modules`.
fn nested_in(modules: &Path) -> bool {
    ["kvm_intel", "kvm_amd"].iter().any(|module| {
        let parameter = modules.join(module).join("parameters/nested");
        std::fs::read_to_string(parameter).is_ok_and(|value| matches!(value.trim(), "Y" | "1"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nested_is_what_the_module_says() {
        let dir = tempfile::tempdir().unwrap();
        assert!(!nested_in(dir.path()));
        let parameters = dir.path().join("kvm_amd/parameters");
        std::fs::create_dir_all(&parameters).unwrap();
        for (value, nested) in [("1\n", true), ("0\n", false), ("Y\n", true), ("N\n", false)] {
            std::fs::write(parameters.join("nested"), value).unwrap();
            assert_eq!(nested_in(dir.path()), nested, "{value:?}");
        }
        assert!(!nested_virt_supported() || probe().hardware());
    }
}
