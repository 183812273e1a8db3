//! Inodes: where they are, and what they say.

use super::geometry::Geometry;
use super::source::{Source, le16, le32};
use crate::boot::crc::crc32c;
use crate::boot::fs::FsError;

/// The root directory's inode.
pub(super) const ROOT: u32 = 2;

/// Bits of the mode, and flags.
const TYPE: u16 = 0xF000;
const REGULAR: u16 = 0x8000;
const DIRECTORY: u16 = 0x4000;
const LINK: u16 = 0xA000;
const FLAG_ENCRYPTED: u32 = 0x800;
const FLAG_EXTENTS: u32 = 0x8_0000;
const FLAG_INLINE: u32 = 0x1000_0000;

/// A file's metadata.
#[derive(Clone)]
pub(super) struct Inode {
    /// Bytes of the content.
    pub(super) size: u64,
    /// When the content was changed last, in seconds since 1970, as GRUB reads it: up to 2106.
    pub(super) modified: u32,
    /// The root of the extents or of the block map, or a short symbolic link.
    pub(super) map: [u8; 60],
    /// What the checksums of its blocks begin with, if there are any.
    pub(super) checksum_seed: Option<u32>,
    mode: u16,
    flags: u32,
}

impl Inode {
    /// Reads inode `number`.
    ///
    /// # Errors
    /// There is no such inode, it is damaged, or the disk fails.
    pub(super) fn read(source: &Source, geometry: &Geometry, number: u32) -> Result<Self, FsError> {
        let corrupt = |what: &str| FsError::Corrupt(format!("inode {number} {what}"));
        let absent = || corrupt("is not in the file system");
        let index = number
            .checked_sub(1)
            .filter(|_| number <= geometry.inodes)
            .ok_or_else(absent)?;
        let (group, within) = (
            index / geometry.inodes_per_group,
            index % geometry.inodes_per_group,
        );
        let table = inode_table(source, geometry, group)?;
        let at = table
            .checked_mul(geometry.block_size)
            .and_then(|at| at.checked_add(u64::from(within) * geometry.inode_size as u64))
            .ok_or_else(absent)?;
        let mut bytes = vec![0; geometry.inode_size];
        source.read(at, &mut bytes)?;
        let mut seed = None;
        if let Some(start) = geometry.checksum_seed {
            let generation = bytes.get(0x64..0x68).unwrap_or_default();
            let own = crc32c(crc32c(start, &number.to_le_bytes()), generation);
            seed = Some(own);
            if !checksum_matches(own, &bytes) {
                return Err(corrupt("does not match its checksum"));
            }
        }
        let mode = le16(&bytes, 0);
        let mut size = u64::from(le32(&bytes, 4));
        // Directories had other things in the upper half before `large_dir`.
        if mode & TYPE != DIRECTORY || geometry.large_directories {
            size |= u64::from(le32(&bytes, 0x6C)) << 32;
        }
        let map = bytes.get(0x28..).and_then(|bytes| bytes.first_chunk());
        Ok(Self {
            size,
            modified: le32(&bytes, 0x10),
            map: *map.ok_or_else(absent)?,
            checksum_seed: seed,
            mode,
            flags: le32(&bytes, 0x20),
        })
    }

    pub(super) fn is_file(&self) -> bool {
        self.mode & TYPE == REGULAR
    }

    pub(super) fn is_directory(&self) -> bool {
        self.mode & TYPE == DIRECTORY
    }

    pub(super) fn is_link(&self) -> bool {
        self.mode & TYPE == LINK
    }

    /// True if its blocks are mapped by extents.
    pub(super) fn has_extents(&self) -> bool {
        self.flags & FLAG_EXTENTS != 0
    }

    /// The target of a symbolic link that is short enough to be in the inode itself.
    pub(super) fn short_target(&self) -> Option<&[u8]> {
        if self.has_extents() || self.check_content().is_err() {
            return None;
        }
        let len = usize::try_from(self.size).ok()?;
        // There is a terminating zero.
        self.map.get(..len).filter(|target| target.len() < 60)
    }

    /// Refuses content that is not in blocks, or not readable.
    pub(super) fn check_content(&self) -> Result<(), FsError> {
        let problem = if self.flags & FLAG_ENCRYPTED != 0 {
            "it is encrypted"
        } else if self.flags & FLAG_INLINE != 0 {
            "its content is within the inode (feature `inline_data`), which is not supported"
        } else {
            return Ok(());
        };
        Err(FsError::Unsupported(problem.into()))
    }
}

/// The first block of the inodes of `group`.
fn inode_table(source: &Source, geometry: &Geometry, group: u32) -> Result<u64, FsError> {
    let corrupt = |what: &str| FsError::Corrupt(format!("the descriptor of group {group} {what}"));
    let at = geometry
        .descriptor(group)
        .ok_or_else(|| corrupt("is not in the file system"))?;
    let mut descriptor = vec![0; geometry.descriptor_size];
    source.read(at, &mut descriptor)?;
    if let Some(seed) = geometry.checksum_seed {
        let expected = le16(&descriptor, 0x1E);
        let mut hashed = descriptor.clone();
        hashed.get_mut(0x1E..0x20).unwrap_or_default().fill(0);
        let sum = crc32c(crc32c(seed, &group.to_le_bytes()), &hashed);
        if sum & 0xFFFF != u32::from(expected) {
            return Err(corrupt("does not match its checksum"));
        }
    }
    // A narrow descriptor ends before the upper half, which is then 0.
    let table = u64::from(le32(&descriptor, 0x28)) << 32 | u64::from(le32(&descriptor, 0x8));
    if table >= geometry.blocks {
        return Err(corrupt("gives a place beyond the file system's end"));
    }
    Ok(table)
}

/// True if the inode's checksum, whose upper half is only in large inodes, is that of its bytes.
fn checksum_matches(seed: u32, bytes: &[u8]) -> bool {
    let extra = if bytes.len() > 128 {
        le16(bytes, 0x80)
    } else {
        0
    };
    let wide = extra >= 4;
    let mut hashed = bytes.to_vec();
    hashed.get_mut(0x7C..0x7E).unwrap_or_default().fill(0);
    let mut expected = u32::from(le16(bytes, 0x7C));
    if wide {
        hashed.get_mut(0x82..0x84).unwrap_or_default().fill(0);
        expected |= u32::from(le16(bytes, 0x82)) << 16;
    }
    let sum = crc32c(seed, &hashed);
    (if wide { sum } else { sum & 0xFFFF }) == expected
}
