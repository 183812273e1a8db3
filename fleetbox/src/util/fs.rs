//! Files that survive a kill at any moment: private modes and atomic replacement. Also sparse files.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags};
use nix::unistd::{AccessFlags, Uid, User, Whence, faccessat, geteuid, lseek};

/// Prefix of the names of temporary files. [`crate::store::Store::sweep`] removes old ones.
pub(crate) const TEMP_PREFIX: &str = ".tmp-";

/// Granularity of holes: the usual block size of file systems.
const BLOCK: usize = 4096;
static ZEROS: [u8; BLOCK] = [0; BLOCK];

/// Creates `path` and missing parents with mode 0700. Existing directories are not changed.
pub(crate) fn create_private_dir(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Opens `path` for reading and writing, creating it with mode 0600 if it is missing.
pub(crate) fn open_private(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
}

/// Makes the entries of directory `path` durable.
pub(crate) fn sync_dir(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Replaces `path` by a file of mode 0600 with `content`. After a crash there is either the
/// complete old file or the complete new one.
pub(crate) fn write_atomic(path: &Path, content: &[u8]) -> io::Result<()> {
    let dir = path
        .parent()
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "the path has no directory"))?;
    let mut temp = tempfile::Builder::new()
        .prefix(TEMP_PREFIX)
        .tempfile_in(dir)?;
    temp.write_all(content)?;
    temp.as_file().sync_all()?;
    temp.persist(path).map_err(|e| e.error)?;
    sync_dir(dir)
}

/// Reads a file of at most `limit` bytes. A larger file is an error, and is not read into memory.
pub(crate) fn read_limited(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    use io::Read as _;
    let mut content = Vec::new();
    File::open(path)?
        .take(limit + 1)
        .read_to_end(&mut content)?;
    if content.len() as u64 > limit {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("the file is larger than {limit} bytes"),
        ));
    }
    Ok(content)
}

/// The path or, if it does not exist, the nearest directory above it that does.
pub(crate) fn nearest(path: &Path) -> &Path {
    let exists = |path: &&Path| path.symlink_metadata().is_ok();
    path.ancestors().find(exists).unwrap_or(path)
}

/// Checks that `path` is a directory that this process may use and change, or that it can be created. Nothing is
/// created.
pub(crate) fn check_writable(path: &Path) -> io::Result<()> {
    let there = nearest(path);
    if !fs::metadata(there)?.is_dir() {
        return Err(io::ErrorKind::NotADirectory.into());
    }
    let need = AccessFlags::W_OK | AccessFlags::X_OK;
    Ok(faccessat(AT_FDCWD, there, need, AtFlags::AT_EACCESS)?)
}

/// The other user that `path`, or the nearest directory above it that this process can see, belongs to; `None` if that
/// is this process's user.
pub(crate) fn foreign_owner(path: &Path) -> Option<(PathBuf, String)> {
    let there = nearest(path);
    let owner = Uid::from_raw(there.symlink_metadata().ok()?.uid());
    if owner == geteuid() {
        return None;
    }
    let name = match User::from_uid(owner) {
        Ok(Some(user)) => user.name,
        _ => format!("user {owner}"),
    };
    Some((there.to_owned(), name))
}

/// Removes a file if it exists.
pub(crate) fn remove_file_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

/// The first data of a file at or after `at`: its start and its end. `None` if there is only a hole, or the end. Where
/// the file system does not say, all is data, without an end. Changes the file's position.
pub(crate) fn next_data(file: &File, at: u64) -> io::Result<Option<(u64, u64)>> {
    let Ok(from) = i64::try_from(at) else {
        return Ok(None);
    };
    let start = match lseek(file, from, Whence::SeekData) {
        Ok(start) => start,
        Err(Errno::ENXIO) => return Ok(None),
        Err(Errno::EINVAL | Errno::EOPNOTSUPP) => return Ok(Some((at, u64::MAX))),
        Err(error) => return Err(error.into()),
    };
    let end = match lseek(file, start, Whence::SeekHole) {
        Ok(end) => end,
        // It was cut off there in this moment.
        Err(Errno::ENXIO) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let number = |at| u64::try_from(at).map_err(io::Error::other);
    Ok(Some((number(start)?, number(end)?)))
}

/// Writes `bytes` at `position`, except whole blocks of zeros. The caller must make sure that these
/// already read as zeros.
pub(crate) fn write_sparse(file: &File, position: u64, bytes: &[u8]) -> io::Result<()> {
    let mut run_start = 0;
    let mut at = 0;
    while at < bytes.len() {
        // Up to the next block boundary of the file, so that holes are whole blocks.
        let in_block = ((position + at as u64) % BLOCK as u64) as usize;
        let end = bytes.len().min(at + BLOCK - in_block);
        let block = bytes.get(at..end).unwrap_or_default();
        // Slice comparison is memcmp, quick in unoptimised builds too.
        if ZEROS.get(..block.len()) == Some(block) {
            write_run(file, position, bytes, run_start..at)?;
            run_start = end;
        }
        at = end;
    }
    write_run(file, position, bytes, run_start..bytes.len())
}

fn write_run(
    file: &File,
    position: u64,
    bytes: &[u8],
    run: std::ops::Range<usize>,
) -> io::Result<()> {
    let start = run.start as u64;
    match bytes.get(run) {
        Some(run) if !run.is_empty() => file.write_all_at(run, position + start),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn atomic_writes_replace_and_are_private() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        write_atomic(&path, b"one").unwrap();
        write_atomic(&path, b"two").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn directories_are_private() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b");
        create_private_dir(&path).unwrap();
        create_private_dir(&path).unwrap();
        for p in [dir.path().join("a"), path] {
            let mode = fs::metadata(p).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o700);
        }
    }

    #[test]
    fn large_files_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        fs::write(&path, [0; 11]).unwrap();
        assert!(read_limited(&path, 10).is_err());
        assert_eq!(read_limited(&path, 11).unwrap().len(), 11);
    }
}
