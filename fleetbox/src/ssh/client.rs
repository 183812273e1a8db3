//! The SSH client.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use russh::client::{self, Handle};
use russh::keys::{Algorithm, PrivateKeyWithHashAlg};
use russh::{Preferred, cipher, compression, kex};
use tokio::io::{AsyncRead, AsyncWrite};

use super::child::{self, Child, Output};
use super::{Keypair, PublicKey, SshError};

/// Silence after which the guest is asked for a keep-alive answer.
const KEEPALIVE: Duration = Duration::from_secs(30);
/// Number of unanswered keep-alive requests that end the connection.
const KEEPALIVE_MAX: usize = 6;
/// Maximum bytes of output that [`Client::exec`] keeps.
const OUTPUT_LIMIT: usize = 256 << 20;

/// Starts OpenSSH's SFTP server as root, from the paths of Debian, Red Hat, Alpine and SUSE.
const ROOT_SFTP: &str = "for server in /usr/lib/openssh/sftp-server \
     /usr/libexec/openssh/sftp-server /usr/lib/ssh/sftp-server /usr/libexec/ssh/sftp-server; do \
     [ -x \"$server\" ] && exec sudo -n \"$server\"; done; exit 127";

/// Who logs in, and the expected host key.
///
/// ```
/// use fleetbox::ssh::{Keypair, Target};
///
/// let target = Target {
///     user: "fleetbox".to_owned(),
///     key: Keypair::generate("log in")?,
///     host_key: Keypair::generate("the guest's")?.public(),
/// };
/// # Ok::<(), fleetbox::ssh::SshError>(())
/// ```
#[derive(Debug, Clone)]
pub struct Target {
    /// The user in the guest.
    pub user: String,
    /// The key that logs in.
    pub key: Keypair,
    /// The guest's host key. A server with another key is refused.
    pub host_key: PublicKey,
}

/// A terminal to request from the guest.
///
/// ```no_run
/// # async fn example(vm: fleetbox::Vm) -> fleetbox::Result<()> {
/// use fleetbox::ssh::PtyRequest;
///
/// let pty = PtyRequest { term: "xterm-256color".to_owned(), columns: 120, rows: 40 };
/// let shell = vm.ssh_pty(&pty, None).await?; // the user's login shell
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PtyRequest {
    /// Value of `TERM`.
    pub term: String,
    /// Width in characters.
    pub columns: u32,
    /// Height in characters.
    pub rows: u32,
}

/// A connection to a guest's SSH server. It can run any number of commands, also at the same time.
/// Dropping it ends the connection.
///
/// ```no_run
/// # use fleetbox::ssh::{Client, SshError, Target};
/// # async fn example(target: Target) -> Result<(), Box<dyn std::error::Error>> {
/// let stream = tokio::net::TcpStream::connect("192.0.2.7:22").await?;
/// let client = Client::connect(stream, &target).await?;
/// println!("{}", client.exec("uname -a").await?.stdout_text());
/// client.close().await;
/// # Ok(()) }
/// ```
pub struct Client {
    handle: Handle<HostKeyCheck>,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("closed", &self.is_closed())
            .finish()
    }
}

/// Accepts one host key.
#[derive(Debug)]
pub(super) struct HostKeyCheck {
    expected: PublicKey,
}

impl client::Handler for HostKeyCheck {
    type Error = SshError;

    async fn check_server_key(
        &mut self,
        key: &russh::keys::PublicKeyOrCertificate,
    ) -> Result<bool, Self::Error> {
        let found = PublicKey::from_russh(key.public_key());
        if found == self.expected {
            return Ok(true);
        }
        Err(SshError::HostKeyMismatch {
            expected: self.expected.fingerprint(),
            found: found.fingerprint(),
        })
    }
}

fn config() -> client::Config {
    client::Config {
        keepalive_interval: Some(KEEPALIVE),
        keepalive_max: KEEPALIVE_MAX,
        preferred: Preferred {
            // Guests only have a key of this type.
            key: Cow::Borrowed(&[Algorithm::Ed25519]),
            // The data never leaves this host, so the fastest ciphers come first. AES is
            // implemented in assembly.
            kex: Cow::Borrowed(&[
                kex::CURVE25519,
                kex::CURVE25519_PRE_RFC_8731,
                kex::MLKEM768X25519_SHA256,
                kex::EXTENSION_SUPPORT_AS_CLIENT,
                kex::EXTENSION_OPENSSH_STRICT_KEX_AS_CLIENT,
            ]),
            cipher: Cow::Borrowed(&[
                cipher::AES_128_GCM,
                cipher::AES_256_GCM,
                cipher::CHACHA20_POLY1305,
                cipher::AES_256_CTR,
            ]),
            compression: Cow::Borrowed(&[compression::NONE]),
            ..Preferred::default()
        },
        ..client::Config::default()
    }
}

impl Client {
    /// Logs in over `stream`, which is connected to the guest's SSH port.
    ///
    /// This waits as long as the server takes. [`super::wait_ready`] has a deadline.
    ///
    /// # Errors
    /// [`SshError::HostKeyMismatch`], [`SshError::Auth`], [`SshError::Lost`] or
    /// [`SshError::Protocol`].
    pub async fn connect<S>(stream: S, target: &Target) -> Result<Self, SshError>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let handler = HostKeyCheck {
            expected: target.host_key.clone(),
        };
        let mut handle = client::connect_stream(Arc::new(config()), stream, handler).await?;
        let key = PrivateKeyWithHashAlg::new(target.key.private(), None);
        let result = handle.authenticate_publickey(&target.user, key).await?;
        if !result.success() {
            return Err(SshError::Auth {
                user: target.user.clone(),
            });
        }
        Ok(Self { handle })
    }

    /// True once the connection has ended.
    pub fn is_closed(&self) -> bool {
        self.handle.is_closed()
    }

    /// Runs `command` in the user's login shell with an empty standard input, and collects its
    /// output.
    ///
    /// # Errors
    /// [`SshError::Lost`], [`SshError::Refused`] or [`SshError::OutputTooLarge`]. A command that
    /// fails is not an error: check [`Output::status`].
    pub async fn exec(&self, command: &str) -> Result<Output, SshError> {
        self.spawn(command).await?.output(OUTPUT_LIMIT).await
    }

    /// Starts `command` in the user's login shell, with pipes for its standard streams.
    ///
    /// # Errors
    /// [`SshError::Lost`] or [`SshError::Refused`].
    pub async fn spawn(&self, command: &str) -> Result<Child, SshError> {
        let channel = self.handle.channel_open_session().await?;
        channel.exec(true, command).await?;
        child::start(channel, "to run the command").await
    }

    /// Starts `command`, or the user's login shell if that is `None`, on a new terminal. The
    /// terminal's output, including errors, arrives on the child's standard output.
    ///
    /// # Errors
    /// [`SshError::Lost`] or [`SshError::Refused`].
    pub async fn spawn_pty(
        &self,
        pty: &PtyRequest,
        command: Option<&str>,
    ) -> Result<Child, SshError> {
        let mut channel = self.handle.channel_open_session().await?;
        channel
            .request_pty(true, &pty.term, pty.columns, pty.rows, 0, 0, &[])
            .await?;
        child::confirm(&mut channel, "a terminal").await?;
        match command {
            Some(command) => channel.exec(true, command).await?,
            None => channel.request_shell(true).await?,
        }
        child::start(channel, "to start the shell").await
    }

    /// Opens a stream to an SFTP server in the guest: the SSH server's own, with the rights of the
    /// user who logged in, or one that runs as root, started with sudo.
    ///
    /// # Errors
    /// [`SshError::Lost`] or [`SshError::Refused`].
    pub(crate) async fn sftp(
        &self,
        as_root: bool,
    ) -> Result<impl AsyncRead + AsyncWrite + Unpin + Send + 'static, SshError> {
        let mut channel = self.handle.channel_open_session().await?;
        if as_root {
            channel.exec(true, ROOT_SFTP).await?;
            child::confirm(&mut channel, "to start an SFTP server").await?;
        } else {
            channel.request_subsystem(true, "sftp").await?;
            child::confirm(&mut channel, "its SFTP subsystem").await?;
        }
        Ok(channel.into_stream())
    }

    /// Ends the connection in an orderly way. Dropping the client ends it too.
    pub async fn close(self) {
        let _ = self
            .handle
            .disconnect(russh::Disconnect::ByApplication, "", "")
            .await;
    }
}
