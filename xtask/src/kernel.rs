//! Extracts the uncompressed kernel from a bzImage, so that the emulated host need not decompress it.

use std::io::Read;

use crate::bail;
use crate::error::{Context, Error, Result};

/// Maximum bytes of a kernel, larger than any real one, to limit the memory for a damaged payload.
const LIMIT: u64 = 512 << 20;

/// The ELF image inside the bzImage `image` (Linux `Documentation/arch/x86/boot.rst`: `setup_sects`,
/// `payload_offset`, `payload_length`). Reads LZ4 (legacy frames) and zstd payloads, which are Debian's.
///
/// # Errors
/// It is not a bzImage, or its payload is damaged or has another compression.
pub fn vmlinux(image: &[u8]) -> Result<Vec<u8>> {
    let u32_at = |at: usize| -> Result<usize> {
        let bytes = image
            .get(at..at + 4)
            .ok_or_else(|| Error::new("the kernel image is too short"))?;
        Ok(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]) as usize)
    };
    if image.get(0x202..0x206) != Some(b"HdrS") {
        bail!("the kernel image is not a bzImage");
    }
    let sectors = match image[0x1f1] {
        0 => 4,
        n => usize::from(n),
    };
    let start = (sectors + 1) * 512 + u32_at(0x248)?;
    let payload = image
        .get(start..start + u32_at(0x24c)?)
        .ok_or_else(|| Error::new("the kernel's payload is cut off"))?;
    let kernel = match payload.get(..4) {
        Some([0x02, 0x21, 0x4c, 0x18]) => legacy_lz4(&payload[4..])?,
        Some([0x28, 0xb5, 0x2f, 0xfd]) => {
            let mut out = Vec::new();
            let decoder = zstd::Decoder::new(payload)
                .context(|| "zstd")?
                .single_frame();
            decoder
                .take(LIMIT)
                .read_to_end(&mut out)
                .context(|| "cannot decompress the kernel")?;
            out
        }
        other => {
            bail!("the kernel's payload starts with {other:02x?}, which is neither LZ4 nor zstd")
        }
    };
    if !kernel.starts_with(b"\x7fELF") {
        bail!("the kernel's payload is not an ELF file");
    }
    Ok(kernel)
}

/// Decompresses LZ4's legacy frame: blocks of at most 8 MiB uncompressed, each after its compressed length. The
/// kernel's build appends the uncompressed size, which looks like a block that is longer than the rest.
fn legacy_lz4(mut payload: &[u8]) -> Result<Vec<u8>> {
    let mut out = Vec::new();
    while let Some((length, rest)) = payload.split_first_chunk::<4>() {
        let Some((block, rest)) = rest.split_at_checked(u32::from_le_bytes(*length) as usize)
        else {
            break;
        };
        out.extend(
            lz4::block::decompress(block, Some(8 << 20))
                .context(|| "cannot decompress the kernel")?,
        );
        payload = rest;
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bzimage(payload: &[u8]) -> Vec<u8> {
        let mut image = vec![0; 1024];
        image[0x1f1] = 1;
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x248..0x24c].copy_from_slice(&16u32.to_le_bytes());
        image[0x24c..0x250].copy_from_slice(&(payload.len() as u32).to_le_bytes());
        image.extend([0; 16]);
        image.extend(payload);
        image
    }

    #[test]
    fn finds_a_zstd_payload() {
        let kernel = [b"\x7fELF".as_slice(), &[7; 5000]].concat();
        // The kernel's build appends the size here too.
        let payload = [
            zstd::encode_all(kernel.as_slice(), 1).unwrap(),
            vec![0x8c, 0x13, 0, 0],
        ]
        .concat();
        assert_eq!(vmlinux(&bzimage(&payload)).unwrap(), kernel);
    }

    #[test]
    fn finds_an_lz4_payload() {
        let kernel = [b"\x7fELF".as_slice(), &[7; 5000]].concat();
        let block = lz4::block::compress(&kernel, None, false).unwrap();
        let mut payload = vec![0x02, 0x21, 0x4c, 0x18];
        payload.extend((block.len() as u32).to_le_bytes());
        payload.extend(block);
        payload.extend((kernel.len() as u32).to_le_bytes());
        assert_eq!(vmlinux(&bzimage(&payload)).unwrap(), kernel);
    }

    #[test]
    fn refuses_what_is_not_a_kernel() {
        assert!(vmlinux(b"").is_err());
        assert!(
            vmlinux(&bzimage(b"\x1f\x8b\x08\0"))
                .unwrap_err()
                .to_string()
                .contains("neither")
        );
    }
}
