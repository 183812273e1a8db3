//! The client side of a worker: each request uses a separate connection.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::net::UnixStream;
use tokio::time::timeout;

use super::ProcessError;
use super::protocol::{
    ExitReport, Hello, LinkOrder, MachineSpec, MachineStatus, Reason, Reply, Request,
};
use super::{socket, wire};
use crate::model::event::TimedEvent;
use crate::util::fs::foreign_owner;

/// How long a worker may take to greet.
const GREETING: Duration = Duration::from_secs(10);

/// A client of the worker whose control socket is in `dir`.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    cluster: String,
    dir: PathBuf,
}

impl Client {
    /// Creates the client without connecting.
    pub(crate) fn new(cluster: &str, dir: &Path) -> Self {
        Self {
            cluster: cluster.to_owned(),
            dir: dir.to_owned(),
        }
    }

    fn lost(&self) -> impl Fn(io::Error) -> ProcessError {
        let cluster = self.cluster.clone();
        move |source| ProcessError::Lost {
            cluster: cluster.clone(),
            source,
        }
    }

    async fn connect(&self) -> Result<UnixStream, ProcessError> {
        let mut stream = socket::connect(&self.dir)
            .await
            .map_err(|source| self.unreachable(source))?;
        let greeting = timeout(GREETING, async {
            wire::send_async(&mut stream, &Hello::own()).await?;
            wire::receive_async::<Hello>(&mut stream).await
        });
        let hello = match greeting.await {
            Ok(hello) => hello.map_err(self.lost())?,
            Err(elapsed) => return Err(self.lost()(elapsed.into())),
        };
        if hello.protocol != Hello::own().protocol {
            return Err(ProcessError::Version {
                cluster: self.cluster.clone(),
                theirs: crate::util::text::printable(hello.version.as_bytes()),
            });
        }
        Ok(stream)
    }

    fn unreachable(&self, source: io::Error) -> ProcessError {
        let cluster = self.cluster.clone();
        if source.kind() == io::ErrorKind::PermissionDenied
            && let Some((_, owner)) = foreign_owner(&self.dir.join(socket::NAME))
        {
            return ProcessError::Foreign { cluster, owner };
        }
        ProcessError::NoWorker { cluster, source }
    }

    async fn request(&self, request: &Request) -> Result<Reply, ProcessError> {
        let mut stream = self.connect().await?;
        wire::send_async(&mut stream, request)
            .await
            .map_err(self.lost())?;
        let reply = wire::receive_async(&mut stream)
            .await
            .map_err(self.lost())?;
        self.succeeded(reply)
    }

    fn succeeded(&self, reply: Reply) -> Result<Reply, ProcessError> {
        match reply {
            Reply::Failed {
                reason: Reason::NotRunning,
                message,
            } => Err(ProcessError::NotRunning(message)),
            Reply::Failed {
                reason: Reason::Refused,
                message,
            } => Err(ProcessError::Refused(message)),
            Reply::Failed {
                reason: Reason::Other,
                message,
            } => Err(ProcessError::Failed(message)),
            reply => Ok(reply),
        }
    }

    fn unexpected(&self) -> ProcessError {
        self.lost()(io::Error::new(
            io::ErrorKind::InvalidData,
            "the answer does not match the request",
        ))
    }

    /// Starts a machine unless it is running. Returns whether it was already running, and its
    /// address.
    pub(crate) async fn start(
        &self,
        spec: MachineSpec,
    ) -> Result<(bool, Option<Ipv4Addr>), ProcessError> {
        match self.request(&Request::Start(Box::new(spec))).await? {
            Reply::Started { already, ip } => Ok((already, ip)),
            _ => Err(self.unexpected()),
        }
    }

    /// The cluster's machines.
    pub(crate) async fn list(&self) -> Result<Vec<MachineStatus>, ProcessError> {
        match self.request(&Request::List).await? {
            Reply::Machines(machines) => Ok(machines),
            _ => Err(self.unexpected()),
        }
    }

    /// Waits until the machine has ended.
    pub(crate) async fn wait(&self, vm: &str) -> Result<ExitReport, ProcessError> {
        match self.request(&Request::Wait { vm: vm.to_owned() }).await? {
            Reply::Ended(report) => Ok(report),
            _ => Err(self.unexpected()),
        }
    }

    /// The end of the console's output.
    pub(crate) async fn console(&self, vm: &str) -> Result<String, ProcessError> {
        match self
            .request(&Request::Console { vm: vm.to_owned() })
            .await?
        {
            Reply::Console(text) => Ok(text),
            _ => Err(self.unexpected()),
        }
    }

    /// Opens a stream to a TCP port of the guest.
    pub(crate) async fn dial(&self, vm: &str, port: u16) -> Result<UnixStream, ProcessError> {
        #[cfg(fleetbox_fake)]
        if let Some(guest) = super::fake::guest_from_env() {
            let connected = UnixStream::connect(guest).await;
            return connected.map_err(|source| self.unreachable(source));
        }
        self.stream(Request::Dial {
            vm: vm.to_owned(),
            port,
        })
        .await
    }

    /// Opens a stream to the serial console.
    pub(crate) async fn serial(&self, vm: &str) -> Result<UnixStream, ProcessError> {
        self.stream(Request::Serial { vm: vm.to_owned() }).await
    }

    /// Opens a stream of the machine's events, as frames.
    pub(crate) async fn events(&self, vm: &str) -> Result<UnixStream, ProcessError> {
        self.stream(Request::Events { vm: vm.to_owned() }).await
    }

    /// Sends a request that turns its connection into a stream once the worker agrees.
    async fn stream(&self, request: Request) -> Result<UnixStream, ProcessError> {
        let mut stream = self.connect().await?;
        wire::send_async(&mut stream, &request)
            .await
            .map_err(self.lost())?;
        let reply = wire::receive_async(&mut stream)
            .await
            .map_err(self.lost())?;
        match self.succeeded(reply)? {
            Reply::Connected => Ok(stream),
            _ => Err(self.unexpected()),
        }
    }

    /// Forwards a loopback port to the guest's TCP port while the machine runs. If `host` is 0, any
    /// free port is used.
    pub(crate) async fn forward(
        &self,
        vm: &str,
        host: u16,
        port: u16,
    ) -> Result<SocketAddr, ProcessError> {
        match self
            .request(&Request::Forward {
                vm: vm.to_owned(),
                host,
                port,
            })
            .await?
        {
            Reply::Forwarded(address) => Ok(address),
            _ => Err(self.unexpected()),
        }
    }

    /// The addresses of this host that are forwarded to a machine, with the guest's ports.
    pub(crate) async fn forwards(&self, vm: &str) -> Result<Vec<(SocketAddr, u16)>, ProcessError> {
        let request = Request::Forwards { vm: vm.to_owned() };
        match self.request(&request).await? {
            Reply::Forwards(forwards) => Ok(forwards),
            _ => Err(self.unexpected()),
        }
    }

    /// Stops a machine. Returns true if it had to be killed at the deadline.
    pub(crate) async fn stop(&self, vm: &str, deadline: Duration) -> Result<bool, ProcessError> {
        let deadline_ms = deadline.as_millis().try_into().unwrap_or(u64::MAX);
        match self
            .request(&Request::Stop {
                vm: vm.to_owned(),
                deadline_ms,
            })
            .await?
        {
            Reply::Stopped { forced } => Ok(forced),
            _ => Err(self.unexpected()),
        }
    }

    /// Changes the conditions of the network's links.
    pub(crate) async fn order(&self, order: LinkOrder) -> Result<(), ProcessError> {
        match self.request(&Request::Links(order)).await? {
            Reply::Done => Ok(()),
            _ => Err(self.unexpected()),
        }
    }

    /// Kills a machine if it is running, and makes the worker forget it.
    pub(crate) async fn forget(&self, vm: &str) -> Result<(), ProcessError> {
        let request = Request::Forget { vm: vm.to_owned() };
        match self.request(&request).await? {
            Reply::Done => Ok(()),
            _ => Err(self.unexpected()),
        }
    }

    /// Kills the machines and ends the worker.
    pub(crate) async fn shutdown(&self) -> Result<(), ProcessError> {
        match self.request(&Request::Shutdown).await? {
            Reply::Done => Ok(()),
            _ => Err(self.unexpected()),
        }
    }
}

/// The frames of a stream of events.
#[derive(Debug)]
pub(crate) struct EventStream {
    cluster: String,
    stream: UnixStream,
}

impl EventStream {
    pub(crate) fn new(cluster: &str, stream: UnixStream) -> Self {
        Self {
            cluster: cluster.to_owned(),
            stream,
        }
    }

    /// The next event; `None` at the end.
    pub(crate) async fn next(&mut self) -> Result<Option<TimedEvent>, ProcessError> {
        match wire::receive_async(&mut self.stream).await {
            Ok(event) => Ok(Some(event)),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
            Err(source) => Err(ProcessError::Lost {
                cluster: self.cluster.clone(),
                source,
            }),
        }
    }
}
