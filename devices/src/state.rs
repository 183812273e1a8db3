//! The state of devices as plain data, for snapshots.

use serde::{Deserialize, Serialize};

/// The state of any function, for snapshots.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum PciDeviceState {
    /// A [`HostBridge`](crate::pci::HostBridge).
    HostBridge(ConfigSpaceState),
    /// A [`VirtioPci`](crate::virtio::VirtioPci).
    Virtio(Box<VirtioPciState>),
}

/// Why a saved state cannot be restored.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The state belongs to another kind of device, or to one with another configuration.
    #[error(
        "{device}: the saved state does not match this device ({what}); start the VM without it"
    )]
    Mismatch {
        /// The device to restore.
        device: String,
        /// What differs.
        what: String,
    },
}

/// A saved [`ConfigSpace`](crate::pci::ConfigSpace).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigSpaceState {
    /// All 256 bytes.
    pub bytes: Vec<u8>,
}

/// A saved [`Msix`](crate::pci::Msix).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MsixState {
    /// Table entries: address low, address high, data, vector control.
    pub entries: Vec<[u32; 4]>,
    /// Pending bits.
    pub pending: u64,
    /// The function's MSI-X Enable bit.
    pub enabled: bool,
    /// The function's Function Mask bit.
    pub masked: bool,
}

/// A saved [`VirtioPci`](crate::virtio::VirtioPci).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VirtioPciState {
    /// PCI configuration space.
    pub config: ConfigSpaceState,
    /// MSI-X table and pending bits.
    pub msix: MsixState,
    /// Device feature half that the driver reads.
    pub device_feature_select: u32,
    /// Driver feature half that the driver writes.
    pub driver_feature_select: u32,
    /// Features that the driver accepted.
    pub driver_features: u64,
    /// Device status as the driver wrote it.
    pub status: u8,
    /// The device needs a reset.
    pub broken: bool,
    /// The selected queue.
    pub queue_select: u16,
    /// ISR status.
    pub isr: u8,
    /// Configuration generation.
    pub generation: u8,
    /// MSI-X vector of configuration changes, 0xffff for none.
    pub config_vector: u16,
    /// The queues.
    pub queues: Vec<QueueState>,
    /// The device itself.
    pub device: DeviceState,
}

/// One queue as the driver has set it up, and the device's progress in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueState {
    /// Largest size that the device allows.
    pub max_size: u16,
    /// Size in descriptors that the driver chose.
    pub size: u16,
    /// The driver has enabled the queue.
    pub enabled: bool,
    /// MSI-X vector, 0xffff for none.
    pub vector: u16,
    /// GPA of the descriptor table.
    pub desc_table: u64,
    /// GPA of the available ring.
    pub avail_ring: u64,
    /// GPA of the used ring.
    pub used_ring: u64,
    /// Next position in the available ring.
    pub next_avail: u16,
    /// Next position in the used ring.
    pub next_used: u16,
}

/// The state of a device beyond that of the transport and its queues, for snapshots.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum DeviceState {
    /// A [`Blk`](crate::virtio::Blk).
    Blk(BlkState),
    /// A [`Net`](crate::virtio::Net).
    Net(NetState),
    /// A [`Rng`](crate::virtio::Rng), which has no state.
    Rng,
}

/// A saved [`Blk`](crate::virtio::Blk), without the content of the disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlkState {
    /// Size in bytes.
    pub len: u64,
    /// Read-only.
    pub read_only: bool,
}

/// A saved [`Net`](crate::virtio::Net), without packets in the socket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetState {
    /// MAC address.
    pub mac: [u8; 6],
    /// Pairs of queues that the driver uses.
    pub pairs: u16,
}
