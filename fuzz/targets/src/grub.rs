//! GRUB's configuration over a directory of files.
//!
//! The input is text. A line `=== /path` begins a file of the first partition, `=== 2/path` one of the second. What is
//! before the first such line is the first partition's `/boot/grub/grub.cfg`.

use std::io::{self, Cursor, Write};
use std::sync::Arc;
use std::time::Duration;

use fatfs::{FileSystem, FormatVolumeOptions, FsOptions};
use fleetbox_devices::block::Disk;
use fleetbox_vmm::boot::{Limits, discover};

const SECTOR: usize = 512;
/// Bytes of each partition.
const PARTITION: usize = 512 << 10;
/// Where the first begins; the second follows.
const START: usize = 64 * SECTOR;
/// Maximum number of files, because every one is written to a file system.
const MAX_FILES: usize = 32;

/// Boots a disk that has the files.
///
/// # Panics
/// The same disk boots two ways, or a boot has no command line of GRUB's form.
pub fn run(input: &[u8]) {
    let Some(disk) = disk(&String::from_utf8_lossy(input)) else {
        return;
    };
    let disk: Arc<dyn Disk> = Arc::new(Bytes(disk));
    let limits = Limits {
        memory: 64 << 20,
        time: Duration::from_secs(5),
        ..Limits::default()
    };
    let boot = || match discover(disk.clone(), &limits) {
        Ok(plan) => {
            assert!(plan.cmdline.starts_with("BOOT_IMAGE="), "{}", plan.cmdline);
            Ok(plan.describe())
        }
        Err(error) => Err(error.to_string()),
    };
    let (first, second) = (boot(), boot());
    // A busy machine may reach the limit of time once.
    let in_time = |outcome: &Result<String, String>| {
        outcome.as_ref().map_or_else(|error| !error.contains("`time`"), |_| true)
    };
    if in_time(&first) && in_time(&second) {
        assert_eq!(first, second);
    }
}

/// A disk with two FAT partitions that hold the files; `None` if there is no room for them.
fn disk(text: &str) -> Option<Vec<u8>> {
    let mut partitions = [Vec::new(), Vec::new()];
    let (mut number, mut path, mut content) = (0, "/boot/grub/grub.cfg", String::new());
    for line in text.split_inclusive('\n') {
        match line.strip_prefix("=== ") {
            Some(name) => {
                let done = std::mem::take(&mut content);
                partitions.get_mut(number)?.push((path, done));
                let name = name.trim_end();
                (number, path) = match name.strip_prefix('2') {
                    Some(name) => (1, name),
                    None => (0, name),
                };
            }
            None => content.push_str(line),
        }
    }
    partitions.get_mut(number)?.push((path, content));
    for name in ["/k", "/i"] {
        partitions.first_mut()?.push((name, "file".into()));
    }
    let mut disk = vec![0; START];
    for (index, files) in partitions.iter().enumerate() {
        if files.len() > MAX_FILES {
            return None;
        }
        let begin = u32::try_from((START + index * PARTITION) / SECTOR).ok()?;
        let sectors = u32::try_from(PARTITION / SECTOR).ok()?;
        let at = 446 + 16 * index;
        disk.get_mut(at + 4..at + 5)?.fill(0x0C);
        disk.get_mut(at + 8..at + 12)?.copy_from_slice(&begin.to_le_bytes());
        disk.get_mut(at + 12..at + 16)?.copy_from_slice(&sectors.to_le_bytes());
        disk.extend(partition(index, files).ok()?);
    }
    disk.get_mut(510..512)?.copy_from_slice(&[0x55, 0xAA]);
    Some(disk)
}

fn partition(index: usize, files: &[(&str, String)]) -> io::Result<Vec<u8>> {
    let mut bytes = Cursor::new(vec![0; PARTITION]);
    let id = 0xAAAA_0000 + u32::try_from(index).map_err(io::Error::other)?;
    let label = *if index == 0 { b"ROOT       " } else { b"OTHER      " };
    let options = FormatVolumeOptions::new().volume_id(id).volume_label(label);
    fatfs::format_volume(&mut bytes, options)?;
    {
        let volume = FileSystem::new(&mut bytes, FsOptions::new())?;
        let root = volume.root_dir();
        for (path, content) in files {
            let path = path.trim_matches('/');
            // Names that the file system does not take are left out.
            for (at, _) in path.match_indices('/') {
                let _ = root.create_dir(path.get(..at).unwrap_or_default());
            }
            let Ok(mut file) = root.create_file(path) else {
                continue;
            };
            if file.truncate().and_then(|()| file.write_all(content.as_bytes())).is_err() {
                break;
            }
        }
    }
    Ok(bytes.into_inner())
}

/// A disk in memory.
struct Bytes(Vec<u8>);

impl Disk for Bytes {
    fn len(&self) -> u64 {
        self.0.len() as u64
    }

    fn read_only(&self) -> bool {
        true
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let at = usize::try_from(offset).map_err(io::Error::other)?;
        let end = at.checked_add(buf.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        buf.copy_from_slice(self.0.get(at..end).ok_or(io::ErrorKind::UnexpectedEof)?);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_found_on_their_partitions() {
        let text = "search --set=root --file /here\nconfigfile /grub/x.cfg\n\
                    === 2/here\n=== 2/grub/x.cfg\nmenuentry a { linux (hd0,msdos1)/k $root ; }\n";
        let disk: Arc<dyn Disk> = Arc::new(Bytes(disk(text).unwrap()));
        let plan = discover(disk, &Limits::default()).unwrap();
        assert_eq!(plan.cmdline, "BOOT_IMAGE=(hd0,msdos1)/k hd0,msdos2");
    }
}
