//! Network device (virtio 1.2, section 5.1).

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};

use fleetbox_packet::{
    HEADER, Header, Large, MAX_FRAME, MAX_PACKET, MIN_FRAME, Packet, flow, offload_tcp,
};
use nix::errno::Errno;
use nix::poll::PollFlags;
use nix::sys::socket::{MsgFlags, recv, send};
use virtio_bindings::virtio_net::{
    VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET, VIRTIO_NET_ERR, VIRTIO_NET_F_CSUM,
    VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_HOST_TSO4,
    VIRTIO_NET_F_MAC, VIRTIO_NET_F_MQ, VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_MTU,
    VIRTIO_NET_F_STATUS, VIRTIO_NET_OK, VIRTIO_NET_S_LINK_UP,
};

use super::blk::MAX_QUEUES;
use super::{
    ActivateContext, Chain, DeviceState, Interest, Interrupt, QueueError, QueueWorker,
    VirtioDevice, Virtqueue, Workers,
};

use crate::pci::{RestoreError, le_value, read_registers};
use crate::state::NetState;
use fleetbox_arch::GuestMemory;

const QUEUE_SIZE: u16 = 256;
const RX: usize = 0;
const TX: usize = 1;

const MTU: u16 = 1500;
/// Maximum bytes of a packet that the device must cut: a frame's header, and the largest IPv4 packet.
const MAX_LARGE: usize = 18 + 65535;

/// Number of flows, by hash, whose queue is known.
const FLOWS: usize = 256;

/// Maximum frames that one direction may move before it is the other's turn.
const BUDGET: usize = 128;

/// The format of the packets in a link's socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LinkFormat {
    /// Ethernet frames of at most 1518 bytes, without FCS, ready to be sent. The device does all the work that its
    /// driver leaves to it.
    #[default]
    Frames,
    /// [`Packet`]s: a header of 12 bytes in front of a frame, or of a TCP packet of up to 65549 bytes. The work named
    /// in the header is left to the other end. Large packets pass uncut in both directions. The device only cuts those
    /// that its driver does not accept uncut.
    Packets,
}

/// A network device whose other end is a socket.
pub struct Net {
    name: String,
    mac: [u8; 6],
    link: Arc<OwnedFd>,
    format: LinkFormat,
    /// Sizes of the queues: the pairs, and a control queue if there are several pairs.
    queues: Vec<u16>,
    /// Number of pairs that the driver uses now.
    active: Arc<AtomicU16>,
    up: Arc<AtomicBool>,
}

impl Net {
    /// A device called `name` with the given MAC address. `link` is a connected socket that preserves packet boundaries
    /// (AF_UNIX, SOCK_SEQPACKET), with packets in the given `format`. When its peer closes it, the link goes down. The
    /// device has `pairs` pairs of queues, 1 to [`MAX_QUEUES`]. A driver uses the first pair until it asks for more.
    /// More pairs than the guest has vCPUs are useless. One thread serves all of them.
    pub fn new(name: &str, mac: [u8; 6], link: OwnedFd, format: LinkFormat, pairs: u16) -> Self {
        let pairs = usize::from(pairs.clamp(1, MAX_QUEUES));
        let count = 2 * pairs + usize::from(pairs > 1);
        Self {
            name: name.to_owned(),
            mac,
            link: Arc::new(link),
            format,
            queues: vec![QUEUE_SIZE; count],
            active: Arc::new(AtomicU16::new(1)),
            up: Arc::new(AtomicBool::new(true)),
        }
    }

    /// Pairs of queues.
    fn pairs(&self) -> u16 {
        (self.queues.len() / 2) as u16
    }
}

impl VirtioDevice for Net {
    fn name(&self) -> &str {
        &self.name
    }

    fn device_type(&self) -> u16 {
        1
    }

    fn pci_class(&self) -> u32 {
        0x02_00_00
    }

    fn features(&self) -> u64 {
        let mut features = 1 << VIRTIO_NET_F_MAC
            | 1 << VIRTIO_NET_F_STATUS
            | 1 << VIRTIO_NET_F_MTU
            | 1 << VIRTIO_NET_F_MRG_RXBUF
            | 1 << VIRTIO_NET_F_CSUM
            | 1 << VIRTIO_NET_F_HOST_TSO4;
        if self.format == LinkFormat::Packets {
            features |= 1 << VIRTIO_NET_F_GUEST_CSUM | 1 << VIRTIO_NET_F_GUEST_TSO4;
        }
        if self.pairs() > 1 {
            features |= 1 << VIRTIO_NET_F_CTRL_VQ | 1 << VIRTIO_NET_F_MQ;
        }
        features
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queues
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let up = self.up.load(Ordering::Acquire);
        let status = if up { VIRTIO_NET_S_LINK_UP as u16 } else { 0 };
        let mut config = [0; 12];
        config[..6].copy_from_slice(&self.mac);
        config[6..8].copy_from_slice(&status.to_le_bytes());
        config[8..10].copy_from_slice(&self.pairs().to_le_bytes());
        config[10..12].copy_from_slice(&MTU.to_le_bytes());
        read_registers(&config, offset, data);
    }

    fn activate(&mut self, context: ActivateContext) -> std::io::Result<Workers> {
        let has = |feature: u32| context.features & 1 << feature != 0;
        let checksum = has(VIRTIO_NET_F_CSUM);
        // Without checksums there is no segmentation (section 5.1.3.1).
        let cut = checksum && has(VIRTIO_NET_F_HOST_TSO4);
        let most = if cut { MAX_LARGE } else { MAX_FRAME };
        let takes_open = has(VIRTIO_NET_F_GUEST_CSUM);
        let pairs = if has(VIRTIO_NET_F_MQ) {
            self.pairs()
        } else {
            1
        };
        let most_incoming = match self.format {
            LinkFormat::Frames => MAX_FRAME,
            LinkFormat::Packets => MAX_PACKET,
        };
        Ok(vec![Box::new(NetWorker {
            name: self.name.clone(),
            link: Link {
                socket: self.link.clone(),
                up: self.up.clone(),
                interrupt: context.interrupt,
            },
            format: self.format,
            mergeable: has(VIRTIO_NET_F_MRG_RXBUF),
            checksum,
            cut,
            takes_open,
            takes_large: takes_open && has(VIRTIO_NET_F_GUEST_TSO4),
            incoming: vec![0; HEADER + most_incoming],
            pending: None,
            frame: Box::new([0; HEADER + MAX_FRAME]),
            outgoing: vec![0; HEADER + most],
            // The control queue follows the pairs that there may be (section 5.1.2).
            control: has(VIRTIO_NET_F_CTRL_VQ).then_some(2 * usize::from(pairs)),
            pairs,
            active: self.active.clone(),
            flows: Box::new([None; FLOWS]),
            sent: vec![0; usize::from(pairs)],
            chains: Vec::new(),
            used: Vec::new(),
            rx_starved: Some(RX),
            tx_blocked: 0,
            first: 0,
        })])
    }

    fn reset(&mut self) {
        self.active.store(1, Ordering::Release);
    }

    fn save(&self) -> DeviceState {
        DeviceState::Net(NetState {
            mac: self.mac,
            pairs: self.active.load(Ordering::Acquire),
        })
    }

    fn identity(&self) -> &'static str {
        // The state of the link is that of the socket now.
        "MAC address or number of queues"
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), RestoreError> {
        match state {
            DeviceState::Net(NetState { mac, pairs })
                if *mac == self.mac && (1..=self.pairs()).contains(pairs) =>
            {
                self.active.store(*pairs, Ordering::Release);
                Ok(())
            }
            _ => Err(RestoreError::Mismatch {
                device: self.name.clone(),
                what: self.identity().to_owned(),
            }),
        }
    }
}

/// The socket, and whether its peer is connected.
struct Link {
    socket: Arc<OwnedFd>,
    up: Arc<AtomicBool>,
    interrupt: Interrupt,
}

/// The result of moving a frame.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    /// It was moved or dropped. Has its length.
    Done(usize),
    /// It must wait.
    WouldBlock,
    /// The link is down.
    Down,
}

impl Link {
    fn is_up(&self) -> bool {
        self.up.load(Ordering::Acquire)
    }

    fn take_down(&self) -> Outcome {
        if self.up.swap(false, Ordering::AcqRel) {
            tracing::debug!("the peer of a network device has closed the link");
            self.interrupt.config_changed();
        }
        Outcome::Down
    }

    /// Receives one frame into `frame`. The returned length may be more than fits.
    fn receive(&self, frame: &mut [u8]) -> Outcome {
        if !self.is_up() {
            return Outcome::Down;
        }
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_TRUNC;
        loop {
            return match recv(self.socket.as_raw_fd(), frame, flags) {
                // The peer has closed its end; there are no empty frames.
                Ok(0) => self.take_down(),
                Ok(len) => Outcome::Done(len),
                Err(Errno::EAGAIN) => Outcome::WouldBlock,
                Err(Errno::EINTR) => continue,
                Err(_) => self.take_down(),
            };
        }
    }

    fn send(&self, frame: &[u8]) -> Outcome {
        if !self.is_up() {
            return Outcome::Down;
        }
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        loop {
            return match send(self.socket.as_raw_fd(), frame, flags) {
                Ok(len) => Outcome::Done(len),
                Err(Errno::EAGAIN) => Outcome::WouldBlock,
                Err(Errno::EINTR) => continue,
                // The host is short of memory: a frame is lost, as frames may be.
                Err(Errno::ENOBUFS | Errno::ENOMEM | Errno::EMSGSIZE) => Outcome::Done(0),
                Err(_) => self.take_down(),
            };
        }
    }
}

struct NetWorker {
    name: String,
    link: Link,
    format: LinkFormat,
    mergeable: bool,
    /// The driver may leave checksums to the device.
    checksum: bool,
    /// The driver may leave the cutting of large packets to the device.
    cut: bool,
    /// The driver accepts frames without checksums.
    takes_open: bool,
    /// The driver accepts large packets.
    takes_large: bool,
    /// Header and frame, or large packet, for the guest.
    incoming: Vec<u8>,
    /// The part of `incoming` that the guest has not received yet.
    pending: Option<Pending>,
    /// Header and frame cut from a large packet, in either direction.
    frame: Box<[u8; HEADER + MAX_FRAME]>,
    /// Header and frame, or large packet, from the guest.
    outgoing: Vec<u8>,
    /// Pairs of queues that the driver may use.
    pairs: u16,
    /// Pairs that it uses.
    active: Arc<AtomicU16>,
    /// Index of the control queue.
    control: Option<usize>,
    /// The pair on which each flow was last sent. Packets for the flow are delivered there (section 5.1.6.5.5).
    flows: Box<[Option<u8>; FLOWS]>,
    /// For each pair, how many frames of the next large packet have been sent.
    sent: Vec<usize>,
    /// Chains for one frame, kept to reuse their allocations.
    chains: Vec<Chain>,
    used: Vec<(u16, u32)>,
    /// The receive queue that has no room for a frame. The socket is not read until it has room.
    rx_starved: Option<usize>,
    /// The pairs, one bit each, whose frames did not fit into the socket. Their transmit queues are not read until it
    /// has room.
    tx_blocked: u32,
    /// The pair that comes first then.
    first: usize,
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

/// A packet that was read, and not yet delivered to the driver.
struct Pending {
    /// Bytes of the frame or large packet.
    len: usize,
    large: Option<Large>,
    /// It is delivered in frames.
    cut: bool,
    /// How many frames have been delivered.
    next: usize,
    /// Its pair of queues.
    pair: usize,
}

impl Pending {
    /// Maximum bytes of the next piece.
    fn wanted(&self) -> usize {
        match &self.large {
            Some(large) if self.cut => large.headers() + usize::from(large.segment()),
            _ => self.len,
        }
    }

    /// Switches to delivery in frames. Returns false if it cannot be cut, or already is.
    fn cut(&mut self) -> bool {
        self.large.is_some() && !std::mem::replace(&mut self.cut, true)
    }

    /// Writes the next frame of `packet` to `frame`. Returns its length, or `None` if the packet is delivered uncut.
    fn next_frame(&mut self, packet: &[u8], frame: &mut [u8]) -> Option<usize> {
        let large = self.large.as_ref().filter(|_| self.cut)?;
        let len = large.write(packet.get(..self.len)?, self.next, frame)?;
        self.next += 1;
        Some(len)
    }

    /// Returns true if nothing is left. Call it after a delivery.
    fn is_done(&self) -> bool {
        let large = self.large.as_ref().filter(|_| self.cut);
        large.is_none_or(|large| self.next >= large.count())
    }
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

#[cfg(test)]
#[path = "net_large_test.rs"]
mod large_tests;
#[cfg(test)]
#[path = "net_queues_test.rs"]
mod queues_tests;
#[cfg(test)]
#[path = "net_test.rs"]
mod tests;
