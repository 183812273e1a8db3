//! Reads qcow2 images that are not written to.
//!
//! Entries are those of QEMU's `docs/interop/qcow2.txt`, section "Cluster mapping".

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex};

use zstd::stream::raw::{Decoder, InBuffer, Operation, OutBuffer};

use super::header::{Compression, Header};
use crate::block::disk::{Disk, SECTOR, check_range, refuse_write};
use crate::block::error::DiskError;
use crate::block::host::HostFile;
use crate::sync::lock;

/// Maximum bytes of decompressed clusters in the cache.
const CLUSTER_CACHE: usize = 8 << 20;
/// Maximum bytes of L2 tables in the cache.
const TABLE_CACHE: usize = 4 << 20;
/// The bits of an L1 or L2 entry that hold an offset in the file.
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
/// L2 entry: the cluster is compressed.
const COMPRESSED: u64 = 1 << 62;
/// L2 entry: the cluster reads as zeroes.
const ZERO: u64 = 1;

/// An open image.
pub(super) struct Reader {
    file: HostFile,
    header: Header,
    /// The active L1 table as it is in the file.
    l1: Vec<u8>,
    /// Keyed by offset in the file.
    tables: Mutex<Cache>,
    /// Keyed by number of the cluster on the disk.
    clusters: Mutex<Cache>,
    backing: Option<Arc<dyn Disk>>,
}

/// Where a range of the disk is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// In the backing image.
    Below,
    /// Nowhere: the range reads as zeros.
    Zero,
    /// In the file, at this offset.
    Data(u64),
    /// In a compressed cluster, whose data is at this offset of the file and at most this long.
    Compressed { offset: u64, len: u64 },
}

impl Reader {
    /// Opens the image in `file`, whose header was checked.
    pub(super) fn open(
        file: HostFile,
        header: &Header,
        backing: Option<Arc<dyn Disk>>,
    ) -> Result<Self, DiskError> {
        // The header's check bounds both by the file and by a fixed limit.
        let mut l1 = vec![0; header.l1_len as usize];
        file.read(&mut l1, header.l1_offset)
            .map_err(DiskError::io("read", file.path()))?;
        let entries = |bytes: usize| (bytes / header.cluster as usize).max(2);
        Ok(Self {
            header: header.clone(),
            l1,
            tables: Mutex::new(Cache::new(entries(TABLE_CACHE))),
            clusters: Mutex::new(Cache::new(entries(CLUSTER_CACHE))),
            backing,
            file,
        })
    }

    fn invalid(&self, what: impl std::fmt::Display) -> io::Error {
        let path = self.file.path().display();
        io::Error::new(
            io::ErrorKind::InvalidData,
            format!("the qcow2 image {path} is damaged: {what}"),
        )
    }

    /// Where the `max` bytes at `at` are, or the first of them that are in one place.
    fn find(&self, at: u64, max: u64) -> io::Result<(Place, u64)> {
        let cluster = self.header.cluster;
        let (index, within) = (at / cluster, at % cluster);
        // A table is a cluster of 8-byte entries.
        let per_table = cluster / 8;
        let Some(table) = self.table(index / per_table)? else {
            let of_table = (per_table - index % per_table) * cluster - within;
            return Ok((Place::Below, max.min(of_table)));
        };
        let entry = |n: u64| be64(&table, n * 8);
        let first = index % per_table;
        let place = self.decode(entry(first))?;
        let place = match place {
            Place::Data(offset) => Place::Data(offset + within),
            other => other,
        };
        let mut len = cluster - within;
        for n in first + 1..per_table {
            if len >= max || matches!(place, Place::Compressed { .. }) {
                break;
            }
            let joins = match (place, self.decode(entry(n))) {
                (Place::Data(offset), Ok(Place::Data(next))) => next == offset + len,
                (place, Ok(next)) => next == place,
                (_, Err(_)) => false,
            };
            if !joins {
                break;
            }
            len += cluster;
        }
        Ok((place, len.min(max)))
    }

    /// The L2 table of an entry of the L1 table.
    fn table(&self, index: u64) -> io::Result<Option<Arc<[u8]>>> {
        let offset = be64(&self.l1, index * 8) & OFFSET;
        if offset == 0 {
            return Ok(None);
        }
        if !offset.is_multiple_of(self.header.cluster) {
            return Err(self.invalid("an L2 table is not at the start of a cluster"));
        }
        if let Some(table) = lock(&self.tables).get(offset) {
            return Ok(Some(table));
        }
        let mut table = vec![0; self.header.cluster as usize];
        self.read_file(&mut table, offset)?;
        let table: Arc<[u8]> = table.into();
        lock(&self.tables).insert(offset, Arc::clone(&table));
        Ok(Some(table))
    }

    /// Decodes an entry of an L2 table.
    fn decode(&self, entry: u64) -> io::Result<Place> {
        if entry & COMPRESSED != 0 {
            let offset_bits = 62 - (self.header.cluster_bits - 8);
            let offset = entry & ((1 << offset_bits) - 1);
            let sectors = (entry & (COMPRESSED - 1)) >> offset_bits;
            return Ok(Place::Compressed {
                offset,
                len: (sectors + 1) * 512 - offset % 512,
            });
        }
        if entry & ZERO != 0 {
            if self.header.version < 3 {
                return Err(
                    self.invalid("it has a zero cluster, which its version does not support")
                );
            }
            return Ok(Place::Zero);
        }
        match entry & OFFSET {
            0 => Ok(Place::Below),
            offset if offset.is_multiple_of(self.header.cluster) => Ok(Place::Data(offset)),
            _ => Err(self.invalid("a cluster's data is not at the start of a cluster")),
        }
    }

    /// Reads from the file. The last cluster may be incomplete, because writers leave it so; a read
    /// beyond it means that the file is truncated.
    fn read_file(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let end = self.file.len().next_multiple_of(self.header.cluster);
        if offset.checked_add(buf.len() as u64).is_none_or(|e| e > end) {
            let have = self.file.len();
            return Err(self.invalid(format_args!(
                "it is truncated: it has {have} bytes and refers to {} at {offset}",
                buf.len()
            )));
        }
        self.file.read_up_to_end(buf, offset).map(drop)
    }

    fn read_below(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let backing = self.backing.as_deref();
        let below = backing.map_or(0, |b| b.len().saturating_sub(offset));
        let n = usize::try_from(below).unwrap_or(usize::MAX).min(buf.len());
        let (of_backing, beyond) = buf.split_at_mut(n);
        beyond.fill(0);
        match backing {
            Some(backing) if n > 0 => backing.read_at(of_backing, offset),
            _ => Ok(()),
        }
    }

    /// The decompressed cluster `index`.
    fn cluster(&self, index: u64, offset: u64, len: u64) -> io::Result<Arc<[u8]>> {
        if let Some(cluster) = lock(&self.clusters).get(index) {
            return Ok(cluster);
        }
        // At most two clusters; the last one's sectors are rounded up beyond the file's end.
        let have = self.file.len().saturating_sub(offset).min(len);
        let mut packed = vec![0; have as usize];
        self.file.read(&mut packed, offset)?;
        let mut cluster = vec![0; self.header.cluster as usize];
        if decompress(self.header.compression, &packed, &mut cluster).is_none() {
            return Err(self.invalid(format_args!(
                "its compressed cluster at {offset} cannot be read"
            )));
        }
        let cluster: Arc<[u8]> = cluster.into();
        lock(&self.clusters).insert(index, Arc::clone(&cluster));
        Ok(cluster)
    }
}

impl Disk for Reader {
    fn len(&self) -> u64 {
        self.header.size.next_multiple_of(SECTOR)
    }

    fn read_only(&self) -> bool {
        true
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        check_range(self.len(), offset, buf.len() as u64)?;
        // The last sector is filled up with zeroes.
        let within = self
            .header
            .size
            .saturating_sub(offset)
            .min(buf.len() as u64) as usize;
        let (mut buf, beyond) = buf.split_at_mut(within);
        beyond.fill(0);
        let mut at = offset;
        while !buf.is_empty() {
            let (place, len) = self.find(at, buf.len() as u64)?;
            let (part, rest) = buf.split_at_mut(len as usize);
            match place {
                Place::Below => self.read_below(part, at)?,
                Place::Zero => part.fill(0),
                Place::Data(offset) => self.read_file(part, offset)?,
                Place::Compressed { offset, len } => {
                    let cluster = self.cluster(at / self.header.cluster, offset, len)?;
                    let from = (at % self.header.cluster) as usize;
                    part.copy_from_slice(&cluster[from..from + part.len()]);
                }
            }
            (buf, at) = (rest, at + len);
        }
        Ok(())
    }

    fn write_at(&self, _: &[u8], _: u64) -> io::Result<()> {
        refuse_write(true)
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn discard(&self, _: u64, _: u64) -> io::Result<()> {
        refuse_write(true)
    }

    fn write_zeroes(&self, _: u64, _: u64, _: bool) -> io::Result<()> {
        refuse_write(true)
    }
}

/// Fills `out` from compressed data. Unrelated bytes may follow the data.
fn decompress(method: Compression, packed: &[u8], out: &mut [u8]) -> Option<()> {
    let written = match method {
        Compression::Deflate => libdeflater::Decompressor::new()
            .deflate_decompress(packed, out)
            .ok()?,
        Compression::Zstd => {
            let mut decoder = Decoder::new().ok()?;
            let mut input = InBuffer::around(packed);
            let mut output = OutBuffer::around(&mut *out);
            loop {
                let before = (input.pos(), output.pos());
                let left = decoder.run(&mut input, &mut output).ok()?;
                if left == 0 || output.pos() == output.capacity() {
                    break output.pos();
                }
                if (input.pos(), output.pos()) == before {
                    return None;
                }
            }
        }
    };
    (written == out.len()).then_some(())
}

/// The big-endian number at an offset, or 0 if it is outside the bytes.
fn be64(bytes: &[u8], at: u64) -> u64 {
    let rest = usize::try_from(at).ok().and_then(|at| bytes.get(at..));
    rest.and_then(|b| b.first_chunk())
        .map_or(0, |b| u64::from_be_bytes(*b))
}

/// A cache of the most recently used values.
struct Cache {
    capacity: usize,
    /// Counts uses.
    clock: u64,
    /// When each was last used, and its value.
    entries: HashMap<u64, (u64, Arc<[u8]>)>,
}

impl Cache {
    fn new(capacity: usize) -> Self {
        Self {
            capacity,
            clock: 0,
            entries: HashMap::new(),
        }
    }

    fn get(&mut self, key: u64) -> Option<Arc<[u8]>> {
        self.clock += 1;
        let (used, bytes) = self.entries.get_mut(&key)?;
        *used = self.clock;
        Some(Arc::clone(bytes))
    }

    fn insert(&mut self, key: u64, bytes: Arc<[u8]>) {
        if self.entries.len() >= self.capacity
            && let Some(oldest) = self
                .entries
                .iter()
                .min_by_key(|(_, v)| v.0)
                .map(|(k, _)| *k)
        {
            self.entries.remove(&oldest);
        }
        self.clock += 1;
        self.entries.insert(key, (self.clock, bytes));
    }
}
