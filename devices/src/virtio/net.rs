//! Network device (virtio 1.2, section 5.1).

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::errno::Errno;
use nix::poll::PollFlags;
use nix::sys::socket::{MsgFlags, recv, send};
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_MAC, VIRTIO_NET_F_MRG_RXBUF,
    VIRTIO_NET_F_MTU, VIRTIO_NET_F_STATUS, VIRTIO_NET_S_LINK_UP,
};

use super::offload::{Large, Request};

use super::{
    ActivateContext, Chain, DeviceState, Interest, Interrupt, QueueError, QueueWorker,
    VirtioDevice, Virtqueue,
};
use crate::pci::{RestoreError, read_registers};

const QUEUE_SIZE: u16 = 256;
const RX: usize = 0;
const TX: usize = 1;

/// struct virtio_net_hdr, with num_buffers at its end.
const HEADER: usize = 12;
const MTU: u16 = 1500;
/// Ethernet header with a VLAN tag, and payload; there is no FCS.
const MAX_FRAME: usize = 18 + MTU as usize;
const MIN_FRAME: usize = 14;
/// A packet that the device is to cut: a frame's header, and as much as IPv4 can say.
const MAX_LARGE: usize = 18 + 65535;

/// Frames that one direction may move before the other gets its turn.
const BUDGET: usize = 128;

/// A network device whose other end is a socket.
pub struct Net {
    name: String,
    mac: [u8; 6],
    link: Arc<OwnedFd>,
    up: Arc<AtomicBool>,
}

/// A saved [`Net`]. What is in flight in the socket is not part of it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct NetState {
    /// MAC address.
    pub mac: [u8; 6],
}

impl Net {
    /// A device called `name` with the given MAC address. `link` is a connected socket that keeps
    /// packets apart (AF_UNIX, SOCK_SEQPACKET): each is one Ethernet frame of at most 1518 bytes,
    /// without FCS and without a virtio header. When its peer closes it, the link goes down.
    pub fn new(name: &str, mac: [u8; 6], link: OwnedFd) -> Self {
        Self {
            name: name.to_owned(),
            mac,
            link: Arc::new(link),
            up: Arc::new(AtomicBool::new(true)),
        }
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
        1 << VIRTIO_NET_F_MAC
            | 1 << VIRTIO_NET_F_STATUS
            | 1 << VIRTIO_NET_F_MTU
            | 1 << VIRTIO_NET_F_MRG_RXBUF
            | 1 << VIRTIO_NET_F_CSUM
            | 1 << VIRTIO_NET_F_HOST_TSO4
    }

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE, QUEUE_SIZE]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let up = self.up.load(Ordering::Acquire);
        let status = if up { VIRTIO_NET_S_LINK_UP as u16 } else { 0 };
        let mut config = [0; 12];
        config[..6].copy_from_slice(&self.mac);
        config[6..8].copy_from_slice(&status.to_le_bytes());
        // One pair of queues.
        config[8..10].copy_from_slice(&1u16.to_le_bytes());
        config[10..12].copy_from_slice(&MTU.to_le_bytes());
        read_registers(&config, offset, data);
    }

    fn activate(&mut self, context: ActivateContext) -> std::io::Result<Box<dyn QueueWorker>> {
        let checksum = context.features & 1 << VIRTIO_NET_F_CSUM != 0;
        // Without checksums there is no segmentation (section 5.1.3.1).
        let cut = checksum && context.features & 1 << VIRTIO_NET_F_HOST_TSO4 != 0;
        let most = if cut { MAX_LARGE } else { MAX_FRAME };
        Ok(Box::new(NetWorker {
            name: self.name.clone(),
            link: Link {
                socket: self.link.clone(),
                up: self.up.clone(),
                interrupt: context.interrupt,
            },
            mergeable: context.features & 1 << VIRTIO_NET_F_MRG_RXBUF != 0,
            checksum,
            cut,
            buffer: Box::new([0; HEADER + MAX_FRAME]),
            outgoing: vec![0; HEADER + most],
            sent: 0,
            chains: Vec::new(),
            used: Vec::new(),
            rx_starved: true,
            tx_blocked: false,
        }))
    }

    fn save(&self) -> DeviceState {
        DeviceState::Net(NetState { mac: self.mac })
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), RestoreError> {
        // The state of the link is that of the socket now.
        if *state == self.save() {
            Ok(())
        } else {
            Err(RestoreError::Mismatch {
                device: self.name.clone(),
                what: "MAC address".to_owned(),
            })
        }
    }
}

/// The socket, and whether its peer is there.
struct Link {
    socket: Arc<OwnedFd>,
    up: Arc<AtomicBool>,
    interrupt: Interrupt,
}

/// What came of a frame.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    /// Moved, or nobody will ever want it: its length.
    Done(usize),
    /// Not now.
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

    /// Receives one frame into `frame`; the length may be more than fits there.
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
    mergeable: bool,
    /// The driver may leave checksums to the device.
    checksum: bool,
    /// The driver may leave the cutting of large packets to the device.
    cut: bool,
    /// Header and frame for the guest; also a frame made of a large packet.
    buffer: Box<[u8; HEADER + MAX_FRAME]>,
    /// Header and frame, or large packet, of the guest.
    outgoing: Vec<u8>,
    /// How many frames of the large packet that is next have been sent.
    sent: usize,
    /// Chains for one frame, kept for their allocations.
    chains: Vec<Chain>,
    used: Vec<(u16, u32)>,
    /// The receive queue has no room for a frame: the socket is not read until it has.
    rx_starved: bool,
    /// The socket is full: the transmit queue is not read until it has room.
    tx_blocked: bool,
}

impl QueueWorker for NetWorker {
    fn queue_ready(&mut self, queues: &mut [Virtqueue], index: usize) -> Result<(), QueueError> {
        match index {
            RX => self.receive(queues),
            TX => self.transmit(queues),
            _ => Ok(()),
        }
    }

    fn interest(&self) -> Option<Interest<'_>> {
        let mut flags = PollFlags::empty();
        flags.set(PollFlags::POLLIN, !self.rx_starved);
        flags.set(PollFlags::POLLOUT, self.tx_blocked);
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
        if !self.rx_starved && events.intersects(PollFlags::POLLIN | failed) {
            self.receive(queues)?;
        }
        if self.tx_blocked && events.intersects(PollFlags::POLLOUT | failed) {
            self.transmit(queues)?;
        }
        Ok(())
    }
}

impl NetWorker {
    /// Moves frames from the socket to the driver while there are frames and room for them.
    fn receive(&mut self, queues: &mut [Virtqueue]) -> Result<(), QueueError> {
        let Some(queue) = queues.get_mut(RX) else {
            return Ok(());
        };
        self.rx_starved = false;
        queue.disable_notifications()?;
        let mut moved = false;
        for _ in 0..BUDGET {
            let Some(count) = self.room(queue)? else {
                self.rx_starved = true;
                break;
            };
            let (header, frame) = self.buffer.split_at_mut(HEADER);
            let len = match self.link.receive(frame) {
                Outcome::Done(len) => len,
                Outcome::WouldBlock | Outcome::Down => {
                    self.put_back(queue, count);
                    break;
                }
            };
            header.fill(0);
            let room: u64 = self
                .chains
                .iter()
                .take(count)
                .map(Chain::writable_len)
                .sum();
            let total = HEADER + len;
            if !(MIN_FRAME..=MAX_FRAME).contains(&len) || room < total as u64 {
                tracing::debug!(device = self.name, len, "dropped a frame for the guest");
                self.put_back(queue, count);
                continue;
            }
            self.deliver(queue, count, total)?;
            moved = true;
        }
        if moved {
            queue.interrupt()?;
        }
        Ok(())
    }

    /// Takes chains with room for the largest frame, or one chain where a frame must fit into one.
    /// They are the first of `chains`. If there are not enough, none is taken, and the driver is
    /// asked for a notification at the next one.
    fn room(&mut self, queue: &mut Virtqueue) -> Result<Option<usize>, QueueError> {
        let mut count = 0;
        let mut room = 0;
        let mut asked = false;
        while room < (HEADER + MAX_FRAME) as u64 {
            if self.chains.len() == count {
                self.chains.push(Chain::default());
            }
            let chain = &mut self.chains[count];
            if !queue.pop(chain)? {
                // Asked for from where the queue ends, not from where it is put back to: the
                // chains in between will not be announced again.
                asked = true;
                if queue.enable_notifications()? {
                    continue;
                }
                self.put_back(queue, count);
                return Ok(None);
            }
            if chain.writable_len() < HEADER as u64 {
                let what = "a receive buffer has no room for a header";
                return Err(queue.malformed(chain.head, what));
            }
            room += chain.writable_len();
            count += 1;
            if !self.mergeable {
                break;
            }
        }
        if asked {
            queue.disable_notifications()?;
        }
        Ok(Some(count))
    }

    fn put_back(&self, queue: &mut Virtqueue, count: usize) {
        for _ in 0..count {
            queue.undo_pop();
        }
    }

    /// Writes the first `total` bytes of `buffer` to as many of the `count` chains as that takes,
    /// and puts the others back.
    fn deliver(
        &mut self,
        queue: &mut Virtqueue,
        count: usize,
        total: usize,
    ) -> Result<(), QueueError> {
        self.used.clear();
        let mut left = total as u64;
        for chain in &self.chains[..count] {
            if left == 0 {
                break;
            }
            let len = left.min(chain.writable_len());
            self.used.push((chain.head, len as u32));
            left -= len;
        }
        self.buffer[HEADER - 2..HEADER].copy_from_slice(&(self.used.len() as u16).to_le_bytes());
        let mut at = 0;
        for (chain, (_, len)) in self.chains.iter().zip(&self.used) {
            let end = at + *len as usize;
            if !chain.write(queue.memory(), 0, &self.buffer[at..end]) {
                let what = "a receive buffer is not in guest memory";
                return Err(queue.malformed(chain.head, what));
            }
            at = end;
        }
        self.put_back(queue, count - self.used.len());
        queue.push_all(&self.used)
    }

    /// Moves frames from the driver to the socket while there are frames and room for them.
    fn transmit(&mut self, queues: &mut [Virtqueue]) -> Result<(), QueueError> {
        let Some(queue) = queues.get_mut(TX) else {
            return Ok(());
        };
        self.tx_blocked = false;
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
            let Some(frames) = self.send(queue)? else {
                queue.undo_pop();
                self.tx_blocked = true;
                break;
            };
            self.sent = 0;
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

    /// Sends what is in the first of `chains`, or drops it if it cannot be sent: in how many
    /// frames. `None` if the socket has no room; then it is to be tried again.
    fn send(&mut self, queue: &Virtqueue) -> Result<Option<usize>, QueueError> {
        let Some(len) = read_packet(queue, &self.chains[0], &mut self.outgoing)? else {
            return Ok(Some(1));
        };
        let (header, rest) = self.outgoing.split_at_mut(HEADER);
        let packet = &mut rest[..len];
        let Some(request) = Request::parse(header) else {
            return Ok(Some(1));
        };
        if self.cut && request.is_large() {
            let Some(large) = Large::parse(&request, packet, MAX_FRAME) else {
                tracing::debug!(device = self.name, len, "dropped a large packet");
                return Ok(Some(1));
            };
            let frame = &mut self.buffer[..MAX_FRAME];
            while let Some(len) = large.write(packet, self.sent, frame) {
                if self.link.send(&frame[..len]) == Outcome::WouldBlock {
                    return Ok(None);
                }
                self.sent += 1;
            }
            return Ok(Some(large.count()));
        }
        let finished = if self.checksum {
            request.finish(packet)
        } else {
            request.is_none()
        };
        if len > MAX_FRAME || request.is_large() || !finished {
            tracing::debug!(device = self.name, len, "dropped a frame from the guest");
            return Ok(Some(1));
        }
        let sent = self.link.send(packet) != Outcome::WouldBlock;
        Ok(sent.then_some(1))
    }
}

/// Reads header and packet of a chain into `buffer`; the packet's length, or `None` if it is no
/// packet or does not fit.
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
#[path = "net_test.rs"]
mod tests;
