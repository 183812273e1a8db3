//! Where a file's blocks are: extents, or the block map of ext2 and ext3.

use super::geometry::Geometry;
use super::inode::Inode;
use super::source::{Source, le16, le32};
use crate::boot::budget::{Held, Limit};
use crate::boot::crc::crc32c;
use crate::boot::fs::FsError;

/// Maximum depth of an extent tree (the kernel's limit).
const MAX_DEPTH: u16 = 5;
const MAGIC: u16 = 0xF30A;
/// Longer extents are allocated but not written, and read as zeros.
const MAX_WRITTEN: u16 = 0x8000;
/// Memory that a run costs, with room for a vector that grows.
const RUN_COST: usize = 3 * size_of::<Run>();
/// Maximum bytes read at once, so that the deadline is checked in between.
const PIECE: usize = 4 << 20;

/// Consecutive blocks of a file that are consecutive on the disk, too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    /// The first block's number in the file, and in the file system.
    pub(super) first: u64,
    pub(super) start: u64,
    /// Number of blocks.
    pub(super) len: u64,
}

/// The blocks of a file, in order. What is between them reads as zeros.
pub(super) struct Map {
    pub(super) runs: Vec<Run>,
    _held: Held,
}

/// Collects a file's runs.
struct Collector<'a> {
    source: &'a Source,
    geometry: &'a Geometry,
    inode: &'a Inode,
    runs: Vec<Run>,
    held: Held,
    /// The file's next block that may have a run.
    next: u64,
    /// Number of the file's blocks; runs beyond are left out.
    end: u64,
}

impl Map {
    /// Reads the map of `inode`.
    ///
    /// # Errors
    /// It is damaged, or the disk fails.
    pub(super) fn read(
        source: &Source,
        geometry: &Geometry,
        inode: &Inode,
    ) -> Result<Self, FsError> {
        inode.check_content()?;
        // Sparse files that are larger than their partition exist, but none that boots.
        if inode.size > source.disk.len() {
            return Err(FsError::Corrupt(format!(
                "a file of {} bytes is larger than the partition",
                inode.size
            )));
        }
        let mut collector = Collector {
            source,
            geometry,
            inode,
            runs: Vec::new(),
            held: source.disk.budget().hold(0)?,
            next: 0,
            end: inode.size.div_ceil(geometry.block_size),
        };
        if inode.has_extents() {
            collector.extents(&inode.map, None)?;
        } else {
            collector.pointers()?;
        }
        Ok(Self {
            runs: collector.runs,
            _held: collector.held,
        })
    }

    /// Appends the file's first `size` bytes to `all`.
    ///
    /// # Errors
    /// The disk fails, or the budget is exhausted.
    pub(super) fn append(
        &self,
        source: &Source,
        geometry: &Geometry,
        size: u64,
        all: &mut Vec<u8>,
    ) -> Result<(), FsError> {
        let corrupt = || FsError::Corrupt("a file is larger than memory".into());
        let len = usize::try_from(size).map_err(|_| corrupt())?;
        let before = all.len();
        let after = before.checked_add(len).ok_or_else(corrupt)?;
        all.reserve_exact(len);
        all.resize(after, 0);
        let bytes = all.get_mut(before..).unwrap_or_default();
        for run in &self.runs {
            // Both are on the partition, as the map was checked.
            let (from, mut disk) = (
                run.first * geometry.block_size,
                run.start * geometry.block_size,
            );
            if from >= size {
                break;
            }
            let to = (from + run.len * geometry.block_size).min(size);
            let covered = usize::try_from(from)
                .ok()
                .zip(usize::try_from(to).ok())
                .and_then(|(from, to)| bytes.get_mut(from..to))
                .ok_or_else(corrupt)?;
            for piece in covered.chunks_mut(PIECE) {
                source.read(disk, piece)?;
                disk += piece.len() as u64;
            }
        }
        Ok(())
    }
}

impl Collector<'_> {
    fn corrupt(what: &str) -> FsError {
        FsError::Corrupt(format!("a file's block map {what}"))
    }

    /// Adds a run, which has to be after those that are there.
    fn push(&mut self, first: u64, start: u64, len: u64) -> Result<(), FsError> {
        if first < self.next {
            return Err(Self::corrupt("is not in order"));
        }
        if start
            .checked_add(len)
            .is_none_or(|end| end > self.geometry.blocks)
        {
            return Err(Self::corrupt("leaves the file system"));
        }
        self.next = first + len;
        let len = len.min(self.end.saturating_sub(first));
        if len == 0 {
            return Ok(());
        }
        if let Some(last) = self.runs.last_mut()
            && last.first + last.len == first
            && last.start + last.len == start
        {
            last.len += len;
            return Ok(());
        }
        self.held.grow(RUN_COST)?;
        self.runs.push(Run { first, start, len });
        Ok(())
    }

    /// Adds the extents of `node` and below. `depth` is the node's distance from the leaves,
    /// unknown for the root.
    fn extents(&mut self, node: &[u8], depth: Option<u16>) -> Result<(), FsError> {
        let budget = self.source.disk.budget();
        let (count, most, level) = (le16(node, 2), le16(node, 4), le16(node, 6));
        if le16(node, 0) != MAGIC {
            return Err(Self::corrupt("has a node without a magic number"));
        }
        if level > MAX_DEPTH || depth.is_some_and(|depth| depth != level) {
            return Err(Self::corrupt("has a node of a wrong depth"));
        }
        if count > most || node.len() < 12 * (usize::from(most) + 1) {
            return Err(Self::corrupt("has a node with too many entries"));
        }
        if let Some(seed) = self.inode.checksum_seed.filter(|_| depth.is_some()) {
            let end = 12 * (usize::from(most) + 1);
            let sum = crc32c(seed, node.get(..end).unwrap_or_default());
            budget.work(end as u64)?;
            if sum != le32(node, end) {
                return Err(Self::corrupt("does not match its checksum"));
            }
        }
        let (entries, _) = node.get(12..).unwrap_or_default().as_chunks::<12>();
        for entry in entries.iter().take(usize::from(count)) {
            budget.charge(Limit::Entries, 1)?;
            let first = u64::from(le32(entry, 0));
            if level > 0 {
                let child = u64::from(le16(entry, 8)) << 32 | u64::from(le32(entry, 4));
                let block = self.block(child)?;
                self.extents(&block, Some(level - 1))?;
                continue;
            }
            let len = le16(entry, 4);
            let start = u64::from(le16(entry, 6)) << 32 | u64::from(le32(entry, 8));
            if len == 0 {
                return Err(Self::corrupt("has an extent of no blocks"));
            }
            if len <= MAX_WRITTEN {
                self.push(first, start, len.into())?;
            }
        }
        Ok(())
    }

    /// Adds what the 15 pointers of a block map lead to.
    fn pointers(&mut self) -> Result<(), FsError> {
        let map = self.inode.map;
        let (pointers, _) = map.as_chunks::<4>();
        let mut at = 0;
        for (index, pointer) in (0..).zip(pointers) {
            // 12 blocks, and three trees of growing depth.
            let depth = if index < 12 { 0 } else { index - 11 };
            self.pointer(u32::from_le_bytes(*pointer), depth, &mut at)?;
        }
        Ok(())
    }

    /// Adds what `pointer` leads to, through `depth` blocks of pointers. `at` is the file's block
    /// that it is for, and after that the next one.
    fn pointer(&mut self, pointer: u32, depth: u32, at: &mut u64) -> Result<(), FsError> {
        self.source.disk.budget().charge(Limit::Entries, 1)?;
        let per_block = self.geometry.block_size / 4;
        let covered = per_block.pow(depth);
        if pointer == 0 || *at >= self.end {
            *at += covered;
            return Ok(());
        }
        if depth == 0 {
            self.push(*at, pointer.into(), 1)?;
            *at += 1;
            return Ok(());
        }
        let block = self.block(pointer.into())?;
        let (pointers, _) = block.as_chunks::<4>();
        for pointer in pointers {
            if *at >= self.end {
                break;
            }
            self.pointer(u32::from_le_bytes(*pointer), depth - 1, at)?;
        }
        Ok(())
    }

    /// Block `number` of the file system.
    fn block(&self, number: u64) -> Result<Vec<u8>, FsError> {
        if number >= self.geometry.blocks {
            return Err(Self::corrupt("leaves the file system"));
        }
        // At most 64 KiB, and as many at a time as the tree is deep.
        let mut block = vec![0; self.geometry.block_size as usize];
        self.source
            .read(number * self.geometry.block_size, &mut block)?;
        Ok(block)
    }
}
