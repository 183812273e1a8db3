//! Sizes of memory and disks as people write them, and their limits.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::model::names::InvalidValue;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const TIB: u64 = 1 << 40;

/// A number of bytes. Its text form is `512M` or `2GiB`. All units are powers of 1024.
///
/// ```
/// use fleetbox::size::Size;
/// assert_eq!("512MiB".parse::<Size>().unwrap().bytes(), 512 << 20);
/// assert_eq!(Size::gib(2).to_string(), "2G");
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Size(u64);

impl Size {
    /// The largest disk of a VM.
    pub(crate) const LARGEST_DISK: Self = Self(64 * TIB);

    /// A size in bytes.
    pub const fn from_bytes(bytes: u64) -> Self {
        Self(bytes)
    }

    /// A size in mebibytes. A number that does not fit becomes `u64::MAX` bytes, which exceeds
    /// every limit.
    pub const fn mib(n: u64) -> Self {
        Self(n.saturating_mul(MIB))
    }

    /// A size in gibibytes. A number that does not fit becomes `u64::MAX` bytes, which exceeds
    /// every limit.
    pub const fn gib(n: u64) -> Self {
        Self(n.saturating_mul(GIB))
    }

    /// A size from a literal in the program. In a constant, an invalid literal does not compile.
    ///
    /// ```
    /// use fleetbox::Size;
    /// const MEMORY: Size = Size::literal("1GiB");
    /// assert_eq!(MEMORY, Size::gib(1));
    /// ```
    /// ```compile_fail
    /// use fleetbox::Size;
    /// const MEMORY: Size = Size::literal("1GB");
    /// # let _ = MEMORY;
    /// ```
    ///
    /// # Panics
    /// If `text` is not a size. Use [`str::parse`] for text from outside the program.
    pub const fn literal(text: &str) -> Self {
        match parse(text) {
            Ok(bytes) => Self(bytes),
            Err(_) => {
                panic!("not a size: write a whole number with K, M, G or T, such as 512M or 2GiB")
            }
        }
    }

    /// The size in bytes.
    pub const fn bytes(self) -> u64 {
        self.0
    }

    /// The sum of both sizes, or the largest size.
    pub(crate) fn plus(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }

    /// Checks a VM's memory: 32 MiB to 1 TiB, in whole mebibytes.
    ///
    /// # Errors
    /// [`InvalidValue`] if it is out of these limits.
    pub fn check_memory(self) -> Result<Self, InvalidValue> {
        self.check("memory", 32 * MIB, TIB, MIB)
    }

    /// Checks the size of a VM's disk: 1 MiB to 64 TiB, in whole 4 KiB blocks.
    ///
    /// # Errors
    /// [`InvalidValue`] if it is out of these limits.
    pub fn check_disk(self) -> Result<Self, InvalidValue> {
        self.check("disk size", MIB, Self::LARGEST_DISK.bytes(), 4 * KIB)
    }

    fn check(
        self,
        what: &'static str,
        least: u64,
        most: u64,
        unit: u64,
    ) -> Result<Self, InvalidValue> {
        if !(least..=most).contains(&self.0) {
            return Err(InvalidValue::Range {
                what,
                given: self.to_string(),
                least: Self(least).to_string(),
                most: Self(most).to_string(),
            });
        }
        if !self.0.is_multiple_of(unit) {
            return Err(InvalidValue::Size {
                text: self.to_string(),
                why: if unit == MIB {
                    "memory must be in whole mebibytes"
                } else {
                    "a disk size must be a multiple of 4096 bytes"
                },
            });
        }
        Ok(self)
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (unit, letter) in [(TIB, "T"), (GIB, "G"), (MIB, "M"), (KIB, "K")] {
            if self.0 >= unit && self.0.is_multiple_of(unit) {
                return write!(f, "{}{letter}", self.0 / unit);
            }
        }
        write!(f, "{} bytes", self.0)
    }
}

impl FromStr for Size {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match parse(text) {
            Ok(bytes) => Ok(Self(bytes)),
            Err(why) => Err(InvalidValue::Size {
                text: text.to_owned(),
                why,
            }),
        }
    }
}

/// Parses a size. The error says what is wrong with the text.
const fn parse(text: &str) -> Result<u64, &'static str> {
    let bytes = text.as_bytes();
    let mut number: u64 = 0;
    let mut fits = true;
    let mut at = 0;
    while at < bytes.len() && bytes[at].is_ascii_digit() {
        let digit = (bytes[at] - b'0') as u64;
        number = match number.checked_mul(10) {
            Some(tens) if tens <= u64::MAX - digit => tens + digit,
            _ => {
                fits = false;
                0
            }
        };
        at += 1;
    }
    if at == 0 {
        return Err("it does not begin with a number");
    }
    let (_, unit) = bytes.split_at(at);
    let factor = match unit {
        [] => return Err("it has no unit"),
        [b'.', ..] => return Err("it is not a whole number"),
        [
            b'k' | b'm' | b'g' | b't' | b'K' | b'M' | b'G' | b'T',
            b'b' | b'B',
        ] => {
            return Err("KB, MB, GB and TB mean powers of 1000 to some and of 1024 to others");
        }
        [letter] | [letter, b'i' | b'I', b'b' | b'B'] => match letter {
            b'k' | b'K' => KIB,
            b'm' | b'M' => MIB,
            b'g' | b'G' => GIB,
            b't' | b'T' => TIB,
            _ => return Err("its unit is unknown"),
        },
        _ => return Err("its unit is unknown"),
    };
    match number.checked_mul(factor) {
        Some(bytes) if fits => Ok(bytes),
        _ => Err("it is too large"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_in_powers_of_1024() {
        for (text, bytes) in [
            ("2G", 2 << 30),
            ("2g", 2 << 30),
            ("512MiB", 512 << 20),
            ("512mib", 512 << 20),
            ("64K", 64 << 10),
            ("1T", 1 << 40),
            ("0G", 0),
        ] {
            assert_eq!(text.parse::<Size>().unwrap().bytes(), bytes, "{text}");
        }
    }

    #[test]
    fn other_texts_are_refused_with_the_reason() {
        for (text, why) in [
            ("", "begin with a number"),
            ("G", "begin with a number"),
            ("-1G", "begin with a number"),
            ("1024", "no unit"),
            ("2GB", "powers of 1000"),
            ("1.5G", "whole number"),
            ("2 G", "unit"),
            ("2X", "unit"),
            ("99999999999999999999G", "too large"),
            ("99999999999T", "too large"),
        ] {
            let error = text.parse::<Size>().unwrap_err().to_string();
            assert!(error.contains(why), "{text:?}: {error}");
        }
    }

    #[test]
    fn shown_sizes_read_back() {
        for size in [Size::gib(3), Size::mib(1536), Size::from_bytes(4096)] {
            assert_eq!(size.to_string().parse::<Size>().unwrap(), size);
        }
        assert_eq!(Size::from_bytes(1000).to_string(), "1000 bytes");
    }

    #[test]
    fn limits_hold() {
        assert!(Size::mib(512).check_memory().is_ok());
        assert!(Size::mib(16).check_memory().is_err());
        assert!(Size::gib(2048).check_memory().is_err());
        assert!(Size::from_bytes((512 << 20) + 4096).check_memory().is_err());
        assert!(Size::gib(20).check_disk().is_ok());
        assert!(Size::gib(u64::MAX).check_disk().is_err());
        assert!(Size::from_bytes((20 << 30) + 512).check_disk().is_err());
    }
}
