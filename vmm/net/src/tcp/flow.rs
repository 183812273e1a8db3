//! One TCP connection between a guest and the host.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{self, Poll, Waker};
use std::time::Instant;

use smoltcp::socket::tcp::State;

use crate::config::NetworkConfig;
use crate::error::ConnectError;
use crate::frame::{Ipv4, Mac, RST, Tcp, Unreachable};
use crate::key::FlowKey;
use crate::output::Output;
use crate::port::Port;
use crate::stack::{FlowDevice, Stack};
use crate::timer::{Clock, Timer};

/// The state shared by all flows of a network.
#[derive(Debug, Clone)]
pub(crate) struct Context {
    pub(crate) config: Arc<NetworkConfig>,
    pub(crate) output: Rc<Output>,
    pub(crate) clock: Clock,
}

#[derive(Debug)]
pub(crate) enum Stage {
    /// The host is connecting. Has the guest's SYN, an IP packet.
    Waiting(Vec<u8>),
    /// The guest's side is connected or connecting.
    Open(Box<Stack>),
    /// The flow has ended.
    Over,
}

/// One TCP connection between a guest and the host.
#[derive(Debug)]
pub(crate) struct Flow {
    /// A number that is unique in the network.
    pub(crate) id: u64,
    pub(crate) key: FlowKey,
    pub(crate) port: Rc<Port>,
    mac: Mac,
    pub(crate) stage: RefCell<Stage>,
    /// The flow's task.
    waker: RefCell<Option<Waker>>,
    /// True if the flow must be reset on both sides.
    pub(crate) ended: Cell<bool>,
    /// The guest has closed its half.
    pub(crate) guest_closed: Cell<bool>,
    /// When data last moved.
    pub(crate) active: Cell<Instant>,
}

impl Flow {
    pub(crate) fn new(id: u64, key: FlowKey, port: Rc<Port>, mac: Mac, stage: Stage) -> Rc<Self> {
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

    pub(crate) fn wake(&self) {
        if let Some(waker) = &*self.waker.borrow() {
            waker.wake_by_ref();
        }
    }

    pub(crate) fn end(&self) {
        self.ended.set(true);
        self.wake();
    }

    pub(crate) fn device<'a>(&'a self, packet: Option<&'a [u8]>) -> FlowDevice<'a> {
        FlowDevice {
            port: &self.port,
            mac: self.mac,
            packet,
            frames_only: self.port.takes_frames_only(),
        }
    }

    pub(crate) fn sleep_on(&self, cx: &task::Context<'_>) {
        let mut waker = self.waker.borrow_mut();
        if !waker
            .as_ref()
            .is_some_and(|waker| waker.will_wake(cx.waker()))
        {
            *waker = Some(cx.waker().clone());
        }
    }

    /// Updates the flow after segments of the guest.
    pub(crate) fn note(&self, stack: &mut Stack) -> State {
        let state = stack.socket().state();
        if matches!(
            state,
            State::CloseWait | State::LastAck | State::Closing | State::TimeWait
        ) {
            self.guest_closed.set(true);
        }
        state
    }

    /// Processes a segment of the guest. Returns false if it opens a new connection.
    pub(crate) fn input(&self, context: &Context, packet: &Ipv4<'_>, segment: &Tcp) -> bool {
        match &mut *self.stage.borrow_mut() {
            Stage::Waiting(syn) => {
                if segment.has(RST) {
                    self.end();
                } else if segment.is_opening() {
                    syn.clear();
                    syn.extend_from_slice(packet.packet);
                }
            }
            Stage::Open(stack) => {
                // Back in LISTEN is a connection that the guest has reset before it was open.
                let state = stack.socket().state();
                let is_over = matches!(state, State::TimeWait | State::Closed | State::Listen);
                if segment.is_opening() && is_over {
                    return false;
                }
                stack.receive(&mut self.device(Some(packet.packet)), context.clock.now());
                self.note(stack);
                self.wake();
            }
            Stage::Over => return !segment.is_opening(),
        }
        true
    }

    /// Waits until the flow must end.
    pub(crate) async fn until_ended(&self) {
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
    pub(crate) fn accept(&self, context: &Context) -> bool {
        let mut stage = self.stage.borrow_mut();
        let Stage::Waiting(syn) = &*stage else {
            return false;
        };
        let stack = Stack::accept(
            &mut self.device(Some(syn)),
            context.clock.now(),
            self.key.remote,
            buffer_size(self.port.flows.get()),
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
    pub(crate) fn refuse(&self, context: &Context, error: Option<&io::Error>) {
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
            _ => {
                return context
                    .output
                    .send_reset(&self.port, self.mac, &packet, &segment);
            }
        };
        context
            .output
            .send_unreachable(&self.port, self.mac, code, packet.packet);
    }

    /// Waits until the guest has answered the SYN of a connection into it.
    pub(crate) async fn handshake(
        &self,
        context: &Context,
        deadline: Instant,
    ) -> Result<(), ConnectError> {
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
            let now = context.clock.now();
            stack.transmit(&mut self.device(None), now);
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
            let next = stack.next(now).map(|at| context.clock.instant(at));
            timer.arm(cx, next.unwrap_or(deadline).min(deadline));
            Poll::Pending
        })
        .await
    }

    /// Resets the guest's side.
    pub(crate) fn abort(&self, context: &Context) {
        if let Stage::Open(stack) = &mut *self.stage.borrow_mut()
            && !stack.has_failed()
        {
            stack.socket().abort();
            stack.transmit(&mut self.device(None), context.clock.now());
        }
        self.port.flush();
    }
}

/// Bytes of buffer in each direction. The more connections the guest has, the less each gets, so
/// that all of them together stay below 150 MiB.
pub(crate) fn buffer_size(flows: usize) -> usize {
    match flows {
        0..128 => 256 << 10,
        128..512 => 64 << 10,
        _ => 32 << 10,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Limits;

    #[test]
    fn a_member_at_its_limit_of_connections_holds_less_than_150_mib() {
        let both_directions = |flows| 2 * buffer_size(flows);
        let held: usize = (0..Limits::default().tcp_flows).map(both_directions).sum();
        assert!(held < 150 << 20, "{held}");
        assert!(
            held > 100 << 20,
            "buffers this small slow connections down: {held}"
        );
    }
}
