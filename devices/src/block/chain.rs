//! Chains of images, each on top of another.

use std::path::Path;
use std::sync::Arc;

use super::disk::Disk;
use super::error::DiskError;
use super::format::{Format, OpenOptions, probe_magic};
use super::host::{FileIdentity, HostFile};

/// Maximum number of images in a chain.
const MAX_CHAIN: usize = 16;

/// Opens an image file, using the chain for the images under it.
pub(super) type OpenFile =
    fn(HostFile, &OpenOptions, &mut Chain) -> Result<Arc<dyn Disk>, DiskError>;

/// The files opened so far for one disk, the topmost first.
pub(super) struct Chain {
    open_file: OpenFile,
    seen: Vec<(u64, u64)>,
}

impl Chain {
    /// A chain without files. `open_file` opens each file according to its format.
    pub(super) fn new(open_file: OpenFile) -> Self {
        Self {
            open_file,
            seen: Vec::new(),
        }
    }

    /// Opens the image at `path` and the images under it.
    pub(super) fn open(
        &mut self,
        path: &Path,
        options: &OpenOptions,
    ) -> Result<Arc<dyn Disk>, DiskError> {
        Ok(self.open_with_identity(path, options)?.0)
    }

    /// Opens the image at `path` and the images under it. Also returns the identity of its file.
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

    /// Refuses a chain that is too long, and a file that is already in the chain. Without this
    /// check, the file would be reported as locked, by this same process.
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

/// Detects the format from the content.
pub(super) fn probe(file: &HostFile) -> Result<Format, DiskError> {
    let mut start = [0; 8];
    file.read_up_to_end(&mut start, 0)
        .map_err(DiskError::io("read", file.path()))?;
    Ok(probe_magic(&start).unwrap_or(Format::Raw))
}
