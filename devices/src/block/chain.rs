//! Images that lie on other images.

use std::path::Path;
use std::sync::Arc;

use super::disk::Disk;
use super::error::DiskError;
use super::format::{Format, OpenOptions, probe_magic};
use super::host::{FileIdentity, HostFile};

/// Maximum number of images that can lie under one another.
const MAX_CHAIN: usize = 16;

/// Opens an image file, and by the chain what lies under it.
pub(super) type OpenFile =
    fn(HostFile, &OpenOptions, &mut Chain) -> Result<Arc<dyn Disk>, DiskError>;

/// The files opened so far for one disk, the topmost first.
pub(super) struct Chain {
    open_file: OpenFile,
    seen: Vec<(u64, u64)>,
}

impl Chain {
    /// No file yet. `open_file` opens each of them by its format.
    pub(super) fn new(open_file: OpenFile) -> Self {
        Self {
            open_file,
            seen: Vec::new(),
        }
    }

    /// Opens the image at `path` and what lies under it.
    pub(super) fn open(
        &mut self,
        path: &Path,
        options: &OpenOptions,
    ) -> Result<Arc<dyn Disk>, DiskError> {
        Ok(self.open_with_identity(path, options)?.0)
    }

    /// Opens the image at `path` and what lies under it, and tells which file it was.
    pub(super) fn open_with_identity(
        &mut self,
        path: &Path,
        options: &OpenOptions,
    ) -> Result<(Arc<dyn Disk>, FileIdentity), DiskError> {
        self.check(path)?;
        let file = HostFile::open(path, !options.read_only)?;
        let identity = file.identity().clone();
        Ok(((self.open_file)(file, options, self)?, identity))
    }

    /// Refuses a file that is in the chain already, before its lock is found taken by ourselves,
    /// and a chain that is too long.
    fn check(&mut self, path: &Path) -> Result<(), DiskError> {
        use std::os::unix::fs::MetadataExt;
        if self.seen.len() >= MAX_CHAIN {
            return Err(DiskError::ChainTooLong {
                path: path.to_path_buf(),
                max: MAX_CHAIN,
            });
        }
        let metadata = std::fs::metadata(path).map_err(DiskError::io("open", path))?;
        let node = (metadata.dev(), metadata.ino());
        if self.seen.contains(&node) {
            return Err(DiskError::Cycle {
                path: path.to_path_buf(),
            });
        }
        self.seen.push(node);
        Ok(())
    }
}

/// Looks for the format in the content.
pub(super) fn probe(file: &HostFile) -> Result<Format, DiskError> {
    let mut start = [0; 8];
    file.read_up_to_end(&mut start, 0)
        .map_err(DiskError::io("read", file.path()))?;
    Ok(probe_magic(&start).unwrap_or(Format::Raw))
}
