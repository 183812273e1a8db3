//! The client side of a worker: each request uses a separate connection.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::io::AsyncReadExt as _;
use tokio::net::UnixStream;
use tokio::time::{sleep, timeout};

use super::ProcessError;
use super::protocol::{
    ExitReport, Hello, LinkOrder, MachineSpec, MachineStatus, MemberId, Reason, Reply, Request,
};
use super::{socket, wire};
use crate::model::event::TimedEvent;
use crate::util::fs::foreign_owner;

/// How long a worker may take to greet.
const GREETING: Duration = Duration::from_secs(10);

/// How long a worker may take for what it does at once.
const ANSWER: Duration = Duration::from_secs(20);

/// How long a worker may take to kill a machine, and to end.
const KILL: Duration = Duration::from_secs(20);

/// How long a worker may take to start a machine. It reads what the guest boots from its disk, and may wait for the
/// lock of the queue for memory.
const START: Duration = Duration::from_secs(180);

/// How often to try to connect to a worker that has too many clients already.
const FULL: Duration = Duration::from_millis(50);

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

    fn silent(&self, waited: Duration) -> ProcessError {
        ProcessError::Silent {
            cluster: self.cluster.clone(),
            waited,
        }
    }

    async fn connect(&self) -> Result<UnixStream, ProcessError> {
        let greeting = timeout(GREETING, async {
            let mut stream = self.reach().await?;
            wire::send_async(&mut stream, &Hello::own())
                .await
                .map_err(self.lost())?;
            let hello = wire::receive_async::<Hello>(&mut stream).await;
            Ok::<_, ProcessError>((stream, hello.map_err(self.lost())?))
        });
        let (stream, hello) = match greeting.await {
            Ok(greeted) => greeted?,
            Err(_) => return Err(self.silent(GREETING)),
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

    /// Connects to the worker's socket, without a limit of time.
    async fn reach(&self) -> Result<UnixStream, ProcessError> {
        loop {
            match socket::connect(&self.dir).await {
                // So many clients wait already that the kernel takes no more.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => sleep(FULL).await,
                Err(source) => return Err(self.unreachable(source)),
                Ok(stream) => return Ok(stream),
            }
        }
    }

    /// Ends a worker that does not answer, and its machines with it, whatever state they are in. False if no worker
    /// runs.
    pub(crate) async fn end_worker(&self) -> Result<bool, ProcessError> {
        let stream = match timeout(GREETING, self.reach()).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(_)) => return Ok(false),
            Err(_) => return Err(self.silent(GREETING)),
        };
        tracing::warn!(cluster = %self.cluster, "its worker does not answer and is killed");
        socket::kill_peer(&stream).map_err(self.lost())
    }

    /// Asks for an answer that takes no longer than `limit` in a worker that works.
    async fn request(&self, request: &Request, limit: Duration) -> Result<Reply, ProcessError> {
        self.succeeded(self.ask(request, limit).await?.0)
    }

    async fn ask(
        &self,
        request: &Request,
        limit: Duration,
    ) -> Result<(Reply, UnixStream), ProcessError> {
        let mut stream = self.connect().await?;
        let answer = timeout(limit, async {
            wire::send_async(&mut stream, request).await?;
            wire::receive_async(&mut stream).await
        });
        match answer.await {
            Ok(reply) => Ok((reply.map_err(self.lost())?, stream)),
            Err(_) => Err(self.silent(limit)),
        }
    }

    fn succeeded(&self, reply: Reply) -> Result<Reply, ProcessError> {
        match reply {
            Reply::Failed {
                reason: Reason::NotRunning,
                message,
                ..
            } => Err(ProcessError::NotRunning(message)),
            Reply::Failed {
                reason: Reason::Refused,
                message,
                ..
            } => Err(ProcessError::Refused(message)),
            Reply::Failed {
                reason: Reason::Other,
                message,
                ..
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
        let (reply, _) = self.ask(&Request::Start(Box::new(spec)), START).await?;
        if let Reply::Failed {
            reason: Reason::Other,
            ran: false,
            message,
        } = reply
        {
            return Err(ProcessError::NotStarted(message));
        }
        match self.succeeded(reply)? {
            Reply::Started { already, ip } => Ok((already, ip)),
            _ => Err(self.unexpected()),
        }
    }

    /// The cluster's machines.
    pub(crate) async fn list(&self) -> Result<Vec<MachineStatus>, ProcessError> {
        match self.request(&Request::List, ANSWER).await? {
            Reply::Machines(machines) => Ok(machines),
            _ => Err(self.unexpected()),
        }
    }

    /// Waits until the machine has ended.
    pub(crate) async fn wait(&self, target: &MemberId) -> Result<ExitReport, ProcessError> {
        match self
            .request(
                &Request::Wait {
                    target: target.clone(),
                },
                Duration::MAX,
            )
            .await?
        {
            Reply::Ended(report) => Ok(report),
            _ => Err(self.unexpected()),
        }
    }

    /// The end of the console's output.
    pub(crate) async fn console(&self, target: &MemberId) -> Result<String, ProcessError> {
        match self
            .request(
                &Request::Console {
                    target: target.clone(),
                },
                ANSWER,
            )
            .await?
        {
            Reply::Console(text) => Ok(text),
            _ => Err(self.unexpected()),
        }
    }

    /// Opens a stream to a TCP port of the guest.
    pub(crate) async fn dial(
        &self,
        target: &MemberId,
        port: u16,
    ) -> Result<UnixStream, ProcessError> {
        #[cfg(fleetbox_fake)]
        if let Some(guest) = super::fake::guest_from_env() {
            let connected = UnixStream::connect(guest).await;
            return connected.map_err(|source| self.unreachable(source));
        }
        self.stream(Request::Dial {
            target: target.clone(),
            port,
        })
        .await
    }

    /// Opens a stream to the serial console.
    pub(crate) async fn serial(&self, target: &MemberId) -> Result<UnixStream, ProcessError> {
        self.stream(Request::Serial {
            target: target.clone(),
        })
        .await
    }

    /// Opens a stream of the machine's events, as frames.
    pub(crate) async fn events(&self, target: &MemberId) -> Result<UnixStream, ProcessError> {
        self.stream(Request::Events {
            target: target.clone(),
        })
        .await
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
        target: &MemberId,
        host: u16,
        port: u16,
    ) -> Result<SocketAddr, ProcessError> {
        match self
            .request(
                &Request::Forward {
                    target: target.clone(),
                    host,
                    port,
                },
                ANSWER,
            )
            .await?
        {
            Reply::Forwarded(address) => Ok(address),
            _ => Err(self.unexpected()),
        }
    }

    /// The addresses of this host that are forwarded to a machine, with the guest's ports.
    pub(crate) async fn forwards(
        &self,
        target: &MemberId,
    ) -> Result<Vec<(SocketAddr, u16)>, ProcessError> {
        let request = Request::Forwards {
            target: target.clone(),
        };
        match self.request(&request, ANSWER).await? {
            Reply::Forwards(forwards) => Ok(forwards),
            _ => Err(self.unexpected()),
        }
    }

    /// Stops a machine. Returns true if it had to be killed at the deadline.
    pub(crate) async fn stop(
        &self,
        target: &MemberId,
        deadline: Duration,
    ) -> Result<bool, ProcessError> {
        let deadline_ms = deadline.as_millis().try_into().unwrap_or(u64::MAX);
        // The machine ends soon after the deadline.
        let limit = deadline.saturating_add(KILL);
        match self
            .request(
                &Request::Stop {
                    target: target.clone(),
                    deadline_ms,
                },
                limit,
            )
            .await?
        {
            Reply::Stopped { forced } => Ok(forced),
            _ => Err(self.unexpected()),
        }
    }

    /// Changes the conditions of the network's links.
    pub(crate) async fn order(&self, order: LinkOrder) -> Result<(), ProcessError> {
        match self.request(&Request::Links(order), ANSWER).await? {
            Reply::Done => Ok(()),
            _ => Err(self.unexpected()),
        }
    }

    /// Kills a machine if it is running, and makes the worker forget it. With the `last` machine of its cluster, waits
    /// for the end of this worker, unless another machine has been started.
    pub(crate) async fn forget(&self, target: &MemberId, last: bool) -> Result<(), ProcessError> {
        let request = Request::Forget {
            target: target.clone(),
            last,
        };
        let (reply, mut stream) = self.ask(&request, KILL).await?;
        if !matches!(self.succeeded(reply)?, Reply::Done) {
            return Err(self.unexpected());
        }
        if last {
            // It closes the connection when it ends, or at once if it does not.
            match timeout(KILL, stream.read(&mut [0])).await {
                Ok(_) => {}
                Err(_) => return Err(self.silent(KILL)),
            }
        }
        Ok(())
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
