//! File systems as `mke2fs` makes them, and what their superblocks may say.

use super::Ext4Volume;
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
    // 32 groups, so that their descriptors take several blocks.
    &["-b", "1024", "-g", "1024"],
    &["-b", "1024", "-g", "1024", "-O", "meta_bg,^resize_inode"],
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
    let names: Vec<String> = (0..300).map(|i| format!("/boot/module-{i:0>60}")).collect();
    let mut files: Vec<(&str, &[u8])> = names.iter().map(|n| (n.as_str(), &b"small"[..])).collect();
    files.push(("/boot/dir/holes", &holes));
    files.push(("/boot/dir/empty", b""));
    files.push(("/large", &large));
    files.push(("/boot/link", b"->dir/../../large"));
    let long = format!("->/{}large", "boot/../".repeat(20));
    files.push(("/boot/long", long.as_bytes()));
    files.push(("/boot/self", b"->self"));
    for options in VARIANTS {
        let options = [options, &["-U", "8E0C5F11-6d0c-4a52-b0d2-3f6ac2a8f3a0"][..]].concat();
        let image = testing::ext4(32 << 20, &options, &files);
        let volume = open(image).unwrap_or_else(|e| panic!("{options:?}: {e}"));
        let read = |path: &str| contents(&volume, path);
        for (path, content) in files.iter().filter(|(_, c)| !c.starts_with(b"->")) {
            let bytes = read(path).unwrap_or_else(|e| panic!("{options:?} {path}: {e}"));
            assert!(bytes == *content, "{options:?} {path}");
        }
        assert!(read("/boot/link").unwrap() == large, "{options:?}");
        assert!(read("/boot/long").unwrap() == large, "{options:?}");
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
        assert_eq!(volume.list("/boot").unwrap().len(), 304);
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
