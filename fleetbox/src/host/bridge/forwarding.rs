//! `ip_forward`: on while fleetbox has a bridge, and restored afterwards.

use std::fs;

use super::error::BridgeError;
use super::record::{Forwarding, Place, Records};

const FILE: &str = "/proc/sys/net/ipv4/ip_forward";

fn get() -> Result<String, BridgeError> {
    let text = fs::read_to_string(FILE).map_err(BridgeError::host("read ip_forward"))?;
    Ok(text.trim().to_owned())
}

fn set(value: &str) -> Result<(), BridgeError> {
    fs::write(FILE, value).map_err(BridgeError::host("set ip_forward"))
}

/// Turns forwarding on, after recording its earlier value.
pub(super) fn enable(records: &Records, place: &Place) -> Result<(), BridgeError> {
    let was = get()?;
    if was == "1" {
        return Ok(());
    }
    // If there is a record of this place, somebody has reset it meanwhile; what it was before we
    // came stands in the record.
    if records.forwarding()?.is_none_or(|old| old.place != *place) {
        records.write_forwarding(&Forwarding {
            place: place.clone(),
            was,
        })?;
    }
    set("1")
}

/// Restores the earlier value, if it was changed. Call this only when no bridge is left.
pub(super) fn restore(records: &Records, here: &Place) -> Result<(), BridgeError> {
    let Some(forwarding) = records.forwarding()? else {
        return Ok(());
    };
    if forwarding.place == *here {
        // It was a number that the kernel has printed.
        if forwarding.was.bytes().all(|byte| byte.is_ascii_digit()) {
            set(&forwarding.was)?;
        }
    } else if !forwarding.place.is_gone(here) {
        return Ok(());
    }
    records.remove_forwarding()
}
