//! The content of a partition.

use super::ext4::Ext4Volume;
use super::fat::FatVolume;
use super::fs::{FsError, Volume};
use super::window::Window;

/// The content that was found on a partition.
pub(super) enum Content {
    Volume(Box<dyn Volume>),
    /// Recognised, but not readable; with the reason.
    Unreadable {
        what: &'static str,
        why: String,
    },
    Unknown,
}

/// Recognises the content of `window`. Never fails, because unreadable content is a result too.
pub(super) fn probe(window: &Window) -> Content {
    let has = |at: u64, magic: &[u8]| {
        let mut bytes = vec![0; magic.len()];
        window.read(at, &mut bytes).is_ok() && bytes == magic
    };
    let open = |what, volume: Result<Box<dyn Volume>, FsError>| match volume {
        Ok(volume) => Content::Volume(volume),
        Err(why) => Content::Unreadable {
            what,
            why: why.to_string(),
        },
    };
    let foreign = |what| Content::Unreadable {
        what,
        why: "this file system is not supported".into(),
    };
    if has(1024 + 0x38, &[0x53, 0xEF]) {
        return open(
            "ext4",
            Ext4Volume::open(window.clone()).map(|v| Box::new(v) as _),
        );
    }
    if has(510, &[0x55, 0xAA]) && (has(0x36, b"FAT") || has(0x52, b"FAT32")) {
        return open(
            "FAT",
            FatVolume::open(window.clone()).map(|v| Box::new(v) as _),
        );
    }
    let others: [(u64, &[u8], &'static str); 13] = [
        (3, b"NTFS    ", "NTFS"),
        (3, b"EXFAT   ", "exFAT"),
        (1024, &[0xE2, 0xE1, 0xF5, 0xE0], "EROFS"),
        (0, &[0xFC, 0x4E, 0x2B, 0xA9], "a Linux RAID"),
        (4096, &[0xFC, 0x4E, 0x2B, 0xA9], "a Linux RAID"),
        (0x1018, &[0xC6, 0x85, 0x73, 0xF6], "bcachefs"),
        (0x10040, b"_BHRfS_M", "btrfs"),
        (0, b"XFSB", "XFS"),
        (512, b"LABELONE", "LVM"),
        (0, b"LUKS\xBA\xBE", "LUKS"),
        (0, b"hsqs", "squashfs"),
        (0x8001, b"CD001", "ISO 9660"),
        (1024, &[0x10, 0x20, 0xF5, 0xF2], "F2FS"),
    ];
    match others.into_iter().find(|(at, magic, _)| has(*at, magic)) {
        Some((_, _, what)) => foreign(what),
        None => Content::Unknown,
    }
}
