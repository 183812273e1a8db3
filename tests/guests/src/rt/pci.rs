//! PCI functions on bus 0, by ECAM and by ports.

use super::port;

const ECAM: u64 = 0xE000_0000;

/// A function of bus 0: its slot.
#[derive(Clone, Copy)]
pub struct Function(pub u8);

impl Function {
    fn address(self, offset: u16) -> *mut u32 {
        (ECAM + (u64::from(self.0) << 15) + u64::from(offset & !3)) as *mut u32
    }

    /// A double word of configuration space.
    pub fn read(self, offset: u16) -> u32 {
        // SAFETY: configuration space is mapped one to one and no memory of the program.
        unsafe { self.address(offset).read_volatile() }
    }

    /// Writes a double word of configuration space.
    pub fn write(self, offset: u16, value: u32) {
        // SAFETY: as in `read`.
        unsafe { self.address(offset).write_volatile(value) };
    }

    /// A double word by configuration mechanism #1.
    pub fn read_by_port(self, offset: u16) -> u32 {
        port::write32(
            0xCF8,
            1 << 31 | u32::from(self.0) << 11 | u32::from(offset & 0xFC),
        );
        port::read32(0xCFC)
    }

    /// A byte of configuration space.
    pub fn read8(self, offset: u16) -> u8 {
        (self.read(offset) >> (8 * (offset & 3))) as u8
    }

    /// Offsets of the capabilities with this identifier.
    pub fn capabilities(self, id: u8) -> impl Iterator<Item = u16> {
        let mut at = u16::from(self.read8(0x34));
        let mut left = 48;
        core::iter::from_fn(move || {
            while at != 0 && left > 0 {
                left -= 1;
                let this = at;
                let header = self.read(this);
                at = header as u16 >> 8;
                if header as u8 == id {
                    return Some(this);
                }
            }
            None
        })
    }

    /// Address of a 32-bit memory BAR.
    pub fn bar(self, index: u8) -> u64 {
        u64::from(self.read(0x10 + 4 * u16::from(index)) & !0xF)
    }

    /// Turns memory decoding and bus mastering on.
    pub fn enable(self) {
        self.write(4, self.read(4) | 6);
    }
}

/// The `index`th virtio function of this type (1 net, 2 block, 4 entropy).
pub fn find_virtio(kind: u16, index: usize) -> Option<Function> {
    (1..32)
        .map(Function)
        .filter(|f| f.read(0) == 0x1AF4 | u32::from(0x1040 + kind) << 16)
        .nth(index)
}
