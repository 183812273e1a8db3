//! Names the boot loaders that a disk has and that are not supported, for the error.

use super::devices::{Device, Devices};
use super::fs::{FsError, Kind, Volume};

/// Maximum bytes of an EFI program in which its sections are looked for.
const MAX_HEADERS: usize = 4096;
/// Maximum number of loaders that are named.
const MAX_NAMED: usize = 8;

/// Files and directories that give a boot loader away, on any partition.
const TRACES: [(&str, &str); 24] = [
    ("systemd-boot", "/EFI/systemd/systemd-bootx64.efi"),
    ("systemd-boot", "/loader/loader.conf"),
    ("Boot Loader Specification entries", "/loader/entries"),
    ("Boot Loader Specification entries", "/boot/loader/entries"),
    ("extlinux", "/extlinux/extlinux.conf"),
    ("extlinux", "/extlinux.conf"),
    ("extlinux", "/boot/extlinux/extlinux.conf"),
    ("extlinux", "/boot/extlinux.conf"),
    ("syslinux", "/syslinux/syslinux.cfg"),
    ("syslinux", "/syslinux.cfg"),
    ("syslinux", "/boot/syslinux/syslinux.cfg"),
    ("syslinux", "/EFI/syslinux/syslinux.cfg"),
    ("isolinux", "/isolinux/isolinux.cfg"),
    ("GRUB legacy", "/boot/grub/menu.lst"),
    ("GRUB legacy", "/grub/menu.lst"),
    ("GRUB legacy", "/boot/grub/grub.conf"),
    ("GRUB legacy", "/grub/grub.conf"),
    ("LILO", "/etc/lilo.conf"),
    ("Limine", "/limine.conf"),
    ("Limine", "/boot/limine.conf"),
    ("rEFInd", "/EFI/refind/refind.conf"),
    ("Windows", "/EFI/Microsoft/Boot/bootmgfw.efi"),
    ("FreeBSD's loader", "/boot/loader.efi"),
    ("U-Boot", "/boot/boot.scr"),
];

/// The loaders on all partitions, each with the file that gives it away. Files that cannot be looked
/// for are noted.
pub(super) fn find(devices: &Devices) -> Vec<String> {
    let mut found = Vec::new();
    for (_, device) in devices.iter() {
        if let Some(volume) = device.volume() {
            on(devices, device, volume, &mut found);
        }
    }
    found.truncate(MAX_NAMED);
    found
}

fn on(devices: &Devices, device: &Device, volume: &dyn Volume, found: &mut Vec<String>) {
    let before = found.len();
    for (loader, path) in TRACES {
        let here = format!("({})", device.name);
        let known = || {
            let others = found.get(before..).unwrap_or_default();
            others.iter().any(|text| text.starts_with(loader))
        };
        if known() {
            continue;
        }
        match volume.kind(path) {
            Ok(Some(Kind::File(_))) => found.push(format!("{loader} ({here}{path})")),
            // A directory counts if there is something in it.
            Ok(Some(Kind::Directory)) if volume.list(path).is_ok_and(|names| !names.is_empty()) => {
                found.push(format!("{loader} ({here}{path})"));
            }
            Ok(_) | Err(FsError::NotFound) => {}
            Err(error) => {
                devices.note(format!("{here}{path}: {error}"));
                break;
            }
        }
    }
    if let Some(path) = unified(volume) {
        found.push(format!("a unified kernel image (({}){path})", device.name));
    }
}

/// A unified kernel image on an EFI system partition: an EFI program with a section `.linux`.
fn unified(volume: &dyn Volume) -> Option<String> {
    let own = volume.list("/EFI/Linux").unwrap_or_default();
    let own = own
        .into_iter()
        .filter(|name| name.to_ascii_lowercase().ends_with(".efi"))
        .map(|name| format!("/EFI/Linux/{name}"))
        .min();
    own.or_else(|| {
        let path = "/EFI/BOOT/BOOTX64.EFI";
        let head = volume.head(path, MAX_HEADERS).ok()?;
        has_section(&head, b".linux\0\0").then(|| path.into())
    })
}

/// True if a PE program, which starts with `head`, has a section called `name`.
fn has_section(head: &[u8], name: &[u8; 8]) -> bool {
    let u16_at = |at: usize| {
        let bytes = head.get(at..).and_then(|bytes| bytes.first_chunk());
        bytes.map(|bytes| usize::from(u16::from_le_bytes(*bytes)))
    };
    let sections = || {
        if !head.starts_with(b"MZ") || u16_at(0x3E)? != 0 {
            return None;
        }
        let header = u16_at(0x3C)?;
        if !head.get(header..)?.starts_with(b"PE\0\0") {
            return None;
        }
        let (count, optional) = (u16_at(header + 6)?, u16_at(header + 20)?);
        let (sections, _) = head.get(header + 24 + optional..)?.as_chunks::<40>();
        sections.get(..count.min(sections.len()))
    };
    sections().is_some_and(|all: &[[u8; 40]]| all.iter().any(|section| section.starts_with(name)))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// The head of an EFI program with the given sections.
    pub(in crate::boot) fn program(sections: &[&[u8; 8]]) -> Vec<u8> {
        let mut head = vec![0; 64];
        head[..2].copy_from_slice(b"MZ");
        head[0x3C] = 64;
        head.extend(b"PE\0\0\x64\x86");
        head.extend((sections.len() as u16).to_le_bytes());
        head.resize(64 + 20, 0);
        head.extend(16u16.to_le_bytes());
        head.resize(64 + 24 + 16, 0);
        for section in sections {
            head.extend(*section);
            head.extend([0; 32]);
        }
        head
    }

    #[test]
    fn sections_are_found() {
        let head = program(&[b".text\0\0\0", b".linux\0\0"]);
        assert!(has_section(&head, b".linux\0\0"));
        assert!(!has_section(&head, b".initrd\0"));
        assert!(!has_section(&program(&[b".text\0\0\0"]), b".linux\0\0"));
        for len in 0..head.len() {
            let _ = has_section(&head[..len], b".linux\0\0");
        }
        for at in 0..64 + 24 {
            let mut bad = head.clone();
            bad[at] = 0xFF;
            let _ = has_section(&bad, b".linux\0\0");
        }
    }
}
