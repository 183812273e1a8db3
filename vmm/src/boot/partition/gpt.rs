//! The GPT (UEFI 2.10, chapter 5).

use super::{BLOCK, Partition, Table};
use crate::boot::budget::Limit;
use crate::boot::crc::crc32;
use crate::boot::error::BootError;
use crate::boot::window::Window;

/// Maximum number of entries; a GPT has 128 by default.
const MAX_ENTRIES: u32 = 1024;
/// The EFI system partition's type, C12A7328-F81F-11D2-BA4B-00A0C93EC93B, as stored.
const ESP: [u8; 16] = [
    0x28, 0x73, 0x2A, 0xC1, 0x1F, 0xF8, 0xD2, 0x11, 0xBA, 0x4B, 0x00, 0xA0, 0xC9, 0x3E, 0xC9, 0x3B,
];

/// True if there is a header's signature at `offset`.
pub(super) fn has_signature(disk: &Window, offset: u64) -> bool {
    disk.bytes(offset, 8)
        .is_ok_and(|bytes| bytes == b"EFI PART")
}

/// The partitions of a disk with a GPT.
///
/// # Errors
/// Both copies of the table are damaged.
pub(super) fn partitions(disk: &Window) -> Result<Table, BootError> {
    let primary = match copy(disk, 1) {
        Ok(found) => return Ok(found),
        Err(problem) => problem,
    };
    let last = disk.len() / BLOCK - 1;
    match copy(disk, last) {
        Ok(found) => {
            tracing::warn!(%primary, "the primary GPT is damaged; using the backup");
            Ok(found)
        }
        Err(backup) => Err(BootError::PartitionTable { primary, backup }),
    }
}

/// Reads the copy whose header is in block `at`.
fn copy(disk: &Window, at: u64) -> Result<Table, String> {
    let offset = at
        .checked_mul(BLOCK)
        .ok_or("header beyond the disk's end")?;
    let header = disk
        .bytes(offset, BLOCK as usize)
        .map_err(|e| e.to_string())?;
    let u32_at = |at: usize| le(&header, at, 4).map(|v| v as u32).ok_or("short header");
    let u64_at = |at: usize| le(&header, at, 8).ok_or("short header");
    if !header.starts_with(b"EFI PART") {
        return Err("no `EFI PART` signature".into());
    }
    let size = u32_at(12)? as usize;
    if !(92..=BLOCK as usize).contains(&size) {
        return Err(format!("header of {size} bytes"));
    }
    let mut hashed = header.get(..size).ok_or("short header")?.to_vec();
    hashed.get_mut(16..20).ok_or("short header")?.fill(0);
    if crc32(&hashed) != u32_at(16)? {
        return Err("wrong header checksum".into());
    }
    if u64_at(24)? != at {
        return Err(format!(
            "the header in block {at} says it is in block {}",
            u64_at(24)?
        ));
    }
    let (entries_at, count, entry_size) = (u64_at(72)?, u32_at(80)?, u32_at(84)?);
    if !(128..=4096).contains(&entry_size) || !entry_size.is_power_of_two() {
        return Err(format!("entries of {entry_size} bytes"));
    }
    if count > MAX_ENTRIES {
        return Err(format!("{count} entries, more than {MAX_ENTRIES}"));
    }
    let table_len = count as usize * entry_size as usize;
    let entries_at = entries_at
        .checked_mul(BLOCK)
        .ok_or("entries beyond the disk's end")?;
    let budget = disk.budget();
    let charged = budget.charge(Limit::Entries, count.into());
    let _held = charged
        .and_then(|()| budget.hold(table_len))
        .map_err(|e| e.to_string())?;
    let table = disk
        .bytes(entries_at, table_len)
        .map_err(|e| e.to_string())?;
    if crc32(&table) != u32_at(88)? {
        return Err("wrong checksum of the entries".into());
    }
    let mut found = Table::default();
    for (index, entry) in table.chunks_exact(entry_size as usize).enumerate() {
        let Some(kind) = entry.get(..16).filter(|kind| **kind != [0; 16]) else {
            continue;
        };
        let name = format!("gpt{}", index + 1);
        let range = le(entry, 32, 8)
            .zip(le(entry, 40, 8))
            .and_then(|(first, last)| {
                let count = last.checked_sub(first)?.checked_add(1)?;
                Some((first.checked_mul(BLOCK)?, count.checked_mul(BLOCK)?))
            });
        let Some(window) = range.and_then(|(start, len)| disk.part(start, len)) else {
            found
                .problems
                .push(format!("(hd0,{name}) reaches beyond the disk's end"));
            continue;
        };
        found.partitions.push(Partition {
            name,
            esp: kind == ESP,
            window,
        });
    }
    Ok(found)
}

/// The little-endian number of `len` bytes at `at`.
fn le(bytes: &[u8], at: usize, len: usize) -> Option<u64> {
    let mut value = [0; 8];
    value
        .get_mut(..len)?
        .copy_from_slice(bytes.get(at..at.checked_add(len)?)?);
    Some(u64::from_le_bytes(value))
}
