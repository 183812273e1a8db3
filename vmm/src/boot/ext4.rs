//! ext4, using the `ext4-view` crate, with our own replay of the journal.
//!
//! The crate reads only one kind of journal, from start to end, while a real one wraps around and
//! revokes blocks across transactions ([`super::journal`]). So the crate sees a file system that
//! needs no recovery: the journal's blocks are in place and the flag is cleared. Sizes that the
//! crate allocates by are checked first.

use std::io;
use std::rc::Rc;

use ext4_view::{Ext4, Ext4Error, Ext4Read, FileType, Metadata, Path};

use super::ext4_layout::{Geometry, SUPERBLOCK, SUPERBLOCK_LEN, Source, recovered};
use super::extents;
use super::fs::{FsError, Kind, MAX_NAMES, Volume, guarded};
use super::journal::{self, Overlay};
use super::window::Window;

/// Maximum number of symbolic links followed for one path, and maximum bytes of one, as in Linux.
const MAX_LINKS: u32 = 40;
const MAX_LINK_LEN: u64 = 4096;
/// Maximum number of components of a path, including those of symbolic links.
const MAX_COMPONENTS: u32 = 400;

/// Shared, so that the crate's reader and the volume have the same lifetime.
struct Reader(Rc<Source>);

impl Ext4Read for Reader {
    fn read(
        &mut self,
        start_byte: u64,
        dst: &mut [u8],
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync + 'static>> {
        self.0
            .read_newest(start_byte, dst)
            .map_err(|e| io::Error::other(e.to_string()).into())
    }
}

/// An ext4 file system.
pub(super) struct Ext4Volume {
    fs: Ext4,
    pub(super) source: Rc<Source>,
    pub(super) geometry: Geometry,
}

impl Ext4Volume {
    /// Opens the file system on `window`, with its journal replayed in memory.
    ///
    /// # Errors
    /// It is damaged, or has unsupported features.
    pub(super) fn open(window: Window) -> Result<Self, FsError> {
        let disk = window;
        let mut superblock = vec![0; SUPERBLOCK_LEN];
        disk.read(SUPERBLOCK, &mut superblock)?;
        let mut geometry = Geometry::check(&superblock, disk.len())?;
        let mut source = Source {
            disk,
            overlay: Overlay::default(),
            superblock,
        };
        if geometry.needs_recovery {
            let _replaying = tracing::debug_span!("journal").entered();
            let map = geometry.journal_map(&source.disk)?;
            let overlay = journal::replay(&source.disk, geometry.block_size as usize, &map)?;
            // The journal may hold a newer superblock; the kernel would use that one.
            let mut newest = source.superblock.clone();
            overlay.apply(&source.disk, SUPERBLOCK, &mut newest)?;
            geometry = Geometry::check(&newest, source.disk.len())?;
            source = Source {
                overlay,
                superblock: recovered(newest),
                ..source
            };
            tracing::info!(
                blocks = source.overlay.len(),
                "replayed an ext4 journal in memory"
            );
        }
        let source = Rc::new(source);
        let reader = Reader(source.clone());
        let fs = guarded(|| Ext4::load(Box::new(reader)).map_err(convert))?;
        Ok(Self {
            fs,
            source,
            geometry,
        })
    }

    /// Follows `path` component by component, because the crate would allocate as much memory as a
    /// symbolic link claims to be long.
    fn resolve(&self, path: &str) -> Result<Option<(Vec<u8>, Metadata)>, FsError> {
        let mut pending: Vec<Vec<u8>> = split(path.as_bytes());
        pending.reverse();
        let mut done: Vec<u8> = Vec::new();
        let (mut links, mut steps) = (0, 0);
        let mut metadata = self.metadata(b"/")?;
        while let Some(component) = pending.pop() {
            steps += 1;
            if steps > MAX_COMPONENTS {
                return Err(FsError::Unsupported(
                    "its path has too many components".into(),
                ));
            }
            if component == b".." {
                let parent = done.iter().rposition(|byte| *byte == b'/').unwrap_or(0);
                done.truncate(parent);
                metadata = self.metadata(if done.is_empty() { b"/" } else { &done })?;
                continue;
            }
            if !metadata.as_ref().is_some_and(Metadata::is_dir) {
                return Ok(None);
            }
            let parent = done.len();
            done.push(b'/');
            done.extend_from_slice(&component);
            let Some(found) = self.metadata(&done)? else {
                return Ok(None);
            };
            if found.is_symlink() {
                links += 1;
                if links > MAX_LINKS || found.len() > MAX_LINK_LEN {
                    return Err(FsError::Unsupported(
                        "its symbolic links are too many or too long".into(),
                    ));
                }
                let target = guarded(|| {
                    let path = Path::try_from(done.as_slice()).map_err(|_| FsError::NotFound)?;
                    self.fs.read_link(path).map_err(convert)
                })?;
                let target: &[u8] = target.as_ref();
                done.truncate(if target.starts_with(b"/") { 0 } else { parent });
                metadata = self.metadata(if done.is_empty() { b"/" } else { &done })?;
                pending.extend(split(target).into_iter().rev());
            } else {
                metadata = Some(found);
            }
        }
        if done.is_empty() {
            done.push(b'/');
        }
        Ok(metadata.map(|metadata| (done, metadata)))
    }

    /// The metadata of `path`. Only its last component may be a symbolic link.
    fn metadata(&self, path: &[u8]) -> Result<Option<Metadata>, FsError> {
        let Ok(path) = Path::try_from(path) else {
            return Ok(None);
        };
        match guarded(|| self.fs.symlink_metadata(path).map_err(convert)) {
            Ok(metadata) => Ok(Some(metadata)),
            Err(FsError::NotFound) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

fn split(path: &[u8]) -> Vec<Vec<u8>> {
    path.split(|byte| *byte == b'/')
        .filter(|component| !component.is_empty() && *component != b".")
        .map(<[u8]>::to_vec)
        .collect()
}

impl Volume for Ext4Volume {
    fn uuid(&self) -> Option<String> {
        Some(self.fs.uuid().to_string())
    }

    fn label(&self) -> Option<String> {
        self.fs
            .label()
            .to_str()
            .ok()
            .filter(|label| !label.is_empty())
            .map(str::to_string)
    }

    fn kind_name(&self) -> &'static str {
        "ext2"
    }

    fn kind(&self, path: &str) -> Result<Option<Kind>, FsError> {
        Ok(self
            .resolve(path)?
            .map(|(_, metadata)| match metadata.file_type() {
                FileType::Regular => Kind::File(metadata.len()),
                FileType::Directory => Kind::Directory,
                _ => Kind::Other,
            }))
    }

    fn read(&self, path: &str, limit: u64, bytes: &mut Vec<u8>) -> Result<(), FsError> {
        let (path, metadata) = self.resolve(path)?.ok_or(FsError::NotFound)?;
        if metadata.file_type() != FileType::Regular {
            return Err(FsError::NotAFile);
        }
        let size = metadata.len();
        if size > limit {
            return Err(FsError::TooLarge { size, limit });
        }
        let mode = metadata.mode();
        if extents::read(&self.source, &self.geometry, &path, size, mode, bytes)? {
            return Ok(());
        }
        tracing::debug!(path = %path.escape_ascii(), "reading a file block by block");
        guarded(|| {
            let path = Path::try_from(path.as_slice()).map_err(|_| FsError::NotFound)?;
            let mut file = self.fs.open(path).map_err(convert)?;
            let size = usize::try_from(size).map_err(|_| FsError::NotAFile)?;
            let mut data = vec![0; size];
            let mut filled = 0;
            while filled < size {
                let rest = data.get_mut(filled..).unwrap_or_default();
                match file.read_bytes(rest).map_err(convert)? {
                    0 => return Err(FsError::Corrupt("the file ends early".into())),
                    count => filled += count,
                }
            }
            bytes.extend_from_slice(&data);
            Ok(())
        })
    }

    fn list(&self, path: &str) -> Result<Vec<String>, FsError> {
        let (path, metadata) = self.resolve(path)?.ok_or(FsError::NotFound)?;
        if !metadata.is_dir() {
            return Err(FsError::NotFound);
        }
        guarded(|| {
            let path = Path::try_from(path.as_slice()).map_err(|_| FsError::NotFound)?;
            let mut names = Vec::new();
            for entry in self.fs.read_dir(path).map_err(convert)?.take(MAX_NAMES) {
                let name = entry.map_err(convert)?.file_name().display().to_string();
                if name != "." && name != ".." {
                    names.push(name);
                }
            }
            Ok(names)
        })
    }
}

fn convert(error: Ext4Error) -> FsError {
    match error {
        Ext4Error::NotFound | Ext4Error::NotADirectory => FsError::NotFound,
        Ext4Error::IsADirectory | Ext4Error::IsASpecialFile => FsError::NotAFile,
        Ext4Error::Incompatible(why) => FsError::Unsupported(why.to_string()),
        Ext4Error::Corrupt(why) => FsError::Corrupt(why.to_string()),
        Ext4Error::Io(why) => FsError::Io(io::Error::other(why.to_string())),
        other => FsError::Unsupported(other.to_string()),
    }
}
