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

fn memory() -> GuestMemory {
    let size = 64 << 20;
    crate::allocate(&[(GuestAddress(0), size)]).unwrap()
}

fn load_image(memory: &GuestMemory, image: &[u8]) -> Result<Placement, KernelError> {
    let header = SetupHeader::parse(image)?;
    load_vmlinux(memory, image, &header, &|_| {})
}

/// [`large_elf`] with a segment that spans its blocks and notes across the border of two.
fn elf_across_blocks() -> Vec<u8> {
    let mut file = large_elf();
    let note_at = (LZ4_BLOCK - 40) as u64;
    let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
    // The segment: offset 0x1000, 18 MiB in the file and one page more in memory.
    put(64 + 8, &0x1000u64.to_le_bytes());
    put(64 + 32, &(18u64 << 20).to_le_bytes());
    put(64 + 40, &((18u64 << 20) + 4096).to_le_bytes());
    put(64 + 56 + 8, &note_at.to_le_bytes());
    put(64 + 56 + 32, &72u64.to_le_bytes());
    let mut notes = Vec::new();
    for (name, desc) in [
        (&b"Foo\0"[..], [9; 36].to_vec()),
        (b"Xen\0", [0x40u8, 0, 0, 1].to_vec()),
    ] {
        notes.extend((name.len() as u32).to_le_bytes());
        notes.extend((desc.len() as u32).to_le_bytes());
        notes.extend(18u32.to_le_bytes());
        notes.extend(name);
        notes.extend(desc);
    }
    notes.resize(72, 0);
    put(note_at as usize, &notes);
    file
}

#[test]
fn blocks_end_up_where_the_whole_file_would() {
    let content = elf_across_blocks();
    for compression in [Compression::Lz4, Compression::Zstd] {
        let memory = memory();
        let dirty = vec![0xAA; 4096 + 1];
        let end = (16 << 20) + (18 << 20);
        memory.write_slice(&dirty, GuestAddress(end)).unwrap();
        let placed = load_image(&memory, &bzimage(&payload(&content, compression))).unwrap();
        assert_eq!(placed.pvh, Some(0x100_0040), "{compression:?}");
        assert_eq!((placed.start, placed.end), (16 << 20, end + 4096));
        let mut loaded = vec![0; (18 << 20) + 4096 + 1];
        memory
            .read_slice(&mut loaded, GuestAddress(16 << 20))
            .unwrap();
        let mut want = content[0x1000..0x1000 + (18 << 20)].to_vec();
        want.extend([0; 4096]);
        want.push(0xAA);
        assert!(loaded == want, "{compression:?}");
    }
}

#[test]
fn a_damaged_block_is_found_wherever_it_is() {
    let good = payload(&large_elf(), Compression::Lz4);
    let mut at = 4;
    for block in 0..3 {
        let mut bad = good.clone();
        // The block ends in the middle of what its length says.
        let len = u32::from_le_bytes(bad[at..at + 4].try_into().unwrap()) as usize;
        bad[at + 4 + len / 2..at + 4 + len].fill(0);
        let error = load_image(&memory(), &bzimage(&bad)).err().unwrap();
        assert!(
            matches!(error, KernelError::Payload { .. }),
            "{block}: {error}"
        );
        at += 4 + len;
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
            for error in [
                vmlinux_from_bzimage(&bzimage(&bad)).unwrap_err(),
                load_image(&memory(), &bzimage(&bad)).err().unwrap(),
            ] {
                assert!(
                    matches!(error, KernelError::Payload { .. }),
                    "{compression:?} {size}: {error}"
                );
            }
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
        let _ = load_image(&memory(), &image);
    }
}
