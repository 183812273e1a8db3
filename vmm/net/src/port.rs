//! A member's place on the switch: its socket, and the frames that wait for it. The uplink has one
//! too, with a tap in place of the socket.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Instant;

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, recv, send, setsockopt, socketpair, sockopt,
};
use nix::unistd::{read, write};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use fleetbox_packet::{HEADER, MAX_PACKET, Packet};

use super::core::Joining;
use super::frame::Mac;
use super::links::Links;
use super::pipe::{Fate, GATEWAY};

/// Bytes in the queue for each flow that is told of room.
const SHARE: usize = 64 << 10;
/// Bytes that may wait for a member.
const BYTES: usize = 1 << 20;
/// Packets that may wait for a member.
const PACKETS: usize = 512;
/// Of both, what bulk data leaves to ARP, DHCP, DNS and the like.
const RESERVED: usize = 32;
const RESERVED_BYTES: usize = 48 << 10;
/// Packets waiting at which they are handed to the kernel without waiting for more.
const BATCH: usize = 64;
/// What is asked of the kernel for each end; it grants what its own limit allows.
const SEND_BUFFER: usize = 4 << 20;

/// Packets that wait for a member, one after another in a ring of bytes.
#[derive(Debug)]
struct Ring {
    bytes: Vec<u8>,
    /// Start and length of each packet.
    packets: VecDeque<(usize, usize)>,
    /// Bytes of all packets.
    used: usize,
}

impl Ring {
    fn new() -> Self {
        Self {
            // Zero pages: costs nothing until used.
            bytes: vec![0; BYTES],
            packets: VecDeque::new(),
            used: 0,
        }
    }

    /// Where `len` bytes in one piece are free.
    fn place(&self, len: usize) -> Option<usize> {
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

    /// Room for a packet, and what [`Ring::commit`] is to be told.
    fn free(&mut self, len: usize) -> Option<(usize, &mut [u8])> {
        if self.packets.len() == PACKETS || len == 0 {
            return None;
        }
        let start = self.place(len)?;
        Some((start, self.bytes.get_mut(start..start + len)?))
    }

    fn commit(&mut self, start: usize, len: usize) {
        self.packets.push_back((start, len));
        self.used += len;
    }

    fn first(&self) -> Option<&[u8]> {
        let (start, len) = self.packets.front()?;
        self.bytes.get(*start..start + len)
    }

    fn pop(&mut self) {
        if let Some((_, len)) = self.packets.pop_front() {
            self.used -= len;
        }
    }

    /// Whether there is room for the largest packet and some more.
    fn has_room(&self) -> bool {
        self.packets.len() + RESERVED < PACKETS
            && self.place(HEADER + MAX_PACKET + RESERVED_BYTES).is_some()
    }
}

/// Flows that wait for room, in the order in which they came. However many there are, each
/// operation takes the same time.
#[derive(Debug, Default)]
struct Waiting {
    queue: VecDeque<u64>,
    /// Without an entry for those in the queue that wait no more.
    wakers: HashMap<u64, Waker>,
}

impl Waiting {
    fn insert(&mut self, id: u64, waker: &Waker) {
        if self.wakers.insert(id, waker.clone()).is_none() {
            self.queue.push_back(id);
        }
    }

    fn remove(&mut self, id: u64) {
        self.wakers.remove(&id);
        // Cleared up only once most entries are stale, so that each is looked at twice at most.
        if self.queue.len() > 2 * self.wakers.len() + 16 {
            let wakers = &self.wakers;
            self.queue.retain(|id| wakers.contains_key(id));
        }
    }

    fn pop(&mut self) -> Option<Waker> {
        loop {
            let id = self.queue.pop_front()?;
            if let Some(waker) = self.wakers.remove(&id) {
                return Some(waker);
            }
        }
    }
}

/// What a member has sent and received; plain numbers for [`PortStatus`](super::PortStatus).
#[derive(Debug, Default)]
pub(super) struct PortCounters {
    pub(super) frames_in: Cell<u64>,
    pub(super) bytes_in: Cell<u64>,
    pub(super) frames_out: Cell<u64>,
    pub(super) bytes_out: Cell<u64>,
    /// Frames of the guest that were malformed, oversize or forged.
    pub(super) refused: Cell<u64>,
    /// Frames for the guest that found its queue full.
    pub(super) dropped: Cell<u64>,
}

pub(super) fn count(counter: &Cell<u64>, by: usize) {
    counter.set(counter.get().wrapping_add(by as u64));
}

/// A member's place on the switch.
#[derive(Debug)]
pub(super) struct Port {
    pub(super) id: u32,
    pub(super) name: String,
    pub(super) mac: Mac,
    pub(super) ip: Ipv4Addr,
    /// Leads to a network of the host, by a tap.
    pub(super) uplink: bool,
    pub(super) counters: PortCounters,
    /// Whether the guest's end is open.
    pub(super) up: Cell<bool>,
    /// When the guest last showed that it uses its address.
    pub(super) seen: Cell<Option<Instant>>,
    /// When it was last asked whether it does.
    pub(super) asked: Cell<Option<Instant>>,
    /// TCP flows of the guest, in both directions.
    pub(super) flows: Cell<usize>,
    /// Before this moment none of them is idle for long enough to give way to a new one.
    pub(super) no_eviction_before: Cell<Option<Instant>>,
    /// Hardware addresses that were seen behind the guest's, and when.
    pub(super) learned: RefCell<HashMap<Mac, Instant>>,
    /// Broadcasts the guest may still send, and when that was counted.
    flood: Cell<(u32, Instant)>,
    socket: AsyncFd<OwnedFd>,
    ring: RefCell<Ring>,
    /// The kernel's buffer is full.
    blocked: Cell<bool>,
    /// The task that waits for room in it.
    writer: RefCell<Option<Waker>>,
    /// Flows that wait for room in the ring.
    waiting: RefCell<Waiting>,
    /// What hinders frames of the gateway.
    links: Rc<Links>,
}

/// Broadcasts a second, and at once, that a member may send to the others.
const FLOOD_RATE: u32 = 2000;

/// The two ends of a link: the switch's and the guest's.
pub(super) fn link() -> io::Result<(OwnedFd, OwnedFd)> {
    let (ours, theirs) = socketpair(
        AddressFamily::Unix,
        SockType::SeqPacket,
        None,
        SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
    )?;
    for end in [&ours, &theirs] {
        setsockopt(end, sockopt::SndBuf, &SEND_BUFFER)?;
        // Beyond net.core.wmem_max only the privileged may go; to others the limit is enough.
        let _ = setsockopt(end, sockopt::SndBufForce, &SEND_BUFFER);
    }
    Ok((ours, theirs))
}

impl Port {
    /// Must be called on the network's runtime.
    pub(super) fn new(
        id: u32,
        joining: &Joining,
        ip: Ipv4Addr,
        socket: OwnedFd,
        links: Rc<Links>,
    ) -> io::Result<Self> {
        // SAFETY: an `OwnedFd` names the same open descriptor for as long as it lives, and the
        // `AsyncFd` that owns it gives it to nobody.
        let socket = unsafe { AsyncFd::register(socket) }?;
        Ok(Self {
            id,
            name: joining.name.clone(),
            mac: joining.mac,
            ip,
            uplink: joining.uplink,
            counters: PortCounters::default(),
            up: Cell::new(true),
            seen: Cell::new(None),
            asked: Cell::new(None),
            flows: Cell::new(0),
            no_eviction_before: Cell::new(None),
            learned: RefCell::default(),
            flood: Cell::new((FLOOD_RATE, Instant::now())),
            socket,
            ring: RefCell::new(Ring::new()),
            blocked: Cell::new(false),
            writer: RefCell::new(None),
            waiting: RefCell::default(),
            links,
        })
    }

    /// Whether it is the member of this name; names are compared as DNS compares them.
    pub(super) fn is_named(&self, name: &str) -> bool {
        !self.uplink && self.name.eq_ignore_ascii_case(name)
    }

    /// Waits until a frame can be read, or the other end is gone.
    pub(super) fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // The readiness stays set; `receive` clears it when it finds nothing.
        ready!(self.socket.poll_read_ready(cx))?.retain_ready();
        Poll::Ready(Ok(()))
    }

    /// Reads one packet. `WouldBlock` when there is none; an empty one is the end.
    pub(super) fn receive(&self, buffer: &mut [u8]) -> io::Result<usize> {
        self.socket.try_io(Interest::READABLE, |socket| {
            Ok(if self.uplink {
                // A tap has bare frames, with nothing left to be done.
                let Some((header, frame)) = buffer.split_at_mut_checked(HEADER) else {
                    return Ok(0);
                };
                header.fill(0);
                match read(socket, frame)? {
                    0 => 0,
                    len => HEADER + len,
                }
            } else {
                recv(socket.as_raw_fd(), buffer, MsgFlags::MSG_DONTWAIT)?
            })
        })
    }

    /// Room for bulk data; false also puts the flow `id` in the queue of those to be told when
    /// there is.
    pub(super) fn poll_room(&self, id: u64, waker: &Waker) -> bool {
        if self.has_room() {
            return true;
        }
        self.waiting.borrow_mut().insert(id, waker);
        if self.is_slow() {
            self.links.wake();
        }
        false
    }

    /// A flow waits no more.
    pub(super) fn forget_waiting(&self, id: u64) {
        self.waiting.borrow_mut().remove(id);
        // It may have been told of room that another can use.
        self.wake_waiting();
    }

    /// Whether bulk data has room, here and on the gateway's link.
    pub(super) fn has_room(&self) -> bool {
        self.ring.borrow().has_room() && !self.is_slow()
    }

    /// Whether the gateway's link has no room.
    fn is_slow(&self) -> bool {
        self.links.room_at(self.id).is_some()
    }

    /// Whether the gateway is to send frames only: to the uplink, and where faults count them.
    pub(super) fn takes_frames_only(&self) -> bool {
        self.uplink || self.links.path(GATEWAY, self.id).is_some()
    }

    /// Whether flows wait for room.
    pub(super) fn is_awaited(&self) -> bool {
        !self.waiting.borrow().wakers.is_empty()
    }

    /// Tells the flows that have waited longest that there is room, if there is plenty. Only as
    /// many as the room may do for: each of them calls this again after it has had its turn.
    pub(super) fn wake_waiting(&self) {
        let (count, used) = {
            let ring = self.ring.borrow();
            (ring.packets.len(), ring.used)
        };
        let plenty = count < PACKETS / 2 && used < BYTES / 2;
        if !plenty || !self.is_awaited() || !self.has_room() {
            return;
        }
        let mut waiting = self.waiting.borrow_mut();
        for _ in 0..(BYTES - used) / SHARE {
            match waiting.pop() {
                Some(waker) => waker.wake(),
                None => break,
            }
        }
    }

    /// Queues a frame of `len` bytes that `fill` writes, with its checksums; false, and counted, if
    /// there is no room.
    ///
    /// `fill` finds what an earlier frame left in the buffer and must write all of it.
    /// [`Self::flush`] sends it.
    pub(super) fn push(&self, len: usize, fill: impl FnOnce(&mut [u8])) -> bool {
        let filled = |bytes: Option<&mut [u8]>| {
            let (header, frame) = bytes?.split_at_mut_checked(HEADER)?;
            header.fill(0);
            fill(frame);
            Some(())
        };
        self.write(HEADER + len, filled).is_some()
    }

    /// Queues a packet of another member as it is; in frames if it is for the uplink.
    pub(super) fn pass(&self, packet: &Packet<'_>) {
        if self.uplink {
            packet.for_each_frame(|frame| {
                self.push(frame.len(), |slot| slot.copy_from_slice(frame));
            });
            return;
        }
        self.write(packet.bytes().len(), |bytes| {
            if let Some(bytes) = bytes {
                bytes.copy_from_slice(packet.bytes());
            }
        });
    }

    /// Like [`Self::push`] for callers that must write their packet somewhere in any case, and that
    /// write the header in front of it too, which is among the `len` bytes: `fill` gets `None`
    /// where there is no room.
    fn write<R>(&self, len: usize, fill: impl FnOnce(Option<&mut [u8]>) -> R) -> R {
        let mut ring = self.ring.borrow_mut();
        let place = ring.free(len).filter(|_| self.up.get());
        let (start, bytes) = place.unzip();
        let result = fill(bytes);
        if let Some(start) = start {
            ring.commit(start, len);
            if ring.packets.len().is_multiple_of(BATCH) || ring.used > BYTES / 4 {
                drop(ring);
                self.flush();
            }
        } else {
            count(&self.counters.dropped, 1);
        }
        result
    }

    /// [`Self::push`] for the gateway's own frames, which its link to the member may hinder.
    /// What is lost there counts as sent.
    pub(super) fn push_from_gateway(&self, len: usize, fill: impl FnOnce(&mut [u8])) -> bool {
        let filled = |bytes: Option<&mut [u8]>| {
            let (header, frame) = bytes?.split_at_mut_checked(HEADER)?;
            header.fill(0);
            fill(frame);
            Some(())
        };
        self.write_from_gateway(HEADER + len, filled).is_some()
    }

    /// [`Self::write`] for the gateway's own packets.
    pub(super) fn write_from_gateway<R>(
        &self,
        len: usize,
        fill: impl FnOnce(Option<&mut [u8]>) -> R,
    ) -> R {
        let path = self.links.path(GATEWAY, self.id);
        if path.is_none() && !self.uplink {
            return self.write(len, fill);
        }
        let mut bytes = vec![0; len];
        let result = fill(Some(&mut bytes));
        if let Some(packet) = Packet::parse(&bytes) {
            packet.for_each_frame(|frame| {
                let path = path.as_ref();
                if path.is_none_or(|path| self.links.send(path, frame) == Fate::Now) {
                    self.push(frame.len(), |slot| slot.copy_from_slice(frame));
                }
            });
        }
        result
    }

    /// Hands waiting frames to the kernel as far as it takes them.
    pub(super) fn flush(&self) {
        if self.blocked.get() {
            return;
        }
        let mut ring = self.ring.borrow_mut();
        while let Some(packet) = ring.first() {
            let frame = packet.get(HEADER..).unwrap_or_default();
            let sent = self.socket.try_io(Interest::WRITABLE, |socket| {
                Ok(if self.uplink {
                    write(socket, frame)?
                } else {
                    send(socket.as_raw_fd(), packet, MsgFlags::MSG_DONTWAIT)?
                })
            });
            match sent {
                Ok(_) => {
                    count(&self.counters.frames_out, 1);
                    count(&self.counters.bytes_out, frame.len());
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.blocked.set(true);
                    if let Some(writer) = self.writer.borrow_mut().take() {
                        writer.wake();
                    }
                    break;
                }
                // The other end is gone, which the reader finds out; or the kernel is short of
                // memory, and the frame is lost as on any network.
                Err(_) => count(&self.counters.dropped, 1),
            }
            ring.pop();
        }
        drop(ring);
        self.wake_waiting();
    }

    /// Sends what waits whenever the kernel takes it; never completes unless the socket fails.
    pub(super) fn poll_writer(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // First, so that [`Port::shut`] finds it however long the kernel takes nothing.
        *self.writer.borrow_mut() = Some(cx.waker().clone());
        while self.blocked.get() {
            ready!(self.socket.poll_write_ready(cx))?.retain_ready();
            self.blocked.set(false);
            self.flush();
            *self.writer.borrow_mut() = Some(cx.waker().clone());
        }
        Poll::Pending
    }

    /// Ends the port: nothing is queued any more and nobody waits for it.
    pub(super) fn shut(&self) {
        self.up.set(false);
        while let Some(waker) = self.waiting.borrow_mut().pop() {
            waker.wake();
        }
        if let Some(writer) = self.writer.borrow_mut().take() {
            writer.wake();
        }
    }

    /// Takes the right to send one broadcast to the other members.
    pub(super) fn may_flood(&self) -> bool {
        let (mut left, mut since) = self.flood.get();
        let gained = since.elapsed().as_millis() as u64 * u64::from(FLOOD_RATE) / 1000;
        if gained > 0 {
            left = (u64::from(left) + gained).min(u64::from(FLOOD_RATE)) as u32;
            since = Instant::now();
        }
        let may = left > 0;
        self.flood.set((left.saturating_sub(1), since));
        may
    }
}

/// The size of a buffer that holds any packet and shows which are oversize.
pub(super) const RECEIVE_BUFFER: usize = HEADER + MAX_PACKET + 2;

/// Whether an error of the socket means that the other end is gone.
pub(super) fn is_gone(error: &io::Error) -> bool {
    !matches!(
        error.raw_os_error().map(Errno::from_raw),
        Some(Errno::EINTR | Errno::ENOBUFS | Errno::ENOMEM)
    )
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
        let mut waiting = Waiting::default();
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
