//! TCP flows between guests and the host.
//!
//! A guest's SYN waits until the host's own connection stands, so what the guest sees is what the
//! host met. Each flow is a task of its own with bounded buffers; it reads from the host only
//! what the guest has room for and takes from the guest only what the host has taken, so a flow
//! whose peer is stuck stops by itself and holds up no other.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::future::poll_fn;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use smoltcp::socket::tcp::State;
use tokio::net::TcpStream;
use tokio::time::Sleep;

use super::core::Core;
use super::error::ConnectError;
use super::frame::{Ipv4, Mac, RST, Tcp, Unreachable};
use super::port::Port;
use super::stack::{Link, Stack};
use super::stream::{GuestStream, Host};

/// The port of DNS.
pub(super) const DNS_PORT: u16 = 53;

/// A flow this long without data may make room for a new one.
const EVICTABLE_AFTER: Duration = Duration::from_secs(10);
/// How long a connection stays after both sides have closed, to acknowledge a repeated FIN. The
/// link loses next to nothing, so this is far below the two segment lifetimes of RFC 9293.
const LINGER: Duration = Duration::from_secs(1);
/// How long the guest's half of a connection may stay open when nobody on the host holds the
/// stream any more.
const ORPHAN: Duration = Duration::from_secs(30);
/// How fresh a sign of the guest must be for a connection to be tried without asking first.
const SEEN: Duration = Duration::from_secs(5);
/// Rounds of moving data before other flows have their turn.
const ROUNDS: usize = 4;

/// What tells flows apart. Addresses of both families fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct FlowKey {
    pub(super) port: u32,
    pub(super) guest: SocketAddr,
    pub(super) remote: SocketAddr,
}

/// All TCP flows.
#[derive(Debug, Default)]
pub(super) struct TcpTable {
    flows: RefCell<HashMap<FlowKey, Rc<Flow>>>,
    next_id: Cell<u64>,
    pub(super) opened: Cell<u64>,
    pub(super) refused: Cell<u64>,
    pub(super) evicted: Cell<u64>,
}

impl TcpTable {
    fn get(&self, key: &FlowKey) -> Option<Rc<Flow>> {
        self.flows.borrow().get(key).cloned()
    }

    pub(super) fn len(&self) -> usize {
        self.flows.borrow().len()
    }

    fn insert(&self, flow: &Rc<Flow>) {
        flow.port.flows.set(flow.port.flows.get() + 1);
        self.opened.set(self.opened.get() + 1);
        self.flows.borrow_mut().insert(flow.key, flow.clone());
    }

    /// Forgets a flow; the second time does nothing.
    fn remove(&self, flow: &Rc<Flow>) {
        let mut flows = self.flows.borrow_mut();
        if flows
            .get(&flow.key)
            .is_some_and(|other| Rc::ptr_eq(other, flow))
        {
            flows.remove(&flow.key);
            flow.port.forget_waiting(flow.id);
            flow.port.flows.set(flow.port.flows.get().saturating_sub(1));
        }
    }

    /// Makes sure the port may have one more flow, at the cost of the one idle longest.
    fn admit(&self, port: &Port, limit: usize) -> bool {
        if port.flows.get() < limit {
            return true;
        }
        // The longest idle one of a moment ago can only have become less idle, and new ones are
        // younger: looking again before it would be due finds nothing.
        let now = Instant::now();
        if port.no_eviction_before.get().is_some_and(|at| now < at) {
            return false;
        }
        let oldest = {
            let flows = self.flows.borrow();
            let own = flows.values().filter(|flow| flow.key.port == port.id);
            own.min_by_key(|flow| flow.active.get()).cloned()
        };
        match oldest {
            Some(flow) if now.duration_since(flow.active.get()) >= EVICTABLE_AFTER => {
                tracing::debug!(key = ?flow.key, "an idle connection makes room for a new one");
                self.evicted.set(self.evicted.get() + 1);
                flow.end();
                self.remove(&flow);
                true
            }
            Some(flow) => {
                let at = flow.active.get() + EVICTABLE_AFTER;
                port.no_eviction_before.set(Some(at));
                false
            }
            None => false,
        }
    }

    /// Ends all flows of a port.
    pub(super) fn end_port(&self, port: u32) {
        let flows = self.flows.borrow();
        for flow in flows.values().filter(|flow| flow.key.port == port) {
            flow.end();
        }
    }
}

#[derive(Debug)]
enum Stage {
    /// The host connects; this is the guest's SYN, an IP packet.
    Waiting(Vec<u8>),
    /// The guest's side stands, or comes to stand.
    Open(Box<Stack>),
    /// Nothing is left.
    Over,
}

/// One TCP connection between a guest and the host.
#[derive(Debug)]
pub(super) struct Flow {
    /// A number that no other flow of the network has.
    id: u64,
    key: FlowKey,
    port: Rc<Port>,
    mac: Mac,
    stage: RefCell<Stage>,
    /// The flow's task.
    waker: RefCell<Option<Waker>>,
    /// The flow is to be reset on both sides.
    ended: Cell<bool>,
    /// The guest has closed its half.
    guest_closed: Cell<bool>,
    /// When data last moved.
    active: Cell<Instant>,
}

impl Flow {
    fn new(core: &Core, key: FlowKey, port: Rc<Port>, mac: Mac, stage: Stage) -> Rc<Self> {
        let id = core.tcp.next_id.get();
        core.tcp.next_id.set(id + 1);
        Rc::new(Self {
            id,
            key,
            port,
            mac,
            stage: RefCell::new(stage),
            waker: RefCell::new(None),
            ended: Cell::new(false),
            guest_closed: Cell::new(false),
            active: Cell::new(Instant::now()),
        })
    }

    fn wake(&self) {
        if let Some(waker) = &*self.waker.borrow() {
            waker.wake_by_ref();
        }
    }

    fn end(&self) {
        self.ended.set(true);
        self.wake();
    }

    fn link<'a>(&'a self, packet: Option<&'a [u8]>) -> Link<'a> {
        Link {
            port: &self.port,
            mac: self.mac,
            packet,
        }
    }

    fn sleep_on(&self, cx: &Context<'_>) {
        let mut waker = self.waker.borrow_mut();
        if !waker
            .as_ref()
            .is_some_and(|waker| waker.will_wake(cx.waker()))
        {
            *waker = Some(cx.waker().clone());
        }
    }

    /// Notes what the guest's segments did to the connection.
    fn note(&self, stack: &mut Stack) -> State {
        let state = stack.socket().state();
        if matches!(
            state,
            State::CloseWait | State::LastAck | State::Closing | State::TimeWait
        ) {
            self.guest_closed.set(true);
        }
        state
    }

    /// Takes a segment of the guest; false if it opens a connection anew.
    fn input(&self, core: &Core, packet: &Ipv4<'_>, segment: &Tcp) -> bool {
        match &mut *self.stage.borrow_mut() {
            Stage::Waiting(syn) => {
                if segment.has(RST) {
                    self.end();
                } else if Core::is_opening(segment) {
                    syn.clear();
                    syn.extend_from_slice(packet.packet);
                }
            }
            Stage::Open(stack) => {
                let state = stack.socket().state();
                if Core::is_opening(segment) && matches!(state, State::TimeWait | State::Closed) {
                    return false;
                }
                stack.receive(&mut self.link(Some(packet.packet)), core.now());
                self.note(stack);
                self.wake();
            }
            Stage::Over => return !Core::is_opening(segment),
        }
        true
    }

    /// Waits until the flow is to be ended.
    async fn until_ended(&self) {
        poll_fn(|cx| {
            self.sleep_on(cx);
            if self.ended.get() || !self.port.up.get() {
                return Poll::Ready(());
            }
            Poll::Pending
        })
        .await;
    }

    /// Answers the waiting SYN.
    fn accept(&self, core: &Core) -> bool {
        let mut stage = self.stage.borrow_mut();
        let Stage::Waiting(syn) = &*stage else {
            return false;
        };
        let stack = Stack::accept(
            &mut self.link(Some(syn)),
            core.now(),
            self.key.remote,
            buffer_size(&self.port),
        );
        match stack {
            Some(stack) => {
                *stage = Stage::Open(Box::new(stack));
                true
            }
            None => false,
        }
    }

    /// Tells the guest that its SYN failed.
    fn refuse(&self, core: &Core, error: Option<&io::Error>) {
        core.tcp.refused.set(core.tcp.refused.get() + 1);
        let stage = self.stage.replace(Stage::Over);
        let Stage::Waiting(syn) = &stage else { return };
        let Some(packet) = Ipv4::parse(syn) else {
            return;
        };
        let Some(segment) = Tcp::parse(packet.payload) else {
            return;
        };
        use io::ErrorKind::{HostUnreachable, NetworkUnreachable, PermissionDenied, TimedOut};
        let code = match error.map(io::Error::kind) {
            Some(HostUnreachable | TimedOut) => Unreachable::Host,
            Some(NetworkUnreachable) => Unreachable::Network,
            Some(PermissionDenied) => Unreachable::Prohibited,
            _ => return core.refuse(&self.port, self.mac, &packet, &segment),
        };
        core.send_unreachable(&self.port, self.mac, code, packet.packet);
    }
}

/// Bytes to buffer in each direction: less the more connections the guest has, so that all of
/// them together stay below 150 MiB.
fn buffer_size(port: &Port) -> usize {
    match port.flows.get() {
        0..128 => 256 << 10,
        128..512 => 64 << 10,
        _ => 32 << 10,
    }
}

/// What a guest's SYN leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Target {
    Host(SocketAddr),
    Dns,
}

/// Whether guests may reach an address: only what lies beyond the host. Its loopback, its links
/// (where cloud providers serve credentials at 169.254.169.254) and groups are not for them.
pub(super) fn may_reach(address: Ipv4Addr) -> bool {
    let first = address.octets()[0];
    !(address.is_loopback()
        || address.is_link_local()
        || address.is_multicast()
        || first == 0
        || first >= 240)
}

impl Core {
    /// Where packets to `address` go on the host; `None` if nowhere.
    pub(super) fn translate(&self, address: Ipv4Addr) -> Option<IpAddr> {
        if let Some(mapped) = self.config.host_map.get(&address) {
            return Some(*mapped);
        }
        (address != self.config.subnet.gateway() && may_reach(address))
            .then_some(IpAddr::V4(address))
    }

    /// Takes a TCP segment of a guest.
    pub(super) fn tcp_input(self: &Rc<Self>, port: &Rc<Port>, from: Mac, packet: &Ipv4<'_>) {
        let Some(segment) = Tcp::parse(packet.payload) else {
            return;
        };
        let key = FlowKey {
            port: port.id,
            guest: SocketAddr::new(packet.source.into(), segment.source),
            remote: SocketAddr::new(packet.to.into(), segment.to),
        };
        if let Some(flow) = self.tcp.get(&key) {
            if flow.input(self, packet, &segment) {
                return;
            }
            // The guest uses the ports of a finished connection again.
            flow.end();
            self.tcp.remove(&flow);
        }
        if !Self::is_opening(&segment) || segment.source == 0 || segment.to == 0 {
            self.refuse(port, from, packet, &segment);
            return;
        }
        let target = if packet.to == self.config.subnet.gateway() && segment.to == DNS_PORT {
            Target::Dns
        } else if let Some(address) = self.translate(packet.to) {
            Target::Host(SocketAddr::new(address, segment.to))
        } else {
            self.tcp.refused.set(self.tcp.refused.get() + 1);
            self.refuse(port, from, packet, &segment);
            return;
        };
        if !self.tcp.admit(port, self.config.limits.tcp_flows) {
            self.tcp.refused.set(self.tcp.refused.get() + 1);
            self.refuse(port, from, packet, &segment);
            return;
        }
        let stage = Stage::Waiting(packet.packet.to_vec());
        let flow = Flow::new(self, key, port.clone(), from, stage);
        self.tcp.insert(&flow);
        tokio::task::spawn_local(outbound(self.clone(), flow, target));
    }

    /// Opens a connection to a guest.
    async fn open(self: &Rc<Self>, ip: IpAddr, guest_port: u16) -> Result<Rc<Flow>, ConnectError> {
        let IpAddr::V4(address) = ip else {
            return Err(ConnectError::NoMember { ip });
        };
        let port = self.member_at(address);
        let port = port.ok_or(ConnectError::NoMember { ip })?;
        let limits = &self.config.limits;
        let deadline = Instant::now() + limits.guest_timeout;

        // Most connections are tried while the guest boots. A SYN that gets no answer is
        // repeated ever more slowly; asking for the hardware address first finds the guest as
        // soon as it is there.
        let mut pause = Duration::from_millis(1);
        while port.seen.get().is_none_or(|at| at.elapsed() >= SEEN) {
            if !port.up.get() {
                return Err(ConnectError::Closed { ip });
            }
            if Instant::now() >= deadline {
                return Err(ConnectError::Unreachable { ip });
            }
            self.probe(&port);
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(50));
        }

        if !self.tcp.admit(&port, limits.tcp_flows) {
            return Err(ConnectError::TooMany {
                ip,
                limit: limits.tcp_flows,
            });
        }
        let gateway = IpAddr::V4(self.config.subnet.gateway());
        let guest = SocketAddr::new(ip, guest_port);
        let key = (0..64)
            .map(|_| FlowKey {
                port: port.id,
                guest,
                // The dynamic ports of RFC 6335.
                remote: SocketAddr::new(gateway, rand::random::<u16>() | 0xc000),
            })
            .find(|key| self.tcp.get(key).is_none())
            .ok_or(ConnectError::TooMany { ip, limit: 0x4000 })?;
        let mac = port.mac;
        let size = buffer_size(&port);
        let flow = Flow::new(self, key, port, mac, Stage::Over);
        let stack = Stack::connect(&mut flow.link(None), self.now(), key.remote, guest, size)
            // Port 0 is all that smoltcp refuses here.
            .ok_or(ConnectError::Refused {
                ip,
                port: guest_port,
            })?;
        *flow.stage.borrow_mut() = Stage::Open(Box::new(stack));
        self.tcp.insert(&flow);
        // A caller that gives up, and drops this future, must leave no flow behind.
        let guard = Unfinished {
            core: self.clone(),
            flow: flow.clone(),
            done: Cell::new(false),
        };
        flow.handshake(self, deadline).await?;
        guard.done.set(true);
        Ok(flow)
    }

    /// Opens a connection to a guest that ends in a stream of this process.
    pub(super) async fn connect(
        self: Rc<Self>,
        ip: IpAddr,
        guest_port: u16,
    ) -> Result<GuestStream, ConnectError> {
        let flow = self.open(ip, guest_port).await?;
        let (host, stream) = Host::pipe(SocketAddr::new(ip, guest_port));
        tokio::task::spawn_local(drive(self, flow, host));
        Ok(stream)
    }

    /// Opens a connection to a guest for one that the host accepted.
    pub(super) async fn forward(self: Rc<Self>, ip: IpAddr, guest_port: u16, stream: TcpStream) {
        let host = Host::tcp(stream);
        match self.open(ip, guest_port).await {
            Ok(flow) => drive(self, flow, host).await,
            Err(error) => {
                tracing::debug!(%error, "a forwarded connection is reset");
                host.reset();
            }
        }
    }
}

/// Removes a flow that never came to stand.
struct Unfinished {
    core: Rc<Core>,
    flow: Rc<Flow>,
    done: Cell<bool>,
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if !self.done.get() {
            self.flow.abort(&self.core);
            self.core.tcp.remove(&self.flow);
        }
    }
}

/// The task of a flow that a guest opens.
async fn outbound(core: Rc<Core>, flow: Rc<Flow>, target: Target) {
    let limit = core.config.limits.connect_timeout;
    let dial = async {
        match target {
            Target::Host(address) => {
                match tokio::time::timeout(limit, TcpStream::connect(address)).await {
                    Ok(result) => result.map(Host::tcp),
                    Err(_) => Err(io::ErrorKind::TimedOut.into()),
                }
            }
            Target::Dns => {
                let (host, stream) = Host::pipe(flow.key.guest);
                let core = core.clone();
                let member = flow.port.clone();
                tokio::task::spawn_local(async move { core.dns_stream(member, stream).await });
                Ok(host)
            }
        }
    };
    let connected = tokio::select! {
        biased;
        () = flow.until_ended() => None,
        result = dial => Some(result),
    };
    match connected {
        Some(Ok(host)) if flow.accept(&core) => drive(core, flow, host).await,
        Some(Ok(host)) => {
            host.reset();
            core.tcp.remove(&flow);
        }
        Some(Err(error)) => {
            tracing::debug!(key = ?flow.key, %error, "a guest's connection failed on the host");
            flow.refuse(&core, Some(&error));
            core.tcp.remove(&flow);
        }
        None => {
            flow.refuse(&core, None);
            core.tcp.remove(&flow);
        }
    }
}

/// Moves a flow's data until both sides have closed or one has failed.
async fn drive(core: Rc<Core>, flow: Rc<Flow>, mut host: Host) {
    let mut progress = Progress::new();
    let clean = poll_fn(|cx| flow.poll(&core, cx, &mut host, &mut progress)).await;
    if !clean {
        host.reset();
        flow.abort(&core);
    }
    *flow.stage.borrow_mut() = Stage::Over;
    core.tcp.remove(&flow);
}

/// How far a flow's task has come.
struct Progress {
    /// The host has closed its half.
    host_closed: bool,
    /// The host knows that the guest has closed its half.
    shut: bool,
    /// The host does not take data any more.
    deaf: bool,
    /// The host's connection has failed. What it sent before is the guest's all the same.
    failed: bool,
    /// When both sides had closed.
    finished: Option<Instant>,
    timer: Timer,
}

impl Progress {
    fn new() -> Self {
        Self {
            host_closed: false,
            shut: false,
            deaf: false,
            failed: false,
            finished: None,
            timer: Timer::new(),
        }
    }
}

/// A timer that is moved only when it would come too late: retransmission deadlines move with
/// every segment and hardly ever come.
pub(super) struct Timer {
    sleep: Pin<Box<Sleep>>,
    at: Instant,
}

impl Timer {
    pub(super) fn new() -> Self {
        let at = Instant::now();
        Self {
            sleep: Box::pin(tokio::time::sleep_until(at.into())),
            at,
        }
    }

    /// Wakes the task no later than `at`, and no earlier than in a millisecond.
    pub(super) fn arm(&mut self, cx: &mut Context<'_>, at: Instant) {
        let now = Instant::now();
        if at < self.at || self.at <= now {
            self.at = at.max(now + Duration::from_millis(1));
            self.sleep.as_mut().reset(self.at.into());
        }
        while self.sleep.as_mut().poll(cx).is_ready() {
            self.at = at.max(Instant::now() + Duration::from_millis(1));
            self.sleep.as_mut().reset(self.at.into());
        }
    }
}

impl Flow {
    /// Resets the guest's side.
    fn abort(&self, core: &Core) {
        if let Stage::Open(stack) = &mut *self.stage.borrow_mut()
            && !stack.has_failed()
        {
            stack.socket().abort();
            stack.transmit(&mut self.link(None), core.now());
        }
        self.port.flush();
    }

    /// Waits until the guest has answered the SYN of a connection into it.
    async fn handshake(&self, core: &Core, deadline: Instant) -> Result<(), ConnectError> {
        let (ip, port) = (self.key.guest.ip(), self.key.guest.port());
        let mut timer = Timer::new();
        poll_fn(|cx| {
            self.sleep_on(cx);
            if self.ended.get() || !self.port.up.get() {
                return Poll::Ready(Err(ConnectError::Closed { ip }));
            }
            let mut stage = self.stage.borrow_mut();
            let Stage::Open(stack) = &mut *stage else {
                return Poll::Ready(Err(ConnectError::Closed { ip }));
            };
            let now = core.now();
            stack.transmit(&mut self.link(None), now);
            self.port.flush();
            if stack.has_failed() {
                return Poll::Ready(Err(ConnectError::Closed { ip }));
            }
            match stack.socket().state() {
                State::SynSent | State::SynReceived => {}
                State::Closed => return Poll::Ready(Err(ConnectError::Refused { ip, port })),
                _ => return Poll::Ready(Ok(())),
            }
            if Instant::now() >= deadline {
                return Poll::Ready(Err(ConnectError::TimedOut { ip, port }));
            }
            self.port.poll_room(self.id, cx.waker());
            let next = stack.next(now).map(|at| core.instant(at));
            timer.arm(cx, next.unwrap_or(deadline).min(deadline));
            Poll::Pending
        })
        .await
    }

    /// Moves data as far as it goes. Ready with whether the connection ended in order.
    fn poll(
        &self,
        core: &Core,
        cx: &mut Context<'_>,
        host: &mut Host,
        progress: &mut Progress,
    ) -> Poll<bool> {
        self.sleep_on(cx);
        if self.ended.get() || !self.port.up.get() {
            return Poll::Ready(false);
        }
        let mut stage = self.stage.borrow_mut();
        let Stage::Open(stack) = &mut *stage else {
            return Poll::Ready(false);
        };
        let now = core.now();
        let mut more = true;
        for _ in 0..ROUNDS {
            let moved = self.shift(cx, stack, host, progress);
            if moved {
                self.active.set(Instant::now());
            }
            // In TIME-WAIT smoltcp would, after ten seconds, throw away what the host has yet to
            // take; the last acknowledgement is out long before.
            let quiet = progress.finished.is_some_and(|at| at.elapsed() >= LINGER);
            let sent = !quiet && stack.transmit(&mut self.link(None), now);
            more = moved || sent;
            if !more {
                break;
            }
        }
        self.port.flush();

        let state = self.note(stack);
        if stack.has_failed() || progress.failed && stack.socket().send_queue() == 0 {
            return Poll::Ready(false);
        }
        match state {
            State::TimeWait => {}
            State::Closed if self.guest_closed.get() && progress.host_closed => {}
            State::Closed | State::Listen => return Poll::Ready(false),
            _ => {
                self.wait(core, cx, stack, host, progress, more);
                let idle = self.active.get().elapsed();
                let orphan = host.is_orphan() && idle >= ORPHAN;
                if orphan || idle >= core.config.limits.tcp_idle {
                    return Poll::Ready(false);
                }
                return Poll::Pending;
            }
        }
        // Both sides have closed.
        let finished = *progress.finished.get_or_insert_with(Instant::now);
        let lingered = state == State::Closed || finished.elapsed() >= LINGER;
        if progress.shut && lingered {
            return Poll::Ready(true);
        }
        if self.active.get().elapsed() >= core.config.limits.tcp_idle {
            return Poll::Ready(false);
        }
        let idle_end = self.active.get() + core.config.limits.tcp_idle;
        let at = if lingered {
            idle_end
        } else {
            finished + LINGER
        };
        progress.timer.arm(cx, at);
        if more {
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    }

    /// Arranges to be woken when there may be more to do.
    fn wait(
        &self,
        core: &Core,
        cx: &mut Context<'_>,
        stack: &mut Stack,
        host: &Host,
        progress: &mut Progress,
        more: bool,
    ) {
        let now = core.now();
        let limit = if host.is_orphan() {
            ORPHAN
        } else {
            core.config.limits.tcp_idle
        };
        let mut at = self.active.get() + limit;
        let room = self.port.poll_room(self.id, cx.waker());
        if room && more {
            cx.waker().wake_by_ref();
        } else if room && let Some(next) = stack.next(now) {
            at = at.min(core.instant(next));
        }
        progress.timer.arm(cx, at);
    }

    /// Moves data between the connection's buffers and the host; true if there was any. When the
    /// host's side has failed, what it sent before is still read.
    fn shift(
        &self,
        cx: &mut Context<'_>,
        stack: &mut Stack,
        host: &mut Host,
        progress: &mut Progress,
    ) -> bool {
        let mut moved = false;
        let socket = stack.socket();
        while !progress.deaf && socket.can_recv() {
            let taken = socket.recv(|bytes| match host.poll_write(cx, bytes) {
                Poll::Ready(Ok(len)) => (len, Ok(len)),
                Poll::Ready(Err(error)) => (0, Err(error)),
                Poll::Pending => (0, Ok(0)),
            });
            match taken {
                Ok(Ok(0)) | Err(_) => break,
                Ok(Ok(_)) => moved = true,
                Ok(Err(_)) => progress.deaf = true,
            }
        }
        if self.guest_closed.get() && !progress.shut && socket.recv_queue() == 0 {
            match host.poll_shutdown(cx) {
                Poll::Ready(Ok(())) => {
                    progress.shut = true;
                    moved = true;
                }
                // The host's peer has closed both halves: there is nobody to tell.
                Poll::Ready(Err(_)) => progress.shut = true,
                Poll::Pending => {}
            }
        }
        while !progress.host_closed && !progress.failed && socket.can_send() {
            let read = socket.send(|space| match host.poll_read(cx, space) {
                Poll::Ready(Ok(len)) => (len, Some(Ok(len))),
                Poll::Ready(Err(error)) => (0, Some(Err(error))),
                Poll::Pending => (0, None),
            });
            match read {
                Ok(None) | Err(_) => {
                    progress.failed = progress.deaf;
                    break;
                }
                // The error was told to whoever wrote.
                Ok(Some(Ok(0))) if progress.deaf => progress.failed = true,
                Ok(Some(Ok(0))) => {
                    progress.host_closed = true;
                    socket.close();
                    moved = true;
                }
                Ok(Some(Ok(_))) => moved = true,
                Ok(Some(Err(_))) => progress.failed = true,
            }
        }
        moved
    }
}
