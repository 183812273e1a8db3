//! Moving packets between a link and the queues.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use fleetbox_arch::GuestMemory;
use fleetbox_packet::{HEADER, Header, Large, MAX_FRAME, MIN_FRAME, Packet, flow, offload_tcp};
use nix::poll::PollFlags;
use virtio_bindings::virtio_net::{
    VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET, VIRTIO_NET_ERR, VIRTIO_NET_OK,
};

use super::LinkFormat;
use super::link::{Link, Outcome};
use super::pending::Pending;
use crate::pci::le_value;
use crate::virtio::{Chain, Interest, QueueError, QueueWorker, Virtqueue};

pub(super) const RX: usize = 0;
pub(super) const TX: usize = 1;

/// Number of flows, by hash, whose queue is known.
pub(super) const FLOWS: usize = 256;

/// Maximum frames that one direction may move before it is the other's turn.
pub(super) const BUDGET: usize = 128;

/// What serves the queues of a network device, on one thread.
pub(super) struct NetWorker {
    pub(super) name: String,
    pub(super) link: Link,
    pub(super) format: LinkFormat,
    pub(super) mergeable: bool,
    /// The driver may leave checksums to the device.
    pub(super) checksum: bool,
    /// The driver may leave the cutting of large packets to the device.
    pub(super) cut: bool,
    /// The driver accepts frames without checksums.
    pub(super) takes_open: bool,
    /// The driver accepts large packets.
    pub(super) takes_large: bool,
    /// Header and frame, or large packet, for the guest.
    pub(super) incoming: Vec<u8>,
    /// The part of `incoming` that the guest has not received yet.
    pub(super) pending: Option<Pending>,
    /// Header and frame cut from a large packet, in either direction.
    pub(super) frame: Box<[u8; HEADER + MAX_FRAME]>,
    /// Header and frame, or large packet, from the guest.
    pub(super) outgoing: Vec<u8>,
    /// Pairs of queues that the driver may use.
    pub(super) pairs: u16,
    /// Pairs that it uses.
    pub(super) active: Arc<AtomicU16>,
    /// Index of the control queue.
    pub(super) control: Option<usize>,
    /// The pair on which each flow was last sent. Packets for the flow are delivered there (section 5.1.6.5.5).
    pub(super) flows: Box<[Option<u8>; FLOWS]>,
    /// For each pair, how many frames of the next large packet have been sent.
    pub(super) sent: Vec<usize>,
    /// Chains for one frame, kept to reuse their allocations.
    pub(super) chains: Vec<Chain>,
    pub(super) used: Vec<(u16, u32)>,
    /// The receive queue that has no room for a frame. The socket is not read until it has room.
    pub(super) rx_starved: Option<usize>,
    /// The pairs, one bit each, whose frames did not fit into the socket. Their transmit queues are not read until it
    /// has room.
    pub(super) tx_blocked: u32,
    /// The pair that comes first then.
    pub(super) first: usize,
}

impl QueueWorker for NetWorker {
    fn queue_ready(&mut self, queues: &mut [Virtqueue], index: usize) -> Result<(), QueueError> {
        if self.control == Some(index) {
            return self.obey(queues, index);
        }
        let pair = index / 2;
        if pair >= usize::from(self.pairs) {
            return Ok(());
        }
        match index % 2 {
            // Another queue's buffers are not what it waits for.
            RX if self.rx_starved.is_some_and(|starved| starved != index) => {}
            RX => self.receive(queues)?,
            _ => self.transmit(queues, pair)?,
        }
        if !self.link.is_up() {
            // No event of the socket will say so: what waits for it goes nowhere.
            self.retry(queues)?;
        }
        Ok(())
    }

    fn interest(&self) -> Option<Interest<'_>> {
        let mut flags = PollFlags::empty();
        flags.set(PollFlags::POLLIN, self.rx_starved.is_none());
        flags.set(PollFlags::POLLOUT, self.tx_blocked != 0);
        // Without flags a hang-up would still be reported, over and over.
        (self.link.is_up() && !flags.is_empty()).then(|| Interest {
            fd: self.link.socket.as_fd(),
            flags,
        })
    }

    fn source_ready(
        &mut self,
        queues: &mut [Virtqueue],
        events: PollFlags,
    ) -> Result<(), QueueError> {
        let failed = PollFlags::POLLHUP | PollFlags::POLLERR;
        if self.rx_starved.is_none() && events.intersects(PollFlags::POLLIN | failed) {
            self.receive(queues)?;
        }
        if events.intersects(PollFlags::POLLOUT | failed) {
            self.retry(queues)?;
        }
        Ok(())
    }
}

impl NetWorker {
    /// Pairs of queues in use.
    fn active(&self) -> usize {
        usize::from(self.active.load(Ordering::Acquire).min(self.pairs))
    }

    /// Sends for the pairs whose frames did not fit into the socket. Each time another pair is first, because the first
    /// may fill the socket again.
    fn retry(&mut self, queues: &mut [Virtqueue]) -> Result<(), QueueError> {
        let blocked = std::mem::take(&mut self.tx_blocked);
        let pairs = usize::from(self.pairs);
        let first = self.first;
        self.first = (first + 1) % pairs;
        for pair in (first..pairs).chain(0..first) {
            if blocked & 1 << pair != 0 {
                self.transmit(queues, pair)?;
            }
        }
        Ok(())
    }

    /// The receive queue for the pending packet; by default the first.
    fn rx_queue(&self, active: usize) -> usize {
        let pair = self.pending.as_ref().map_or(0, |pending| pending.pair);
        if pair < active { 2 * pair + RX } else { RX }
    }

    /// Moves frames from the socket to the driver, while there are frames and room for them.
    fn receive(&mut self, queues: &mut [Virtqueue]) -> Result<(), QueueError> {
        let active = self.active();
        self.rx_starved = None;
        let mut touched = 0u32;
        let mut waits = false;
        for _ in 0..BUDGET {
            // Which of several queues a frame is for shows when it has been read.
            if active > 1 && self.pending.is_none() {
                if !self.fetch() {
                    break;
                }
                if self.pending.is_none() {
                    continue;
                }
            }
            let index = self.rx_queue(active);
            let Some(queue) = queues.get_mut(index) else {
                return Ok(());
            };
            queue.disable_notifications()?;
            // Frames wait in the socket, not here, until there is room for any of them.
            let wanted = self.pending.as_ref().map_or(MAX_FRAME, Pending::wanted);
            let Some(room) = self.room(queue, (HEADER + wanted) as u64)? else {
                self.rx_starved = Some(index);
                waits = false;
                break;
            };
            if self.pending.is_none() && !self.fetch() {
                put_back(queue, room.count);
                break;
            }
            waits = self.pending.is_some();
            let Some(pending) = &mut self.pending else {
                put_back(queue, room.count);
                continue;
            };
            if ((HEADER + pending.wanted()) as u64) > room.bytes {
                put_back(queue, room.count);
                // There may be room in the next turn. If not, single frames may fit where the packet does not.
                if room.is_all && !pending.cut() {
                    tracing::debug!(device = self.name, "dropped a frame for the guest");
                    self.pending = None;
                    waits = false;
                }
                continue;
            }
            self.deliver(queue, room.count)?;
            waits = self.pending.is_some();
            touched |= 1 << (index / 2);
        }
        for pair in (0..usize::from(self.pairs)).filter(|pair| touched & 1 << pair != 0) {
            if let Some(queue) = queues.get_mut(2 * pair + RX) {
                queue.interrupt()?;
            }
        }
        if waits && let Some(queue) = queues.get(self.rx_queue(active)) {
            // The other direction's turn; the socket need not announce what was read already.
            queue.event().signal();
        }
        Ok(())
    }

    /// Executes the commands of the control queue (section 5.1.6.5).
    fn obey(&mut self, queues: &mut [Virtqueue], index: usize) -> Result<(), QueueError> {
        let Some(queue) = queues.get_mut(index) else {
            return Ok(());
        };
        let mut chain = Chain::default();
        let before = self.active();
        loop {
            queue.disable_notifications()?;
            while queue.pop(&mut chain)? {
                let done = self.execute(queue.memory(), &chain);
                let status = if done { VIRTIO_NET_OK } else { VIRTIO_NET_ERR };
                if !chain.write(queue.memory(), 0, &[status as u8]) {
                    let what = "a command has no room for its status";
                    return Err(queue.malformed(chain.head, what));
                }
                queue.push(chain.head, 1)?;
                queue.interrupt()?;
            }
            if !queue.enable_notifications()? {
                break;
            }
        }
        if self.active() != before {
            // What waited for one queue may be for another now.
            self.receive(queues)?;
        }
        Ok(())
    }

    /// The only command: how many pairs of queues to use. Returns false if the command is invalid.
    fn execute(&self, memory: &GuestMemory, chain: &Chain) -> bool {
        let mut command = [0; 4];
        let read = chain.read(memory, 0, &mut command);
        let pairs = le_value(&command[2..]) as u16;
        let known = u32::from(command[0]) == VIRTIO_NET_CTRL_MQ
            && u32::from(command[1]) == VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET;
        let done = read && known && (1..=self.pairs).contains(&pairs);
        if done {
            self.active.store(pairs, Ordering::Release);
        }
        done
    }

    /// Reads the next packet of the socket. Returns false if the socket is empty. A packet that is not for the guest
    /// leaves nothing pending.
    fn fetch(&mut self) -> bool {
        let at = match self.format {
            LinkFormat::Frames => HEADER,
            LinkFormat::Packets => 0,
        };
        let Outcome::Done(len) = self.link.receive(&mut self.incoming[at..]) else {
            return false;
        };
        if self.format == LinkFormat::Frames {
            self.incoming[..HEADER].fill(0);
        }
        self.pending = self.prepare(at + len);
        if self.pending.is_none() {
            tracing::debug!(device = self.name, len, "dropped a frame for the guest");
        }
        true
    }

    /// Does the driver's work on the first `total` bytes of `incoming` that the driver does not do itself, except
    /// cutting.
    fn prepare(&mut self, total: usize) -> Option<Pending> {
        let bytes = self.incoming.get_mut(..total)?;
        let packet = Packet::parse(bytes)?;
        let request = packet.header();
        let large = packet.large();
        let len = packet.frame().len();
        let pair = flow(packet.frame()).and_then(|flow| self.flows[usize::from(flow)]);
        let (header, frame) = bytes.split_at_mut(HEADER);
        match &large {
            Some(large) => request.write(header, large.headers()),
            None if self.takes_open => request.write(header, 0),
            None => {
                if !request.fill_checksum(frame) {
                    return None;
                }
                header.fill(0);
            }
        }
        Some(Pending {
            len,
            large,
            cut: !self.takes_large,
            next: 0,
            pair: pair.map_or(0, usize::from),
        })
    }

    /// Takes chains with `wanted` bytes of room into the start of `chains`, or one chain if a frame must fit into one.
    /// If there are not enough, none is taken, and the driver is asked to notify the device of the next one.
    fn room(&mut self, queue: &mut Virtqueue, wanted: u64) -> Result<Option<Room>, QueueError> {
        let mut room = Room {
            count: 0,
            bytes: 0,
            is_all: false,
        };
        let mut asked = false;
        while room.bytes < wanted && !room.is_all {
            if self.chains.len() == room.count {
                self.chains.push(Chain::default());
            }
            let chain = &mut self.chains[room.count];
            if !queue.pop(chain)? {
                // Asked for from where the queue ends, not from where it is put back to: the
                // chains in between will not be announced again.
                asked = true;
                if queue.enable_notifications()? {
                    continue;
                }
                put_back(queue, room.count);
                return Ok(None);
            }
            if chain.writable_len() < HEADER as u64 {
                let what = "a receive buffer has no room for a header";
                return Err(queue.malformed(chain.head, what));
            }
            room.bytes += chain.writable_len();
            room.count += 1;
            room.is_all = !self.mergeable || room.count >= usize::from(queue.size());
        }
        if asked {
            queue.disable_notifications()?;
        }
        Ok(Some(room))
    }

    /// Writes the pending packet, or its next frame, to as many of the `count` chains as needed, and returns the others
    /// to the queue.
    fn deliver(&mut self, queue: &mut Virtqueue, count: usize) -> Result<(), QueueError> {
        let Some(pending) = &mut self.pending else {
            put_back(queue, count);
            return Ok(());
        };
        let frame = &mut self.frame[HEADER..];
        let bytes = match pending.next_frame(&self.incoming[HEADER..], frame) {
            Some(len) => {
                let bytes = &mut self.frame[..HEADER + len];
                bytes[..HEADER].fill(0);
                bytes
            }
            None => &mut self.incoming[..HEADER + pending.len],
        };
        if pending.is_done() {
            self.pending = None;
        }
        self.used.clear();
        let mut left = bytes.len() as u64;
        for chain in &self.chains[..count] {
            if left == 0 {
                break;
            }
            let len = left.min(chain.writable_len());
            self.used.push((chain.head, len as u32));
            left -= len;
        }
        bytes[HEADER - 2..HEADER].copy_from_slice(&(self.used.len() as u16).to_le_bytes());
        let mut at = 0;
        for (chain, (_, len)) in self.chains.iter().zip(&self.used) {
            let end = at + *len as usize;
            if !chain.write(queue.memory(), 0, &bytes[at..end]) {
                let what = "a receive buffer is not in guest memory";
                return Err(queue.malformed(chain.head, what));
            }
            at = end;
        }
        put_back(queue, count - self.used.len());
        queue.push_all(&self.used)
    }

    /// Moves frames from the driver to the socket while there are frames and room for them.
    fn transmit(&mut self, queues: &mut [Virtqueue], pair: usize) -> Result<(), QueueError> {
        let Some(queue) = queues.get_mut(2 * pair + TX) else {
            return Ok(());
        };
        self.tx_blocked &= !(1 << pair);
        if self.chains.is_empty() {
            self.chains.push(Chain::default());
        }
        let mut moved = 0;
        queue.disable_notifications()?;
        loop {
            let chain = &mut self.chains[0];
            if !queue.pop(chain)? {
                if queue.enable_notifications()? {
                    continue;
                }
                break;
            }
            let head = chain.head;
            let Some(frames) = self.send(queue, pair)? else {
                queue.undo_pop();
                self.tx_blocked |= 1 << pair;
                break;
            };
            self.sent[pair] = 0;
            queue.push(head, 0)?;
            moved += frames;
            if moved >= BUDGET {
                // The other direction's turn, and then this one's again.
                queue.event().signal();
                break;
            }
        }
        if moved > 0 {
            queue.interrupt()?;
        }
        Ok(())
    }

    /// Sends the packet in the first of `chains`, or drops it if it cannot be sent. Returns the number of frames, or
    /// `None` if the socket has no room. Then try again later.
    fn send(&mut self, queue: &Virtqueue, pair: usize) -> Result<Option<usize>, QueueError> {
        let Some(len) = read_packet(queue, &self.chains[0], &mut self.outgoing)? else {
            return Ok(Some(1));
        };
        let (header, rest) = self.outgoing.split_at_mut(HEADER);
        let packet = &mut rest[..len];
        let Some(request) = Header::parse(header) else {
            return Ok(Some(1));
        };
        if self.pairs > 1
            && let Some(flow) = flow(packet)
        {
            self.flows[usize::from(flow)] = Some(pair as u8);
        }
        let whole = self.format == LinkFormat::Packets;
        if self.cut && request.is_large() {
            let Some(large) = Large::parse(&request, packet, MAX_FRAME) else {
                tracing::debug!(device = self.name, len, "dropped a large packet");
                return Ok(Some(1));
            };
            let count = large.count();
            let bytes = &mut self.outgoing[..HEADER + len];
            if whole && offload_tcp(bytes, large.segment()) && Packet::parse(bytes).is_some() {
                let sent = self.link.send(bytes) != Outcome::WouldBlock;
                return Ok(sent.then_some(count));
            }
            let packet = &bytes[HEADER..];
            self.frame[..HEADER].fill(0);
            let start = if whole { 0 } else { HEADER };
            while let Some(len) = large.write(packet, self.sent[pair], &mut self.frame[HEADER..]) {
                let frame = &self.frame[start..HEADER + len];
                if self.link.send(frame) == Outcome::WouldBlock {
                    return Ok(None);
                }
                self.sent[pair] += 1;
            }
            return Ok(Some(count));
        }
        let finished = if !self.checksum {
            request.is_ready()
        } else if whole && request.lacks_checksum(packet) {
            request.write(header, 0);
            true
        } else {
            header.fill(0);
            request.fill_checksum(packet)
        };
        if len > MAX_FRAME || request.is_large() || !finished {
            tracing::debug!(device = self.name, len, "dropped a frame from the guest");
            return Ok(Some(1));
        }
        let start = if whole { 0 } else { HEADER };
        let bytes = &self.outgoing[start..HEADER + len];
        let sent = self.link.send(bytes) != Outcome::WouldBlock;
        Ok(sent.then_some(1))
    }
}

fn put_back(queue: &mut Virtqueue, count: usize) {
    for _ in 0..count {
        queue.undo_pop();
    }
}

/// Chains taken for a frame.
struct Room {
    count: usize,
    bytes: u64,
    /// The driver cannot offer more for one frame.
    is_all: bool,
}

/// Reads header and packet of a chain into `buffer`. Returns the packet's length, or `None` if it is not a packet or
/// does not fit.
fn read_packet(
    queue: &Virtqueue,
    chain: &Chain,
    buffer: &mut [u8],
) -> Result<Option<usize>, QueueError> {
    let Some(len) = chain.readable_len().checked_sub(HEADER as u64) else {
        return Err(queue.malformed(chain.head, "it is shorter than a header"));
    };
    let len = usize::try_from(len).unwrap_or(usize::MAX);
    let place = len
        .checked_add(HEADER)
        .and_then(|end| buffer.get_mut(..end));
    let Some(place) = place.filter(|_| len >= MIN_FRAME) else {
        tracing::debug!(len, "dropped a frame from the guest");
        return Ok(None);
    };
    if !chain.read(queue.memory(), 0, place) {
        return Err(queue.malformed(chain.head, "it is not in guest memory"));
    }
    Ok(Some(len))
}
