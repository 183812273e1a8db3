//! The log of what a guest wrote to its serial console.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use crate::error::Result;
use crate::store::{StoreError, VmDir};
use crate::util::text::{last_lines, printable};
use crate::vm::fleet::Fleet;

/// Maximum bytes that are read at once. A log is never larger (`docs/processes.md`).
const MOST: u64 = 8 << 20;

/// Maximum length of an escape sequence. Anything longer is not a real one.
const ESCAPE: usize = 256;

/// The console log of a VM, running or not.
///
/// Escape sequences and control characters are removed, so that a guest cannot drive the reader's
/// terminal.
///
/// ```no_run
/// # async fn example() -> fleetbox::Result<()> {
/// use fleetbox::Fleet;
///
/// let mut log = Fleet::new().console_log("web").await?;
/// print!("{}", log.existing(Some(10))?);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct ConsoleLog {
    vm: VmDir,
    open: Option<Open>,
    /// The last bytes read, if they may be an incomplete character or escape sequence.
    held: Vec<u8>,
}

#[derive(Debug)]
struct Open {
    file: File,
    inode: u64,
    position: u64,
}

impl Fleet {
    /// Opens the console log of the VM with this name, running or not.
    ///
    /// ```no_run
    /// # async fn example() -> fleetbox::Result<()> {
    /// use fleetbox::Fleet;
    ///
    /// let mut log = Fleet::new().console_log("web").await?; // running or not
    /// println!("{}", log.existing(Some(20))?);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// Those of [`Fleet::find`].
    pub async fn console_log(&self, name: &str) -> Result<ConsoleLog> {
        Ok(ConsoleLog::of(self.find(name).await?))
    }
}

impl ConsoleLog {
    /// The log in this directory of a VM.
    pub(crate) fn of(vm: VmDir) -> Self {
        Self {
            vm,
            open: None,
            held: Vec::new(),
        }
    }

    /// True while the VM runs.
    ///
    /// # Errors
    /// An error of the file system.
    pub fn is_running(&self) -> Result<bool> {
        Ok(self.vm.is_running()?)
    }

    /// Reads the log, or its last `lines`. [`ConsoleLog::next`] reads what is added later.
    ///
    /// # Errors
    /// An error of the file system.
    pub fn existing(&mut self, lines: Option<usize>) -> Result<String> {
        let mut bytes = Vec::new();
        let path = self.vm.paths().console_log();
        // Drop what came before the log was restarted.
        let mut old = path.clone().into_os_string();
        old.push(".1");
        if let Some(file) = open(Path::new(&old))? {
            file.take(MOST)
                .read_to_end(&mut bytes)
                .map_err(StoreError::io("read", Path::new(&old)))?;
        }
        let old = bytes.len();
        self.read(&mut bytes)?;
        let current = bytes.split_off(old);
        let current = self.hold(current, !self.vm.is_running()?);
        bytes.extend(current);
        let text = printable(&bytes);
        Ok(match lines {
            None => text,
            Some(0) => String::new(),
            Some(lines) => {
                let end = if text.ends_with('\n') { "\n" } else { "" };
                format!("{}{end}", last_lines(&text, lines))
            }
        })
    }

    /// Reads what was written since the last call. With `last`, an incomplete end is returned too.
    ///
    /// ```no_run
    /// # async fn example() -> fleetbox::Result<()> {
    /// use fleetbox::Fleet;
    ///
    /// let mut log = Fleet::new().console_log("web").await?;
    /// print!("{}", log.existing(None)?);
    /// loop {
    ///     let running = log.is_running()?;
    ///     print!("{}", log.next(!running)?);
    ///     if !running {
    ///         break;
    ///     }
    ///     tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    /// }
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// An error of the file system.
    pub fn next(&mut self, last: bool) -> Result<String> {
        let mut bytes = Vec::new();
        self.read(&mut bytes)?;
        // Nothing will follow the bytes that were held back, so return them.
        let last = last || bytes.is_empty();
        Ok(printable(&self.hold(bytes, last)))
    }

    /// Reads to the end of the file, then continues in the file that replaced it, if any.
    fn read(&mut self, bytes: &mut Vec<u8>) -> Result<()> {
        let path = self.vm.paths().console_log();
        // The log is restarted at each boot and when it is full: it is replaced by another file, or
        // truncated.
        for _ in 0..2 {
            if self.open.is_none() {
                let Some(file) = open(&path)? else {
                    return Ok(());
                };
                let inode = file
                    .metadata()
                    .map_err(StoreError::io("read", &path))?
                    .ino();
                self.open = Some(Open {
                    file,
                    inode,
                    position: 0,
                });
            }
            let Some(open) = &mut self.open else {
                return Ok(());
            };
            open.read(bytes).map_err(StoreError::io("read", &path))?;
            match std::fs::metadata(&path) {
                Ok(now) if now.ino() != open.inode => self.open = None,
                _ => break,
            }
        }
        Ok(())
    }

    /// Holds back an incomplete character or escape sequence at the end.
    fn hold(&mut self, bytes: Vec<u8>, last: bool) -> Vec<u8> {
        let mut all = std::mem::take(&mut self.held);
        all.extend(bytes);
        if !last {
            self.held = all.split_off(complete(&all));
        }
        all
    }
}

impl Open {
    fn read(&mut self, bytes: &mut Vec<u8>) -> io::Result<()> {
        if self.file.metadata()?.len() < self.position {
            self.position = 0;
        }
        self.file.seek(SeekFrom::Start(self.position))?;
        let n = (&self.file).take(MOST).read_to_end(bytes)?;
        self.position += n as u64;
        Ok(())
    }
}

fn open(path: &Path) -> Result<Option<File>> {
    match File::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(StoreError::io("open", path)(error).into()),
    }
}

/// Length of `bytes` without an incomplete character or escape sequence at the end.
fn complete(bytes: &[u8]) -> usize {
    let tail = bytes.len().saturating_sub(ESCAPE);
    let recent = bytes.get(tail..).unwrap_or_default();
    if let Some(at) = recent.iter().rposition(|b| *b == 0x1b) {
        let sequence = recent.get(at..).unwrap_or_default();
        let unfinished = match sequence.get(1) {
            None => true,
            Some(b'[') => !sequence
                .iter()
                .skip(2)
                .any(|b| (0x40..=0x7e).contains(b) || *b < 0x20),
            Some(b']') => !sequence.iter().any(|b| *b == 0x07 || *b == b'\n'),
            Some(_) => false,
        };
        if unfinished {
            return tail + at;
        }
    }
    match std::str::from_utf8(
        recent
            .get(recent.len().saturating_sub(3)..)
            .unwrap_or_default(),
    ) {
        Err(error) if error.error_len().is_none() => {
            bytes.len().saturating_sub(3) + error.valid_up_to()
        }
        _ => bytes.len(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::names::Name;
    use crate::store::Store;

    fn log() -> (tempfile::TempDir, ConsoleLog) {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let name = Name::new("web").unwrap();
        let path = store.cluster(&name).path().join("web");
        std::fs::create_dir_all(&path).unwrap();
        std::fs::write(path.join("vm.json"), "{}").unwrap();
        let vm = store.find(&name).unwrap().remove(0);
        let log = ConsoleLog {
            vm,
            open: None,
            held: Vec::new(),
        };
        (dir, log)
    }

    fn append(log: &ConsoleLog, bytes: &[u8]) {
        use std::io::Write as _;
        std::fs::OpenOptions::new()
            .append(true)
            .create(true)
            .open(log.vm.paths().console_log())
            .unwrap()
            .write_all(bytes)
            .unwrap();
    }

    #[test]
    fn what_is_written_comes_once() {
        let (_dir, mut log) = log();
        assert_eq!(log.existing(None).unwrap(), "");
        append(&log, b"one\ntwo\nthree\n");
        assert_eq!(log.next(false).unwrap(), "one\ntwo\nthree\n");
        assert_eq!(log.next(false).unwrap(), "");
        append(&log, b"login: ");
        assert_eq!(log.next(false).unwrap(), "login: ");
    }

    #[test]
    fn the_last_lines_are_those_of_both_files() {
        let (_dir, mut log) = log();
        let mut old = log.vm.paths().console_log().into_os_string();
        old.push(".1");
        std::fs::write(old, "a\nb\n").unwrap();
        append(&log, b"c\n");
        assert_eq!(log.existing(Some(2)).unwrap(), "b\nc\n");
    }

    #[test]
    fn a_log_that_begins_anew_is_followed() {
        let (_dir, mut log) = log();
        append(&log, b"first boot\n");
        assert_eq!(log.existing(None).unwrap(), "first boot\n");
        let path = log.vm.paths().console_log();
        std::fs::write(&path, b"second\n").unwrap();
        assert_eq!(log.next(false).unwrap(), "second\n");
        append(&log, b"end of it\n");
        std::fs::rename(&path, path.with_extension("log.1")).unwrap();
        append(&log, b"third\n");
        assert_eq!(log.next(false).unwrap(), "end of it\nthird\n");
    }

    #[test]
    fn halves_are_waited_for() {
        let (_dir, mut log) = log();
        append(&log, b"a\x1b[3");
        assert_eq!(log.next(false).unwrap(), "a");
        append(&log, b"1mred\xc3");
        assert_eq!(log.next(false).unwrap(), "red");
        append(&log, b"\xbc.");
        assert_eq!(log.next(false).unwrap(), "\u{fc}.");
        append(&log, b"\x1b]0;title");
        assert_eq!(log.next(false).unwrap(), "");
        assert_eq!(log.next(true).unwrap(), "");
    }
}
