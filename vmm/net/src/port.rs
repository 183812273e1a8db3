//! A port of the switch: a member's socket, and the frames that wait for it. The uplink has a port too, with a tap
//! instead of the socket.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
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

use crate::faults::{Fate, Faults, GATEWAY};
use crate::frame::Mac;
use crate::queue::{BYTES, Ring, WaitingFlows};

/// Free bytes in the queue for each flow that is woken.
const SHARE: usize = 64 << 10;
/// Number of waiting packets that are passed to the kernel without waiting for more.
const BATCH: usize = 64;
/// The buffer size requested from the kernel for each end. It grants at most its own limit.
const SEND_BUFFER: usize = 4 << 20;

/// A new member, checked as far as possible without the others.
#[derive(Debug, Clone)]
pub(crate) struct NewPort {
    pub(crate) name: String,
    pub(crate) mac: Mac,
    pub(crate) ip: Option<Ipv4Addr>,
    pub(crate) uplink: bool,
}

impl NewPort {
    /// True if it replaces `port`, because both cannot exist together.
    pub(crate) fn replaces(&self, port: &Port) -> bool {
        if self.uplink {
            port.uplink
        } else {
            port.is_named(&self.name)
        }
    }
}

/// Counters of what a member has sent and received, for [`PortStatus`](crate::PortStatus).
#[derive(Debug, Default)]
pub(crate) struct PortCounters {
    pub(crate) frames_in: Cell<u64>,
    pub(crate) bytes_in: Cell<u64>,
    pub(crate) frames_out: Cell<u64>,
    pub(crate) bytes_out: Cell<u64>,
    /// Frames of the guest that were malformed, oversize or forged.
    pub(crate) refused: Cell<u64>,
    /// Frames for the guest that were dropped because its queue was full.
    pub(crate) dropped: Cell<u64>,
}

pub(crate) fn count(counter: &Cell<u64>, by: usize) {
    counter.set(counter.get().wrapping_add(by as u64));
}

/// A port of the switch.
#[derive(Debug)]
pub(crate) struct Port {
    pub(crate) id: u32,
    pub(crate) name: String,
    pub(crate) mac: Mac,
    pub(crate) ip: Ipv4Addr,
    /// Leads to a network of the host through a tap.
    pub(crate) uplink: bool,
    pub(crate) counters: PortCounters,
    /// Whether the guest's end is open.
    pub(crate) up: Cell<bool>,
    /// When the guest last showed that it uses its address.
    pub(crate) seen: Cell<Option<Instant>>,
    /// When it was last asked whether it does.
    pub(crate) asked: Cell<Option<Instant>>,
    /// TCP flows of the guest, in both directions.
    pub(crate) flows: Cell<usize>,
    /// Until this moment none of them has been idle long enough to be replaced.
    pub(crate) no_eviction_before: Cell<Option<Instant>>,
    /// Hardware addresses that were seen behind the guest, and when.
    pub(crate) learned: RefCell<HashMap<Mac, Instant>>,
    /// How many broadcasts the guest may still send, and when that was computed.
    flood: Cell<(u32, Instant)>,
    socket: AsyncFd<OwnedFd>,
    ring: RefCell<Ring>,
    /// The kernel's buffer is full.
    blocked: Cell<bool>,
    /// The task that waits for room in it.
    writer: RefCell<Option<Waker>>,
    /// Flows that wait for room in the ring.
    waiting: RefCell<WaitingFlows>,
    /// The faults for frames of the gateway.
    faults: Rc<Faults>,
}

/// Maximum broadcasts per second, and in one burst, that a member may send to the others.
const FLOOD_RATE: u32 = 2000;

/// The two ends of a link: the switch's and the guest's.
pub(crate) fn new_link() -> io::Result<(OwnedFd, OwnedFd)> {
    let (ours, theirs) = socketpair(
        AddressFamily::Unix,
        SockType::SeqPacket,
        None,
        SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
    )?;
    for end in [&ours, &theirs] {
        setsockopt(end, sockopt::SndBuf, &SEND_BUFFER)?;
        // Only the privileged may go beyond net.core.wmem_max; for others that limit is enough.
        let _ = setsockopt(end, sockopt::SndBufForce, &SEND_BUFFER);
    }
    Ok((ours, theirs))
}

impl Port {
    /// Creates a port. Must be called on the network's runtime.
    pub(crate) fn new(
        id: u32,
        new: &NewPort,
        ip: Ipv4Addr,
        socket: OwnedFd,
        faults: Rc<Faults>,
    ) -> io::Result<Self> {
        // SAFETY: an `OwnedFd` names the same open descriptor for as long as it lives, and the
        // `AsyncFd` that owns it never gives it away.
        let socket = unsafe { AsyncFd::register(socket) }?;
        Ok(Self {
            id,
            name: new.name.clone(),
            mac: new.mac,
            ip,
            uplink: new.uplink,
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
            faults,
        })
    }

    /// True if it is the member with this name. Names are compared as in DNS.
    pub(crate) fn is_named(&self, name: &str) -> bool {
        !self.uplink && self.name.eq_ignore_ascii_case(name)
    }

    /// Waits until a frame can be read, or the other end is gone.
    pub(crate) fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // The readiness stays set; `receive` clears it when it finds nothing.
        ready!(self.socket.poll_read_ready(cx))?.retain_ready();
        Poll::Ready(Ok(()))
    }

    /// Reads one packet. `WouldBlock` means that none is waiting, and an empty packet means the end.
    pub(crate) fn receive(&self, buffer: &mut [u8]) -> io::Result<usize> {
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

    /// True if bulk data has room. If not, the flow `id` is woken when it has.
    pub(crate) fn poll_room(&self, id: u64, waker: &Waker) -> bool {
        if self.has_room() {
            return true;
        }
        self.waiting.borrow_mut().insert(id, waker);
        if self.is_slow() {
            self.faults.wake();
        }
        false
    }

    /// Ends the wait of a flow.
    pub(crate) fn forget_waiting(&self, id: u64) {
        self.waiting.borrow_mut().remove(id);
        // It may have been told of room that another can use.
        self.wake_waiting();
    }

    /// True if bulk data has room, here and on the gateway's link.
    pub(crate) fn has_room(&self) -> bool {
        self.ring.borrow().has_room() && !self.is_slow()
    }

    /// True if the gateway's link has no room.
    fn is_slow(&self) -> bool {
        self.faults.room_at(self.id).is_some()
    }

    /// True if the gateway must send single frames: to the uplink, and on links with faults, which count frames.
    pub(crate) fn takes_frames_only(&self) -> bool {
        self.uplink || self.faults.path(GATEWAY, self.id).is_some()
    }

    /// True if flows wait for room.
    pub(crate) fn is_awaited(&self) -> bool {
        !self.waiting.borrow().is_empty()
    }

    /// If there is plenty of room, wakes the flows that have waited longest, but only as many as the room is enough
    /// for. Each of them calls this again after its turn.
    pub(crate) fn wake_waiting(&self) {
        let plenty = self.ring.borrow().plenty();
        let Some(free) = plenty.filter(|_| self.is_awaited() && self.has_room()) else {
            return;
        };
        let mut waiting = self.waiting.borrow_mut();
        for _ in 0..free / SHARE {
            match waiting.pop() {
                Some(waker) => waker.wake(),
                None => break,
            }
        }
    }

    /// Queues a frame of `len` bytes that `fill` writes, with its checksums. If the queue is full, the frame counts as
    /// dropped, and this returns false.
    ///
    /// The buffer may have bytes of an earlier frame, so `fill` must write all of it.
    /// [`Self::flush`] sends it.
    pub(crate) fn push(&self, len: usize, fill: impl FnOnce(&mut [u8])) -> bool {
        let filled = |bytes: Option<&mut [u8]>| {
            let (header, frame) = bytes?.split_at_mut_checked(HEADER)?;
            header.fill(0);
            fill(frame);
            Some(())
        };
        self.write(HEADER + len, filled).is_some()
    }

    /// Queues a packet of another member unchanged, or cut into frames for the uplink.
    pub(crate) fn pass(&self, packet: &Packet<'_>) {
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

    /// Like [`Self::push`], for callers that must always write their packet, and that also write its header, which is
    /// part of the `len` bytes. `fill` gets `None` if the queue is full.
    fn write<R>(&self, len: usize, fill: impl FnOnce(Option<&mut [u8]>) -> R) -> R {
        let mut ring = self.ring.borrow_mut();
        let place = ring.free(len).filter(|_| self.up.get());
        let (start, bytes) = place.unzip();
        let result = fill(bytes);
        if let Some(start) = start {
            ring.commit(start, len);
            if ring.len().is_multiple_of(BATCH) || ring.used() > BYTES / 4 {
                drop(ring);
                self.flush();
            }
        } else {
            count(&self.counters.dropped, 1);
        }
        result
    }

    /// Like [`Self::push`], for the gateway's own frames, which are subject to the faults of its link to the member.
    /// Frames lost there count as sent.
    pub(crate) fn push_from_gateway(&self, len: usize, fill: impl FnOnce(&mut [u8])) -> bool {
        let filled = |bytes: Option<&mut [u8]>| {
            let (header, frame) = bytes?.split_at_mut_checked(HEADER)?;
            header.fill(0);
            fill(frame);
            Some(())
        };
        self.write_from_gateway(HEADER + len, filled).is_some()
    }

    /// Like [`Self::write`], for the gateway's own packets.
    pub(crate) fn write_from_gateway<R>(
        &self,
        len: usize,
        fill: impl FnOnce(Option<&mut [u8]>) -> R,
    ) -> R {
        let path = self.faults.path(GATEWAY, self.id);
        if path.is_none() && !self.uplink {
            return self.write(len, fill);
        }
        let mut bytes = vec![0; len];
        let result = fill(Some(&mut bytes));
        if let Some(packet) = Packet::parse(&bytes) {
            packet.for_each_frame(|frame| {
                let path = path.as_ref();
                if path.is_none_or(|path| self.faults.send(path, frame) == Fate::Now) {
                    self.push(frame.len(), |slot| slot.copy_from_slice(frame));
                }
            });
        }
        result
    }

    /// Passes waiting frames to the kernel, as many as it accepts.
    pub(crate) fn flush(&self) {
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

    /// Sends waiting frames whenever the kernel accepts them. Never completes unless the socket fails.
    pub(crate) fn poll_writer(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
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

    /// Ends the port. From now on it queues nothing, and no flow waits for it.
    pub(crate) fn shut(&self) {
        self.up.set(false);
        while let Some(waker) = self.waiting.borrow_mut().pop() {
            waker.wake();
        }
        if let Some(writer) = self.writer.borrow_mut().take() {
            writer.wake();
        }
    }

    /// Counts one broadcast to the other members. Returns false if the member has sent too many.
    pub(crate) fn may_flood(&self) -> bool {
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
pub(crate) const RECEIVE_BUFFER: usize = HEADER + MAX_PACKET + 2;

/// True if an error of the socket means that the other end is gone.
pub(crate) fn is_gone(error: &io::Error) -> bool {
    !matches!(
        error.raw_os_error().map(Errno::from_raw),
        Some(Errno::EINTR | Errno::ENOBUFS | Errno::ENOMEM)
    )
}
