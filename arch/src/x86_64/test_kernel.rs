//! Small kernels for tests, made from parts.

/// Where the ELF files made here are linked to.
pub(super) const LINK: u64 = 0x100_0000;
/// Their code.
pub(super) const CODE: &[u8] = b"\xF4\xEB\xFDcode of the kernel";
/// Their size in memory beyond the code.
pub(super) const BSS: u64 = 0x3000;
const PVH_OFFSET: u64 = 3;

/// An ELF-64 file with one loadable segment and, with `pvh`, a note that names its entry point.
pub(super) fn elf(pvh: bool) -> Vec<u8> {
    let mut notes = Vec::new();
    if pvh {
        // Another owner's note of odd length first.
        for (name, kind, desc) in [
            (&b"Foo\0"[..], 18u32, &[9u8, 9, 9, 9, 9][..]),
            (b"Xen\0", 18, &(LINK + PVH_OFFSET).to_le_bytes()),
        ] {
            notes.extend((name.len() as u32).to_le_bytes());
            notes.extend((desc.len() as u32).to_le_bytes());
            notes.extend(kind.to_le_bytes());
            notes.extend(name);
            notes.extend(desc);
            notes.resize(notes.len().next_multiple_of(4), 0);
        }
    }
    let headers = 64 + 2 * 56;
    let notes_at = headers + CODE.len() as u64;
    let mut file = b"\x7fELF\x02\x01\x01".to_vec();
    file.resize(16, 0);
    file.extend(2u16.to_le_bytes());
    file.extend(62u16.to_le_bytes());
    file.extend(1u32.to_le_bytes());
    file.extend((LINK + 1).to_le_bytes());
    file.extend(64u64.to_le_bytes());
    file.extend([0; 8 + 4]);
    for half in [64u16, 56, 2, 64, 0, 0] {
        file.extend(half.to_le_bytes());
    }
    let mut segment = |kind: u32, offset: u64, size: u64, in_memory: u64| {
        file.extend(kind.to_le_bytes());
        file.extend(7u32.to_le_bytes());
        // The virtual address is not the physical one.
        for word in [offset, !0xFFF, LINK, size, in_memory, 0x1000] {
            file.extend(word.to_le_bytes());
        }
    };
    let code = CODE.len() as u64;
    segment(1, headers, code, code + BSS);
    segment(4, notes_at, notes.len() as u64, notes.len() as u64);
    file.extend(CODE);
    file.extend(notes);
    file
}

/// How a payload is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Compression {
    Lz4,
    Zstd,
    Stored,
    /// One that only the guest undoes.
    Xz,
}

/// `content` compressed as a kernel's payload is, with its size behind it.
pub(super) fn payload(content: &[u8], compression: Compression) -> Vec<u8> {
    let mut out = match compression {
        Compression::Lz4 => {
            let mut out = 0x184C_2102_u32.to_le_bytes().to_vec();
            for block in content.chunks(8 << 20) {
                let block = lz4::block::compress(block, None, false).unwrap();
                out.extend((block.len() as u32).to_le_bytes());
                out.extend(block);
            }
            out
        }
        Compression::Zstd => zstd::bulk::compress(content, 1).unwrap(),
        Compression::Stored => content.to_vec(),
        Compression::Xz => b"\xfd7zXZ\0 and so on".to_vec(),
    };
    out.extend((content.len() as u32).to_le_bytes());
    out
}

/// A bzImage of protocol 2.15 with `payload`, 1 KiB of other code before it.
pub(super) fn bzimage(payload: &[u8]) -> Vec<u8> {
    let mut image = vec![0; 4 * 512];
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    put(0x1F1, &[3]);
    put(0x1FE, &[0x55, 0xAA, 0xEB, 0x6A]);
    put(0x202, b"HdrS");
    put(0x206, &0x020Fu16.to_le_bytes());
    put(0x211, &[1]);
    put(0x22C, &0x7FFF_FFFFu32.to_le_bytes());
    put(0x230, &0x20_0000u32.to_le_bytes());
    put(0x234, &[1, 21]);
    put(0x236, &0x3Fu16.to_le_bytes());
    put(0x238, &2047u32.to_le_bytes());
    put(0x248, &1024u32.to_le_bytes());
    put(0x24C, &(payload.len() as u32).to_le_bytes());
    put(0x258, &LINK.to_le_bytes());
    put(0x260, &0x20_0000u32.to_le_bytes());
    image.extend([0x90; 1024]);
    image.extend(payload);
    image
}
