//! The queue of a member: packets in a ring of bytes, and flows that wait for room in it.

use std::collections::{HashMap, VecDeque};
use std::task::Waker;

use fleetbox_packet::{HEADER, MAX_PACKET};

/// Maximum bytes that wait for a member.
pub(crate) const BYTES: usize = 1 << 20;
/// Maximum packets that wait for a member.
const PACKETS: usize = 512;
/// How much of both is reserved for ARP, DHCP, DNS and the like, and not used by bulk data.
const RESERVED: usize = 32;
const RESERVED_BYTES: usize = 48 << 10;

/// Packets that wait for a member, stored one after another in a ring of bytes.
#[derive(Debug)]
pub(crate) struct Ring {
    bytes: Vec<u8>,
    /// Start and length of each packet.
    packets: VecDeque<(usize, usize)>,
    /// Bytes of all packets.
    used: usize,
}

impl Ring {
    pub(crate) fn new() -> Self {
        Self {
            // Zero pages: costs nothing until used.
            bytes: vec![0; BYTES],
            packets: VecDeque::new(),
            used: 0,
        }
    }

    /// The offset of `len` contiguous free bytes.
    pub(crate) fn place(&self, len: usize) -> Option<usize> {
        let (Some((head, _)), Some((last, last_len))) = (self.packets.front(), self.packets.back())
        else {
            return (len <= BYTES).then_some(0);
        };
        let tail = last + last_len;
        if tail <= *head {
            return (tail + len <= *head).then_some(tail);
        }
        if tail + len <= BYTES {
            return Some(tail);
        }
        (len <= *head).then_some(0)
    }

    /// Room for a packet, and its start for [`Ring::commit`].
    pub(crate) fn free(&mut self, len: usize) -> Option<(usize, &mut [u8])> {
        if self.packets.len() == PACKETS || len == 0 {
            return None;
        }
        let start = self.place(len)?;
        Some((start, self.bytes.get_mut(start..start + len)?))
    }

    pub(crate) fn commit(&mut self, start: usize, len: usize) {
        self.packets.push_back((start, len));
        self.used += len;
    }

    pub(crate) fn first(&self) -> Option<&[u8]> {
        let (start, len) = self.packets.front()?;
        self.bytes.get(*start..start + len)
    }

    pub(crate) fn pop(&mut self) {
        if let Some((_, len)) = self.packets.pop_front() {
            self.used -= len;
        }
    }

    /// The number of waiting packets.
    pub(crate) fn len(&self) -> usize {
        self.packets.len()
    }

    /// The number of waiting bytes.
    pub(crate) fn used(&self) -> usize {
        self.used
    }

    /// The number of free bytes while less than half of the ring is in use, otherwise `None`.
    pub(crate) fn plenty(&self) -> Option<usize> {
        let plenty = self.packets.len() < PACKETS / 2 && self.used < BYTES / 2;
        plenty.then_some(BYTES - self.used)
    }

    /// True if there is room for the largest packet and some more.
    pub(crate) fn has_room(&self) -> bool {
        self.packets.len() + RESERVED < PACKETS
            && self.place(HEADER + MAX_PACKET + RESERVED_BYTES).is_some()
    }
}

/// Flows that wait for room, in order of arrival. Each operation takes constant time.
#[derive(Debug, Default)]
pub(crate) struct WaitingFlows {
    queue: VecDeque<u64>,
    /// Flows in the queue that no longer wait have no entry here.
    wakers: HashMap<u64, Waker>,
}

impl WaitingFlows {
    pub(crate) fn insert(&mut self, id: u64, waker: &Waker) {
        if self.wakers.insert(id, waker.clone()).is_none() {
            self.queue.push_back(id);
        }
    }

    /// True if any flow is waiting.
    pub(crate) fn is_empty(&self) -> bool {
        self.wakers.is_empty()
    }

    pub(crate) fn remove(&mut self, id: u64) {
        self.wakers.remove(&id);
        // Cleared up only once most entries are stale, so that each is looked at twice at most.
        if self.queue.len() > 2 * self.wakers.len() + 16 {
            let wakers = &self.wakers;
            self.queue.retain(|id| wakers.contains_key(id));
        }
    }

    pub(crate) fn pop(&mut self) -> Option<Waker> {
        loop {
            let id = self.queue.pop_front()?;
            if let Some(waker) = self.wakers.remove(&id) {
                return Some(waker);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::task::Wake;

    use super::*;

    #[derive(Default)]
    struct Count(AtomicU64);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn those_that_wait_are_woken_once_and_in_order() {
        let counts: Vec<_> = (0..1000).map(|_| Arc::new(Count::default())).collect();
        let mut waiting = WaitingFlows::default();
        for (id, count) in counts.iter().enumerate() {
            // Twice: the second changes nothing about its place.
            waiting.insert(id as u64, &count.clone().into());
            waiting.insert(id as u64 / 2, &counts[id / 2].clone().into());
        }
        for id in (0..1000).filter(|id| id % 10 != 0) {
            waiting.remove(id);
        }
        assert!(waiting.queue.len() <= 2 * 100 + 16);
        for id in (0..1000).step_by(10) {
            waiting.pop().unwrap().wake();
            assert_eq!(counts[id].0.load(Ordering::Relaxed), 1);
        }
        assert!(waiting.pop().is_none());
    }
}
