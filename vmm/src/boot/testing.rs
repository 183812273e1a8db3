//! Disks for tests, made with the usual tools.

use std::io;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, RwLock};

use fleetbox_devices::block::Disk;

use super::budget::Budget;
use super::window::Window;

/// A disk in memory.
pub(super) struct MemoryDisk(RwLock<Vec<u8>>);

impl MemoryDisk {
    pub(super) fn disk(data: Vec<u8>) -> Arc<dyn Disk> {
        Arc::new(Self(RwLock::new(data)))
    }
}

impl Disk for MemoryDisk {
    fn len(&self) -> u64 {
        self.0.read().unwrap().len() as u64
    }

    fn read_only(&self) -> bool {
        true
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let data = self.0.read().unwrap();
        let at = usize::try_from(offset).map_err(io::Error::other)?;
        let end = at
            .checked_add(buf.len())
            .ok_or(io::ErrorKind::UnexpectedEof)?;
        buf.copy_from_slice(data.get(at..end).ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn write_at(&self, _: &[u8], _: u64) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn discard(&self, _: u64, _: u64) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn write_zeroes(&self, _: u64, _: u64, _: bool) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }
}

/// The whole of a disk, with a budget that is ample.
pub(super) fn window(disk: Arc<dyn Disk>) -> Window {
    Window::whole(disk, Budget::ample())
}

/// Runs a tool of `package` and wants success.
pub(super) fn tool(package: &str, command: &mut Command, input: &str) {
    use std::io::Write;
    let name = command.get_program().to_string_lossy().into_owned();
    // Debian keeps these where an ordinary user's PATH does not reach.
    let path = std::env::var("PATH").unwrap_or_default();
    command
        .env("PATH", format!("{path}:/usr/sbin:/sbin"))
        .env("MTOOLS_SKIP_CHECK", "1");
    let child = command
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn();
    let mut child = match child {
        Ok(child) => child,
        Err(error) => panic!("`{name}` is needed by this test ({error}): install {package}"),
    };
    child
        .stdin
        .take()
        .unwrap()
        .write_all(input.as_bytes())
        .unwrap();
    let output = child.wait_with_output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {errors}");
}

/// A disk of `size` bytes partitioned by `script`.
pub(super) fn sfdisk(size: usize, script: &str) -> Vec<u8> {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(size as u64).unwrap();
    tool(
        "fdisk",
        Command::new("sfdisk").arg("-q").arg(file.path()),
        script,
    );
    std::fs::read(file.path()).unwrap()
}

/// An ext4 file system of `size` bytes with the given files; a content that starts with `->` makes
/// a symbolic link.
pub(super) fn ext4(size: usize, options: &[&str], files: &[(&str, &[u8])]) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    std::fs::create_dir(&root).unwrap();
    write_files(&root, files);
    let image = dir.path().join("image");
    std::fs::File::create(&image)
        .unwrap()
        .set_len(size as u64)
        .unwrap();
    let mut command = Command::new("mke2fs");
    command
        .args(["-q", "-F", "-t", "ext4", "-L", "root", "-d"])
        .arg(&root)
        .args(options);
    tool("e2fsprogs", command.arg(&image), "");
    std::fs::read(image).unwrap()
}

/// A FAT file system of `size` bytes with the given files.
pub(super) fn fat(size: usize, options: &[&str], files: &[(&str, &[u8])]) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("image");
    std::fs::File::create(&image)
        .unwrap()
        .set_len(size as u64)
        .unwrap();
    tool(
        "dosfstools",
        Command::new("mkfs.vfat")
            .args(["-n", "ESP"])
            .args(options)
            .arg(&image),
        "",
    );
    let root = dir.path().join("root");
    std::fs::create_dir(&root).unwrap();
    write_files(&root, files);
    for entry in std::fs::read_dir(&root).unwrap() {
        let mut command = Command::new("mcopy");
        command
            .args(["-s", "-i"])
            .arg(&image)
            .arg(entry.unwrap().path())
            .arg("::/");
        tool("mtools", &mut command, "");
    }
    std::fs::read(image).unwrap()
}

fn write_files(root: &Path, files: &[(&str, &[u8])]) {
    for (path, content) in files {
        let path = root.join(path.trim_start_matches('/'));
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        match content.strip_prefix(b"->") {
            Some(target) => {
                let target = std::str::from_utf8(target).unwrap();
                std::os::unix::fs::symlink(target, &path).unwrap();
            }
            None => std::fs::write(&path, content).unwrap(),
        }
    }
}

/// The offset of the first partition and of the ESP on a disk of [`cloud_disk`], in bytes.
pub(super) const ESP_AT: usize = 2048 * 512;
pub(super) const ROOT_AT: usize = 10240 * 512;

/// A disk laid out as a cloud image: ext4 root as partition 1, ESP as partition 15.
pub(super) fn cloud_disk(esp: &[u8], root: &[u8]) -> Vec<u8> {
    let size = (ROOT_AT + root.len() + (1 << 20)).next_multiple_of(512);
    let script = format!(
        "label: gpt\n15: start=2048, size=8192, type=U\n1: start=10240, size={}, type=L\n",
        root.len() / 512
    );
    let mut disk = sfdisk(size, &script);
    assert!(esp.len() <= 8192 * 512);
    disk[ESP_AT..ESP_AT + esp.len()].copy_from_slice(esp);
    disk[ROOT_AT..ROOT_AT + root.len()].copy_from_slice(root);
    disk
}
