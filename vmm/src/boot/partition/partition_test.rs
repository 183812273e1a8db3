//! Partition tables, as `sfdisk` makes them and as attackers do.

use std::sync::LazyLock;

use proptest::prelude::*;

use super::{Partition, Table, partitions};
use crate::boot::crc::crc32;
use crate::boot::error::BootError;
use crate::boot::testing::{self, MemoryDisk};

fn table(data: Vec<u8>) -> Result<Table, BootError> {
    partitions(&testing::window(MemoryDisk::disk(data)))
}

fn read(data: Vec<u8>) -> Result<Vec<Partition>, BootError> {
    table(data).map(|table| table.partitions)
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

/// An MBR with the given slots (type, first sector, number of sectors), in place of `disk`'s.
fn with_slots(mut disk: Vec<u8>, at: usize, slots: &[(u8, u32, u32)]) -> Vec<u8> {
    let table = &mut disk[at + 446..at + 512];
    table.fill(0);
    table[64..].copy_from_slice(&[0x55, 0xAA]);
    for (slot, (kind, first, count)) in table.chunks_exact_mut(16).zip(slots) {
        slot[4] = *kind;
        slot[8..12].copy_from_slice(&first.to_le_bytes());
        slot[12..16].copy_from_slice(&count.to_le_bytes());
    }
    disk
}

#[test]
fn a_gpt_counts_only_with_a_protective_partition() {
    let name = |found: Vec<(String, bool, u64)>| found.into_iter().map(|(name, ..)| name);
    // A disk that was partitioned anew with an MBR keeps the header of its GPT.
    let stale = with_slots(gpt_disk(), 0, &[(0x83, 4096, 4096)]);
    let found = table(stale.clone()).unwrap();
    assert_eq!(found.partitions[0].name, "msdos1");
    assert!(found.problems[0].contains("0xEE"), "{:?}", found.problems);
    assert_eq!(found.partitions.len(), 1);
    // It does not matter what is left of it.
    let mut damaged = stale;
    damaged[530] ^= 1;
    assert_eq!(name(names(damaged)).collect::<Vec<_>>(), ["msdos1"]);
    // Neither without any MBR.
    let mut none = gpt_disk();
    none[510] = 0;
    assert_eq!(name(names(none)).collect::<Vec<_>>(), [""]);
    // A hybrid MBR, whatever the slot.
    for slot in 0..4 {
        let mut slots = [(0x83, 4096, 4096); 4];
        slots[slot] = (0xEE, 1, 2047);
        let hybrid = with_slots(gpt_disk(), 0, &slots);
        assert_eq!(name(names(hybrid)).collect::<Vec<_>>(), ["gpt1", "gpt15"]);
    }
    // A protective MBR without a GPT is damage.
    let error = read(with_slots(vec![0; 1 << 20], 0, &[(0xEE, 1, 2047)]));
    assert!(error.err().unwrap().to_string().contains("damaged"));
}

#[test]
fn logical_partitions_are_read() {
    let script = "label: dos\nstart=2048, size=2048, type=83\nstart=4096, size=20000, type=5\n\
                  start=6144, size=2048, type=83\nstart=10240, size=2048, type=ef\n\
                  start=14336, size=2048, type=83\n";
    let disk = testing::sfdisk(16 << 20, script);
    let found: Vec<_> = names(disk.clone())
        .into_iter()
        .map(|(name, esp, _)| (name, esp))
        .collect();
    let expected = [
        ("msdos1", false),
        ("msdos5", false),
        ("msdos6", true),
        ("msdos7", false),
    ];
    assert_eq!(found, expected.map(|(name, esp)| (name.to_string(), esp)));
    let window = &read(disk.clone()).unwrap()[2].window;
    assert_eq!(window.len(), 2048 * 512);
    let mut marked = disk.clone();
    marked[10240 * 512] = 7;
    assert_eq!(read(marked).unwrap()[2].window.bytes(0, 1).unwrap(), [7]);
    // A chain that leads back to its first link, and one that leads nowhere.
    let circular = with_slots(disk.clone(), 4096 * 512, &[(0x83, 2048, 2048), (5, 0, 9)]);
    let found = table(circular).unwrap();
    assert!(
        found.problems[0].contains("more than 100"),
        "{:?}",
        found.problems
    );
    let broken = with_slots(disk, 4096 * 512, &[(0x83, 2048, 2048), (0xF, u32::MAX, 9)]);
    let found = table(broken).unwrap();
    assert_eq!(found.partitions.len(), 2);
    assert!(
        found.problems[0].contains("logical partitions"),
        "{:?}",
        found.problems
    );
}

#[test]
fn other_sizes_of_sectors_are_named() {
    // The table of a disk with sectors of 4096 bytes: the header is in the second of them.
    let small = gpt_disk();
    let mut large = with_slots(vec![0; 16 << 20], 0, &[(0xEE, 1, u32::MAX)]);
    large[4096..4096 + 512].copy_from_slice(&small[512..1024]);
    let error = read(large).err().unwrap();
    assert!(
        matches!(error, BootError::SectorSize { bytes: 4096 }),
        "{error}"
    );
    assert!(error.to_string().contains("4096"), "{error}");
}
