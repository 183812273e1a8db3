//! The cloud-init seed: a small FAT volume labelled `CIDATA`. At its first boot a guest reads from
//! it its name and who may log in (cloud-init's NoCloud data source).
//!
//! All files are written by [`yaml`], and read back before a seed is used: what cloud-init could not read would leave a
//! guest without a user.

mod config;
#[cfg(test)]
mod oracle_test;
#[cfg(test)]
mod seed_test;
mod user_data;
mod users;
mod yaml;

use std::io::{self, Cursor, Write as _};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

pub use self::config::GuestConfig;
pub use self::yaml::{Mapping, Yaml};
use crate::model::keys::KeyError;
use crate::model::keys::Keypair;
use crate::model::mac::MacAddr;
use crate::model::names::Name;
use crate::util::fs::write_atomic;
use crate::util::readable::readable_debug;

/// The label by which cloud-init finds the volume.
const LABEL: [u8; 11] = *b"CIDATA     ";
const MIB: usize = 1 << 20;
/// Maximum bytes of a seed. A seed usually has one mebibyte.
const LARGEST: usize = 16 * MIB;
/// The default user of a guest.
pub const DEFAULT_USER: &str = "fleetbox";

/// Why a seed could not be written.
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum SeedError {
    /// The volume could not be built in memory.
    #[error("cannot build the cloud-init seed: {0}")]
    Format(#[source] io::Error),
    /// The content does not fit.
    #[error(
        "the cloud-init seed is too large: {size} bytes, and at most {LARGEST} fit; pass less user data"
    )]
    TooLarge {
        /// Size of the content in bytes.
        size: usize,
    },
    /// The user name is invalid.
    #[error(
        "invalid user name {user:?}: use 1 to 32 lower-case letters, digits, '_' and '-', and begin with a letter or '_'"
    )]
    User {
        /// The name.
        user: String,
    },
    /// The user data cannot be merged.
    #[error("invalid user data: {why}")]
    UserData {
        /// What is wrong with it, and where.
        why: String,
    },
    /// The user data would change how fleetbox reaches the guest.
    #[error("the user data sets {key:?}, which fleetbox sets itself; leave it out")]
    ProtectedKey {
        /// The key.
        key: String,
    },
    /// A value of the configuration is invalid.
    #[error("invalid {what} {value:?}: {why}")]
    Value {
        /// What it is for.
        what: &'static str,
        /// The value, or its beginning.
        value: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// What was written would not be read as what was meant.
    #[error(
        "the file {file} of the cloud-init seed cannot be read back: {why}; pass less user data"
    )]
    Unreadable {
        /// The file.
        file: &'static str,
        /// What is wrong with it, and where.
        why: String,
    },
    /// The host key cannot be written in OpenSSH's format.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The file could not be written.
    #[error("cannot write the cloud-init seed {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
}

readable_debug!(SeedError);

/// The content of a seed.
///
/// ```
/// use fleetbox::names::Name;
/// use fleetbox::seed::{DEFAULT_USER, GuestConfig, Seed};
/// use fleetbox::ssh::Keypair;
/// use fleetbox::store::MacAddr;
///
/// let seed = Seed {
///     instance_id: "first-boot".to_owned(),
///     hostname: Name::new("web")?,
///     user: DEFAULT_USER.to_owned(),
///     authorized_keys: vec![Keypair::generate("log in")?.public().to_string()],
///     host_key: Keypair::generate("host")?,
///     mac: MacAddr::random(),
///     mounts: Vec::new(),
///     config: GuestConfig::default(),
/// };
/// let volume = seed.build()?; // a FAT file system labelled CIDATA
/// assert_eq!(volume.len() % 512, 0);
/// # Ok::<(), fleetbox::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Seed {
    /// The instance id, generated when a VM is created. cloud-init configures a guest again when it
    /// changes.
    pub instance_id: String,
    /// The guest's hostname.
    pub hostname: Name,
    /// The user that is created, cloud-init's default user. It has no password, and may use sudo without one.
    pub user: String,
    /// Public keys that may log in as this user, in OpenSSH's one-line format.
    pub authorized_keys: Vec<String>,
    /// The guest's only SSH host key. The client accepts no other.
    pub host_key: Keypair,
    /// Hardware address of the network card, which is configured by DHCP.
    pub mac: MacAddr,
    /// Lines for `/etc/fstab`, field by field.
    pub mounts: Vec<[String; 6]>,
    /// The user's additional configuration.
    pub config: GuestConfig,
}

impl Seed {
    /// `meta-data` of the data source.
    fn meta_data(&self) -> Mapping {
        mapping(json!({
            "instance-id": self.instance_id,
            "local-hostname": self.hostname,
        }))
    }

    /// `user-data`, a cloud-config.
    fn user_data(&self) -> Result<Mapping, SeedError> {
        let keys: Vec<&String> = self
            .authorized_keys
            .iter()
            .chain(&self.config.authorized_keys)
            .collect();
        let mut user_data = json!({
            "hostname": self.hostname,
            // The domain under which the gateway's DNS knows the members.
            "fqdn": format!("{}.fleetbox", self.hostname),
            // Adds the name to /etc/hosts and leaves the guest's other lines alone.
            "manage_etc_hosts": "localhost",
            // Wins against the image's own default user, field by field. The groups are the image's.
            "user": {
                "name": self.user,
                "gecos": "fleetbox",
                "shell": "/bin/bash",
                "sudo": "ALL=(ALL) NOPASSWD:ALL",
                "lock_passwd": true,
                "ssh_authorized_keys": keys,
            },
            "users": ["default"],
            "ssh_pwauth": false,
            // Keys that an image was made with are not secret.
            "ssh_deletekeys": true,
            "ssh_keys": {
                "ed25519_private": self.host_key.to_openssh()?,
                "ed25519_public": self.host_key.public().to_string(),
            },
        });
        if !self.mounts.is_empty() {
            user_data["mounts"] = json!(self.mounts);
        }
        let mut user_data = mapping(user_data);
        self.config.merge_into(&mut user_data, &self.user)?;
        Ok(user_data)
    }

    /// `network-config`, version 2. The card is matched by its address, because renderers differ in
    /// which wildcards of names they support, and one without wildcards would configure nothing.
    fn network_config(&self) -> Mapping {
        mapping(json!({
            "version": 2,
            "ethernets": {
                "lan": {
                    "match": { "macaddress": self.mac },
                    "dhcp4": true,
                    // systemd-networkd would not search the network's domain by itself.
                    "dhcp4-overrides": { "use-domains": true },
                },
            },
        }))
    }

    /// Builds the volume in memory.
    ///
    /// # Errors
    /// [`SeedError`] if the user name is invalid, the content is too large, a key cannot be encoded, or the user data
    /// would lock fleetbox out.
    pub fn build(&self) -> Result<Vec<u8>, SeedError> {
        check_user(&self.user)?;
        let files = [
            ("meta-data", "", self.meta_data()),
            ("user-data", "#cloud-config\n", self.user_data()?),
            ("network-config", "", self.network_config()),
        ];
        let written = files.map(|(name, header, content)| {
            written(name, header, &content).map(|text| (name, text))
        });
        let files: Vec<_> = written.into_iter().collect::<Result<_, _>>()?;
        volume(&files)
    }

    /// Writes the volume to `path`, atomically and with mode 0600.
    ///
    /// # Errors
    /// As [`Seed::build`], and [`SeedError::Io`].
    pub fn write(&self, path: &Path) -> Result<(), SeedError> {
        write_atomic(path, &self.build()?).map_err(|source| SeedError::Io {
            path: path.to_owned(),
            source,
        })
    }
}

/// Checks, before anything is created, that the configuration can be merged for a VM whose user is `user`, and that a
/// guest could read the result.
///
/// # Errors
/// [`SeedError::UserData`], [`SeedError::Unreadable`].
pub(crate) fn check_config(user: &str, config: &GuestConfig) -> Result<(), SeedError> {
    let mut trial = mapping(json!({"user": {"name": user}, "users": ["default"]}));
    config.merge_into(&mut trial, user)?;
    written("user-data", "", &trial).map(drop)
}

fn mapping(value: Value) -> Mapping {
    match Yaml::from(value) {
        Yaml::Map(mapping) => mapping,
        _ => Mapping::default(),
    }
}

/// The text of a file, after it was read back.
fn written(file: &'static str, header: &str, content: &Mapping) -> Result<String, SeedError> {
    let text = format!("{header}{content}\n");
    if text.len() > LARGEST {
        return Err(SeedError::TooLarge { size: text.len() });
    }
    let unreadable = |why: String| SeedError::Unreadable { file, why };
    match yaml::load(&text) {
        Ok(Yaml::Map(read)) if read == *content => Ok(text),
        Ok(_) => Err(unreadable("it would mean something else".to_owned())),
        Err(error) => Err(unreadable(error.to_string())),
    }
}

/// Checks a guest's user name before anything is created.
///
/// # Errors
/// [`SeedError::User`].
pub fn check_user(user: &str) -> Result<(), SeedError> {
    let good = (1..=32).contains(&user.len())
        && user.starts_with(|c: char| c.is_ascii_lowercase() || c == '_')
        && user
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_' || b == b'-');
    if good {
        Ok(())
    } else {
        Err(SeedError::User {
            user: user.to_owned(),
        })
    }
}

/// Builds a FAT volume with `files` in its root.
fn volume(files: &[(&str, String)]) -> Result<Vec<u8>, SeedError> {
    let content: usize = files.iter().map(|(_, text)| text.len()).sum();
    // A quarter of a mebibyte is ample for tables, directory and the last cluster of each file.
    let size = (content + MIB / 4).next_multiple_of(MIB);
    if size > LARGEST {
        return Err(SeedError::TooLarge { size: content });
    }
    let mut image = vec![0; size];
    let options = fatfs::FormatVolumeOptions::new().volume_label(LABEL);
    fatfs::format_volume(Cursor::new(image.as_mut_slice()), options).map_err(SeedError::Format)?;
    let fs = fatfs::FileSystem::new(Cursor::new(image.as_mut_slice()), fatfs::FsOptions::new())
        .map_err(SeedError::Format)?;
    for (name, text) in files {
        let mut file = fs.root_dir().create_file(name).map_err(SeedError::Format)?;
        file.write_all(text.as_bytes()).map_err(SeedError::Format)?;
        file.flush().map_err(SeedError::Format)?;
    }
    fs.unmount().map_err(SeedError::Format)?;
    Ok(image)
}
