use std::fs;
use std::path::Path;

use super::extra_disk::ExtraDisk;
use super::format::{FormatError, ImageFormat, data_format, image_format, sniff};

/// A qcow2 image of one sector that has no data, with a raw backing file of this name.
pub(crate) fn qcow2(backing: Option<&str>) -> Vec<u8> {
    let mut image = vec![0; 3 * 512];
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"QFI\xfb\0\0\0\x02");
    put(20, &9u32.to_be_bytes());
    put(24, &512u64.to_be_bytes());
    put(36, &1u32.to_be_bytes());
    put(40, &512u64.to_be_bytes());
    put(48, &1024u64.to_be_bytes());
    if let Some(name) = backing {
        put(72, b"\xe2\x79\x2a\xca\0\0\0\x03raw");
        put(8, &96u64.to_be_bytes());
        put(16, &(name.len() as u32).to_be_bytes());
        put(96, name.as_bytes());
    }
    image
}

fn write(path: &Path, at: usize, bytes: &[u8]) {
    let mut content = vec![0; 64 << 10];
    content[at..at + bytes.len()].copy_from_slice(bytes);
    fs::write(path, content).unwrap();
}

/// The bytes are those of files that the programs themselves made.
#[test]
fn files_of_other_formats_are_named_with_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.img");
    for (at, bytes, needles) in [
        (0, &b"\xfd7zXZ\0"[..], ["compressed", "xz -d"]),
        (0, b"\x1f\x8b\x08", ["compressed", "gzip -d"]),
        (0, b"\x28\xb5\x2f\xfd", ["compressed", "zstd -d"]),
        (0, b"BZh91AY", ["compressed", "bzip2 -d"]),
        (0, b"\x04\x22\x4d\x18", ["compressed", "lz4 -d"]),
        (0, b"PK\x03\x04", ["compressed", "unzip"]),
        (0, b"7z\xbc\xaf\x27\x1c\0\x04", ["compressed", "7z x"]),
        (0, b"KDMV\x01\0\0\0", ["VMDK", "convert -f vmdk"]),
        (0, b"COWD\x01\0\0\0", ["VMDK", "convert -f vmdk"]),
        (
            0,
            b"# Disk DescriptorFile\nversion=1",
            ["VMDK", "convert -f vmdk"],
        ),
        (0, b"vhdxfile", ["VHDX", "convert -f vhdx"]),
        (0, b"conectix\0\0\0\x02", ["VHD", "convert -f vpc"]),
        (
            (64 << 10) - 512,
            b"conectix\0\0\0\x02",
            ["VHD", "convert -f vpc"],
        ),
        (
            (64 << 10) - 512,
            b"koly\0\0\0\x04",
            ["DMG", "convert -f dmg"],
        ),
        (0, b"QED\0", ["QED", "convert -f qed"]),
        (64, b"\x7f\x10\xda\xbe", ["VDI", "convert -f vdi"]),
        (
            0,
            b"WithoutFreeSpace",
            ["Parallels", "convert -f parallels"],
        ),
        (0, b"FBxLAYER", ["layer", "the VM was made from"]),
        (0, b"\n <!DOCTYPE html>", ["web page", "address"]),
    ] {
        write(&path, at, bytes);
        let extra = ExtraDisk::file(&path).check().unwrap_err().to_string();
        let image = image_format(&path, "x.img").unwrap_err().to_string();
        for error in [extra, image] {
            assert!(error.contains("x.img"), "{error}");
            for needle in needles {
                assert!(error.contains(needle), "{needle}: {error}");
            }
        }
    }
}

#[test]
fn what_no_guest_boots_from_can_still_be_an_extra_disk() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.iso");
    for (at, bytes, needle) in [
        (0x8001, &b"CD001\x01"[..], "ISO image"),
        (257, b"ustar\x0000", "tar archive"),
        (257, b"ustar  \0", "tar archive"),
    ] {
        write(&path, at, bytes);
        let error = image_format(&path, "x.iso").unwrap_err().to_string();
        assert!(error.contains(needle), "{error}");
        assert_eq!(data_format(&path, "x.iso").unwrap(), ImageFormat::Raw);
        ExtraDisk::file(&path).check().unwrap();
    }
}

#[test]
fn an_extra_disk_names_no_file_of_the_host() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.qcow2");
    fs::write(&path, qcow2(None)).unwrap();
    ExtraDisk::file(&path).check().unwrap();
    fs::write(&path, qcow2(Some("/etc/shadow"))).unwrap();
    let error = ExtraDisk::file(&path).check().unwrap_err().to_string();
    assert!(
        error.contains("\"/etc/shadow\" as its backing file") && error.contains("qemu-img convert"),
        "{error}"
    );
}

#[test]
fn a_damaged_qcow2_image_is_refused_before_a_vm_is_made() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.qcow2");
    let mut image = qcow2(None);
    image.truncate(516);
    fs::write(&path, image).unwrap();
    let error = image_format(&path, "x.qcow2").unwrap_err();
    assert!(matches!(error, FormatError::NotAnImage { .. }), "{error}");
    assert!(error.to_string().contains("it is damaged"), "{error}");
}

/// The first bytes of a download, before the others are there.
#[test]
fn a_few_bytes_are_enough_for_most_formats() {
    assert_eq!(sniff(b"QFI\xfb", "x").unwrap(), ImageFormat::Qcow2);
    assert_eq!(sniff(b"\xeb", "x").unwrap(), ImageFormat::Raw);
    assert!(sniff(b"\x1f\x8b", "x").is_err());
    assert!(sniff(b"", "x").is_err());
}
