//! The cloud-init seed: a small FAT volume labelled `CIDATA`. At its first boot a guest reads from
//! it its name and who may log in (cloud-init's NoCloud data source).
//!
//! All files are JSON, which is also valid YAML, so no name or key needs escaping by hand.

mod config;
mod user_data;

use std::io::{self, Cursor, Write as _};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

pub use self::config::GuestConfig;
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
    /// The user that is created. It has no password, and may use sudo without one.
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
    fn meta_data(&self) -> Value {
        json!({
            "instance-id": self.instance_id,
            "local-hostname": self.hostname,
        })
    }

    /// `user-data`, a cloud-config.
    fn user_data(&self) -> Result<Value, SeedError> {
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
            "users": [{
                "name": self.user,
                "gecos": "fleetbox",
                "shell": "/bin/bash",
                "sudo": "ALL=(ALL) NOPASSWD:ALL",
                "lock_passwd": true,
                "ssh_authorized_keys": keys,
            }],
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
        if let Some(ours) = user_data.as_object_mut() {
            self.config.merge_into(ours);
        }
        Ok(user_data)
    }

    /// `network-config`, version 2. The card is matched by its address, because renderers differ in
    /// which wildcards of names they support, and one without wildcards would configure nothing.
    fn network_config(&self) -> Value {
        json!({
            "version": 2,
            "ethernets": {
                "lan": {
                    "match": { "macaddress": self.mac },
                    "dhcp4": true,
                    // systemd-networkd would not search the network's domain by itself.
                    "dhcp4-overrides": { "use-domains": true },
                },
            },
        })
    }

    /// Builds the volume in memory.
    ///
    /// # Errors
    /// [`SeedError`] if the user name is invalid, the content is too large, or a key cannot be
    /// encoded.
    pub fn build(&self) -> Result<Vec<u8>, SeedError> {
        check_user(&self.user)?;
        let files = [
            ("meta-data", self.meta_data().to_string()),
            (
                "user-data",
                format!("#cloud-config\n{:#}\n", self.user_data()?),
            ),
            ("network-config", self.network_config().to_string()),
        ];
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read as _;

    fn seed() -> Seed {
        Seed {
            instance_id: "i-1".into(),
            hostname: Name::new("web").unwrap(),
            user: DEFAULT_USER.into(),
            authorized_keys: vec!["ssh-ed25519 AAAA \"quoted\": # [x]".into()],
            host_key: Keypair::generate("web").unwrap(),
            mac: MacAddr([2, 0, 0, 0, 0, 1]),
            mounts: Vec::new(),
            config: GuestConfig::default(),
        }
    }

    fn read(image: &[u8], name: &str) -> String {
        let fs = fatfs::FileSystem::new(Cursor::new(image.to_vec()), fatfs::FsOptions::new());
        let fs = fs.unwrap();
        let mut text = String::new();
        fs.root_dir()
            .open_file(name)
            .unwrap()
            .read_to_string(&mut text)
            .unwrap();
        text
    }

    #[test]
    fn the_volume_reads_back_and_has_the_label_twice() {
        let image = seed().build().unwrap();
        assert_eq!(image.len(), MIB);
        let fs = fatfs::FileSystem::new(Cursor::new(image.clone()), fatfs::FsOptions::new());
        let fs = fs.unwrap();
        assert_eq!(fs.volume_label(), "CIDATA");
        // blkid takes the label of the root directory, not that of the boot sector.
        let label = fs.read_volume_label_from_root_dir().unwrap();
        assert_eq!(label.as_deref(), Some("CIDATA"));
        let mut names: Vec<_> = fs
            .root_dir()
            .iter()
            .map(|e| e.unwrap().file_name())
            .collect();
        names.sort();
        assert_eq!(names, ["meta-data", "network-config", "user-data"]);
    }

    #[test]
    fn the_files_say_what_was_asked_for() {
        let seed = seed();
        let image = seed.build().unwrap();
        let meta: Value = serde_json::from_str(&read(&image, "meta-data")).unwrap();
        assert_eq!(meta, json!({"instance-id": "i-1", "local-hostname": "web"}));

        let network: Value = serde_json::from_str(&read(&image, "network-config")).unwrap();
        let lan = &network["ethernets"]["lan"];
        assert_eq!(network["version"], 2);
        assert_eq!(lan["match"], json!({"macaddress": "02:00:00:00:00:01"}));
        assert_eq!(lan["dhcp4"], true);
        assert_eq!(lan["dhcp4-overrides"], json!({"use-domains": true}));

        let user_data = read(&image, "user-data");
        let (first, rest) = user_data.split_once('\n').unwrap();
        assert_eq!(first, "#cloud-config");
        let user_data: Value = serde_json::from_str(rest).unwrap();
        let user = &user_data["users"][0];
        assert_eq!(user["name"], "fleetbox");
        assert_eq!(user["ssh_authorized_keys"], json!(seed.authorized_keys));
        assert_eq!(user["sudo"], json!("ALL=(ALL) NOPASSWD:ALL"));
        assert_eq!(user_data["ssh_pwauth"], false);
        assert_eq!(user_data["fqdn"], "web.fleetbox");
        assert_eq!(user_data.get("mounts"), None);
        let private = user_data["ssh_keys"]["ed25519_private"].as_str().unwrap();
        let key = Keypair::from_openssh(private).unwrap();
        assert_eq!(key.public(), seed.host_key.public());
        assert_eq!(
            user_data["ssh_keys"]["ed25519_public"].as_str().unwrap(),
            key.public().to_string()
        );
    }

    #[test]
    fn mounts_are_lists_of_fields() {
        let mut seed = seed();
        seed.mounts = vec![["/dev/x", "/work", "ext4", "ro", "0", "0"].map(str::to_owned)];
        let user_data = seed.user_data().unwrap();
        assert_eq!(
            user_data["mounts"],
            json!([["/dev/x", "/work", "ext4", "ro", "0", "0"]])
        );
    }

    #[test]
    fn the_users_configuration_is_added() {
        let mut seed = seed();
        let key = Keypair::generate("me").unwrap().public().to_string();
        seed.config.authorized_keys.push(key.clone());
        seed.config
            .add_user_data("users: [{name: other}]\nruncmd: [reboot]\nssh_pwauth: true")
            .unwrap();
        let user_data = seed.user_data().unwrap();
        assert_eq!(user_data["users"][0]["ssh_authorized_keys"][1], json!(key));
        assert_eq!(user_data["users"][1], json!({"name": "other"}));
        assert_eq!(user_data["runcmd"], json!(["reboot"]));
        assert_eq!(user_data["ssh_pwauth"], true);
        assert_eq!(user_data["hostname"], "web");
    }

    #[test]
    fn the_file_is_written_whole_and_private() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("seed.img");
        seed().write(&path).unwrap();
        let metadata = std::fs::metadata(&path).unwrap();
        assert_eq!(metadata.len(), MIB as u64);
        assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn content_that_does_not_fit_is_refused() {
        let mut seed = seed();
        seed.authorized_keys = vec!["x".repeat(2 * MIB)];
        assert_eq!(seed.build().unwrap().len(), 3 * MIB);
        seed.authorized_keys = vec!["x".repeat(LARGEST)];
        assert!(matches!(seed.build(), Err(SeedError::TooLarge { .. })));
    }

    #[test]
    fn bad_users_are_refused() {
        for bad in ["", "Root", "a b", "-a", "1a", "a:b", &"a".repeat(33)] {
            assert!(
                matches!(check_user(bad), Err(SeedError::User { .. })),
                "{bad}"
            );
        }
        check_user("_svc-1").unwrap();
    }
}
