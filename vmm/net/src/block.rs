//! Blocks of addresses.

use std::net::Ipv4Addr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::NetworkError;

/// An IPv4 address, or all addresses with the same first bits.
///
/// ```
/// use fleetbox_net::AddressBlock;
///
/// let block: AddressBlock = "100.64.0.0/10".parse()?;
/// assert!(block.contains("100.100.100.200".parse().unwrap()));
/// let one: AddressBlock = "168.63.129.16".parse()?;
/// assert_eq!(one.to_string(), "168.63.129.16/32");
/// # Ok::<(), fleetbox_net::NetworkError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct AddressBlock {
    first: Ipv4Addr,
    prefix: u8,
}

impl AddressBlock {
    /// True if the block has `address`.
    pub fn contains(&self, address: Ipv4Addr) -> bool {
        let mask = u32::MAX.checked_shl(32 - u32::from(self.prefix));
        u32::from(address) & mask.unwrap_or(0) == u32::from(self.first)
    }
}

impl std::fmt::Display for AddressBlock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.first, self.prefix)
    }
}

impl FromStr for AddressBlock {
    type Err = NetworkError;

    /// Reads `ADDRESS` or `ADDRESS/BITS`.
    fn from_str(text: &str) -> Result<Self, NetworkError> {
        let refuse = || NetworkError::Block(text.to_owned());
        let (address, prefix) = text.split_once('/').unwrap_or((text, "32"));
        let address: Ipv4Addr = address.parse().map_err(|_| refuse())?;
        let prefix: u8 = prefix.parse().map_err(|_| refuse())?;
        let block = Self {
            first: address,
            prefix,
        };
        // Bits behind the prefix are a mistake: 10.0.0.1/8 may mean either.
        if prefix > 32 || !block.contains(address) {
            return Err(refuse());
        }
        Ok(block)
    }
}

impl TryFrom<String> for AddressBlock {
    type Error = NetworkError;

    fn try_from(text: String) -> Result<Self, NetworkError> {
        text.parse()
    }
}

impl From<AddressBlock> for String {
    fn from(block: AddressBlock) -> Self {
        block.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_read_strictly() {
        for text in ["10.0.0.0/8", "0.0.0.0/0", "192.0.2.7/32"] {
            assert_eq!(text.parse::<AddressBlock>().unwrap().to_string(), text);
        }
        let all: AddressBlock = "0.0.0.0/0".parse().unwrap();
        assert!(all.contains(Ipv4Addr::BROADCAST));
        for text in [
            "",
            "10.0.0.1/8",
            "10.0.0.0/33",
            "10.0.0.0/",
            "::1",
            "10.0.0",
            "a/8",
            " 10.0.0.0/8",
        ] {
            assert!(text.parse::<AddressBlock>().is_err(), "{text}");
        }
    }
}
