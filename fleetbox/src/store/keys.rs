//! The key that logs in to all VMs of a state directory.

use super::{Lock, Store, StoreError};
use crate::model::keys::{Keypair, write_key};

impl Keypair {
    /// The key that logs in to all VMs of `store`: `keys/id_ed25519`, generated once. The public
    /// key is stored next to it, for other programs.
    ///
    /// ```
    /// use fleetbox::ssh::Keypair;
    /// use fleetbox::store::Store;
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let home = dir.path();
    ///
    /// let store = Store::open(home)?;
    /// assert_eq!(Keypair::of_store(&store)?.public(), Keypair::of_store(&store)?.public());
    /// # Ok::<(), fleetbox::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`StoreError::Key`] for an unusable key file, [`StoreError::Io`].
    pub fn of_store(store: &Store) -> Result<Self, StoreError> {
        let path = store.keys_dir().join("id_ed25519");
        if path.exists() {
            return Ok(Self::load(&path)?);
        }
        // Two processes must not each make one and each use its own.
        let _lock = Lock::acquire(&store.keys_dir().join("lock"))?;
        if path.exists() {
            return Ok(Self::load(&path)?);
        }
        let key = Self::generate("fleetbox")?;
        write_key(&path.with_extension("pub"), &format!("{}\n", key.public()))?;
        key.save(&path)?;
        Ok(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::keys::PublicKey;

    #[test]
    fn a_store_has_one_key() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let keys: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4)
                .map(|_| scope.spawn(|| Keypair::of_store(&store).unwrap().public()))
                .collect();
            threads.into_iter().map(|t| t.join().unwrap()).collect()
        });
        assert!(keys.windows(2).all(|pair| pair[0] == pair[1]));
        let line = std::fs::read_to_string(store.keys_dir().join("id_ed25519.pub")).unwrap();
        assert_eq!(line.parse::<PublicKey>().unwrap(), keys[0]);
    }

    #[test]
    fn what_is_no_key_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        std::fs::write(store.keys_dir().join("id_ed25519"), "nonsense").unwrap();
        let error = Keypair::of_store(&store).unwrap_err().to_string();
        assert!(error.contains("id_ed25519"), "{error}");
    }
}
