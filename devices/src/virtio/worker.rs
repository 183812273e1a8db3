//! The thread that serves a device's queues.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::{Interrupt, QueueError, Virtqueue};
use crate::event::Event;

/// A source that a worker waits for, besides its queues.
pub struct Interest<'a> {
    /// The file descriptor.
    pub fd: BorrowedFd<'a>,
    /// The events to wait for.
    pub flags: PollFlags,
}

/// Serves the queues of a device on a separate thread.
///
/// An error ends the thread, and the driver then sees a device that needs a reset. Between calls a
/// worker holds no request: it has returned every request or put it back ([`Virtqueue::undo_pop`]).
/// So the thread can end after any call.
pub trait QueueWorker: Send {
    /// Handles a notification of queue `index`. This is also called once for each queue at the
    /// start, because the driver may have notified it before.
    ///
    /// # Errors
    /// The queue is broken.
    fn queue_ready(&mut self, queues: &mut [Virtqueue], index: usize) -> Result<(), QueueError>;

    /// The source to wait for now, besides the queues.
    fn interest(&self) -> Option<Interest<'_>> {
        None
    }

    /// Handles an event of the source that [`QueueWorker::interest`] named.
    ///
    /// # Errors
    /// The queue is broken.
    fn source_ready(
        &mut self,
        queues: &mut [Virtqueue],
        events: PollFlags,
    ) -> Result<(), QueueError> {
        let _ = (queues, events);
        Ok(())
    }
}

/// A running thread.
pub(crate) struct Worker {
    name: String,
    thread: Option<JoinHandle<Vec<Virtqueue>>>,
    stop: Arc<AtomicBool>,
    wake: Event,
}

/// Marks the device as broken if the thread unwinds.
struct PanicGuard(Interrupt);

impl Drop for PanicGuard {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.needs_reset();
        }
    }
}

impl Worker {
    /// Starts a thread that serves `queues`. `stop` is the flag that the queues share.
    pub(crate) fn start(
        name: &str,
        mut worker: Box<dyn QueueWorker>,
        mut queues: Vec<Virtqueue>,
        interrupt: Interrupt,
        stop: Arc<AtomicBool>,
    ) -> io::Result<Self> {
        let wake = Event::new()?;
        let (stopped, woken) = (stop.clone(), wake.clone());
        let thread_name = name.to_owned();
        let thread = std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || {
                let guard = PanicGuard(interrupt);
                if let Err(error) = serve(worker.as_mut(), &mut queues, &woken, &stopped) {
                    tracing::warn!(device = thread_name, %error, "virtio device needs a reset");
                    guard.0.needs_reset();
                }
                queues
            })?;
        Ok(Self {
            name: name.to_owned(),
            thread: Some(thread),
            stop,
            wake,
        })
    }

    /// Ends the thread and returns its queues, or no queues if it panicked.
    pub(crate) fn stop(mut self) -> Vec<Virtqueue> {
        self.finish()
    }

    fn finish(&mut self) -> Vec<Virtqueue> {
        self.stop.store(true, Ordering::Release);
        self.wake.signal();
        let Some(thread) = self.thread.take() else {
            return Vec::new();
        };
        thread.join().unwrap_or_else(|_| {
            tracing::error!(device = self.name, "a virtio device's thread panicked");
            Vec::new()
        })
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.finish();
    }
}

fn serve(
    worker: &mut dyn QueueWorker,
    queues: &mut [Virtqueue],
    wake: &Event,
    stop: &AtomicBool,
) -> Result<(), QueueError> {
    for index in 0..queues.len() {
        worker.queue_ready(queues, index)?;
    }
    let mut ready = Vec::with_capacity(queues.len() + 2);
    while !stop.load(Ordering::Acquire) {
        wait(worker, queues, wake, &mut ready)?;
        for index in 0..queues.len() {
            let notified = ready.get(index + 1).is_some_and(|r| !r.is_empty());
            // A count that is gone by now was taken by no one else, so that this is just a
            // spurious wake-up.
            if notified && queues[index].event().take() {
                worker.queue_ready(queues, index)?;
            }
        }
        if let Some(events) = ready.get(queues.len() + 1).filter(|r| !r.is_empty()) {
            worker.source_ready(queues, *events)?;
        }
    }
    Ok(())
}

/// Waits for the thread's own event, the queues' events and the worker's source. `ready` reports,
/// in this order, which are ready.
fn wait(
    worker: &dyn QueueWorker,
    queues: &[Virtqueue],
    wake: &Event,
    ready: &mut Vec<PollFlags>,
) -> io::Result<()> {
    let mut fds = Vec::with_capacity(queues.len() + 2);
    let events = std::iter::once(wake).chain(queues.iter().map(Virtqueue::event));
    for event in events {
        fds.push(PollFd::new(event.as_fd(), PollFlags::POLLIN));
    }
    if let Some(interest) = worker.interest() {
        fds.push(PollFd::new(interest.fd, interest.flags));
    }
    loop {
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) => break,
            Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    ready.clear();
    ready.extend(
        fds.iter()
            .map(|fd| fd.revents().unwrap_or(PollFlags::empty())),
    );
    Ok(())
}
