//! The configuration space of a function with a type 0 header (PCI Local Bus 3.0, section 6.1).

use super::device::{BarMapping, BarSpec};
use super::registers::read_registers;
use crate::state::{ConfigSpaceState, RestoreError};

const SIZE: usize = 256;
const COMMAND: usize = 0x04;
const STATUS: usize = 0x06;
const BAR0: usize = 0x10;
const CAPABILITIES: usize = 0x34;
const FIRST_CAPABILITY: usize = 0x40;

const COMMAND_MEMORY: u8 = 1 << 1;
const COMMAND_BUS_MASTER: u8 = 1 << 2;
const STATUS_CAPABILITIES: u8 = 1 << 4;

/// The identity of a function.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// Vendor id.
    pub vendor: u16,
    /// Device id.
    pub device: u16,
    /// Class, subclass and programming interface, in the low 24 bits.
    pub class: u32,
    /// Revision.
    pub revision: u8,
    /// Subsystem vendor id and subsystem id.
    pub subsystem: (u16, u16),
}

/// 256 bytes of which the guest may write some bits.
///
/// A BAR's size follows from its read-only address bits, so the sizing protocol (write ones, read
/// back) needs no extra code.
pub struct ConfigSpace {
    bytes: [u8; SIZE],
    writable: [u8; SIZE],
    initial: [u8; SIZE],
    bar_sizes: [u32; 6],
    next_capability: usize,
    last_link: usize,
}

impl ConfigSpace {
    /// A function without BARs and capabilities. Memory decoding and bus mastering are on, as
    /// firmware leaves them.
    pub fn new(id: Identity) -> Self {
        let mut space = Self {
            bytes: [0; SIZE],
            writable: [0; SIZE],
            initial: [0; SIZE],
            bar_sizes: [0; 6],
            next_capability: FIRST_CAPABILITY,
            last_link: CAPABILITIES,
        };
        space.init(0x00, &id.vendor.to_le_bytes());
        space.init(0x02, &id.device.to_le_bytes());
        space.init(COMMAND, &[COMMAND_MEMORY | COMMAND_BUS_MASTER, 0]);
        space.init(0x08, &[id.revision]);
        space.init(0x09, &id.class.to_le_bytes()[..3]);
        space.init(0x2c, &id.subsystem.0.to_le_bytes());
        space.init(0x2e, &id.subsystem.1.to_le_bytes());
        // Memory, bus master, parity; SERR, INTx disable. There is no I/O BAR to enable.
        space.writable[COMMAND] = COMMAND_MEMORY | COMMAND_BUS_MASTER | 1 << 6;
        space.writable[COMMAND + 1] = 1 | 1 << 2;
        // Cache line size and interrupt line mean nothing here, but software stores values there.
        space.writable[0x0c] = 0xff;
        space.writable[0x3c] = 0xff;
        space
    }

    fn init(&mut self, offset: usize, bytes: &[u8]) {
        for (i, byte) in bytes.iter().enumerate() {
            self.bytes[offset + i] = *byte;
            self.initial[offset + i] = *byte;
        }
    }

    /// Adds a 32-bit memory BAR, not prefetchable, at address 0.
    ///
    /// # Panics
    /// The index or size is not valid for a BAR.
    pub fn add_bar(&mut self, bar: BarSpec) {
        assert!(bar.index < 6 && bar.size.is_power_of_two() && bar.size >= 4096);
        let at = BAR0 + 4 * usize::from(bar.index);
        self.bar_sizes[usize::from(bar.index)] = bar.size;
        self.writable[at..at + 4].copy_from_slice(&(!(bar.size - 1)).to_le_bytes());
    }

    /// Appends a capability with the given id. `body` has its bytes after the link. The guest can
    /// write the bits that are set in `writable`, which is as long as `body` or shorter. Returns
    /// the offset.
    ///
    /// # Panics
    /// There is no room left, which is a bug in the device.
    pub fn add_capability(&mut self, id: u8, body: &[u8], writable: &[u8]) -> u8 {
        let at = self.next_capability;
        let end = at + 2 + body.len();
        assert!(end <= SIZE && writable.len() <= body.len());
        self.init(at, &[id, 0]);
        self.init(at + 2, body);
        self.writable[at + 2..at + 2 + writable.len()].copy_from_slice(writable);
        self.init(self.last_link, &[at as u8]);
        self.init(STATUS, &[STATUS_CAPABILITIES]);
        self.last_link = at + 1;
        self.next_capability = end.next_multiple_of(4);
        at as u8
    }

    /// Reads. Bytes beyond the end are not changed.
    pub fn read(&self, offset: u8, data: &mut [u8]) {
        read_registers(&self.bytes, offset.into(), data);
    }

    /// Writes the bits that are writable.
    pub fn write(&mut self, offset: u8, data: &[u8]) {
        let from = usize::from(offset);
        let bytes = self.bytes[from..].iter_mut();
        for ((byte, mask), new) in bytes.zip(&self.writable[from..]).zip(data) {
            *byte = *byte & !mask | new & mask;
        }
    }

    /// Sets bytes regardless of what the guest may write.
    pub(crate) fn store(&mut self, offset: u8, data: &[u8]) {
        let from = usize::from(offset);
        for (byte, new) in self.bytes[from..].iter_mut().zip(data) {
            *byte = *new;
        }
    }

    fn dword(bytes: &[u8; SIZE], at: usize) -> u32 {
        u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
    }

    /// Assigns an address to a BAR, now and after each reset. Does nothing if there is no such BAR.
    pub fn assign_bar(&mut self, index: u8, base: u32) {
        if let Some(size @ 1..) = self.bar_sizes.get(usize::from(index)) {
            let base = base & !(size - 1);
            self.init(BAR0 + 4 * usize::from(index), &base.to_le_bytes());
        }
    }

    /// The BARs.
    pub fn bars(&self) -> Vec<BarSpec> {
        (0u8..)
            .zip(self.bar_sizes)
            .filter(|(_, size)| *size != 0)
            .map(|(index, size)| BarSpec { index, size })
            .collect()
    }

    /// The BARs that are decoded now; empty while memory decoding is off.
    pub fn mapped_bars(&self) -> Vec<BarMapping> {
        if self.bytes[COMMAND] & COMMAND_MEMORY == 0 {
            return Vec::new();
        }
        let mapping = |bar: BarSpec| {
            let base = Self::dword(&self.bytes, BAR0 + 4 * usize::from(bar.index));
            BarMapping {
                index: bar.index,
                base: u64::from(base & !0xf),
                size: bar.size,
            }
        };
        self.bars().into_iter().map(mapping).collect()
    }

    /// Resets to the values after power-on, with the BARs as assigned.
    pub fn reset(&mut self) {
        self.bytes = self.initial;
    }

    /// The state.
    pub fn save(&self) -> ConfigSpaceState {
        ConfigSpaceState {
            bytes: self.bytes.to_vec(),
        }
    }

    /// Restores a state. `device` is named in errors.
    ///
    /// # Errors
    /// Bits that the guest cannot have written differ, so the state belongs to another device.
    pub fn restore(&mut self, state: &ConfigSpaceState, device: &str) -> Result<(), RestoreError> {
        let mismatch = |what: String| RestoreError::Mismatch {
            device: device.to_owned(),
            what,
        };
        let saved: &[u8; SIZE] = state
            .bytes
            .as_slice()
            .try_into()
            .map_err(|_| mismatch("length of the configuration space".to_owned()))?;
        for (at, byte) in saved.iter().enumerate() {
            if (byte ^ self.initial[at]) & !self.writable[at] != 0 {
                return Err(mismatch(format!("configuration byte {at:#x}")));
            }
        }
        self.bytes = *saved;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn space() -> ConfigSpace {
        let mut space = ConfigSpace::new(Identity {
            vendor: 0x1af4,
            device: 0x1042,
            class: 0x01_00_00,
            revision: 1,
            subsystem: (0x1af4, 0x1100),
        });
        space.add_bar(BarSpec {
            index: 0,
            size: 0x8000,
        });
        space
    }

    fn dword(space: &ConfigSpace, at: u8) -> u32 {
        let mut data = [0; 4];
        space.read(at, &mut data);
        u32::from_le_bytes(data)
    }

    #[test]
    fn identity_is_read_only() {
        let mut space = space();
        space.write(0, &[0; 4]);
        space.write(8, &[0; 4]);
        assert_eq!(dword(&space, 0), 0x1042_1af4);
        assert_eq!(dword(&space, 8), 0x0100_0001);
        assert_eq!(dword(&space, 0x2c), 0x1100_1af4);
    }

    #[test]
    fn a_bar_shows_its_size_when_ones_are_written() {
        let mut space = space();
        space.assign_bar(0, 0xc000_8000);
        assert_eq!(dword(&space, 0x10), 0xc000_8000);
        space.write(0x10, &[0xff; 4]);
        assert_eq!(dword(&space, 0x10), 0xffff_8000);
        space.write(0x14, &[0xff; 4]);
        assert_eq!(dword(&space, 0x14), 0, "there is no BAR 1");
        // Byte by byte works too.
        for (at, byte) in [0x00, 0x00, 0x01, 0xd0].into_iter().enumerate() {
            space.write(0x10 + at as u8, &[byte]);
        }
        assert_eq!(space.mapped_bars()[0].base, 0xd001_0000);
        space.reset();
        assert_eq!(dword(&space, 0x10), 0xc000_8000);
    }

    #[test]
    fn memory_decoding_can_be_switched_off() {
        let mut space = space();
        assert_eq!(space.mapped_bars().len(), 1);
        space.write(4, &[0, 0]);
        assert!(space.mapped_bars().is_empty());
        space.write(4, &[0xff, 0xff]);
        assert_eq!(dword(&space, 4) & 0xffff, 0x0546);
    }

    #[test]
    fn capabilities_are_linked_and_aligned() {
        let mut space = space();
        assert_eq!(dword(&space, 4) >> 16 & 0x10, 0);
        let first = space.add_capability(9, &[0xaa; 3], &[0, 0xf0]);
        let second = space.add_capability(0x11, &[0xbb; 10], &[]);
        assert_eq!(dword(&space, 4) >> 16 & 0x10, 0x10);
        assert_eq!((first, second), (0x40, 0x48));
        assert_eq!(dword(&space, 0x34), 0x40);
        assert_eq!(dword(&space, first), 0xaaaa_4809);
        assert_eq!(dword(&space, second), 0xbbbb_0011);
        space.write(first, &[0; 5]);
        assert_eq!(dword(&space, first), 0x0aaa_4809);
    }

    #[test]
    fn states_round_trip_and_refuse_another_device() {
        let mut a = space();
        a.write(0x10, &0xc123_8000u32.to_le_bytes());
        a.write(4, &[2]);
        let json = serde_json::to_string(&a.save()).unwrap();
        let state: ConfigSpaceState = serde_json::from_str(&json).unwrap();
        let mut b = space();
        b.restore(&state, "b").unwrap();
        assert_eq!(b.save(), a.save());
        assert_eq!(b.mapped_bars(), a.mapped_bars());
        let mut other = state.clone();
        other.bytes[2] = 0x41;
        assert!(b.restore(&other, "b").is_err());
        other.bytes.pop();
        assert!(b.restore(&other, "b").is_err());
    }
}
