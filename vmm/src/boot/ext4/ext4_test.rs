//! File systems as `mke2fs` makes them, and what their superblocks may say.

use std::process::Command;

use super::Ext4Volume;
use crate::boot::crc::crc32c;
use crate::boot::fs::{FsError, Kind, Volume};
use crate::boot::testing::{self, MemoryDisk};

fn open(image: Vec<u8>) -> Result<Ext4Volume, FsError> {
    Ext4Volume::open(testing::window(MemoryDisk::disk(image)))
}

fn contents(volume: &Ext4Volume, path: &str) -> Result<Vec<u8>, FsError> {
    let mut bytes = Vec::new();
    volume.read(path, u64::MAX, &mut bytes)?;
    Ok(bytes)
}

/// What `mke2fs` was told to make, by the features that matter here.
const VARIANTS: &[&[&str]] = &[
    &[],
    &["-b", "1024"],
    &["-b", "65536"],
    &["-b", "4096", "-O", "^metadata_csum,^64bit"],
    &["-O", "^extent,^64bit"],
    // ext2 and ext3.
    &["-O", "none,filetype,sparse_super,resize_inode"],
    &["-O", "none,filetype,sparse_super,has_journal,dir_index"],
    &["-O", "^filetype"],
    &["-O", "metadata_csum_seed"],
    // What small partitions got until 2021.
    &["-I", "128", "-O", "metadata_csum"],
    &["-I", "128", "-b", "1024", "-O", "metadata_csum,64bit"],
    &["-O", "mmp"],
    &["-O", "large_dir"],
    &["-O", "casefold"],
    &["-O", "encrypt"],
    &["-O", "ea_inode"],
    // Features that newer tools set, and that concern writers only.
    &["-O", "metadata_csum_seed,orphan_file,fast_commit"],
    &["-O", "quota,project,verity,stable_inodes"],
    // 32 groups, so that their descriptors take several blocks.
    &["-b", "1024", "-g", "512"],
    &["-b", "1024", "-g", "512", "-O", "meta_bg,^resize_inode"],
    &[
        "-b",
        "1024",
        "-g",
        "1024",
        "-O",
        "meta_bg,^resize_inode,^sparse_super,^sparse_super2",
    ],
    &[
        "-b",
        "1024",
        "-g",
        "1024",
        "-O",
        "meta_bg,^resize_inode,sparse_super2",
    ],
    &[
        "-b",
        "1024",
        "-g",
        "1024",
        "-O",
        "meta_bg,^resize_inode,^64bit,^flex_bg",
    ],
    &["-O", "bigalloc", "-C", "16384"],
    &["-b", "1024", "-O", "bigalloc", "-C", "4096"],
    &[
        "-b",
        "1024",
        "-O",
        "bigalloc,meta_bg,^resize_inode",
        "-C",
        "2048",
    ],
];

#[test]
fn files_of_all_variants_are_read() {
    let mut holes = vec![0; 700_001];
    holes[5000] = 1;
    holes[600_000..].fill(2);
    let large: Vec<u8> = (0..3_000_000u32).map(|i| (i / 7) as u8).collect();
    let names: Vec<String> = (0..120).map(|i| format!("/boot/module-{i:0>60}")).collect();
    let mut files: Vec<(&str, &[u8])> = names.iter().map(|n| (n.as_str(), &b"small"[..])).collect();
    files.push(("/boot/dir/holes", &holes));
    files.push(("/boot/dir/empty", b""));
    files.push(("/large", &large));
    files.push(("/boot/link", b"->dir/../../large"));
    let long = format!("->/{}large", "boot/../".repeat(20));
    files.push(("/boot/long", long.as_bytes()));
    files.push(("/boot/self", b"->self"));
    // What a link names is on the disk or nowhere, never on the host.
    files.push(("/boot/host", b"->/proc/self/exe"));
    files.push((
        "/boot/outside",
        b"->../../../../../../../../../proc/self/exe",
    ));
    for options in VARIANTS {
        let options = [options, &["-U", "8E0C5F11-6d0c-4a52-b0d2-3f6ac2a8f3a0"][..]].concat();
        let image = testing::ext4(16 << 20, &options, &files);
        let volume = open(image).unwrap_or_else(|e| panic!("{options:?}: {e}"));
        let read = |path: &str| contents(&volume, path);
        for (path, content) in files.iter().filter(|(_, c)| !c.starts_with(b"->")) {
            let bytes = read(path).unwrap_or_else(|e| panic!("{options:?} {path}: {e}"));
            assert!(bytes == *content, "{options:?} {path}");
        }
        assert!(read("/boot/link").unwrap() == large, "{options:?}");
        assert!(read("/boot/long").unwrap() == large, "{options:?}");
        for path in ["/boot/host", "/boot/outside"] {
            assert!(matches!(read(path), Err(FsError::NotFound)), "{options:?}");
        }
        assert!(read("/boot/self").is_err() && read("/boot").is_err());
        assert!(matches!(read("/boot/absent"), Err(FsError::NotFound)));
        assert!(matches!(read("/large/x"), Err(FsError::NotFound)));
        assert_eq!(volume.kind("/boot/dir").unwrap(), Some(Kind::Directory));
        assert_eq!(
            volume.kind("/../large").unwrap(),
            Some(Kind::File(3_000_000))
        );
        let mut listed = volume.list("/boot/dir").unwrap();
        listed.sort_unstable();
        assert_eq!(listed, ["empty", "holes"]);
        assert_eq!(volume.list("/boot").unwrap().len(), 126);
        let uuid = "8e0c5f11-6d0c-4a52-b0d2-3f6ac2a8f3a0";
        assert_eq!(volume.uuid().as_deref(), Some(uuid));
        assert_eq!(volume.label().as_deref(), Some("root"));
    }
}

#[test]
fn what_cannot_be_read_is_named() {
    let files: [(&str, &[u8]); 2] = [("/small", b"x"), ("/large", &[1; 10_000])];
    let image = testing::ext4(8 << 20, &["-O", "inline_data", "-I", "256"], &files);
    let volume = open(image);
    let error = match &volume {
        Ok(volume) => contents(volume, "/small").unwrap_err(),
        Err(_) => panic!("it has files that can be read"),
    };
    assert!(error.to_string().contains("inline_data"), "{error}");
    let mut image = testing::ext4(8 << 20, &["-O", "^metadata_csum"], &files);
    image[1024 + 0x60] |= 0x8;
    image[1024 + 0x61] |= 0x10;
    let error = open(image).err().unwrap().to_string();
    assert!(error.contains("`journal_dev`, `dirdata`"), "{error}");
}

/// Runs `commands` on `image` with `debugfs`, with `block` in the file that it calls `new`.
fn debugfs(image: &[u8], commands: &str, block: &[u8]) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    std::fs::write(&path, image).unwrap();
    std::fs::write(dir.path().join("new"), block).unwrap();
    let mut command = Command::new("debugfs");
    command.arg("-w").arg(&path).current_dir(dir.path());
    testing::tool("e2fsprogs", &mut command, commands);
    std::fs::read(path).unwrap()
}

#[test]
fn journals_are_replayed() {
    let old = vec![b'o'; 1024];
    let files: [(&str, &[u8]); 1] = [("/dir/file", &old)];
    for (options, checksums) in [
        (&["-O", "^metadata_csum,^64bit"][..], ""),
        (&["-O", "^metadata_csum,64bit"], ""),
        (&["-O", "metadata_csum,64bit"], "-c -v 3"),
        (&["-O", "metadata_csum,^64bit"], "-c -v 2"),
        // A journal that is mapped as on ext3.
        (&["-O", "none,filetype,sparse_super,has_journal"], ""),
        (
            &["-O", "metadata_csum,64bit,bigalloc", "-C", "4096"],
            "-c -v 3",
        ),
    ] {
        let all = [&["-b", "1024", "-J", "size=1"], options].concat();
        let image = testing::ext4(16 << 20, &all, &files);
        let volume = open(image.clone()).unwrap();
        let inode = volume.resolve("/dir/file").unwrap().unwrap();
        let map = super::Map::read(&volume.source, &volume.geometry, &inode).unwrap();
        let block = map.runs[0].start;
        let read = |commands: &str, new: &[u8]| {
            let dirty = debugfs(&image, commands, new);
            assert_ne!(
                dirty[1024 + 0x60] & 4,
                0,
                "{options:?}: it needs no recovery"
            );
            let volume = open(dirty).unwrap_or_else(|e| panic!("{options:?}: {e}"));
            contents(&volume, "/dir/file").unwrap_or_else(|e| panic!("{options:?}: {e}"))
        };
        let written = format!("jo {checksums}\njw -b {block} new\njc\n");
        assert!(read(&written, &[b'n'; 1024]) == [b'n'; 1024], "{options:?}");
        // A block that begins like one of the journal's own.
        let mut magic = [b'm'; 1024];
        magic[..4].copy_from_slice(&0xC03B_3998u32.to_be_bytes());
        assert!(read(&written, &magic) == magic, "{options:?}");
        let revoked = format!("jo {checksums}\njw -b {block} new\njw -r {block}\njc\n");
        assert!(read(&revoked, &[b'n'; 1024]) == *old, "{options:?}");
        let again = format!("jo {checksums}\njw -r {block}\njw -b {block} new\njc\n");
        assert!(read(&again, &[b'n'; 1024]) == [b'n'; 1024], "{options:?}");
    }
}

/// Values at the edges of what a field can say.
const VALUES: [u64; 10] = [
    0,
    1,
    2,
    0x7F,
    0xFFFF,
    0x1_0000,
    0x7FFF_FFFF,
    0x8000_0000,
    0xFFFF_FFFE,
    0xFFFF_FFFF,
];

#[test]
fn superblocks_that_contradict_themselves_have_an_answer() {
    let files: [(&str, &[u8]); 1] = [("/dir/file", b"content")];
    let image = testing::ext4(
        2 << 20,
        &["-b", "1024", "-O", "metadata_csum,64bit"],
        &files,
    );
    for at in (0..0x280).step_by(2) {
        for value in VALUES {
            let mut disk = image.clone();
            disk[1024 + at..1024 + at + 4].copy_from_slice(&(value as u32).to_le_bytes());
            let sum = crc32c(!0, &disk[1024..1024 + 0x3FC]);
            disk[1024 + 0x3FC..2048].copy_from_slice(&sum.to_le_bytes());
            let Ok(volume) = open(disk) else { continue };
            if let Ok(found) = contents(&volume, "/dir/file") {
                assert_eq!(found, b"content", "word {at:#x} = {value:#x}");
            }
        }
    }
    // The upper half of the number of blocks, which only a file system with 64 bits has.
    let mut narrow = testing::ext4(2 << 20, &["-O", "^64bit,^metadata_csum"], &files);
    for (at, refused) in [(0x150, true), (0x154, false), (0x158, false)] {
        narrow[1024 + 0x150..1024 + 0x15C].fill(0);
        narrow[1024 + at..1024 + at + 4].copy_from_slice(&0x1FFFu32.to_le_bytes());
        match open(narrow.clone()) {
            Ok(volume) => {
                assert!(!refused, "{at:#x}");
                assert_eq!(contents(&volume, "/dir/file").unwrap(), b"content");
            }
            Err(error) => {
                assert!(refused, "{at:#x}: {error}");
                assert!(error.to_string().contains("`64bit`"), "{error}");
            }
        }
    }
}
