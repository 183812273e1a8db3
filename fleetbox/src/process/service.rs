//! The server side of a worker: each request uses a separate connection.

use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use fleetbox_net::GuestStream;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::broadcast::error::RecvError;
use tokio::time::timeout;

use super::member::{Member, State};
use super::protocol::{Hello, MachineSpec, MachineStatus, MemberId, Reason, Reply, Request};
use super::wire;
use super::worker::Worker;
use crate::model::names::MAX_COUNT;
use crate::store::Lock;

/// How long a client may take to send its request after connecting.
const REQUEST_DEADLINE: Duration = Duration::from_secs(20);

/// How long to wait for the end of a machine whose process is gone.
const ENDING: Duration = Duration::from_secs(5);

/// Maximum bytes of console input at once.
const TYPED: usize = 4096;

/// Shown to a follower of a console in place of output that it was too slow to read.
const MISSED: &[u8] = b"\n[some console output was lost]\n";

/// Maximum number of machines of one cluster.
const MAX_MACHINES: usize = MAX_COUNT as usize;

impl Worker {
    /// Answers one client.
    pub(super) async fn converse(self: &Arc<Self>, mut stream: UnixStream) -> io::Result<()> {
        let same_user = stream.peer_cred()?.uid() == nix::unistd::geteuid().as_raw();
        let root = stream.peer_cred()?.uid() == 0;
        if !same_user && !root {
            return Err(io::Error::from(io::ErrorKind::PermissionDenied));
        }
        let request = timeout(REQUEST_DEADLINE, async {
            let hello: Hello = wire::receive_async(&mut stream).await?;
            wire::send_async(&mut stream, &Hello::own()).await?;
            if hello.protocol != Hello::own().protocol {
                return Ok(None);
            }
            wire::receive_async(&mut stream).await.map(Some)
        });
        match request.await?? {
            None => Ok(()),
            Some(Request::Dial { target, port }) => self.dial(stream, &target, port).await,
            Some(Request::Serial { target }) => self.serial(stream, &target).await,
            Some(Request::Events { target }) => self.events(stream, &target).await,
            Some(Request::Wait { target }) => {
                // The client may lose interest before the machine ends.
                let (mut read, mut write) = stream.split();
                let mut byte = [0];
                tokio::select! {
                    reply = self.wait(&target) => wire::send_async(&mut write, &reply).await,
                    _ = read.read(&mut byte) => Ok(()),
                }
            }
            // The client wants to start a machine, and finds or starts another worker.
            Some(Request::List | Request::Start(_)) if self.is_ending() => Err(ending()),
            Some(Request::Start(spec)) => {
                let reply = self.start(*spec).await.ok_or_else(ending)?;
                wire::send_async(&mut stream, &reply).await
            }
            Some(request) => {
                // Carried out to its end even if the client goes away in between.
                let last = matches!(request, Request::Forget { last: true, .. });
                let shutdown = matches!(request, Request::Shutdown);
                let reply = self.answer(request).await;
                let end = shutdown || (last && self.close_if_empty().await);
                let sent = wire::send_async(&mut stream, &reply).await;
                if end {
                    self.shutdown.send_replace(true);
                    // The client sees the end of this process as that of the connection.
                    std::future::pending::<()>().await;
                }
                sent
            }
        }
    }

    async fn answer(self: &Arc<Self>, request: Request) -> Reply {
        match request {
            Request::List => Reply::Machines(self.list().await),
            Request::Console { target } => match self.member(&target).await {
                Ok(member) => Reply::Console(member.console_tail()),
                Err(reply) => reply,
            },
            Request::Forward { target, host, port } => self.forward(&target, host, port).await,
            Request::Forwards { target } => match self.member(&target).await {
                Ok(member) if !member.has_ended() => Reply::Forwards(member.forwards()),
                Ok(_) => not_running(&target.vm),
                Err(reply) => reply,
            },
            Request::Stop {
                target,
                deadline_ms,
            } => self.stop(&target, Duration::from_millis(deadline_ms)).await,
            Request::Links(order) => match self.network.order(order) {
                Ok(()) => Reply::Done,
                Err(error) => failed(Reason::Other, format!("cannot change the links: {error}")),
            },
            Request::Forget { target, .. } => {
                self.forget(&target).await;
                Reply::Done
            }
            Request::Shutdown => {
                self.kill_all().await;
                Reply::Done
            }
            Request::Start(_)
            | Request::Dial { .. }
            | Request::Wait { .. }
            | Request::Serial { .. }
            | Request::Events { .. } => failed(
                Reason::Other,
                "this request has no single answer".to_owned(),
            ),
        }
    }

    /// The machine of that VM, running or ended.
    async fn member(&self, target: &MemberId) -> Result<Arc<Member>, Reply> {
        let members = self.members.lock().await;
        match members.get(&target.vm) {
            Some(member) if member.is(target) => Ok(Arc::clone(member)),
            _ => Err(not_running(&target.vm)),
        }
    }

    /// Stops starting machines if none runs. Then true, and the worker is to end.
    async fn close_if_empty(&self) -> bool {
        let members = self.members.lock().await;
        let empty = members.values().all(|member| member.has_ended());
        if empty {
            self.closed.store(true, Ordering::Release);
        }
        empty
    }

    /// Starts a machine. There is no answer if the worker is ending. The start goes on even if the client goes away.
    async fn start(self: &Arc<Self>, spec: MachineSpec) -> Option<Reply> {
        let name = spec.name.clone();
        let target = MemberId {
            vm: name.clone(),
            id: spec.id.clone(),
        };
        let refused = |why| Some(failed(Reason::Other, why));
        let mut claim = None;
        let (member, already) = loop {
            let mut members = self.members.lock().await;
            if self.is_ending() {
                return None;
            }
            match members.get(&name) {
                Some(member) if !member.has_ended() => {
                    let member = Arc::clone(member);
                    drop(members);
                    // The lock goes with the machine process, whose end is noticed here a moment later.
                    if member.is(&target) && Lock::is_held(&spec.lock).unwrap_or(true) {
                        break (member, true);
                    }
                    if timeout(ENDING, member.ended()).await.is_err() {
                        return refused(format!("another VM named {name} is running"));
                    }
                }
                old => {
                    if claim.is_none()
                        && let Some(wanted) = spec.claim.clone()
                    {
                        // That may wait for others, for whom the other members must not.
                        drop(members);
                        let hold = move || wanted.hold().map_err(io::Error::other);
                        claim = match tokio::task::spawn_blocking(hold).await {
                            Ok(Ok(held)) => Some(held),
                            Ok(Err(error)) => return refused(unstarted(&name, error)),
                            Err(error) => return refused(unstarted(&name, error.into())),
                        };
                        continue;
                    }
                    if old.is_none() && members.len() >= MAX_MACHINES {
                        return refused(format!(
                            "cannot start {name}: a cluster has at most {MAX_MACHINES} VMs"
                        ));
                    }
                    if old.is_some() {
                        self.network.detach(&name);
                    }
                    let link = match self.network.attach(&name, spec.mac, spec.ip) {
                        Ok(link) => link,
                        Err(error) => {
                            return refused(format!(
                                "cannot attach {name} to its network: {error}"
                            ));
                        }
                    };
                    match Member::spawn(spec, link, claim).await {
                        Ok(member) => {
                            members.insert(name.clone(), Arc::clone(&member));
                            self.count(Arc::clone(&member));
                            break (member, false);
                        }
                        Err(error) => return refused(unstarted(&name, error)),
                    }
                }
            }
        };
        match member.settled().await {
            State::Ended(report) => Some(Reply::Failed {
                reason: Reason::Other,
                message: report
                    .failure
                    .unwrap_or_else(|| format!("{name} powered off immediately")),
                ran: report.ran,
            }),
            State::Starting | State::Running => Some(Reply::Started {
                already,
                ip: Some(member.ip()),
            }),
        }
    }

    /// Counts the machine as running until it ends, and then detaches it from the network.
    fn count(self: &Arc<Self>, member: Arc<Member>) {
        let worker = Arc::clone(self);
        worker
            .activity
            .send_modify(|activity| activity.running += 1);
        tokio::spawn(async move {
            member.ended().await;
            {
                let members = worker.members.lock().await;
                // If it has been started again, its place on the network is the new one's.
                if members
                    .get(member.name())
                    .is_some_and(|now| Arc::ptr_eq(now, &member))
                {
                    worker.network.detach(member.name());
                }
            }
            worker
                .activity
                .send_modify(|activity| activity.running -= 1);
        });
    }

    async fn list(&self) -> Vec<MachineStatus> {
        let members = self.members.lock().await;
        members
            .values()
            .map(|member| MachineStatus {
                name: member.name().to_owned(),
                running: !member.has_ended(),
                ip: Some(member.ip()),
            })
            .collect()
    }

    async fn wait(&self, target: &MemberId) -> Reply {
        match self.member(target).await {
            Ok(member) => Reply::Ended(member.ended().await),
            Err(reply) => reply,
        }
    }

    async fn stop(&self, target: &MemberId, deadline: Duration) -> Reply {
        let vm = target.vm.as_str();
        let member = match self.member(target).await {
            Ok(member) if !member.has_ended() => member,
            Ok(_) => return not_running(vm),
            Err(reply) => return reply,
        };
        let forced = if deadline.is_zero() {
            // As a power failure: the guest learns nothing.
            true
        } else {
            member.press_power_button();
            timeout(deadline, member.ended()).await.is_err()
        };
        if forced {
            tracing::info!(
                vm,
                ?deadline,
                "the guest did not power off in time and was killed"
            );
            member.kill();
            member.ended().await;
        }
        Reply::Stopped { forced }
    }

    async fn forget(&self, target: &MemberId) {
        let vm = target.vm.as_str();
        let Ok(member) = self.member(target).await else {
            return;
        };
        member.kill();
        member.ended().await;
        let mut members = self.members.lock().await;
        // Unless it was started again meanwhile.
        if members.get(vm).is_some_and(|now| Arc::ptr_eq(now, &member)) {
            members.remove(vm);
            self.network.detach(vm);
            self.network.forget(vm);
        }
    }

    async fn dial(&self, mut stream: UnixStream, target: &MemberId, port: u16) -> io::Result<()> {
        let mut byte = [0];
        let connected = tokio::select! {
            connected = self.connect(target, port) => connected,
            // The client says nothing before it is connected: it has given up.
            _ = stream.read(&mut byte) => return Ok(()),
        };
        let mut guest = match connected {
            Ok(guest) => guest,
            Err(reply) => return wire::send_async(&mut stream, &reply).await,
        };
        wire::send_async(&mut stream, &Reply::Connected).await?;
        tokio::io::copy_bidirectional(&mut stream, &mut guest).await?;
        stream.shutdown().await
    }

    /// Connects the client to the serial console until the machine or the client ends.
    async fn serial(&self, mut stream: UnixStream, target: &MemberId) -> io::Result<()> {
        let member = match self.member(target).await {
            Ok(member) => member,
            Err(reply) => return wire::send_async(&mut stream, &reply).await,
        };
        wire::send_async(&mut stream, &Reply::Connected).await?;
        let (recent, mut live) = member.follow_console();
        let (mut read, mut write) = stream.split();
        write.write_all(&recent).await?;
        let mut typed = [0; TYPED];
        let mut ended = pin!(member.ended());
        let mut typing = true;
        loop {
            tokio::select! {
                // Output that came before the end stands before it.
                biased;
                output = live.recv() => match output {
                    Ok(bytes) => write.write_all(&bytes).await?,
                    Err(RecvError::Lagged(_)) => write.write_all(MISSED).await?,
                    Err(RecvError::Closed) => break,
                },
                length = read.read(&mut typed), if typing => match length? {
                    // The client's other direction may go on.
                    0 => typing = false,
                    length => member.type_in(typed.get(..length).unwrap_or_default()),
                },
                _ = &mut ended => break,
            }
        }
        write.shutdown().await
    }

    /// Streams the events of a machine until the machine or the client ends.
    async fn events(&self, mut stream: UnixStream, target: &MemberId) -> io::Result<()> {
        let member = match self.member(target).await {
            Ok(member) => member,
            Err(reply) => return wire::send_async(&mut stream, &reply).await,
        };
        wire::send_async(&mut stream, &Reply::Connected).await?;
        let (past, mut live) = member.follow_events();
        let (mut read, mut write) = stream.split();
        let mut last = false;
        for event in &past {
            last = event.event.is_end();
            wire::send_async(&mut write, event).await?;
        }
        let mut byte = [0];
        while !last {
            tokio::select! {
                event = live.recv() => match event {
                    Ok(event) => {
                        last = event.event.is_end();
                        wire::send_async(&mut write, &event).await?;
                    }
                    // Some are missed, as by everybody who looks too late.
                    Err(RecvError::Lagged(_)) => {}
                    Err(RecvError::Closed) => break,
                },
                // The client says nothing: it is gone.
                _ = read.read(&mut byte) => break,
            }
        }
        write.shutdown().await
    }

    async fn connect(&self, target: &MemberId, port: u16) -> Result<GuestStream, Reply> {
        let vm = target.vm.as_str();
        let member = self.member(target).await?;
        if member.has_ended() {
            return Err(not_running(vm));
        }
        tokio::select! {
            connected = self.network.connect(member.ip(), port) => connected.map_err(|error| {
                failed(Reason::Refused, format!("cannot connect to port {port} of {vm}: {error}"))
            }),
            _ = member.ended() => Err(not_running(vm)),
        }
    }

    async fn forward(&self, target: &MemberId, host: u16, port: u16) -> Reply {
        let vm = target.vm.as_str();
        let member = match self.member(target).await {
            Ok(member) if !member.has_ended() => member,
            Ok(_) => return not_running(vm),
            Err(reply) => return reply,
        };
        let ip = member.ip();
        match member.forward((host, port), || self.network.forward(host, ip, port)) {
            Ok(address) => Reply::Forwarded(address),
            Err(error) => failed(
                Reason::Other,
                match host {
                    0 => format!("cannot forward to port {port} of {vm}: {error}"),
                    host => format!(
                        "cannot publish port {port} of {vm} as port {host} of this host: {error}"
                    ),
                },
            ),
        }
    }
}

/// Closes a connection without an answer.
fn ending() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionAborted, "this worker is ending")
}

fn failed(reason: Reason, message: String) -> Reply {
    Reply::Failed {
        reason,
        message,
        ran: false,
    }
}

/// The message for a machine whose process cannot be started.
fn unstarted(vm: &str, error: io::Error) -> String {
    format!("cannot start a process for {vm}: {error}")
}

fn not_running(vm: &str) -> Reply {
    failed(
        Reason::NotRunning,
        format!("{vm} is not running; start it with `fleetbox up {vm}`"),
    )
}
