//! Moves the data of a connection between the guest and the host.

use std::future::poll_fn;
use std::task::{self, Poll};
use std::time::{Duration, Instant};

use smoltcp::socket::tcp::State;

use super::flow::{Context, Flow, Stage};
use crate::stack::Stack;
use crate::stream::Host;
use crate::timer::Timer;

/// How long a connection is kept after both sides have closed, to acknowledge a repeated FIN. The
/// link loses almost nothing, so this is far shorter than the two segment lifetimes of RFC 9293.
const LINGER: Duration = Duration::from_secs(1);
/// How long the guest's half of a connection may stay open once the host has dropped the stream.
const ORPHAN: Duration = Duration::from_secs(30);
/// Maximum rounds of moving data before it is another flow's turn.
const ROUNDS: usize = 4;

/// Moves a flow's data until both sides have closed or one has failed. Then the flow has ended.
pub(crate) async fn relay(context: &Context, flow: &Flow, mut host: Host) {
    let mut progress = Progress::new();
    let clean = poll_fn(|cx| flow.poll(context, cx, &mut host, &mut progress)).await;
    if !clean {
        host.reset();
        flow.abort(context);
    }
    *flow.stage.borrow_mut() = Stage::Over;
}

/// The progress of a flow's task.
struct Progress {
    /// The host has closed its half.
    host_closed: bool,
    /// The host knows that the guest has closed its half.
    shut: bool,
    /// The host no longer accepts data.
    deaf: bool,
    /// The host's connection has failed. Data that it sent before is still delivered to the guest.
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

impl Flow {
    /// Moves as much data as possible. When ready, says whether the connection ended in order.
    fn poll(
        &self,
        context: &Context,
        cx: &mut task::Context<'_>,
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
        let now = context.clock.now();
        let mut more = true;
        for _ in 0..ROUNDS {
            let moved = self.shift(cx, stack, host, progress);
            if moved {
                self.active.set(Instant::now());
            }
            // In TIME-WAIT smoltcp would, after ten seconds, throw away what the host has yet to
            // take; the last acknowledgement is out long before.
            let quiet = progress.finished.is_some_and(|at| at.elapsed() >= LINGER);
            let sent = !quiet && stack.transmit(&mut self.device(None), now);
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
                self.wait(context, cx, stack, host, progress, more);
                let idle = self.active.get().elapsed();
                let orphan = host.is_orphan() && idle >= ORPHAN;
                if orphan || idle >= context.config.limits.tcp_idle {
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
        if self.active.get().elapsed() >= context.config.limits.tcp_idle {
            return Poll::Ready(false);
        }
        let idle_end = self.active.get() + context.config.limits.tcp_idle;
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

    /// Registers to be woken when there may be more to do.
    fn wait(
        &self,
        context: &Context,
        cx: &mut task::Context<'_>,
        stack: &mut Stack,
        host: &Host,
        progress: &mut Progress,
        more: bool,
    ) {
        let now = context.clock.now();
        let limit = if host.is_orphan() {
            ORPHAN
        } else {
            context.config.limits.tcp_idle
        };
        let mut at = self.active.get() + limit;
        let room = self.port.poll_room(self.id, cx.waker());
        if room && more {
            cx.waker().wake_by_ref();
        } else if room && let Some(next) = stack.next(now) {
            at = at.min(context.clock.instant(next));
        }
        progress.timer.arm(cx, at);
    }

    /// Moves data between the connection's buffers and the host. Returns true if there was any. If
    /// the host's side has failed, data that it sent before is still read.
    fn shift(
        &self,
        cx: &mut task::Context<'_>,
        stack: &mut Stack,
        host: &mut Host,
        progress: &mut Progress,
    ) -> bool {
        let mut moved = false;
        while !progress.deaf && stack.socket().can_recv() {
            let taken = stack.take(|bytes| match host.poll_write(cx, bytes) {
                Poll::Ready(Ok(len)) => (len, Ok(len)),
                Poll::Ready(Err(error)) => (0, Err(error)),
                Poll::Pending => (0, Ok(0)),
            });
            match taken {
                Some(Ok(0)) | None => break,
                Some(Ok(_)) => moved = true,
                Some(Err(_)) => progress.deaf = true,
            }
        }
        let socket = stack.socket();
        if self.guest_closed.get() && !progress.shut && socket.recv_queue() == 0 {
            match host.poll_shutdown(cx) {
                Poll::Ready(Ok(())) => {
                    progress.shut = true;
                    moved = true;
                }
                // The host's peer has closed both halves, and need not be told.
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
                // The write has reported the error.
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
