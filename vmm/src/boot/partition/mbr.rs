//! The MBR's partitions, and the logical ones in a chain behind an extended partition.

use super::{BLOCK, Partition, Table};
use crate::boot::budget::Limit;
use crate::boot::window::Window;

/// Maximum number of links of the chain, about as in Linux.
const MAX_LINKS: usize = 100;
/// The type of a GPT's protective partition, and of the EFI system partition.
const PROTECTIVE: u8 = 0xEE;
const ESP: u8 = 0xEF;

/// The four slots of a sector with a signature.
pub(super) struct Slots([Slot; 4]);

#[derive(Clone, Copy)]
struct Slot {
    flag: u8,
    kind: u8,
    first: u32,
    count: u32,
}

impl Slot {
    fn is_extended(self) -> bool {
        matches!(self.kind, 0x05 | 0x0F | 0x85)
    }

    /// True if it says that there is a partition.
    fn is_used(self) -> bool {
        self.kind != 0 && self.count != 0
    }
}

impl Slots {
    /// The slots in `sector`, or `None` if it has no signature.
    pub(super) fn read(sector: &[u8]) -> Option<Self> {
        if !sector.ends_with(&[0x55, 0xAA]) {
            return None;
        }
        let (found, _) = sector.get(446..510)?.as_chunks::<16>();
        let slots: [[u8; 16]; 4] = found.try_into().ok()?;
        Some(Self(slots.map(|s| Slot {
            flag: s[0],
            kind: s[4],
            first: u32::from_le_bytes([s[8], s[9], s[10], s[11]]),
            count: u32::from_le_bytes([s[12], s[13], s[14], s[15]]),
        })))
    }

    /// True if the disk has a GPT, which the MBR only protects. As in GRUB, any of the slots says
    /// so, whatever the others are (a hybrid MBR). What else the disk has of a GPT is a remainder
    /// of an earlier use.
    pub(super) fn protect_gpt(&self) -> bool {
        self.0.iter().any(|slot| slot.kind == PROTECTIVE)
    }

    /// The partitions of a disk whose first sector has these slots.
    pub(super) fn partitions(&self, disk: &Window) -> Table {
        let mut table = Table::default();
        // A FAT or boot-sector file system carries the same signature: slots count only if sane.
        if self.0.iter().any(|slot| slot.flag & 0x7F != 0) {
            return table;
        }
        let mut extended = None;
        for (number, slot) in (1..).zip(self.0).filter(|(_, slot)| slot.is_used()) {
            if slot.is_extended() {
                extended = extended.or(Some(slot));
            } else {
                table.add(disk, number, slot, 0);
            }
        }
        if let Some(extended) = extended {
            let used = table.logical(disk, extended.first.into());
            if let Err(problem) = used {
                table.problems.push(problem);
            }
        }
        table
    }
}

impl Table {
    fn add(&mut self, disk: &Window, number: u32, slot: Slot, base: u64) {
        let name = format!("msdos{number}");
        let start = (base + u64::from(slot.first)) * BLOCK;
        match disk.part(start, u64::from(slot.count) * BLOCK) {
            Some(window) if start != 0 => self.partitions.push(Partition {
                name,
                esp: slot.kind == ESP,
                window,
            }),
            Some(_) => {}
            None => self
                .problems
                .push(format!("(hd0,{name}) reaches beyond the disk's end")),
        }
    }

    /// Adds the logical partitions, from 5 on. Each link of the chain is a sector like the MBR, with
    /// one partition and the next link, whose place counts from the first link's.
    fn logical(&mut self, disk: &Window, first: u64) -> Result<(), String> {
        let damaged = |what: String| format!("the logical partitions are damaged: {what}");
        let (mut at, mut number) = (first, 5);
        for _ in 0..MAX_LINKS {
            let sector = disk
                .budget()
                .charge(Limit::Entries, 4)
                .map_err(std::io::Error::from)
                .and_then(|()| disk.bytes(at * BLOCK, BLOCK as usize))
                .map_err(|error| damaged(error.to_string()))?;
            let Some(Slots(slots)) = Slots::read(&sector) else {
                return Err(damaged(format!("there is no signature in sector {at}")));
            };
            let mut next = None;
            for slot in slots.into_iter().filter(|slot| slot.is_used()) {
                if slot.is_extended() {
                    next = next.or(Some(first + u64::from(slot.first)));
                } else {
                    self.add(disk, number, slot, at);
                    number += 1;
                }
            }
            match next {
                Some(next) => at = next,
                None => return Ok(()),
            }
        }
        Err(damaged(format!("there are more than {MAX_LINKS}")))
    }
}
