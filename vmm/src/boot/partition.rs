//! Partition tables: GPT (UEFI 2.10, chapter 5) and the primary partitions of an MBR.

use super::budget::Limit;
use super::crc::crc32;
use super::error::BootError;
use super::window::Window;

/// Logical block size of a machine's disks in bytes.
const BLOCK: u64 = 512;
/// Maximum number of entries; a GPT has 128 by default.
const MAX_ENTRIES: u32 = 1024;
/// The EFI system partition's type, C12A7328-F81F-11D2-BA4B-00A0C93EC93B, as stored.
const ESP: [u8; 16] = [
    0x28, 0x73, 0x2A, 0xC1, 0x1F, 0xF8, 0xD2, 0x11, 0xBA, 0x4B, 0x00, 0xA0, 0xC9, 0x3E, 0xC9, 0x3B,
];

/// One partition, or the whole disk if it has a file system directly.
pub(super) struct Partition {
    /// Its name in GRUB after the disk's: `gpt1`, `msdos2`; empty for the whole disk.
    pub(super) name: String,
    /// True if its type is EFI system partition.
    pub(super) esp: bool,
    pub(super) window: Window,
}

/// The partitions of `disk`, by number.
///
/// # Errors
/// The disk cannot be read, or both copies of its GPT are damaged.
pub(super) fn partitions(disk: &Window) -> Result<Vec<Partition>, BootError> {
    let io = |source| BootError::Read {
        what: "the partition table".into(),
        source,
    };
    if disk.len() < BLOCK {
        return Err(BootError::Empty);
    }
    let mbr = disk.bytes(0, BLOCK as usize).map_err(io)?;
    let signed = mbr.ends_with(&[0x55, 0xAA]);
    let slots: Vec<Slot> = if signed { mbr_slots(&mbr) } else { Vec::new() };
    let protective = slots.iter().any(|slot| slot.kind == 0xEE);
    if protective || has_gpt_signature(disk, BLOCK) {
        return gpt(disk);
    }
    let mut found = Vec::new();
    // A FAT or boot-sector file system carries the same signature: slots count only if sane.
    if slots.iter().all(|slot| slot.flag & 0x7F == 0) {
        for slot in slots {
            let (start, len) = (u64::from(slot.first) * BLOCK, u64::from(slot.count) * BLOCK);
            if let Some(window) = disk.part(start, len).filter(|_| start != 0 && len != 0) {
                found.push(Partition {
                    name: format!("msdos{}", slot.number),
                    esp: slot.kind == 0xEF,
                    window,
                });
            }
        }
    }
    if found.is_empty() {
        found.push(Partition {
            name: String::new(),
            esp: false,
            window: disk.clone(),
        });
    }
    Ok(found)
}

struct Slot {
    number: usize,
    flag: u8,
    kind: u8,
    first: u32,
    count: u32,
}

fn mbr_slots(mbr: &[u8]) -> Vec<Slot> {
    let table = mbr.get(446..510).unwrap_or_default();
    let (slots, _) = table.as_chunks::<16>();
    slots
        .iter()
        .enumerate()
        .map(|(i, s)| Slot {
            number: i + 1,
            flag: s[0],
            kind: s[4],
            first: u32::from_le_bytes([s[8], s[9], s[10], s[11]]),
            count: u32::from_le_bytes([s[12], s[13], s[14], s[15]]),
        })
        .filter(|slot| slot.kind != 0)
        .collect()
}

fn has_gpt_signature(disk: &Window, offset: u64) -> bool {
    disk.bytes(offset, 8)
        .is_ok_and(|bytes| bytes == b"EFI PART")
}

fn gpt(disk: &Window) -> Result<Vec<Partition>, BootError> {
    let primary = match gpt_copy(disk, 1) {
        Ok(found) => return Ok(found),
        Err(problem) => problem,
    };
    let last = disk.len() / BLOCK - 1;
    match gpt_copy(disk, last) {
        Ok(found) => {
            tracing::warn!(%primary, "the primary GPT is damaged; using the backup");
            Ok(found)
        }
        Err(backup) => Err(BootError::PartitionTable { primary, backup }),
    }
}

/// Reads the copy whose header is in block `at`.
fn gpt_copy(disk: &Window, at: u64) -> Result<Vec<Partition>, String> {
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
    let mut found = Vec::new();
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
            tracing::warn!(
                partition = name,
                "ignoring a partition beyond the disk's end"
            );
            continue;
        };
        found.push(Partition {
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

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use proptest::prelude::*;

    use super::*;
    use crate::boot::testing::{self, MemoryDisk};

    fn read(data: Vec<u8>) -> Result<Vec<Partition>, BootError> {
        partitions(&testing::window(MemoryDisk::disk(data)))
    }

    fn names(data: Vec<u8>) -> Vec<(String, bool, u64)> {
        let found = read(data).unwrap();
        found
            .into_iter()
            .map(|p| (p.name, p.esp, p.window.len()))
            .collect()
    }

    fn gpt_disk() -> Vec<u8> {
        let script =
            "label: gpt\n15: start=2048, size=2048, type=U\n1: start=4096, size=8192, type=L\n";
        testing::sfdisk(16 << 20, script)
    }

    #[test]
    fn gpt_is_read() {
        let expected = [
            ("gpt1".to_string(), false, 8192 * 512),
            ("gpt15".to_string(), true, 2048 * 512),
        ];
        assert_eq!(names(gpt_disk()), expected);
    }

    #[test]
    fn a_damaged_primary_falls_back_to_the_backup() {
        for damaged in [520, 512 + 16, 1024 + 33] {
            let mut data = gpt_disk();
            data[damaged] ^= 0x10;
            assert_eq!(names(data).len(), 2, "byte {damaged}");
        }
        let mut data = gpt_disk();
        data[520] ^= 1;
        let last = data.len() - 500;
        data[last] ^= 1;
        let error = read(data).err().unwrap();
        assert!(error.to_string().contains("checksum"), "{error}");
    }

    #[test]
    fn mbr_and_whole_disk() {
        let data = testing::sfdisk(16 << 20, "label: dos\nstart=2048, size=4096, type=83\n");
        assert_eq!(names(data), [("msdos1".to_string(), false, 4096 * 512)]);
        assert_eq!(names(vec![0; 4096]), [(String::new(), false, 4096)]);
        assert!(read(Vec::new()).is_err());
    }

    /// Values at the edges of what a table can say, and any.
    fn number() -> impl Strategy<Value = u64> {
        prop_oneof![
            4 => 0u64..40_000,
            1 => (0u64..4).prop_map(|less| u64::MAX - less),
            1 => (0u32..64).prop_map(|bit| 1 << bit),
            1 => any::<u64>(),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 100, ..ProptestConfig::default() })]

        /// Checksums are no proof of honesty: tables that have them right have an answer, too, and
        /// no partition is anywhere but on the disk.
        #[test]
        fn tables_with_good_checksums_have_an_answer(
            entries in prop::collection::vec((0usize..40, number(), number()), 0..6),
            count in prop_oneof![Just(128u32), 0u32..2000, any::<u32>()],
            size in prop_oneof![4 => Just(128u32), 1 => Just(4096), 1 => 0u32..5000, 1 => any::<u32>()],
            table_at in prop_oneof![4 => Just(2u64), 1 => number()],
            header_len in prop_oneof![4 => Just(92u32), 1 => 0u32..600, 1 => any::<u32>()],
        ) {
            // As much of the disk as a table may be in: the rest is only long.
            static INTACT: LazyLock<Vec<u8>> = LazyLock::new(|| {
                let mut disk = gpt_disk();
                disk.truncate(1 << 20);
                disk
            });
            let mut data = INTACT.clone();
            for (index, first, last) in entries {
                let entry = 1024 + index * 128;
                data[entry] |= 1;
                data[entry + 32..entry + 40].copy_from_slice(&first.to_le_bytes());
                data[entry + 40..entry + 48].copy_from_slice(&last.to_le_bytes());
            }
            let start = usize::try_from(table_at).ok().and_then(|at| at.checked_mul(512));
            let len = (count as usize).checked_mul(size as usize);
            let table = start.zip(len).and_then(|(start, len)| {
                data.get(start..start.checked_add(len)?)
            });
            let table_sum = table.map_or(0, crc32);
            let header = &mut data[512..1024];
            header[12..16].copy_from_slice(&header_len.to_le_bytes());
            header[72..80].copy_from_slice(&table_at.to_le_bytes());
            header[80..84].copy_from_slice(&count.to_le_bytes());
            header[84..88].copy_from_slice(&size.to_le_bytes());
            header[88..92].copy_from_slice(&table_sum.to_le_bytes());
            header[16..20].fill(0);
            let sum = header.get(..header_len as usize).map_or(0, crc32);
            header[16..20].copy_from_slice(&sum.to_le_bytes());
            // The backup is cut off, so that what is said here counts.
            let len = data.len() as u64;
            if let Ok(found) = read(data) {
                prop_assert!(found.iter().all(|part| part.window.len() <= len));
            }
        }
    }
}
