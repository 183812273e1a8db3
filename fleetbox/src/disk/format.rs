//! Detects the format of a disk image from its bytes, and refuses what is not a disk of its own: files of other formats,
//! and images that name other files.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};

use fleetbox_devices::block::{DiskError, Format, OpenOptions, open_disk};
use serde::{Deserialize, Serialize};

use crate::util::readable::readable_debug;

/// Why a file cannot be used as a disk image.
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum FormatError {
    /// It cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is not a disk image.
    #[error("{name} is not a usable disk image: {why}")]
    NotAnImage {
        /// Path or address.
        name: String,
        /// What is wrong with it.
        why: String,
    },
}

readable_debug!(FormatError);

/// The format of an image file, detected from its first bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ImageFormat {
    /// The disk's bytes as they are.
    Raw,
    /// QEMU's copy-on-write format, version 2 or 3.
    Qcow2,
}

/// First bytes of a file that show what it is: up to the first descriptor of an ISO image.
const HEAD: u64 = 33 << 10;

/// Bytes at the end of a file that show what it is.
const TAIL: u64 = 512;

/// A kind of file that is not a disk as raw bytes, told by bytes at an offset.
struct Foreign {
    at: usize,
    bytes: &'static [u8],
    is: Is,
}

/// What a file is, and so what to do with it.
#[derive(Clone, Copy)]
enum Is {
    /// Compressed; the text is the program that unpacks it.
    Packed(&'static str),
    /// An image of another program: its name, and the driver of qemu-img that reads it.
    Image(&'static str, &'static str),
    /// Something else that cannot be a disk.
    Other(&'static str),
    /// Something that a guest may want to read from a disk, but cannot boot from.
    Data(&'static str),
}

const FOREIGN: &[Foreign] = &[
    start(b"\xfd7zXZ\0", Is::Packed("xz -d")),
    start(b"\x1f\x8b", Is::Packed("gzip -d")),
    start(b"\x28\xb5\x2f\xfd", Is::Packed("zstd -d")),
    start(b"BZh", Is::Packed("bzip2 -d")),
    start(b"\x04\x22\x4d\x18", Is::Packed("lz4 -d")),
    start(b"LZIP", Is::Packed("lzip -d")),
    start(b"PK\x03\x04", Is::Packed("unzip")),
    start(b"7z\xbc\xaf\x27\x1c", Is::Packed("7z x")),
    start(b"Rar!\x1a\x07", Is::Packed("unrar x")),
    start(b"KDMV", Is::Image("VMDK", "vmdk")),
    start(b"COWD", Is::Image("VMDK", "vmdk")),
    start(b"# Disk DescriptorFile", Is::Image("VMDK", "vmdk")),
    start(b"vhdxfile", Is::Image("VHDX", "vhdx")),
    start(b"conectix", Is::Image("VHD", "vpc")),
    start(b"QED\0", Is::Image("QED", "qed")),
    start(b"WithoutFreeSpace", Is::Image("Parallels", "parallels")),
    start(b"WithouFreSpacExt", Is::Image("Parallels", "parallels")),
    start(b"Bochs Virtual HD Image", Is::Image("Bochs", "bochs")),
    Foreign {
        at: 64,
        bytes: b"\x7f\x10\xda\xbe",
        is: Is::Image("VDI", "vdi"),
    },
    start(
        b"FBxLAYER",
        Is::Other("it is a layer, the disk of one VM; use the image that the VM was made from"),
    ),
    Foreign {
        at: 257,
        bytes: b"ustar",
        is: Is::Data("it is a tar archive; take the disk image out of it first: tar -xf FILE"),
    },
    Foreign {
        at: 0x8001,
        bytes: b"CD001",
        is: Is::Data(
            "it is an ISO image, such as an installer; use the image of a disk with an installed system, such as a cloud image",
        ),
    },
];

/// Formats that are told by the last bytes of a file.
const FOREIGN_ENDS: &[(&[u8], Is)] = &[
    // A VHD of fixed size is a raw image with a footer.
    (b"conectix", Is::Image("VHD", "vpc")),
    (b"koly", Is::Image("DMG", "dmg")),
];

const fn start(bytes: &'static [u8], is: Is) -> Foreign {
    Foreign { at: 0, bytes, is }
}

impl Is {
    /// Why the file cannot be used and what to do, if it cannot be used.
    fn refusal(self, boot: bool) -> Option<String> {
        match self {
            Self::Packed(tool) => Some(format!("it is compressed; unpack it with {tool} first")),
            Self::Image(name, driver) => Some(format!(
                "it is a {name} image; convert it with qemu-img first: qemu-img convert -f {driver} -O qcow2 FILE NEW.qcow2"
            )),
            Self::Other(why) => Some(why.to_owned()),
            Self::Data(why) => boot.then(|| why.to_owned()),
        }
    }
}

/// Checks that a VM's root disk can be made from the file at `path`, and detects its format. Errors call it `name`.
pub(crate) fn image_format(path: &Path, name: &str) -> Result<ImageFormat, FormatError> {
    check(path, name, true)
}

/// Checks that a disk with any content can be made from the file at `path`, and detects its format.
pub(crate) fn data_format(path: &Path, name: &str) -> Result<ImageFormat, FormatError> {
    check(path, name, false)
}

fn check(path: &Path, name: &str, boot: bool) -> Result<ImageFormat, FormatError> {
    let (head, tail) = ends(path).map_err(|source| FormatError::Read {
        path: path.to_owned(),
        source,
    })?;
    let format = detect(&head, &tail, name, boot)?;
    if format == ImageFormat::Qcow2 {
        let options = OpenOptions {
            format: Some(Format::Qcow2),
            ..OpenOptions::read_only()
        };
        if let Err(error) = open_disk(path, &options) {
            return Err(not_an_image(name, explain(error)));
        }
    }
    Ok(format)
}

/// The first and the last bytes of a file. A block device has no end here.
fn ends(path: &Path) -> io::Result<(Vec<u8>, Vec<u8>)> {
    let mut file = File::open(path)?;
    let (mut head, mut tail) = (Vec::new(), Vec::new());
    (&file).take(HEAD).read_to_end(&mut head)?;
    if let Some(start) = file.metadata()?.len().checked_sub(TAIL) {
        file.seek(SeekFrom::Start(start))?;
        file.take(TAIL).read_to_end(&mut tail)?;
    }
    Ok((head, tail))
}

/// The reason without the path, which may be that of a partial download.
fn explain(error: DiskError) -> String {
    match error {
        DiskError::Corrupt { what, .. } => format!("it is damaged: {what}"),
        DiskError::Unsupported { what, remedy, .. } => format!("{what}; {remedy}"),
        DiskError::NamesFile { role, named, .. } => format!(
            "it names {named:?} as its {role}, and the guest could read that file of this host; if you trust the image, make one without a {role}: qemu-img convert -O qcow2 FILE NEW.qcow2"
        ),
        error => error.to_string(),
    }
}

/// Detects the format from a file's first bytes, of which there may be few. Anything that is not recognised is raw.
pub(crate) fn sniff(head: &[u8], name: &str) -> Result<ImageFormat, FormatError> {
    detect(head, &[], name, true)
}

fn detect(head: &[u8], tail: &[u8], name: &str, boot: bool) -> Result<ImageFormat, FormatError> {
    if head.starts_with(b"QFI\xfb") {
        return Ok(ImageFormat::Qcow2);
    }
    if head.is_empty() {
        return Err(not_an_image(name, "it is empty"));
    }
    if is_html(head) {
        let why = "it is a web page; use the address of the image file itself";
        return Err(not_an_image(name, why));
    }
    let by_head = FOREIGN
        .iter()
        .filter(|f| head.get(f.at..).is_some_and(|b| b.starts_with(f.bytes)))
        .map(|f| f.is);
    let by_end = FOREIGN_ENDS
        .iter()
        .filter(|(bytes, _)| tail.starts_with(bytes))
        .map(|(_, is)| *is);
    match by_head.chain(by_end).find_map(|is| is.refusal(boot)) {
        Some(why) => Err(not_an_image(name, why)),
        None => Ok(ImageFormat::Raw),
    }
}

fn not_an_image(name: &str, why: impl Into<String>) -> FormatError {
    FormatError::NotAnImage {
        name: name.to_owned(),
        why: why.into(),
    }
}

fn is_html(head: &[u8]) -> bool {
    let head = head.trim_ascii_start();
    ["<!doctype", "<html", "<?xml"].iter().any(|tag| {
        head.get(..tag.len())
            .is_some_and(|start| start.eq_ignore_ascii_case(tag.as_bytes()))
    })
}
