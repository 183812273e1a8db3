//! Uncompressed kernels: ELF-64 files with an optional PVH entry note.

use std::ops::Range;
use std::sync::Mutex;

use vm_memory::{Bytes, GuestAddress};

use super::error::KernelError;
use super::source::{Fills, Placement, Source, check_range};
use crate::memory::GuestMemory;

/// First bytes of an ELF file.
pub(super) const MAGIC: [u8; 4] = *b"\x7fELF";

const HEADER_SIZE: usize = 64;
const PROGRAM_HEADER_SIZE: usize = 56;
/// Maximum number of program headers, more than any kernel has.
const MAX_PROGRAM_HEADERS: u16 = 256;
/// Maximum bytes of notes, more than any kernel has.
const MAX_NOTES: u64 = 1 << 20;

const CLASS_64: u8 = 2;
const LITTLE_ENDIAN: u8 = 1;
const MACHINE_X86_64: u16 = 62;
const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
/// `XEN_ELFNOTE_PHYS32_ENTRY`: the 32-bit physical entry point of the PVH protocol.
const NOTE_PHYS32_ENTRY: u32 = 18;

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    bytes
        .get(at..at + 2)
        .map_or(0, |b| u16::from_le_bytes([b[0], b[1]]))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from(u16_at(bytes, at)) | u32::from(u16_at(bytes, at + 2)) << 16
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

/// A part of the file that is loaded into memory.
struct Segment {
    offset: u64,
    in_file: u64,
    /// First address and first address behind it (GPA). The bytes beyond `in_file` are zeros.
    address: u64,
    end: u64,
}

/// How to load an ELF file, checked against the guest's memory.
pub(super) struct Plan {
    entry64: u64,
    segments: Vec<Segment>,
    /// Offset and length of the notes.
    notes: Vec<(u64, u64)>,
}

impl Plan {
    /// Reads the headers of a file of `file_len` bytes, which are all within `source`.
    pub(super) fn parse(
        memory: &GuestMemory,
        source: &Source<'_>,
        file_len: u64,
    ) -> Result<Self, KernelError> {
        let mut header = [0; HEADER_SIZE];
        if file_len < HEADER_SIZE as u64 {
            return Err(KernelError::Elf("it is shorter than its header"));
        }
        source.read_at(0, &mut header)?;
        if header[..4] != MAGIC || header[4] != CLASS_64 || header[5] != LITTLE_ENDIAN {
            return Err(KernelError::Elf("it is not a little-endian 64-bit file"));
        }
        if u16_at(&header, 18) != MACHINE_X86_64 {
            return Err(KernelError::Elf("it is not for x86-64"));
        }
        let entry64 = u64_at(&header, 24);
        let table = u64_at(&header, 32);
        let count = u16_at(&header, 56);
        if usize::from(u16_at(&header, 54)) != PROGRAM_HEADER_SIZE || count > MAX_PROGRAM_HEADERS {
            return Err(KernelError::Elf("its program header table is malformed"));
        }
        let mut headers = vec![0; usize::from(count) * PROGRAM_HEADER_SIZE];
        source
            .read_at(table, &mut headers)
            .map_err(|_| KernelError::Elf("its program headers are outside the file"))?;

        let (mut segments, mut notes) = (Vec::new(), Vec::new());
        for ph in headers.chunks_exact(PROGRAM_HEADER_SIZE) {
            let (offset, address) = (u64_at(ph, 8), u64_at(ph, 24));
            let (in_file, in_memory) = (u64_at(ph, 32), u64_at(ph, 40));
            let kind = u32_at(ph, 0);
            if !matches!(kind, PT_LOAD | PT_NOTE) {
                continue;
            }
            if offset.checked_add(in_file).is_none_or(|end| end > file_len) {
                return Err(KernelError::Elf("a segment is outside the file"));
            }
            if kind == PT_NOTE {
                let total: u64 = notes.iter().map(|(_, len)| len).sum();
                if total.saturating_add(in_file) > MAX_NOTES {
                    return Err(KernelError::Elf("its notes are too large"));
                }
                notes.push((offset, in_file));
            } else if in_memory > 0 {
                if in_file > in_memory {
                    return Err(KernelError::Elf(
                        "a segment is larger in the file than in memory",
                    ));
                }
                segments.push(Segment {
                    offset,
                    in_file,
                    address,
                    end: check_range(memory, address, in_memory)?,
                });
            }
        }
        if segments.is_empty() {
            return Err(KernelError::Elf("it has nothing to load"));
        }
        Ok(Self {
            entry64,
            segments,
            notes,
        })
    }

    /// The range of addresses that it uses (GPA).
    pub(super) fn range(&self) -> Range<u64> {
        let start = self.segments.iter().map(|s| s.address).min();
        let end = self.segments.iter().map(|s| s.end).max();
        start.unwrap_or(0)..end.unwrap_or(0)
    }

    /// Buffers for the notes, which [`Plan::place`] fills.
    pub(super) fn notes(&self) -> Vec<Vec<u8>> {
        let room = |(_, len): &(u64, u64)| vec![0; *len as usize];
        self.notes.iter().map(room).collect()
    }

    /// Copies `bytes`, which begin at `offset` of the file, to their addresses.
    pub(super) fn place(
        &self,
        memory: &GuestMemory,
        offset: u64,
        bytes: &[u8],
        notes: &Mutex<Vec<Vec<u8>>>,
    ) -> Result<(), KernelError> {
        for segment in &self.segments {
            if let Some((part, at)) = overlap(offset, bytes, segment.offset, segment.in_file) {
                memory.write_slice(part, GuestAddress(segment.address + at))?;
            }
        }
        for (index, (start, len)) in self.notes.iter().enumerate() {
            if let Some((part, at)) = overlap(offset, bytes, *start, *len) {
                let mut notes = notes.lock().unwrap_or_else(|e| e.into_inner());
                let room = notes.get_mut(index).and_then(|n| n.get_mut(at as usize..));
                if let Some(room) = room.and_then(|r| r.get_mut(..part.len())) {
                    room.copy_from_slice(part);
                }
            }
        }
        Ok(())
    }

    /// Zeroes the memory without bytes in the file, and finds the entry point. Call it once every
    /// byte is placed.
    pub(super) fn finish(
        self,
        memory: &GuestMemory,
        notes: &[Vec<u8>],
    ) -> Result<Placement, KernelError> {
        for segment in &self.segments {
            zero(memory, segment.address + segment.in_file, segment.end)?;
        }
        let pvh = notes.iter().find_map(|notes| pvh_entry(notes));
        let entry = pvh.unwrap_or(self.entry64);
        let enters = |s: &Segment| (s.address..s.end).contains(&entry);
        if !self.segments.iter().any(enters) {
            return Err(KernelError::Elf("its entry point is outside its segments"));
        }
        let Range { start, end } = self.range();
        Ok(Placement {
            start,
            end,
            entry64: self.entry64,
            pvh,
        })
    }
}

/// `bytes` begin at `offset` of a file. Returns the part of them within the `len` bytes from
/// `start`, and the position of that part in those.
fn overlap(offset: u64, bytes: &[u8], start: u64, len: u64) -> Option<(&[u8], u64)> {
    let from = start.max(offset);
    let to = start.checked_add(len)?.min(offset + bytes.len() as u64);
    if from >= to {
        return None;
    }
    let part = bytes.get((from - offset) as usize..(to - offset) as usize)?;
    Some((part, from - start))
}

/// Loads the segments of an ELF file to their physical addresses.
pub(super) fn load(
    memory: &GuestMemory,
    source: &Source<'_>,
    fills: Fills<'_>,
) -> Result<Placement, KernelError> {
    let plan = Plan::parse(memory, source, source.len()?)?;
    fills(plan.range());
    for segment in &plan.segments {
        source.load(segment.offset, segment.in_file, memory, segment.address)?;
    }
    let mut notes = plan.notes();
    for ((offset, _), notes) in plan.notes.iter().zip(&mut notes) {
        source.read_at(*offset, notes)?;
    }
    plan.finish(memory, &notes)
}

/// Zeroes `[from, to)`, because memory that an earlier boot used may hold anything.
fn zero(memory: &GuestMemory, mut from: u64, to: u64) -> Result<(), KernelError> {
    static ZEROES: [u8; 1 << 16] = [0; 1 << 16];
    while from < to {
        let n = (to - from).min(ZEROES.len() as u64);
        memory.write_slice(&ZEROES[..n as usize], GuestAddress(from))?;
        from += n;
    }
    Ok(())
}

/// The PVH entry point among the ELF notes, which have 4-byte alignment.
fn pvh_entry(mut notes: &[u8]) -> Option<u64> {
    while notes.len() >= 12 {
        let name_len = u32_at(notes, 0) as usize;
        let desc_len = u32_at(notes, 4) as usize;
        let kind = u32_at(notes, 8);
        let name = notes.get(12..)?.get(..name_len)?;
        let desc_at = 12 + name_len.next_multiple_of(4);
        let desc = notes.get(desc_at..)?.get(..desc_len)?;
        if name == b"Xen\0" && kind == NOTE_PHYS32_ENTRY && matches!(desc_len, 4 | 8) {
            let entry = u32_at(desc, 0);
            // The entry is 32-bit, whatever the width it is written with.
            return (desc_len == 4 || u32_at(desc, 4) == 0).then_some(u64::from(entry));
        }
        let next = desc_at + desc_len.next_multiple_of(4);
        notes = notes.get(next..)?;
    }
    None
}
