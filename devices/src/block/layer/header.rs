//! The header of a layer file.
//!
//! All numbers are little-endian. Everything up to the checksum is written once, before the file
//! gets its name. The boot identity is in a separate sector.
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 8 | magic |
//! | 8 | 4 | version, 1 |
//! | 12 | 4 | log2 of the block size, 12 |
//! | 16 | 8 | size of the disk in bytes |
//! | 24 | 8 | offset of the live bitmap |
//! | 32 | 8 | offset of the durable bitmap |
//! | 40 | 8 | offset of the data |
//! | 48 | 4 | format of the base: 0 no base, 1 raw, 2 qcow2, 3 layer |
//! | 52 | 4 | length of the base's path |
//! | 56 | 8 | size of the base's disk in bytes |
//! | 64 | 8 | length of the base's file in bytes |
//! | 72 | 8 | base's modification time, seconds (signed) |
//! | 80 | 4 | base's modification time, nanoseconds |
//! | 84 | 4 | length of the base's digest |
//! | 88 | 8 | base's inode |
//! | 96 | 160 | base's digest, as given when the layer was created |
//! | 256 | 4096 | base's path |
//! | 4352 | 8 | FNV-1a of all before |
//! | 4608 | 16 | identity of the boot of the live bitmap |

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::bitmap::BLOCK_BITS;
use super::info::{Base, BaseInfo};
use crate::block::disk::{MAX_SIZE, SECTOR};
use crate::block::error::DiskError;
use crate::block::format::{Format, LAYER_MAGIC as MAGIC};
use crate::block::host::FileIdentity;

/// Bytes of the header in the file.
pub(super) const LEN: usize = 8192;
/// Offset of the boot identity.
pub(super) const BOOT_ID: u64 = 4608;

const VERSION: u32 = 1;
const DIGEST: usize = 96;
const DIGEST_MAX: usize = 160;
const PATH: usize = DIGEST + DIGEST_MAX;
const PATH_MAX: usize = 4096;
const CHECKSUM: usize = PATH + PATH_MAX;
/// Alignment of the data: at least the block size of every file system, so that holes can be
/// punched.
const DATA_ALIGN: u64 = 64 * 1024;

/// The fields of a layer that never change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) size: u64,
    pub(super) base: Option<BaseInfo>,
}

/// The offsets in a layer file, which follow from the disk's size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    /// Number of blocks.
    pub(super) blocks: u64,
    /// Bytes of each bitmap, in whole pages.
    pub(super) bitmap_len: u64,
    pub(super) live: u64,
    pub(super) durable: u64,
    pub(super) data: u64,
    /// Length of the file.
    pub(super) end: u64,
}

impl Layout {
    /// `size` is at most [`MAX_SIZE`].
    pub(super) fn new(size: u64) -> Self {
        let blocks = size.div_ceil(1 << BLOCK_BITS);
        let bitmap_len = blocks.div_ceil(8).next_multiple_of(4096);
        let live = LEN as u64;
        let durable = live + bitmap_len;
        let data = (durable + bitmap_len).next_multiple_of(DATA_ALIGN);
        Self {
            blocks,
            bitmap_len,
            live,
            durable,
            data,
            end: data + (blocks << BLOCK_BITS),
        }
    }
}

impl Header {
    /// Encodes the header, or says why that is impossible.
    pub(super) fn encode(&self) -> Result<Vec<u8>, String> {
        let layout = Layout::new(self.size);
        let mut out = vec![0; LEN];
        let mut put = |at: usize, bytes: &[u8]| out[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &MAGIC);
        put(8, &VERSION.to_le_bytes());
        put(12, &BLOCK_BITS.to_le_bytes());
        put(16, &self.size.to_le_bytes());
        put(24, &layout.live.to_le_bytes());
        put(32, &layout.durable.to_le_bytes());
        put(40, &layout.data.to_le_bytes());
        if let Some(BaseInfo {
            base,
            size,
            identity,
        }) = &self.base
        {
            let path = base.path.as_os_str().as_bytes();
            let digest = base.digest.as_deref().unwrap_or("").as_bytes();
            if path.len() > PATH_MAX || digest.len() > DIGEST_MAX {
                return Err(format!(
                    "a base's path can have at most {PATH_MAX} bytes, and its digest {DIGEST_MAX}"
                ));
            }
            let format: u32 = match base.format {
                Some(Format::Raw) => 1,
                Some(Format::Qcow2) => 2,
                Some(Format::Layer) => 3,
                None => return Err("the base's format is unknown".into()),
            };
            put(48, &format.to_le_bytes());
            put(52, &(path.len() as u32).to_le_bytes());
            put(56, &size.to_le_bytes());
            put(64, &identity.len.to_le_bytes());
            put(72, &identity.mtime.to_le_bytes());
            put(80, &identity.mtime_nanos.to_le_bytes());
            put(84, &(digest.len() as u32).to_le_bytes());
            put(88, &identity.inode.to_le_bytes());
            put(DIGEST, digest);
            put(PATH, path);
        }
        let sum = checksum(&out[..CHECKSUM]);
        out[CHECKSUM..CHECKSUM + 8].copy_from_slice(&sum.to_le_bytes());
        Ok(out)
    }

    /// Reads the header of the layer at `path`, whose file has `file_len` bytes.
    pub(super) fn decode(bytes: &[u8; LEN], path: &Path, file_len: u64) -> Result<Self, DiskError> {
        let corrupt = |what: &str| DiskError::corrupt(path, Format::Layer, what);
        let u32_at = |at: usize| u32::from_le_bytes(array(bytes, at));
        let u64_at = |at: usize| u64::from_le_bytes(array(bytes, at));
        if bytes[..8] != MAGIC {
            return Err(corrupt(
                "it does not start with the magic number of a layer",
            ));
        }
        let (version, block_bits) = (u32_at(8), u32_at(12));
        if version != VERSION || block_bits != BLOCK_BITS {
            return Err(DiskError::Unsupported {
                path: path.to_path_buf(),
                format: Format::Layer,
                what: format!("it has version {version} with blocks of 2^{block_bits} bytes"),
                remedy: "use the fleetbox release that created it, or a newer one".into(),
            });
        }
        if checksum(&bytes[..CHECKSUM]) != u64_at(CHECKSUM) {
            return Err(corrupt("its header's checksum is wrong"));
        }
        let size = u64_at(16);
        if size == 0 || size > MAX_SIZE || !size.is_multiple_of(SECTOR) {
            return Err(corrupt("its header claims an impossible size"));
        }
        let layout = Layout::new(size);
        if (u64_at(24), u64_at(32), u64_at(40)) != (layout.live, layout.durable, layout.data) {
            return Err(corrupt("its header claims impossible offsets"));
        }
        if file_len < layout.end {
            return Err(corrupt("it is truncated"));
        }
        let base_format = match u32_at(48) {
            0 => return Ok(Self { size, base: None }),
            1 => Format::Raw,
            2 => Format::Qcow2,
            3 => Format::Layer,
            _ => return Err(corrupt("its header names an unknown format for its base")),
        };
        let text = |at: usize, len: usize, max: usize| {
            bytes[at..at + max]
                .get(..len)
                .ok_or_else(|| corrupt("a name in its header is too long"))
        };
        let path_bytes = text(PATH, u32_at(52) as usize, PATH_MAX)?;
        let digest = std::str::from_utf8(text(DIGEST, u32_at(84) as usize, DIGEST_MAX)?)
            .map_err(|_| corrupt("the digest of its base is not UTF-8"))?;
        Ok(Self {
            size,
            base: Some(BaseInfo {
                base: Base {
                    path: PathBuf::from(OsStr::from_bytes(path_bytes)),
                    format: Some(base_format),
                    digest: (!digest.is_empty()).then(|| digest.to_owned()),
                },
                size: u64_at(56),
                identity: FileIdentity {
                    len: u64_at(64),
                    mtime: i64::from_le_bytes(array(bytes, 72)),
                    mtime_nanos: u32_at(80),
                    inode: u64_at(88),
                },
            }),
        })
    }
}

/// The `N` bytes at a constant offset within the header.
fn array<const N: usize>(bytes: &[u8; LEN], at: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&bytes[at..at + N]);
    out
}

/// FNV-1a, which detects damage, but no attack.
fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |sum, b| {
        (sum ^ u64::from(*b)).wrapping_mul(0x100_0000_01b3)
    })
}
