//! The layout of an ext4 file system, according to its superblock.

use super::crc::crc32c;
use super::fs::FsError;
use super::journal::Overlay;
use super::window::Window;

pub(super) const SUPERBLOCK: u64 = 1024;
pub(super) const SUPERBLOCK_LEN: usize = 1024;
/// Maximum number of block groups, as for 16 TiB in 4 KiB blocks.
const MAX_GROUPS: u64 = 1 << 17;
const INCOMPAT_RECOVER: u32 = 0x4;
const INCOMPAT_META_BG: u32 = 0x10;
const INCOMPAT_64BIT: u32 = 0x80;
const RO_COMPAT_METADATA_CSUM: u32 = 0x400;
const COMPAT_HAS_JOURNAL: u32 = 0x4;

/// The file system's bytes after a recovery.
pub(super) struct Source {
    pub(super) disk: Window,
    pub(super) overlay: Overlay,
    pub(super) superblock: Vec<u8>,
}

impl Source {
    pub(super) fn read_newest(&self, offset: u64, buf: &mut [u8]) -> Result<(), FsError> {
        self.disk.read(offset, buf)?;
        self.overlay.apply(&self.disk, offset, buf)?;
        // The superblock may be read alone or as a part of the block that holds it.
        let end = offset.saturating_add(buf.len() as u64);
        let from = offset.max(SUPERBLOCK);
        let to = end.min(SUPERBLOCK + SUPERBLOCK_LEN as u64);
        if from < to {
            let source = self
                .superblock
                .get((from - SUPERBLOCK) as usize..(to - SUPERBLOCK) as usize);
            let target = buf.get_mut((from - offset) as usize..(to - offset) as usize);
            if let (Some(source), Some(target)) = (source, target) {
                target.copy_from_slice(source);
            }
        }
        Ok(())
    }
}

/// The layout from the superblock, checked.
pub(super) struct Geometry {
    pub(super) block_size: u64,
    pub(super) needs_recovery: bool,
    inode_size: u64,
    inodes: u64,
    /// True if all group descriptors are behind the superblock.
    pub(super) descriptors_together: bool,
    first_data_block: u64,
    descriptor_is_wide: bool,
    journal_inode: u32,
    inodes_per_group: u32,
    descriptor_size: u64,
}

impl Geometry {
    pub(super) fn check(superblock: &[u8], len: u64) -> Result<Self, FsError> {
        let wrong = |what: &str| FsError::Corrupt(format!("its superblock gives {what}"));
        let u32_at = |at: usize| le(superblock, at, 4) as u32;
        let u16_at = |at: usize| le(superblock, at, 2) as u16;
        if u16_at(0x38) != 0xEF53 {
            return Err(wrong("no magic number"));
        }
        let log_block_size = u32_at(0x18);
        if log_block_size > 6 {
            return Err(wrong("blocks of more than 64 KiB"));
        }
        let block_size = 1024u64 << log_block_size;
        let incompat = u32_at(0x60);
        let wide = incompat & INCOMPAT_64BIT != 0;
        let high = u64::from(u32_at(0x150));
        if high != 0 && !wide {
            return Err(wrong("a high half of its size, which it does not have"));
        }
        let blocks = high << 32 | u64::from(u32_at(0x4));
        if blocks.checked_mul(block_size).is_none_or(|size| size > len) {
            return Err(wrong("more blocks than the partition holds"));
        }
        let first_data_block = u64::from(u32_at(0x14));
        if first_data_block != u64::from(log_block_size == 0) {
            return Err(wrong("an impossible first block"));
        }
        let (per_group, inodes) = (u64::from(u32_at(0x20)), u64::from(u32_at(0x28)));
        // With bigalloc a group's bitmap counts clusters of up to 2^15 blocks.
        if !(256..=(block_size * 8) << 15).contains(&per_group)
            || blocks.div_ceil(per_group) > MAX_GROUPS
        {
            return Err(wrong("an impossible number of block groups"));
        }
        if inodes == 0 || inodes > block_size * 8 {
            return Err(wrong("an impossible number of inodes"));
        }
        let inode_size = if u32_at(0x4C) == 0 {
            128
        } else {
            u64::from(u16_at(0x58))
        };
        if !inode_size.is_power_of_two() || !(128..=block_size).contains(&inode_size) {
            return Err(wrong("an impossible inode size"));
        }
        let descriptor_size = if wide { u64::from(u16_at(0xFE)) } else { 32 };
        if !descriptor_size.is_power_of_two() || !(32..=1024).contains(&descriptor_size) {
            return Err(wrong("an impossible descriptor size"));
        }
        Ok(Self {
            block_size,
            needs_recovery: incompat & INCOMPAT_RECOVER != 0
                && u32_at(0x5C) & COMPAT_HAS_JOURNAL != 0,
            inode_size,
            inodes: u64::from(u32_at(0)),
            descriptors_together: incompat & INCOMPAT_META_BG == 0,
            first_data_block,
            descriptor_is_wide: wide && descriptor_size >= 64,
            journal_inode: u32_at(0xE0),
            inodes_per_group: inodes as u32,
            descriptor_size,
        })
    }

    /// The block map (`i_block`) of the journal's inode.
    pub(super) fn journal_map(&self, disk: &Window) -> Result<Vec<u8>, FsError> {
        let corrupt = || FsError::Corrupt("its superblock gives an impossible journal".into());
        let at = self
            .inode_offset(self.journal_inode, |at, buf| Ok(disk.read(at, buf)?))?
            .ok_or_else(corrupt)?;
        let mut inode = vec![0; 128];
        disk.read(at, &mut inode)?;
        inode
            .get(0x28..0x28 + 60)
            .map(<[u8]>::to_vec)
            .ok_or_else(corrupt)
    }

    /// The offset of inode `number` in bytes, if such an inode can exist. `read` reads the
    /// descriptor of its group.
    pub(super) fn inode_offset(
        &self,
        number: u32,
        read: impl Fn(u64, &mut [u8]) -> Result<(), FsError>,
    ) -> Result<Option<u64>, FsError> {
        let Some(index) = number
            .checked_sub(1)
            .filter(|i| u64::from(*i) < self.inodes)
        else {
            return Ok(None);
        };
        let (group, within) = (index / self.inodes_per_group, index % self.inodes_per_group);
        let mut descriptor = vec![0; self.descriptor_size as usize];
        let table = (self.first_data_block + 1) * self.block_size;
        read(
            table + u64::from(group) * self.descriptor_size,
            &mut descriptor,
        )?;
        let high = if self.descriptor_is_wide {
            le(&descriptor, 0x28, 4)
        } else {
            0
        };
        let inode_table = high << 32 | le(&descriptor, 0x8, 4);
        Ok(inode_table
            .checked_mul(self.block_size)
            .and_then(|start| start.checked_add(u64::from(within) * self.inode_size)))
    }
}

/// The superblock after a recovery: the flag is cleared, and the checksum updated.
pub(super) fn recovered(mut superblock: Vec<u8>) -> Vec<u8> {
    let incompat = le(&superblock, 0x60, 4) as u32 & !INCOMPAT_RECOVER;
    if let Some(field) = superblock.get_mut(0x60..0x64) {
        field.copy_from_slice(&incompat.to_le_bytes());
    }
    if le(&superblock, 0x64, 4) as u32 & RO_COMPAT_METADATA_CSUM != 0 {
        let checksum = crc32c(!0, superblock.get(..0x3FC).unwrap_or_default());
        if let Some(field) = superblock.get_mut(0x3FC..0x400) {
            field.copy_from_slice(&checksum.to_le_bytes());
        }
    }
    superblock
}

/// The little-endian number of `len` bytes at `at`; 0 beyond the end.
pub(super) fn le(bytes: &[u8], at: usize, len: usize) -> u64 {
    let field = bytes.get(at..at.saturating_add(len)).unwrap_or_default();
    field
        .iter()
        .rev()
        .fold(0, |value, byte| value << 8 | u64::from(*byte))
}
