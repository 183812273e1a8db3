//! Makes a GPT disk with the layout of Debian's generic cloud image: ext4 root (1), BIOS boot (14), ESP (15). It mounts
//! nothing and uses no loop devices.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use uuid::Uuid;

use crate::bail;
use crate::error::{Context, Error, Result};
use crate::run::Cmd;

/// Bytes of a sector.
const SECTOR: u64 = 512;
/// First sector and length of the BIOS boot partition.
const BIOS: (u64, u64) = (2048, 6144);
/// First sector and length of the ESP.
const ESP: (u64, u64) = (8192, 253_952);
/// First sector of the root, which fills the rest except the second GPT.
const ROOT: u64 = 262_144;
/// Sectors after the last partition.
const TAIL: u64 = 2048;

/// The identifiers of one disk.
#[derive(Debug, Clone)]
pub(super) struct Ids {
    /// UUID of the root's file system.
    pub(super) root_fs: Uuid,
    /// UUID of the root's partition.
    pub(super) root_part: Uuid,
    /// UUID of the ESP's partition.
    pub(super) esp_part: Uuid,
}

impl Ids {
    pub(super) fn new() -> Self {
        Self {
            root_fs: Uuid::new_v4(),
            root_part: Uuid::new_v4(),
            esp_part: Uuid::new_v4(),
        }
    }

    /// `/etc/fstab` as in Debian's images.
    pub(super) fn fstab(&self) -> String {
        format!(
            "PARTUUID={} / ext4 rw,discard,errors=remount-ro,x-systemd.growfs 0 1\n\
             PARTUUID={} /boot/efi vfat defaults 0 0\n",
            self.root_part, self.esp_part
        )
    }
}

/// The files of GRUB's ESP: their paths in the ESP and in the root directory.
const LOADERS: &[(&str, &str)] = &[
    ("EFI/BOOT/BOOTX64.EFI", "usr/lib/shim/shimx64.efi.signed"),
    (
        "EFI/BOOT/grubx64.efi",
        "usr/lib/grub/x86_64-efi-signed/grubx64.efi.signed",
    ),
    ("EFI/BOOT/mmx64.efi", "usr/lib/shim/mmx64.efi.signed"),
    ("EFI/debian/shimx64.efi", "usr/lib/shim/shimx64.efi.signed"),
    (
        "EFI/debian/grubx64.efi",
        "usr/lib/grub/x86_64-efi-signed/grubx64.efi.signed",
    ),
    ("EFI/debian/fbx64.efi", "usr/lib/shim/fbx64.efi.signed"),
    ("EFI/debian/mmx64.efi", "usr/lib/shim/mmx64.efi.signed"),
];

/// Boot loaders of a disk, from a root directory with Debian's signed GRUB and shim, and from `grub-mkimage` for the
/// BIOS.
#[derive(Debug)]
pub(super) struct Loaders {
    /// Files of the ESP.
    esp: Vec<(String, Vec<u8>)>,
    /// GRUB's first sector, and the rest of it.
    bios: (Vec<u8>, Vec<u8>),
}

impl Loaders {
    pub(super) fn take(root: &Path, ids: &Ids) -> Result<Self> {
        let find = format!(
            "search.fs_uuid {} root\nset prefix=($root)/boot/grub\n",
            ids.root_fs
        );
        let mut esp = Vec::new();
        for (target, source) in LOADERS {
            let source = root.join(source);
            let content =
                fs::read(&source).context(|| format!("cannot read {}", source.display()))?;
            esp.push(((*target).to_owned(), content));
        }
        for directory in ["BOOT", "debian"] {
            let config = format!("{find}configfile $prefix/grub.cfg\n");
            esp.push((format!("EFI/{directory}/grub.cfg"), config.into_bytes()));
        }

        fs::write(root.join("early.cfg"), &find)
            .context(|| "cannot write GRUB's early configuration")?;
        Cmd::new("chroot")
            .args([root.as_os_str(), OsStr::new("grub-mkimage")])
            .args([
                "-O",
                "i386-pc",
                "-o",
                "/core.img",
                "-p",
                "/boot/grub",
                "-c",
                "/early.cfg",
            ])
            .args([
                "biosdisk",
                "part_gpt",
                "ext2",
                "search_fs_uuid",
                "configfile",
                "normal",
            ])
            .run()?;
        let read =
            |name: &str| fs::read(root.join(name)).context(|| format!("cannot read GRUB's {name}"));
        let bios = (read("usr/lib/grub/i386-pc/boot.img")?, read("core.img")?);
        for name in ["early.cfg", "core.img"] {
            fs::remove_file(root.join(name)).context(|| format!("cannot remove {name}"))?;
        }
        Ok(Self { esp, bios })
    }
}

/// Writes the disk `target` of `mebibytes` from the directory `root`. `scratch` is for temporary files.
pub(super) fn assemble(
    root: &Path,
    loaders: &Loaders,
    ids: &Ids,
    mebibytes: u64,
    scratch: &Path,
    target: &Path,
) -> Result<()> {
    let sectors = mebibytes * 2048;
    let Some(root_sectors) = sectors.checked_sub(ROOT + TAIL) else {
        bail!("a disk of {mebibytes} MiB is too small")
    };
    let disk = create(target, sectors * SECTOR)?;
    let table = format!(
        "label: gpt\nunit: sectors\n\
         15 : start={}, size={}, uuid={}, type=C12A7328-F81F-11D2-BA4B-00A0C93EC93B\n\
         14 : start={}, size={}, type=21686148-6449-6E6F-744E-656564454649\n\
         1 : start={ROOT}, size={root_sectors}, uuid={}, type=4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709\n",
        ESP.0, ESP.1, ids.esp_part, BIOS.0, BIOS.1, ids.root_part
    );
    Cmd::new(program("sfdisk")?)
        .arg("-q")
        .arg(target)
        .input(table)
        .run()?;

    let ext4 = scratch.join("root.ext4");
    Cmd::new(program("mke2fs")?)
        .args([
            "-q",
            "-t",
            "ext4",
            "-L",
            "root",
            "-r",
            "1",
            "-U",
            &ids.root_fs.to_string(),
            "-d",
        ])
        .args([root, &ext4])
        .arg(format!("{}k", root_sectors / 2))
        .limit(300)
        .run()?;
    copy_sparse(&ext4, &disk, ROOT * SECTOR)?;
    let esp = scratch.join("esp.vfat");
    make_esp(loaders, scratch, &esp)?;
    copy_sparse(&esp, &disk, ESP.0 * SECTOR)?;
    install_bios(loaders, &disk)?;
    for path in [&ext4, &esp] {
        fs::remove_file(path).context(|| format!("cannot remove {}", path.display()))?;
    }
    Ok(())
}

fn program(name: &str) -> Result<PathBuf> {
    crate::deps::find(name).ok_or_else(|| Error::new(format!("{name} is missing")))
}

fn create(path: &Path, bytes: u64) -> Result<File> {
    let file = File::create(path).context(|| format!("cannot create {}", path.display()))?;
    file.set_len(bytes)
        .context(|| format!("cannot size {}", path.display()))?;
    Ok(file)
}

fn make_esp(loaders: &Loaders, scratch: &Path, target: &Path) -> Result<()> {
    create(target, ESP.1 * SECTOR)?;
    Cmd::new(program("mkfs.vfat")?)
        .args(["-F", "16", "-n", "ESP"])
        .arg(target)
        .run()?;
    Cmd::new("mmd")
        .arg("-i")
        .arg(target)
        .args(["::EFI", "::EFI/BOOT", "::EFI/debian"])
        .run()?;
    let file = scratch.join("esp-file");
    for (name, content) in &loaders.esp {
        fs::write(&file, content).context(|| format!("cannot write {}", file.display()))?;
        Cmd::new("mcopy")
            .arg("-i")
            .args([target, &file])
            .arg(format!("::{name}"))
            .run()?;
    }
    fs::remove_file(&file).context(|| format!("cannot remove {}", file.display()))
}

/// Copies a file into a disk. Zeros are not written, so they stay holes.
fn copy_sparse(from: &Path, disk: &File, mut offset: u64) -> Result<()> {
    const BLOCK: usize = 64 << 10;
    let zeroes = vec![0; BLOCK];
    let mut from_file = File::open(from).context(|| format!("cannot open {}", from.display()))?;
    let mut block = vec![0; BLOCK];
    loop {
        // Holes are skipped as a whole; what is in them need not be read.
        let position = from_file.stream_position().context(|| "cannot seek")?;
        let data = nix::unistd::lseek(
            &from_file,
            position.cast_signed(),
            nix::unistd::Whence::SeekData,
        );
        match data {
            Ok(next) => {
                let next = next.cast_unsigned() / BLOCK as u64 * BLOCK as u64;
                let next = next.max(position);
                from_file
                    .seek(SeekFrom::Start(next))
                    .context(|| "cannot seek")?;
                offset += next - position;
            }
            Err(nix::errno::Errno::ENXIO) => return Ok(()),
            Err(e) => return Err(e).context(|| format!("cannot find data in {}", from.display())),
        }
        let mut length = 0;
        while length < BLOCK {
            match from_file
                .read(&mut block[length..])
                .context(|| format!("cannot read {}", from.display()))?
            {
                0 => break,
                n => length += n,
            }
        }
        if block[..length] != zeroes[..length] {
            disk.write_all_at(&block[..length], offset)
                .context(|| "cannot write the disk")?;
        }
        offset += length as u64;
        if length < BLOCK {
            return Ok(());
        }
    }
}

/// Writes GRUB for the BIOS to the first sector and the BIOS boot partition, as `grub-bios-setup` does. The first
/// sector gets the position of the second (8 bytes at 0x5c), and the second that of the rest (8 bytes at 0x1f4).
fn install_bios(loaders: &Loaders, disk: &File) -> Result<()> {
    let (boot, core) = &loaders.bios;
    let (mut boot, mut core) = (boot.clone(), core.clone());
    if boot.len() != 512 || core.len() < 1024 || core.len() as u64 > BIOS.1 * SECTOR {
        bail!(
            "GRUB for the BIOS has unexpected sizes: {} and {} bytes",
            boot.len(),
            core.len()
        );
    }
    boot[0x5c..0x64].copy_from_slice(&BIOS.0.to_le_bytes());
    // Take the drive number from us rather than from BIOSes that pass a wrong one: two NOPs over a jump.
    boot[0x66..0x68].copy_from_slice(&[0x90, 0x90]);
    core[0x1f4..0x1fc].copy_from_slice(&(BIOS.0 + 1).to_le_bytes());
    // The partition table's own sector keeps its signature and protective entry.
    disk.write_all_at(&boot[..440], 0)
        .context(|| "cannot write GRUB's first sector")?;
    disk.write_all_at(&core, BIOS.0 * SECTOR)
        .context(|| "cannot write GRUB")
}

/// Writes a file in a root directory, with its parents.
pub(super) fn put(root: &Path, path: &str, mode: u32, content: impl AsRef<[u8]>) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let target = root.join(path);
    if let Some(parent) = target.parent() {
        fs::create_dir_all(parent)
            .context(|| format!("cannot create the directory of /{path} in the image"))?;
    }
    let mut file =
        File::create(&target).context(|| format!("cannot write /{path} of the image"))?;
    file.write_all(content.as_ref())
        .context(|| format!("cannot write /{path} of the image"))?;
    fs::set_permissions(&target, fs::Permissions::from_mode(mode))
        .context(|| format!("cannot set the mode of /{path}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sparse_copies_are_equal_and_keep_holes() {
        use std::os::unix::fs::MetadataExt;
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        let source = create(&from, (8 << 20) + 100).unwrap();
        source.write_all_at(b"early", 70_000).unwrap();
        source.write_all_at(b"late", (8 << 20) + 90).unwrap();
        let disk = create(&to, 16 << 20).unwrap();
        copy_sparse(&from, &disk, 1 << 20).unwrap();
        let (a, b) = (fs::read(&from).unwrap(), fs::read(&to).unwrap());
        assert_eq!(a, b[1 << 20..(1 << 20) + a.len()]);
        assert!(fs::metadata(&to).unwrap().blocks() * 512 < 1 << 20);
    }

    #[test]
    fn grub_learns_where_its_sectors_are() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(8 << 20).unwrap();
        file.write_all_at(&[0x55, 0xaa], 510).unwrap();
        let loaders = Loaders {
            esp: Vec::new(),
            bios: (vec![1; 512], vec![2; 2048]),
        };
        install_bios(&loaders, &file).unwrap();
        let mut sector = [0; 512];
        file.read_exact_at(&mut sector, 0).unwrap();
        assert_eq!(sector[0x5c..0x64], 2048u64.to_le_bytes());
        assert_eq!(sector[440..446], [0; 6]);
        assert_eq!(sector[510..], [0x55, 0xaa]);
        file.read_exact_at(&mut sector, 2048 * 512).unwrap();
        assert_eq!(sector[0x1f4..0x1fc], 2049u64.to_le_bytes());
    }
}
