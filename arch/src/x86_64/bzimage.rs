//! bzImages: Linux's compressed kernel format (Documentation/arch/x86/boot.rst).

use super::elf;
use super::kernel::{KernelError, Placed, Source, check_range};
use crate::GuestMemory;
use linux_loader::loader::bootparam::setup_header;
use vm_memory::{ByteValued, Bytes, GuestAddress};

/// Where the setup header begins in the file and in the zero page.
pub(super) const HEADER_START: usize = 0x1F1;
const HEADER_MAGIC_AT: usize = 0x202;
const HEADER_MAGIC: &[u8; 4] = b"HdrS";
/// The 64-bit entry came with protocol 2.12.
const MIN_VERSION: u16 = 0x020C;
const XLF_KERNEL_64: u16 = 1;
/// Distance of the 64-bit entry point from the start of the protected-mode code.
const ENTRY_64: u64 = 0x200;
const SECTOR: usize = 512;

/// The largest uncompressed kernel that is accepted, in bytes; real ones have some 50 MB.
pub const MAX_VMLINUX: usize = 256 << 20;

/// What a bzImage says about itself, from the real-mode setup header.
#[derive(Debug, Clone)]
pub struct SetupHeader {
    /// The header as the zero page takes it.
    pub(super) raw: setup_header,
    /// Longest command line in bytes, without the terminating zero.
    pub cmdline_size: u32,
    /// Last address that the initrd may use (GPA).
    pub initrd_addr_max: u32,
    /// Where the protected-mode code begins in the file.
    code: usize,
}

impl SetupHeader {
    /// Reads the setup header of the bzImage `image`.
    ///
    /// # Errors
    /// It is no bzImage, or one without a 64-bit entry point.
    pub fn parse(image: &[u8]) -> Result<Self, KernelError> {
        if image.get(HEADER_MAGIC_AT..HEADER_MAGIC_AT + 4) != Some(HEADER_MAGIC) {
            return Err(KernelError::BzImage("it has no setup header"));
        }
        let mut raw = setup_header::default();
        let size = size_of::<setup_header>();
        // The header ends where the jump instruction before it leads to; later kernels know more
        // fields than we do and older ones fewer.
        let own_end = HEADER_MAGIC_AT + usize::from(image[HEADER_MAGIC_AT - 1]);
        let end = own_end.min(HEADER_START + size);
        let bytes = image
            .get(HEADER_START..end)
            .ok_or(KernelError::BzImage("it ends inside its setup header"))?;
        raw.as_mut_slice()
            .get_mut(..bytes.len())
            .ok_or(KernelError::BzImage("its setup header is malformed"))?
            .copy_from_slice(bytes);
        let version = raw.version;
        if version < MIN_VERSION || raw.xloadflags & XLF_KERNEL_64 == 0 {
            return Err(KernelError::BzImage(
                "it has no 64-bit entry point: a 64-bit Linux of version 3.8 or later is needed",
            ));
        }
        let setup_sects = match raw.setup_sects {
            0 => 4,
            n => usize::from(n),
        };
        let code = (setup_sects + 1) * SECTOR;
        if code >= image.len() {
            return Err(KernelError::BzImage("it ends before its code"));
        }
        Ok(Self {
            cmdline_size: raw.cmdline_size,
            initrd_addr_max: raw.initrd_addr_max,
            raw,
            code,
        })
    }
}

/// True if `source` has the setup header's magic number.
pub fn is_bzimage(source: &Source<'_>) -> bool {
    let mut magic = [0; 4];
    source.read_at(HEADER_MAGIC_AT as u64, &mut magic).is_ok() && magic == *HEADER_MAGIC
}

/// Loads the protected-mode part, which decompresses the kernel in the guest.
pub(super) fn load(
    memory: &GuestMemory,
    image: &[u8],
    header: &SetupHeader,
) -> Result<Placed, KernelError> {
    let code = image
        .get(header.code..)
        .ok_or(KernelError::BzImage("it ends before its code"))?;
    let start = header.raw.pref_address;
    let len = u64::from(header.raw.init_size).max(code.len() as u64);
    let end = check_range(memory, start, len)?;
    memory.write_slice(code, GuestAddress(start))?;
    Ok(Placed {
        start,
        end,
        entry64: start + ENTRY_64,
        pvh: None,
    })
}

/// Decompresses its first argument into its second; returns the length.
type Decompress = fn(&[u8], &mut [u8]) -> Result<usize, String>;

/// The uncompressed ELF kernel inside a bzImage.
///
/// The payload is followed by its uncompressed size (4 bytes) in all formats handled here: LZ4
/// (legacy frames, as kernels use it) and Zstandard. The result is at its link addresses, so it
/// can be entered there: only the guest's own decompressor relocates it (KASLR).
///
/// # Errors
/// [`KernelError::UnknownCompression`] for other formats; the payload is damaged, is no ELF file or
/// is larger than [`MAX_VMLINUX`].
pub fn vmlinux_from_bzimage(image: &[u8]) -> Result<Vec<u8>, KernelError> {
    let header = SetupHeader::parse(image)?;
    let payload = (header.raw.payload_offset as usize)
        .checked_add(header.code)
        .and_then(|at| image.get(at..)?.get(..header.raw.payload_length as usize))
        .ok_or(KernelError::BzImage("its payload lies outside the file"))?;
    let (data, size) = payload
        .split_last_chunk::<4>()
        .ok_or(KernelError::BzImage("it has no payload"))?;
    let size = u32::from_le_bytes(*size) as usize;
    let magic = *data
        .first_chunk::<4>()
        .ok_or(KernelError::BzImage("its payload is empty"))?;
    let (compression, decompress): (_, Decompress) = match magic {
        LZ4_LEGACY_MAGIC => ("LZ4", lz4_legacy),
        ZSTD_MAGIC => ("Zstandard", zstd),
        elf::MAGIC => ("uncompressed", stored),
        _ => return Err(KernelError::UnknownCompression(magic)),
    };
    if size > MAX_VMLINUX {
        return Err(KernelError::TooLarge {
            what: "uncompressed kernel",
            len: size as u64,
        });
    }
    let damaged = |reason| KernelError::Payload {
        compression,
        reason,
    };
    // Zeroed pages cost nothing until the decompressor fills them.
    let mut vmlinux = vec![0; size];
    let written = decompress(data, &mut vmlinux).map_err(damaged)?;
    if written != size {
        return Err(damaged(format!("{written} bytes instead of {size}")));
    }
    if !vmlinux.starts_with(&elf::MAGIC) {
        return Err(damaged("what it contains is not an ELF file".to_owned()));
    }
    Ok(vmlinux)
}

const LZ4_LEGACY_MAGIC: [u8; 4] = 0x184C_2102_u32.to_le_bytes();
const ZSTD_MAGIC: [u8; 4] = 0xFD2F_B528_u32.to_le_bytes();

/// Blocks of a legacy LZ4 frame hold at most this much.
const LZ4_BLOCK: usize = 8 << 20;

fn lz4_legacy(data: &[u8], out: &mut [u8]) -> Result<usize, String> {
    let (mut data, mut done) = (data, 0);
    while let Some((word, rest)) = data.split_first_chunk::<4>() {
        data = rest;
        if *word == LZ4_LEGACY_MAGIC {
            continue;
        }
        let len = u32::from_le_bytes(*word) as usize;
        let (block, rest) = data
            .split_at_checked(len)
            .ok_or("a block is longer than the payload")?;
        data = rest;
        let room = (out.len() - done).min(LZ4_BLOCK);
        let Some(into) = out.get_mut(done..done + room).filter(|b| !b.is_empty()) else {
            return Err("it holds more than its size says".to_owned());
        };
        let n = lz4::block::decompress_to_buffer(block, Some(room as i32), into)
            .map_err(|e| e.to_string())?;
        done += n;
    }
    Ok(done)
}

fn zstd(data: &[u8], out: &mut [u8]) -> Result<usize, String> {
    zstd::bulk::decompress_to_buffer(data, out).map_err(|e| e.to_string())
}

fn stored(data: &[u8], out: &mut [u8]) -> Result<usize, String> {
    let n = data.len().min(out.len());
    out[..n].copy_from_slice(&data[..n]);
    Ok(data.len())
}

#[cfg(test)]
#[path = "bzimage_test.rs"]
mod tests;
