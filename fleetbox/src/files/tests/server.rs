//! An SSH server in this process whose SFTP subsystem serves a directory, or lies.

use std::collections::HashMap;
use std::fs::{self, File, Metadata};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _, symlink};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use russh::server::{self, Auth, Msg, Session};
use russh::{Channel, ChannelId};
use russh_sftp::protocol::{
    Attrs, Data, File as Named, FileAttributes, Handle, Name, OpenFlags, Packet, Status,
    StatusCode, Version,
};

use crate::files::names;
use crate::files::sftp::Sftp;
use crate::model::keys::Keypair;
use crate::ssh::{Client, Target};

/// What the server does other than serve its directory.
#[derive(Debug, Clone, Default)]
pub(super) struct Lies {
    /// Entries of every directory: name, mode with type.
    pub(super) listing: Option<Vec<(String, u32)>>,
    /// Size that files are said to have.
    pub(super) size: Option<u64>,
    /// Maximum bytes of an answer to a read.
    pub(super) short: Option<usize>,
    /// More bytes than were asked for.
    pub(super) excess: bool,
    /// Files have no end.
    pub(super) endless: bool,
    /// The disk is full after so many bytes.
    pub(super) full: Option<u64>,
    /// Renames only to names that are free, as without OpenSSH's extension.
    pub(super) no_posix_rename: bool,
    /// Files cannot be created, as in /proc.
    pub(super) no_new_files: bool,
}

pub(super) struct Server {
    pub(super) root: PathBuf,
    pub(super) lies: Lies,
    /// Bytes that were written.
    pub(super) written: Arc<AtomicU64>,
}

impl Server {
    pub(super) fn new(root: impl Into<PathBuf>) -> Self {
        Self {
            root: root.into(),
            lies: Lies::default(),
            written: Arc::default(),
        }
    }

    pub(super) fn lying(root: impl Into<PathBuf>, lies: Lies) -> Self {
        Self {
            lies,
            ..Self::new(root)
        }
    }

    /// A session with it, over SSH.
    pub(super) async fn session(&self) -> Sftp {
        let host = Keypair::generate("host").unwrap();
        let user = Keypair::generate("user").unwrap();
        let target = Target {
            user: "fleetbox".into(),
            key: user,
            host_key: host.public(),
        };
        let config = Arc::new(server::Config {
            keys: vec![host.private().as_ref().clone()],
            auth_rejection_time: Duration::ZERO,
            ..server::Config::default()
        });
        // Ample: see the SSH client's tests.
        let (ours, theirs) = tokio::io::duplex(64 << 20);
        let shell = Shell {
            channels: HashMap::new(),
            root: self.root.clone(),
            lies: self.lies.clone(),
            written: Arc::clone(&self.written),
        };
        tokio::spawn(async move {
            if let Ok(session) = server::run_stream(config, theirs, shell).await {
                let _ = session.await;
            }
        });
        let client = Client::connect(ours, &target).await.unwrap();
        let stream = client.sftp(false).await.unwrap();
        // The connection lives as long as the channel's stream is used.
        tokio::spawn(async move {
            while !client.is_closed() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        });
        Sftp::start(stream).await.unwrap()
    }
}

struct Shell {
    channels: HashMap<ChannelId, Channel<Msg>>,
    root: PathBuf,
    lies: Lies,
    written: Arc<AtomicU64>,
}

impl server::Handler for Shell {
    type Error = russh::Error;

    async fn auth_publickey(
        &mut self,
        _: &str,
        _: server::VerifiedPublicKey<'_>,
    ) -> Result<Auth, Self::Error> {
        Ok(Auth::Accept)
    }

    async fn channel_open_session(
        &mut self,
        channel: Channel<Msg>,
        reply: server::ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), Self::Error> {
        self.channels.insert(channel.id(), channel);
        reply.accept().await;
        Ok(())
    }

    async fn subsystem_request(
        &mut self,
        id: ChannelId,
        name: &str,
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        let (true, Some(channel)) = (name == "sftp", self.channels.remove(&id)) else {
            return session.channel_failure(id);
        };
        session.channel_success(id)?;
        let files = Files {
            root: self.root.clone(),
            lies: self.lies.clone(),
            written: Arc::clone(&self.written),
            open: HashMap::new(),
            next: 0,
        };
        // The same translation as on our side, since this server has names as text too.
        let stream = names::over(channel.into_stream(), 1 << 20);
        russh_sftp::server::run(stream, files).await;
        Ok(())
    }
}

enum Open {
    File(File),
    Directory(Option<Vec<Named>>),
}

struct Files {
    root: PathBuf,
    lies: Lies,
    written: Arc<AtomicU64>,
    open: HashMap<String, Open>,
    next: u32,
}

type Reply<T> = Result<T, StatusCode>;

fn code(error: std::io::Error) -> StatusCode {
    match error.kind() {
        std::io::ErrorKind::NotFound => StatusCode::NoSuchFile,
        std::io::ErrorKind::PermissionDenied => StatusCode::PermissionDenied,
        _ => StatusCode::Failure,
    }
}

fn done(id: u32) -> Status {
    Status {
        id,
        status_code: StatusCode::Ok,
        error_message: String::new(),
        language_tag: String::new(),
    }
}

fn described(metadata: &Metadata) -> FileAttributes {
    FileAttributes {
        size: Some(metadata.len()),
        uid: Some(metadata.uid()),
        gid: Some(metadata.gid()),
        permissions: Some(metadata.mode()),
        atime: Some(metadata.atime() as u32),
        mtime: Some(metadata.mtime() as u32),
        ..FileAttributes::empty()
    }
}

impl Files {
    fn at(&self, path: &str) -> PathBuf {
        self.root.join(names::to_path(path.trim_start_matches('/')))
    }

    fn keep(&mut self, id: u32, open: Open) -> Handle {
        self.next += 1;
        let handle = self.next.to_string();
        self.open.insert(handle.clone(), open);
        Handle { id, handle }
    }

    fn file(&self, handle: &str) -> Reply<&File> {
        match self.open.get(handle) {
            Some(Open::File(file)) => Ok(file),
            _ => Err(StatusCode::Failure),
        }
    }

    fn attributes(&self, metadata: &Metadata) -> FileAttributes {
        let mut attributes = described(metadata);
        if let (Some(size), true) = (self.lies.size, metadata.is_file()) {
            attributes.size = Some(size);
        }
        attributes
    }

    fn set(&self, file: &File, attributes: &FileAttributes) -> Reply<()> {
        if let Some(mode) = attributes.permissions {
            let permissions = fs::Permissions::from_mode(mode);
            file.set_permissions(permissions).map_err(code)?;
        }
        if let Some(size) = attributes.size {
            file.set_len(size).map_err(code)?;
        }
        if let Some(seconds) = attributes.mtime {
            let time = std::time::UNIX_EPOCH + Duration::from_secs(seconds.into());
            file.set_modified(time).map_err(code)?;
        }
        Ok(())
    }
}

impl russh_sftp::server::Handler for Files {
    type Error = StatusCode;

    fn unimplemented(&self) -> StatusCode {
        StatusCode::OpUnsupported
    }

    async fn init(&mut self, _: u32, _: HashMap<String, String>) -> Reply<Version> {
        let mut version = Version::new();
        if !self.lies.no_posix_rename {
            let name = "posix-rename@openssh.com".to_owned();
            version.extensions.insert(name, "1".to_owned());
        }
        Ok(version)
    }

    async fn open(
        &mut self,
        id: u32,
        name: String,
        flags: OpenFlags,
        attributes: FileAttributes,
    ) -> Reply<Handle> {
        let path = self.at(&name);
        if self.lies.no_new_files && !path.exists() {
            return Err(StatusCode::PermissionDenied);
        }
        let file = fs::OpenOptions::from(flags).open(&path).map_err(code)?;
        if file.metadata().map_err(code)?.is_dir() {
            return Err(StatusCode::Failure);
        }
        self.set(&file, &attributes)?;
        Ok(self.keep(id, Open::File(file)))
    }

    async fn close(&mut self, id: u32, handle: String) -> Reply<Status> {
        match self.open.remove(&handle) {
            Some(_) => Ok(done(id)),
            None => Err(StatusCode::Failure),
        }
    }

    async fn read(&mut self, id: u32, handle: String, offset: u64, len: u32) -> Reply<Data> {
        if self.lies.endless {
            let data = vec![b'x'; len as usize];
            return Ok(Data { id, data });
        }
        let mut data = vec![0; self.lies.short.unwrap_or(usize::MAX).min(len as usize)];
        let n = self
            .file(&handle)?
            .read_at(&mut data, offset)
            .map_err(code)?;
        if n == 0 {
            return Err(StatusCode::Eof);
        }
        data.truncate(n);
        if self.lies.excess {
            data.resize(len as usize + 1, b'x');
        }
        Ok(Data { id, data })
    }

    async fn write(
        &mut self,
        id: u32,
        handle: String,
        offset: u64,
        data: Vec<u8>,
    ) -> Reply<Status> {
        let len = data.len() as u64;
        let before = self.written.fetch_add(len, Ordering::Relaxed);
        if self.lies.full.is_some_and(|full| before + len > full) {
            return Err(StatusCode::Failure);
        }
        self.file(&handle)?
            .write_all_at(&data, offset)
            .map_err(code)?;
        Ok(done(id))
    }

    async fn lstat(&mut self, id: u32, path: String) -> Reply<Attrs> {
        let metadata = fs::symlink_metadata(self.at(&path)).map_err(code)?;
        let attrs = self.attributes(&metadata);
        Ok(Attrs { id, attrs })
    }

    async fn stat(&mut self, id: u32, path: String) -> Reply<Attrs> {
        let metadata = fs::metadata(self.at(&path)).map_err(code)?;
        let attrs = self.attributes(&metadata);
        Ok(Attrs { id, attrs })
    }

    async fn fstat(&mut self, id: u32, handle: String) -> Reply<Attrs> {
        let metadata = self.file(&handle)?.metadata().map_err(code)?;
        let attrs = self.attributes(&metadata);
        Ok(Attrs { id, attrs })
    }

    async fn setstat(&mut self, id: u32, path: String, attrs: FileAttributes) -> Reply<Status> {
        let file = File::open(self.at(&path)).map_err(code)?;
        self.set(&file, &attrs)?;
        Ok(done(id))
    }

    async fn fsetstat(&mut self, id: u32, handle: String, attrs: FileAttributes) -> Reply<Status> {
        self.set(self.file(&handle)?, &attrs)?;
        Ok(done(id))
    }

    async fn opendir(&mut self, id: u32, path: String) -> Reply<Handle> {
        let entries = match &self.lies.listing {
            Some(entries) => entries
                .iter()
                .map(|(name, mode)| {
                    Named::new(
                        name,
                        FileAttributes {
                            permissions: Some(*mode),
                            ..FileAttributes::empty()
                        },
                    )
                })
                .collect(),
            None => fs::read_dir(self.at(&path))
                .map_err(code)?
                .map(|entry| {
                    let entry = entry.unwrap();
                    let metadata = entry.metadata().unwrap();
                    let name = names::to_text(entry.file_name().as_bytes());
                    Named::new(name, described(&metadata))
                })
                .chain([".", ".."].map(Named::dummy))
                .collect(),
        };
        Ok(self.keep(id, Open::Directory(Some(entries))))
    }

    async fn readdir(&mut self, id: u32, handle: String) -> Reply<Name> {
        match self.open.get_mut(&handle) {
            Some(Open::Directory(entries)) => match entries.take() {
                Some(files) => Ok(Name { id, files }),
                None => Err(StatusCode::Eof),
            },
            _ => Err(StatusCode::Failure),
        }
    }

    async fn remove(&mut self, id: u32, path: String) -> Reply<Status> {
        fs::remove_file(self.at(&path)).map_err(code)?;
        Ok(done(id))
    }

    async fn mkdir(&mut self, id: u32, path: String, _: FileAttributes) -> Reply<Status> {
        fs::create_dir(self.at(&path)).map_err(code)?;
        Ok(done(id))
    }

    async fn readlink(&mut self, id: u32, path: String) -> Reply<Name> {
        let target = fs::read_link(self.at(&path)).map_err(code)?;
        let files = vec![Named::dummy(names::to_text(target.as_os_str().as_bytes()))];
        Ok(Name { id, files })
    }

    /// OpenSSH's order: the target comes first.
    async fn symlink(&mut self, id: u32, target: String, link: String) -> Reply<Status> {
        symlink(names::to_path(&target), self.at(&link)).map_err(code)?;
        Ok(done(id))
    }

    async fn realpath(&mut self, id: u32, path: String) -> Reply<Name> {
        let root = self.root.canonicalize().map_err(code)?;
        let real = self.at(&path).canonicalize().map_err(code)?;
        let below = real.strip_prefix(root).map_err(|_| StatusCode::Failure)?;
        let text = format!("/{}", names::to_text(below.as_os_str().as_bytes()));
        Ok(Name {
            id,
            files: vec![Named::dummy(text)],
        })
    }

    async fn rename(&mut self, id: u32, from: String, to: String) -> Reply<Status> {
        if fs::symlink_metadata(self.at(&to)).is_ok() {
            return Err(StatusCode::Failure);
        }
        fs::rename(self.at(&from), self.at(&to)).map_err(code)?;
        Ok(done(id))
    }

    async fn extended(&mut self, id: u32, name: String, data: Vec<u8>) -> Reply<Packet> {
        if name != "posix-rename@openssh.com" || self.lies.no_posix_rename {
            return Err(StatusCode::OpUnsupported);
        }
        let string = |data: &[u8]| {
            let len = u32::from_be_bytes(*data.first_chunk().unwrap()) as usize;
            String::from_utf8(data[4..4 + len].to_vec()).unwrap()
        };
        let from = string(&data);
        let to = string(&data[4 + from.len()..]);
        fs::rename(self.at(&from), self.at(&to)).map_err(code)?;
        Ok(Packet::Status(done(id)))
    }
}
