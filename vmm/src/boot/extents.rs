//! The fast path to a file's bytes on ext4: its extents, in large reads.
//!
//! `ext4-view` reads block by block and copies each block several times. For a kernel and its
//! initrd this took longer than the rest of a boot's preparation. Here a path without symbolic
//! links is looked up in the directories' blocks, and the file is read extent by extent. Only
//! common structures are supported: extents in the inode itself, and linear or hashed directories.
//! For anything else the result is `None`, and the crate reads the file. The crate has already
//! checked path and inode with their checksums, and the results here are compared with its results.

use super::ext4_layout::{Geometry, Source, le};
use super::fs::FsError;

const ROOT: u32 = 2;
/// The type of file in an inode's mode.
const REGULAR: u16 = 0x8000;
/// Maximum bytes of a directory that are read.
const MAX_DIRECTORY: u64 = 1 << 20;
/// Maximum bytes read at once, so that the deadline is checked in between.
const PIECE: usize = 4 << 20;

const EXTENTS_FLAG: u64 = 0x8_0000;
const EXTENT_MAGIC: u64 = 0xF30A;
/// Longer extents are allocated but not written.
const MAX_EXTENT: u64 = 0x8000;

struct Inode {
    mode: u16,
    size: u64,
    /// First block in the file, first block in the file system, length in blocks; sorted by the
    /// first.
    extents: Vec<(u64, u64, u64)>,
}

impl Inode {
    /// Inode `number`, or `None` if its kind is not supported.
    fn read(source: &Source, geometry: &Geometry, number: u32) -> Result<Option<Self>, FsError> {
        if !geometry.descriptors_together {
            return Ok(None);
        }
        let Some(at) = geometry.inode_offset(number, |at, buf| source.read_newest(at, buf))? else {
            return Ok(None);
        };
        let mut inode = [0; 128];
        source.read_newest(at, &mut inode)?;
        let map = &inode[0x28..0x28 + 60];
        let count = le(map, 2, 2) as usize;
        let usual = le(&inode, 0x20, 4) & EXTENTS_FLAG != 0
            && le(map, 0, 2) == EXTENT_MAGIC
            && le(map, 6, 2) == 0
            && count <= 4;
        if !usual {
            return Ok(None);
        }
        let mut extents = Vec::with_capacity(count);
        for entry in map[12..].chunks_exact(12).take(count) {
            let len = le(entry, 4, 2);
            if len == 0 || len > MAX_EXTENT {
                return Ok(None);
            }
            let start = le(entry, 6, 2) << 32 | le(entry, 8, 4);
            extents.push((le(entry, 0, 4), start, len));
        }
        extents.sort_unstable();
        Ok(Some(Self {
            mode: le(&inode, 0, 2) as u16,
            size: le(&inode, 0x6C, 4) << 32 | le(&inode, 4, 4),
            extents,
        }))
    }

    /// Appends all of its bytes to `all`. Parts without an extent are zeros.
    fn append(
        &self,
        source: &Source,
        geometry: &Geometry,
        all: &mut Vec<u8>,
    ) -> Result<(), FsError> {
        let corrupt = || FsError::Corrupt("an extent is beyond the addressable range".into());
        let size = usize::try_from(self.size).map_err(|_| corrupt())?;
        let before = all.len();
        all.reserve_exact(size);
        all.resize(before.checked_add(size).ok_or_else(corrupt)?, 0);
        let bytes = all.get_mut(before..).unwrap_or_default();
        for (first, start, len) in &self.extents {
            let block = |n: u64| n.checked_mul(geometry.block_size).ok_or_else(corrupt);
            let (from, mut disk) = (block(*first)?, block(*start)?);
            let to = from.saturating_add(block(*len)?).min(self.size);
            let covered = usize::try_from(from)
                .ok()
                .and_then(|from| bytes.get_mut(from..usize::try_from(to).ok()?));
            // An extent may lie beyond the file's end.
            for piece in covered.into_iter().flat_map(|c| c.chunks_mut(PIECE)) {
                source.read_newest(disk, piece)?;
                disk += piece.len() as u64;
            }
        }
        Ok(())
    }
}

/// Appends the regular file at `path`, which must have no symbolic links, to `all`. False if the file
/// does not have `size` bytes and the permissions `mode`, or cannot be read on the fast path.
///
/// # Errors
/// The disk fails, or the budget is exhausted.
pub(super) fn read(
    source: &Source,
    geometry: &Geometry,
    path: &[u8],
    size: u64,
    mode: u16,
    all: &mut Vec<u8>,
) -> Result<bool, FsError> {
    let mut number = ROOT;
    for name in path.split(|byte| *byte == b'/').filter(|n| !n.is_empty()) {
        let Some(directory) = Inode::read(source, geometry, number)? else {
            return Ok(false);
        };
        if directory.size > MAX_DIRECTORY {
            return Ok(false);
        }
        let mut bytes = Vec::new();
        directory.append(source, geometry, &mut bytes)?;
        let blocks = bytes.chunks(geometry.block_size as usize);
        match blocks.into_iter().find_map(|block| entry(block, name)) {
            Some(found) => number = found,
            None => return Ok(false),
        }
    }
    match Inode::read(source, geometry, number)? {
        Some(file) if file.size == size && file.mode == REGULAR | mode => {
            file.append(source, geometry, all)?;
            Ok(true)
        }
        _ => Ok(false),
    }
}

/// The inode of `name` in a block of a directory. The inner blocks of a hashed directory look like
/// blocks without entries.
fn entry(block: &[u8], name: &[u8]) -> Option<u32> {
    let mut rest = block;
    while rest.len() >= 8 {
        let inode = le(rest, 0, 4) as u32;
        let (len, name_len) = (le(rest, 4, 2) as usize, le(rest, 6, 1) as usize);
        if inode != 0 && rest.get(8..8 + name_len) == Some(name) {
            return Some(inode);
        }
        rest = rest.get(len.max(8)..)?;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot::ext4::Ext4Volume;
    use crate::boot::fs::Volume;
    use crate::boot::testing::{self, MemoryDisk};

    #[test]
    fn files_are_those_that_the_crate_reads() {
        let mut holes = vec![0; 3_000_001];
        holes[5000] = 1;
        holes[2_500_000..].fill(2);
        let large: Vec<u8> = (0..9_000_000u32).map(|i| (i / 7) as u8).collect();
        let names: Vec<String> = (0..30).map(|i| format!("/boot/module-{i:0>60}")).collect();
        let mut files: Vec<(&str, &[u8])> =
            names.iter().map(|n| (n.as_str(), &b"small"[..])).collect();
        files.push(("/boot/dir/holes", &holes));
        files.push(("/large", &large));
        for (options, short) in [
            (&["-b", "1024"][..], true),
            (&["-b", "4096", "-O", "^metadata_csum,^64bit"], true),
            (&["-O", "^extent,^64bit"], false),
        ] {
            let image = testing::ext4(32 << 20, options, &files);
            let volume = Ext4Volume::open(testing::window(MemoryDisk::disk(image))).unwrap();
            // The crate reads no holes in files without extents.
            for (path, content) in files.iter().filter(|(p, _)| short || !p.ends_with("holes")) {
                let (size, mode) = (content.len() as u64, 0o644);
                let find = |size, mode| {
                    let (source, geometry) = (&volume.source, &volume.geometry);
                    let mut bytes = Vec::new();
                    let read = read(source, geometry, path.as_bytes(), size, mode, &mut bytes);
                    read.unwrap().then_some(bytes)
                };
                assert!(
                    find(size, mode) == short.then(|| content.to_vec()),
                    "{options:?} {path}"
                );
                assert_eq!(find(size + 1, mode), None);
                assert_eq!(find(size, 0o600), None);
                let mut bytes = Vec::new();
                volume.read(path, u64::MAX, &mut bytes).unwrap();
                assert!(bytes == *content);
            }
            let (source, geometry) = (&volume.source, &volume.geometry);
            let absent = read(source, geometry, b"/boot/absent", 0, 0o644, &mut Vec::new());
            assert!(!absent.unwrap());
        }
    }

    #[test]
    fn entries_are_found_and_nonsense_ends() {
        let mut block = Vec::new();
        for (inode, len, name) in [
            (0u32, 16u16, &b"gone"[..]),
            (12, 16, b"name"),
            (13, 32, b"b"),
        ] {
            let end = block.len() + usize::from(len);
            block.extend(inode.to_le_bytes());
            block.extend(len.to_le_bytes());
            block.extend([name.len() as u8, 1]);
            block.extend(name);
            block.resize(end, 0);
        }
        assert_eq!(entry(&block, b"name"), Some(12));
        assert_eq!(entry(&block, b"b"), Some(13));
        assert_eq!(entry(&block, b"gone"), None);
        assert_eq!(entry(&block, b"nam"), None);
        // A length of nothing, one beyond the end, a name beyond the end.
        for (at, value) in [(4, 0), (5, 0xFF), (16 + 6, 0xFF)] {
            let mut bad = block.clone();
            bad[at] = value;
            let _ = entry(&bad, b"nothing");
        }
        assert_eq!(entry(&[0; 4096], b"x"), None);
    }
}
