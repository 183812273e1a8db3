//! ext4, by the `ext4-view` crate, with the journal replayed by us.
//!
//! The crate reads a journal only of one kind, from its start to its end, while a live one wraps
//! around and revokes blocks across transactions ([`super::journal`]). So it is shown a file system
//! that needs no recovery: blocks from the journal in place, the flag cleared. Sizes it would
//! allocate by are checked first.

use std::io;
use std::rc::Rc;

use ext4_view::{Ext4, Ext4Error, Ext4Read, FileType, Metadata, Path};

use super::crc::crc32c;
use super::extents;
use super::fs::{FsError, Kind, MAX_NAMES, Volume, guarded};
use super::journal::{self, Overlay};
use super::window::{Cached, Window};

const SUPERBLOCK: u64 = 1024;
const SUPERBLOCK_LEN: usize = 1024;
/// Block groups of the largest file system read, 16 TiB in 4 KiB blocks.
const MAX_GROUPS: u64 = 1 << 17;
/// Symbolic links followed for one path, and the bytes of one, as in Linux.
const MAX_LINKS: u32 = 40;
const MAX_LINK_LEN: u64 = 4096;
/// Components of a path, symbolic links included.
const MAX_COMPONENTS: u32 = 400;

const INCOMPAT_RECOVER: u32 = 0x4;
const INCOMPAT_META_BG: u32 = 0x10;
const INCOMPAT_64BIT: u32 = 0x80;
const RO_COMPAT_METADATA_CSUM: u32 = 0x400;
const COMPAT_HAS_JOURNAL: u32 = 0x4;

/// The file system's bytes, as they are after a recovery.
pub(super) struct Source {
    disk: Cached,
    overlay: Overlay,
    superblock: Vec<u8>,
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

/// Shared so that the reader handed to the crate and the volume are of one lifetime.
struct Reader(Rc<Source>);

impl Ext4Read for Reader {
    fn read(
        &mut self,
        start_byte: u64,
        dst: &mut [u8],
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync + 'static>> {
        self.0
            .read_newest(start_byte, dst)
            .map_err(|e| io::Error::other(e.to_string()).into())
    }
}

/// An ext4 file system.
pub(super) struct Ext4Volume {
    fs: Ext4,
    pub(super) source: Rc<Source>,
    pub(super) geometry: Geometry,
}

impl Ext4Volume {
    /// Opens the file system on `window`, its journal replayed in memory.
    ///
    /// # Errors
    /// It is damaged, or has features that cannot be read.
    pub(super) fn open(window: Window) -> Result<Self, FsError> {
        let disk = Cached::new(window);
        let mut superblock = vec![0; SUPERBLOCK_LEN];
        disk.read(SUPERBLOCK, &mut superblock)?;
        let mut geometry = Geometry::check(&superblock, disk.len())?;
        let mut source = Source {
            disk,
            overlay: Overlay::default(),
            superblock,
        };
        if geometry.needs_recovery {
            let _replaying = tracing::debug_span!("journal").entered();
            let map = geometry.journal_map(&source.disk)?;
            let overlay = journal::replay(&source.disk, geometry.block_size as usize, &map)?;
            // The journal may hold a newer superblock; the kernel would use that one.
            let mut newest = source.superblock.clone();
            overlay.apply(&source.disk, SUPERBLOCK, &mut newest)?;
            geometry = Geometry::check(&newest, source.disk.len())?;
            source = Source {
                overlay,
                superblock: recovered(newest),
                ..source
            };
            tracing::info!(
                blocks = source.overlay.len(),
                "ext4 journal replayed in memory"
            );
        }
        let source = Rc::new(source);
        let reader = Reader(source.clone());
        let fs = guarded(|| Ext4::load(Box::new(reader)).map_err(convert))?;
        Ok(Self {
            fs,
            source,
            geometry,
        })
    }

    /// Follows `path` component by component, since the crate would allocate as much as a
    /// symbolic link claims to be long.
    fn resolve(&self, path: &str) -> Result<Option<(Vec<u8>, Metadata)>, FsError> {
        let mut pending: Vec<Vec<u8>> = split(path.as_bytes());
        pending.reverse();
        let mut done: Vec<u8> = Vec::new();
        let (mut links, mut steps) = (0, 0);
        let mut metadata = self.metadata(b"/")?;
        while let Some(component) = pending.pop() {
            steps += 1;
            if steps > MAX_COMPONENTS {
                return Err(FsError::Unsupported(
                    "its path has too many components".into(),
                ));
            }
            if component == b".." {
                let parent = done.iter().rposition(|byte| *byte == b'/').unwrap_or(0);
                done.truncate(parent);
                metadata = self.metadata(if done.is_empty() { b"/" } else { &done })?;
                continue;
            }
            if !metadata.as_ref().is_some_and(Metadata::is_dir) {
                return Ok(None);
            }
            let parent = done.len();
            done.push(b'/');
            done.extend_from_slice(&component);
            let Some(found) = self.metadata(&done)? else {
                return Ok(None);
            };
            if found.is_symlink() {
                links += 1;
                if links > MAX_LINKS || found.len() > MAX_LINK_LEN {
                    return Err(FsError::Unsupported(
                        "its symbolic links are too many or too long".into(),
                    ));
                }
                let target = guarded(|| {
                    let path = Path::try_from(done.as_slice()).map_err(|_| FsError::NotFound)?;
                    self.fs.read_link(path).map_err(convert)
                })?;
                let target: &[u8] = target.as_ref();
                done.truncate(if target.starts_with(b"/") { 0 } else { parent });
                metadata = self.metadata(if done.is_empty() { b"/" } else { &done })?;
                pending.extend(split(target).into_iter().rev());
            } else {
                metadata = Some(found);
            }
        }
        if done.is_empty() {
            done.push(b'/');
        }
        Ok(metadata.map(|metadata| (done, metadata)))
    }

    /// The metadata of `path`, of which only the last component may be a symbolic link.
    fn metadata(&self, path: &[u8]) -> Result<Option<Metadata>, FsError> {
        let Ok(path) = Path::try_from(path) else {
            return Ok(None);
        };
        match guarded(|| self.fs.symlink_metadata(path).map_err(convert)) {
            Ok(metadata) => Ok(Some(metadata)),
            Err(FsError::NotFound) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

fn split(path: &[u8]) -> Vec<Vec<u8>> {
    path.split(|byte| *byte == b'/')
        .filter(|component| !component.is_empty() && *component != b".")
        .map(<[u8]>::to_vec)
        .collect()
}

impl Volume for Ext4Volume {
    fn uuid(&self) -> Option<String> {
        Some(self.fs.uuid().to_string())
    }

    fn label(&self) -> Option<String> {
        self.fs
            .label()
            .to_str()
            .ok()
            .filter(|label| !label.is_empty())
            .map(str::to_string)
    }

    fn kind_name(&self) -> &'static str {
        "ext2"
    }

    fn kind(&self, path: &str) -> Result<Option<Kind>, FsError> {
        Ok(self
            .resolve(path)?
            .map(|(_, metadata)| match metadata.file_type() {
                FileType::Regular => Kind::File(metadata.len()),
                FileType::Directory => Kind::Directory,
                _ => Kind::Other,
            }))
    }

    fn read(&self, path: &str, limit: u64) -> Result<Vec<u8>, FsError> {
        let (path, metadata) = self.resolve(path)?.ok_or(FsError::NotFound)?;
        if metadata.file_type() != FileType::Regular {
            return Err(FsError::NotAFile);
        }
        let size = metadata.len();
        if size > limit {
            return Err(FsError::TooLarge { size, limit });
        }
        let mode = metadata.mode();
        if let Some(data) = extents::read(&self.source, &self.geometry, &path, size, mode)? {
            return Ok(data);
        }
        tracing::debug!(path = %path.escape_ascii(), "file read block by block");
        guarded(|| {
            let path = Path::try_from(path.as_slice()).map_err(|_| FsError::NotFound)?;
            let mut file = self.fs.open(path).map_err(convert)?;
            let size = usize::try_from(size).map_err(|_| FsError::NotAFile)?;
            let mut data = vec![0; size];
            let mut filled = 0;
            while filled < size {
                let rest = data.get_mut(filled..).unwrap_or_default();
                match file.read_bytes(rest).map_err(convert)? {
                    0 => return Err(FsError::Corrupt("the file ends early".into())),
                    count => filled += count,
                }
            }
            Ok(data)
        })
    }

    fn list(&self, path: &str) -> Result<Vec<String>, FsError> {
        let (path, metadata) = self.resolve(path)?.ok_or(FsError::NotFound)?;
        if !metadata.is_dir() {
            return Err(FsError::NotFound);
        }
        guarded(|| {
            let path = Path::try_from(path.as_slice()).map_err(|_| FsError::NotFound)?;
            let mut names = Vec::new();
            for entry in self.fs.read_dir(path).map_err(convert)?.take(MAX_NAMES) {
                let name = entry.map_err(convert)?.file_name().display().to_string();
                if name != "." && name != ".." {
                    names.push(name);
                }
            }
            Ok(names)
        })
    }
}

fn convert(error: Ext4Error) -> FsError {
    match error {
        Ext4Error::NotFound | Ext4Error::NotADirectory => FsError::NotFound,
        Ext4Error::IsADirectory | Ext4Error::IsASpecialFile => FsError::NotAFile,
        Ext4Error::Incompatible(why) => FsError::Unsupported(why.to_string()),
        Ext4Error::Corrupt(why) => FsError::Corrupt(why.to_string()),
        Ext4Error::Io(why) => FsError::Io(io::Error::other(why.to_string())),
        other => FsError::Unsupported(other.to_string()),
    }
}

/// What the superblock says of the layout, checked.
pub(super) struct Geometry {
    pub(super) block_size: u64,
    needs_recovery: bool,
    inode_size: u64,
    inodes: u64,
    /// The group descriptors are all behind the superblock.
    pub(super) descriptors_together: bool,
    first_data_block: u64,
    descriptor_is_wide: bool,
    journal_inode: u32,
    inodes_per_group: u32,
    descriptor_size: u64,
}

impl Geometry {
    fn check(superblock: &[u8], len: u64) -> Result<Self, FsError> {
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
        let high = if wide { u64::from(u32_at(0x150)) } else { 0 };
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
    fn journal_map(&self, disk: &Cached) -> Result<Vec<u8>, FsError> {
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
}

impl Geometry {
    /// Where inode `number` is, in bytes, if there can be such an inode; `read` reads its group's
    /// descriptor.
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

/// The superblock as it is after a recovery: flag cleared, checksum renewed.
fn recovered(mut superblock: Vec<u8>) -> Vec<u8> {
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
