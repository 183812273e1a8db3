//! A disk whose boot entry is read.
//!
//! An input is a disk without its empty sectors: its size in sectors of 512 bytes (16 bits, little-endian), and then
//! runs of sectors, each with the number of its first sector (16 bits), of its sectors (8 bits), and their bytes. Half
//! of what a disk can say is behind checksums, so that those of GPT and ext4 are corrected first.

mod mend;

use std::io;
use std::panic;
use std::sync::{Arc, Once};
use std::time::{Duration, Instant};

use fleetbox_devices::block::Disk;
use fleetbox_vmm::boot::{Limits, discover};

const SECTOR: usize = 512;

/// Reads the boot entry.
///
/// # Panics
/// A fault was found: a read beyond the end, a write, a result beyond the limits, or a panic.
pub fn run(input: &[u8]) {
    expect_panics_of_fatfs();
    let mut bytes = unpack(input);
    mend::checksums(&mut bytes);
    let limits = Limits {
        kernel: 1 << 20,
        initrd: 4 << 20,
        bytes: 64 << 20,
        reads: 200_000,
        entries: 200_000,
        memory: 16 << 20,
        time: Duration::from_secs(2),
        ..Limits::default()
    };
    let start = Instant::now();
    let plan = discover(Arc::new(MemoryDisk(bytes)), &limits);
    let took = start.elapsed();
    // Much more than the limit, because other processes may have had the processor.
    assert!(took < limits.time * 4, "it took {took:?}");
    if let Ok(plan) = plan {
        assert!(plan.kernel.len() as u64 <= limits.kernel);
        assert!(
            plan.initrd
                .is_none_or(|all| all.len() as u64 <= limits.initrd)
        );
    }
}

/// Panics of `fatfs` are caught where they occur, and become errors. They are not faults, but libFuzzer's hook would
/// end the process.
fn expect_panics_of_fatfs() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let other = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            let of_fatfs = info
                .location()
                .is_some_and(|at| at.file().contains("fatfs-"));
            if !of_fatfs {
                other(info);
            }
        }));
    });
}

/// The disk that an input describes. What is beyond its end is left out.
fn unpack(input: &[u8]) -> Vec<u8> {
    let Some((sectors, mut rest)) = input.split_first_chunk::<2>() else {
        return Vec::new();
    };
    let mut disk = vec![0; usize::from(u16::from_le_bytes(*sectors)) * SECTOR];
    while let Some(([low, high, count], data)) = rest.split_first_chunk::<3>() {
        let start = usize::from(u16::from_le_bytes([*low, *high])) * SECTOR;
        let (now, next) = data.split_at(data.len().min(usize::from(*count) * SECTOR));
        let room = disk.get_mut(start..).unwrap_or_default();
        let len = room.len().min(now.len());
        room[..len].copy_from_slice(&now[..len]);
        rest = next;
    }
    disk
}

struct MemoryDisk(Vec<u8>);

impl Disk for MemoryDisk {
    fn len(&self) -> u64 {
        self.0.len() as u64
    }

    fn read_only(&self) -> bool {
        true
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let start = usize::try_from(offset).expect("a read on the disk");
        buf.copy_from_slice(&self.0[start..][..buf.len()]);
        Ok(())
    }

    fn write_at(&self, _: &[u8], _: u64) -> io::Result<()> {
        panic!("a disk is not written for a boot entry");
    }

    fn flush(&self) -> io::Result<()> {
        panic!("a disk is not flushed for a boot entry");
    }

    fn discard(&self, _: u64, _: u64) -> io::Result<()> {
        panic!("a disk is not discarded for a boot entry");
    }

    fn write_zeroes(&self, _: u64, _: u64, _: bool) -> io::Result<()> {
        panic!("a disk is not written for a boot entry");
    }
}
