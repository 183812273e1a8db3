//! Disks compared with what a vector of bytes does, over random operations.

use std::sync::Arc;

use proptest::prelude::*;

use super::disk::Disk;

/// An operation on a disk.
#[derive(Clone, Debug)]
pub(super) enum Op {
    Write { offset: u64, len: u64, seed: u8 },
    Discard { offset: u64, len: u64 },
    WriteZeroes { offset: u64, len: u64, unmap: bool },
    Read { offset: u64, len: u64 },
    Flush,
    Reopen,
}

/// Bytes that tell their operation and their place.
pub(super) fn pattern(seed: u8, offset: u64, len: u64) -> Vec<u8> {
    (offset..offset + len)
        .map(|at| seed ^ (at / 7) as u8 ^ (at >> 9) as u8)
        .collect()
}

/// Operations on a disk of `size` bytes: most of whole sectors, some of any bytes.
pub(super) fn op(size: u64) -> impl Strategy<Value = Op> {
    let sectors = size / 512;
    let range = prop_oneof![
        4 => (0..sectors, 1..24u64).prop_map(|(at, n)| (at * 512, n * 512)),
        2 => (0..size / 4096 + 1, 1..5u64).prop_map(|(at, n)| (at * 4096, n * 4096)),
        1 => (0..size, 0..size).prop_map(|(at, n)| (at, n)),
        1 => (0..size, 1..6000u64),
    ]
    .prop_map(move |(at, n)| (at.min(size), n.min(size - at.min(size))));
    prop_oneof![
        5 => (range.clone(), any::<u8>())
            .prop_map(|((offset, len), seed)| Op::Write { offset, len, seed }),
        2 => range.clone().prop_map(|(offset, len)| Op::Discard { offset, len }),
        2 => (range.clone(), any::<bool>())
            .prop_map(|((offset, len), unmap)| Op::WriteZeroes { offset, len, unmap }),
        3 => range.prop_map(|(offset, len)| Op::Read { offset, len }),
        1 => Just(Op::Flush),
        1 => Just(Op::Reopen),
    ]
}

/// What the operation does to the disk's bytes.
pub(super) fn apply(model: &mut [u8], op: &Op) {
    match *op {
        Op::Write { offset, len, seed } => {
            model[offset as usize..][..len as usize].copy_from_slice(&pattern(seed, offset, len))
        }
        Op::Discard { offset, len } | Op::WriteZeroes { offset, len, .. } => {
            model[offset as usize..][..len as usize].fill(0);
        }
        Op::Read { .. } | Op::Flush | Op::Reopen => {}
    }
}

/// All bytes of the disk.
pub(super) fn contents(disk: &dyn Disk) -> Vec<u8> {
    let mut all = vec![0xaa; disk.len() as usize];
    disk.read_at(&mut all, 0).unwrap();
    all
}

/// Does the operation on the disk.
pub(super) fn perform(disk: &dyn Disk, op: &Op) {
    match *op {
        Op::Write { offset, len, seed } => {
            disk.write_at(&pattern(seed, offset, len), offset).unwrap();
        }
        Op::Discard { offset, len } => disk.discard(offset, len).unwrap(),
        Op::WriteZeroes { offset, len, unmap } => disk.write_zeroes(offset, len, unmap).unwrap(),
        Op::Flush => disk.flush().unwrap(),
        Op::Read { .. } | Op::Reopen => {}
    }
}

/// Does the operations on the disk that `open` opens and on `model`, and compares.
pub(super) fn compare(model: &mut [u8], ops: &[Op], open: impl Fn() -> Arc<dyn Disk>) {
    let mut disk = open();
    assert_eq!(disk.len(), model.len() as u64);
    for op in ops {
        match *op {
            Op::Read { offset, len } => {
                let mut buf = vec![0xaa; len as usize];
                disk.read_at(&mut buf, offset).unwrap();
                assert!(
                    buf == model[offset as usize..][..len as usize],
                    "{op:?} differs"
                );
            }
            Op::Reopen => {
                drop(disk);
                disk = open();
            }
            _ => perform(&*disk, op),
        }
        apply(model, op);
    }
    assert!(contents(&*disk) == model, "differs in the end");
    drop(disk);
    assert!(contents(&*open()) == model, "differs after opening anew");
}
