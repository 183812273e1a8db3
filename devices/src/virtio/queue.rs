//! A split virtqueue, as a device's worker uses it (virtio 1.2, section 2.7).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use fleetbox_arch::GuestMemory;
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress};

use super::{F_EVENT_IDX, Interrupt, QueueState};
use crate::event::Event;

/// Maximum number of descriptors in one chain. A driver may use as many as the queue has (at most 256 here), or as an
/// indirect table has. Devices have lower limits.
const MAX_DESCRIPTORS: usize = 1024;

/// avail.flags: the driver wants no interrupts (without EVENT_IDX).
const AVAIL_F_NO_INTERRUPT: u16 = 1;

/// Why a queue can no longer be served. The driver has to reset the device.
#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    /// The driver enabled a queue with an invalid size or address.
    #[error("queue {queue}: its size is not a power of two, or its rings are not in guest memory")]
    Layout {
        /// Index of the queue.
        queue: u16,
    },
    /// The rings are invalid.
    #[error("queue {queue}: broken ring: {source}")]
    Ring {
        /// Index of the queue.
        queue: u16,
        /// What is wrong.
        source: virtio_queue::Error,
    },
    /// A descriptor chain loops, leaves its table, is too long, or is out of order.
    #[error("queue {queue}: broken descriptor chain at {head}")]
    Chain {
        /// Index of the queue.
        queue: u16,
        /// Index of the first descriptor.
        head: u16,
    },
    /// A request does not have the form that its device requires.
    #[error("queue {queue}: malformed request at descriptor {head}: {what}")]
    Request {
        /// Index of the queue.
        queue: u16,
        /// Index of the first descriptor.
        head: u16,
        /// What is wrong.
        what: &'static str,
    },
    /// The host failed, and no request can report it.
    #[error("the host failed: {0}")]
    Host(#[from] std::io::Error),
}

/// A range of guest memory that a descriptor names. It may be outside RAM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Buffer {
    /// GPA.
    pub addr: GuestAddress,
    /// Length in bytes, never 0.
    pub len: u32,
}

/// One request: the buffers of a descriptor chain. It can be reused for the next request.
#[derive(Debug, Default)]
pub struct Chain {
    /// Index of the first descriptor, which names the chain in the used ring.
    pub head: u16,
    /// The buffers that the device reads.
    pub readable: Vec<Buffer>,
    /// The buffers that the device writes.
    pub writable: Vec<Buffer>,
}

impl Chain {
    /// Bytes that the device may read.
    pub fn readable_len(&self) -> u64 {
        total(&self.readable)
    }

    /// Bytes that the device may write.
    pub fn writable_len(&self) -> u64 {
        total(&self.writable)
    }

    /// Fills `data` from the readable buffers at `offset`. Returns false if they are too short or outside guest memory.
    #[must_use]
    pub fn read(&self, memory: &GuestMemory, offset: u64, data: &mut [u8]) -> bool {
        pieces(&self.readable, offset, data.len()).is_some_and(|mut pieces| {
            pieces.all(|(addr, range)| memory.read_slice(&mut data[range], addr).is_ok())
        })
    }

    /// Writes `data` to the writable buffers at `offset`. Returns false if they are too short or outside guest memory.
    #[must_use]
    pub fn write(&self, memory: &GuestMemory, offset: u64, data: &[u8]) -> bool {
        pieces(&self.writable, offset, data.len()).is_some_and(|mut pieces| {
            pieces.all(|(addr, range)| memory.write_slice(&data[range], addr).is_ok())
        })
    }
}

fn total(buffers: &[Buffer]) -> u64 {
    buffers.iter().map(|b| u64::from(b.len)).sum()
}

/// The pieces of guest memory that make up `len` bytes at `offset` of `buffers`, each with its position in these bytes.
/// `None` if the buffers are too short.
fn pieces(
    buffers: &[Buffer],
    offset: u64,
    len: usize,
) -> Option<impl Iterator<Item = (GuestAddress, std::ops::Range<usize>)>> {
    let enough = offset.checked_add(len as u64)? <= total(buffers);
    let mut skip = offset;
    let mut done = 0;
    let pieces = buffers.iter().filter_map(move |buffer| {
        let size = u64::from(buffer.len);
        if skip >= size {
            skip -= size;
            return None;
        }
        // Where this would wrap around, there is no memory at its end either.
        let addr = GuestAddress(buffer.addr.0.saturating_add(skip));
        let count = (len - done).min((size - skip) as usize);
        skip = 0;
        let range = done..done + count;
        done += count;
        (count > 0).then_some((addr, range))
    });
    enough.then_some(pieces)
}

/// A queue. It is always empty if the driver has not set it up.
pub struct Virtqueue {
    queue: Option<Queue>,
    /// Position in the used ring at the last decision about an interrupt.
    announced: u16,
    index: u16,
    memory: GuestMemory,
    event: Event,
    interrupt: Interrupt,
    stop: Arc<AtomicBool>,
}

impl Virtqueue {
    /// A queue with the addresses and positions of `state`. It is always empty if it is not enabled there.
    ///
    /// # Errors
    /// The state is not that of a valid queue.
    pub(crate) fn new(
        index: u16,
        state: &QueueState,
        features: u64,
        memory: GuestMemory,
        event: Event,
        interrupt: Interrupt,
        stop: Arc<AtomicBool>,
    ) -> Result<Self, QueueError> {
        let layout = |_| QueueError::Layout { queue: index };
        let mut queue = None;
        if state.enabled {
            let mut q = Queue::new(state.max_size).map_err(layout)?;
            q.try_set_size(state.size).map_err(layout)?;
            q.try_set_desc_table_address(GuestAddress(state.desc_table))
                .map_err(layout)?;
            q.try_set_avail_ring_address(GuestAddress(state.avail_ring))
                .map_err(layout)?;
            q.try_set_used_ring_address(GuestAddress(state.used_ring))
                .map_err(layout)?;
            q.set_next_avail(state.next_avail);
            q.set_next_used(state.next_used);
            q.set_event_idx(features & F_EVENT_IDX != 0);
            q.set_ready(true);
            if state.avail_ring == 0 || !q.is_valid(&memory) {
                return Err(QueueError::Layout { queue: index });
            }
            queue = Some(q);
        }
        Ok(Self {
            queue,
            announced: state.next_used,
            index,
            memory,
            event,
            interrupt,
            stop,
        })
    }

    /// Index of the queue.
    pub fn index(&self) -> u16 {
        self.index
    }

    /// True if the driver has set it up.
    pub(crate) fn is_enabled(&self) -> bool {
        self.queue.is_some()
    }

    /// Size in descriptors; 0 if the driver has not set it up.
    pub fn size(&self) -> u16 {
        self.queue.as_ref().map_or(0, |queue| queue.size())
    }

    /// Guest memory.
    pub fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    /// The event that the driver's notifications signal.
    pub fn event(&self) -> &Event {
        &self.event
    }

    /// True once the thread must end. The worker should then return soon, and [`Virtqueue::pop`] returns no more
    /// requests.
    pub fn stopping(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    /// Next positions in the available and the used ring.
    pub(crate) fn position(&self) -> Option<(u16, u16)> {
        self.queue.as_ref().map(|q| (q.next_avail(), q.next_used()))
    }

    fn ring(&self, source: virtio_queue::Error) -> QueueError {
        QueueError::Ring {
            queue: self.index,
            source,
        }
    }

    /// Takes the next request into `chain`. Returns false if no request is waiting.
    ///
    /// # Errors
    /// The ring or the chain is broken.
    pub fn pop(&mut self, chain: &mut Chain) -> Result<bool, QueueError> {
        chain.readable.clear();
        chain.writable.clear();
        if self.stopping() {
            return Ok(false);
        }
        let Some(queue) = &mut self.queue else {
            return Ok(false);
        };
        let index = self.index;
        let popped = queue
            .iter(&self.memory)
            .map_err(|source| QueueError::Ring {
                queue: index,
                source,
            })?
            .next();
        let Some(mut descriptors) = popped else {
            return Ok(false);
        };
        chain.head = descriptors.head_index();
        let broken = QueueError::Chain {
            queue: index,
            head: chain.head,
        };
        // The iterator ends silently where a chain is broken: the last descriptor then is one
        // that says that another follows, or no descriptor at all.
        let mut complete = false;
        for (count, descriptor) in descriptors.by_ref().enumerate() {
            complete = !descriptor.has_next();
            let buffer = Buffer {
                addr: descriptor.addr(),
                len: descriptor.len(),
            };
            if count >= MAX_DESCRIPTORS {
                return Err(broken);
            }
            if descriptor.is_write_only() {
                if buffer.len > 0 {
                    chain.writable.push(buffer);
                }
            } else if !chain.writable.is_empty() {
                return Err(broken);
            } else if buffer.len > 0 {
                chain.readable.push(buffer);
            }
        }
        if complete { Ok(true) } else { Err(broken) }
    }

    /// Undoes the last [`Virtqueue::pop`], so that the next one returns the same chain.
    pub fn undo_pop(&mut self) {
        if let Some(queue) = &mut self.queue {
            queue.go_to_previous_position();
        }
    }

    /// Returns a chain to the driver, with the number of bytes written to it.
    ///
    /// # Errors
    /// The ring is broken.
    pub fn push(&mut self, head: u16, written: u32) -> Result<(), QueueError> {
        let result = match &mut self.queue {
            Some(queue) => queue.add_used(&self.memory, head, written),
            None => Ok(()),
        };
        result.map_err(|e| self.ring(e))
    }

    /// Returns several chains at once, so that the driver sees all of them or none.
    ///
    /// # Errors
    /// The ring is broken.
    pub fn push_all(&mut self, chains: &[(u16, u32)]) -> Result<(), QueueError> {
        let Some(((head, written), first)) = chains.split_last() else {
            return Ok(());
        };
        if let Some(queue) = &mut self.queue {
            // All elements but the last are stored ahead of the ring's index, which the last one
            // then moves past all of them.
            let size = queue.size();
            for (head, written) in first {
                let next = queue.next_used();
                let at = queue.used_ring() + 4 + 8 * u64::from(next % size);
                let element = u64::from(*head) | u64::from(*written) << 32;
                self.memory
                    .write_obj(element.to_le(), GuestAddress(at))
                    .map_err(|e| QueueError::Ring {
                        queue: self.index,
                        source: virtio_queue::Error::GuestMemory(e),
                    })?;
                queue.set_next_used(next.wrapping_add(1));
            }
        }
        self.push(*head, *written)
    }

    /// Interrupts the driver for returned chains, if it wants that.
    ///
    /// # Errors
    /// The ring is broken.
    pub fn interrupt(&mut self) -> Result<(), QueueError> {
        let Some(queue) = &self.queue else {
            return Ok(());
        };
        // The driver must see the chains before this looks whether it waits for them.
        std::sync::atomic::fence(Ordering::SeqCst);
        let load = |at: u64| {
            self.memory
                .load::<u16>(GuestAddress(at), Ordering::Relaxed)
                .map(u16::from_le)
                .map_err(virtio_queue::Error::GuestMemory)
        };
        let used = queue.next_used();
        let wanted = if queue.event_idx_enabled() {
            // used_event follows the ring (section 2.7.7): an interrupt is due if the chain that
            // it names is among those returned since the last time.
            let before = std::mem::replace(&mut self.announced, used);
            let at = queue.avail_ring() + 4 + 2 * u64::from(queue.size());
            load(at)
                .map(|event| used.wrapping_sub(event).wrapping_sub(1) < used.wrapping_sub(before))
        } else {
            // The flag may be stale by a moment either way, which the specification allows.
            load(queue.avail_ring()).map(|flags| flags & AVAIL_F_NO_INTERRUPT == 0)
        };
        if wanted.map_err(|e| self.ring(e))? {
            self.interrupt.queue(self.index);
        }
        Ok(())
    }

    /// Asks the driver for notifications. Returns true if chains are already available, which must be served first.
    ///
    /// # Errors
    /// The ring is broken.
    pub fn enable_notifications(&mut self) -> Result<bool, QueueError> {
        let more = match &mut self.queue {
            Some(queue) => queue.enable_notification(&self.memory),
            None => Ok(false),
        };
        let more = more.map_err(|e| self.ring(e))?;
        Ok(more && !self.stopping())
    }

    /// Asks the driver for no notifications, while the queue is being served anyway.
    ///
    /// # Errors
    /// The ring is broken.
    pub fn disable_notifications(&mut self) -> Result<(), QueueError> {
        let result = match &mut self.queue {
            Some(queue) => queue.disable_notification(&self.memory),
            None => Ok(()),
        };
        result.map_err(|e| self.ring(e))
    }

    /// An error about the request that begins at `head`.
    pub fn malformed(&self, head: u16, what: &'static str) -> QueueError {
        QueueError::Request {
            queue: self.index,
            head,
            what,
        }
    }
}

#[cfg(test)]
#[path = "queue_test.rs"]
mod tests;
