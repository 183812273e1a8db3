//! Partition tables: GPT and MBR.

mod gpt;
mod mbr;

#[cfg(test)]
mod partition_test;

use super::error::BootError;
use super::window::Window;
use mbr::Slots;

/// Logical block size of a machine's disks in bytes.
const BLOCK: u64 = 512;
/// The other size of sectors that there is.
const LARGE_BLOCK: u64 = 4096;

/// One partition, or the whole disk if it has a file system directly.
pub(super) struct Partition {
    /// Its name in GRUB after the disk's: `gpt1`, `msdos2`; empty for the whole disk.
    pub(super) name: String,
    /// True if its type is EFI system partition.
    pub(super) esp: bool,
    pub(super) window: Window,
}

/// What a partition table says.
#[derive(Default)]
pub(super) struct Table {
    /// The partitions that are on the disk, by number.
    pub(super) partitions: Vec<Partition>,
    /// What is wrong with the others.
    pub(super) problems: Vec<String>,
}

/// The partitions of `disk`.
///
/// Linux and GRUB take a GPT for one only if the MBR has a protective partition. Without, it is what
/// an earlier use of the disk has left.
///
/// # Errors
/// The disk cannot be read, both copies of its GPT are damaged, or the table is for larger sectors.
pub(super) fn partitions(disk: &Window) -> Result<Table, BootError> {
    if disk.len() < BLOCK {
        return Err(BootError::Empty);
    }
    let sector = disk
        .bytes(0, BLOCK as usize)
        .map_err(|source| BootError::Read {
            what: "the partition table".into(),
            source,
        })?;
    let slots = Slots::read(&sector);
    let mut table = match &slots {
        Some(slots) if slots.protect_gpt() => match gpt::partitions(disk) {
            Err(_) if for_large_sectors(disk) => {
                return Err(BootError::SectorSize { bytes: LARGE_BLOCK });
            }
            table => table?,
        },
        Some(slots) => slots.partitions(disk),
        None => Table::default(),
    };
    if !slots.is_some_and(|slots| slots.protect_gpt()) && gpt::has_signature(disk, BLOCK) {
        table.problems.push(
            "there is a GPT, but the MBR has no partition of type 0xEE, so that Linux and GRUB \
             ignore the GPT"
                .into(),
        );
    }
    // An image of a CD may have partitions as well; what boots it is on the whole.
    let is_cd = disk.bytes(0x8001, 5).is_ok_and(|id| id == b"CD001");
    if table.partitions.is_empty() || is_cd {
        table.partitions.push(Partition {
            name: String::new(),
            esp: false,
            window: disk.clone(),
        });
    }
    Ok(table)
}

/// True if the disk's GPT is where one is on a disk with sectors of 4096 bytes.
fn for_large_sectors(disk: &Window) -> bool {
    !gpt::has_signature(disk, BLOCK) && gpt::has_signature(disk, LARGE_BLOCK)
}
