//! Archives on their way to and from a guest, between threads that block and streams that do not.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, symlink};
use std::path::{Component, Path, PathBuf};

use tar::{Archive, Builder, EntryType, Header};
use tokio::sync::mpsc;

use super::WorkspaceError;

/// Bytes that are handed on at once.
const CHUNK: usize = 128 << 10;
/// Chunks between the threads.
pub(super) const QUEUE: usize = 8;

/// Most bytes of a guest's tree, and most entries.
const FETCH_LIMIT: u64 = 16 << 30;
const FETCH_ENTRIES: usize = 2_000_000;

/// The writing end of a pipe from a thread that blocks.
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

/// The reading end of a pipe to a thread that blocks.
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
        // Deleted since it was listed.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(WorkspaceError::io("look at", path)(error)),
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
        // A file that shrinks meanwhile must not shift what follows.
        let content = file.chain(io::repeat(0)).take(metadata.len());
        builder.append_data(&mut header, name, content)
    };
    sent.map_err(WorkspaceError::io("ship", path))
}

/// Writes a guest's tree into `dir`, which is empty and nobody else's. Nothing is written outside
/// of it: links are made last, so that no path leads through one. Entries of git's own directories,
/// and what is no file, directory or link, are passed over.
pub(super) fn extract(from: impl Read, dir: &Path) -> Result<(), String> {
    let mut archive = Archive::new(from);
    let mut links: BTreeMap<PathBuf, PathBuf> = BTreeMap::new();
    let mut bytes = 0_u64;
    for (count, entry) in archive.entries().map_err(text)?.enumerate() {
        let mut entry = entry.map_err(text)?;
        if count >= FETCH_ENTRIES {
            return Err(format!("it has more than {FETCH_ENTRIES} entries"));
        }
        let path = match relative(&entry.path().map_err(text)?)? {
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
                    .map_err(|error| format!("{}: {error}", path.display()))?;
                io::copy(&mut entry, &mut file).map_err(text)?;
            }
            EntryType::Symlink => {
                if let Some(to) = entry.link_name().map_err(text)? {
                    links.insert(path, to.into_owned());
                }
            }
            EntryType::Link => {
                // A second name of a file that came before.
                let Some(to) = entry.link_name().map_err(text)? else {
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
    // Those that are deepest first: none is made through another, whatever the file system takes
    // for the same name.
    let mut links: Vec<_> = links.into_iter().collect();
    links.sort_by_key(|(path, _)| std::cmp::Reverse(path.components().count()));
    for (path, to) in &links {
        let target = dir.join(path);
        if let Some(parent) = target.parent() {
            fs::create_dir_all(parent).map_err(text)?;
        }
        symlink(to, &target).map_err(|error| format!("{}: {error}", path.display()))?;
    }
    Ok(())
}

fn text(error: io::Error) -> String {
    crate::process::printable(error.to_string().as_bytes())
}

/// A path inside of the tree; `None` for the tree itself and for what is git's.
fn relative(path: &Path) -> Result<Option<PathBuf>, String> {
    let mut clean = PathBuf::new();
    for part in path.components() {
        match part {
            Component::CurDir => {}
            Component::Normal(name) if name.eq_ignore_ascii_case(".git") => return Ok(None),
            Component::Normal(name) => clean.push(name),
            _ => {
                let path = crate::process::printable(path.display().to_string().as_bytes());
                return Err(format!("{path} is outside of it"));
            }
        }
    }
    Ok((!clean.as_os_str().is_empty()).then_some(clean))
}
