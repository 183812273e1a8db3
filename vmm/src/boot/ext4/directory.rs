//! The entries of directories.

use std::ops::ControlFlow;

use super::geometry::Geometry;
use super::inode::Inode;
use super::map::Map;
use super::source::{Source, le16, le32};
use crate::boot::budget::Limit;
use crate::boot::crc::crc32c;
use crate::boot::fs::FsError;

/// Bytes of the entry that holds a block's checksum.
const TAIL: usize = 12;
const TAIL_TYPE: u8 = 0xDE;

/// Calls `visit` with name and inode of each entry of `directory`, until it breaks. The inner blocks
/// of a hashed directory look like blocks without entries, so that all directories are linear.
///
/// # Errors
/// It is damaged, or the disk fails.
pub(super) fn entries<T>(
    source: &Source,
    geometry: &Geometry,
    directory: &Inode,
    mut visit: impl FnMut(&[u8], u32) -> Result<ControlFlow<T>, FsError>,
) -> Result<Option<T>, FsError> {
    let map = Map::read(source, geometry, directory)?;
    // At most 64 KiB.
    let mut block = vec![0; geometry.block_size as usize];
    for run in &map.runs {
        for number in run.start..run.start + run.len {
            source.read(number * geometry.block_size, &mut block)?;
            if let Some(seed) = directory.checksum_seed {
                source.disk.budget().work(geometry.block_size)?;
                if !checksum_matches(seed, &block) {
                    return Err(FsError::Corrupt(
                        "a directory does not match its checksum".into(),
                    ));
                }
            }
            let mut rest = block.as_slice();
            while !rest.is_empty() {
                source.disk.budget().charge(Limit::Entries, 1)?;
                let (inode, name, len) = entry(rest, geometry).ok_or_else(|| {
                    FsError::Corrupt("a directory has an entry of an impossible length".into())
                })?;
                if inode != 0
                    && !name.is_empty()
                    && let ControlFlow::Break(found) = visit(name, inode)?
                {
                    return Ok(Some(found));
                }
                rest = rest.get(len..).unwrap_or_default();
            }
        }
    }
    Ok(None)
}

/// The inode and the name of the first entry in `rest`, and the bytes that it takes.
fn entry<'a>(rest: &'a [u8], geometry: &Geometry) -> Option<(u32, &'a [u8], usize)> {
    if rest.len() < 8 {
        return None;
    }
    let len = match le16(rest, 4) {
        // 64 KiB do not fit the field.
        0 | 0xFFFF if geometry.block_size == 0x1_0000 => 0x1_0000,
        len => usize::from(len),
    };
    // The byte after it is the file's type, or nothing.
    let name_len = usize::from(*rest.get(6)?);
    let fits = len >= 8 && len.is_multiple_of(4) && len <= rest.len() && name_len <= len - 8;
    let name = rest.get(8..8 + name_len).filter(|_| fits)?;
    Some((le32(rest, 0), name, len))
}

/// True if the block ends with its checksum, or has none: the inner blocks of a hashed directory
/// have theirs elsewhere.
fn checksum_matches(seed: u32, block: &[u8]) -> bool {
    let Some((body, tail)) = block.split_last_chunk::<TAIL>() else {
        return false;
    };
    let is_tail = le32(tail, 0) == 0
        && usize::from(le16(tail, 4)) == TAIL
        && tail[6] == 0
        && tail[7] == TAIL_TYPE;
    !is_tail || crc32c(seed, body) == le32(tail, 8)
}
