//! Puts files on disks. Small files share a disk made for the run. A large file, such as an image, is put on a separate
//! disk once, and that disk is kept in the cache.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::GuestFile;
use crate::bail;
use crate::cache::{self, Key};
use crate::error::{Context, Error, Result};
use crate::run::{Cmd, shell_quote, step};

/// From this size in bytes a file gets a separate disk in the cache.
const LARGE: u64 = 300 << 20;

/// As many disks as `/dev/vdb` to `/dev/vdz` name.
const MAX_DISKS: usize = 25;

/// The disks that hold the files of one run.
#[derive(Debug)]
pub(super) struct Disks {
    /// The ext4 file system of the small files: `/dev/vdb`. The file is already deleted, so nothing is left behind.
    pub(super) small: File,
    /// ext4 file systems in the cache: `/dev/vdc` and so on.
    pub(super) large: Vec<PathBuf>,
    /// Disk, name on it, absolute path in the host.
    files: Vec<(usize, String, String)>,
}

pub(super) fn prepare(files: &[GuestFile]) -> Result<Disks> {
    let temporary =
        TempDir::new_in(cache::dir()?).context(|| "cannot create a directory in the cache")?;
    let source = temporary.path().join("small");
    fs::create_dir(&source).context(|| "cannot create a directory in the cache")?;
    let (mut large, mut placed) = (Vec::new(), Vec::new());
    let mut seen = BTreeSet::new();
    let mut total = 0;
    for file in files {
        if !seen.insert(file.guest.clone()) {
            continue;
        }
        let guest = file
            .guest
            .to_str()
            .ok_or_else(|| Error::new(format!("{} is not UTF-8", file.guest.display())))?;
        let meta =
            fs::metadata(&file.host).context(|| format!("cannot read {}", file.host.display()))?;
        let name = format!("f{}", placed.len());
        if meta.len() < LARGE {
            total += meta.len();
            // mke2fs copies what a link in the source directory is, not what it points at: a hard link does, and
            // where that is impossible, a copy.
            let target = source.join(&name);
            if fs::hard_link(&file.host, &target).is_err() {
                fs::copy(&file.host, &target)
                    .context(|| format!("cannot copy {}", file.host.display()))?;
            }
            placed.push((0, name, guest.to_owned()));
        } else {
            large.push(own_disk(&file.host, meta.len())?);
            placed.push((large.len(), "file".to_owned(), guest.to_owned()));
        }
    }
    if large.len() >= MAX_DISKS {
        bail!(
            "{} large files are too many for the disks of the emulated host",
            large.len()
        );
    }
    let image = temporary.path().join("small.ext4");
    make_ext4(&source, &image, total)?;
    let small = File::open(&image).context(|| format!("cannot open {}", image.display()))?;
    Ok(Disks {
        small,
        large,
        files: placed,
    })
}

/// A disk in the cache with `path` as its only file.
fn own_disk(path: &Path, size: u64) -> Result<PathBuf> {
    let key = Key::new("file").with_file_identity(path)?.finish();
    let dir = cache::artefact("file", &key, |dir| {
        step(&format!("putting {} on a disk", path.display()), || {
            let source = dir.join("source");
            fs::create_dir(&source).context(|| "cannot create a directory in the cache")?;
            let file = source.join("file");
            if fs::hard_link(path, &file).is_err() {
                Cmd::new("cp")
                    .arg("--sparse=always")
                    .args([path, &file])
                    .limit(300)
                    .run()?;
            }
            make_ext4(&source, &dir.join("disk.ext4"), size)?;
            fs::remove_dir_all(&source).context(|| "cannot clean up in the cache")
        })
    })?;
    Ok(dir.join("disk.ext4"))
}

/// Makes an ext4 file system with the content of `source`, which has `bytes`. Holes stay holes.
fn make_ext4(source: &Path, target: &Path, bytes: u64) -> Result<()> {
    let mke2fs = crate::deps::find("mke2fs").ok_or_else(|| Error::new("mke2fs is missing"))?;
    let mebibytes = (bytes >> 20) + (bytes >> 26) + 16;
    Cmd::new(mke2fs)
        .args([
            "-q",
            "-t",
            "ext4",
            "-m",
            "0",
            "-O",
            "^has_journal,^resize_inode",
            "-N",
            "1024",
            "-d",
        ])
        .args([source, target])
        .arg(format!("{mebibytes}M"))
        .limit(300)
        .run()
}

impl Disks {
    /// Commands that mount the disks and put every file at its path. They use bind mounts instead of symbolic links, so
    /// that a program sees the path that it was started with.
    pub(super) fn mount_script(&self) -> String {
        let mut script = String::new();
        for index in 0..=self.large.len() {
            let letter = char::from(b'b' + u8::try_from(index).unwrap_or(0));
            script.push_str(&format!(
                "$b mkdir -p /run/disks/{index}\n$b mount -t ext4 -o noatime /dev/vd{letter} /run/disks/{index}\n"
            ));
        }
        for (disk, name, guest) in &self.files {
            let parent = Path::new(guest).parent().unwrap_or(Path::new("/"));
            script.push_str(&format!(
                "$b mkdir -p {}; : >{guest}; $b mount -o bind /run/disks/{disk}/{name} {guest}\n",
                shell_quote(&parent.to_string_lossy()),
                guest = shell_quote(guest),
            ));
        }
        script
    }
}
