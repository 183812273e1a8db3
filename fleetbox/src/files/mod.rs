//! Copying files to and from a guest, with SFTP (draft-ietf-secsh-filexfer-02, version 3) over the
//! VM's SSH connection.
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
//! A destination is the path of the copy. If it ends in `/`, it is a directory, and the copy is
//! placed in it under its source's name. Directories are copied with everything in them, and may be
//! copied onto an existing directory. A copy keeps names, which may have any bytes, permission bits,
//! modification times (in whole seconds), symbolic links and holes. It does not keep owners and hard
//! links. On this host, a copy never gets set-user-ID bits, and no bits that the umask forbids. A
//! symbolic link given as the source is followed.
//!
//! A file appears under its name when it is complete, on both sides.
//!
//! Guest paths that do not begin with `/` are relative to the user's home directory.

pub(crate) mod download;
mod hostdir;
mod meter;
mod names;
pub(crate) mod sftp;
mod sparse;
pub(crate) mod upload;
pub(crate) mod walk;

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use crate::util::readable::readable_debug;
use crate::util::task::ShuttingDown;
use crate::util::text::printable;

/// Maximum bytes that [`Vm::read`](crate::Vm::read) returns by default.
pub const READ_LIMIT: u64 = 64 << 20;
/// Maximum bytes that [`Vm::copy_from`](crate::Vm::copy_from) writes to this host by default.
pub const COPY_LIMIT: u64 = 64 << 30;
/// Maximum number of files, directories and links in one copy.
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
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum FilesError {
    /// The tokio runtime that made the call is shutting down. Nothing was copied.
    #[error(transparent)]
    ShuttingDown(#[from] ShuttingDown),
    /// An operation failed on this host.
    #[error("cannot {action} {} on this host: {source}", shown(&path.to_string_lossy()))]
    Host {
        /// The operation.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// An operation failed in the guest.
    #[error("cannot {action} {path} in the guest: {why}")]
    Guest {
        /// The operation.
        action: &'static str,
        /// The file.
        path: String,
        /// Why it failed.
        why: GuestReason,
    },
    /// A path is invalid.
    #[error("invalid path {path:?}: {why}")]
    Path {
        /// The path.
        path: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The guest listed an entry with an invalid name, which might write outside the destination.
    #[error(
        "directory {directory} in the guest has an entry {name:?}, which {why}; the copy stopped there"
    )]
    Entry {
        /// The directory in the guest.
        directory: String,
        /// The entry.
        name: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A file is neither a regular file nor a directory nor a link.
    #[error(
        "{side} {path} is {kind}, which cannot be copied; remove it, or copy the other files one by one"
    )]
    Special {
        /// Where it is.
        side: Side,
        /// The file.
        path: String,
        /// What it is.
        kind: &'static str,
    },
    /// The guest sent more bytes than the limit.
    #[error(
        "{path} in the guest exceeds the limit of {limit} bytes; read it with a higher limit, or copy it to a file"
    )]
    TooLarge {
        /// The file that exceeded the limit.
        path: String,
        /// The limit in bytes.
        limit: u64,
    },
    /// A directory has too many entries.
    #[error("{path} contains more than {ENTRY_LIMIT} files; copy its subdirectories one by one")]
    TooMany {
        /// The directory.
        path: String,
    },
    /// Directories are nested too deeply.
    #[error(
        "{path} has directories nested more than {DEPTH_LIMIT} deep; copy its subdirectories one by one"
    )]
    TooDeep {
        /// The directory.
        path: String,
    },
    /// The destination on this host leads through a symbolic link. An earlier copy may have made it, and the guest chose
    /// where it leads.
    #[error(
        "cannot write to {} on this host: {} is a symbolic link, and a copy from a guest follows none, because an earlier copy may have brought it; use the path that it leads to{}",
        shown(&path.to_string_lossy()), shown(&link.to_string_lossy()),
        leads_to.as_ref().map_or_else(String::new, |to| format!(", {}", shown(&to.to_string_lossy())))
    )]
    Link {
        /// The destination.
        path: PathBuf,
        /// The link in it.
        link: PathBuf,
        /// Where the link leads, if it leads anywhere.
        leads_to: Option<PathBuf>,
    },
    /// [`Stop::stop`] ended the copy. Files that were complete stay; the others were removed.
    #[error("the copy was stopped; the files that were complete stay")]
    Stopped,
    /// The guest's SFTP server does not start, or speaks another protocol.
    #[error("cannot use the guest's SFTP server: {why}")]
    Server {
        /// What is wrong with it.
        why: String,
    },
}

readable_debug!(FilesError);

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

/// Why an operation failed in the guest.
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
    /// `SSH_FX_NO_SUCH_FILE`: the file, or a directory in its path, does not exist.
    NotFound,
    /// `SSH_FX_PERMISSION_DENIED`: the user may not do this. [`FileOptions::as_root`] acts as root.
    PermissionDenied,
    /// It is a directory, but a file was expected.
    IsDirectory,
    /// It exists and is not a directory, but a directory was expected.
    NotDirectory,
    /// The guest did not answer for a minute.
    Silent,
    /// The connection was lost.
    Lost,
    /// Another reason, in the guest's words.
    Other(String),
}

impl fmt::Display for GuestReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotFound => "no such file or directory",
            Self::PermissionDenied => {
                "permission denied for the log-in user; root may be permitted (`fleetbox cp --root`)"
            }
            Self::IsDirectory => "it is a directory; add '/' at its end to copy into it",
            Self::NotDirectory => "it exists and is not a directory",
            Self::Silent => "the guest has not answered for a minute; it may hang",
            Self::Lost => "the connection was lost; the guest may have stopped",
            Self::Other(text) => text,
        })
    }
}

/// The state of a copy, for [`FileOptions::progress`].
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
    /// The current file, relative to the source; empty if the source is a file. It is safe to
    /// print, and shortened if it is long.
    pub path: String,
    /// Bytes of all files copied so far.
    pub bytes: u64,
    /// Total bytes of all files, if known. It is not known for directories in the guest.
    pub total: Option<u64>,
    /// Number of files copied completely.
    pub files: u64,
}

/// A summary of what was copied.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CopySummary {
    /// Number of regular files.
    pub files: u64,
    /// Number of directories, including the source itself.
    pub directories: u64,
    /// Number of symbolic links.
    pub links: u64,
    /// Total bytes of the files.
    pub bytes: u64,
}

/// Ends copies before they are complete, from another task or thread. Clones stop the same copies.
///
/// Dropping a copy's future also ends it, but then an unfinished file can stay in the guest, with a name that begins with
/// `.fleetbox-`.
///
/// ```no_run
/// # async fn example(vm: fleetbox::Vm) -> fleetbox::Result<()> {
/// use fleetbox::files::{FileOptions, Stop};
///
/// let stop = Stop::new();
/// let options = FileOptions::new().stop(&stop);
/// let copy = vm.copy_to_with("disk.img", "/var/tmp/", &options);
/// tokio::spawn(async move {
///     tokio::time::sleep(std::time::Duration::from_secs(60)).await;
///     stop.stop();
/// });
/// copy.await?; // Error::Files(FilesError::Stopped) after a minute
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
pub struct Stop(Arc<tokio::sync::watch::Sender<bool>>);

impl Default for Stop {
    fn default() -> Self {
        Self::new()
    }
}

impl Stop {
    /// Stops nothing yet.
    pub fn new() -> Self {
        Self(Arc::new(tokio::sync::watch::Sender::new(false)))
    }

    /// Ends the copies, and those that begin later.
    pub fn stop(&self) {
        self.0.send_replace(true);
    }

    /// Waits until [`Stop::stop`] is called.
    async fn stopped(&self) {
        // The sender is in `self`, so this cannot fail.
        let _ = self.0.subscribe().wait_for(|stop| *stop).await;
    }
}

type Listener = dyn Fn(&FileProgress) + Send + Sync;

/// Options for copying, reading and writing files.
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
    stop: Option<Stop>,
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
    /// The options of the methods without options.
    pub fn new() -> Self {
        Self::default()
    }

    /// Acts as root in the guest, with sudo, rather than as the user who logs in. The guest must
    /// have OpenSSH's `sftp-server`.
    #[must_use]
    pub fn as_root(mut self) -> Self {
        self.as_root = true;
        self
    }

    /// Maximum bytes to take from the guest. The default is [`READ_LIMIT`] for a read and [`COPY_LIMIT`] for a copy.
    /// There is no limit in the other direction.
    #[must_use]
    pub fn limit(mut self, bytes: u64) -> Self {
        self.limit = Some(bytes);
        self
    }

    /// Permission bits of a file that [`Vm::write_with`](crate::Vm::write_with) writes. By default
    /// a new file gets `0o644`, and an existing file keeps its bits. Copies always have the bits of
    /// their source.
    #[must_use]
    pub fn mode(mut self, mode: u32) -> Self {
        self.mode = Some(mode & 0o7777);
        self
    }

    /// Lets `stop` end the copy. Its unfinished files are removed on both sides, and the error is
    /// [`FilesError::Stopped`].
    #[must_use]
    pub fn stop(mut self, stop: &Stop) -> Self {
        self.stop = Some(stop.clone());
        self
    }

    /// Waits until the copy shall end.
    async fn stopped(&self) {
        match &self.stop {
            Some(stop) => stop.stopped().await,
            None => std::future::pending().await,
        }
    }

    /// Receives the progress of a copy: at its start, at most every 256 KiB, and at the end of each
    /// file. The function is called on the thread that copies, so it should be fast.
    #[must_use]
    pub fn progress(mut self, listener: impl Fn(&FileProgress) + Send + Sync + 'static) -> Self {
        self.progress = Some(Arc::new(listener));
        self
    }
}

/// Converts a path for SFTP. The server starts in the user's home directory and does not expand
/// `~`.
pub(crate) fn guest_path(path: &str) -> Result<String, FilesError> {
    let text = |name: &str| names::to_text(name.as_bytes());
    let why = if path.is_empty() {
        "it is empty"
    } else if path.contains('\0') {
        "it has a zero byte"
    } else {
        return Ok(match path.strip_prefix("~/") {
            Some("") => "./".to_owned(),
            Some(rest) => format!("./{}", text(rest.trim_start_matches('/'))),
            None if path == "~" => ".".to_owned(),
            None => text(path),
        });
    };
    Err(FilesError::Path {
        path: path.to_owned(),
        why,
    })
}

/// A name from the guest, made safe for a terminal and shortened if it is long.
fn shown(text: &str) -> String {
    let clean = printable(&names::to_bytes(text)).replace(['\n', '\t'], " ");
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
