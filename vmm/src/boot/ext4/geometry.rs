//! The layout of an ext4 file system, according to its superblock.

use super::source::{le16, le32};
use crate::boot::crc::crc32c;
use crate::boot::fs::FsError;

/// The superblock's place in bytes, and its size.
pub(super) const SUPERBLOCK: u64 = 1024;
pub(super) const SUPERBLOCK_LEN: usize = 1024;

const COMPAT_HAS_JOURNAL: u32 = 0x4;
const COMPAT_SPARSE_SUPER2: u32 = 0x200;
const INCOMPAT_RECOVER: u32 = 0x4;
const INCOMPAT_META_BG: u32 = 0x10;
const INCOMPAT_64BIT: u32 = 0x80;
const INCOMPAT_CSUM_SEED: u32 = 0x2000;
const INCOMPAT_LARGE_DIR: u32 = 0x4000;
/// Supported features. `mmp` and `ea_inode` do not concern files' contents. Hashed directories are
/// searched as linear ones, so that `large_dir` and `casefold` need nothing. Files that are
/// encrypted have a flag of their own.
const INCOMPAT_KNOWN: u32 = 0x2 // filetype
    | INCOMPAT_RECOVER
    | INCOMPAT_META_BG
    | 0x40 // extents
    | INCOMPAT_64BIT
    | 0x100 // mmp
    | 0x200 // flex_bg
    | 0x400 // ea_inode
    | INCOMPAT_CSUM_SEED
    | INCOMPAT_LARGE_DIR
    | 0x8000 // inline_data, which a file's flag says again
    | 0x1_0000 // encrypt
    | 0x2_0000; // casefold
const RO_COMPAT_SPARSE_SUPER: u32 = 0x1;
const RO_COMPAT_BIGALLOC: u32 = 0x200;
const RO_COMPAT_METADATA_CSUM: u32 = 0x400;
/// The names of other features that change the layout.
const INCOMPAT_NAMES: [(u32, &str); 3] = [
    (0x1, "compression"),
    (0x8, "journal_dev"),
    (0x1000, "dirdata"),
];

/// The layout from the superblock, checked against itself and the partition.
pub(super) struct Geometry {
    /// Bytes of a block, 1024 to 65,536.
    pub(super) block_size: u64,
    /// Number of blocks, all within the partition.
    pub(super) blocks: u64,
    /// Number of inodes, of inodes in each group, and bytes of one.
    pub(super) inodes: u32,
    pub(super) inodes_per_group: u32,
    pub(super) inode_size: usize,
    /// Bytes of a group's descriptor: 32, or 64 and more.
    pub(super) descriptor_size: usize,
    /// True if directories may have more than 4 GiB.
    pub(super) large_directories: bool,
    /// What the checksums of metadata begin with, if there are any.
    pub(super) checksum_seed: Option<u32>,
    /// The journal's inode, if the journal has to be replayed.
    pub(super) journal: Option<u32>,
    pub(super) uuid: [u8; 16],
    pub(super) label: [u8; 16],
    groups: u64,
    blocks_per_group: u64,
    first_data_block: u64,
    /// The group of descriptors' blocks from which on they are spread, if they are.
    first_meta_group: Option<u64>,
    backups: Backups,
}

/// Which groups have a copy of the superblock in front of their descriptors.
enum Backups {
    All,
    /// Those whose number is 0, 1, or a power of 3, 5 or 7.
    Sparse,
    Two([u32; 2]),
}

impl Geometry {
    /// Checks `superblock`, of a partition of `len` bytes.
    ///
    /// # Errors
    /// It contradicts itself or the partition's size, or has unsupported features.
    pub(super) fn check(superblock: &[u8], len: u64) -> Result<Self, FsError> {
        let wrong = |what: &str| FsError::Corrupt(format!("its superblock gives {what}"));
        let u32_at = |at: usize| le32(superblock, at);
        if le16(superblock, 0x38) != 0xEF53 {
            return Err(wrong("no magic number"));
        }
        let (compat, incompat, ro_compat) = (u32_at(0x5C), u32_at(0x60), u32_at(0x64));
        features(incompat)?;
        if ro_compat & RO_COMPAT_METADATA_CSUM != 0 {
            if superblock.get(0x175) != Some(&1) {
                return Err(wrong("an unknown kind of checksums"));
            }
            let sum = crc32c(!0, superblock.get(..0x3FC).unwrap_or_default());
            if sum != u32_at(0x3FC) {
                return Err(wrong("a checksum that does not match"));
            }
        }
        let log_block_size = u32_at(0x18);
        if log_block_size > 6 {
            return Err(wrong("blocks of more than 64 KiB"));
        }
        let block_size = 1024u64 << log_block_size;
        let wide = incompat & INCOMPAT_64BIT != 0;
        // Without `64bit` there is no such half. Readers differ about one that is set anyway, so
        // that no size can be right.
        let high = u64::from(u32_at(0x150));
        if high != 0 && !wide {
            return Err(wrong("more than 2^32 blocks without the feature `64bit`"));
        }
        let blocks = high << 32 | u64::from(u32_at(0x4));
        if blocks.checked_mul(block_size).is_none_or(|size| size > len) {
            return Err(wrong("more blocks than the partition holds"));
        }
        let clustered = ro_compat & RO_COMPAT_BIGALLOC != 0;
        let first_data_block = u64::from(u32_at(0x14));
        // With clusters, the groups begin with the cluster that holds the superblock.
        let expected = u64::from(log_block_size == 0 && !clustered);
        if first_data_block != expected || first_data_block >= blocks {
            return Err(wrong("an impossible first block"));
        }
        let cluster_blocks = match u32_at(0x1C).checked_sub(log_block_size) {
            Some(log @ 0..=20) if clustered => 1u64 << log,
            _ if clustered => return Err(wrong("an impossible size of clusters")),
            _ => 1,
        };
        let blocks_per_group = u64::from(u32_at(0x20));
        if !(8..=block_size * 8 * cluster_blocks).contains(&blocks_per_group) {
            return Err(wrong("an impossible size of block groups"));
        }
        let inodes_per_group = u32_at(0x28);
        if inodes_per_group == 0 || u64::from(inodes_per_group) > block_size * 8 {
            return Err(wrong("an impossible number of inodes"));
        }
        // Revision 0 has no such field.
        let inode_size = match u32_at(0x4C) {
            0 => 128,
            _ => le16(superblock, 0x58),
        };
        if !inode_size.is_power_of_two() || !(128..=block_size).contains(&u64::from(inode_size)) {
            return Err(wrong("an impossible inode size"));
        }
        let descriptor_size = if wide { le16(superblock, 0xFE) } else { 32 };
        let least = if wide { 64 } else { 32 };
        if !descriptor_size.is_power_of_two() || !(least..=1024).contains(&descriptor_size) {
            return Err(wrong("an impossible descriptor size"));
        }
        let uuid = field(superblock, 0x68);
        let checksum_seed = if incompat & INCOMPAT_CSUM_SEED != 0 {
            u32_at(0x270)
        } else {
            crc32c(!0, &uuid)
        };
        let backups = if compat & COMPAT_SPARSE_SUPER2 != 0 {
            Backups::Two([u32_at(0x24C), u32_at(0x250)])
        } else if ro_compat & RO_COMPAT_SPARSE_SUPER != 0 {
            Backups::Sparse
        } else {
            Backups::All
        };
        let replay = compat & COMPAT_HAS_JOURNAL != 0 && incompat & INCOMPAT_RECOVER != 0;
        Ok(Self {
            block_size,
            blocks,
            inodes: u32_at(0),
            inodes_per_group,
            inode_size: usize::from(inode_size),
            descriptor_size: usize::from(descriptor_size),
            large_directories: incompat & INCOMPAT_LARGE_DIR != 0,
            checksum_seed: (ro_compat & RO_COMPAT_METADATA_CSUM != 0).then_some(checksum_seed),
            journal: replay.then(|| u32_at(0xE0)),
            uuid,
            label: field(superblock, 0x78),
            groups: (blocks - first_data_block).div_ceil(blocks_per_group),
            blocks_per_group,
            first_data_block,
            first_meta_group: (incompat & INCOMPAT_META_BG != 0).then(|| u32_at(0x104).into()),
            backups,
        })
    }

    /// The place in bytes of the descriptor of `group`, if there is such a group.
    pub(super) fn descriptor(&self, group: u32) -> Option<u64> {
        let group = u64::from(group);
        if group >= self.groups {
            return None;
        }
        let per_block = self.block_size / self.descriptor_size as u64;
        let (index, within) = (group / per_block, group % per_block);
        let block = match self.first_meta_group {
            // The first of the groups whose descriptors the block has holds the block, after its
            // copy of the superblock.
            Some(first) if index >= first => {
                let holder = index * per_block;
                let start = self.first_data_block + holder * self.blocks_per_group;
                let superblocks = u64::from(self.has_superblock(holder));
                // Blocks of 1 KiB without one in front of the superblock.
                let shifted = self.block_size == 1024 && index == 0 && self.first_data_block == 0;
                start + superblocks + u64::from(shifted)
            }
            _ => SUPERBLOCK / self.block_size + 1 + index,
        };
        block
            .checked_mul(self.block_size)?
            .checked_add(within * self.descriptor_size as u64)
    }

    fn has_superblock(&self, group: u64) -> bool {
        let power = |base: u64| {
            let mut power = base;
            while power < group {
                power *= base;
            }
            power == group
        };
        match self.backups {
            _ if group == 0 => true,
            Backups::All => true,
            Backups::Sparse => group == 1 || power(3) || power(5) || power(7),
            Backups::Two(groups) => groups.iter().any(|have| u64::from(*have) == group),
        }
    }
}

/// Refuses features that are not supported, by their names.
fn features(incompat: u32) -> Result<(), FsError> {
    let unknown = incompat & !INCOMPAT_KNOWN;
    if unknown == 0 {
        return Ok(());
    }
    let mut names: Vec<String> = INCOMPAT_NAMES
        .iter()
        .filter(|(bit, _)| unknown & bit != 0)
        .map(|(_, name)| format!("`{name}`"))
        .collect();
    let rest = INCOMPAT_NAMES
        .iter()
        .fold(unknown, |rest, (bit, _)| rest & !bit);
    if rest != 0 {
        names.push(format!("{rest:#x}"));
    }
    Err(FsError::Unsupported(format!(
        "features of the file system are not supported: {}",
        names.join(", ")
    )))
}

/// The 16 bytes at `at`; zeros beyond the end.
fn field(bytes: &[u8], at: usize) -> [u8; 16] {
    let found = bytes.get(at..).and_then(|bytes| bytes.first_chunk());
    found.copied().unwrap_or_default()
}
