//! ext2, ext3 and ext4, read only, with the journal replayed in memory.
//!
//! Written for disks that are not trusted: every number is compared with the file system's size, the
//! file system's with the partition's, and all work is charged to the budget. What GRUB and Linux
//! read is read, except for inline data and encrypted files; checksums of metadata are checked as
//! Linux does.

mod directory;
mod geometry;
mod inode;
mod journal;
mod map;
mod source;

#[cfg(test)]
mod ext4_test;

use std::fmt::Write as _;
use std::ops::ControlFlow;

use super::fs::{FsError, Kind, MAX_NAMES, Volume};
use super::window::Window;
use geometry::{Geometry, SUPERBLOCK, SUPERBLOCK_LEN};
use inode::{Inode, ROOT};
use journal::Overlay;
use map::Map;
use source::Source;

/// Maximum number of symbolic links followed for one path, and maximum bytes of one, as in Linux.
const MAX_LINKS: u32 = 40;
const MAX_LINK_LEN: u64 = 4096;
/// Maximum number of components of a path, including those of symbolic links.
const MAX_COMPONENTS: u32 = 400;

/// An ext4 file system.
pub(super) struct Ext4Volume {
    source: Source,
    geometry: Geometry,
}

impl Ext4Volume {
    /// Opens the file system on `window`, with its journal replayed in memory.
    ///
    /// # Errors
    /// It is damaged, or has unsupported features.
    pub(super) fn open(window: Window) -> Result<Self, FsError> {
        let mut superblock = vec![0; SUPERBLOCK_LEN];
        window.read(SUPERBLOCK, &mut superblock)?;
        let mut geometry = Geometry::check(&superblock, window.len())?;
        let mut source = Source {
            disk: window,
            overlay: Overlay::default(),
        };
        if let Some(number) = geometry.journal {
            let _replaying = tracing::debug_span!("journal").entered();
            if number == 0 {
                return Err(FsError::Unsupported(
                    "its journal is on another device, and has to be replayed".into(),
                ));
            }
            let inode = Inode::read(&source, &geometry, number)?;
            let map = Map::read(&source, &geometry, &inode)?;
            source.overlay = journal::replay(&source.disk, geometry.block_size as usize, &map)?;
            // The journal may hold a newer superblock; the kernel would use that one.
            source.read(SUPERBLOCK, &mut superblock)?;
            geometry = Geometry::check(&superblock, source.disk.len())?;
            tracing::info!(
                blocks = source.overlay.len(),
                "replayed an ext4 journal in memory"
            );
        }
        let volume = Self { source, geometry };
        // What has no root directory is no use.
        if !volume.inode(ROOT)?.is_directory() {
            return Err(FsError::Corrupt("its root is not a directory".into()));
        }
        Ok(volume)
    }

    fn inode(&self, number: u32) -> Result<Inode, FsError> {
        Inode::read(&self.source, &self.geometry, number)
    }

    /// The inode at `path`, with symbolic links followed; `None` if it does not exist.
    fn resolve(&self, path: &str) -> Result<Option<Inode>, FsError> {
        let mut pending = split(path.as_bytes());
        pending.reverse();
        // The directories above, and what the path leads to so far.
        let mut above = Vec::new();
        let mut current = self.inode(ROOT)?;
        let (mut links, mut steps) = (0, 0);
        while let Some(component) = pending.pop() {
            steps += 1;
            if steps > MAX_COMPONENTS {
                return Err(FsError::Unsupported(
                    "its path has too many components".into(),
                ));
            }
            if !current.is_directory() {
                return Ok(None);
            }
            if component == b".." {
                current = above.pop().unwrap_or(current);
                continue;
            }
            let Some(number) = self.look_up(&current, &component)? else {
                return Ok(None);
            };
            let found = self.inode(number)?;
            if found.is_link() {
                links += 1;
                if links > MAX_LINKS || found.size > MAX_LINK_LEN {
                    return Err(FsError::Unsupported(
                        "its symbolic links are too many or too long".into(),
                    ));
                }
                let target = self.target(&found)?;
                if target.starts_with(b"/") {
                    current = above.into_iter().next().unwrap_or(current);
                    above = Vec::new();
                }
                pending.extend(split(&target).into_iter().rev());
            } else {
                above.push(std::mem::replace(&mut current, found));
            }
        }
        Ok(Some(current))
    }

    fn target(&self, link: &Inode) -> Result<Vec<u8>, FsError> {
        if let Some(target) = link.short_target() {
            return Ok(target.to_vec());
        }
        let map = Map::read(&self.source, &self.geometry, link)?;
        let mut target = Vec::new();
        map.append(&self.source, &self.geometry, link.size, &mut target)?;
        Ok(target)
    }

    fn look_up(&self, directory: &Inode, wanted: &[u8]) -> Result<Option<u32>, FsError> {
        self.entries(directory, |name, inode| {
            Ok(if name == wanted {
                ControlFlow::Break(inode)
            } else {
                ControlFlow::Continue(())
            })
        })
    }

    fn entries<T>(
        &self,
        directory: &Inode,
        visit: impl FnMut(&[u8], u32) -> Result<ControlFlow<T>, FsError>,
    ) -> Result<Option<T>, FsError> {
        directory::entries(&self.source, &self.geometry, directory, visit)
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
        let mut text = String::new();
        for (index, byte) in self.geometry.uuid.iter().enumerate() {
            if matches!(index, 4 | 6 | 8 | 10) {
                text.push('-');
            }
            // Writing to a string does not fail.
            let _ = write!(text, "{byte:02x}");
        }
        Some(text)
    }

    fn label(&self) -> Option<String> {
        let label = self.geometry.label.split(|byte| *byte == 0).next()?;
        let label = String::from_utf8(label.to_vec()).ok()?;
        Some(label).filter(|label| !label.is_empty())
    }

    fn kind_name(&self) -> &'static str {
        "ext2"
    }

    fn kind(&self, path: &str) -> Result<Option<Kind>, FsError> {
        Ok(self.resolve(path)?.map(|inode| {
            if inode.is_file() {
                Kind::File(inode.size)
            } else if inode.is_directory() {
                Kind::Directory
            } else {
                Kind::Other
            }
        }))
    }

    fn read(&self, path: &str, limit: u64, bytes: &mut Vec<u8>) -> Result<(), FsError> {
        let inode = self.resolve(path)?.ok_or(FsError::NotFound)?;
        if !inode.is_file() {
            return Err(FsError::NotAFile);
        }
        if inode.size > limit {
            return Err(FsError::TooLarge {
                size: inode.size,
                limit,
            });
        }
        let map = Map::read(&self.source, &self.geometry, &inode)?;
        map.append(&self.source, &self.geometry, inode.size, bytes)
    }

    fn head(&self, path: &str, most: usize) -> Result<Vec<u8>, FsError> {
        let inode = self.resolve(path)?.ok_or(FsError::NotFound)?;
        if !inode.is_file() {
            return Err(FsError::NotAFile);
        }
        let map = Map::read(&self.source, &self.geometry, &inode)?;
        let mut bytes = Vec::new();
        let size = inode.size.min(most as u64);
        map.append(&self.source, &self.geometry, size, &mut bytes)?;
        Ok(bytes)
    }

    fn modified(&self, path: &str) -> Result<Option<i64>, FsError> {
        let inode = self.resolve(path)?;
        Ok(inode.map(|inode| inode.modified.into()))
    }

    fn list(&self, path: &str) -> Result<Vec<String>, FsError> {
        let inode = self.resolve(path)?.ok_or(FsError::NotFound)?;
        if !inode.is_directory() {
            return Err(FsError::NotFound);
        }
        let mut names = Vec::new();
        self.entries(&inode, |name, _| {
            if name != b"." && name != b".." {
                names.push(String::from_utf8_lossy(name).into_owned());
            }
            Ok(if names.len() < MAX_NAMES {
                ControlFlow::Continue(())
            } else {
                ControlFlow::Break(())
            })
        })?;
        Ok(names)
    }
}
