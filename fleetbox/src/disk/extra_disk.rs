//! Extra disks of a VM, besides its root disk.

use std::fs::File;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::disk::format::{FormatError, data_format};
use crate::model::names::InvalidValue;
use crate::model::size::Size;
use crate::util::readable::readable_debug;

/// Maximum number of extra disks of a VM; the PCI bus has room for 30 disks and network cards.
pub const MAX_EXTRA_DISKS: usize = 8;

/// Why a disk cannot be added to a VM.
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum ExtraDiskError {
    /// The size is invalid.
    #[error(transparent)]
    Size(#[from] InvalidValue),
    /// The file cannot be opened.
    #[error("cannot use {} as a disk: {why}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// The file has an unsupported format.
    #[error(transparent)]
    Format(#[from] FormatError),
}

readable_debug!(ExtraDiskError);

/// An extra disk of a VM, for [`VmBuilder::extra_disk`](crate::VmBuilder::extra_disk).
///
/// What the guest writes is stored with the VM and removed with it. A file given as the disk is never written to.
///
/// ```
/// use fleetbox::{ExtraDisk, Size};
///
/// let scratch = ExtraDisk::empty(Size::gib(1));
/// let data = ExtraDisk::file("data.qcow2").read_only();
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExtraDisk {
    source: Source,
    #[serde(default)]
    read_only: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Source {
    Empty(Size),
    File(PathBuf),
}

/// What the disk was made from: `64M, empty` or `/data.qcow2, read-only`.
impl std::fmt::Display for ExtraDisk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.source {
            Source::Empty(size) => write!(f, "{size}, empty")?,
            Source::File(path) => write!(f, "{}", path.display())?,
        }
        f.write_str(if self.read_only { ", read-only" } else { "" })
    }
}

impl ExtraDisk {
    /// An empty disk, which reads as zeros. The host stores only what the guest writes.
    pub fn empty(size: Size) -> Self {
        Self {
            source: Source::Empty(size),
            read_only: false,
        }
    }

    /// A disk with the content of a raw or qcow2 file. The file is not changed: what the guest writes goes to a layer
    /// over it. The file must not be changed or removed while the VM exists.
    pub fn file(path: impl Into<PathBuf>) -> Self {
        Self {
            source: Source::File(path.into()),
            read_only: false,
        }
    }

    /// Makes the disk read-only for the guest.
    #[must_use]
    pub fn read_only(mut self) -> Self {
        self.read_only = true;
        self
    }

    pub(crate) fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// What the disk was made from.
    pub(crate) fn source(&self) -> &Source {
        &self.source
    }

    /// The size of an empty disk.
    pub(crate) fn empty_size(&self) -> Option<Size> {
        match self.source {
            Source::Empty(size) => Some(size),
            Source::File(_) => None,
        }
    }

    /// Checks the disk before a VM is created, and makes its path absolute.
    ///
    /// # Errors
    /// The size is invalid, or the file is not usable as a disk.
    pub(crate) fn check(&self) -> Result<Self, ExtraDiskError> {
        let source = match &self.source {
            Source::Empty(size) => Source::Empty(size.check_disk()?),
            Source::File(path) => {
                let unusable = |why: String| ExtraDiskError::File {
                    path: path.clone(),
                    why,
                };
                let absolute = path
                    .canonicalize()
                    .map_err(|error| unusable(error.to_string()))?;
                let file = File::open(&absolute).map_err(|error| unusable(error.to_string()))?;
                let metadata = file
                    .metadata()
                    .map_err(|error| unusable(error.to_string()))?;
                if !metadata.is_file() {
                    return Err(unusable("it is not a regular file".to_owned()));
                }
                data_format(&absolute, &path.display().to_string())?;
                Source::File(absolute)
            }
        };
        Ok(Self {
            source,
            read_only: self.read_only,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disks_are_checked_before_they_are_made() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("disk.raw");
        std::fs::write(&file, vec![7; 1 << 20]).unwrap();
        let disk = ExtraDisk::file(&file).read_only().check().unwrap();
        assert!(disk.is_read_only());

        let empty = ExtraDisk::empty(Size::mib(64)).check().unwrap();
        assert_eq!(empty.empty_size(), Some(Size::mib(64)));

        for bad in [
            ExtraDisk::empty(Size::from_bytes(0)),
            ExtraDisk::empty(Size::from_bytes((1 << 20) + 1)),
            ExtraDisk::file(dir.path()),
            ExtraDisk::file(dir.path().join("missing")),
        ] {
            assert!(bad.check().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn disks_say_what_they_were_made_from() {
        let empty = ExtraDisk::empty(Size::mib(64));
        assert_eq!(empty.to_string(), "64M, empty");
        let file = ExtraDisk::file("/x").read_only();
        assert_eq!(file.to_string(), "/x, read-only");
    }

    #[test]
    fn records_are_read_back() {
        for disk in [
            ExtraDisk::empty(Size::mib(64)),
            ExtraDisk::file("/x").read_only(),
        ] {
            let text = serde_json::to_string(&disk).unwrap();
            assert_eq!(serde_json::from_str::<ExtraDisk>(&text).unwrap(), disk);
        }
    }
}
