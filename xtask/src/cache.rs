//! Artefacts outside the source tree. Each has a key, which is a hash of all its inputs.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};

use crate::bail;
use crate::error::{Context, Result};

/// The cache directory: `$FLEETBOX_CACHE`, or `fleetbox` in the user's cache directory. It is created if it is missing.
///
/// # Errors
/// Neither `FLEETBOX_CACHE` nor a home directory is set, or it cannot be created.
pub fn dir() -> Result<PathBuf> {
    let path = match (
        std::env::var_os("FLEETBOX_CACHE"),
        std::env::var_os("XDG_CACHE_HOME"),
        std::env::var_os("HOME"),
    ) {
        (Some(dir), _, _) => PathBuf::from(dir),
        (None, Some(cache), _) => PathBuf::from(cache).join("fleetbox"),
        (None, None, Some(home)) => PathBuf::from(home).join(".cache/fleetbox"),
        _ => bail!("no directory for the cache: set FLEETBOX_CACHE"),
    };
    fs::create_dir_all(&path)
        .context(|| format!("cannot create the cache directory {}", path.display()))?;
    fs::canonicalize(&path)
        .context(|| format!("cannot resolve the cache directory {}", path.display()))
}

/// Collects the inputs of an artefact.
pub struct Key(ring::digest::Context);

impl Key {
    /// A key for a kind of artefact.
    pub fn new(kind: &str) -> Self {
        Self(ring::digest::Context::new(&ring::digest::SHA256)).with(kind)
    }

    /// Adds one input. Inputs have a length prefix, so that different lists of inputs have different keys.
    pub fn with(mut self, input: impl AsRef<[u8]>) -> Self {
        let input = input.as_ref();
        self.0.update(&(input.len() as u64).to_le_bytes());
        self.0.update(input);
        self
    }

    /// Adds a file by path, size and modification time, for files that are too large to read each time.
    ///
    /// # Errors
    /// The file does not exist.
    pub fn with_file_identity(self, path: &Path) -> Result<Self> {
        let meta = fs::metadata(path).context(|| format!("cannot read {}", path.display()))?;
        Ok(self.with(path.as_os_str().as_encoded_bytes()).with(format!(
            "{} {} {} {}",
            meta.len(),
            meta.ino(),
            meta.mtime(),
            meta.mtime_nsec()
        )))
    }

    /// Twenty hexadecimal digits.
    pub fn finish(self) -> String {
        hex(&self.0.finish().as_ref()[..10])
    }
}

/// Lower-case hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// SHA-256 of a file.
///
/// # Errors
/// The file cannot be read.
pub fn sha256_file(path: &Path) -> Result<String> {
    let mut context = ring::digest::Context::new(&ring::digest::SHA256);
    let mut file = File::open(path).context(|| format!("cannot open {}", path.display()))?;
    let mut buffer = vec![0; 1 << 20];
    loop {
        let n = file
            .read(&mut buffer)
            .context(|| format!("cannot read {}", path.display()))?;
        if n == 0 {
            return Ok(hex(context.finish().as_ref()));
        }
        context.update(&buffer[..n]);
    }
}

/// Returns the directory `kind-key` of the cache. If it does not exist yet, `build` fills it under a temporary name,
/// with a lock against other processes that need the same one. So it is either complete or missing. Only the most
/// recent artefacts of a kind are kept.
///
/// # Errors
/// What `build` returns, or the cache cannot be written.
pub fn artefact(kind: &str, key: &str, build: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
    let root = dir()?;
    let path = root.join(format!("{kind}-{key}"));
    if path.is_dir() {
        touch(&path);
        return Ok(path);
    }
    let _lock = lock(&root, &format!("{kind}-{key}"))?;
    if path.is_dir() {
        return Ok(path);
    }
    let partial = root.join(format!("{kind}-{key}.partial"));
    remove(&partial)?;
    fs::create_dir(&partial).context(|| format!("cannot create {}", partial.display()))?;
    if let Err(error) = build(&partial) {
        let _ = remove(&partial);
        return Err(error);
    }
    fs::rename(&partial, &path).context(|| format!("cannot rename {}", partial.display()))?;
    sweep(&root, kind, &path);
    Ok(path)
}

/// The most recently used artefact of a kind.
///
/// # Errors
/// There is no cache.
pub fn newest(kind: &str) -> Result<Option<PathBuf>> {
    Ok(artefacts(&dir()?, kind).pop().map(|(_, path)| path))
}

/// An exclusive lock, held until it is dropped.
fn lock(root: &Path, name: &str) -> Result<Flock<File>> {
    let path = root.join(format!("{name}.lock"));
    let file = File::create(&path).context(|| format!("cannot create {}", path.display()))?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(lock),
        Err((file, nix::errno::Errno::EWOULDBLOCK)) => {
            eprintln!("  waiting for another process that is building {name}");
            Flock::lock(file, FlockArg::LockExclusive)
                .map_err(|(_, e)| e)
                .context(|| "cannot lock")
        }
        Err((_, e)) => Err(e).context(|| format!("cannot lock {}", path.display())),
    }
}

/// Marks an artefact as used now, for [`sweep`].
fn touch(path: &Path) {
    if let Ok(file) = File::open(path) {
        let _ = file.set_modified(std::time::SystemTime::now());
    }
}

/// The complete artefacts of a kind, the most recently used one last.
fn artefacts(root: &Path, kind: &str) -> Vec<(std::time::SystemTime, PathBuf)> {
    let Ok(entries) = fs::read_dir(root) else {
        return Vec::new();
    };
    let is_one = |name: &str| {
        let key = name
            .strip_prefix(kind)
            .and_then(|rest| rest.strip_prefix('-'));
        key.is_some_and(|k| k.len() == 20 && k.bytes().all(|b| b.is_ascii_hexdigit()))
    };
    let mut found: Vec<_> = entries
        .flatten()
        .filter(|e| is_one(&e.file_name().to_string_lossy()) && e.path().is_dir())
        .filter_map(|e| Some((e.metadata().ok()?.modified().ok()?, e.path())))
        .collect();
    found.sort();
    found
}

/// How many artefacts of one kind are kept. One run may use several of the same kind.
const KEEP: usize = 8;

fn sweep(root: &Path, kind: &str, fresh: &Path) {
    let old: Vec<_> = artefacts(root, kind)
        .into_iter()
        .filter(|(_, p)| p != fresh)
        .collect();
    for (_, path) in old.iter().rev().skip(KEEP - 1) {
        let _ = remove(path);
        let _ = fs::remove_file(path.with_extension("lock"));
    }
}

fn remove(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(e).context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_do_not_run_together() {
        let a = Key::new("k").with("ab").with("c").finish();
        let b = Key::new("k").with("a").with("bc").finish();
        assert_ne!(a, b);
        assert_eq!(a, Key::new("k").with("ab").with("c").finish());
        assert_eq!(a.len(), 20);
    }

    #[test]
    fn hashes_a_file() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), "abc").unwrap();
        let sum = sha256_file(file.path()).unwrap();
        assert_eq!(
            sum,
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
    }
}
