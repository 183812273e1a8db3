//! Directories on this host that receive files from a guest.
//!
//! Every name is looked up below an open directory, and symbolic links are not followed. So a guest
//! that sends a link, and then a file below it, cannot reach anything else.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, openat, renameat};
use nix::sys::stat::{Mode, fchmod, futimens, mkdirat};
use nix::sys::time::TimeSpec;
use nix::unistd::{UnlinkatFlags, symlinkat, unlinkat};

use super::{FilesError, host, shown};

/// Permission bits that are accepted from a guest. Set-user-ID, set-group-ID and sticky bits are
/// dropped.
const TAKEN: u32 = 0o777;

/// An open directory.
#[derive(Debug)]
pub(super) struct HostDir {
    fd: OwnedFd,
    // Only for messages.
    path: PathBuf,
}

/// Checks the name of a directory entry from a guest.
///
/// # Errors
/// [`FilesError::Entry`].
pub(super) fn check_name(directory: &str, name: &str) -> Result<(), FilesError> {
    let why = if name.is_empty() {
        "is empty"
    } else if name == "." || name == ".." {
        "is not a real entry"
    } else if name.contains('/') {
        "has a '/'"
    } else if name.contains('\0') {
        "has a zero byte"
    } else if name.len() > 255 {
        "is longer than 255 bytes"
    } else if name.contains(char::REPLACEMENT_CHARACTER) {
        "is not UTF-8; rename it"
    } else {
        return Ok(());
    };
    Err(FilesError::Entry {
        directory: shown(directory),
        name: shown(name),
        why,
    })
}

impl HostDir {
    /// Opens a directory that the user named. Links in its path are followed, since they are the
    /// user's.
    pub(super) fn open(path: &Path) -> Result<Self, FilesError> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let fd = openat(AT_FDCWD, path, flags, Mode::empty());
        Ok(Self {
            fd: fd
                .map_err(io::Error::from)
                .map_err(host("open the directory", path))?,
            path: path.to_owned(),
        })
    }

    /// The path of an entry, for messages.
    pub(super) fn path_of(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Opens a directory in this one, and creates it if it is missing. The flag is true if it was
    /// created.
    pub(super) fn directory(&self, name: &str) -> Result<(Self, bool), FilesError> {
        let path = self.path_of(name);
        let created = match mkdirat(&self.fd, name, Mode::S_IRWXU) {
            Ok(()) => true,
            Err(Errno::EEXIST) => false,
            Err(error) => return Err(host("create the directory", path)(error.into())),
        };
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        match openat(&self.fd, name, flags, Mode::empty()) {
            Ok(fd) => Ok((Self { fd, path }, created)),
            Err(error) => Err(host("open the directory", path)(error.into())),
        }
    }

    /// Sets this directory's mode and modification time.
    pub(super) fn finish(&self, mode: u32, mtime: Option<u32>) -> Result<(), FilesError> {
        set(&self.fd, mode, mtime).map_err(host("set mode and time of", &self.path))
    }

    /// Creates a symbolic link, replacing an existing file or link.
    pub(super) fn link(&self, name: &str, target: &str) -> Result<(), FilesError> {
        let path = self.path_of(name);
        let temporary = temporary_name();
        let made = symlinkat(target, &self.fd, temporary.as_str());
        made.map_err(io::Error::from)
            .map_err(host("create the link", &path))?;
        let moved = renameat(&self.fd, temporary.as_str(), &self.fd, name);
        moved.map_err(|error| {
            // The temporary link is ours and useless now.
            let _ = unlinkat(&self.fd, temporary.as_str(), UnlinkatFlags::NoRemoveDir);
            host("create the link", path)(error.into())
        })
    }

    /// Creates a file that appears under its name once it is complete.
    pub(super) fn draft(self: &Arc<Self>, name: &str) -> Result<(Draft, File), FilesError> {
        let temporary = temporary_name();
        let flags =
            OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let mode = Mode::S_IRUSR | Mode::S_IWUSR;
        let fd = openat(&self.fd, temporary.as_str(), flags, mode)
            .map_err(io::Error::from)
            .map_err(host("create", self.path_of(name)))?;
        let draft = Draft {
            directory: Arc::clone(self),
            name: name.to_owned(),
            temporary: Some(temporary),
        };
        Ok((draft, File::from(fd)))
    }
}

fn temporary_name() -> String {
    format!(".fleetbox-{}.part", uuid::Uuid::new_v4().simple())
}

fn set(fd: &OwnedFd, mode: u32, mtime: Option<u32>) -> io::Result<()> {
    fchmod(
        fd,
        Mode::from_bits_truncate((mode & TAKEN) as nix::libc::mode_t),
    )?;
    if let Some(seconds) = mtime {
        let time = TimeSpec::new(seconds.into(), 0);
        futimens(fd, &time, &time)?;
    }
    Ok(())
}

/// A file that is being written. If it is dropped before it is complete, it is removed.
#[derive(Debug)]
pub(super) struct Draft {
    directory: Arc<HostDir>,
    name: String,
    temporary: Option<String>,
}

impl Draft {
    /// Its final path, for messages.
    pub(super) fn path(&self) -> PathBuf {
        self.directory.path_of(&self.name)
    }

    /// Gives the file its mode, time and name, replacing an existing file or link.
    pub(super) fn complete(
        mut self,
        file: File,
        mode: u32,
        mtime: Option<u32>,
    ) -> Result<(), FilesError> {
        let path = self.path();
        set(&file.into(), mode, mtime).map_err(host("set mode and time of", &path))?;
        if let Some(temporary) = &self.temporary {
            let fd = &self.directory.fd;
            renameat(fd, temporary.as_str(), fd, self.name.as_str())
                .map_err(io::Error::from)
                .map_err(host("write", path))?;
        }
        self.temporary = None;
        Ok(())
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if let Some(temporary) = &self.temporary {
            let fd = &self.directory.fd;
            let _ = unlinkat(fd, temporary.as_str(), UnlinkatFlags::NoRemoveDir);
        }
    }
}
