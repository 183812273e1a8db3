//! Replays ext4's journal (jbd2) in memory.
//!
//! If a guest was killed, only the journal on its disk has the latest metadata. Nothing is written:
//! committed blocks become an overlay, which the file system reader sees instead of the old blocks.
//! The recovery works as in the kernel: it finds the last complete transaction, collects the
//! revoked blocks, and then maps every block that no later transaction revoked. The log is circular
//! and wraps.

use std::collections::{BTreeMap, HashMap};

use super::map::{Map, Run};
use crate::boot::budget::{Held, Limit};
use crate::boot::crc::crc32c;
use crate::boot::fs::FsError;
use crate::boot::window::Window;

const MAGIC: u32 = 0xC03B_3998;
/// Maximum number of blocks of a journal: 1 GiB in 4 KiB blocks, the largest that mke2fs makes.
const MAX_BLOCKS: u32 = 1 << 18;
/// Maximum number of revocations. A kernel revokes far fewer before it writes the blocks in place.
const MAX_REVOKED: usize = 1 << 22;
/// Work that a look-up in a map costs.
const HASHED: u64 = 64;
/// Memory that a block in a descriptor costs, with room for vectors and maps that grow.
const TAG_COST: usize = 6 * size_of::<(u64, Newer)>();
/// Memory that a revocation costs, likewise.
const REVOCATION_COST: usize = 3 * size_of::<u64>() + 4 * size_of::<(u64, usize)>();

const INCOMPAT_64BIT: u32 = 0x2;
const INCOMPAT_CSUM_V2: u32 = 0x8;
const INCOMPAT_CSUM_V3: u32 = 0x10;
const INCOMPAT_FAST_COMMIT: u32 = 0x20;
/// Supported features: revocations, 64-bit block numbers, asynchronous commits, checksums of
/// version 2 and 3.
const INCOMPAT_KNOWN: u32 = 0x1 | INCOMPAT_64BIT | 0x4 | INCOMPAT_CSUM_V2 | INCOMPAT_CSUM_V3;

const TAG_ESCAPED: u32 = 1;
const TAG_SAME_UUID: u32 = 2;
const TAG_LAST: u32 = 8;

/// The place of the newest copy of a block.
#[derive(Clone, Copy)]
struct Newer {
    /// The block of the file system that has it.
    at: u64,
    /// True if its first four bytes are the journal's magic number, which the journal stores as
    /// zeros.
    escaped: bool,
    /// Sequence number of its transaction, and its checksum if the journal has checksums.
    sequence: u32,
    checksum: Option<u32>,
}

/// The blocks that the journal replaces.
#[derive(Default)]
pub(super) struct Overlay {
    blocks: BTreeMap<u64, Newer>,
    block_size: usize,
    /// CRC-32C of the journal's UUID.
    seed: u32,
    /// True for checksums of version 2, which have only the low half.
    half: bool,
    /// The memory that it took to make.
    _held: Option<Held>,
}

impl Overlay {
    /// Number of blocks replaced.
    pub(super) fn len(&self) -> usize {
        self.blocks.len()
    }

    /// `buf` has the file system's bytes at `offset`. Replaces the parts of which the journal has
    /// newer blocks.
    ///
    /// # Errors
    /// A journal block cannot be read or does not match its checksum.
    pub(super) fn apply(&self, disk: &Window, offset: u64, buf: &mut [u8]) -> Result<(), FsError> {
        if self.blocks.is_empty() || buf.is_empty() {
            return Ok(());
        }
        let size = self.block_size as u64;
        let end = offset.saturating_add(buf.len() as u64);
        for (block, newer) in self.blocks.range(offset / size..end.div_ceil(size)) {
            disk.budget().charge(Limit::Entries, 1)?;
            let mut data = vec![0; self.block_size];
            disk.read(newer.at.saturating_mul(size), &mut data)?;
            if let Some(expected) = newer.checksum {
                disk.budget().work(data.len() as u64)?;
                let crc = crc32c(crc32c(self.seed, &newer.sequence.to_be_bytes()), &data);
                let crc = if self.half { crc & 0xFFFF } else { crc };
                if crc != expected {
                    return Err(FsError::Corrupt(format!(
                        "the journal's copy of block {block} does not match its checksum"
                    )));
                }
            }
            if newer.escaped
                && let Some(head) = data.first_chunk_mut::<4>()
            {
                *head = MAGIC.to_be_bytes();
            }
            let start = block * size;
            let from = start.max(offset);
            let to = (start + size).min(end);
            let source = data.get((from - start) as usize..(to - start) as usize);
            let target = buf.get_mut((from - offset) as usize..(to - offset) as usize);
            if let (Some(source), Some(target)) = (source, target) {
                target.copy_from_slice(source);
            }
        }
        Ok(())
    }
}

/// The content of a descriptor or revocation block, in log order.
struct Transaction {
    sequence: u32,
    tags: Vec<(u64, Newer)>,
    revoked: Vec<u64>,
}

/// Reads the journal, whose blocks `map` gives.
///
/// # Errors
/// It is damaged, or has unsupported features.
pub(super) fn replay(disk: &Window, block_size: usize, map: &Map) -> Result<Overlay, FsError> {
    Log::open(disk, block_size, &map.runs)?.overlay()
}

struct Log<'a> {
    disk: &'a Window,
    block_size: usize,
    runs: &'a [Run],
    first: u32,
    /// One past the log's last block.
    end: u32,
    start: u32,
    sequence: u32,
    features: u32,
    seed: u32,
}

impl<'a> Log<'a> {
    fn open(disk: &'a Window, block_size: usize, runs: &'a [Run]) -> Result<Self, FsError> {
        let mut log = Self {
            disk,
            block_size,
            runs,
            first: 0,
            end: 1,
            start: 0,
            sequence: 0,
            features: 0,
            seed: 0,
        };
        let corrupt = |what: &str| FsError::Corrupt(format!("the journal's superblock {what}"));
        let block = log.read(0)?;
        let field = |at: usize| be32(&block, at).ok_or_else(|| corrupt("is cut off"));
        if field(0)? != MAGIC {
            return Err(corrupt("has no magic number"));
        }
        match field(4)? {
            // Version 1 has no feature fields.
            3 => {}
            4 => log.features = field(0x28)?,
            kind => return Err(corrupt(&format!("is of unknown type {kind}"))),
        }
        if field(0xC)? as usize != block_size {
            return Err(corrupt("gives another block size than the file system's"));
        }
        if log.features & INCOMPAT_FAST_COMMIT != 0 {
            return Err(FsError::Unsupported("its journal has fast commits".into()));
        }
        if log.features & !INCOMPAT_KNOWN != 0 {
            return Err(FsError::Unsupported(format!(
                "its journal has unknown features {:#x}",
                log.features & !INCOMPAT_KNOWN
            )));
        }
        log.seed = crc32c(!0, block.get(0x30..0x40).unwrap_or_default());
        if log.checksums() {
            let mut hashed = block
                .get(..1024)
                .ok_or_else(|| corrupt("is cut off"))?
                .to_vec();
            hashed.get_mut(0xFC..0x100).unwrap_or_default().fill(0);
            if crc32c(!0, &hashed) != field(0xFC)? {
                return Err(corrupt("does not match its checksum"));
            }
        }
        (log.end, log.first) = (field(0x10)?, field(0x14)?);
        (log.sequence, log.start) = (field(0x18)?, field(0x1C)?);
        if log.end > MAX_BLOCKS || log.first == 0 || log.first >= log.end {
            return Err(corrupt("gives a log of impossible bounds"));
        }
        if log.start != 0 && !(log.first..log.end).contains(&log.start) {
            return Err(corrupt("gives a log that starts outside its bounds"));
        }
        Ok(log)
    }

    fn checksums(&self) -> bool {
        self.features & (INCOMPAT_CSUM_V2 | INCOMPAT_CSUM_V3) != 0
    }

    /// The place of the log's block `index`.
    fn locate(&self, index: u32) -> Result<u64, FsError> {
        let wanted = u64::from(index);
        let after = self.runs.partition_point(|run| run.first <= wanted);
        after
            .checked_sub(1)
            .and_then(|i| self.runs.get(i))
            .and_then(|run| {
                let within = wanted
                    .checked_sub(run.first)
                    .filter(|within| *within < run.len)?;
                run.start.checked_add(within)
            })
            .ok_or_else(|| FsError::Corrupt(format!("the journal has no block {index}")))
    }

    fn read(&self, index: u32) -> Result<Vec<u8>, FsError> {
        let mut block = vec![0; self.block_size];
        let at = self.locate(index)?.saturating_mul(self.block_size as u64);
        self.disk.read(at, &mut block)?;
        Ok(block)
    }

    /// `index + by`, around the end.
    fn advance(&self, index: u32, by: u32) -> u32 {
        let span = self.end - self.first;
        self.first + (index - self.first + by % span) % span
    }

    /// True if the block's last four bytes are its checksum, or the journal has no checksums.
    fn tail_matches(&self, block: &[u8]) -> bool {
        if !self.checksums() {
            return true;
        }
        let Some((body, tail)) = block.split_last_chunk::<4>() else {
            return false;
        };
        crc32c(crc32c(self.seed, body), &[0; 4]) == u32::from_be_bytes(*tail)
    }

    fn commit_matches(&self, block: &[u8]) -> bool {
        if !self.checksums() {
            return true;
        }
        let Some(expected) = be32(block, 0x10) else {
            return false;
        };
        let mut hashed = block.to_vec();
        hashed.get_mut(0x10..0x14).unwrap_or_default().fill(0);
        crc32c(self.seed, &hashed) == expected
    }

    /// All complete transactions, oldest first.
    fn transactions(&self, held: &mut Held) -> Result<Vec<Transaction>, FsError> {
        let mut whole = Vec::new();
        if self.start == 0 {
            return Ok(whole);
        }
        let (mut at, mut sequence) = (self.start, self.sequence);
        let mut current = Transaction {
            sequence,
            tags: Vec::new(),
            revoked: Vec::new(),
        };
        let (mut seen, mut revoked): (u32, usize) = (0, 0);
        // More blocks than the log has would be a second time round.
        while seen < self.end - self.first {
            let block = self.read(at)?;
            if self.checksums() {
                self.disk.budget().work(block.len() as u64)?;
            }
            if be32(&block, 0) != Some(MAGIC) || be32(&block, 8) != Some(sequence) {
                break;
            }
            let mut used = 1;
            match be32(&block, 4) {
                Some(1) => {
                    if !self.tail_matches(&block) {
                        break;
                    }
                    let Some(count) = self.tags(&block, at, &mut current)? else {
                        break;
                    };
                    used += count;
                    self.disk.budget().charge(Limit::Entries, count.into())?;
                    held.grow(count as usize * TAG_COST)?;
                }
                Some(2) => {
                    if !self.commit_matches(&block) {
                        break;
                    }
                    sequence = sequence.wrapping_add(1);
                    let next = Transaction {
                        sequence,
                        tags: Vec::new(),
                        revoked: Vec::new(),
                    };
                    whole.push(std::mem::replace(&mut current, next));
                }
                Some(5) => {
                    if !self.tail_matches(&block) {
                        break;
                    }
                    let before = current.revoked.len();
                    self.revocations(&block, &mut current);
                    let more = current.revoked.len() - before;
                    self.disk.budget().charge(Limit::Entries, more as u64)?;
                    held.grow(more * REVOCATION_COST)?;
                    revoked += more;
                    if revoked > MAX_REVOKED {
                        return Err(FsError::Corrupt(
                            "the journal revokes too many blocks".into(),
                        ));
                    }
                }
                _ => break,
            }
            seen = seen.saturating_add(used);
            at = self.advance(at, used);
        }
        Ok(whole)
    }

    /// Reads the tags of a descriptor, which describe the blocks after it. `None` if it is damaged.
    fn tags(
        &self,
        block: &[u8],
        at: u32,
        transaction: &mut Transaction,
    ) -> Result<Option<u32>, FsError> {
        let wide = self.features & INCOMPAT_64BIT != 0;
        let v3 = self.features & INCOMPAT_CSUM_V3 != 0;
        let v2 = !v3 && self.features & INCOMPAT_CSUM_V2 != 0;
        let size = match (v3, wide) {
            (true, _) => 16,
            (false, true) => 12,
            (false, false) => 8,
        } + if v2 { 2 } else { 0 };
        let end = block.len() - if self.checksums() { 4 } else { 0 };
        let (mut offset, mut count) = (12, 0u32);
        while offset + size <= end {
            let tag = block.get(offset..offset + size).unwrap_or_default();
            let low = be32(tag, 0).unwrap_or(0);
            let (flags, checksum, high) = if v3 {
                (be32(tag, 4), be32(tag, 12), be32(tag, 8))
            } else {
                let checksum = be16(tag, 4).map(u32::from).filter(|_| v2);
                (be16(tag, 6).map(u32::from), checksum, be32(tag, 8))
            };
            let flags = flags.unwrap_or(0);
            let high = if wide { high.unwrap_or(0) } else { 0 };
            count += 1;
            if count >= self.end - self.first {
                return Ok(None);
            }
            let newer = Newer {
                at: self.locate(self.advance(at, count))?,
                escaped: flags & TAG_ESCAPED != 0,
                sequence: transaction.sequence,
                checksum,
            };
            transaction
                .tags
                .push((u64::from(high) << 32 | u64::from(low), newer));
            offset += size + if flags & TAG_SAME_UUID == 0 { 16 } else { 0 };
            if flags & TAG_LAST != 0 {
                break;
            }
        }
        Ok(Some(count))
    }

    fn revocations(&self, block: &[u8], transaction: &mut Transaction) {
        let wide = self.features & INCOMPAT_64BIT != 0;
        let size = if wide { 8 } else { 4 };
        let tail = if self.checksums() { 4 } else { 0 };
        let used = be32(block, 12).unwrap_or(0) as usize;
        let records = block
            .get(16..used.min(block.len() - tail))
            .unwrap_or_default();
        transaction
            .revoked
            .extend(records.chunks_exact(size).map(|record| {
                record
                    .iter()
                    .fold(0u64, |value, byte| value << 8 | u64::from(*byte))
            }));
    }

    fn overlay(&self) -> Result<Overlay, FsError> {
        let mut held = self.disk.budget().hold(0)?;
        let transactions = self.transactions(&mut held)?;
        // Position in the log, not sequence number, since numbers wrap.
        let mut revoked: HashMap<u64, usize> = HashMap::new();
        for (position, transaction) in transactions.iter().enumerate() {
            self.disk
                .budget()
                .work(transaction.revoked.len() as u64 * HASHED)?;
            for block in &transaction.revoked {
                revoked.insert(*block, position);
            }
        }
        let mut blocks = BTreeMap::new();
        for (position, transaction) in transactions.iter().enumerate() {
            self.disk
                .budget()
                .work(transaction.tags.len() as u64 * HASHED)?;
            for (block, newer) in &transaction.tags {
                if revoked.get(block).is_none_or(|last| *last < position) {
                    blocks.insert(*block, *newer);
                }
            }
        }
        tracing::debug!(
            transactions = transactions.len(),
            blocks = blocks.len(),
            "replayed the journal in memory"
        );
        let half = self.features & INCOMPAT_CSUM_V3 == 0;
        Ok(Overlay {
            blocks,
            block_size: self.block_size,
            seed: self.seed,
            half,
            _held: Some(held),
        })
    }
}

fn be32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}
