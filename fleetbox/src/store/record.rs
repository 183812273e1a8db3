//! What is stored about a VM.

use std::fmt;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::bridge::Network;
use crate::extra_disk::ExtraDisk;
use crate::fixture::Fixture;
use crate::names::Name;
use crate::seed::GuestConfig;
use crate::size::Size;

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
    ///
    /// ```
    /// use fleetbox::store::MacAddr;
    ///
    /// let mac = MacAddr::random();
    /// assert_eq!(mac.0[0] & 3, 2); // locally administered, and of one card
    /// ```
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

/// A text that is no Ethernet address.
///
/// ```
/// use fleetbox::store::{InvalidMac, MacAddr};
///
/// let error: InvalidMac = "52:54".parse::<MacAddr>().unwrap_err();
/// assert_eq!(error.to_string(), r#""52:54" is not an Ethernet address such as 02:00:00:00:00:01"#);
/// ```
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an Ethernet address such as 02:00:00:00:00:01")]
pub struct InvalidMac(String);

impl FromStr for MacAddr {
    type Err = InvalidMac;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let fail = || InvalidMac(text.to_owned());
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            // `from_str_radix` alone would take a sign.
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

/// The image a VM was created from.
///
/// ```
/// # let dir = tempfile::tempdir().unwrap();
/// # let home = dir.path();
/// # let image = home.join("disk.raw");
/// # std::fs::write(&image, [0; 4096]).unwrap();
/// # let image = image.display().to_string();
/// # fleetbox::blocking::Vm::builder("web").home(home).image(image).create()?;
/// # let vm = fleetbox::blocking::find(Some(home), "web")?;
/// let image = vm.record()?.image;
/// assert_eq!(image.path, home.join("disk.raw"));
/// assert_eq!(image.sha256, None); // a file of the user's is not read whole
/// # Ok::<(), fleetbox::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageRecord {
    /// What the user asked for: alias, path or URL.
    pub reference: String,
    /// The file that is the base of the VM's disk; never written.
    pub path: PathBuf,
    /// SHA-256 in lower-case hexadecimal; none for a path given by the user, which is not read
    /// whole.
    pub sha256: Option<String>,
}

/// What is stored about a VM, in `vm.json` of its directory.
///
/// ```no_run
/// use fleetbox::store::Store;
///
/// for vm in Store::open_default()?.vms()? {
///     let record = vm.record()?;
///     println!("{} of {} has {} CPUs", record.name, record.image.reference, record.cpus);
/// }
/// # Ok::<(), fleetbox::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmRecord {
    /// The VM's name and hostname.
    pub name: Name,
    /// The cluster it is a member of.
    pub cluster: Name,
    /// Its base image.
    pub image: ImageRecord,
    /// Number of virtual CPUs.
    pub cpus: u8,
    /// Memory.
    pub memory: Size,
    /// Size of the disk as the guest sees it.
    pub disk: Size,
    /// The network card's address.
    pub mac: MacAddr,
    /// The address the network gives to the guest.
    pub ip: Ipv4Addr,
    /// When the VM was created, in seconds since 1970 (UTC).
    pub created: u64,
    /// cloud-init's instance id: another one makes the guest configure itself anew.
    pub instance_id: String,
    /// The user that SSH logs in as.
    pub ssh_user: String,
    /// Public key that may log in, in OpenSSH's one-line form; its private key is in `keys/`.
    pub ssh_key: String,
    /// The guest's host key, in OpenSSH's one-line form; its private key is in `host_key`.
    pub host_key: String,
    /// Directories of the host that the guest sees, in the order of their disks.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub fixtures: Vec<Fixture>,
    /// What its user has configured the guest with.
    #[serde(default, skip_serializing_if = "GuestConfig::is_empty")]
    pub config: GuestConfig,
    /// Disks besides its own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub extra_disks: Vec<ExtraDisk>,
    /// The network that its cluster has.
    #[serde(default, skip_serializing_if = "Network::is_user")]
    pub network: Network,
}

/// Seconds since 1970 (UTC), for [`VmRecord::created`]; 0 if the clock is before that.
///
/// ```
/// assert!(fleetbox::store::now() > 1_700_000_000);
/// ```
pub fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| d.as_secs())
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
