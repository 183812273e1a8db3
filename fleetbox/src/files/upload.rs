//! Copying from this host to a guest.

use std::collections::HashSet;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use russh_sftp::protocol::FileAttributes;

use super::hostdir::temporary_name;
use super::meter::Meter;
use super::names;
use super::sftp::{Handle, Kind, Sftp, attributes, with_mode};
use super::sparse::{Source, SparseSource};
use super::walk::{Entry, Tree};
use super::{CopySummary, FileOptions, FilesError, FilesError::Path as BadPath, GuestReason, host};
use crate::util::sync::lock;

/// Number of files that are copied at the same time. With small files most of the time is spent
/// waiting for answers.
pub(crate) const FILES_AT_ONCE: usize = 8;

/// How long removing unfinished files may take.
const REMOVAL: Duration = Duration::from_secs(10);

/// Copies a file or a tree.
pub(crate) async fn copy(
    sftp: &Sftp,
    source: &Path,
    target: &str,
    tree: Tree,
    options: &FileOptions,
) -> Result<CopySummary, FilesError> {
    let meter = Meter::new(options.progress.clone(), Some(tree.bytes), u64::MAX);
    let target = match target.strip_suffix('/') {
        Some(directory) => match source.file_name() {
            Some(name) => format!("{directory}/{}", names::to_text(name.as_bytes())),
            None => {
                return Err(BadPath {
                    path: source.display().to_string(),
                    why: "it does not end in a name for the copy; give the full path of the copy",
                });
            }
        },
        None => target.to_owned(),
    };
    let copy = Copy {
        sftp,
        target,
        meter: &meter,
        unfinished: Mutex::default(),
    };
    let result = tokio::select! {
        biased;
        () = options.stopped() => Err(FilesError::Stopped),
        result = copy.tree(tree) => result,
    };
    if result.is_err() {
        copy.remove_unfinished().await;
    }
    result?;
    Ok(meter.copied())
}

struct Copy<'a> {
    sftp: &'a Sftp,
    target: String,
    meter: &'a Meter,
    /// Files in the guest that do not have their names yet.
    unfinished: Mutex<HashSet<String>>,
}

/// Where a file is written.
enum Place {
    /// To another name at first. The file that it replaces has these attributes.
    Beside {
        path: String,
        replaced: Option<FileAttributes>,
    },
    /// To the file itself: a device, or a link that leads nowhere.
    Itself,
}

impl Copy<'_> {
    fn path(&self, entry: &Entry) -> String {
        match entry.relative.as_str() {
            "" => self.target.clone(),
            relative => format!("{}/{relative}", self.target),
        }
    }

    async fn tree(&self, tree: Tree) -> Result<(), FilesError> {
        let mut made = Vec::new();
        let mut empty = HashSet::new();
        for directory in tree.directories {
            let path = self.path(&directory);
            if self.sftp.make_directory(&path, directory.mode).await? {
                empty.insert(directory.relative.clone());
                made.push((path, directory));
            }
            self.meter.directory();
        }
        let mut running = FuturesUnordered::new();
        for entry in tree.files {
            if running.len() >= FILES_AT_ONCE
                && let Some(result) = running.next().await
            {
                let result: Result<(), FilesError> = result;
                result?;
            }
            let parent = entry.relative.rsplit_once('/').map_or("", |parts| parts.0);
            let is_new = empty.contains(parent);
            running.push(self.file(entry, is_new));
        }
        while let Some(result) = running.next().await {
            result?;
        }
        for (entry, target) in tree.links {
            self.sftp.link(&self.path(&entry), &target).await?;
            self.meter.link();
        }
        // Set mode and time of directories last: writing into a directory changes its time, and its
        // mode may forbid writing.
        for (path, directory) in made.iter().rev() {
            let attributes = attributes(directory.mode, directory.mtime);
            self.sftp.set(path, attributes).await?;
        }
        Ok(())
    }

    /// Copies a file. `is_new` means that its directory is, so that it replaces nothing.
    async fn file(&self, entry: Entry, is_new: bool) -> Result<(), FilesError> {
        let source = tokio::fs::File::open(&entry.path)
            .await
            .map_err(host("open", &entry.path))?;
        let mut source = Source::File(SparseSource::new(source.into_std().await));
        let path = self.path(&entry);
        let place = if is_new {
            Place::Beside {
                path: path.clone(),
                replaced: None,
            }
        } else {
            self.place(&path).await
        };
        if let Place::Beside { path, replaced } = place
            && let Some((temporary, handle)) = self.create_beside(&path).await?
        {
            self.fill(handle, &path, &mut source, &entry, replaced)
                .await?;
            self.sftp.rename(&temporary, &path).await?;
            lock(&self.unfinished).remove(&temporary);
        } else {
            // Also where files cannot be created, but may exist: in /proc, or a directory of another user.
            let handle = self.sftp.open_to_write(&path, entry.mode | 0o200).await?;
            self.fill(handle, &path, &mut source, &entry, None).await?;
        }
        self.meter.file(&entry.relative);
        Ok(())
    }

    /// Where to write a file that may exist. Links are followed, as by `cp`.
    async fn place(&self, path: &str) -> Place {
        let beside = |path: String, replaced| Place::Beside { path, replaced };
        match self.sftp.lstat(path).await {
            Ok(there) if Kind::of(&there) == Some(Kind::File) => {
                beside(path.to_owned(), Some(there))
            }
            Ok(there) if Kind::of(&there) == Some(Kind::Link) => {
                let Ok(path) = self.sftp.real_path(path).await else {
                    return Place::Itself;
                };
                match self.sftp.lstat(&path).await {
                    Ok(there) if Kind::of(&there) == Some(Kind::File) => beside(path, Some(there)),
                    _ => Place::Itself,
                }
            }
            Err(FilesError::Guest {
                why: GuestReason::NotFound,
                ..
            }) => beside(path.to_owned(), None),
            _ => Place::Itself,
        }
    }

    /// Creates a file in the directory of `path`; `None` if that is not possible.
    async fn create_beside(&self, path: &str) -> Result<Option<(String, Handle)>, FilesError> {
        let directory = path.rfind('/').and_then(|end| path.get(..=end));
        let temporary = format!("{}{}", directory.unwrap_or_default(), temporary_name());
        // Before it exists, so that it is removed whenever this ends.
        lock(&self.unfinished).insert(temporary.clone());
        if let Some(handle) = self.sftp.create(&temporary, 0o600).await? {
            return Ok(Some((temporary, handle)));
        }
        lock(&self.unfinished).remove(&temporary);
        Ok(None)
    }

    /// Writes an empty file, and closes it.
    async fn fill(
        &self,
        handle: Handle,
        path: &str,
        source: &mut Source<'_>,
        entry: &Entry,
        replaced: Option<FileAttributes>,
    ) -> Result<(), FilesError> {
        let failed = |error| host("read", &entry.path)(error);
        let written = self
            .sftp
            .write_from(&handle, &entry.relative, source, failed, self.meter)
            .await;
        let result = match written {
            Ok(size) => {
                if let Some(replaced) = replaced.filter(|a| a.uid.is_some()) {
                    let owner = FileAttributes {
                        uid: replaced.uid,
                        gid: replaced.gid,
                        ..FileAttributes::empty()
                    };
                    // Only root can keep another owner.
                    let _ = self.sftp.set_open(&handle, path, owner).await;
                }
                let attributes = FileAttributes {
                    size,
                    ..attributes(entry.mode, entry.mtime)
                };
                self.sftp.set_open(&handle, path, attributes).await
            }
            Err(error) => Err(at(error, path)),
        };
        close(self.sftp, handle, path, result).await
    }

    /// Removes what does not have its name yet. If the guest does not answer, it stays.
    async fn remove_unfinished(&self) {
        let unfinished = std::mem::take(&mut *lock(&self.unfinished));
        let removals = unfinished.iter().map(|path| self.sftp.remove(path));
        let all = futures::future::join_all(removals);
        // The copy's own error says more than an error of this.
        let _ = tokio::time::timeout(REMOVAL, all).await;
    }
}

/// Adds the file's full path in the guest to an error.
fn at(error: FilesError, whole: &str) -> FilesError {
    match error {
        FilesError::Guest { action, why, .. } => FilesError::Guest {
            action,
            path: super::shown(whole),
            why,
        },
        other => other,
    }
}

/// Closes a file. An earlier error takes precedence over one from closing.
async fn close(
    sftp: &Sftp,
    handle: Handle,
    path: &str,
    result: Result<(), FilesError>,
) -> Result<(), FilesError> {
    let closed = sftp.close(handle, path).await;
    result.and(closed)
}

/// Writes bytes to a file in the guest.
pub(crate) async fn write(
    sftp: &Sftp,
    path: &str,
    bytes: &[u8],
    options: &FileOptions,
) -> Result<(), FilesError> {
    let total = Some(bytes.len() as u64);
    let meter = Meter::new(options.progress.clone(), total, u64::MAX);
    let handle = sftp
        .open_to_write(path, options.mode.unwrap_or(0o644))
        .await?;
    // Reading from memory cannot fail.
    let failed = |error| host("read", "")(error);
    let written = sftp
        .write_from(&handle, path, &mut Source::Bytes(bytes), failed, &meter)
        .await
        .map(drop);
    let result = match (written, options.mode) {
        (Ok(()), Some(mode)) => sftp.set_open(&handle, path, with_mode(Some(mode))).await,
        (written, _) => written,
    };
    close(sftp, handle, path, result).await?;
    meter.file(path);
    Ok(())
}
