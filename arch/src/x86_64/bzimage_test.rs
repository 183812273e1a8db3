use proptest::prelude::*;

use super::super::test_kernel::{Compression, bzimage, elf, payload};
use super::*;

/// An ELF file of several LZ4 blocks.
fn large_elf() -> Vec<u8> {
    let mut file = elf(true);
    let mut word = 1u32;
    while file.len() < 20 << 20 {
        word = word.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        file.extend([(word >> 24) as u8; 64]);
    }
    file
}

#[test]
fn the_payload_is_decompressed() {
    for content in [elf(true), large_elf()] {
        for compression in [Compression::Lz4, Compression::Zstd, Compression::Stored] {
            let image = bzimage(&payload(&content, compression));
            let vmlinux = vmlinux_from_bzimage(&image).unwrap();
            assert!(vmlinux == content, "{compression:?}");
        }
    }
}

#[test]
fn other_compressions_are_left_to_the_guest() {
    let image = bzimage(&payload(&elf(true), Compression::Xz));
    let error = vmlinux_from_bzimage(&image).unwrap_err();
    assert!(matches!(
        error,
        KernelError::UnknownCompression([0xFD, b'7', b'z', b'X'])
    ));
}

#[test]
fn a_payload_that_lies_about_itself_is_refused() {
    let content = elf(true);
    for compression in [Compression::Lz4, Compression::Zstd, Compression::Stored] {
        let good = payload(&content, compression);
        let size_at = good.len() - 4;
        for size in [0, 1, content.len() as u32 - 1, content.len() as u32 + 1] {
            let mut bad = good.clone();
            bad[size_at..].copy_from_slice(&size.to_le_bytes());
            let error = vmlinux_from_bzimage(&bzimage(&bad)).unwrap_err();
            assert!(
                matches!(error, KernelError::Payload { .. }),
                "{compression:?} {size}: {error}"
            );
        }
        let mut bad = good.clone();
        bad[size_at..].copy_from_slice(&u32::MAX.to_le_bytes());
        let error = vmlinux_from_bzimage(&bzimage(&bad)).unwrap_err();
        assert!(matches!(error, KernelError::TooLarge { .. }));
    }
    let error = vmlinux_from_bzimage(&bzimage(&payload(b"no ELF", Compression::Zstd))).unwrap_err();
    assert!(error.to_string().contains("not an ELF"), "{error}");
}

#[test]
fn headers_of_other_kernels_are_refused() {
    let good = bzimage(&payload(&elf(true), Compression::Lz4));
    let parse = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut image = good.clone();
        change(&mut image);
        SetupHeader::parse(&image).unwrap_err().to_string()
    };
    assert!(SetupHeader::parse(&good).is_ok());
    assert!(parse(&|i| i[0x202] = b'h').contains("no setup header"));
    assert!(parse(&|i| i[0x206] = 0x0B).contains("64-bit entry"));
    assert!(parse(&|i| i[0x236] = 0x3E).contains("64-bit entry"));
    assert!(parse(&|i| i[0x1F1] = 0xFF).contains("before its code"));
    assert!(parse(&|i| i.truncate(0x230)).contains("inside its setup header"));
    assert!(parse(&|i| i.truncate(0x100)).contains("no setup header"));
}

proptest! {
    #[test]
    fn damaged_images_never_panic(
        compression in prop::sample::select(vec![
            Compression::Lz4, Compression::Zstd, Compression::Stored,
        ]),
        changes in prop::collection::vec((0usize..6000, any::<u8>()), 1..8),
        len in 0usize..6000,
    ) {
        let mut image = bzimage(&payload(&elf(true), compression));
        for (at, value) in changes {
            // Half of the changes to the header.
            let at = if at % 2 == 0 { 0x1F1 + at % 0x80 } else { at };
            if let Some(byte) = image.get_mut(at) {
                *byte = value;
            }
        }
        image.truncate(len.max(0x268));
        if let Ok(vmlinux) = vmlinux_from_bzimage(&image) {
            prop_assert!(vmlinux.len() <= MAX_VMLINUX);
        }
    }
}
