use std::fs::File;
use std::io::{Seek, SeekFrom, Write};

use proptest::prelude::*;
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

use super::super::test_kernel::{BSS, CODE, Compression, LINK, bzimage, elf, payload};
use super::*;

fn memory(size: u64) -> GuestMemory {
    crate::allocate(&layout::memory_regions(size)).unwrap()
}

fn bytes(memory: &GuestMemory, at: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    memory.read_slice(&mut bytes, GuestAddress(at)).unwrap();
    bytes
}

fn file(content: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(content).unwrap();
    file
}

fn load_bytes(memory: &GuestMemory, kernel: &[u8]) -> Result<LoadedKernel, KernelError> {
    let options = LoadOptions::default();
    load(memory, &Source::Bytes(kernel), None, "quiet", &options)
}

#[test]
fn kernels_are_entered_by_the_best_protocol_they_have() {
    let pvh = Entry::Pvh {
        rip: LINK + 3,
        start_info: GuestAddress(layout::PVH_START_INFO),
    };
    let linux = |rip| Entry::Linux64 {
        rip,
        zero_page: GuestAddress(layout::ZERO_PAGE_START),
    };
    let image = |pvh, compression| bzimage(&payload(&elf(pvh), compression));
    for (name, kernel, decompress, want) in [
        ("PVH ELF", elf(true), true, pvh),
        ("plain ELF", elf(false), true, linux(LINK + 1)),
        ("LZ4, PVH inside", image(true, Compression::Lz4), true, pvh),
        (
            "LZ4, plain inside",
            image(false, Compression::Lz4),
            true,
            linux(LINK + 1),
        ),
        ("zstd", image(true, Compression::Zstd), true, pvh),
        (
            "xz",
            image(true, Compression::Xz),
            true,
            linux(LINK + 0x200),
        ),
        (
            "left to the guest",
            image(true, Compression::Lz4),
            false,
            linux(LINK + 0x200),
        ),
    ] {
        let options = LoadOptions {
            decompress,
            ..LoadOptions::default()
        };
        for source in [Source::Bytes(&kernel), Source::File(&file(&kernel))] {
            let memory = memory(64 << 20);
            let loaded = load(&memory, &source, None, "root=/dev/vda1 quiet", &options).unwrap();
            assert_eq!(loaded.entry, want, "{name}");
            assert_eq!((loaded.start, loaded.initrd), (LINK, None), "{name}");
            let code: &[u8] = if want == linux(LINK + 0x200) {
                &[0x90; 8]
            } else {
                CODE
            };
            assert_eq!(bytes(&memory, LINK, code.len()), code, "{name}");
            assert_eq!(
                bytes(&memory, layout::CMDLINE_START, 21),
                b"root=/dev/vda1 quiet\0"
            );
        }
    }
}

#[test]
fn memory_behind_a_segment_is_zeroed() {
    let memory = memory(64 << 20);
    let code = CODE.len() as u64;
    let dirty = vec![0xAA; code as usize + BSS as usize + 1];
    memory.write_slice(&dirty, GuestAddress(LINK)).unwrap();
    let loaded = load_bytes(&memory, &elf(true)).unwrap();
    assert_eq!(loaded.end, LINK + code + BSS);
    let after = bytes(&memory, LINK + code, BSS as usize + 1);
    assert!(after[..BSS as usize].iter().all(|b| *b == 0));
    assert_eq!(after[BSS as usize], 0xAA);
}

#[test]
fn an_initrd_of_100_mb_goes_below_the_hole() {
    const SIZE: u64 = 100 << 20;
    let mut initrd = file(b"start");
    initrd.set_len(SIZE).unwrap();
    initrd.seek(SeekFrom::End(-3)).unwrap();
    initrd.write_all(b"end").unwrap();
    let kernel = bzimage(&payload(&elf(true), Compression::Lz4));
    for (ram, top) in [
        (256 << 20, 256 << 20),
        // The kernel's own limit, 2 GiB.
        (5 << 30, 0x8000_0000),
    ] {
        let memory = memory(ram);
        let loaded = load(
            &memory,
            &Source::Bytes(&kernel),
            Some(&Source::File(&initrd)),
            "",
            &LoadOptions::default(),
        )
        .unwrap();
        let (start, size) = loaded.initrd.unwrap();
        assert_eq!((start + size, size), (top, SIZE));
        assert_eq!(bytes(&memory, start, 5), b"start");
        assert_eq!(bytes(&memory, top - 3, 3), b"end");
    }
    let error = load(
        &memory(64 << 20),
        &Source::Bytes(&kernel),
        Some(&Source::File(&initrd)),
        "",
        &LoadOptions::default(),
    )
    .unwrap_err();
    assert!(matches!(
        error,
        KernelError::InitrdDoesNotFit { size: SIZE, .. }
    ));
}

#[test]
fn the_command_line_is_limited_by_the_kernel() {
    let memory = memory(64 << 20);
    let kernel = elf(true);
    let with = |cmdline: &str| {
        let options = LoadOptions::default();
        load(&memory, &Source::Bytes(&kernel), None, cmdline, &options)
    };
    with(&"x".repeat(2047)).unwrap();
    assert!(matches!(
        with(&"x".repeat(2048)),
        Err(KernelError::CmdlineTooLong {
            len: 2048,
            max: 2047
        })
    ));
    assert!(matches!(with("a\0b"), Err(KernelError::CmdlineNul)));
}

#[test]
fn what_is_no_kernel_or_does_not_fit_is_refused() {
    let change = |at: usize, bytes: &[u8]| {
        let mut kernel = elf(true);
        kernel[at..at + bytes.len()].copy_from_slice(bytes);
        load_bytes(&memory(64 << 20), &kernel)
            .unwrap_err()
            .to_string()
    };
    const SEGMENT: usize = 64;
    for (at, value, want) in [
        (0, 0x1234_u64, "neither"),
        (18, 40, "not for x86-64"),
        (32, u64::MAX, "outside the file"),
        (56, 0xFFFF, "malformed"),
        (SEGMENT + 8, u64::MAX, "outside the file"),
        (SEGMENT + 24, 0x1000, "not free RAM"),
        (SEGMENT + 24, 1 << 40, "not free RAM"),
        (SEGMENT + 24, u64::MAX - 1, "not free RAM"),
        (SEGMENT + 24, LINK + 0x1000, "entry point"),
        (SEGMENT + 32, 1 << 20, "outside the file"),
        (SEGMENT + 40, 1, "larger in the file"),
        (SEGMENT + 40, u64::MAX, "not free RAM"),
        (SEGMENT + 40, 0, "nothing to load"),
    ] {
        let error = change(at, &value.to_le_bytes());
        assert!(error.contains(want), "{at}={value:#x}: {error}");
    }
    let small = load_bytes(&memory(layout::MIN_RAM), &elf(true)).unwrap_err();
    assert!(matches!(small, KernelError::DoesNotFit { start: LINK, .. }));
    assert!(matches!(
        load_bytes(&memory(64 << 20), b"\x7f"),
        Err(KernelError::Io(_))
    ));
}

proptest! {
    #[test]
    fn damaged_elf_files_never_panic_or_touch_low_memory(
        changes in prop::collection::vec((0usize..260, any::<u8>()), 1..6),
        len in 4usize..260,
    ) {
        let mut kernel = elf(true);
        for (at, value) in changes {
            if let Some(byte) = kernel.get_mut(at) {
                *byte = value;
            }
        }
        kernel.truncate(len);
        let memory = memory(32 << 20);
        memory.write_obj(0x5555_5555_u32, GuestAddress(layout::ACPI_START)).unwrap();
        if let Ok(loaded) = load_bytes(&memory, &kernel) {
            prop_assert!(loaded.start >= layout::HIMEM_START);
            prop_assert!(loaded.end <= memory.iter().map(|r| r.len()).sum::<u64>());
        }
        let canary: u32 = memory.read_obj(GuestAddress(layout::ACPI_START)).unwrap();
        prop_assert_eq!(canary, 0x5555_5555);
    }
}
