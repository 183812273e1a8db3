//! A qcow2 image that is opened for reading: it has any bytes, and is read in large and in small pieces.

use std::sync::Arc;

use fleetbox_devices::block::{Disk, Format, OpenOptions, open_disk};

use crate::memory::MemoryFile;

/// Bytes of a large read: more than a cluster of the small images in the corpus.
const PIECE: usize = 64 << 10;

/// Large reads of one image. They are spread over the disk, because a small file can claim to be a large disk.
const READS: u64 = 8;

/// Opens the image, and reads it.
///
/// # Panics
/// A fault was found: two reads of the same bytes differ, or a read beyond the end succeeds.
pub fn run(image: &[u8]) {
    let file = MemoryFile::new(image).expect("memory for an input");
    let options = OpenOptions {
        format: Some(Format::Qcow2),
        ..OpenOptions::read_only()
    };
    let Ok(disk) = open_disk(&file.path(), &options) else {
        return;
    };
    check_ends(&disk);
    for n in 0..READS {
        let start = disk.len() / READS * n;
        compare_reads(&disk, start, PIECE.min((disk.len() - start) as usize));
    }
}

/// Reads beyond the end, and writes, must fail.
fn check_ends(disk: &Arc<dyn Disk>) {
    let len = disk.len();
    assert!(len.is_multiple_of(512) && disk.read_only());
    for (at, of) in [(len, 1), (u64::MAX, 1), (len - 512, 513), (u64::MAX - 511, 512)] {
        assert!(disk.read_at(&mut vec![0; of], at).is_err(), "{of} at {at}");
    }
    assert!(disk.read_at(&mut [], len).is_ok());
    assert!(disk.write_at(&[0; 512], 0).is_err());
}

/// Reads a range whole, and again in sectors. What was read whole must be readable in pieces, with the same result.
fn compare_reads(disk: &Arc<dyn Disk>, start: u64, len: usize) {
    let mut whole = vec![0; len];
    if disk.read_at(&mut whole, start).is_err() {
        return;
    }
    let mut piece = [0; 512];
    for (n, expected) in whole.chunks(piece.len()).enumerate() {
        let at = start + (n * piece.len()) as u64;
        let piece = &mut piece[..expected.len()];
        disk.read_at(piece, at).expect("a part of a readable range");
        assert!(piece == expected, "two reads at {at} differ");
    }
}
