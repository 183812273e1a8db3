//! Working with a guest: commands, connections and its console.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use tokio::io::AsyncWriteExt as _;

use super::{SSH_PORT, Vm};
use crate::error::Result;
use crate::model::stream::Stream;
use crate::ssh::{self, Child, Output, PtyRequest, SshError};
use crate::vm::events::Events;

/// Maximum bytes of a command's output that are kept.
const OUTPUT_LIMIT: usize = 256 << 20;

/// A published port: connections to `address` on this host go to a port of the guest. See
/// [`Vm::published`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct PublishedPort {
    /// The address on this host's loopback interface.
    pub address: SocketAddr,
    /// The guest's TCP port.
    pub port: u16,
}

impl std::fmt::Display for PublishedPort {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} -> guest port {}", self.address, self.port)
    }
}

impl Vm {
    /// Runs a shell command in the guest and collects its output. A command that fails is not an
    /// error: check [`Output::status`].
    ///
    /// ```no_run
    /// # async fn example(vm: fleetbox::Vm) -> fleetbox::Result<()> {
    /// let out = vm.ssh("grep -c processor /proc/cpuinfo || exit 3").await?;
    /// match out.status.code() {
    ///     Some(0) => println!("{} CPUs", out.stdout_text().trim()),
    ///     _ => println!("failed: {}", out.stderr_text()),
    /// }
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Error::Ssh`](crate::Error::Ssh) or [`Error::Process`](crate::Error::Process) if the guest
    /// cannot be reached.
    pub async fn ssh(&self, command: &str) -> Result<Output> {
        Ok(self.session().await?.exec(command).await?)
    }

    /// Runs a shell command in the guest with `stdin` as its standard input, and collects its
    /// output.
    ///
    /// ```no_run
    /// # async fn example(vm: fleetbox::Vm) -> fleetbox::Result<()> {
    /// let out = vm.ssh_with_input("sha256sum", b"some bytes").await?;
    /// assert!(out.success());
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// Those of [`Vm::ssh`].
    pub async fn ssh_with_input(&self, command: &str, stdin: &[u8]) -> Result<Output> {
        let mut child = self.ssh_spawn(command).await?;
        let input = child.stdin.take();
        let write = async {
            if let Some(mut input) = input {
                // A command may end without reading all its input.
                let _ = input.write_all(stdin).await;
                let _ = input.shutdown().await;
            }
        };
        let (output, ()) = tokio::join!(child.output(OUTPUT_LIMIT), write);
        Ok(output?)
    }

    /// Starts a shell command in the guest, with pipes for its standard streams.
    ///
    /// ```no_run
    /// # async fn example(vm: fleetbox::Vm) -> Result<(), Box<dyn std::error::Error>> {
    /// use tokio::io::{AsyncBufReadExt, BufReader};
    ///
    /// let mut child = vm.ssh_spawn("ping -c 3 127.0.0.1").await?;
    /// if let Some(stdout) = child.stdout.take() {
    ///     let mut lines = BufReader::new(stdout).lines();
    ///     while let Some(line) = lines.next_line().await? {
    ///         println!("{line}");
    ///     }
    /// }
    /// assert!(child.wait().await?.success());
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// Those of [`Vm::ssh`].
    pub async fn ssh_spawn(&self, command: &str) -> Result<Child> {
        Ok(self.session().await?.spawn(command).await?)
    }

    /// Starts a command, or the login shell, on a new terminal in the guest.
    ///
    /// ```no_run
    /// # async fn example(vm: fleetbox::Vm) -> fleetbox::Result<()> {
    /// use fleetbox::ssh::PtyRequest;
    ///
    /// let pty = PtyRequest { term: "xterm".to_owned(), columns: 80, rows: 24 };
    /// let child = vm.ssh_pty(&pty, Some("top -b -n 1")).await?;
    /// child.resize(120, 40).await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// Those of [`Vm::ssh`].
    pub async fn ssh_pty(&self, pty: &PtyRequest, command: Option<&str>) -> Result<Child> {
        Ok(self.session().await?.spawn_pty(pty, command).await?)
    }

    /// The SSH connection that all commands share. A lost one is replaced.
    pub(crate) async fn session(&self) -> Result<Arc<ssh::Client>> {
        let mut session = self.session.lock().await;
        if let Some(session) = session.as_ref().filter(|session| !session.is_closed()) {
            return Ok(Arc::clone(session));
        }
        let stream = self.client.dial(&self.target(), SSH_PORT).await?;
        let limit = Duration::from_secs(60);
        let connected = tokio::time::timeout(limit, ssh::Client::connect(stream, &self.target));
        let client = match connected.await {
            Ok(client) => Arc::new(client?),
            Err(_) => return Err(SshError::HandshakeTimeout(limit).into()),
        };
        *session = Some(Arc::clone(&client));
        Ok(client)
    }

    /// Connects to a TCP port of the guest.
    ///
    /// ```no_run
    /// # async fn example(vm: fleetbox::Vm) -> Result<(), Box<dyn std::error::Error>> {
    /// use tokio::io::{AsyncReadExt, AsyncWriteExt};
    ///
    /// let mut stream = vm.connect(80).await?;
    /// stream.write_all(b"GET / HTTP/1.0\r\n\r\n").await?;
    /// let mut answer = String::new();
    /// stream.read_to_string(&mut answer).await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Error::Process`](crate::Error::Process) if the guest refuses the connection, does not
    /// answer or does not run.
    pub async fn connect(&self, port: u16) -> Result<Stream> {
        Ok(Stream(self.client.dial(&self.target(), port).await?))
    }

    /// Publishes a TCP port of the guest on a free loopback port of this host, for as long as the
    /// VM runs. Returns the address on the host, which is the same for every call.
    ///
    /// ```no_run
    /// # async fn example(vm: fleetbox::Vm) -> fleetbox::Result<()> {
    /// let address = vm.forward(5432).await?;
    /// println!("postgres://{address}/test"); // 127.0.0.1 and some port
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Error::Process`](crate::Error::Process) if no address is free, or the VM does not run.
    pub async fn forward(&self, guest_port: u16) -> Result<SocketAddr> {
        self.publish(0, guest_port).await
    }

    /// Like [`Vm::forward`], on a loopback port that you choose. Port 0 picks a free one.
    ///
    /// # Errors
    /// Those of [`Vm::forward`], and [`Error::Process`](crate::Error::Process) if the port is in
    /// use or this user may not open it.
    pub async fn publish(&self, host_port: u16, guest_port: u16) -> Result<SocketAddr> {
        let target = self.target();
        Ok(self.client.forward(&target, host_port, guest_port).await?)
    }

    /// The ports that [`Vm::publish`] and [`Vm::forward`] of any process have opened since the VM was started, sorted
    /// by address; at most 1024.
    ///
    /// # Errors
    /// [`Error::Process`](crate::Error::Process) if the VM does not run.
    pub async fn published(&self) -> Result<Vec<PublishedPort>> {
        let forwards = self.client.forwards(&self.target()).await?;
        let published = |(address, port)| PublishedPort { address, port };
        Ok(forwards.into_iter().map(published).collect())
    }

    /// Attaches to the serial console. The stream starts with the last output, then has everything
    /// that follows, byte for byte, until the VM ends. Bytes written to the stream are typed at the
    /// console; if the guest does not read them, they are lost. All streams see the same output.
    ///
    /// ```no_run
    /// # async fn example(vm: fleetbox::Vm) -> Result<(), Box<dyn std::error::Error>> {
    /// use tokio::io::{AsyncBufReadExt, BufReader};
    ///
    /// let mut lines = BufReader::new(vm.console().await?).lines();
    /// while let Some(line) = lines.next_line().await? {
    ///     println!("{line}");
    /// }
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Error::Process`](crate::Error::Process) if the VM has not been started since its worker
    /// was.
    pub async fn console(&self) -> Result<Stream> {
        Ok(Stream(self.client.serial(&self.target()).await?))
    }

    /// The last 256 events since the VM was started, then each new event as it happens, until the
    /// VM ends.
    ///
    /// # Errors
    /// Those of [`Vm::console`].
    pub async fn events(&self) -> Result<Events> {
        let stream = self.client.events(&self.target()).await?;
        Ok(Events::new(self.cluster(), stream))
    }

    /// The end of the console's output, at most 32 KiB, without escape sequences.
    ///
    /// # Errors
    /// [`Error::Process`](crate::Error::Process) if the VM's worker does not run.
    pub async fn console_tail(&self) -> Result<String> {
        Ok(self.client.console(&self.target()).await?)
    }
}
