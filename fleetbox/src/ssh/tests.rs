//! The client against a server in this process.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use russh::server::{self, Auth, Handle, Msg, Session};
use russh::{Channel, ChannelId, Sig};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio::sync::mpsc;

use super::*;

const FLOOD: usize = 5 << 20;

/// A server that knows some commands by heart.
struct Fake {
    user_key: PublicKey,
    // Standard input of the commands that read it; an empty chunk is its end.
    inputs: HashMap<ChannelId, mpsc::UnboundedSender<Vec<u8>>>,
    pty: Option<String>,
}

impl server::Handler for Fake {
    type Error = russh::Error;

    async fn auth_publickey(
        &mut self,
        user: &str,
        key: server::VerifiedPublicKey<'_>,
    ) -> Result<Auth, Self::Error> {
        let known = PublicKey::from_russh(key.public_key.clone()) == self.user_key;
        Ok(if known && user == "fleetbox" {
            Auth::Accept
        } else {
            Auth::reject()
        })
    }

    async fn channel_open_session(
        &mut self,
        _: Channel<Msg>,
        reply: server::ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), Self::Error> {
        reply.accept().await;
        Ok(())
    }

    async fn exec_request(
        &mut self,
        id: ChannelId,
        command: &[u8],
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        let command = String::from_utf8_lossy(command).into_owned();
        if command == "refused" {
            return session.channel_failure(id);
        }
        session.channel_success(id)?;
        let (sender, input) = mpsc::unbounded_channel();
        self.inputs.insert(id, sender);
        tokio::spawn(run(session.handle(), id, command, input));
        Ok(())
    }

    async fn pty_request(
        &mut self,
        id: ChannelId,
        term: &str,
        columns: u32,
        rows: u32,
        _: u32,
        _: u32,
        _: &[(russh::Pty, u32)],
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        self.pty = Some(format!("{term} {columns}x{rows}\n"));
        session.channel_success(id)
    }

    async fn shell_request(
        &mut self,
        id: ChannelId,
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        session.channel_success(id)?;
        let pty = self.pty.clone().unwrap_or_default();
        session.data(id, pty.into_bytes())
    }

    async fn window_change_request(
        &mut self,
        id: ChannelId,
        columns: u32,
        rows: u32,
        _: u32,
        _: u32,
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        session.data(id, format!("now {columns}x{rows}\n").into_bytes())?;
        session.exit_status_request(id, 7)?;
        session.close(id)
    }

    async fn data(
        &mut self,
        id: ChannelId,
        data: &[u8],
        _: &mut Session,
    ) -> Result<(), Self::Error> {
        if let Some(input) = self.inputs.get(&id) {
            let _ = input.send(data.to_vec());
        }
        Ok(())
    }

    async fn channel_eof(&mut self, id: ChannelId, _: &mut Session) -> Result<(), Self::Error> {
        self.inputs.remove(&id);
        Ok(())
    }
}

async fn run(
    handle: Handle,
    id: ChannelId,
    command: String,
    mut input: mpsc::UnboundedReceiver<Vec<u8>>,
) {
    let mut code = 0;
    match command.as_str() {
        "fail" => {
            handle.data(id, &b"out"[..]).await.unwrap();
            handle.extended_data(id, 1, &b"err"[..]).await.unwrap();
            code = 3;
        }
        "cat" => {
            while let Some(bytes) = input.recv().await {
                handle.data(id, bytes).await.unwrap();
            }
        }
        "flood" => {
            for _ in 0..FLOOD / 4096 {
                // Fails once the client has gone.
                if handle.data(id, vec![b'x'; 4096]).await.is_err() {
                    return;
                }
            }
        }
        "kill" => {
            handle
                .exit_signal_request(id, Sig::KILL, false, String::new(), String::new())
                .await
                .unwrap();
            handle.close(id).await.unwrap();
            return;
        }
        "hang" => return,
        "vanish" => {
            handle.close(id).await.unwrap();
            return;
        }
        _ => {}
    }
    let _ = handle.exit_status_request(id, code).await;
    let _ = handle.eof(id).await;
    let _ = handle.close(id).await;
}

struct Setup {
    target: Target,
    config: Arc<server::Config>,
    user_key: PublicKey,
}

impl Setup {
    fn new() -> Self {
        let host = Keypair::generate("host").unwrap();
        let user = Keypair::generate("user").unwrap();
        let config = server::Config {
            keys: vec![host.private().as_ref().clone()],
            auth_rejection_time: Duration::ZERO,
            ..server::Config::default()
        };
        Self {
            user_key: user.public(),
            target: Target {
                user: "fleetbox".into(),
                key: user,
                host_key: host.public(),
            },
            config: Arc::new(config),
        }
    }

    /// A stream with a server at its other end.
    fn stream(&self) -> DuplexStream {
        // Ample: russh reads nothing while a write waits, so two of them with full buffers would
        // wait for each other. Other servers read at all times.
        let (ours, theirs) = tokio::io::duplex(64 << 20);
        let config = Arc::clone(&self.config);
        let fake = Fake {
            user_key: self.user_key.clone(),
            inputs: HashMap::new(),
            pty: None,
        };
        tokio::spawn(async move {
            if let Ok(session) = server::run_stream(config, theirs, fake).await {
                let _ = session.await;
            }
        });
        ours
    }

    async fn client(&self) -> Client {
        Client::connect(self.stream(), &self.target).await.unwrap()
    }
}

#[tokio::test]
async fn commands_give_both_outputs_and_their_status() {
    let client = Setup::new().client().await;
    for _ in 0..3 {
        let output = client.exec("fail").await.unwrap();
        assert_eq!(output.stdout, b"out");
        assert_eq!(output.stderr_text(), "err");
        assert_eq!(output.status, ExitStatus::Code(3));
        assert!(!output.success());
    }
    assert!(client.exec("true").await.unwrap().success());
    let killed = client.exec("kill").await.unwrap();
    assert_eq!(killed.status.code(), None);
    assert_eq!(killed.status.to_string(), "killed by SIGKILL");
    assert!(!client.is_closed());
}

#[tokio::test]
async fn commands_run_at_once_on_one_connection() {
    let client = Setup::new().client().await;
    let outputs = futures::future::join_all((0..8).map(|_| client.exec("fail"))).await;
    assert!(outputs.into_iter().all(|o| o.unwrap().stdout == b"out"));
}

#[tokio::test]
async fn streams_go_both_ways() {
    let client = Setup::new().client().await;
    let mut child = client.spawn("cat").await.unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let mut stdout = child.stdout.take().unwrap();
    stdin.write_all(b"hello").await.unwrap();
    let mut echo = [0; 5];
    stdout.read_exact(&mut echo).await.unwrap();
    assert_eq!(&echo, b"hello");

    // More than the window, so that flow control is at work.
    let sent = vec![7; 6 << 20];
    let (written, read) = tokio::join!(
        async {
            stdin.write_all(&sent).await?;
            drop(stdin);
            std::io::Result::Ok(())
        },
        async {
            let mut all = Vec::new();
            stdout.read_to_end(&mut all).await.map(|_| all)
        }
    );
    written.unwrap();
    assert!(read.unwrap() == sent);
    assert!(child.wait().await.unwrap().success());
}

#[test]
fn streams_of_the_blocking_facade_go_both_ways() {
    use std::io::{Read as _, Write as _};

    use crate::blocking;

    let spawn = |command: &'static str| {
        let child = blocking::block_on(async move {
            let client = Setup::new().client().await;
            // The connection outlives the command, as that of a VM does.
            client.spawn(command).await.map(|child| (client, child))
        });
        let (client, child) = child.unwrap();
        (client, blocking::Child::new(child))
    };
    let (_client, mut child) = spawn("cat");
    let (mut stdin, mut stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let sent = vec![7; 3 << 20];
    let writer = std::thread::spawn({
        let sent = sent.clone();
        move || stdin.write_all(&sent).and_then(|()| stdin.flush())
    });
    let mut read = Vec::new();
    stdout.read_to_end(&mut read).unwrap();
    writer.join().unwrap().unwrap();
    assert!(read == sent);
    assert!(child.wait().unwrap().success());

    let (_client, child) = spawn("fail");
    let output = child.output(10).unwrap();
    assert_eq!(
        (output.stdout_text(), output.stderr_text()),
        ("out".into(), "err".into())
    );
    assert_eq!(output.status.code(), Some(3));
    let (_client, mut child) = spawn("hang");
    child.signal("TERM").unwrap();
    drop(child);
}

#[test]
fn what_panics_in_the_blocking_facade_panics_in_its_caller() {
    let work = async {
        if true {
            panic!("as it should")
        } else {
            Ok::<(), SshError>(())
        }
    };
    let panic = std::panic::catch_unwind(|| crate::blocking::block_on(work)).unwrap_err();
    assert_eq!(panic.downcast_ref::<&str>(), Some(&"as it should"));
}

#[tokio::test]
async fn unread_output_is_discarded_and_too_much_is_refused() {
    let client = Setup::new().client().await;
    let mut child = client.spawn("flood").await.unwrap();
    assert!(child.wait().await.unwrap().success());

    let child = client.spawn("flood").await.unwrap();
    assert_eq!(child.output(FLOOD).await.unwrap().stdout.len(), FLOOD);
    let child = client.spawn("flood").await.unwrap();
    assert!(matches!(
        child.output(FLOOD - 1).await,
        Err(SshError::OutputTooLarge { .. })
    ));
    // The connection has survived the child that was dropped in the middle.
    assert!(client.exec("true").await.unwrap().success());
}

#[tokio::test]
async fn a_terminal_follows_its_window() {
    let client = Setup::new().client().await;
    let pty = PtyRequest {
        term: "xterm".into(),
        columns: 80,
        rows: 25,
    };
    let mut child = client.spawn_pty(&pty, None).await.unwrap();
    let mut stdout = child.stdout.take().unwrap();
    let mut first = [0; 12];
    stdout.read_exact(&mut first).await.unwrap();
    assert_eq!(&first, b"xterm 80x25\n");
    child.resize(132, 50).await.unwrap();
    let mut rest = String::new();
    stdout.read_to_string(&mut rest).await.unwrap();
    assert_eq!(rest, "now 132x50\n");
    assert_eq!(child.wait().await.unwrap(), ExitStatus::Code(7));
}

#[tokio::test]
async fn endings_without_a_status_are_errors() {
    let setup = Setup::new();
    let client = setup.client().await;
    assert!(matches!(client.exec("vanish").await, Err(SshError::Lost)));
    assert!(matches!(
        client.exec("refused").await,
        Err(SshError::Refused { .. })
    ));

    // The connection is cut while a command runs.
    let (ours, theirs) = tokio::io::duplex(1 << 16);
    let mut server = setup.stream();
    let cut = tokio::spawn(async move {
        let mut theirs = theirs;
        let _ = tokio::io::copy_bidirectional(&mut theirs, &mut server).await;
    });
    let client = Client::connect(ours, &setup.target).await.unwrap();
    let mut child = client.spawn("hang").await.unwrap();
    cut.abort();
    assert!(matches!(child.wait().await, Err(SshError::Lost)));
}

#[tokio::test]
async fn another_host_key_is_refused() {
    let mut setup = Setup::new();
    let real = setup.target.host_key.fingerprint();
    setup.target.host_key = Keypair::generate("other").unwrap().public();
    match Client::connect(setup.stream(), &setup.target).await {
        Err(SshError::HostKeyMismatch { expected, found }) => {
            assert_eq!(found, real);
            assert_eq!(expected, setup.target.host_key.fingerprint());
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn an_unknown_user_or_key_is_refused() {
    let mut setup = Setup::new();
    setup.target.user = "root".into();
    let result = Client::connect(setup.stream(), &setup.target).await;
    assert!(matches!(result, Err(SshError::Auth { user }) if user == "root"));
    setup.target.user = "fleetbox".into();
    setup.target.key = Keypair::generate("other").unwrap();
    let result = Client::connect(setup.stream(), &setup.target).await;
    assert!(matches!(result, Err(SshError::Auth { .. })));
}

#[tokio::test]
async fn readiness_comes_with_the_first_good_answer() {
    let setup = Setup::new();
    let attempts = AtomicU32::new(0);
    let connect = async || match attempts.fetch_add(1, Ordering::Relaxed) {
        0 | 1 => Err(io::ErrorKind::ConnectionRefused.into()),
        // Accepted and closed, as by a proxy before the guest listens.
        2 => Ok(tokio::io::duplex(64).0),
        _ => Ok(setup.stream()),
    };
    let begun = Instant::now();
    let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
    let client = wait_ready(connect, &setup.target, deadline).await.unwrap();
    assert!(client.exec("true").await.unwrap().success());
    assert_eq!(attempts.into_inner(), 4);
    assert!(begun.elapsed() < Duration::from_secs(10));
}

#[tokio::test]
async fn the_deadline_holds_whatever_the_port_does() {
    let setup = Setup::new();
    let soon = || tokio::time::Instant::now() + Duration::from_millis(300);

    let refused = async || Err::<DuplexStream, _>(io::ErrorKind::ConnectionRefused.into());
    match wait_ready(refused, &setup.target, soon()).await {
        Err(SshError::NotReady { attempts, last, .. }) => {
            assert!(attempts > 1);
            assert!(matches!(*last, SshError::Connect { .. }));
        }
        other => panic!("{other:?}"),
    }

    let silent = async || {
        std::future::pending::<()>().await;
        Err::<DuplexStream, _>(io::ErrorKind::Other.into())
    };
    let result = wait_ready(silent, &setup.target, soon()).await;
    assert!(matches!(result, Err(SshError::NotReady { .. })));

    // Accepts and says nothing.
    let held = std::sync::Mutex::new(Vec::new());
    let mute = async || {
        let (ours, theirs) = tokio::io::duplex(1 << 16);
        held.lock().unwrap().push(theirs);
        Ok(ours)
    };
    match wait_ready(mute, &setup.target, soon()).await {
        Err(SshError::NotReady { last, .. }) => {
            assert!(matches!(*last, SshError::HandshakeTimeout(_)), "{last}");
        }
        other => panic!("{other:?}"),
    }
}
