//! The directory of the queue, which all users of the host share.
//!
//! Every user may write to it, and only the owner of a file may change it (mode 1777, as `/tmp`). So its files are not
//! trusted: a file counts only while its maker has it locked, it is opened for reading only, without following links or
//! waiting, and only up to a limit is read. A user who claims all memory, or holds the directory's lock, can keep
//! others from starting VMs, just as by really using the memory, but can do nothing else.
//!
//! The lock of the queue is on the directory itself. A lock file would belong to its first user.

use std::fmt;
use std::fs::{DirBuilder, File, Permissions};
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Once};
use std::time::{Duration, Instant, SystemTime};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, openat, renameat};
use nix::sys::stat::{Mode, fstatat};
use nix::unistd::{AccessFlags, UnlinkatFlags, faccessat, geteuid, unlinkat};

use super::BudgetError;
use crate::util::fs::check_writable;

/// Environment variable that names another directory for the queue.
pub const QUEUE_VARIABLE: &str = "FLEETBOX_BUDGET_DIR";

/// The queue of the host. It is not in `$TMPDIR`, which may differ between users.
const HOST: &str = "/tmp/fleetbox-memory";

/// Mode of the directory: every user may create files, and remove their own.
const DIR_MODE: u32 = 0o1777;

/// Mode of a file: every user may read it and check whether it is locked.
const FILE_MODE: u32 = 0o644;

/// Maximum bytes of a file. A file has about a hundred bytes for each VM; anything larger is not ours.
const FILE_LIMIT: u64 = 256 << 10;

/// The limits of reading the directory, which any user may fill.
struct Limits {
    /// Locked files. Each takes a descriptor of the process that locks it.
    files: usize,
    /// Other files. They are not claims, and do not keep anyone from starting VMs.
    entries: usize,
    /// Bytes of all files together.
    content: u64,
}

const LIMITS: Limits = Limits {
    files: 1 << 16,
    entries: 1 << 22,
    content: 16 << 20,
};

/// How long to wait for the queue's lock, which others hold for moments.
const PATIENCE: Duration = Duration::from_secs(30);

/// The path of the queue for VMs of the state directory `home`.
pub(super) fn path(home: &Path) -> PathBuf {
    if cfg!(test) {
        // Tests of this crate that run at once must not wait for each other, nor for the host.
        return home.join("budget");
    }
    match std::env::var_os(QUEUE_VARIABLE) {
        // A worker is started in another directory.
        Some(path) if !path.is_empty() => std::path::absolute(&path).unwrap_or(path.into()),
        _ => PathBuf::from(HOST),
    }
}

/// The state of the VMs in a file of the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// They wait for memory.
    Waiting,
    /// They have memory, but are not running yet.
    Granted,
    /// They are running.
    Running,
}

impl Kind {
    fn from_name(name: &str) -> Option<Self> {
        [Self::Waiting, Self::Granted, Self::Running]
            .into_iter()
            .find(|kind| kind.to_string() == name)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Waiting => "waiting",
            Self::Granted => "granted",
            Self::Running => "running",
        })
    }
}

/// The directory of the queue, as [`queue_dir`](super::queue_dir) finds it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct QueueDir {
    /// Its path.
    pub path: PathBuf,
    /// Its owner (uid), who may remove the files of others.
    pub owner: u32,
}

/// Looks at the directory, without creating it or waiting for its lock. A missing one will be this user's.
pub(super) fn probe(path: PathBuf) -> Result<QueueDir, BudgetError> {
    let look = || -> io::Result<u32> {
        let dir = match open_existing(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                check_writable(&path)?;
                return Ok(geteuid().as_raw());
            }
            dir => dir?,
        };
        let need = AccessFlags::R_OK | AccessFlags::W_OK | AccessFlags::X_OK;
        faccessat(&dir, ".", need, AtFlags::AT_EACCESS)?;
        Ok(dir.metadata()?.uid())
    };
    match look() {
        Ok(owner) => Ok(QueueDir { path, owner }),
        Err(error) => Err(failed(&path)(error)),
    }
}

/// The name of a file: its place in the queue, a random part, and its kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FileName {
    pub(super) number: u64,
    random: u64,
    pub(super) kind: Kind,
}

impl FileName {
    fn parse(name: &str) -> Option<Self> {
        let (place, kind) = name.split_once('.')?;
        let (number, random) = place.split_once('-')?;
        Some(Self {
            number: number.parse().ok()?,
            random: u64::from_str_radix(random, 16).ok()?,
            kind: Kind::from_name(kind)?,
        })
    }

    /// True if its place is before that of `other`.
    pub(super) fn is_before(&self, other: &Self) -> bool {
        (self.number, self.random) < (other.number, other.random)
    }
}

impl fmt::Display for FileName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            number,
            random,
            kind,
        } = self;
        write!(f, "{number:020}-{random:016x}.{kind}")
    }
}

/// A locked file of this process. Dropping this removes the file.
#[derive(Debug)]
pub(super) struct Entry {
    dir: Arc<File>,
    name: FileName,
    file: File,
}

impl Drop for Entry {
    fn drop(&mut self) {
        let removed = unlinkat(
            &*self.dir,
            self.name.to_string().as_str(),
            UnlinkatFlags::NoRemoveDir,
        );
        if let Err(error) = removed
            && error != Errno::ENOENT
        {
            // It is no longer locked, so it does not count.
            tracing::debug!(name = %self.name, %error, "cannot remove a file of the memory queue");
        }
    }
}

impl AsFd for Entry {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Entry {
    pub(super) fn name(&self) -> FileName {
        self.name
    }

    /// True if the file is in the directory that is now at this path.
    pub(super) fn is_in(&self, dir: &Path) -> bool {
        let there = std::fs::symlink_metadata(dir.join(self.name.to_string()));
        match (there, self.file.metadata()) {
            (Ok(there), Ok(ours)) => (there.dev(), there.ino()) == (ours.dev(), ours.ino()),
            _ => false,
        }
    }

    /// Updates the file's time, because some hosts remove old files from temporary directories.
    pub(super) fn touch(&self) -> io::Result<()> {
        let now = SystemTime::now();
        let times = std::fs::FileTimes::new()
            .set_accessed(now)
            .set_modified(now);
        self.file.set_times(times)
    }
}

/// A file that its maker, a living process, has locked.
pub(super) struct Seen {
    pub(super) name: FileName,
    /// The user (uid) that owns it.
    pub(super) user: u32,
    pub(super) content: Vec<u8>,
}

/// The queue's directory, locked until this is dropped.
#[derive(Debug)]
pub(super) struct Guard {
    dir: Arc<File>,
    path: PathBuf,
}

impl Drop for Guard {
    fn drop(&mut self) {
        // Files that were made keep the directory open, and a lock lasts as long.
        if let Err(error) = self.dir.unlock() {
            tracing::warn!(path = %self.path.display(), %error, "cannot unlock the memory queue");
        }
    }
}

impl Guard {
    /// Opens the directory, creating it if it is missing, and waits for its lock.
    pub(super) fn enter(path: &Path) -> Result<Self, BudgetError> {
        let begun = Instant::now();
        loop {
            let dir = open(path).map_err(failed(path))?;
            while let Err(error) = dir.try_lock() {
                match error {
                    std::fs::TryLockError::Error(error) => return Err(failed(path)(error)),
                    std::fs::TryLockError::WouldBlock => {}
                }
                if begun.elapsed() > PATIENCE {
                    let error = io::Error::new(
                        io::ErrorKind::TimedOut,
                        format!("another process has been holding its lock for {PATIENCE:?}"),
                    );
                    return Err(failed(path)(error));
                }
                std::thread::sleep(Duration::from_millis(2));
            }
            // Else it was removed meanwhile, and others use another one.
            let named = std::fs::symlink_metadata(path);
            let opened = dir.metadata().map_err(failed(path))?;
            if named.is_ok_and(|named| (named.dev(), named.ino()) == (opened.dev(), opened.ino())) {
                return Ok(Self {
                    dir: Arc::new(dir),
                    path: path.to_owned(),
                });
            }
        }
    }

    /// Creates a file of this process, and keeps it locked.
    pub(super) fn create(
        &self,
        number: u64,
        kind: Kind,
        content: &[u8],
    ) -> Result<Entry, BudgetError> {
        let name = FileName {
            number,
            random: rand::random(),
            kind,
        };
        // Never one that is there already: that would be somebody else's.
        let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_RDWR | OFlag::O_CLOEXEC;
        let mode = Mode::from_bits_truncate(FILE_MODE);
        let file = openat(&*self.dir, name.to_string().as_str(), flags, mode)
            .map_err(|error| failed(&self.path)(error.into()))?;
        let entry = Entry {
            dir: Arc::clone(&self.dir),
            name,
            file: file.into(),
        };
        let fill = || -> io::Result<()> {
            entry.file.try_lock()?;
            // Whatever this process's umask is.
            let mode = Permissions::from_mode(FILE_MODE);
            entry.file.set_permissions(mode)?;
            (&entry.file).write_all(content)
        };
        fill().map_err(failed(&self.path))?;
        Ok(entry)
    }

    /// True if the file is still in the directory, which may have been emptied or replaced.
    pub(super) fn has(&self, entry: &Entry) -> bool {
        let name = entry.name.to_string();
        let there = fstatat(&*self.dir, name.as_str(), AtFlags::AT_SYMLINK_NOFOLLOW);
        match (there, entry.file.metadata()) {
            (Ok(there), Ok(ours)) => (there.st_dev, there.st_ino) == (ours.dev(), ours.ino()),
            _ => false,
        }
    }

    /// Changes the kind of a file.
    pub(super) fn change(&self, entry: &mut Entry, kind: Kind) -> Result<(), BudgetError> {
        let name = FileName { kind, ..entry.name };
        let (old, new) = (entry.name.to_string(), name.to_string());
        renameat(&*self.dir, old.as_str(), &*self.dir, new.as_str())
            .map_err(|error| failed(&self.path)(error.into()))?;
        entry.name = name;
        Ok(())
    }

    /// All files of living processes, sorted by place. Other files are removed if this user may do so.
    pub(super) fn look(&self) -> Result<Vec<Seen>, BudgetError> {
        self.look_within(&LIMITS)
    }

    fn look_within(&self, limits: &Limits) -> Result<Vec<Seen>, BudgetError> {
        let too_many = |limit: usize, what: &str| {
            let error = io::Error::other(format!("it has more than {limit} {what}; remove some"));
            Err(failed(&self.path)(error))
        };
        let mut seen = Vec::new();
        let mut room = limits.content;
        let entries = std::fs::read_dir(&self.path).map_err(failed(&self.path))?;
        for (index, entry) in entries.enumerate() {
            if index >= limits.entries {
                return too_many(limits.entries, "files");
            }
            let name = entry.map_err(failed(&self.path))?.file_name();
            let Some(name) = name.to_str().and_then(FileName::parse) else {
                continue;
            };
            match self.see(name, &mut room) {
                Ok(Some(_)) if seen.len() >= limits.files => {
                    return too_many(limits.files, "files of living processes");
                }
                Ok(Some(file)) => seen.push(file),
                Ok(None) => {}
                // Removed in this moment, or made unreadable by its owner, and then it claims nothing.
                Err(error) => tracing::debug!(%name, %error, "not counted"),
            }
        }
        seen.sort_by_key(|file| (file.name.number, file.name.random));
        Ok(seen)
    }

    /// Reads a file if its maker lives. Its content must fit into `room`, which is reduced by its size.
    fn see(&self, name: FileName, room: &mut u64) -> io::Result<Option<Seen>> {
        // Neither a link nor a FIFO may lead or keep us anywhere.
        let flags = OFlag::O_RDONLY
            | OFlag::O_NOFOLLOW
            | OFlag::O_NONBLOCK
            | OFlag::O_NOCTTY
            | OFlag::O_CLOEXEC;
        let text = name.to_string();
        let file = openat(&*self.dir, text.as_str(), flags, Mode::empty())?;
        let file = File::from(file);
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Ok(None);
        }
        match file.try_lock_shared() {
            Err(std::fs::TryLockError::WouldBlock) => {}
            Err(std::fs::TryLockError::Error(error)) => return Err(error),
            Ok(()) => {
                // Its maker may be removing it this moment, or be another user.
                match unlinkat(&*self.dir, text.as_str(), UnlinkatFlags::NoRemoveDir) {
                    Ok(()) | Err(Errno::ENOENT | Errno::EPERM | Errno::EACCES) => {}
                    Err(error) => tracing::warn!(%name, %error, "cannot remove an old file"),
                }
                return Ok(None);
            }
        }
        let mut content = Vec::new();
        // Its place in the queue counts in any case.
        if metadata.len() <= FILE_LIMIT {
            let limit = FILE_LIMIT.min(*room);
            file.take(limit + 1).read_to_end(&mut content)?;
            let length = content.len() as u64;
            if length > limit {
                content = Vec::new();
                // A start that waits looks again and again.
                static WARNED: Once = Once::new();
                let path = self.path.display();
                let user = metadata.uid();
                WARNED.call_once(|| {
                    tracing::warn!(%path, %name, user, "the memory queue is larger than the limit; this file is not counted");
                });
            }
            *room = room.saturating_sub(length);
        }
        Ok(Some(Seen {
            name,
            user: metadata.uid(),
            content,
        }))
    }
}

/// Opens the directory, creating it if it is missing.
fn open(path: &Path) -> io::Result<File> {
    let made = match DirBuilder::new().mode(DIR_MODE).create(path) {
        Ok(()) => true,
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => false,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            // Only this directory is ours to create, not those above it.
            if let Some(above) = path.parent() {
                std::fs::create_dir_all(above)?;
            }
            match DirBuilder::new().mode(DIR_MODE).create(path) {
                Ok(()) => true,
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => false,
                Err(error) => return Err(error),
            }
        }
        Err(error) => return Err(error),
    };
    let dir = open_existing(path)?;
    let metadata = dir.metadata()?;
    // That of the host is put right, too, if its maker was killed before it could be.
    let ours = made || (path == Path::new(HOST) && metadata.uid() == geteuid().as_raw());
    if ours && metadata.mode() & 0o7777 != DIR_MODE {
        dir.set_permissions(Permissions::from_mode(DIR_MODE))?;
    }
    Ok(dir)
}

fn open_existing(path: &Path) -> io::Result<File> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let dir = openat(AT_FDCWD, path, flags, Mode::empty()).map_err(|error| match error {
        Errno::ENOTDIR | Errno::ELOOP => io::Error::new(
            io::ErrorKind::NotADirectory,
            "it is a link or a file, but must be a directory",
        ),
        error => error.into(),
    })?;
    Ok(File::from(dir))
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> BudgetError {
    let path = path.to_owned();
    move |source| BudgetError::Queue { path, source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::test_support::eventually;

    fn contents(guard: &Guard) -> Vec<(Kind, Vec<u8>)> {
        let seen = guard.look().unwrap().into_iter();
        seen.map(|file| (file.name.kind, file.content)).collect()
    }

    #[test]
    fn files_count_while_their_makers_live() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/queue");
        let guard = Guard::enter(&path).unwrap();
        let mode = |path: &Path| std::fs::metadata(path).unwrap().mode() & 0o7777;
        assert_eq!(mode(&path), 0o1777);
        let mut second = guard.create(2, Kind::Waiting, b"two").unwrap();
        let first = guard.create(1, Kind::Running, b"one").unwrap();
        assert_eq!(mode(&path.join(first.name().to_string())), 0o644);
        guard.change(&mut second, Kind::Granted).unwrap();
        let both = [
            (Kind::Running, b"one".to_vec()),
            (Kind::Granted, b"two".to_vec()),
        ];
        assert_eq!(contents(&guard), both);
        first.touch().unwrap();
        drop(second);
        assert_eq!(contents(&guard), both[..1]);
        // What a killed process has left.
        let dead = path.join(format!("{:020}-{:016x}.{}", 7, 7, Kind::Granted));
        std::fs::write(&dead, "x").unwrap();
        assert_eq!(contents(&guard), both[..1]);
        assert!(!dead.exists());
        assert!(guard.has(&first));
        std::fs::remove_file(path.join(first.name().to_string())).unwrap();
        assert!(!guard.has(&first));
    }

    #[test]
    fn what_is_no_file_of_ours_disturbs_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let guard = Guard::enter(dir.path()).unwrap();
        let name = |random: u64| dir.path().join(format!("1-{random:x}.waiting"));
        let text = dir.path().join("text");
        std::fs::write(&text, "x").unwrap();
        std::os::unix::fs::symlink(&text, name(1)).unwrap();
        nix::unistd::mkfifo(&name(2), Mode::S_IRWXU).unwrap();
        std::fs::create_dir(name(3)).unwrap();
        for other in [
            "x.waiting",
            "1-2",
            "1-2.lost",
            "-1-2.waiting",
            "1-g.waiting",
        ] {
            std::fs::write(dir.path().join(other), "x").unwrap();
        }
        assert_eq!(contents(&guard), []);
        assert!(text.exists());
        // Too large to be read, but it has its place.
        let content = vec![b'x'; FILE_LIMIT as usize + 1];
        let _large = guard.create(u64::MAX, Kind::Waiting, &content).unwrap();
        assert_eq!(contents(&guard), [(Kind::Waiting, Vec::new())]);
    }

    #[test]
    fn a_directory_that_is_filled_costs_little_and_blocks_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let guard = Guard::enter(dir.path()).unwrap();
        let limits = Limits {
            files: 3,
            entries: 30,
            content: 10,
        };
        for number in 0..20 {
            std::fs::write(dir.path().join(format!("{number}")), "").unwrap();
        }
        let mut ours = Vec::new();
        for number in 1..=3 {
            let entry = guard.create(number, Kind::Waiting, b"12345678").unwrap();
            ours.push(entry);
        }
        // All have their places, and one is read.
        let seen = guard.look_within(&limits).unwrap();
        let places: Vec<_> = seen.iter().map(|file| file.name.number).collect();
        assert_eq!(places, [1, 2, 3]);
        let read = seen.iter().filter(|file| !file.content.is_empty());
        assert_eq!(read.count(), 1);
        ours.push(guard.create(4, Kind::Waiting, b"").unwrap());
        let error = guard.look_within(&limits).err().unwrap().to_string();
        assert!(
            error.contains("more than 3 files of living processes"),
            "{error}"
        );
        drop(ours);
        assert_eq!(guard.look_within(&limits).unwrap().len(), 0);
        for number in 20..31 {
            std::fs::write(dir.path().join(format!("{number}")), "").unwrap();
        }
        let error = guard.look_within(&limits).err().unwrap().to_string();
        assert!(error.contains("more than 30 files;"), "{error}");
    }

    #[test]
    fn a_link_or_a_file_in_its_place_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let (link, file) = (dir.path().join("link"), dir.path().join("file"));
        std::os::unix::fs::symlink(dir.path(), &link).unwrap();
        std::fs::write(&file, "").unwrap();
        for path in [&link, &file] {
            let entered = Guard::enter(path).unwrap_err().to_string();
            let probed = probe(path.clone()).unwrap_err().to_string();
            for error in [entered, probed] {
                assert!(
                    error.contains("must be a directory") && error.contains(QUEUE_VARIABLE),
                    "{error}"
                );
            }
        }
        let fine = probe(dir.path().join("made")).unwrap();
        assert_eq!(fine.owner, geteuid().as_raw());
    }

    #[test]
    fn a_directory_that_is_replaced_is_entered_anew() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("queue");
        let old = Guard::enter(&path).unwrap();
        let entry = old.create(1, Kind::Waiting, b"x").unwrap();
        let waiting = {
            let path = path.clone();
            std::thread::spawn(move || Guard::enter(&path).unwrap())
        };
        // It waits for the lock of the directory that it has opened, beside ours.
        let opened = || {
            let fds = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
            fds.filter(|fd| std::fs::read_link(fd.path()).is_ok_and(|to| to == path))
                .count()
        };
        eventually("the other one has opened the directory", || opened() == 2);
        std::fs::rename(&path, dir.path().join("gone")).unwrap();
        drop(old);
        let new = waiting.join().unwrap();
        assert!(!new.has(&entry));
        assert_eq!(contents(&new), []);
    }
}
