//! Linux: open file description locks, holes, and the boot's identity.

use std::fs::File;
use std::io;

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, FcntlArg, fallocate, fcntl};
use nix::unistd::{Whence, lseek};

/// Locks the whole file until the last descriptor of this open file is closed, which a kill does
/// too. Returns false if the lock of another open file excludes it.
pub(super) fn try_lock(file: &File, exclusive: bool) -> io::Result<bool> {
    match set_lock(
        file,
        if exclusive {
            libc::F_WRLCK
        } else {
            libc::F_RDLCK
        },
    ) {
        Ok(()) => Ok(true),
        Err(Errno::EAGAIN | Errno::EACCES) => Ok(false),
        Err(e) => Err(e.into()),
    }
}

/// Releases the lock, for all descriptors of this open file.
pub(super) fn unlock(file: &File) -> io::Result<()> {
    Ok(set_lock(file, libc::F_UNLCK)?)
}

fn set_lock(file: &File, kind: libc::c_int) -> nix::Result<()> {
    let lock = libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    fcntl(file, FcntlArg::F_OFD_SETLK(&lock)).map(drop)
}

/// Frees the range's blocks. Returns false if the file system does not support holes.
pub(super) fn punch_hole(file: &File, offset: u64, len: u64) -> io::Result<bool> {
    let mode = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    allocate(file, mode, offset, len)
}

/// Zeroes the range and keeps its blocks. Returns false if the file system does not support this.
pub(super) fn zero_range(file: &File, offset: u64, len: u64) -> io::Result<bool> {
    allocate(file, FallocateFlags::FALLOC_FL_ZERO_RANGE, offset, len)
}

fn allocate(file: &File, mode: FallocateFlags, offset: u64, len: u64) -> io::Result<bool> {
    let signed = |n: u64| i64::try_from(n).map_err(|_| io::Error::from(Errno::EFBIG));
    let (offset, len) = (signed(offset)?, signed(len)?);
    loop {
        match fallocate(file, mode, offset, len) {
            Ok(()) => return Ok(true),
            Err(Errno::EINTR) => {}
            Err(Errno::EOPNOTSUPP | Errno::ENOSYS) => return Ok(false),
            Err(e) => return Err(e.into()),
        }
    }
}

/// Start of the first data at or after `offset`.
pub(super) fn next_data(file: &File, offset: u64) -> io::Result<Option<u64>> {
    let at = i64::try_from(offset).map_err(|_| io::Error::from(Errno::EFBIG))?;
    match lseek(file, at, Whence::SeekData) {
        Ok(n) => Ok(Some(n.unsigned_abs())),
        Err(Errno::ENXIO) => Ok(None),
        Err(Errno::EINVAL) => Ok(Some(offset)),
        Err(e) => Err(e.into()),
    }
}

/// Length of a block device.
pub(super) fn end(file: &File) -> io::Result<u64> {
    Ok(lseek(file, 0, Whence::SeekEnd)?.unsigned_abs())
}

/// The identity of this boot of the host, or `None` if it cannot be read.
pub(in crate::block) fn boot_id() -> Option<[u8; 16]> {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    let digits: String = text.trim().chars().filter(|c| *c != '-').collect();
    let id = u128::from_str_radix(&digits, 16).ok()?;
    (id != 0).then(|| id.to_le_bytes())
}
