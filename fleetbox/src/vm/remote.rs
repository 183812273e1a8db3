//! What is done in a guest and with it: commands, connections, its console.

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

/// Most bytes of a command's output that are kept.
const OUTPUT_LIMIT: usize = 256 << 20;

/// An address of this host whose connections go to a guest; see [`Vm::published`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Published {
    /// On loopback.
    pub address: SocketAddr,
    /// The guest's TCP port.
    pub port: u16,
}

impl std::fmt::Display for Published {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} -> guest port {}", self.address, self.port)
    }
}

impl Vm {
    /// Runs a shell command in the guest and collects what it writes. A command that fails is no
    /// error: look at [`Output::status`].
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
    /// [`Error::Ssh`](crate::Error::Ssh), [`Error::Process`](crate::Error::Process) if the guest
    /// cannot be reached.
    pub async fn ssh(&self, command: &str) -> Result<Output> {
        Ok(self.session().await?.exec(command).await?)
    }

    /// Runs a shell command in the guest with `stdin` as its standard input, and collects what it
    /// writes.
    ///
    /// ```no_run
    /// # async fn example(vm: fleetbox::Vm) -> fleetbox::Result<()> {
    /// let out = vm.ssh_with_input("sha256sum", b"some bytes").await?;
    /// assert!(out.success());
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As [`Vm::ssh`].
    pub async fn ssh_with_input(&self, command: &str, stdin: &[u8]) -> Result<Output> {
        let mut child = self.ssh_spawn(command).await?;
        let input = child.stdin.take();
        let write = async {
            if let Some(mut input) = input {
                // A command need not read all of its input.
                let _ = input.write_all(stdin).await;
                let _ = input.shutdown().await;
            }
        };
        let (output, ()) = tokio::join!(child.output(OUTPUT_LIMIT), write);
        Ok(output?)
    }

    /// Starts a shell command in the guest with its standard streams as pipes.
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
    /// As [`Vm::ssh`].
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
    /// As [`Vm::ssh`].
    pub async fn ssh_pty(&self, pty: &PtyRequest, command: Option<&str>) -> Result<Child> {
        Ok(self.session().await?.spawn_pty(pty, command).await?)
    }

    /// The SSH connection, which commands share; a new one if it was lost.
    pub(crate) async fn session(&self) -> Result<Arc<ssh::Client>> {
        let mut session = self.session.lock().await;
        if let Some(session) = session.as_ref().filter(|session| !session.is_closed()) {
            return Ok(Arc::clone(session));
        }
        let stream = self.client.dial(self.name.as_str(), SSH_PORT).await?;
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
    /// [`Error::Process`](crate::Error::Process) if the guest refuses or does not answer, or does
    /// not run.
    pub async fn connect(&self, port: u16) -> Result<Stream> {
        Ok(Stream(self.client.dial(self.name.as_str(), port).await?))
    }

    /// A loopback address of this host whose connections go to a TCP port of the guest, for as
    /// long as the VM runs. Asked again it is the same.
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

    /// As [`Vm::forward`], by a port of the caller's choice on loopback; 0 is any that is free.
    ///
    /// # Errors
    /// As [`Vm::forward`], and if the port is taken or one that this user may not have.
    pub async fn publish(&self, host_port: u16, guest_port: u16) -> Result<SocketAddr> {
        let name = self.name.as_str();
        Ok(self.client.forward(name, host_port, guest_port).await?)
    }

    /// What [`Vm::publish`] and [`Vm::forward`] have opened for the VM since it was started, whoever
    /// asked, by address; the first 1024.
    ///
    /// # Errors
    /// [`Error::Process`](crate::Error::Process) if the VM does not run.
    pub async fn published(&self) -> Result<Vec<Published>> {
        let forwards = self.client.forwards(self.name.as_str()).await?;
        let published = |(address, port)| Published { address, port };
        Ok(forwards.into_iter().map(published).collect())
    }

    /// The serial console as it is now: the last of what was printed, then all that follows, byte
    /// for byte, until the VM ends. What is written to the stream is typed at the console; what
    /// the guest does not read is lost. Several such streams see the same.
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
    /// [`Error::Process`](crate::Error::Process) if the VM was not started since its worker was.
    pub async fn console(&self) -> Result<Stream> {
        Ok(Stream(self.client.serial(self.name.as_str()).await?))
    }

    /// What has happened to the VM since it was started (the last 256 events), then each event as
    /// it happens, to the VM's end.
    ///
    /// # Errors
    /// As [`Vm::console`].
    pub async fn events(&self) -> Result<Events> {
        let stream = self.client.events(self.name.as_str()).await?;
        Ok(Events::new(self.cluster(), stream))
    }

    /// The last of the console's output, at most 32 KiB, without escape sequences.
    ///
    /// # Errors
    /// [`Error::Process`](crate::Error::Process) if the VM's worker does not run.
    pub async fn console_tail(&self) -> Result<String> {
        Ok(self.client.console(self.name.as_str()).await?)
    }
}
