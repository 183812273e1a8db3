//! Names of VMs and clusters, and limits on counts, checked before anything is created.
//!
//! A name is used for a directory, as a guest's hostname and in messages. So it must be a DNS label
//! (RFC 1123 section 2.1) in lower case.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::util::readable::readable_debug;

/// Maximum bytes of a name: the limit of DNS labels and of Linux hostnames.
pub const MAX_NAME: usize = 63;

/// Maximum number of virtual CPUs of a VM.
pub const MAX_CPUS: u32 = fleetbox_vmm::machine::MAX_CPUS as u32;

/// Maximum number of VMs in a cluster: the addresses of a /24 network without gateway and
/// broadcast, with a margin.
pub const MAX_COUNT: u32 = 200;

/// First words of random names.
const MANNERS: [&str; 24] = [
    "able", "bold", "brisk", "calm", "clear", "deft", "eager", "early", "fair", "fleet", "fond",
    "glad", "keen", "kind", "light", "lucid", "merry", "neat", "plain", "quick", "quiet", "sunny",
    "swift", "warm",
];

/// Second words of random names.
const ANIMALS: [&str; 24] = [
    "badger", "beaver", "bison", "crane", "dolphin", "falcon", "finch", "gannet", "heron", "ibex",
    "lark", "lynx", "marten", "newt", "orca", "osprey", "otter", "plover", "raven", "seal",
    "stork", "tern", "walrus", "wren",
];

/// A value from the user is invalid. Nothing was created.
#[derive(Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidValue {
    /// A name of a VM or cluster is not a valid hostname.
    #[error(
        "invalid name {name:?}: {why}; a name has 1 to 63 lower-case letters, digits and '-', \
         and begins and ends with a letter or digit"
    )]
    Name {
        /// The name as given.
        name: String,
        /// Why it is invalid.
        why: &'static str,
    },
    /// A size cannot be parsed.
    #[error(
        "invalid size {text:?}: {why}; write a whole number with K, M, G or T, such as 512M or 2GiB"
    )]
    Size {
        /// The text as given.
        text: String,
        /// Why it is invalid.
        why: &'static str,
    },
    /// A number or size is out of range.
    #[error("{what} {given} is out of range; it must be between {least} and {most}")]
    Range {
        /// The quantity, such as "memory".
        what: &'static str,
        /// The value as given, with its unit.
        given: String,
        /// The smallest allowed value.
        least: String,
        /// The largest allowed value.
        most: String,
    },
    /// An image reference is not an alias, a path or a URL.
    #[error(
        "invalid image {text:?}: {why}; give an alias such as debian-12, a path such as ./disk.qcow2, or a URL"
    )]
    Image {
        /// The text as given.
        text: String,
        /// Why it is invalid.
        why: String,
    },
}

readable_debug!(InvalidValue);

/// A valid name of a VM or a cluster.
///
/// ```
/// use fleetbox::names::Name;
/// assert!("web-1".parse::<Name>().is_ok());
/// assert!("../etc".parse::<Name>().is_err());
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(String);

impl Name {
    /// Checks a name.
    ///
    /// # Errors
    /// [`InvalidValue::Name`] says which rule the name breaks.
    pub fn new(name: impl Into<String>) -> Result<Self, InvalidValue> {
        let name = name.into();
        let why = if name.is_empty() {
            "it is empty"
        } else if name.len() > MAX_NAME {
            "it is longer than 63 bytes"
        } else if name.starts_with('-') || name.ends_with('-') {
            "it begins or ends with '-'"
        } else if name.bytes().any(|b| b.is_ascii_uppercase()) {
            "it has upper-case letters"
        } else if name
            .bytes()
            .any(|b| !(b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-'))
        {
            "it has a character that is not allowed"
        } else {
            return Ok(Self(name));
        };
        Err(InvalidValue::Name { name, why })
    }

    /// A random name, such as `brisk-otter-4f`. Two random names can be the same, but rarely are.
    ///
    /// ```
    /// use fleetbox::names::Name;
    /// assert_eq!(Name::random().as_str().split('-').count(), 3);
    /// ```
    pub fn random() -> Self {
        let pick = |words: &[&'static str]| {
            let at = rand::random::<u32>() as usize % words.len().max(1);
            words.get(at).copied().unwrap_or_default()
        };
        let number: u8 = rand::random();
        Self(format!(
            "{}-{}-{number:02x}",
            pick(&MANNERS),
            pick(&ANIMALS)
        ))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name of member `index` (from 1) of a group: `node` gives `node-1`, `node-2`.
    ///
    /// ```
    /// use fleetbox::names::Name;
    ///
    /// assert_eq!(Name::new("node")?.member(2)?.as_str(), "node-2");
    /// # Ok::<(), fleetbox::names::InvalidValue>(())
    /// ```
    ///
    /// # Errors
    /// [`InvalidValue::Name`] if the result is too long.
    pub fn member(&self, index: u32) -> Result<Self, InvalidValue> {
        Self::new(format!("{}-{index}", self.0))
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl AsRef<str> for Name {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl FromStr for Name {
    type Err = InvalidValue;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        Self::new(s)
    }
}

impl TryFrom<String> for Name {
    type Error = InvalidValue;

    fn try_from(s: String) -> Result<Self, Self::Error> {
        Self::new(s)
    }
}

impl From<Name> for String {
    fn from(name: Name) -> Self {
        name.0
    }
}

/// A reference to one VM of a state directory: `NAME`, or `CLUSTER/NAME` if several clusters have a VM with that
/// name.
///
/// `Display` shows only `NAME` for a VM whose cluster has the same name. [`Reference::as_str`] always includes the
/// cluster if it was given.
///
/// ```
/// use fleetbox::names::Reference;
///
/// let member: Reference = "shop/node-1".parse().unwrap();
/// assert_eq!(member.cluster().unwrap().as_str(), "shop");
/// assert_eq!(member.name().as_str(), "node-1");
/// let alone: Reference = "web/web".parse().unwrap();
/// assert_eq!((alone.to_string().as_str(), alone.as_str()), ("web", "web/web"));
/// assert!("shop/node-1/x".parse::<Reference>().is_err());
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Reference {
    cluster: Option<Name>,
    name: Name,
    text: String,
}

impl Reference {
    /// A reference to the VM `name` in `cluster`.
    pub fn new(cluster: Name, name: Name) -> Self {
        Self {
            text: format!("{cluster}/{name}"),
            cluster: Some(cluster),
            name,
        }
    }

    /// The cluster, if one was given.
    pub fn cluster(&self) -> Option<&Name> {
        self.cluster.as_ref()
    }

    /// The VM's name.
    pub fn name(&self) -> &Name {
        &self.name
    }

    /// The reference as text. Parsing it gives the same reference.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.cluster {
            Some(cluster) if *cluster != self.name => f.write_str(&self.text),
            _ => self.name.fmt(f),
        }
    }
}

impl AsRef<str> for Reference {
    fn as_ref(&self) -> &str {
        &self.text
    }
}

impl From<Name> for Reference {
    fn from(name: Name) -> Self {
        Self {
            cluster: None,
            text: name.to_string(),
            name,
        }
    }
}

impl FromStr for Reference {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once('/') {
            Some((cluster, name)) => Ok(Self::new(Name::new(cluster)?, Name::new(name)?)),
            None => Name::new(text).map(Self::from),
        }
    }
}

fn in_range(what: &'static str, value: u32, most: u32) -> Result<u32, InvalidValue> {
    if (1..=most).contains(&value) {
        return Ok(value);
    }
    Err(InvalidValue::Range {
        what,
        given: value.to_string(),
        least: "1".into(),
        most: most.to_string(),
    })
}

/// Checks a number of virtual CPUs.
///
/// # Errors
/// [`InvalidValue::Range`] if it is not in 1 to [`MAX_CPUS`].
pub fn check_cpus(cpus: u32) -> Result<u8, InvalidValue> {
    // MAX_CPUS fits a `u8`, so nothing is cut off.
    in_range("number of vCPUs", cpus, MAX_CPUS).map(|n| n as u8)
}

/// Checks a number of VMs to create together.
///
/// # Errors
/// [`InvalidValue::Range`] if it is not in 1 to [`MAX_COUNT`].
pub fn check_count(count: u32) -> Result<u32, InvalidValue> {
    in_range("number of VMs", count, MAX_COUNT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_are_hostnames_pass_and_others_do_not() {
        for good in ["a", "web", "node-3", "0", "x--y", &"a".repeat(63)] {
            assert_eq!(Name::new(good).unwrap().as_str(), good);
        }
        let long = "a".repeat(64);
        for bad in [
            "", "-a", "a-", "A", "a.b", "a/b", "..", "a b", "a\0", "ä", "a_b", "a\n", &long,
        ] {
            let error = Name::new(bad).unwrap_err();
            assert!(error.to_string().contains("1 to 63"), "{bad:?}: {error}");
        }
    }

    #[test]
    fn random_names_are_names_and_differ() {
        let names: std::collections::BTreeSet<_> = (0..20).map(|_| Name::random()).collect();
        assert!(names.len() > 10, "{names:?}");
        for name in names {
            assert!(Name::new(name.as_str()).is_ok(), "{name}");
        }
    }

    #[test]
    fn members_are_numbered_and_bounded() {
        let name = Name::new("node").unwrap();
        assert_eq!(name.member(2).unwrap().as_str(), "node-2");
        assert!(Name::new("a".repeat(62)).unwrap().member(1).is_err());
    }

    #[test]
    fn references_have_a_cluster_or_not() {
        let bare: Reference = "node-1".parse().unwrap();
        assert_eq!((bare.cluster(), bare.as_str()), (None, "node-1"));
        let full: Reference = "a/node-1".parse().unwrap();
        assert_eq!(
            (full.to_string().as_str(), full.as_str()),
            ("a/node-1", "a/node-1")
        );
        assert_ne!(full, "b/node-1".parse().unwrap());
        for bad in ["", "/", "a/", "/a", "a/b/c", "A/b", "a/B", "../a"] {
            assert!(bad.parse::<Reference>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn serde_checks_too() {
        assert!(serde_json::from_str::<Name>("\"web\"").is_ok());
        assert!(serde_json::from_str::<Name>("\"../web\"").is_err());
    }

    #[test]
    fn counts_are_bounded() {
        assert_eq!(check_cpus(2), Ok(2));
        assert_eq!(check_cpus(128), Ok(128));
        for bad in [0, 129, 255, 256, u32::MAX] {
            assert!(check_cpus(bad).is_err());
        }
        assert!(check_count(0).is_err());
        assert!(check_count(201).is_err());
        assert_eq!(check_count(3), Ok(3));
    }
}
