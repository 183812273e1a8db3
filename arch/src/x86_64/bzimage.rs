//! bzImages: Linux's compressed kernel format (Documentation/arch/x86/boot.rst).

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use linux_loader::loader::bootparam::setup_header;
use vm_memory::{ByteValued, Bytes, GuestAddress};

use super::elf;
use super::error::KernelError;
use super::source::{Fills, Placement, Source, check_range};
use crate::memory::GuestMemory;

/// Offset of the setup header in the file and in the zero page.
pub(super) const HEADER_START: usize = 0x1F1;
const HEADER_MAGIC_AT: usize = 0x202;
const HEADER_MAGIC: &[u8; 4] = b"HdrS";
/// The protocol version that added the 64-bit entry, 2.12.
const MIN_VERSION: u16 = 0x020C;
const XLF_KERNEL_64: u16 = 1;
/// Distance of the 64-bit entry point from the start of the protected-mode code.
const ENTRY_64: u64 = 0x200;
const SECTOR: usize = 512;

/// Maximum bytes of an uncompressed kernel. Real ones have about 50 MB.
pub const MAX_VMLINUX: usize = 256 << 20;

/// The fields of a bzImage's real-mode setup header.
#[derive(Debug, Clone)]
pub struct SetupHeader {
    /// The header, in the form that goes into the zero page.
    pub(super) raw: setup_header,
    /// Longest command line in bytes, without the terminating zero.
    pub cmdline_size: u32,
    /// Last address that the initrd may use (GPA).
    pub initrd_addr_max: u32,
    /// Offset of the protected-mode code in the file.
    code: usize,
}

impl SetupHeader {
    /// Reads the setup header of the bzImage `image`.
    ///
    /// # Errors
    /// It is not a bzImage, or has no 64-bit entry point.
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
                "it has no 64-bit entry point; use a 64-bit Linux of version 3.8 or later",
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
) -> Result<Placement, KernelError> {
    let code = image
        .get(header.code..)
        .ok_or(KernelError::BzImage("it ends before its code"))?;
    let start = header.raw.pref_address;
    let len = u64::from(header.raw.init_size).max(code.len() as u64);
    let end = check_range(memory, start, len)?;
    memory.write_slice(code, GuestAddress(start))?;
    Ok(Placement {
        start,
        end,
        entry64: start + ENTRY_64,
        pvh: None,
    })
}

/// Decompresses its first argument into its second, and returns the length.
type Decompress = fn(&[u8], &mut [u8]) -> Result<usize, String>;

/// The compressed kernel inside a bzImage.
struct Payload<'a> {
    data: &'a [u8],
    /// Uncompressed size in bytes.
    size: usize,
    compression: &'static str,
    decompress: Decompress,
}

impl<'a> Payload<'a> {
    fn find(image: &'a [u8], header: &SetupHeader) -> Result<Self, KernelError> {
        let payload = (header.raw.payload_offset as usize)
            .checked_add(header.code)
            .and_then(|at| image.get(at..)?.get(..header.raw.payload_length as usize))
            .ok_or(KernelError::BzImage("its payload is outside the file"))?;
        let (data, size) = payload
            .split_last_chunk::<4>()
            .ok_or(KernelError::BzImage("it has no payload"))?;
        let size = u32::from_le_bytes(*size) as usize;
        let magic = *data
            .first_chunk::<4>()
            .ok_or(KernelError::BzImage("its payload is empty"))?;
        let (compression, decompress): (_, Decompress) = match magic {
            LZ4_LEGACY_MAGIC => (LZ4, lz4_legacy),
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
        Ok(Self {
            data,
            size,
            compression,
            decompress,
        })
    }

    fn damaged(&self, reason: String) -> KernelError {
        KernelError::Payload {
            compression: self.compression,
            reason,
        }
    }

    fn check_elf(&self, start: &[u8]) -> Result<(), KernelError> {
        if start.starts_with(&elf::MAGIC) {
            return Ok(());
        }
        Err(self.damaged("its content is not an ELF file".to_owned()))
    }

    /// Decompresses all of it into new memory.
    fn vmlinux(&self) -> Result<Vec<u8>, KernelError> {
        // Zeroed pages cost nothing until the decompressor fills them.
        let mut vmlinux = vec![0; self.size];
        let written =
            (self.decompress)(self.data, &mut vmlinux).map_err(|reason| self.damaged(reason))?;
        if written != self.size {
            return Err(self.damaged(format!("{written} bytes instead of {}", self.size)));
        }
        self.check_elf(&vmlinux)?;
        Ok(vmlinux)
    }

    /// The compressed blocks, if their number shows that all except the last hold [`LZ4_BLOCK`]
    /// bytes each. Each block can then be decompressed without the others.
    fn blocks(&self) -> Option<Vec<&'a [u8]>> {
        if self.compression != LZ4 {
            return None;
        }
        let blocks = lz4_blocks(self.data).collect::<Result<Vec<_>, _>>().ok()?;
        (blocks.len() == self.size.div_ceil(LZ4_BLOCK)).then_some(blocks)
    }

    /// Decompresses `blocks` on several threads. Each thread has a separate buffer and copies from
    /// there into guest memory.
    fn load_blocks(
        &self,
        memory: &GuestMemory,
        blocks: &[&[u8]],
        fills: Fills<'_>,
    ) -> Result<Placement, KernelError> {
        let block = |index: usize, buffer: &mut Vec<u8>| {
            let expected = (self.size - index * LZ4_BLOCK).min(LZ4_BLOCK);
            buffer.resize(expected, 0);
            let data = blocks.get(index).copied().unwrap_or_default();
            let written = lz4_block(data, buffer).map_err(|reason| self.damaged(reason))?;
            if written != expected {
                let what = format!("{written} bytes instead of {expected} in block {index}");
                return Err(self.damaged(what));
            }
            Ok(())
        };
        let mut first = Vec::new();
        block(0, &mut first)?;
        self.check_elf(&first)?;
        let plan = elf::Plan::parse(memory, &Source::Bytes(&first), self.size as u64)?;
        fills(plan.range());
        let notes = Mutex::new(plan.notes());
        let next = AtomicUsize::new(1);
        let rest = |mut buffer: Vec<u8>| -> Result<(), KernelError> {
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                if index >= blocks.len() {
                    return Ok(());
                }
                block(index, &mut buffer)?;
                plan.place(memory, (index * LZ4_BLOCK) as u64, &buffer, &notes)?;
            }
        };
        let helpers = std::thread::available_parallelism()
            .map_or(1, |n| n.get().min(MAX_THREADS))
            .min(blocks.len())
            - 1;
        std::thread::scope(|scope| {
            // Without helpers, should the host refuse them, it only takes longer.
            let helpers: Vec<_> = (0..helpers)
                .map_while(|_| {
                    let thread = std::thread::Builder::new().name("decompress".into());
                    thread.spawn_scoped(scope, || rest(Vec::new())).ok()
                })
                .collect();
            let own = plan
                .place(memory, 0, &first, &notes)
                .and_then(|()| rest(first));
            helpers.into_iter().fold(own, |outcome, helper| {
                let theirs = helper
                    .join()
                    .unwrap_or_else(|_| Err(self.damaged("its decompressor panicked".to_owned())));
                outcome.and(theirs)
            })
        })?;
        plan.finish(
            memory,
            &notes.into_inner().unwrap_or_else(|e| e.into_inner()),
        )
    }
}

/// The uncompressed ELF kernel inside a bzImage.
///
/// The payload is followed by its uncompressed size (4 bytes) in all formats handled here: LZ4
/// (legacy frames, as kernels use it) and Zstandard. The result is linked to fixed addresses, so it
/// can be entered there. Only the guest's own decompressor would relocate it (KASLR).
///
/// # Errors
/// [`KernelError::UnknownCompression`] for other formats; the payload is damaged, is not an ELF
/// file or is larger than [`MAX_VMLINUX`].
pub fn vmlinux_from_bzimage(image: &[u8]) -> Result<Vec<u8>, KernelError> {
    Payload::find(image, &SetupHeader::parse(image)?)?.vmlinux()
}

/// Loads the ELF kernel inside a bzImage to its addresses.
///
/// # Errors
/// See [`vmlinux_from_bzimage`]; or the kernel does not fit into the memory.
pub(super) fn load_vmlinux(
    memory: &GuestMemory,
    image: &[u8],
    header: &SetupHeader,
    fills: Fills<'_>,
) -> Result<Placement, KernelError> {
    let payload = Payload::find(image, header)?;
    match payload.blocks() {
        Some(blocks) if !blocks.is_empty() => payload.load_blocks(memory, &blocks, fills),
        _ => elf::load(memory, &Source::Bytes(&payload.vmlinux()?), fills),
    }
}

const LZ4: &str = "LZ4";
const LZ4_LEGACY_MAGIC: [u8; 4] = 0x184C_2102_u32.to_le_bytes();
const ZSTD_MAGIC: [u8; 4] = 0xFD2F_B528_u32.to_le_bytes();

/// Uncompressed size of a block of a legacy LZ4 frame. Only the last one holds less.
const LZ4_BLOCK: usize = 8 << 20;
/// Maximum number of threads that decompress one kernel. Each has a buffer for one block.
const MAX_THREADS: usize = 4;

/// The compressed blocks of a legacy LZ4 frame.
fn lz4_blocks(mut data: &[u8]) -> impl Iterator<Item = Result<&[u8], String>> {
    std::iter::from_fn(move || {
        loop {
            let (word, rest) = data.split_first_chunk::<4>()?;
            data = rest;
            if *word == LZ4_LEGACY_MAGIC {
                continue;
            }
            let len = u32::from_le_bytes(*word) as usize;
            let Some((block, rest)) = data.split_at_checked(len) else {
                data = &[];
                return Some(Err("a block is longer than the payload".to_owned()));
            };
            data = rest;
            return Some(Ok(block));
        }
    })
}

/// Decompresses one block into `out`, which has room for no more than [`LZ4_BLOCK`] bytes.
fn lz4_block(block: &[u8], out: &mut [u8]) -> Result<usize, String> {
    let room = out.len().min(LZ4_BLOCK) as i32;
    lz4::block::decompress_to_buffer(block, Some(room), out).map_err(|e| e.to_string())
}

fn lz4_legacy(data: &[u8], out: &mut [u8]) -> Result<usize, String> {
    let mut done = 0;
    for block in lz4_blocks(data) {
        let room = (out.len() - done).min(LZ4_BLOCK);
        let Some(into) = out.get_mut(done..done + room).filter(|b| !b.is_empty()) else {
            return Err("it is larger than the size that it states".to_owned());
        };
        done += lz4_block(block?, into)?;
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
