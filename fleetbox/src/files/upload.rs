//! Copying from this host to a guest.

use std::path::Path;

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use tokio::io::AsyncRead;

use super::meter::Meter;
use super::sftp::{Handle, Sftp, attributes, with_mode};
use super::walk::{Entry, Tree};
use super::{CopySummary, FileOptions, FilesError, FilesError::Path as BadPath, host};

/// Number of files that are copied at the same time. With small files most of the time is spent
/// waiting for answers.
pub(crate) const FILES_AT_ONCE: usize = 8;

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
        Some(directory) => match source.file_name().and_then(|name| name.to_str()) {
            Some(name) => format!("{directory}/{name}"),
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
    };
    copy.tree(tree).await?;
    Ok(meter.copied())
}

struct Copy<'a> {
    sftp: &'a Sftp,
    target: String,
    meter: &'a Meter,
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
        for directory in tree.directories {
            let path = self.path(&directory);
            if self.sftp.make_directory(&path, directory.mode).await? {
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
            running.push(self.file(entry));
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

    async fn file(&self, entry: Entry) -> Result<(), FilesError> {
        let mut source = tokio::fs::File::open(&entry.path)
            .await
            .map_err(host("open", &entry.path))?;
        let path = self.path(&entry);
        let handle = self.sftp.open_to_write(&path, entry.mode | 0o200).await?;
        let failed = |error| host("read", &entry.path)(error);
        let written = self
            .sftp
            .write_from(&handle, &entry.relative, &mut source, failed, self.meter)
            .await;
        let result = match written {
            Ok(()) => {
                let attributes = attributes(entry.mode, entry.mtime);
                self.sftp.set_open(&handle, &path, attributes).await
            }
            Err(error) => Err(at(error, &path)),
        };
        close(self.sftp, handle, &path, result).await?;
        self.meter.file(&entry.relative);
        Ok(())
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
    mut bytes: impl AsyncRead + Unpin,
    options: &FileOptions,
    total: u64,
) -> Result<(), FilesError> {
    let meter = Meter::new(options.progress.clone(), Some(total), u64::MAX);
    let handle = sftp
        .open_to_write(path, options.mode.unwrap_or(0o644))
        .await?;
    // Reading from memory cannot fail.
    let failed = |error| host("read", "")(error);
    let written = sftp
        .write_from(&handle, path, &mut bytes, failed, &meter)
        .await;
    let result = match (written, options.mode) {
        (Ok(()), Some(mode)) => sftp.set_open(&handle, path, with_mode(Some(mode))).await,
        (written, _) => written,
    };
    close(sftp, handle, path, result).await?;
    meter.file(path);
    Ok(())
}
