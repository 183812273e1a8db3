//! Ed25519 keys in OpenSSH's formats.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use russh::keys::ssh_key::LineEnding;
use russh::keys::ssh_key::private::{Ed25519Keypair, KeypairData};
use russh::keys::{HashAlg, PrivateKey};

use crate::util::fs::{read_limited, write_atomic};
use crate::util::readable::readable_debug;

/// Why a key could not be used.
///
/// ```
/// use fleetbox::ssh::{KeyError, Keypair};
///
/// let error = Keypair::from_openssh("no key").unwrap_err();
/// assert!(matches!(error, KeyError::Unusable { .. }), "{error}");
/// ```
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    /// A key could not be parsed, generated or encoded.
    #[error("unusable SSH key ({what}): {why}")]
    Unusable {
        /// The key.
        what: String,
        /// What is wrong with it.
        why: String,
    },
    /// A key file could not be read or written.
    #[error("cannot {action} the key file {}: {source}", path.display())]
    File {
        /// The operation.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
}

readable_debug!(KeyError);

/// Maximum bytes of a key file. Keys have some hundred bytes.
const KEY_LIMIT: u64 = 1 << 16;

/// A public key. Comparison ignores the comment.
///
/// ```
/// use fleetbox::ssh::{Keypair, PublicKey};
///
/// let key = Keypair::generate("a test")?.public();
/// assert_eq!(key.to_string().parse::<PublicKey>()?, key);
/// assert!(key.fingerprint().starts_with("SHA256:"));
/// # Ok::<(), fleetbox::ssh::KeyError>(())
/// ```
#[derive(Clone, Debug)]
pub struct PublicKey(russh::keys::PublicKey);

impl PublicKey {
    pub(crate) fn from_russh(key: russh::keys::PublicKey) -> Self {
        Self(key)
    }

    /// The SHA-256 fingerprint, in the format of `ssh-keygen -l`.
    pub fn fingerprint(&self) -> String {
        self.0.fingerprint(HashAlg::Sha256).to_string()
    }
}

impl PartialEq for PublicKey {
    fn eq(&self, other: &Self) -> bool {
        self.0.key_data() == other.0.key_data()
    }
}

impl Eq for PublicKey {}

impl FromStr for PublicKey {
    type Err = KeyError;

    /// Parses OpenSSH's one-line form.
    fn from_str(line: &str) -> Result<Self, Self::Err> {
        russh::keys::PublicKey::from_openssh(line)
            .map(Self)
            .map_err(|e| KeyError::Unusable {
                what: "public key".into(),
                why: e.to_string(),
            })
    }
}

impl fmt::Display for PublicKey {
    /// OpenSSH's one-line form.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.to_openssh().map_err(|_| fmt::Error)?)
    }
}

/// An Ed25519 key pair. Cloning it is cheap.
///
/// ```
/// use fleetbox::ssh::Keypair;
/// # let dir = tempfile::tempdir().unwrap();
/// # let home = dir.path();
///
/// let key = Keypair::generate("a test")?;
/// key.save(&home.join("key"))?;
/// assert_eq!(Keypair::load(&home.join("key"))?.public(), key.public());
/// assert_eq!(Keypair::from_openssh(&key.to_openssh()?)?.public(), key.public());
/// # Ok::<(), fleetbox::ssh::KeyError>(())
/// ```
#[derive(Clone)]
pub struct Keypair(Arc<PrivateKey>);

impl fmt::Debug for Keypair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Never the private half.
        write!(f, "Keypair({})", self.public().fingerprint())
    }
}

impl Keypair {
    /// Generates a new random key.
    ///
    /// # Errors
    /// [`KeyError::Unusable`] if the comment cannot be stored.
    pub fn generate(comment: &str) -> Result<Self, KeyError> {
        let seed: [u8; 32] = rand::random();
        let pair = KeypairData::from(Ed25519Keypair::from_seed(&seed));
        PrivateKey::new(pair, comment)
            .map(|key| Self(Arc::new(key)))
            .map_err(|e| KeyError::Unusable {
                what: format!("new key {comment:?}"),
                why: e.to_string(),
            })
    }

    /// Parses a private key in OpenSSH's format.
    ///
    /// # Errors
    /// [`KeyError::Unusable`] for any other format, and for a key with a passphrase.
    pub fn from_openssh(text: &str) -> Result<Self, KeyError> {
        let fail = |why: String| KeyError::Unusable {
            what: "private key".into(),
            why,
        };
        let key = PrivateKey::from_openssh(text).map_err(|e| fail(e.to_string()))?;
        if key.is_encrypted() {
            return Err(fail("it is protected by a passphrase".into()));
        }
        Ok(Self(Arc::new(key)))
    }

    /// The private key in OpenSSH's format.
    ///
    /// # Errors
    /// [`KeyError::Unusable`] if it cannot be encoded.
    pub fn to_openssh(&self) -> Result<String, KeyError> {
        self.0
            .to_openssh(LineEnding::LF)
            .map(|text| text.to_string())
            .map_err(|e| KeyError::Unusable {
                what: "private key".into(),
                why: e.to_string(),
            })
    }

    /// The public key.
    pub fn public(&self) -> PublicKey {
        PublicKey(self.0.public_key().clone())
    }

    /// Reads a private key from a file.
    ///
    /// # Errors
    /// [`KeyError::File`] if the file cannot be read, [`KeyError::Unusable`] if it is not a key.
    pub fn load(path: &Path) -> Result<Self, KeyError> {
        let text = read_limited(path, KEY_LIMIT).map_err(|source| KeyError::File {
            action: "read",
            path: path.to_owned(),
            source,
        })?;
        Self::from_openssh(&String::from_utf8_lossy(&text)).map_err(|e| match e {
            KeyError::Unusable { why, .. } => KeyError::Unusable {
                what: path.display().to_string(),
                why,
            },
            other => other,
        })
    }

    /// Writes the private key to a file of mode 0600, atomically.
    ///
    /// ```
    /// use fleetbox::ssh::Keypair;
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let home = dir.path();
    ///
    /// Keypair::generate("me")?.save(&home.join("id_ed25519"))?;
    /// assert!(Keypair::load(&home.join("id_ed25519")).is_ok());
    /// # Ok::<(), fleetbox::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`KeyError::File`] if the file cannot be written.
    pub fn save(&self, path: &Path) -> Result<(), KeyError> {
        write_key(path, &self.to_openssh()?)
    }

    pub(crate) fn private(&self) -> Arc<PrivateKey> {
        Arc::clone(&self.0)
    }
}

pub(crate) fn write_key(path: &Path, text: &str) -> Result<(), KeyError> {
    write_atomic(path, text.as_bytes()).map_err(|source| KeyError::File {
        action: "write",
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_read_back() {
        let key = Keypair::generate("a comment").unwrap();
        let again = Keypair::from_openssh(&key.to_openssh().unwrap()).unwrap();
        assert_eq!(again.public(), key.public());
        let line = key.public().to_string();
        assert!(line.starts_with("ssh-ed25519 "), "{line}");
        assert_eq!(line.parse::<PublicKey>().unwrap(), key.public());
        assert_ne!(Keypair::generate("x").unwrap().public(), key.public());
        assert!(!format!("{key:?}").contains("PRIVATE"));
    }
}
