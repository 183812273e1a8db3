//! Ethernet addresses.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::util::readable::readable_debug;

/// An Ethernet address, shown and stored as `02:00:00:00:00:01`.
///
/// ```
/// use fleetbox::store::MacAddr;
///
/// let mac = MacAddr::random();
/// assert_eq!(mac.to_string().parse::<MacAddr>()?, mac);
/// assert!("52:54".parse::<MacAddr>().is_err());
/// # Ok::<(), fleetbox::store::InvalidMac>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MacAddr(pub [u8; 6]);

impl MacAddr {
    /// A random unicast address from the locally administered space (IEEE 802 clause 8.2).
    pub fn random() -> Self {
        let mut bytes: [u8; 6] = rand::random();
        bytes[0] = (bytes[0] & !0x01) | 0x02;
        Self(bytes)
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// A text is not an Ethernet address.
#[derive(Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid Ethernet address {0:?}; write one such as 02:00:00:00:00:01")]
pub struct InvalidMac(String);

readable_debug!(InvalidMac);

impl FromStr for MacAddr {
    type Err = InvalidMac;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let fail = || InvalidMac(text.to_owned());
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            // `from_str_radix` alone would accept a sign.
            let part = parts
                .next()
                .filter(|p| p.len() == 2 && p.bytes().all(|b| b.is_ascii_hexdigit()))
                .ok_or_else(fail)?;
            *byte = u8::from_str_radix(part, 16).map_err(|_| fail())?;
        }
        if parts.next().is_some() {
            return Err(fail());
        }
        Ok(Self(bytes))
    }
}

impl TryFrom<String> for MacAddr {
    type Error = InvalidMac;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<MacAddr> for String {
    fn from(mac: MacAddr) -> Self {
        mac.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mac_addresses_read_back() {
        let mac = MacAddr([0x02, 0, 0xab, 1, 2, 0xff]);
        assert_eq!(mac.to_string(), "02:00:ab:01:02:ff");
        assert_eq!(mac.to_string().parse::<MacAddr>().unwrap(), mac);
        for bad in [
            "",
            "02:00",
            "02:00:ab:01:02:ff:00",
            "02-00-ab-01-02-ff",
            "+2:00:ab:01:02:ff",
            "2:00:ab:01:02:ff0",
        ] {
            assert!(bad.parse::<MacAddr>().is_err(), "{bad}");
        }
    }

    #[test]
    fn random_macs_are_local_and_unicast() {
        for _ in 0..50 {
            assert_eq!(MacAddr::random().0[0] & 3, 2);
        }
    }
}
