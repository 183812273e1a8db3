//! Events, with which a vCPU thread or the hypervisor wakes a device's thread.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::Arc;

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// An event that any thread can signal, and that can be polled as a file descriptor.
///
/// Signals coalesce: a reader only learns that there was at least one.
///
/// ```
/// use fleetbox_devices::event::Event;
///
/// let event = Event::new()?;
/// event.signal();
/// event.signal();
/// assert!(event.take());
/// assert!(!event.take());
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Event(Arc<EventFd>);

impl Event {
    /// A new event, which is not signalled.
    ///
    /// # Errors
    /// The process is out of file descriptors.
    pub fn new() -> io::Result<Self> {
        Ok(Self(Arc::new(EventFd::new(EFD_NONBLOCK)?)))
    }

    /// Signals the event.
    pub fn signal(&self) {
        // The only failure of a non-blocking eventfd write is a counter at its maximum, which
        // means that the event is signalled already.
        let _ = self.0.write(1);
    }

    /// Clears the event. Returns true if it was signalled.
    pub fn take(&self) -> bool {
        self.0.read().is_ok()
    }

    /// The eventfd, for backends that signal it from the kernel (ioeventfd, irqfd).
    pub fn as_eventfd(&self) -> &EventFd {
        &self.0
    }
}

impl AsFd for Event {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: `EventFd` owns its descriptor and has no `AsFd` of its own; the result borrows
        // `self`, which keeps it open.
        unsafe { BorrowedFd::borrow_raw(self.0.as_raw_fd()) }
    }
}

/// The guest writes that signal an [`Event`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IoTrigger {
    /// Address on the memory-mapped I/O bus (GPA).
    pub address: u64,
    /// Length of the write in bytes (1, 2, 4 or 8), or 0 for any.
    pub len: u8,
}

/// Turns guest writes into events without going through the device model, if the backend supports
/// it.
///
/// A device must also work without this; then it gets the write as an ordinary bus write.
pub trait IoEvents: Send + Sync {
    /// From now on, signals `event` at each matching write.
    ///
    /// # Errors
    /// The backend refuses, for example because the trigger is taken.
    fn register(&self, trigger: IoTrigger, event: &Event) -> io::Result<()>;

    /// Undoes [`IoEvents::register`].
    ///
    /// # Errors
    /// The registration does not exist.
    fn unregister(&self, trigger: IoTrigger, event: &Event) -> io::Result<()>;
}
