//! Listing a directory tree on this host.

use std::fs::{self, Metadata};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use super::{DEPTH_LIMIT, ENTRY_LIMIT, FilesError, Side, host, names};

/// A directory tree, or a single file, on this host.
#[derive(Debug, Default)]
pub(crate) struct Tree {
    /// Directories, each after its parent.
    pub(crate) directories: Vec<Entry>,
    pub(crate) files: Vec<Entry>,
    /// Symbolic links with their targets, as text of [`names`].
    pub(crate) links: Vec<(Entry, String)>,
    /// Total bytes of the files.
    pub(crate) bytes: u64,
}

/// An entry of a tree.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) path: PathBuf,
    /// Path relative to the tree, as text of [`names`]; empty for the tree itself.
    pub(crate) relative: String,
    pub(crate) mode: u32,
    /// Modification time, in seconds since 1970.
    pub(crate) mtime: i64,
}

impl Entry {
    fn new(path: PathBuf, relative: String, metadata: &Metadata) -> Self {
        Self {
            path,
            relative,
            mode: metadata.mode() & 0o7777,
            mtime: metadata.mtime(),
        }
    }
}

impl Tree {
    /// Lists a directory with everything in it, or a single file. This blocks.
    pub(crate) fn of(root: &Path) -> Result<Self, FilesError> {
        let metadata = fs::metadata(root).map_err(host("inspect", root))?;
        let mut tree = Self::default();
        let entry = Entry::new(root.to_owned(), String::new(), &metadata);
        if metadata.is_file() {
            tree.bytes = metadata.len();
            tree.files.push(entry);
            return Ok(tree);
        }
        if !metadata.is_dir() {
            return Err(special(root, &metadata));
        }
        let mut waiting = vec![(entry, 0)];
        while let Some((directory, depth)) = waiting.pop() {
            if depth > DEPTH_LIMIT {
                return Err(FilesError::TooDeep {
                    path: directory.path.display().to_string(),
                });
            }
            let list = host("list the directory", &directory.path);
            let entries: Vec<_> = fs::read_dir(&directory.path)
                .and_then(Iterator::collect)
                .map_err(list)?;
            for entry in entries {
                tree.add(&directory, depth, &entry, &mut waiting)?;
            }
            tree.directories.push(directory);
            if tree.directories.len() + tree.files.len() + tree.links.len() > ENTRY_LIMIT {
                return Err(FilesError::TooMany {
                    path: root.display().to_string(),
                });
            }
        }
        Ok(tree)
    }

    fn add(
        &mut self,
        directory: &Entry,
        depth: usize,
        entry: &fs::DirEntry,
        waiting: &mut Vec<(Entry, usize)>,
    ) -> Result<(), FilesError> {
        let path = entry.path();
        let name = names::to_text(entry.file_name().as_bytes());
        let relative = match directory.relative.as_str() {
            "" => name,
            parent => format!("{parent}/{name}"),
        };
        let metadata = entry.metadata().map_err(host("inspect", &path))?;
        let kind = metadata.file_type();
        if kind.is_symlink() {
            let target = fs::read_link(&path).map_err(host("read the link", &path))?;
            let target = names::to_text(target.as_os_str().as_bytes());
            self.links
                .push((Entry::new(path, relative, &metadata), target));
        } else if kind.is_dir() {
            waiting.push((Entry::new(path, relative, &metadata), depth + 1));
        } else if kind.is_file() {
            self.bytes = self.bytes.saturating_add(metadata.len());
            self.files.push(Entry::new(path, relative, &metadata));
        } else {
            return Err(special(&path, &metadata));
        }
        Ok(())
    }
}

fn special(path: &Path, metadata: &Metadata) -> FilesError {
    let kind = metadata.file_type();
    FilesError::Special {
        side: Side::Host,
        path: path.display().to_string(),
        kind: if kind.is_fifo() {
            "a named pipe"
        } else if kind.is_socket() {
            "a socket"
        } else if kind.is_block_device() {
            "a block device"
        } else {
            "a character device"
        },
    }
}
