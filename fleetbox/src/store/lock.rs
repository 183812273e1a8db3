//! Locks that show which processes are alive.
//!
//! A lock is an exclusive `flock` on a file. The kernel drops it when its holder ends, in any way.
//! So a held lock means a living process, and no process id has to be stored.

use std::fs::{File, TryLockError};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{StoreError, fsutil};

/// How often to try for a lock that others may share.
const CLAIMS: u32 = 5;

/// A lock on a file. It is exclusive unless it is a share, and held until this is dropped or the
/// process ends.
///
/// ```
/// use fleetbox::store::Lock;
/// # let dir = tempfile::tempdir().unwrap();
/// # let home = dir.path();
///
/// let path = home.join("lock");
/// let lock = Lock::try_acquire(&path)?.expect("it is free");
/// assert_eq!(lock.path(), path);
/// assert!(Lock::is_held(&path)?);
/// assert!(Lock::try_acquire(&path)?.is_none());
/// drop(lock);
/// assert!(!Lock::is_held(&path)?);
/// # Ok::<(), fleetbox::store::StoreError>(())
/// ```
#[derive(Debug)]
pub struct Lock {
    file: File,
    path: PathBuf,
}

impl Lock {
    /// Takes the lock on `path` without waiting, creating the file if it is missing. Returns `None`
    /// while another holder is alive.
    ///
    /// # Errors
    /// [`StoreError::Io`] if the file cannot be opened or locked.
    pub fn try_acquire(path: &Path) -> Result<Option<Self>, StoreError> {
        // Somebody who only looks (`is_held`) has a shared lock for some microseconds; that is
        // told apart from a holder by trying for a shared one ourselves.
        for _ in 0..1000 {
            let file = fsutil::open_private(path).map_err(StoreError::io("open", path))?;
            match file.try_lock() {
                Ok(()) if same_file(&file, path) => {
                    return Ok(Some(Self {
                        file,
                        path: path.to_owned(),
                    }));
                }
                // The file was removed or replaced between opening and locking.
                Ok(()) => continue,
                Err(TryLockError::WouldBlock) => {}
                Err(TryLockError::Error(e)) => return Err(StoreError::io("lock", path)(e)),
            }
            match file.try_lock_shared() {
                Ok(()) => {
                    drop(file);
                    std::thread::sleep(Duration::from_millis(1));
                }
                Err(TryLockError::WouldBlock) => return Ok(None),
                Err(TryLockError::Error(e)) => return Err(StoreError::io("lock", path)(e)),
            }
        }
        Ok(None)
    }

    /// Waits for the lock on `path`, without a limit. Use it only for locks that are held for
    /// moments.
    ///
    /// # Errors
    /// [`StoreError::Io`] if the file cannot be opened or locked.
    pub fn acquire(path: &Path) -> Result<Self, StoreError> {
        loop {
            let file = fsutil::open_private(path).map_err(StoreError::io("open", path))?;
            match file.lock() {
                Ok(()) if same_file(&file, path) => {
                    return Ok(Self {
                        file,
                        path: path.to_owned(),
                    });
                }
                Ok(()) => {}
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(StoreError::io("lock", path)(e)),
            }
        }
    }

    /// Waits for a share of the lock on `path`, or returns `None` if the file is missing. Any
    /// number of holders may have a share at once. [`Lock::try_claim`] fails meanwhile;
    /// [`Lock::is_held`] ignores shares.
    ///
    /// # Errors
    /// [`StoreError::Io`] if the file cannot be opened or locked.
    pub(crate) fn share(path: &Path) -> Result<Option<Self>, StoreError> {
        let Some(file) = open_if_there(path)? else {
            return Ok(None);
        };
        while let Err(error) = file.lock_shared() {
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(StoreError::io("lock", path)(error));
            }
        }
        // It may have been removed meanwhile.
        Ok(same_file(&file, path).then(|| Self {
            file,
            path: path.to_owned(),
        }))
    }

    /// Takes the lock on `path` if no process has a share of it. Returns `None` if one has, or if
    /// the file is missing.
    ///
    /// # Errors
    /// [`StoreError::Io`] if the file cannot be opened or locked.
    pub(crate) fn try_claim(path: &Path) -> Result<Option<Self>, StoreError> {
        let Some(file) = open_if_there(path)? else {
            return Ok(None);
        };
        let claimed = claim(&file).map_err(StoreError::io("lock", path))?;
        Ok((claimed && same_file(&file, path)).then(|| Self {
            file,
            path: path.to_owned(),
        }))
    }

    /// True if a living process has a share of the lock on `path`. A missing file has no shares.
    ///
    /// # Errors
    /// [`StoreError::Io`] if the file exists and cannot be opened or locked.
    pub(crate) fn is_shared(path: &Path) -> Result<bool, StoreError> {
        match open_if_there(path)? {
            Some(file) => Ok(!claim(&file).map_err(StoreError::io("lock", path))?),
            None => Ok(false),
        }
    }

    /// True if a living process holds the lock on `path`. A missing file is not held.
    ///
    /// ```
    /// use fleetbox::store::Lock;
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let home = dir.path();
    ///
    /// let path = home.join("lock");
    /// let lock = Lock::acquire(&path)?;
    /// assert!(Lock::is_held(&path)?);
    /// drop(lock);
    /// assert!(!Lock::is_held(&path)?); // the file is still there, and says nothing
    /// # Ok::<(), fleetbox::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`StoreError::Io`] if the file exists and cannot be opened or locked.
    pub fn is_held(path: &Path) -> Result<bool, StoreError> {
        let Some(file) = open_if_there(path)? else {
            return Ok(false);
        };
        match file.try_lock_shared() {
            Ok(()) => Ok(false),
            Err(TryLockError::WouldBlock) => Ok(true),
            Err(TryLockError::Error(e)) => Err(StoreError::io("lock", path)(e)),
        }
    }

    /// The locked file's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Records that the locked file has been renamed.
    pub(crate) fn moved_to(&mut self, path: PathBuf) {
        self.path = path;
    }

    /// Removes the file and releases the lock. A process that opened the file before notices that
    /// it is gone.
    ///
    /// # Errors
    /// [`StoreError::Io`] if the file cannot be removed.
    pub fn remove(self) -> Result<(), StoreError> {
        fsutil::remove_file_if_there(&self.path).map_err(StoreError::io("remove", &self.path))
    }

    /// The locked file. If its descriptor is inherited by or sent to another process, the lock is
    /// held for as long as that process has it open.
    pub fn into_file(self) -> File {
        self.file
    }
}

fn open_if_there(path: &Path) -> Result<Option<File>, StoreError> {
    match File::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(StoreError::io("open", path)(e)),
    }
}

/// Tries to take an exclusive lock on a file that others may share for long. Another claim, or a
/// forked child that has not called exec yet, holds it only for moments.
fn claim(file: &File) -> io::Result<bool> {
    for _ in 0..CLAIMS {
        match file.try_lock() {
            Ok(()) => return Ok(true),
            Err(TryLockError::WouldBlock) => std::thread::sleep(Duration::from_millis(2)),
            Err(TryLockError::Error(error)) => return Err(error),
        }
    }
    Ok(false)
}

/// True if `path` still names the open file.
fn same_file(file: &File, path: &Path) -> bool {
    match (file.metadata(), std::fs::metadata(path)) {
        (Ok(a), Ok(b)) => a.ino() == b.ino() && a.dev() == b.dev(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_excludes_and_ends_with_its_holder() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        assert!(!Lock::is_held(&path).unwrap());
        let lock = Lock::try_acquire(&path).unwrap().unwrap();
        assert!(Lock::is_held(&path).unwrap());
        assert!(Lock::try_acquire(&path).unwrap().is_none());
        drop(lock);
        assert!(!Lock::is_held(&path).unwrap());
        assert!(Lock::try_acquire(&path).unwrap().is_some());
    }

    #[test]
    fn onlookers_do_not_disturb_who_takes_the_lock() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        drop(Lock::try_acquire(&path).unwrap());
        let stop = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                        Lock::is_held(&path).unwrap();
                    }
                });
            }
            for _ in 0..200 {
                assert!(Lock::try_acquire(&path).unwrap().is_some());
            }
            stop.store(true, std::sync::atomic::Ordering::Relaxed);
        });
    }

    #[test]
    fn a_shared_lock_is_claimed_when_the_last_share_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        assert!(Lock::share(&path).unwrap().is_none(), "there is no file");
        assert!(Lock::try_claim(&path).unwrap().is_none());
        assert!(!Lock::is_shared(&path).unwrap());
        std::fs::write(&path, "").unwrap();
        let [one, two] = [(); 2].map(|()| Lock::share(&path).unwrap().unwrap());
        assert!(Lock::try_claim(&path).unwrap().is_none());
        drop(one);
        assert!(Lock::try_claim(&path).unwrap().is_none());
        assert!(Lock::is_shared(&path).unwrap());
        drop(two);
        assert!(!Lock::is_shared(&path).unwrap());
        let claim = Lock::try_claim(&path).unwrap().unwrap();
        let waiting = {
            let path = path.clone();
            std::thread::spawn(move || Lock::share(&path))
        };
        claim.remove().unwrap();
        // What it waited for is gone, or has been before it came.
        assert!(waiting.join().unwrap().unwrap().is_none());
    }

    #[test]
    fn a_removed_file_is_not_a_lock() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let old = Lock::try_acquire(&path).unwrap().unwrap();
        std::fs::remove_file(&path).unwrap();
        let new = Lock::try_acquire(&path).unwrap();
        assert!(new.is_some(), "the new file is another lock");
        drop(old);
        assert!(Lock::is_held(&path).unwrap());
    }
}
