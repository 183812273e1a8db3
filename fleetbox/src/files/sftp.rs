//! An SFTP session. Errors name the file, and many requests can be in flight.

use futures::StreamExt as _;
use futures::stream::{FuturesOrdered, FuturesUnordered};
use russh_sftp::client::error::Error as Failure;
use russh_sftp::client::rawsession::Limits;
use russh_sftp::client::{Config, RawSftpSession};
use russh_sftp::extensions::{HardlinkExtension, LIMITS};
use russh_sftp::protocol::{FileAttributes, OpenFlags, Packet, StatusCode};
use tokio::io::{AsyncRead, AsyncWrite};

use super::hostdir::check_name;
use super::meter::Meter;
use super::names;
use super::sparse::{Piece, Sink, Source};
use super::{FilesError, GuestReason, shown};

/// How long the guest may take to answer a request, including the requests queued before it.
const PATIENCE_SECS: u64 = 60;
/// Bytes that every server can read or write at once (section 3 of the draft).
const CHUNK: u32 = 32 << 10;
/// Maximum bytes at once with a server that allows more. Larger requests are not faster.
const LARGEST_CHUNK: u32 = 128 << 10;
/// Requests in flight for one file.
const WINDOW: usize = 32;
/// Maximum bytes of a packet from the guest.
const PACKET: u32 = 256 << 10;

/// Renames a file over another one. Without it, SFTP's own request fails if there is one (OpenSSH's PROTOCOL, section
/// 4.3). Its data are two paths, as for hard links.
const POSIX_RENAME: &str = "posix-rename@openssh.com";

/// File type bits of a mode (POSIX `S_IFMT`), as SFTP servers send them.
const TYPE: u32 = 0o170_000;

/// The kind of an entry in the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    Directory,
    Link,
    Special(&'static str),
}

impl Kind {
    /// The kind according to the attributes; `None` if the server does not say.
    pub(crate) fn of(attributes: &FileAttributes) -> Option<Self> {
        let mode = attributes.permissions?;
        Some(match mode & TYPE {
            0o100_000 => Self::File,
            0o040_000 => Self::Directory,
            0o120_000 => Self::Link,
            0o010_000 => Self::Special("a named pipe"),
            0o020_000 => Self::Special("a character device"),
            0o060_000 => Self::Special("a block device"),
            0o140_000 => Self::Special("a socket"),
            0 => return None,
            _ => Self::Special("of an unknown kind"),
        })
    }
}

/// Attributes that set only mode and modification time.
pub(crate) fn attributes(mode: u32, mtime: i64) -> FileAttributes {
    // The protocol has 32 bits for seconds.
    let seconds = u32::try_from(mtime.max(0)).unwrap_or(u32::MAX);
    FileAttributes {
        permissions: Some(mode & 0o7777),
        atime: Some(seconds),
        mtime: Some(seconds),
        ..FileAttributes::empty()
    }
}

/// Attributes that set only the mode.
pub(crate) fn with_mode(mode: Option<u32>) -> FileAttributes {
    FileAttributes {
        permissions: mode,
        ..FileAttributes::empty()
    }
}

/// An SFTP session.
pub(crate) struct Sftp {
    raw: RawSftpSession,
    posix_rename: bool,
    read_chunk: u32,
    write_chunk: u32,
}

/// An open file or directory in the guest.
#[derive(Debug, Clone)]
pub(crate) struct Handle(String);

impl Sftp {
    /// Starts a session with the server at the other end of `stream`.
    pub(crate) async fn start<S>(stream: S) -> Result<Self, FilesError>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let config = Config {
            max_packet_len: PACKET,
            request_timeout_secs: PATIENCE_SECS,
            ..Config::default()
        };
        let mut raw = RawSftpSession::new_with_config(names::over(stream, PACKET), config);
        let version = raw.init().await.map_err(|error| FilesError::Server {
            why: match error {
                Failure::UnexpectedBehavior(_) | Failure::IO(_) => {
                    "it ended at once; check that OpenSSH's sftp-server is installed".to_owned()
                }
                error => reason(error).to_string(),
            },
        })?;
        if version.version < 3 {
            return Err(FilesError::Server {
                why: format!(
                    "it speaks version {} of the protocol, but version 3 is needed",
                    version.version
                ),
            });
        }
        let (mut read_chunk, mut write_chunk) = (CHUNK, CHUNK);
        if version.extensions.contains_key(LIMITS)
            && let Ok(limits) = raw.limits().await
        {
            let chunk = |limit: u64| match u32::try_from(limit) {
                Ok(0) => CHUNK,
                Ok(limit) => limit.min(LARGEST_CHUNK),
                Err(_) => LARGEST_CHUNK,
            };
            read_chunk = chunk(limits.max_read_len);
            write_chunk = chunk(limits.max_write_len);
            raw.set_limits(Limits::from(limits));
        }
        Ok(Self {
            raw,
            posix_rename: version.extensions.contains_key(POSIX_RENAME),
            read_chunk,
            write_chunk,
        })
    }

    pub(crate) async fn stat(&self, path: &str) -> Result<FileAttributes, FilesError> {
        let attrs = self.raw.stat(path).await.map_err(failed("inspect", path))?;
        Ok(attrs.attrs)
    }

    pub(crate) async fn lstat(&self, path: &str) -> Result<FileAttributes, FilesError> {
        let attrs = self
            .raw
            .lstat(path)
            .await
            .map_err(failed("inspect", path))?;
        Ok(attrs.attrs)
    }

    pub(crate) async fn set(&self, path: &str, attrs: FileAttributes) -> Result<(), FilesError> {
        let set = self.raw.setstat(path, attrs).await;
        set.map_err(failed("set mode and time of", path))?;
        Ok(())
    }

    /// Creates a directory; false if it already exists.
    pub(crate) async fn make_directory(&self, path: &str, mode: u32) -> Result<bool, FilesError> {
        // Files are written to it before it gets its final mode.
        let attrs = with_mode(Some((mode & 0o777) | 0o700));
        let Err(error) = self.raw.mkdir(path, attrs).await else {
            return Ok(true);
        };
        match self.raw.stat(path).await.map(|s| Kind::of(&s.attrs)) {
            Ok(Some(Kind::Directory)) => Ok(false),
            Ok(_) => Err(FilesError::Guest {
                action: "create the directory",
                path: shown(path),
                why: GuestReason::NotDirectory,
            }),
            Err(_) => Err(failed("create the directory", path)(error)),
        }
    }

    /// Creates a symbolic link, replacing an existing link.
    pub(crate) async fn link(&self, path: &str, target: &str) -> Result<(), FilesError> {
        // OpenSSH takes the target first, which differs from the draft (see its PROTOCOL file,
        // section 4.1). Other servers do the same.
        if self.raw.symlink(target, path).await.is_ok() {
            return Ok(());
        }
        if let Ok(there) = self.raw.lstat(path).await
            && Kind::of(&there.attrs) != Some(Kind::Directory)
        {
            let removed = self.raw.remove(path).await;
            removed.map_err(failed("replace", path))?;
        }
        let made = self.raw.symlink(target, path).await;
        made.map_err(failed("create the link", path))?;
        Ok(())
    }

    pub(crate) async fn link_target(&self, path: &str) -> Result<String, FilesError> {
        let name = self.raw.readlink(path).await;
        let name = name.map_err(failed("read the link", path))?;
        match name.files.into_iter().next() {
            Some(file) => Ok(file.filename),
            None => Err(violation("read the link", path, "it names no target")),
        }
    }

    pub(crate) async fn open_to_read(&self, path: &str) -> Result<Handle, FilesError> {
        let opened = self
            .raw
            .open(path, OpenFlags::READ, FileAttributes::empty())
            .await;
        Ok(Handle(opened.map_err(failed("open", path))?.handle))
    }

    /// Creates a file that must not exist; `None` if it cannot be created.
    pub(crate) async fn create(&self, path: &str, mode: u32) -> Result<Option<Handle>, FilesError> {
        let flags = OpenFlags::WRITE | OpenFlags::CREATE | OpenFlags::EXCLUDE;
        match self.raw.open(path, flags, with_mode(Some(mode))).await {
            Ok(opened) => Ok(Some(Handle(opened.handle))),
            Err(Failure::Status(_)) => Ok(None),
            Err(error) => Err(failed("create", path)(error)),
        }
    }

    /// Renames a file, replacing another one.
    pub(crate) async fn rename(&self, from: &str, to: &str) -> Result<(), FilesError> {
        if self.posix_rename {
            let paths = HardlinkExtension {
                oldpath: from.to_owned(),
                newpath: to.to_owned(),
            };
            let data: Result<Vec<u8>, _> = paths.try_into();
            let data = data.map_err(|error| failed("write", to)(error.into()))?;
            return match self.raw.extended(POSIX_RENAME, data).await {
                Ok(Packet::Status(status)) if status.status_code == StatusCode::Ok => Ok(()),
                Ok(Packet::Status(status)) => Err(failed("write", to)(Failure::Status(status))),
                Ok(_) => Err(violation("write", to, "an answer of the wrong type")),
                Err(error) => Err(failed("write", to)(error)),
            };
        }
        if self.raw.rename(from, to).await.is_ok() {
            return Ok(());
        }
        let removed = self.raw.remove(to).await;
        removed.map_err(failed("replace", to))?;
        let renamed = self.raw.rename(from, to).await;
        renamed.map_err(failed("write", to))?;
        Ok(())
    }

    /// Removes a file.
    pub(crate) async fn remove(&self, path: &str) -> Result<(), FilesError> {
        let removed = self.raw.remove(path).await;
        removed.map_err(failed("remove", path))?;
        Ok(())
    }

    /// The absolute path without links.
    pub(crate) async fn real_path(&self, path: &str) -> Result<String, FilesError> {
        let name = self.raw.realpath(path).await;
        let name = name.map_err(failed("inspect", path))?;
        match name.files.into_iter().next() {
            Some(file) => Ok(file.filename),
            None => Err(violation("inspect", path, "it names no path")),
        }
    }

    /// Opens a file for writing, and truncates it.
    pub(crate) async fn open_to_write(&self, path: &str, mode: u32) -> Result<Handle, FilesError> {
        let flags = OpenFlags::WRITE | OpenFlags::CREATE | OpenFlags::TRUNCATE;
        let error = match self.raw.open(path, flags, with_mode(Some(mode))).await {
            Ok(opened) => return Ok(Handle(opened.handle)),
            Err(error) => error,
        };
        if let Ok(there) = self.raw.stat(path).await
            && Kind::of(&there.attrs) == Some(Kind::Directory)
        {
            return Err(FilesError::Guest {
                action: "write",
                path: shown(path),
                why: GuestReason::IsDirectory,
            });
        }
        Err(failed("open", path)(error))
    }

    pub(crate) async fn attributes_of(
        &self,
        handle: &Handle,
        path: &str,
    ) -> Result<FileAttributes, FilesError> {
        let attrs = self.raw.fstat(handle.0.as_str()).await;
        Ok(attrs.map_err(failed("inspect", path))?.attrs)
    }

    pub(crate) async fn set_open(
        &self,
        handle: &Handle,
        path: &str,
        attrs: FileAttributes,
    ) -> Result<(), FilesError> {
        let set = self.raw.fsetstat(handle.0.as_str(), attrs).await;
        set.map_err(failed("set mode and time of", path))?;
        Ok(())
    }

    pub(crate) async fn close(&self, handle: Handle, path: &str) -> Result<(), FilesError> {
        let closed = self.raw.close(handle.0).await;
        closed.map_err(failed("close", path))?;
        Ok(())
    }

    /// The entries of a directory with their attributes, without `.` and `..`.
    pub(crate) async fn list(
        &self,
        path: &str,
        meter: &Meter,
    ) -> Result<Vec<(String, FileAttributes)>, FilesError> {
        const ACTION: &str = "list";
        let opened = self.raw.opendir(path).await;
        let handle = opened.map_err(failed(ACTION, path))?.handle;
        let mut entries = Vec::new();
        let result = loop {
            match self.raw.readdir(handle.as_str()).await {
                Ok(name) if name.files.is_empty() => {
                    break Err(violation(ACTION, path, "an answer without a name"));
                }
                Ok(name) => {
                    for file in name.files {
                        if file.filename == "." || file.filename == ".." {
                            continue;
                        }
                        meter.entry(path)?;
                        check_name(path, &file.filename)?;
                        entries.push((file.filename, file.attrs));
                    }
                }
                Err(Failure::Status(status)) if status.status_code == StatusCode::Eof => {
                    break Ok(());
                }
                Err(error) => break Err(failed(ACTION, path)(error)),
            }
        };
        self.close(Handle(handle), path).await?;
        result.map(|()| entries)
    }

    /// Writes `source` to an open file that is empty, from its beginning. Holes are not sent. Returns the file's length if
    /// it ends with a hole, and so is still shorter.
    pub(crate) async fn write_from(
        &self,
        handle: &Handle,
        path: &str,
        source: &mut Source<'_>,
        read_failed: impl Fn(std::io::Error) -> FilesError,
        meter: &Meter,
    ) -> Result<Option<u64>, FilesError> {
        let mut writes = FuturesUnordered::new();
        let mut offset = 0;
        let mut ended = false;
        let mut in_hole = false;
        loop {
            while !ended && writes.len() < WINDOW {
                let next = source.next(self.write_chunk as usize).await;
                let at = offset;
                match next.map_err(&read_failed)? {
                    None => ended = true,
                    Some(Piece::Hole(len)) => {
                        in_hole = true;
                        offset += len;
                        meter.bytes(path, len)?;
                    }
                    Some(Piece::Data(bytes)) => {
                        in_hole = false;
                        let count = bytes.len() as u64;
                        offset += count;
                        writes.push(async move {
                            let written = self.raw.write(handle.0.as_str(), at, bytes).await;
                            written.map_err(failed("write", path))?;
                            Ok::<_, FilesError>(count)
                        });
                    }
                }
            }
            match writes.next().await {
                Some(count) => meter.bytes(path, count?)?,
                None => return Ok(in_hole.then_some(offset)),
            }
        }
    }

    /// Reads all of an open file into `sink`. The server says that it has `expected` bytes, which
    /// may be wrong.
    pub(crate) async fn read_into(
        &self,
        handle: &Handle,
        path: &str,
        expected: u64,
        sink: &mut impl Sink,
        write_failed: impl Fn(std::io::Error) -> FilesError,
        meter: &Meter,
    ) -> Result<(), FilesError> {
        let chunk = self.read_chunk;
        let mut chunks = FuturesOrdered::new();
        let mut next = 0u64;
        loop {
            // If the length is not known (as in /proc), only one request is sent at a time.
            while chunks.len() < WINDOW && (next <= expected || chunks.is_empty()) {
                chunks.push_back(self.read_at(handle, path, next, chunk, expected));
                next = next.saturating_add(u64::from(chunk));
            }
            let Some(bytes) = chunks.next().await else {
                return Ok(());
            };
            let bytes = bytes?;
            let count = bytes.len();
            meter.bytes(path, count as u64)?;
            sink.put(bytes).await.map_err(&write_failed)?;
            if count < chunk as usize {
                return Ok(());
            }
        }
    }

    /// Reads bytes at `offset`. They are fewer than `length` only at the end of the file, which
    /// should be at `expected` unless that is 0.
    async fn read_at(
        &self,
        handle: &Handle,
        path: &str,
        offset: u64,
        length: u32,
        expected: u64,
    ) -> Result<Vec<u8>, FilesError> {
        let mut bytes = Vec::new();
        loop {
            let missing = (length as usize).saturating_sub(bytes.len());
            let at = offset.saturating_add(bytes.len() as u64);
            // Another request would cost a round trip for each small file.
            if missing == 0 || (expected > 0 && at >= expected) {
                return Ok(bytes);
            }
            // At most `length`.
            let wanted = u32::try_from(missing).unwrap_or(length);
            match self.raw.read(handle.0.as_str(), at, wanted).await {
                Ok(data) if data.data.is_empty() || data.data.len() > missing => {
                    let why = "an answer of the wrong length";
                    return Err(violation("read", path, why));
                }
                // Usually the answer is complete and needs no copy.
                Ok(data) if bytes.is_empty() => bytes = data.data,
                Ok(data) => bytes.extend_from_slice(&data.data),
                Err(Failure::Status(status)) if status.status_code == StatusCode::Eof => {
                    return Ok(bytes);
                }
                Err(error) => return Err(failed("read", path)(error)),
            }
        }
    }
}

fn violation(action: &'static str, path: &str, what: &str) -> FilesError {
    FilesError::Guest {
        action,
        path: shown(path),
        why: GuestReason::Other(format!("its SFTP server violated the protocol ({what})")),
    }
}

fn failed(action: &'static str, path: &str) -> impl FnOnce(Failure) -> FilesError {
    move |error| FilesError::Guest {
        action,
        path: shown(path),
        why: reason(error),
    }
}

fn reason(error: Failure) -> GuestReason {
    match error {
        Failure::Status(status) => match status.status_code {
            StatusCode::NoSuchFile => GuestReason::NotFound,
            StatusCode::PermissionDenied => GuestReason::PermissionDenied,
            StatusCode::NoConnection | StatusCode::ConnectionLost => GuestReason::Lost,
            code => {
                let text = shown(&status.error_message);
                let text = if text.is_empty() {
                    code.to_string()
                } else {
                    text
                };
                GuestReason::Other(format!("the guest answered {text:?}"))
            }
        },
        Failure::Timeout => GuestReason::Silent,
        Failure::IO(_) | Failure::UnexpectedBehavior(_) => GuestReason::Lost,
        Failure::Limited(text) => GuestReason::Other(text),
        Failure::UnexpectedPacket => {
            GuestReason::Other("its SFTP server sent an answer of the wrong type".to_owned())
        }
    }
}
