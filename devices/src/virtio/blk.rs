//! Block device (virtio 1.2, section 5.2).

use std::sync::Arc;
use std::time::{Duration, Instant};

use fleetbox_arch::GuestMemory;
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_MQ,
    VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_SIZE_MAX, VIRTIO_BLK_F_TOPOLOGY,
    VIRTIO_BLK_F_WRITE_ZEROES, VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP,
    VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN,
    VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES, VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
};

use super::{
    ActivateContext, Chain, DeviceState, QueueError, QueueWorker, VirtioDevice, Virtqueue, Workers,
};
use crate::block::Disk;
use crate::pci::{le_value, read_registers};
use crate::state::BlkState;

const QUEUE_SIZE: u16 = 256;
const SECTOR: u64 = 512;
const HEADER: u64 = 16;
const ID_BYTES: usize = 20;

/// Maximum number of queues of a block device, and of pairs of queues of a network device.
pub const MAX_QUEUES: u16 = 16;

/// Maximum number of data segments in one request: the queue without header and status.
const SEG_MAX: u32 = QUEUE_SIZE as u32 - 2;
/// Maximum bytes in one segment.
const SIZE_MAX: u32 = 1 << 20;
/// Maximum bytes in one request, more than any driver asks for.
const MAX_REQUEST: u64 = 64 << 20;
/// Size of the bounce buffer in bytes.
const BOUNCE: usize = 1 << 20;

/// Maximum sectors in one segment of a discard or write-zeroes request: 1 GiB, so that one request
/// does not keep the device busy for long.
const MAX_RANGE_SECTORS: u32 = 1 << 21;
/// Maximum segments in one discard or write-zeroes request.
const MAX_RANGES: u32 = 32;
const RANGE_BYTES: usize = 16;
/// Sectors in the host's blocks (4 KiB).
const ALIGNMENT_SECTORS: u32 = 8;

/// How long finished requests may wait for others, to share an interrupt.
const BATCH: Duration = Duration::from_micros(100);

/// The device's configuration registers.
const CONFIG_BYTES: usize = 60;

/// A block device over a [`Disk`].
pub struct Blk {
    name: String,
    disk: Arc<dyn Disk>,
    id: [u8; ID_BYTES],
    /// Sizes of the queues.
    queues: Vec<u16>,
}

impl Blk {
    /// A block device called `name` over `disk`. `serial` is its serial number; bytes beyond the
    /// 20th are cut off. It has `queues` queues, 1 to [`MAX_QUEUES`]. Each queue that the driver
    /// uses has a separate thread. More queues than the guest has vCPUs are useless.
    pub fn new(name: &str, disk: Arc<dyn Disk>, serial: &str, queues: u16) -> Self {
        let mut id = [0; ID_BYTES];
        for (to, from) in id.iter_mut().zip(serial.bytes()) {
            *to = from;
        }
        Self {
            name: name.to_owned(),
            disk,
            id,
            queues: vec![QUEUE_SIZE; usize::from(queues.clamp(1, MAX_QUEUES))],
        }
    }
}

impl VirtioDevice for Blk {
    fn name(&self) -> &str {
        &self.name
    }

    fn device_type(&self) -> u16 {
        2
    }

    fn pci_class(&self) -> u32 {
        0x01_00_00
    }

    fn features(&self) -> u64 {
        let mut features = 1 << VIRTIO_BLK_F_SIZE_MAX
            | 1 << VIRTIO_BLK_F_SEG_MAX
            | 1 << VIRTIO_BLK_F_BLK_SIZE
            | 1 << VIRTIO_BLK_F_TOPOLOGY
            | 1 << VIRTIO_BLK_F_FLUSH;
        features |= if self.disk.read_only() {
            1 << VIRTIO_BLK_F_RO
        } else {
            1 << VIRTIO_BLK_F_DISCARD | 1 << VIRTIO_BLK_F_WRITE_ZEROES
        };
        if self.queues.len() > 1 {
            features |= 1 << VIRTIO_BLK_F_MQ;
        }
        features
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queues
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let mut config = [0; CONFIG_BYTES];
        let mut put = |at: usize, bytes: &[u8]| {
            config[at..at + bytes.len()].copy_from_slice(bytes);
        };
        put(0, &(self.disk.len() / SECTOR).to_le_bytes());
        put(8, &SIZE_MAX.to_le_bytes());
        put(12, &SEG_MAX.to_le_bytes());
        put(20, &(SECTOR as u32).to_le_bytes());
        // Physical blocks of 2^3 sectors, aligned, and as large the smallest good request.
        put(24, &[ALIGNMENT_SECTORS.trailing_zeros() as u8, 0]);
        put(26, &(ALIGNMENT_SECTORS as u16).to_le_bytes());
        put(34, &(self.queues.len() as u16).to_le_bytes());
        put(36, &MAX_RANGE_SECTORS.to_le_bytes());
        put(40, &MAX_RANGES.to_le_bytes());
        put(44, &ALIGNMENT_SECTORS.to_le_bytes());
        put(48, &MAX_RANGE_SECTORS.to_le_bytes());
        put(52, &MAX_RANGES.to_le_bytes());
        put(56, &[1]);
        read_registers(&config, offset, data);
    }

    fn activate(&mut self, context: ActivateContext) -> std::io::Result<Workers> {
        let worker = |_: &u16| -> Box<dyn QueueWorker> {
            Box::new(BlkWorker {
                requests: Requests {
                    name: self.name.clone(),
                    disk: self.disk.clone(),
                    id: self.id,
                    memory: context.memory.clone(),
                    features: context.features,
                    bounce: Vec::new(),
                    warned: false,
                },
                chain: Chain::default(),
            })
        };
        Ok(self.queues.iter().map(worker).collect())
    }

    fn save(&self) -> DeviceState {
        DeviceState::Blk(BlkState {
            len: self.disk.len(),
            read_only: self.disk.read_only(),
        })
    }

    fn identity(&self) -> &'static str {
        "size or write protection of the disk"
    }
}

struct BlkWorker {
    requests: Requests,
    chain: Chain,
}

impl QueueWorker for BlkWorker {
    fn queue_ready(&mut self, queues: &mut [Virtqueue], index: usize) -> Result<(), QueueError> {
        let Some(queue) = queues.get_mut(index) else {
            return Ok(());
        };
        loop {
            queue.disable_notifications()?;
            let mut first_unannounced = None;
            while queue.pop(&mut self.chain)? {
                let written = self
                    .requests
                    .serve(&self.chain)
                    .map_err(|what| queue.malformed(self.chain.head, what))?;
                queue.push(self.chain.head, written)?;
                // Small requests share an interrupt, large ones do not wait for others.
                let since = *first_unannounced.get_or_insert_with(Instant::now);
                if since.elapsed() >= BATCH {
                    queue.interrupt()?;
                    first_unannounced = None;
                }
            }
            if first_unannounced.is_some() {
                queue.interrupt()?;
            }
            if !queue.enable_notifications()? {
                return Ok(());
            }
        }
    }
}

/// Why a request failed.
enum Failure {
    /// It was out of range or outside guest memory, or the host failed.
    Io,
    /// The device does not know the request.
    Unsupported,
}

struct Requests {
    name: String,
    disk: Arc<dyn Disk>,
    id: [u8; ID_BYTES],
    memory: GuestMemory,
    features: u64,
    bounce: Vec<u8>,
    warned: bool,
}

impl Requests {
    /// Serves one request, and returns the number of bytes written to its buffers, including the
    /// status byte. It is an error if the request has no room for header or status.
    fn serve(&mut self, chain: &Chain) -> Result<u32, &'static str> {
        let mut header = [0; HEADER as usize];
        if !chain.read(&self.memory, 0, &mut header) {
            return Err("its header is missing or not in guest memory");
        }
        let Some(in_len) = chain.writable_len().checked_sub(1) else {
            return Err("it has no room for a status");
        };
        let kind = le_value(&header[..4]) as u32;
        let sector = le_value(&header[8..]);
        let (status, written) = match self.execute(kind, sector, chain, in_len) {
            Ok(written) => (VIRTIO_BLK_S_OK, written),
            Err(Failure::Io) => (VIRTIO_BLK_S_IOERR, 0),
            Err(Failure::Unsupported) => (VIRTIO_BLK_S_UNSUPP, 0),
        };
        if !chain.write(&self.memory, in_len, &[status as u8]) {
            return Err("its status is not in guest memory");
        }
        // The length counts from the start of the writable part: where a request fails in its
        // midst, nothing but the status is certain, and drivers look at that alone.
        Ok(u32::try_from(written + 1).unwrap_or(u32::MAX))
    }

    fn execute(
        &mut self,
        kind: u32,
        sector: u64,
        chain: &Chain,
        in_len: u64,
    ) -> Result<u64, Failure> {
        let out_len = chain.readable_len() - HEADER;
        match kind {
            VIRTIO_BLK_T_IN => {
                let offset = self.extent(sector, in_len)?;
                self.read(chain, offset, in_len)?;
                Ok(in_len)
            }
            VIRTIO_BLK_T_OUT => {
                let offset = self.extent(sector, out_len)?;
                self.write(chain, offset, out_len)?;
                Ok(0)
            }
            VIRTIO_BLK_T_FLUSH => {
                let result = self.disk.flush();
                self.check("flush", result)?;
                Ok(0)
            }
            VIRTIO_BLK_T_GET_ID => {
                let len = in_len.min(ID_BYTES as u64);
                let id = &self.id[..len as usize];
                let written = chain.write(&self.memory, 0, id);
                written.then_some(len).ok_or(Failure::Io)
            }
            VIRTIO_BLK_T_DISCARD if self.has(VIRTIO_BLK_F_DISCARD) => {
                self.ranges(chain, out_len, false)?;
                Ok(0)
            }
            VIRTIO_BLK_T_WRITE_ZEROES if self.has(VIRTIO_BLK_F_WRITE_ZEROES) => {
                self.ranges(chain, out_len, true)?;
                Ok(0)
            }
            _ => Err(Failure::Unsupported),
        }
    }

    fn has(&self, feature: u32) -> bool {
        self.features & 1 << feature != 0
    }

    /// The offset of a range in bytes, if the range is within the disk.
    fn extent(&self, sector: u64, len: u64) -> Result<u64, Failure> {
        let offset = sector.checked_mul(SECTOR).ok_or(Failure::Io)?;
        let end = offset.checked_add(len).ok_or(Failure::Io)?;
        let fits = end <= self.disk.len() && len.is_multiple_of(SECTOR) && len <= MAX_REQUEST;
        fits.then_some(offset).ok_or(Failure::Io)
    }

    fn check(&mut self, what: &str, result: std::io::Result<()>) -> Result<(), Failure> {
        result.map_err(|error| {
            // Once is enough for the log: a guest may retry for ever.
            if std::mem::replace(&mut self.warned, true) {
                tracing::debug!(device = self.name, what, %error, "disk request failed");
            } else {
                tracing::warn!(device = self.name, what, %error, "disk request failed");
            }
            Failure::Io
        })
    }

    /// Takes out the bounce buffer, with `len` bytes or its maximum size.
    ///
    /// Guest memory is never passed to a disk directly: another vCPU could change it meanwhile,
    /// which Rust slices do not allow.
    fn bounce(&mut self, len: u64) -> Vec<u8> {
        let mut bounce = std::mem::take(&mut self.bounce);
        let wanted = len.min(BOUNCE as u64) as usize;
        if bounce.len() < wanted {
            bounce.resize(wanted.next_power_of_two(), 0);
        }
        bounce
    }

    fn read(&mut self, chain: &Chain, offset: u64, len: u64) -> Result<(), Failure> {
        let mut bounce = self.bounce(len);
        let result = (|| {
            for (at, count) in chunks(len, bounce.len()) {
                let data = &mut bounce[..count];
                let result = self.disk.read_at(data, offset + at);
                self.check("read", result)?;
                if !chain.write(&self.memory, at, data) {
                    return Err(Failure::Io);
                }
            }
            Ok(())
        })();
        self.bounce = bounce;
        result
    }

    fn write(&mut self, chain: &Chain, offset: u64, len: u64) -> Result<(), Failure> {
        let mut bounce = self.bounce(len);
        let result = (|| {
            for (at, count) in chunks(len, bounce.len()) {
                let data = &mut bounce[..count];
                if !chain.read(&self.memory, HEADER + at, data) {
                    return Err(Failure::Io);
                }
                let result = self.disk.write_at(data, offset + at);
                self.check("write", result)?;
            }
            Ok(())
        })();
        self.bounce = bounce;
        result
    }

    /// Discards or writes zeros (section 5.2.6). All ranges are checked before the first is
    /// changed.
    fn ranges(&mut self, chain: &Chain, len: u64, zeroes: bool) -> Result<(), Failure> {
        let mut bytes = [0; RANGE_BYTES * MAX_RANGES as usize];
        let len = usize::try_from(len).map_err(|_| Failure::Io)?;
        let Some(bytes) = bytes
            .get_mut(..len)
            .filter(|b| b.len().is_multiple_of(RANGE_BYTES))
        else {
            return Err(Failure::Io);
        };
        if !chain.read(&self.memory, HEADER, bytes) {
            return Err(Failure::Io);
        }
        let mut ranges = Vec::with_capacity(MAX_RANGES as usize);
        for range in bytes.chunks_exact(RANGE_BYTES) {
            let sectors = le_value(&range[8..12]);
            let flags = le_value(&range[12..16]) as u32;
            let allowed = if zeroes {
                VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP
            } else {
                0
            };
            if flags & !allowed != 0 {
                return Err(Failure::Unsupported);
            }
            if sectors > MAX_RANGE_SECTORS.into() {
                return Err(Failure::Io);
            }
            let sector = le_value(&range[..8]);
            let offset = sector.checked_mul(SECTOR).ok_or(Failure::Io)?;
            let bytes = sectors * SECTOR;
            let end = offset.checked_add(bytes).ok_or(Failure::Io)?;
            if end > self.disk.len() {
                return Err(Failure::Io);
            }
            ranges.push((offset, bytes, flags != 0));
        }
        for (offset, bytes, unmap) in ranges {
            if zeroes {
                let result = self.disk.write_zeroes(offset, bytes, unmap);
                self.check("write zeroes", result)?;
            } else {
                let result = self.disk.discard(offset, bytes);
                self.check("discard", result)?;
            }
        }
        Ok(())
    }
}

/// Splits `len` bytes into pieces of at most `size` bytes: their offsets and lengths.
fn chunks(len: u64, size: usize) -> impl Iterator<Item = (u64, usize)> {
    let size = size.max(1);
    (0..len)
        .step_by(size)
        .map(move |at| (at, (len - at).min(size as u64) as usize))
}

#[cfg(test)]
#[path = "blk_test.rs"]
mod tests;
