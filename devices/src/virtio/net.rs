//! Network device (virtio 1.2, section 5.1).

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};

use fleetbox_packet::{HEADER, MAX_FRAME, MAX_PACKET};
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_MAC, VIRTIO_NET_F_MQ, VIRTIO_NET_F_MRG_RXBUF,
    VIRTIO_NET_F_MTU, VIRTIO_NET_F_STATUS, VIRTIO_NET_S_LINK_UP,
};

use self::link::Link;
use self::worker::{FLOWS, NetWorker, RX};
use super::blk::MAX_QUEUES;
use super::{ActivateContext, DeviceState, VirtioDevice, Workers};

use crate::pci::{RestoreError, read_registers};
use crate::state::NetState;

mod link;
mod pending;
mod worker;

const QUEUE_SIZE: u16 = 256;

const MTU: u16 = 1500;
/// Maximum bytes of a packet that the device must cut: a frame's header, and the largest IPv4 packet.
const MAX_LARGE: usize = 18 + 65535;

/// The format of the packets in a link's socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LinkFormat {
    /// Ethernet frames of at most 1518 bytes, without FCS, ready to be sent. The device does all the work that its
    /// driver leaves to it.
    #[default]
    Frames,
    /// [`fleetbox_packet::Packet`]s: a header of 12 bytes in front of a frame, or of a TCP packet of up to 65549 bytes.
    /// The work named in the header is left to the other end. Large packets pass uncut in both directions. The device
    /// only cuts those that its driver does not accept uncut.
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

#[cfg(test)]
#[path = "net_large_test.rs"]
mod large_tests;
#[cfg(test)]
#[path = "net_queues_test.rs"]
mod queues_tests;
#[cfg(test)]
#[path = "net_test.rs"]
mod tests;
