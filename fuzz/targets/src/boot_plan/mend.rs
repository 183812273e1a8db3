//! Corrects the checksums of a disk, as far as its numbers make sense.

/// Corrects those of a GPT, and those of all ext4 file systems on its partitions or on the whole disk.
pub(super) fn checksums(disk: &mut [u8]) {
    let mut starts = vec![0];
    if disk.get(512..520) == Some(b"EFI PART") {
        starts.extend(gpt(disk).unwrap_or_default());
    }
    for slot in 0..4 {
        starts.push(number(disk, 446 + slot * 16 + 8, 4).saturating_mul(512));
    }
    for start in starts {
        if let Some(part) = disk.get_mut(start..) {
            ext4(part);
        }
    }
}

/// Corrects the header and the table. Returns where partitions start.
fn gpt(disk: &mut [u8]) -> Option<Vec<usize>> {
    let at = number(disk, 512 + 72, 8).checked_mul(512)?;
    let (count, size) = (number(disk, 512 + 80, 4), number(disk, 512 + 84, 4));
    let table = disk.get(at..at.checked_add(count.checked_mul(size)?)?)?;
    let sum = !crc(0xEDB8_8320, !0, table);
    let starts = (0..count.min(128)).map(|i| number(table, i * size + 32, 8).saturating_mul(512));
    let starts = starts.collect();
    put(disk, 512 + 88, &sum.to_le_bytes());
    put(disk, 512 + 16, &[0; 4]);
    let len = number(disk, 512 + 12, 4).min(512);
    let sum = !crc(0xEDB8_8320, !0, disk.get(512..512 + len)?);
    put(disk, 512 + 16, &sum.to_le_bytes());
    Some(starts)
}

const SUPERBLOCK: usize = 1024;

/// Corrects superblock, descriptors, inodes and the blocks of small directories.
fn ext4(part: &mut [u8]) {
    groups(part);
    // The others may have changed it, if they say that they are in its place.
    let is_ext4 = number(part, SUPERBLOCK + 0x38, 2) == 0xEF53;
    let has_checksum = number(part, SUPERBLOCK + 0x64, 4) & 0x400 != 0;
    if is_ext4
        && has_checksum
        && let Some(hashed) = part.get(SUPERBLOCK..SUPERBLOCK + 0x3FC)
    {
        let sum = castagnoli(!0, hashed);
        put(part, SUPERBLOCK + 0x3FC, &sum.to_le_bytes());
    }
}

fn groups(part: &mut [u8]) -> Option<()> {
    let field = |part: &[u8], at: usize, len: usize| number(part, SUPERBLOCK + at, len);
    if field(part, 0x38, 2) != 0xEF53 || field(part, 0x64, 4) & 0x400 == 0 {
        return None;
    }
    let block = 1024usize << field(part, 0x18, 4).min(6);
    let incompatible = field(part, 0x60, 4);
    let descriptor = if incompatible & 0x80 != 0 {
        field(part, 0xFE, 2)
    } else {
        32
    };
    let seed = if incompatible & 0x2000 != 0 {
        field(part, 0x270, 4) as u32
    } else {
        castagnoli(!0, part.get(SUPERBLOCK + 0x68..SUPERBLOCK + 0x78)?)
    };
    let (inodes, inode_size) = (field(part, 0x28, 4), field(part, 0x58, 2));
    // The groups of the small disks in the corpus, and no more.
    for group in 0..2usize {
        let at = (SUPERBLOCK / block + 1) * block + group * descriptor;
        put(part, at + 0x1E, &[0; 2]);
        let bytes = part
            .get(at..at + descriptor)
            .filter(|bytes| bytes.len() >= 32)?;
        let sum = castagnoli(castagnoli(seed, &(group as u32).to_le_bytes()), bytes);
        let table = number(bytes, 8, 4).checked_mul(block)?;
        put(part, at + 0x1E, &(sum as u16).to_le_bytes());
        // A group that does not exist.
        if table <= SUPERBLOCK {
            continue;
        }
        for index in 0..inodes.min(64) {
            let number = group * inodes + index + 1;
            inode(
                part,
                table + index * inode_size,
                inode_size,
                block,
                seed,
                number as u32,
            );
        }
    }
    Some(())
}

fn inode(part: &mut [u8], at: usize, size: usize, block: usize, seed: u32, own: u32) -> Option<()> {
    if part
        .get(at..at.checked_add(size)?)?
        .iter()
        .all(|byte| *byte == 0)
        || size < 128
    {
        return None;
    }
    let seed = castagnoli(seed, &own.to_le_bytes());
    let seed = castagnoli(seed, part.get(at + 0x64..at + 0x68)?);
    let wide = size > 128 && number(part, at + 0x80, 2) >= 4;
    put(part, at + 0x7C, &[0; 2]);
    if wide {
        put(part, at + 0x82, &[0; 2]);
    }
    let sum = castagnoli(seed, part.get(at..at + size)?).to_le_bytes();
    put(part, at + 0x7C, &sum[..2]);
    if wide {
        put(part, at + 0x82, &sum[2..]);
    }
    // A directory with its first extent in the inode.
    let directory = number(part, at, 2) & 0xF000 == 0x4000;
    if directory && number(part, at + 0x28, 2) == 0xF30A && number(part, at + 0x28 + 6, 2) == 0 {
        let (count, start) = (
            number(part, at + 0x28 + 16, 2),
            number(part, at + 0x28 + 20, 4),
        );
        for index in start..start.saturating_add(count.min(4)) {
            let tail = index.checked_add(1)?.checked_mul(block)?.checked_sub(12)?;
            let sum = castagnoli(seed, part.get(index * block..tail)?);
            if part.get(tail + 7) == Some(&0xDE) {
                put(part, tail + 8, &sum.to_le_bytes());
            }
        }
    }
    Some(())
}

/// The little-endian number of `len` bytes at `at`; 0 beyond the end.
fn number(bytes: &[u8], at: usize, len: usize) -> usize {
    let field = at.checked_add(len).and_then(|end| bytes.get(at..end));
    let bytes = field.unwrap_or_default().iter().rev();
    bytes.fold(0, |value, byte| value << 8 | usize::from(*byte))
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    if let Some(field) = at
        .checked_add(value.len())
        .and_then(|end| bytes.get_mut(at..end))
    {
        field.copy_from_slice(value);
    }
}

fn castagnoli(start: u32, bytes: &[u8]) -> u32 {
    crc(0x82F6_3B78, start, bytes)
}

/// A reflected CRC, not inverted.
fn crc(polynomial: u32, start: u32, bytes: &[u8]) -> u32 {
    bytes.iter().fold(start, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ if crc & 1 != 0 { polynomial } else { 0 }
        })
    })
}
