//! Archives to and from a guest, piped between blocking threads and asynchronous streams.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, symlink};
use std::path::{Component, Path, PathBuf};

use tar::{Archive, Builder, Entry, EntryType, Header, PaxExtensions};
use tokio::sync::mpsc;

use super::WorkspaceError;
use crate::util::text::printable;

/// Bytes of one chunk.
const CHUNK: usize = 128 << 10;
/// Chunks in the channel between the threads.
pub(super) const QUEUE: usize = 8;

/// Maximum bytes of a guest's tree, and maximum number of entries.
const FETCH_LIMIT: u64 = 16 << 30;
const FETCH_ENTRIES: usize = 2_000_000;
/// Maximum bytes of an extension header, which holds a long path or attributes of the next entry.
const EXTENSION_LIMIT: u64 = 64 << 10;

/// The writing end of a pipe, for a blocking thread.
pub(super) struct Sender {
    queue: mpsc::Sender<Vec<u8>>,
    buffer: Vec<u8>,
}

impl Sender {
    pub(super) fn new(queue: mpsc::Sender<Vec<u8>>) -> Self {
        Self {
            queue,
            buffer: Vec::with_capacity(CHUNK),
        }
    }
}

impl Write for Sender {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() >= CHUNK {
            self.flush()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        let full = std::mem::replace(&mut self.buffer, Vec::with_capacity(CHUNK));
        if full.is_empty() {
            return Ok(());
        }
        self.queue
            .blocking_send(full)
            .map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

/// The reading end of a pipe, for a blocking thread.
pub(super) struct Receiver {
    queue: mpsc::Receiver<Vec<u8>>,
    chunk: Vec<u8>,
    position: usize,
}

impl Receiver {
    pub(super) fn new(queue: mpsc::Receiver<Vec<u8>>) -> Self {
        Self {
            queue,
            chunk: Vec::new(),
            position: 0,
        }
    }
}

impl Read for Receiver {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        while self.position >= self.chunk.len() {
            match self.queue.blocking_recv() {
                Some(chunk) => {
                    self.chunk = chunk;
                    self.position = 0;
                }
                None => return Ok(0),
            }
        }
        let mut rest = self.chunk.get(self.position..).unwrap_or_default();
        let n = rest.read(bytes)?;
        self.position += n;
        Ok(n)
    }
}

/// Appends `path` of the host as `name`: a file, directory or link.
pub(super) fn append(
    builder: &mut Builder<Sender>,
    path: &Path,
    name: &Path,
) -> Result<(), WorkspaceError> {
    let metadata = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        // It was deleted after it was listed.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(WorkspaceError::io("inspect", path)(error)),
    };
    let mut header = Header::new_gnu();
    header.set_mode(metadata.mode() & 0o777);
    header.set_mtime(u64::try_from(metadata.mtime()).unwrap_or(0));
    header.set_uid(0);
    header.set_gid(0);
    let sent = if metadata.is_symlink() {
        let target = fs::read_link(path).map_err(WorkspaceError::io("read", path))?;
        header.set_entry_type(EntryType::Symlink);
        header.set_size(0);
        builder.append_link(&mut header, name, target)
    } else if metadata.is_dir() {
        header.set_entry_type(EntryType::Directory);
        header.set_size(0);
        builder.append_data(&mut header, name, io::empty())
    } else {
        let file = File::open(path).map_err(WorkspaceError::io("read", path))?;
        header.set_entry_type(EntryType::Regular);
        header.set_size(metadata.len());
        // A file that shrinks in the meantime must not shift the next entries.
        let content = file.chain(io::repeat(0)).take(metadata.len());
        builder.append_data(&mut header, name, content)
    };
    sent.map_err(WorkspaceError::io("copy", path))
}

/// Writes a guest's tree into `dir`, which must be empty and used by no one else. Nothing is
/// written outside it: links are created last, so no path can lead through one. Git's own
/// directories, and entries that are not files, directories or links, are skipped.
pub(super) fn extract(from: impl Read, dir: &Path) -> Result<(), String> {
    let mut archive = Archive::new(from);
    let mut links: BTreeMap<PathBuf, PathBuf> = BTreeMap::new();
    let mut bytes = 0_u64;
    let mut extensions = Extensions::default();
    // Read raw entries: the library would read extension headers of any size into memory.
    for (count, entry) in archive.entries().map_err(text)?.raw(true).enumerate() {
        let mut entry = entry.map_err(text)?;
        if count >= FETCH_ENTRIES {
            return Err(format!("it has more than {FETCH_ENTRIES} entries"));
        }
        if extensions.read(&mut entry)? {
            continue;
        }
        let Extensions { path, link } = std::mem::take(&mut extensions);
        let path = path.unwrap_or_else(|| entry.path_bytes().into_owned());
        let link = link.or_else(|| entry.link_name_bytes().map(Cow::into_owned));
        let link = link.map(|link| PathBuf::from(OsString::from_vec(link)));
        let path = match relative(Path::new(OsStr::from_bytes(&path)))? {
            Some(path) => path,
            None => continue,
        };
        let target = dir.join(&path);
        match entry.header().entry_type() {
            EntryType::Directory => fs::create_dir_all(&target).map_err(text)?,
            EntryType::Regular | EntryType::Continuous => {
                bytes = bytes.saturating_add(entry.size());
                if bytes > FETCH_LIMIT {
                    return Err(format!("it has more than {FETCH_LIMIT} bytes"));
                }
                if let Some(parent) = target.parent() {
                    fs::create_dir_all(parent).map_err(text)?;
                }
                let executable = entry.header().mode().is_ok_and(|mode| mode & 0o100 != 0);
                let mut file = OpenOptions::new()
                    .write(true)
                    .create_new(true)
                    .mode(if executable { 0o700 } else { 0o600 })
                    .open(&target)
                    .map_err(with_path(&path))?;
                io::copy(&mut entry, &mut file).map_err(text)?;
            }
            EntryType::Symlink => {
                if let Some(to) = link {
                    links.insert(path, to);
                }
            }
            EntryType::Link => {
                // A hard link to an earlier file.
                let Some(to) = link else {
                    continue;
                };
                if let Some(to) = relative(&to)?
                    && dir.join(&to).is_file()
                {
                    if let Some(parent) = target.parent() {
                        fs::create_dir_all(parent).map_err(text)?;
                    }
                    fs::hard_link(dir.join(&to), &target).map_err(text)?;
                } else if let Some(to) = links.get(&to.components().collect::<PathBuf>()) {
                    let to = to.clone();
                    links.insert(path, to);
                }
            }
            _ => {}
        }
    }
    // Create the deepest links first. So no link is created through another one, even if the file
    // system treats different names as the same.
    let mut links: Vec<_> = links.into_iter().collect();
    links.sort_by_key(|(path, _)| std::cmp::Reverse(path.components().count()));
    for (path, to) in &links {
        let target = dir.join(path);
        if let Some(parent) = target.parent() {
            fs::create_dir_all(parent).map_err(text)?;
        }
        symlink(to, &target).map_err(with_path(path))?;
    }
    Ok(())
}

/// The extension headers for the next entry of an archive.
#[derive(Default)]
struct Extensions {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
}

impl Extensions {
    /// Reads an extension header; false for any other entry.
    ///
    /// Sources: GNU tar manual, "Basic Tar Format" (types `L` and `K`); POSIX.1-2017, pax, "pax
    /// Extended Header" (`x` and `g`).
    fn read(&mut self, entry: &mut Entry<'_, impl Read>) -> Result<bool, String> {
        let kind = entry.header().entry_type();
        if !matches!(
            kind,
            EntryType::GNULongName
                | EntryType::GNULongLink
                | EntryType::XHeader
                | EntryType::XGlobalHeader
        ) {
            return Ok(false);
        }
        if entry.size() > EXTENSION_LIMIT {
            return Err(format!("it has a header of {} bytes", entry.size()));
        }
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).map_err(text)?;
        match kind {
            EntryType::XHeader => {
                for extension in PaxExtensions::new(&bytes) {
                    let extension = extension.map_err(text)?;
                    let value = extension.value_bytes().to_vec();
                    match extension.key_bytes() {
                        b"path" => self.path = Some(value),
                        b"linkpath" => self.link = Some(value),
                        b"size" => return Err("it has a size in an extended header".to_owned()),
                        _ => {}
                    }
                }
            }
            EntryType::XGlobalHeader => {}
            _ => {
                let end = bytes.iter().position(|byte| *byte == 0);
                bytes.truncate(end.unwrap_or(bytes.len()));
                if kind == EntryType::GNULongName {
                    self.path = Some(bytes);
                } else {
                    self.link = Some(bytes);
                }
            }
        }
        Ok(true)
    }
}

/// Adds the path in the archive to an error.
fn with_path(path: &Path) -> impl FnOnce(io::Error) -> String {
    move |error| printable(format!("{}: {error}", path.display()).as_bytes())
}

fn text(error: io::Error) -> String {
    printable(error.to_string().as_bytes())
}

/// A path inside the tree; `None` for the tree itself and for git's own files.
fn relative(path: &Path) -> Result<Option<PathBuf>, String> {
    let mut clean = PathBuf::new();
    for part in path.components() {
        match part {
            Component::CurDir => {}
            Component::Normal(name) if name.eq_ignore_ascii_case(".git") => return Ok(None),
            Component::Normal(name) => clean.push(name),
            _ => {
                let path = printable(path.display().to_string().as_bytes());
                return Err(format!("{path} is outside the tree"));
            }
        }
    }
    Ok((!clean.as_os_str().is_empty()).then_some(clean))
}
