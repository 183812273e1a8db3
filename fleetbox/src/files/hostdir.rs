//! Directories on this host that receive files from a guest.
//!
//! Every name is looked up below an open directory, and symbolic links are not followed, not even in the path of the
//! destination. So a guest that sends a link, and then a file below it, cannot reach anything else, in the same copy or
//! in a later one.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, openat, readlinkat, renameat};
use nix::sys::stat::{Mode, fchmod, futimens, mkdirat};
use nix::sys::time::TimeSpec;
use nix::unistd::{UnlinkatFlags, symlinkat, unlinkat};

use super::{FilesError, host, names, shown};

/// Permission bits that are accepted from a guest. Set-user-ID, set-group-ID and sticky bits are
/// dropped.
const TAKEN: u32 = 0o777;

/// An open directory.
#[derive(Debug)]
pub(super) struct HostDir {
    fd: OwnedFd,
    // Only for messages.
    path: PathBuf,
    /// Permission bits that new files do not get, whatever the guest says.
    umask: u32,
}

/// Checks the name of a directory entry from a guest.
///
/// # Errors
/// [`FilesError::Entry`].
pub(super) fn check_name(directory: &str, name: &str) -> Result<(), FilesError> {
    let bytes = names::to_bytes(name);
    let why = if bytes.is_empty() {
        "is empty"
    } else if matches!(&*bytes, b"." | b"..") {
        "is not a real entry"
    } else if bytes.contains(&b'/') {
        "has a '/'"
    } else if bytes.contains(&0) {
        "has a zero byte"
    } else if bytes.len() > 255 {
        "is longer than 255 bytes"
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
    /// Opens a directory that the user named. No link in its path is followed, because an earlier copy from a guest may
    /// have made it. The exception are links in the root directory, such as `/tmp` on some systems: they are the
    /// system's.
    pub(super) fn open(path: &Path) -> Result<Self, FilesError> {
        let failed = |error: Errno| host("open the directory", path)(error.into());
        let through = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let start = if path.is_absolute() { "/" } else { "." };
        let mut fd = openat(AT_FDCWD, start, through, Mode::empty()).map_err(failed)?;
        let mut so_far = PathBuf::new();
        for component in path.components() {
            let in_root = so_far == Path::new("/");
            so_far.push(component);
            if matches!(component, Component::RootDir | Component::CurDir) {
                continue;
            }
            let name = component.as_os_str();
            let flags = if in_root {
                through
            } else {
                through | OFlag::O_NOFOLLOW
            };
            fd = match openat(&fd, name, flags, Mode::empty()) {
                Ok(fd) => fd,
                Err(Errno::ENOTDIR | Errno::ELOOP) if readlinkat(&fd, name).is_ok() => {
                    return Err(FilesError::Link {
                        path: path.to_owned(),
                        leads_to: so_far.canonicalize().ok(),
                        link: so_far,
                    });
                }
                Err(error) => return Err(failed(error)),
            };
        }
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let fd = openat(&fd, ".", flags, Mode::empty()).map_err(failed)?;
        Ok(Self {
            fd,
            path: path.to_owned(),
            umask: umask(),
        })
    }

    /// The path of an entry, for messages.
    pub(super) fn path_of(&self, name: &str) -> PathBuf {
        self.path.join(names::to_path(name))
    }

    /// Opens a directory in this one, and creates it if it is missing. The flag is true if it was
    /// created.
    pub(super) fn directory(&self, name: &str) -> Result<(Self, bool), FilesError> {
        let path = self.path_of(name);
        let name = names::to_path(name);
        let created = match mkdirat(&self.fd, name.as_os_str(), Mode::S_IRWXU) {
            Ok(()) => true,
            Err(Errno::EEXIST) => false,
            Err(error) => return Err(host("create the directory", path)(error.into())),
        };
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        match openat(&self.fd, name.as_os_str(), flags, Mode::empty()) {
            Ok(fd) => Ok((
                Self {
                    fd,
                    path,
                    umask: self.umask,
                },
                created,
            )),
            Err(Errno::ENOTDIR | Errno::ELOOP)
                if readlinkat(&self.fd, name.as_os_str()).is_ok() =>
            {
                Err(FilesError::Link {
                    link: path.clone(),
                    leads_to: path.canonicalize().ok(),
                    path,
                })
            }
            Err(error) => Err(host("open the directory", path)(error.into())),
        }
    }

    /// Sets this directory's mode and modification time.
    pub(super) fn finish(&self, mode: u32, mtime: Option<u32>) -> Result<(), FilesError> {
        set(&self.fd, mode & !self.umask, mtime).map_err(host("set mode and time of", &self.path))
    }

    /// Creates a symbolic link, replacing an existing file or link.
    pub(super) fn link(&self, name: &str, target: &str) -> Result<(), FilesError> {
        let path = self.path_of(name);
        let temporary = temporary_name();
        let made = symlinkat(&*names::to_path(target), &self.fd, temporary.as_str());
        made.map_err(io::Error::from)
            .map_err(host("create the link", &path))?;
        let moved = renameat(
            &self.fd,
            temporary.as_str(),
            &self.fd,
            names::to_path(name).as_os_str(),
        );
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

/// This process's umask. The system call that reads it also sets it, for all threads.
fn umask() -> u32 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("Umask:"));
    mask.and_then(|mask| u32::from_str_radix(mask.trim(), 8).ok())
        .unwrap_or(0o022)
}

/// A name for a file that is not complete.
pub(super) fn temporary_name() -> String {
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
        let mode = mode & !self.directory.umask;
        set(&file.into(), mode, mtime).map_err(host("set mode and time of", &path))?;
        if let Some(temporary) = &self.temporary {
            let fd = &self.directory.fd;
            let name = names::to_path(&self.name);
            renameat(fd, temporary.as_str(), fd, name.as_os_str())
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
