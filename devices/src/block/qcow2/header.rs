//! The header of a qcow2 image, checked before any of it is used.
//!
//! Field offsets are those of QEMU's `docs/interop/qcow2.txt`, section "Header".

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::block::disk::{MAX_SIZE, SECTOR};
use crate::block::error::DiskError;
use crate::block::format::{Format, OpenOptions};
use crate::block::host::HostFile;

/// Maximum bytes of the L1 table, as in QEMU.
const MAX_L1: u64 = 32 << 20;
/// Maximum bytes of the refcount table, as in QEMU.
const MAX_REFCOUNT_TABLE: u64 = 8 << 20;
/// Maximum bytes of the backing file's name, set by the format.
const MAX_NAME: u32 = 1023;
/// Maximum number of header extensions, more than any image has.
const MAX_EXTENSIONS: usize = 64;

const EXTENSION_END: u32 = 0;
const EXTENSION_BACKING_FORMAT: u32 = 0xe279_2aca;

/// A checked header.
#[derive(Clone, Debug)]
pub(super) struct Header {
    /// Version of the format, 2 or 3.
    pub(super) version: u32,
    /// Size of the disk in bytes.
    pub(super) size: u64,
    /// log2 of the bytes of a cluster.
    pub(super) cluster_bits: u32,
    /// Bytes of a cluster.
    pub(super) cluster: u64,
    /// The compression of compressed clusters.
    pub(super) compression: Compression,
    /// Offset of the L1 table, which is within the file.
    pub(super) l1_offset: u64,
    /// Bytes of the L1 table.
    pub(super) l1_len: u64,
    /// The image under this one.
    pub(super) backing: Option<Backing>,
}

/// The compression of clusters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Compression {
    /// RFC 1951.
    Deflate,
    /// RFC 8878.
    Zstd,
}

/// The backing file of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Backing {
    pub(super) path: PathBuf,
    pub(super) format: Format,
}

/// Reads and checks the header. If the image will be written to, this includes the fields that only
/// writers need. The image may name a backing file only if the options say so.
pub(super) fn read(file: &HostFile, options: &OpenOptions) -> Result<Header, DiskError> {
    Checker {
        file,
        write: !options.read_only,
        follow: options.follow,
    }
    .read()
}

struct Checker<'a> {
    file: &'a HostFile,
    write: bool,
    follow: bool,
}

/// The first bytes of an image, by offset.
struct Fields([u8; 112]);

impl Fields {
    fn u32_at(&self, at: usize) -> u32 {
        be32(&self.0, at)
    }

    fn u64_at(&self, at: usize) -> u64 {
        u64::from(self.u32_at(at)) << 32 | u64::from(self.u32_at(at + 4))
    }
}

impl Checker<'_> {
    fn corrupt(&self, what: impl Into<String>) -> DiskError {
        DiskError::corrupt(self.file.path(), Format::Qcow2, what)
    }

    fn unsupported(&self, what: impl Into<String>, remedy: impl Into<String>) -> DiskError {
        DiskError::Unsupported {
            path: self.file.path().to_path_buf(),
            format: Format::Qcow2,
            what: what.into(),
            remedy: remedy.into(),
        }
    }

    fn read(&self) -> Result<Header, DiskError> {
        let fields = self.fields()?;
        let version = fields.u32_at(4);
        if version != 2 && version != 3 {
            return Err(self.unsupported(
                format!("it has version {version}"),
                "convert it with the version of QEMU that made it: qemu-img convert -O qcow2 IN OUT",
            ));
        }
        let cluster_bits = fields.u32_at(20);
        if !(9..=21).contains(&cluster_bits) {
            return Err(self.corrupt(format!(
                "its header claims clusters of 2^{cluster_bits} bytes"
            )));
        }
        let cluster = 1u64 << cluster_bits;
        if fields.u32_at(32) != 0 {
            return Err(self.unsupported(
                "it is encrypted",
                "decrypt it: qemu-img convert --object secret,id=s,file=KEYFILE --image-opts \
                 driver=qcow2,file.filename=IN,encrypt.key-secret=s -O qcow2 OUT",
            ));
        }
        let (compression, header_len) = match version {
            3 => self.check_version_3(&fields, cluster)?,
            _ => (Compression::Deflate, 72),
        };
        let size = self.check_size(&fields)?;
        let l1_len = self.check_l1(&fields, size, cluster)?;
        self.check_refcounts(&fields, cluster)?;
        let (name_offset, name_len) = (fields.u64_at(8), fields.u32_at(16));
        let area = self.read_first_cluster(cluster)?;
        // Images without a backing file have either of these, and QEMU's rule is the same.
        let backing = if name_offset == 0 || name_len == 0 {
            self.find_backing_format(&area, header_len, cluster)?;
            None
        } else {
            let name = self.name(&area, name_offset, name_len)?;
            let format = self.find_backing_format(&area, header_len, name_offset)?;
            Some(self.backing(name, format)?)
        };
        Ok(Header {
            version,
            size,
            cluster_bits,
            cluster,
            compression,
            l1_offset: fields.u64_at(40),
            l1_len,
            backing,
        })
    }

    fn fields(&self) -> Result<Fields, DiskError> {
        let mut start = [0; 112];
        self.file
            .read_up_to_end(&mut start, 0)
            .map_err(DiskError::io("read", self.file.path()))?;
        if !start.starts_with(b"QFI\xfb") {
            return Err(self.corrupt("it does not start with the magic number of qcow2"));
        }
        Ok(Fields(start))
    }

    /// The fields that version 3 added: the compression, and the length of the header.
    fn check_version_3(
        &self,
        fields: &Fields,
        cluster: u64,
    ) -> Result<(Compression, u64), DiskError> {
        let compression = self.check_features(fields.u64_at(72), fields.0[104])?;
        let refcount_order = fields.u32_at(96);
        if refcount_order > 6 {
            return Err(self.corrupt(format!(
                "its header claims refcounts of 2^{refcount_order} bits"
            )));
        }
        let header_len = u64::from(fields.u32_at(100));
        if header_len < 104 || !header_len.is_multiple_of(8) || header_len > cluster {
            return Err(self.corrupt(format!("its header claims to have {header_len} bytes")));
        }
        Ok((compression, header_len))
    }

    /// The size of the disk in bytes.
    fn check_size(&self, fields: &Fields) -> Result<u64, DiskError> {
        let size = fields.u64_at(24);
        if size == 0 || size > MAX_SIZE {
            return Err(self.corrupt(format!("its header claims a disk of {size} bytes")));
        }
        if self.write && !size.is_multiple_of(SECTOR) {
            return Err(self.unsupported(
                format!("its disk of {size} bytes ends within a sector of {SECTOR}"),
                format!(
                    "resize it: qemu-img resize IN {}",
                    size.next_multiple_of(SECTOR)
                ),
            ));
        }
        Ok(size)
    }

    /// The length of the L1 table in bytes.
    fn check_l1(&self, fields: &Fields, size: u64, cluster: u64) -> Result<u64, DiskError> {
        // An L1 entry leads to an L2 table, a cluster of 8-byte entries that each lead to a cluster.
        let needed = size.div_ceil(cluster * (cluster / 8));
        let len = u64::from(fields.u32_at(36)) * 8;
        if len < needed * 8 || len > MAX_L1 {
            return Err(self.corrupt(format!(
                "its L1 table claims {len} bytes for {needed} entries"
            )));
        }
        self.check_table("L1 table", fields.u64_at(40), len, cluster)?;
        Ok(len)
    }

    /// Checks the refcount table and the other fields that only writers need.
    fn check_refcounts(&self, fields: &Fields, cluster: u64) -> Result<(), DiskError> {
        let at = fields.u64_at(48);
        if !self.write {
            if !at.is_multiple_of(cluster) {
                return Err(self.corrupt("its refcount table is not at the start of a cluster"));
            }
            return Ok(());
        }
        let len = u64::from(fields.u32_at(56)) * cluster;
        if len == 0 || len > MAX_REFCOUNT_TABLE {
            return Err(self.corrupt(format!("its refcount table claims {len} bytes")));
        }
        self.check_table("refcount table", at, len, cluster)?;
        if fields.u32_at(60) != 0 {
            return Err(self.unsupported(
                "it has internal snapshots, so it can only be opened for reading",
                "create a layer over it, or convert it: qemu-img convert -O qcow2 IN OUT",
            ));
        }
        Ok(())
    }

    /// Refuses incompatible features, because they change how the image must be read. Only zstd and
    /// the mark of an image that was not closed are allowed, in images that are only read.
    fn check_features(&self, bits: u64, compression: u8) -> Result<Compression, DiskError> {
        const DIRTY: u64 = 1;
        const COMPRESSION_TYPE: u64 = 1 << 3;
        let zstd = bits & COMPRESSION_TYPE != 0 && compression == 1;
        if zstd && self.write {
            return Err(self.unsupported(
                "its clusters are compressed with zstd, so it can only be opened for reading",
                "create a layer over it, or convert it: \
                 qemu-img convert -O qcow2 -c -o compression_type=zlib IN OUT",
            ));
        }
        let mut bits = if zstd { bits & !COMPRESSION_TYPE } else { bits };
        if !self.write {
            // Only refcounts can be wrong, which no reader needs. QEMU also opens such an image for reading, and repairs
            // it before it writes.
            bits &= !DIRTY;
        }
        let convert = "convert it: qemu-img convert -O qcow2 IN OUT";
        let repair = "repair it: qemu-img check -r all IMAGE";
        let (what, remedy) = match bits.trailing_zeros() {
            64 => {
                return Ok(if zstd {
                    Compression::Zstd
                } else {
                    Compression::Deflate
                });
            }
            0 => (
                "it was not closed properly, so its refcounts may be wrong, and it can only be opened for reading",
                repair,
            ),
            1 => ("it is marked as corrupt", repair),
            2 => ("its data is in another file", convert),
            3 => ("its clusters are compressed by an unknown method", convert),
            4 => (
                "it has extended L2 entries",
                "convert it: qemu-img convert -O qcow2 -o extended_l2=off IN OUT",
            ),
            _ => ("it has unknown features", convert),
        };
        Err(self.unsupported(what, remedy))
    }

    /// Refuses a table that is not at a cluster's start or not within the file.
    fn check_table(
        &self,
        what: &str,
        offset: u64,
        len: u64,
        cluster: u64,
    ) -> Result<(), DiskError> {
        let end = offset.checked_add(len);
        if offset == 0 || !offset.is_multiple_of(cluster) || end.is_none_or(|e| e > self.file.len())
        {
            return Err(self.corrupt(format!(
                "its {what} of {len} bytes at {offset} is outside the file"
            )));
        }
        Ok(())
    }

    fn read_first_cluster(&self, cluster: u64) -> Result<Vec<u8>, DiskError> {
        let mut area = vec![0; cluster.min(self.file.len()) as usize];
        self.file
            .read(&mut area, 0)
            .map_err(DiskError::io("read", self.file.path()))?;
        Ok(area)
    }

    /// Reads the header extensions, which both versions have. As in QEMU they end with a mark, or at `end`, which is the
    /// name of the backing file or the end of the first cluster.
    fn find_backing_format<'b>(
        &self,
        area: &'b [u8],
        header_len: u64,
        end: u64,
    ) -> Result<Option<&'b [u8]>, DiskError> {
        let outside = || self.corrupt("its header extensions exceed the first cluster");
        let area = area
            .get(..area.len().min(end as usize))
            .ok_or_else(outside)?;
        let (mut format, mut at) = (None, header_len as usize);
        for _ in 0..MAX_EXTENSIONS {
            if at >= area.len() {
                return Ok(format);
            }
            let rest = area
                .get(at..)
                .filter(|r| r.len() >= 8)
                .ok_or_else(outside)?;
            let (kind, len) = (be32(rest, 0), be32(rest, 4) as usize);
            let data = rest
                .get(8..)
                .and_then(|r| r.get(..len))
                .ok_or_else(outside)?;
            match kind {
                EXTENSION_END => return Ok(format),
                EXTENSION_BACKING_FORMAT => format = Some(data),
                _ => {}
            }
            at += 8 + len.next_multiple_of(8);
        }
        Err(self.corrupt("it has too many header extensions"))
    }

    /// The name of the backing file.
    fn name<'b>(&self, area: &'b [u8], offset: u64, len: u32) -> Result<&'b [u8], DiskError> {
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        area.get(start..)
            .and_then(|r| r.get(..len as usize))
            .filter(|n| len <= MAX_NAME && !n.contains(&0))
            .ok_or_else(|| {
                self.corrupt("the name of its backing file is outside its first cluster")
            })
    }

    fn backing(&self, name: &[u8], format: Option<&[u8]>) -> Result<Backing, DiskError> {
        let named = String::from_utf8_lossy(name).into_owned();
        if !self.follow {
            let path = self.file.path().to_path_buf();
            return Err(DiskError::NamesFile {
                remedy: format!(
                    "if you trust the image, make one without a backing file: qemu-img convert -O qcow2 {} NEW.qcow2",
                    path.display()
                ),
                path,
                format: Format::Qcow2,
                role: "backing file",
                named,
            });
        }
        // "nbd://…", "json:{…}": anything with a colon before the first slash.
        let colon = name.iter().position(|b| *b == b':');
        let slash = name.iter().position(|b| *b == b'/').unwrap_or(name.len());
        if colon.is_some_and(|c| c < slash) {
            return Err(self.unsupported(
                format!("its backing file {named:?} is not a local path"),
                "flatten it: qemu-img convert -O qcow2 IN OUT",
            ));
        }
        let format = match format {
            Some(b"qcow2") => Format::Qcow2,
            Some(b"raw") => Format::Raw,
            _ => {
                return Err(self.unsupported(
                    "it does not say whether its backing file is raw or qcow2",
                    "state it: qemu-img rebase -u -b BACKING -F raw|qcow2 IMAGE",
                ));
            }
        };
        let directory = self.file.path().parent().unwrap_or(Path::new(""));
        Ok(Backing {
            path: directory.join(OsStr::from_bytes(name)),
            format,
        })
    }
}

/// The big-endian number at an offset, or 0 if it is outside the bytes.
fn be32(bytes: &[u8], at: usize) -> u32 {
    bytes
        .get(at..)
        .and_then(|b| b.first_chunk())
        .map_or(0, |b| u32::from_be_bytes(*b))
}
