//! IPv6 on fleetbox's interfaces: off, before they are up. The network has none, and a host that
//! accepts a router advertisement from a guest sends its own traffic through that guest.

use std::fs;
use std::path::Path;

use super::error::BridgeError;

/// The settings of each interface. The kernel has no such directory without IPv6.
const SETTINGS: &str = "/proc/sys/net/ipv6/conf";

/// Turns IPv6 off on an interface, which must not be up.
pub(super) fn disable(interface: &str) -> Result<(), BridgeError> {
    let dir = Path::new(SETTINGS);
    if !dir.exists() {
        return Ok(());
    }
    let dir = dir.join(interface);
    set(&dir.join("disable_ipv6"), "1").map_err(BridgeError::host(
        "turn IPv6 off on the bridge's interfaces",
    ))?;
    // For whoever turns IPv6 on later. It changes nothing now, so it is no reason to fail.
    if let Err(error) = set(&dir.join("accept_ra"), "0") {
        tracing::debug!(interface, %error, "cannot refuse router advertisements");
    }
    Ok(())
}

/// Sets a value. Where it is set already, the file may be read-only, as in a container.
fn set(path: &Path, value: &str) -> std::io::Result<()> {
    if fs::read_to_string(path)?.trim() == value {
        return Ok(());
    }
    fs::write(path, value)
}
