//! Disk images for tests, made from Debian's packages: one like Debian's own generic cloud image, and a tiny one that
//! boots in seconds even if every instruction is emulated.

mod debian12;
mod disk;
mod tiny;

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use crate::bail;
use crate::cache;
use crate::deps::{self, Need};
use crate::error::{Context, Result};
use crate::run::{Cmd, step};

/// An image that can be built.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Image {
    /// An image with the layout and content of Debian 12's generic cloud image.
    Debian12,
    /// A stock kernel, GRUB and a small userland with sshd, which reads the same seed.
    Tiny,
}

/// Format of an image file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// A raw disk, with holes where it is empty.
    Raw,
    /// qcow2 with clusters compressed by deflate, as distributions publish it.
    Qcow2,
}

impl Image {
    /// All images.
    pub const ALL: [Self; 2] = [Self::Debian12, Self::Tiny];

    /// Its name on the command line and in the cache.
    pub fn name(self) -> &'static str {
        match self {
            Self::Debian12 => "debian-12",
            Self::Tiny => "tiny",
        }
    }

    /// The image of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|i| i.name() == name)
    }

    /// Builds it, or finds it in the cache, and returns its path.
    ///
    /// # Errors
    /// A program is missing, the user is not root, a package cannot be obtained, or the cache cannot be written.
    pub fn build(self, format: Format) -> Result<PathBuf> {
        deps::ensure(&[Need::Images])?;
        let key = match self {
            Self::Debian12 => debian12::key()?,
            Self::Tiny => tiny::key()?,
        };
        let name = self.name();
        let kind = format!("image-{name}");
        let dir = cache::artefact(&kind, &key, |dir| {
            if !nix::unistd::geteuid().is_root() {
                bail!(
                    "cannot build the image {name}: it sets owners of files and calls chroot; run this as root"
                );
            }
            step(&format!("building the image {name}"), || {
                let disk = dir.join(format!("{name}.raw"));
                match self {
                    Self::Debian12 => debian12::build(dir, &disk),
                    Self::Tiny => tiny::build(dir, &disk),
                }
            })
        })?;
        let raw = dir.join(format!("{name}.raw"));
        let path = match format {
            Format::Raw => raw,
            Format::Qcow2 => qcow2(&raw, &dir.join(format!("{name}.qcow2")))?,
        };
        write_sum(&path)?;
        Ok(path)
    }
}

/// Extension of the file next to an image that has its SHA-256 sum, because computing the sum takes long in an emulated
/// host.
const SUM: &str = "sha256";

/// Writes an image's sum next to it, unless that was done before.
fn write_sum(image: &Path) -> Result<()> {
    let mut name = image.as_os_str().to_owned();
    name.push(format!(".{SUM}"));
    let target = PathBuf::from(name);
    if target.is_file() {
        return Ok(());
    }
    let read = || format!("cannot read {}", image.display());
    let mut file = fs::File::open(image).context(read)?;
    let mut context = ring::digest::Context::new(&ring::digest::SHA256);
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer).context(read)? {
            0 => break,
            n => context.update(&buffer[..n]),
        }
    }
    let sum: String = context
        .finish()
        .as_ref()
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect();
    let partial = target.with_extension(format!("partial-{}", std::process::id()));
    fs::write(&partial, format!("{sum}\n"))
        .and_then(|()| fs::rename(&partial, &target))
        .context(|| format!("cannot write {}", target.display()))
}

/// Converts a raw image, unless that was done before.
fn qcow2(raw: &Path, target: &Path) -> Result<PathBuf> {
    if !target.is_file() {
        let partial = target.with_extension(format!("partial-{}", std::process::id()));
        step(&format!("converting {} to qcow2", raw.display()), || {
            Cmd::new("qemu-img")
                .args(["convert", "-c", "-f", "raw", "-O", "qcow2"])
                .args([raw, &partial])
                .limit(600)
                .run()?;
            fs::rename(&partial, target).context(|| format!("cannot rename {}", partial.display()))
        })?;
    }
    Ok(target.to_owned())
}

/// The images built so far, newest inputs only, as names (`tiny.raw`, `tiny.qcow2`) and paths, with their sums
/// (`tiny.raw.sha256`).
///
/// # Errors
/// The cache cannot be read.
pub fn built() -> Result<Vec<(String, PathBuf)>> {
    let mut found = Vec::new();
    for image in Image::ALL {
        let Some(dir) = cache::newest(&format!("image-{}", image.name()))? else {
            continue;
        };
        for extension in ["raw", "qcow2"] {
            let name = format!("{}.{extension}", image.name());
            for name in [format!("{name}.{SUM}"), name] {
                let path = dir.join(&name);
                if path.is_file() {
                    found.push((name, path));
                }
            }
        }
    }
    Ok(found)
}
