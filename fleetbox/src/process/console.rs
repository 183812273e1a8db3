//! The end of a machine's console output, for errors and for users.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::sync::broadcast;

use crate::util::fs::remove_file_if_there;
use crate::util::text::printable;

/// Bytes kept in memory.
const KEPT: usize = 32 * 1024;

/// Pieces of output, one frame each, that may wait for a follower of the console. A slower follower
/// misses some.
const LIVE: usize = 256;

/// Size in bytes at which a log file is renamed to `NAME.1` and a new one started.
const LOG_LIMIT: u64 = 4 << 20;

/// Keeps the end of a console's output in memory, and writes all of it to a log of bounded size.
pub(crate) struct Console {
    recent: VecDeque<u8>,
    log: Option<Log>,
    live: broadcast::Sender<Arc<[u8]>>,
}

struct Log {
    file: File,
    path: PathBuf,
    len: u64,
}

impl Console {
    /// Creates a console whose output also goes to the file `log`, which is emptied first.
    ///
    /// # Errors
    /// The file cannot be created, or the log of an earlier run cannot be removed.
    pub(crate) fn with_log(log: &Path) -> io::Result<Self> {
        remove_file_if_there(&full(log))?;
        Ok(Self {
            recent: VecDeque::new(),
            log: Some(Log::open(log)?),
            live: broadcast::Sender::new(LIVE),
        })
    }

    /// Adds output. If the log cannot be written, logging stops; the output in memory is kept.
    pub(crate) fn append(&mut self, bytes: &[u8]) {
        let bytes_kept = &bytes[bytes.len().saturating_sub(KEPT)..];
        let excess = (self.recent.len() + bytes_kept.len()).saturating_sub(KEPT);
        self.recent.drain(..excess);
        self.recent.extend(bytes_kept);
        if self.live.receiver_count() > 0 {
            // The last receiver may have gone in this moment; then the output is not needed.
            let _ = self.live.send(bytes.into());
        }
        if let Some(log) = &mut self.log
            && let Err(error) = log.write(bytes)
        {
            tracing::warn!(path = %log.path.display(), %error, "cannot write the console log; it ends here");
            self.log = None;
        }
    }

    /// The end of the output as raw bytes, and a receiver for everything after it.
    pub(crate) fn follow(&self) -> (Vec<u8>, broadcast::Receiver<Arc<[u8]>>) {
        (self.raw(), self.live.subscribe())
    }

    fn raw(&self) -> Vec<u8> {
        let (front, back) = self.recent.as_slices();
        [front, back].concat()
    }

    /// The end of the output as text that is safe on a terminal.
    pub(crate) fn tail(&self) -> String {
        printable(&self.raw())
    }
}

impl Log {
    fn open(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(path)?;
        Ok(Self {
            file,
            path: path.to_owned(),
            len: 0,
        })
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.len > LOG_LIMIT {
            std::fs::rename(&self.path, full(&self.path))?;
            *self = Self::open(&self.path)?;
        }
        self.file.write_all(bytes)?;
        self.len += bytes.len() as u64;
        Ok(())
    }
}

/// The name of a log once it is full.
fn full(log: &Path) -> PathBuf {
    let mut name = log.to_owned().into_os_string();
    name.push(".1");
    name.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::wire::MAX_PAYLOAD;
    use crate::util::text::last_lines;

    #[test]
    fn only_the_end_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let mut console = Console::with_log(&dir.path().join("console.log")).unwrap();
        console.append(&vec![b'a'; KEPT]);
        console.append(b"\nthe end\n");
        assert_eq!(console.tail().len(), KEPT);
        assert_eq!(last_lines(&console.tail(), 1), "the end");
        console.append(&vec![b'b'; 3 * KEPT]);
        assert_eq!(console.tail(), "b".repeat(KEPT));
        let log = std::fs::read(dir.path().join("console.log")).unwrap();
        assert_eq!(log.len(), 4 * KEPT + 9);
    }

    #[test]
    fn a_log_is_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console.log");
        let mut console = Console::with_log(&path).unwrap();
        // The longest frame that a machine process sends.
        let output = vec![b'x'; MAX_PAYLOAD];
        for _ in 0..100 {
            console.append(&output);
        }
        let entries = std::fs::read_dir(dir.path()).unwrap().flatten();
        let mut files: Vec<_> = entries
            .map(|entry| (entry.file_name(), entry.metadata().unwrap().len()))
            .collect();
        files.sort();
        let names: Vec<_> = files.iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["console.log", "console.log.1"]);
        let most = LOG_LIMIT + MAX_PAYLOAD as u64;
        assert!(files.iter().all(|(_, len)| *len <= most), "{files:?}");
    }

    #[test]
    fn a_log_is_that_of_one_run() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console.log");
        std::fs::write(&path, "earlier").unwrap();
        std::fs::write(dir.path().join("console.log.1"), "earlier still").unwrap();
        let mut console = Console::with_log(&path).unwrap();
        console.append(b"now");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "now");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
