//! Files to and from a guest, over SFTP (draft-ietf-secsh-filexfer-02, version 3) on the VM's SSH
//! connection.
//!
//! ```no_run
//! # async fn example(vm: fleetbox::Vm) -> fleetbox::Result<()> {
//! vm.copy_to("target/release/server", "/tmp/").await?;
//! vm.write("config.toml", b"port = 80\n").await?;
//! vm.copy_from("/var/log", "guest-logs").await?;
//! assert_eq!(vm.read("/proc/sys/kernel/ostype").await?, b"Linux\n");
//! # Ok(())
//! # }
//! ```
//!
//! A destination is the copy's own path; one that ends in `/` is a directory that the copy goes
//! into under its source's name. Directories are copied with all that is in them, into one that
//! exists too. Permission bits, modification times (in whole seconds) and symbolic links are
//! kept; owners, hard links and holes are not, and set-user-id bits never come to this host. A
//! symbolic link given as the source is followed.
//!
//! Paths in the guest that do not begin with `/` are below the user's home directory.

pub(crate) mod download;
mod hostdir;
mod meter;
pub(crate) mod sftp;
pub(crate) mod upload;
pub(crate) mod walk;

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use crate::util::task::ShuttingDown;
use crate::util::text::printable;

/// Maximum bytes that [`Vm::read`](crate::Vm::read) returns unless told otherwise.
pub const READ_LIMIT: u64 = 64 << 20;
/// Maximum bytes that [`Vm::copy_from`](crate::Vm::copy_from) writes to this host unless told
/// otherwise.
pub const COPY_LIMIT: u64 = 64 << 30;
/// Maximum number of files, directories and links of one copy.
pub const ENTRY_LIMIT: usize = 1_000_000;
/// Maximum depth of directories in a copy.
pub const DEPTH_LIMIT: usize = 128;

/// Why files could not be copied.
///
/// ```no_run
/// # async fn example(vm: fleetbox::Vm) -> fleetbox::Result<()> {
/// use fleetbox::Error;
/// use fleetbox::files::{FilesError, GuestReason};
///
/// match vm.read("/etc/app.conf").await {
///     Ok(bytes) => println!("{} bytes", bytes.len()),
///     Err(Error::Files(FilesError::Guest { why: GuestReason::NotFound, .. })) => println!("none"),
///     Err(error) => return Err(error),
/// }
/// # Ok(()) }
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FilesError {
    /// Nothing was copied.
    #[error(transparent)]
    ShuttingDown(#[from] ShuttingDown),
    /// Something failed on this host.
    #[error("cannot {action} {} on this host: {source}", shown(&path.to_string_lossy()))]
    Host {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// Something failed in the guest.
    #[error("cannot {action} {path} in the guest: {why}")]
    Guest {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: String,
        /// Why it failed.
        why: GuestReason,
    },
    /// A path that cannot be used.
    #[error("{path:?} cannot be copied or written: {why}")]
    Path {
        /// The path.
        path: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A listing of the guest's that would write outside of the destination, or nowhere.
    #[error(
        "the guest's directory {directory} has an entry {name:?}, which {why}; the copy was stopped there"
    )]
    Entry {
        /// The directory in the guest.
        directory: String,
        /// The entry.
        name: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// Neither file nor directory nor link.
    #[error("{side} {path} is {kind}, which is not copied; copy what is beside it, or remove it")]
    Special {
        /// Where it is.
        side: Side,
        /// The file.
        path: String,
        /// What it is.
        kind: &'static str,
    },
    /// More than is taken from a guest.
    #[error(
        "{path} in the guest has more than {limit} bytes, which is the limit; raise it by FileOptions::limit"
    )]
    TooLarge {
        /// The file with which the limit was passed.
        path: String,
        /// The limit in bytes.
        limit: u64,
    },
    /// More entries than are copied at once.
    #[error("{path} has more than {ENTRY_LIMIT} files below it; copy its parts one by one")]
    TooMany {
        /// The directory.
        path: String,
    },
    /// Directories below each other without end.
    #[error(
        "{path} has more than {DEPTH_LIMIT} directories within each other; copy its parts one by one"
    )]
    TooDeep {
        /// The directory.
        path: String,
    },
    /// The SFTP server does not start, or speaks another protocol.
    #[error("the guest's SFTP server cannot be used: {why}")]
    Server {
        /// Why.
        why: String,
    },
}

/// Where a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// This host.
    Host,
    /// The guest.
    Guest,
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Host => "on this host,",
            Self::Guest => "in the guest,",
        })
    }
}

/// Why the guest did not do what it was asked for.
///
/// ```no_run
/// # async fn example(vm: fleetbox::Vm) -> fleetbox::Result<()> {
/// use fleetbox::Error;
/// use fleetbox::files::{FileOptions, FilesError, GuestReason};
///
/// let text = match vm.read("/etc/shadow").await {
///     Err(Error::Files(FilesError::Guest { why: GuestReason::PermissionDenied, .. })) => {
///         vm.read_with("/etc/shadow", &FileOptions::new().as_root()).await?
///     }
///     read => read?,
/// };
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum GuestReason {
    /// `SSH_FX_NO_SUCH_FILE`: it, or a directory on the way to it, does not exist.
    NotFound,
    /// `SSH_FX_PERMISSION_DENIED`.
    PermissionDenied,
    /// It is a directory, and a file was meant.
    IsDirectory,
    /// It exists and is no directory, and one was meant.
    NotDirectory,
    /// It did not answer for a minute.
    Silent,
    /// The connection was lost.
    Lost,
    /// What the guest says.
    Other(String),
}

impl fmt::Display for GuestReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotFound => "no such file or directory",
            Self::PermissionDenied => {
                "permission denied for the user who logs in; FileOptions::as_root does it as root"
            }
            Self::IsDirectory => {
                "it is a directory; end the path with '/' to copy into it under the source's name"
            }
            Self::NotDirectory => "it exists and is no directory",
            Self::Silent => "the guest has not answered for a minute; it may hang",
            Self::Lost => "the connection was lost; the guest may have stopped",
            Self::Other(text) => text,
        })
    }
}

/// How far a copy is, for [`FileOptions::progress`].
///
/// ```no_run
/// # async fn example(vm: fleetbox::Vm) -> fleetbox::Result<()> {
/// use fleetbox::files::FileOptions;
///
/// let options = FileOptions::new().progress(|at| match at.total {
///     Some(total) => eprintln!("{}: {} of {total} bytes", at.path, at.bytes),
///     None => eprintln!("{}: {} bytes", at.path, at.bytes),
/// });
/// vm.copy_from_with("/var/log", "logs", &options).await?;
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileProgress {
    /// The file that is being copied, relative to the source: empty for a source that is a file.
    /// It is safe to print, and cut where it is long.
    pub path: String,
    /// Bytes copied until now, of all files.
    pub bytes: u64,
    /// Bytes of all files, where that is known: not for directories of the guest.
    pub total: Option<u64>,
    /// Files that are complete.
    pub files: u64,
}

/// What was copied.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Copied {
    /// Regular files.
    pub files: u64,
    /// Directories, the source itself included.
    pub directories: u64,
    /// Symbolic links.
    pub links: u64,
    /// Bytes of the files.
    pub bytes: u64,
}

type Listener = dyn Fn(&FileProgress) + Send + Sync;

/// How files are copied, read and written.
///
/// ```
/// use fleetbox::files::FileOptions;
/// let options = FileOptions::new()
///     .as_root()
///     .mode(0o755)
///     .progress(|p| eprintln!("{}: {} bytes", p.path, p.bytes));
/// ```
#[derive(Clone, Default)]
pub struct FileOptions {
    pub(crate) as_root: bool,
    limit: Option<u64>,
    mode: Option<u32>,
    progress: Option<Arc<Listener>>,
}

impl fmt::Debug for FileOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FileOptions")
            .field("as_root", &self.as_root)
            .field("limit", &self.limit)
            .field("mode", &self.mode)
            .finish_non_exhaustive()
    }
}

impl FileOptions {
    /// As the methods without options do it.
    pub fn new() -> Self {
        Self::default()
    }

    /// Works in the guest as root, through sudo, rather than as the user who logs in. The guest
    /// must have OpenSSH's `sftp-server`.
    #[must_use]
    pub fn as_root(mut self) -> Self {
        self.as_root = true;
        self
    }

    /// Maximum bytes to take from the guest ([`READ_LIMIT`] for a read and [`COPY_LIMIT`] for a copy
    /// if not given). It does not apply to what goes to the guest.
    #[must_use]
    pub fn limit(mut self, bytes: u64) -> Self {
        self.limit = Some(bytes);
        self
    }

    /// Permission bits of a file that [`Vm::write_with`](crate::Vm::write_with) writes: if not
    /// given, `0o644` for a new file, and an existing one's stay. Copies have those of their
    /// source.
    #[must_use]
    pub fn mode(mut self, mode: u32) -> Self {
        self.mode = Some(mode & 0o7777);
        self
    }

    /// Who is told how far a copy is: at its start, at most every 256 KiB, and at the end of each
    /// file. It is called on the thread that copies, so it should be quick.
    #[must_use]
    pub fn progress(mut self, listener: impl Fn(&FileProgress) + Send + Sync + 'static) -> Self {
        self.progress = Some(Arc::new(listener));
        self
    }
}

/// A path as SFTP takes it: the server begins in the user's home directory, and knows no `~`.
pub(crate) fn guest_path(path: &str) -> Result<String, FilesError> {
    let why = if path.is_empty() {
        "it is empty"
    } else if path.contains('\0') {
        "it has a zero byte"
    } else {
        return Ok(match path.strip_prefix("~/") {
            Some("") => "./".to_owned(),
            Some(rest) => format!("./{}", rest.trim_start_matches('/')),
            None if path == "~" => ".".to_owned(),
            None => path.to_owned(),
        });
    };
    Err(FilesError::Path {
        path: path.to_owned(),
        why,
    })
}

/// A name from the guest as it may be shown on a terminal, cut where it is long.
fn shown(text: &str) -> String {
    let clean = printable(text.as_bytes()).replace(['\n', '\t'], " ");
    match clean.char_indices().nth(400) {
        Some((at, _)) => format!("{}…", clean.get(..at).unwrap_or_default()),
        None => clean,
    }
}

fn host(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> FilesError {
    let path = path.into();
    move |source| FilesError::Host {
        action,
        path,
        source,
    }
}

#[cfg(test)]
mod tests;
