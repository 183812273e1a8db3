//! Copying from a guest to this host. All answers of the guest are checked, and nothing is written
//! outside the destination.

use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::sync::Arc;

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use russh_sftp::protocol::FileAttributes;

use super::hostdir::{Draft, HostDir};
use super::meter::Meter;
use super::names;
use super::sftp::{Kind, Sftp};
use super::sparse::SparseSink;
use super::upload::FILES_AT_ONCE;
use super::{COPY_LIMIT, CopySummary, DEPTH_LIMIT, FileOptions, FilesError, READ_LIMIT, Side};
use super::{host, shown};

/// Reads a file into memory.
pub(crate) async fn read(
    sftp: &Sftp,
    path: &str,
    options: &FileOptions,
) -> Result<Vec<u8>, FilesError> {
    let limit = options.limit.unwrap_or(READ_LIMIT);
    let handle = sftp.open_to_read(path).await?;
    let attributes = sftp.attributes_of(&handle, path).await?;
    let meter = Meter::new(options.progress.clone(), attributes.size, limit);
    let mut bytes = Vec::new();
    let expected = attributes.size.unwrap_or(0);
    let failed = |error| host("store", "")(error);
    sftp.read_into(&handle, path, expected, &mut bytes, failed, &meter)
        .await?;
    sftp.close(handle, path).await?;
    meter.file(path);
    Ok(bytes)
}

/// Copies a file or a tree.
pub(crate) async fn copy(
    sftp: &Sftp,
    source: &str,
    target: &Path,
    options: &FileOptions,
) -> Result<CopySummary, FilesError> {
    // Follow a link that the user named.
    let attributes = sftp.stat(source).await?;
    let kind = Kind::of(&attributes);
    let total = attributes.size.filter(|_| kind == Some(Kind::File));
    let limit = options.limit.unwrap_or(COPY_LIMIT);
    let meter = Meter::new(options.progress.clone(), total, limit);
    let (parent, name) = destination(source, target)?;
    let parent = Arc::new(HostDir::open(&parent)?);
    let copy = Copy {
        sftp,
        root: source,
        meter: &meter,
    };
    let entry = Entry { name, attributes };
    let work = async {
        match kind {
            Some(Kind::Directory) => copy.tree(parent, entry).await,
            Some(Kind::Special(kind)) => Err(special(source, kind)),
            // A server that does not say will fail to open anything but a file.
            Some(Kind::File | Kind::Link) | None => {
                if target.is_dir() && !ends_in_slash(target) {
                    return Err(FilesError::Path {
                        path: target.display().to_string(),
                        why: "it is a directory; add '/' at its end to copy into it",
                    });
                }
                copy.file(&parent, source.to_owned(), entry).await
            }
        }
    };
    tokio::select! {
        biased;
        // What is not complete is removed when it is dropped.
        () = options.stopped() => return Err(FilesError::Stopped),
        done = work => done?,
    }
    Ok(meter.copied())
}

fn ends_in_slash(path: &Path) -> bool {
    path.as_os_str().as_bytes().ends_with(b"/")
}

/// The directory on this host that will contain the copy, and the copy's name in it.
fn destination(source: &str, target: &Path) -> Result<(std::path::PathBuf, String), FilesError> {
    if ends_in_slash(target) {
        let name = source.trim_end_matches('/').rsplit('/').next();
        return match name {
            Some(name) if !matches!(name, "" | "." | "..") => {
                Ok((target.to_owned(), name.to_owned()))
            }
            _ => Err(FilesError::Path {
                path: source.to_owned(),
                why: "it does not end in a name for the copy; give the full path of the copy",
            }),
        };
    }
    let text = |name: &std::ffi::OsStr| names::to_text(name.as_bytes());
    let (Some(name), Some(parent)) = (target.file_name(), target.parent()) else {
        // Such as "." or "/".
        let whole = target.canonicalize().map_err(host("inspect", target))?;
        return match (whole.parent(), whole.file_name()) {
            (Some(parent), Some(name)) => Ok((parent.to_owned(), text(name))),
            _ => Err(FilesError::Path {
                path: target.display().to_string(),
                why: "it does not end in a name for the copy",
            }),
        };
    };
    let parent = if parent.as_os_str().is_empty() {
        Path::new(".")
    } else {
        parent
    };
    Ok((parent.to_owned(), text(name)))
}

fn special(path: &str, kind: &'static str) -> FilesError {
    FilesError::Special {
        side: Side::Guest,
        path: shown(path),
        kind,
    }
}

struct Entry {
    name: String,
    attributes: FileAttributes,
}

/// A directory whose files were copied and whose subdirectories were not yet.
struct Frame {
    directory: Arc<HostDir>,
    path: String,
    directories: Vec<Entry>,
    /// Mode and time to set, for a directory that this copy created.
    finish: Option<(u32, Option<u32>)>,
}

struct Copy<'a> {
    sftp: &'a Sftp,
    root: &'a str,
    meter: &'a Meter,
}

impl Copy<'_> {
    async fn tree(&self, parent: Arc<HostDir>, root: Entry) -> Result<(), FilesError> {
        let mut frames = vec![self.frame(&parent, self.root.to_owned(), root).await?];
        while let Some(frame) = frames.last_mut() {
            let Some(entry) = frame.directories.pop() else {
                if let Some((mode, mtime)) = frame.finish {
                    frame.directory.finish(mode, mtime)?;
                }
                frames.pop();
                continue;
            };
            let path = join(&frame.path, &entry.name);
            let parent = Arc::clone(&frame.directory);
            if frames.len() > DEPTH_LIMIT {
                return Err(FilesError::TooDeep { path: shown(&path) });
            }
            let next = self.frame(&parent, path, entry).await?;
            frames.push(next);
        }
        Ok(())
    }

    /// Creates a directory, and copies the files in it.
    async fn frame(
        &self,
        parent: &HostDir,
        path: String,
        entry: Entry,
    ) -> Result<Frame, FilesError> {
        let (directory, made) = parent.directory(&entry.name)?;
        let finish = made.then(|| {
            let mode = entry.attributes.permissions.unwrap_or(0o755);
            (mode, entry.attributes.mtime)
        });
        self.fill(Arc::new(directory), path, finish).await
    }

    /// Copies the files and links of a directory.
    async fn fill(
        &self,
        directory: Arc<HostDir>,
        path: String,
        finish: Option<(u32, Option<u32>)>,
    ) -> Result<Frame, FilesError> {
        let entries = self.sftp.list(&path, self.meter).await?;
        self.meter.directory();
        let mut directories = Vec::new();
        let mut links = Vec::new();
        let mut running = FuturesUnordered::new();
        for (name, mut attributes) in entries {
            let whole = join(&path, &name);
            if Kind::of(&attributes).is_none() {
                attributes = self.sftp.lstat(&whole).await?;
            }
            let kind = Kind::of(&attributes);
            let entry = Entry { name, attributes };
            match kind {
                Some(Kind::Directory) => directories.push(entry),
                Some(Kind::Link) => links.push((whole, entry)),
                Some(Kind::Special(kind)) => return Err(special(&whole, kind)),
                Some(Kind::File) => {
                    if running.len() >= FILES_AT_ONCE
                        && let Some(result) = running.next().await
                    {
                        let result: Result<(), FilesError> = result;
                        result?;
                    }
                    running.push(self.file(&directory, whole, entry));
                }
                None => return Err(special(&whole, "of a kind that the guest does not reveal")),
            }
        }
        while let Some(result) = running.next().await {
            result?;
        }
        drop(running);
        for (whole, entry) in links {
            let target = self.sftp.link_target(&whole).await?;
            if target.is_empty() || target.contains('\0') {
                return Err(FilesError::Entry {
                    directory: shown(&path),
                    name: shown(&entry.name),
                    why: "is a link whose target is empty or has a zero byte",
                });
            }
            directory.link(&entry.name, &target)?;
            self.meter.link();
        }
        Ok(Frame {
            directory,
            path,
            directories,
            finish,
        })
    }

    async fn file(
        &self,
        directory: &Arc<HostDir>,
        path: String,
        entry: Entry,
    ) -> Result<(), FilesError> {
        let handle = self.sftp.open_to_read(&path).await?;
        let result = self.contents(directory, &path, &handle, &entry).await;
        let closed = self.sftp.close(handle, &path).await;
        result.and(closed)?;
        self.meter.file(self.relative(&path));
        Ok(())
    }

    async fn contents(
        &self,
        directory: &Arc<HostDir>,
        path: &str,
        handle: &super::sftp::Handle,
        entry: &Entry,
    ) -> Result<(), FilesError> {
        let (draft, file): (Draft, _) = directory.draft(&entry.name)?;
        let mut file = SparseSink::new(file);
        let expected = entry.attributes.size.unwrap_or(0);
        let whole = draft.path();
        let failed = |error| host("write", &whole)(error);
        self.sftp
            .read_into(handle, path, expected, &mut file, failed, self.meter)
            .await?;
        let file = file.finish().map_err(failed)?;
        let mode = entry.attributes.permissions.unwrap_or(0o644);
        draft.complete(file, mode, entry.attributes.mtime)
    }

    fn relative<'p>(&self, path: &'p str) -> &'p str {
        let relative = path.strip_prefix(self.root).unwrap_or(path);
        relative.trim_start_matches('/')
    }
}

fn join(directory: &str, name: &str) -> String {
    format!("{}/{name}", directory.trim_end_matches('/'))
}
