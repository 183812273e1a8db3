//! A file of the host with a disk image. It is opened once, and locked for as long as it is open.

#[cfg(target_os = "linux")]
mod linux;
#[cfg(target_os = "linux")]
use linux as os;

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use super::error::DiskError;

pub(super) use os::boot_id;

/// Zeros to write if the host cannot zero a range by itself.
static ZEROES: [u8; 64 * 1024] = [0; 64 * 1024];

/// The identity of a file, which distinguishes it from a replacement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileIdentity {
    /// Length in bytes.
    pub len: u64,
    /// Time of the last modification: seconds since the epoch.
    pub mtime: i64,
    /// Time of the last modification: nanoseconds within the second.
    pub mtime_nanos: u32,
    /// Inode number.
    pub inode: u64,
}

/// An open, locked image file. All positions are absolute, so threads can share it.
#[derive(Debug)]
pub(super) struct HostFile {
    file: File,
    path: PathBuf,
    len: u64,
    identity: FileIdentity,
    /// A sync has failed. Its data may be lost, but a second sync would report success.
    sync_failed: AtomicBool,
}

impl HostFile {
    /// Opens and locks `path`: shared for reading, exclusively for writing.
    pub(super) fn open(path: &Path, write: bool) -> Result<Self, DiskError> {
        Self::open_with(path, write, true)
    }

    /// Opens `path` without a lock, to inspect it even while it is written to.
    pub(super) fn peek(path: &Path) -> Result<Self, DiskError> {
        Self::open_with(path, false, false)
    }

    fn open_with(path: &Path, write: bool, lock: bool) -> Result<Self, DiskError> {
        let file = File::options()
            .read(true)
            .write(write)
            // A FIFO would block the open; for files and block devices it changes nothing.
            .custom_flags(libc::O_NONBLOCK)
            .open(path)
            .map_err(DiskError::io(
                if write { "open for writing" } else { "open" },
                path,
            ))?;
        let look = || file.metadata().map_err(DiskError::io("look at", path));
        let kind = look()?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            return Err(DiskError::NotADisk {
                path: path.to_path_buf(),
            });
        }
        if lock && !os::try_lock(&file, write).map_err(DiskError::io("lock", path))? {
            return Err(DiskError::InUse {
                path: path.to_path_buf(),
                writer: write,
            });
        }
        // Looked at again under the lock: from here on it does not change.
        let metadata = look()?;
        let len = if kind.is_file() {
            metadata.len()
        } else {
            os::end(&file).map_err(DiskError::io("measure", path))?
        };
        let identity = FileIdentity {
            len,
            mtime: metadata.mtime(),
            mtime_nanos: u32::try_from(metadata.mtime_nsec()).unwrap_or(0),
            inode: metadata.ino(),
        };
        Ok(Self {
            file,
            path: path.to_path_buf(),
            len,
            identity,
            sync_failed: AtomicBool::new(false),
        })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Length in bytes when it was opened.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    pub(super) fn identity(&self) -> &FileIdentity {
        &self.identity
    }

    /// Fills `buf`. It is an error if the file ends before.
    pub(super) fn read(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(buf, offset).map_err(|e| {
            if e.kind() == io::ErrorKind::UnexpectedEof {
                let path = self.path.display();
                io::Error::new(
                    e.kind(),
                    format!("{path} ends within {offset}+{}", buf.len()),
                )
            } else {
                e
            }
        })
    }

    /// Fills `buf`, with zeros past the end of the file. Returns the number of bytes from the file.
    pub(super) fn read_up_to_end(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut done = 0;
        while done < buf.len() {
            match self.file.read_at(&mut buf[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        buf[done..].fill(0);
        Ok(done)
    }

    /// Writes all of `buf`.
    pub(super) fn write(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.file.write_all_at(buf, offset)
    }

    /// Makes the range, which is within the file, read as zeros, and frees its blocks.
    pub(super) fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        if len == 0 || os::punch_hole(&self.file, offset, len)? {
            return Ok(());
        }
        self.write_zeroes(offset, len)
    }

    /// Makes the range, which is within the file, read as zeros, and keeps its blocks.
    pub(super) fn zero(&self, offset: u64, len: u64) -> io::Result<()> {
        if len == 0 || os::zero_range(&self.file, offset, len)? {
            return Ok(());
        }
        self.write_zeroes(offset, len)
    }

    fn write_zeroes(&self, mut offset: u64, mut len: u64) -> io::Result<()> {
        while len > 0 {
            let n = len.min(ZEROES.len() as u64);
            self.write(&ZEROES[..n as usize], offset)?;
            offset += n;
            len -= n;
        }
        Ok(())
    }

    /// Start of the first data at or after `offset`, or `None` if there are only holes. On file
    /// systems that do not report holes, the result may be too early.
    pub(super) fn next_data(&self, offset: u64) -> io::Result<Option<u64>> {
        os::next_data(&self.file, offset)
    }

    /// Makes all writes so far durable. Once this has failed, it always fails.
    pub(super) fn sync(&self) -> io::Result<()> {
        if !self.sync_failed.load(Ordering::Acquire) {
            match self.file.sync_data() {
                Ok(()) => return Ok(()),
                Err(e) => {
                    self.sync_failed.store(true, Ordering::Release);
                    return Err(e);
                }
            }
        }
        Err(io::Error::other(format!(
            "an earlier attempt to make {} durable has failed; writes may be lost",
            self.path.display()
        )))
    }
}

impl Drop for HostFile {
    fn drop(&mut self) {
        // Closing is not enough: a process that another thread is just starting has a copy of the
        // descriptor until it executes its program.
        if let Err(error) = os::unlock(&self.file) {
            tracing::debug!(path = %self.path.display(), %error, "cannot unlock a disk image");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lock_ends_with_the_disk_though_a_child_being_started_has_a_copy() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        std::fs::write(&path, [0; 512]).unwrap();
        let first = HostFile::open(&path, true).unwrap();
        let copy = first.file.try_clone().unwrap();
        assert!(matches!(
            HostFile::open(&path, false),
            Err(DiskError::InUse { .. })
        ));
        drop(first);
        HostFile::open(&path, true).unwrap();
        drop(copy);
    }

    #[test]
    fn a_failed_sync_is_never_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        std::fs::write(&path, [0; 512]).unwrap();
        let file = HostFile::open(&path, true).unwrap();
        file.sync().unwrap();
        file.sync_failed.store(true, Ordering::Release);
        assert!(
            file.sync()
                .unwrap_err()
                .to_string()
                .contains("writes may be lost")
        );
    }
}
