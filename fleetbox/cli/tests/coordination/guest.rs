//! What answers at port 22 of the scripted machine: an SSH server in this process, whose commands run on this host. As
//! OpenSSH's, it passes signals on to a command's process group, and closes the pipes of a command whose channel or
//! connection ends.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use russh::server::{self, Auth, Handle, Msg, Session};
use russh::{Channel, ChannelId, ChannelWriteHalf, Sig};
use russh_sftp::protocol::{
    Attrs, Data, File as Named, FileAttributes, Handle as FileHandle, Name, OpenFlags, Status,
    StatusCode, Version,
};
use tokio::io::{AsyncWriteExt as _, copy};
use tokio::process::{ChildStdin, Command};
use tokio::sync::oneshot;

/// A server for all VMs of a state directory.
pub(crate) struct Guest {
    socket: PathBuf,
}

impl Guest {
    /// Serves at a socket in `dir`, which is created. Commands run in `dir`, and SFTP reads its files.
    pub(crate) fn start(home: PathBuf, dir: &Path) -> Self {
        fs::create_dir(dir).unwrap();
        let (dir, socket) = (dir.to_owned(), dir.join("guest.sock"));
        let guest = Self {
            socket: socket.clone(),
        };
        let (listening, ready) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Runtime::new().unwrap();
            runtime.block_on(async {
                let listener = tokio::net::UnixListener::bind(socket).unwrap();
                listening.send(()).unwrap();
                while let Ok((mut stream, _)) = listener.accept().await {
                    let (home, dir) = (home.clone(), dir.clone());
                    tokio::spawn(async move {
                        // Ample: see the tests of the library's SSH client.
                        let (mut ours, theirs) = tokio::io::duplex(64 << 20);
                        let config = Arc::new(server::Config {
                            keys: vec![newest_key(&home)],
                            auth_rejection_time: Duration::ZERO,
                            ..server::Config::default()
                        });
                        let shell = Shell {
                            dir,
                            channels: HashMap::new(),
                            commands: HashMap::new(),
                        };
                        let served = tokio::spawn(async move {
                            if let Ok(session) = server::run_stream(config, theirs, shell).await {
                                let _ = session.await;
                            }
                        });
                        let _ = tokio::io::copy_bidirectional(&mut stream, &mut ours).await;
                        drop(ours);
                        let _ = served.await;
                    });
                }
            });
        });
        ready.recv().unwrap();
        guest
    }

    /// For `FLEETBOX_FAKE_GUEST`.
    pub(crate) fn socket(&self) -> &Path {
        &self.socket
    }
}

/// The host key of the VM whose console was written to last: the one that was started last.
fn newest_key(home: &Path) -> russh::keys::PrivateKey {
    let below = |dir: PathBuf| {
        let entries = fs::read_dir(dir).into_iter().flatten().flatten();
        entries.map(|entry| entry.path())
    };
    let vms = below(home.join("clusters")).flat_map(below);
    let started = |vm: &PathBuf| {
        let console = fs::metadata(vm.join("console.log")).ok()?;
        console.modified().ok()
    };
    let newest = vms
        .filter(|vm| started(vm).is_some() && vm.join("host_key").exists())
        .max_by_key(started)
        .unwrap();
    russh::keys::load_secret_key(newest.join("host_key"), None).unwrap()
}

struct Running {
    group: Pid,
    input: Option<ChildStdin>,
    // Dropped with it: the pipes.
    _pipes: oneshot::Sender<()>,
}

struct Shell {
    dir: PathBuf,
    channels: HashMap<ChannelId, Channel<Msg>>,
    commands: HashMap<ChannelId, Running>,
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

    async fn exec_request(
        &mut self,
        id: ChannelId,
        command: &[u8],
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        let Some(channel) = self.channels.remove(&id) else {
            return session.channel_failure(id);
        };
        session.channel_success(id)?;
        let mut child = Command::new("sh")
            .arg("-c")
            .arg(String::from_utf8_lossy(command).into_owned())
            .current_dir(&self.dir)
            .env("HOME", &self.dir)
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let group = Pid::from_raw(child.id().unwrap().try_into().unwrap());
        let (pipes, dropped) = oneshot::channel();
        self.commands.insert(
            id,
            Running {
                group,
                input: child.stdin.take(),
                _pipes: pipes,
            },
        );
        let (_, channel) = channel.split();
        tokio::spawn(pass(child, session.handle(), id, channel, dropped));
        Ok(())
    }

    async fn subsystem_request(
        &mut self,
        id: ChannelId,
        _: &str,
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        let Some(channel) = self.channels.remove(&id) else {
            return session.channel_failure(id);
        };
        session.channel_success(id)?;
        let files = Files {
            dir: self.dir.clone(),
        };
        russh_sftp::server::run(channel.into_stream(), files).await;
        Ok(())
    }

    async fn data(
        &mut self,
        id: ChannelId,
        data: &[u8],
        _: &mut Session,
    ) -> Result<(), Self::Error> {
        if let Some(input) = self.commands.get_mut(&id).and_then(|c| c.input.as_mut()) {
            let _ = input.write_all(data).await;
        }
        Ok(())
    }

    async fn channel_eof(&mut self, id: ChannelId, _: &mut Session) -> Result<(), Self::Error> {
        if let Some(command) = self.commands.get_mut(&id) {
            command.input = None;
        }
        Ok(())
    }

    async fn channel_close(&mut self, id: ChannelId, _: &mut Session) -> Result<(), Self::Error> {
        self.commands.remove(&id);
        Ok(())
    }

    async fn signal(
        &mut self,
        id: ChannelId,
        signal: Sig,
        _: &mut Session,
    ) -> Result<(), Self::Error> {
        if let (Some(command), Sig::HUP) = (self.commands.get(&id), signal) {
            let _ = killpg(command.group, Signal::SIGHUP);
        }
        Ok(())
    }
}

/// Passes on what a command writes, and how it ends.
async fn pass(
    mut child: tokio::process::Child,
    handle: Handle,
    id: ChannelId,
    channel: ChannelWriteHalf<Msg>,
    dropped: oneshot::Receiver<()>,
) {
    let (mut out, mut err) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
    let (mut to, mut errors) = (channel.make_writer(), channel.make_writer_ext(Some(1)));
    let passing = async {
        let _ = tokio::join!(copy(&mut out, &mut to), copy(&mut err, &mut errors));
    };
    tokio::select! {
        () = passing => {}
        _ = dropped => {}
    }
    drop((out, err));
    let status = child.wait().await.unwrap();
    let _ = match (status.code(), status.signal()) {
        (Some(code), _) => handle.exit_status_request(id, code as u32).await,
        (None, _) => {
            let text = String::new;
            handle
                .exit_signal_request(id, Sig::HUP, false, text(), text())
                .await
        }
    };
    let _ = handle.eof(id).await;
    let _ = handle.close(id).await;
}

/// Reads files, and nothing else. A handle is the file's path.
struct Files {
    dir: PathBuf,
}

impl Files {
    fn attributes(&self, path: &str) -> Result<FileAttributes, StatusCode> {
        let metadata = fs::metadata(self.dir.join(path)).map_err(|_| StatusCode::NoSuchFile)?;
        Ok(FileAttributes {
            size: Some(metadata.len()),
            permissions: Some(metadata.mode()),
            mtime: Some(metadata.mtime() as u32),
            ..FileAttributes::empty()
        })
    }
}

impl russh_sftp::server::Handler for Files {
    type Error = StatusCode;

    fn unimplemented(&self) -> StatusCode {
        StatusCode::OpUnsupported
    }

    async fn init(&mut self, _: u32, _: HashMap<String, String>) -> Result<Version, StatusCode> {
        Ok(Version::new())
    }

    async fn open(
        &mut self,
        id: u32,
        path: String,
        _: OpenFlags,
        _: FileAttributes,
    ) -> Result<FileHandle, StatusCode> {
        self.attributes(&path)?;
        Ok(FileHandle { id, handle: path })
    }

    async fn close(&mut self, id: u32, _: String) -> Result<Status, StatusCode> {
        Ok(Status {
            id,
            status_code: StatusCode::Ok,
            error_message: String::new(),
            language_tag: String::new(),
        })
    }

    async fn read(
        &mut self,
        id: u32,
        path: String,
        offset: u64,
        length: u32,
    ) -> Result<Data, StatusCode> {
        let content = fs::read(self.dir.join(path)).map_err(|_| StatusCode::Failure)?;
        let rest = content.get(offset as usize..).unwrap_or_default();
        let data = &rest[..rest.len().min(length as usize)];
        match data {
            [] => Err(StatusCode::Eof),
            data => Ok(Data {
                id,
                data: data.to_vec(),
            }),
        }
    }

    async fn lstat(&mut self, id: u32, path: String) -> Result<Attrs, StatusCode> {
        let attrs = self.attributes(&path)?;
        Ok(Attrs { id, attrs })
    }

    async fn stat(&mut self, id: u32, path: String) -> Result<Attrs, StatusCode> {
        let attrs = self.attributes(&path)?;
        Ok(Attrs { id, attrs })
    }

    async fn fstat(&mut self, id: u32, path: String) -> Result<Attrs, StatusCode> {
        let attrs = self.attributes(&path)?;
        Ok(Attrs { id, attrs })
    }

    async fn realpath(&mut self, id: u32, path: String) -> Result<Name, StatusCode> {
        Ok(Name {
            id,
            files: vec![Named::dummy(path)],
        })
    }
}
