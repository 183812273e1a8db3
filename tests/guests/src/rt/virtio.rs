//! A driver for modern virtio-pci with MSI-X, small and interrupt driven: what the polled drivers
//! of other crates leave untested.

use core::sync::atomic::{Ordering, fence};

use super::pci::{self, Function};
use super::{apic, interrupts, time};

/// Entries of each virtqueue.
pub const SIZE: usize = 16;

const VERSION_1: u64 = 1 << 32;

/// A part of a request: address and length, and whether the device writes it.
#[derive(Clone, Copy)]
pub struct Buffer {
    address: u64,
    len: u32,
    writable: bool,
}

impl Buffer {
    /// For the device to read.
    pub fn out<T>(data: &[T]) -> Self {
        Self {
            address: data.as_ptr() as u64,
            len: size_of_val(data) as u32,
            writable: false,
        }
    }

    /// For the device to write.
    pub fn into<T>(data: &mut [T]) -> Self {
        Self {
            address: data.as_mut_ptr() as u64,
            len: size_of_val(data) as u32,
            writable: true,
        }
    }

    /// An address that need not be memory, to see what the device does with it.
    pub fn hostile(address: u64, len: u32, writable: bool) -> Self {
        Self {
            address,
            len,
            writable,
        }
    }
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Descriptor {
    address: u64,
    len: u32,
    flags: u16,
    next: u16,
}

/// Memory of one split virtqueue (virtio 1.2, section 2.7).
#[repr(C, align(4096))]
pub struct Rings {
    descriptors: [Descriptor; SIZE],
    avail: [u16; 3 + SIZE],
    used: Used,
}

#[repr(C, align(4))]
struct Used {
    flags: u16,
    index: u16,
    ring: [[u32; 2]; SIZE],
    avail_event: u16,
}

impl Rings {
    /// Empty rings.
    pub const fn new() -> Self {
        Self {
            descriptors: [Descriptor {
                address: 0,
                len: 0,
                flags: 0,
                next: 0,
            }; SIZE],
            avail: [0; 3 + SIZE],
            used: Used {
                flags: 0,
                index: 0,
                ring: [[0; 2]; SIZE],
                avail_event: 0,
            },
        }
    }
}

impl Default for Rings {
    fn default() -> Self {
        Self::new()
    }
}

/// A device after negotiation.
pub struct Device {
    function: Function,
    common: u64,
    notify: u64,
    multiplier: u64,
    /// Address of its own configuration.
    pub config: u64,
    /// Features both sides have.
    pub features: u64,
}

/// One of its queues; requests are made one at a time.
pub struct Queue {
    /// Address of its [`Rings`].
    rings: u64,
    notify: u64,
    index: u16,
    vector: u8,
    posted: u16,
    seen: u16,
}

fn get<T: Copy>(address: u64) -> T {
    // SAFETY: only used on addresses inside a device's BAR or the rings, mapped one to one.
    unsafe { (address as *const T).read_volatile() }
}

fn put<T>(address: u64, value: T) {
    // SAFETY: as in `get`.
    unsafe { (address as *mut T).write_volatile(value) };
}

impl Device {
    /// Finds the `index`th device of type `kind`, resets it and negotiates `wanted` features.
    pub fn open(kind: u16, index: usize, wanted: u64) -> Option<Self> {
        let function = pci::find_virtio(kind, index)?;
        function.enable();
        let (mut common, mut notify, mut config, mut multiplier) = (0, 0, 0, 0);
        for cap in function.capabilities(9) {
            let address = function.bar(function.read8(cap + 4)) + u64::from(function.read(cap + 8));
            match function.read8(cap + 3) {
                1 => common = address,
                2 => {
                    notify = address;
                    multiplier = u64::from(function.read(cap + 16));
                }
                4 => config = address,
                _ => {}
            }
        }
        put(common + 0x14, 0u8);
        while get::<u8>(common + 0x14) != 0 {}
        put(common + 0x14, 1u8);
        put(common + 0x14, 3u8);
        put(common, 0u32);
        let low: u32 = get(common + 4);
        put(common, 1u32);
        let high: u32 = get(common + 4);
        let features = (u64::from(high) << 32 | u64::from(low)) & (wanted | VERSION_1);
        put(common + 8, 0u32);
        put(common + 12, features as u32);
        put(common + 8, 1u32);
        put(common + 12, (features >> 32) as u32);
        put(common + 0x14, 11u8);
        let accepted = get::<u8>(common + 0x14) & 8 != 0;
        // MSI-X on, function not masked.
        if let Some(cap) = function.capabilities(0x11).next() {
            function.write(cap, function.read(cap) | 1 << 31);
        }
        accepted.then_some(Self {
            function,
            common,
            notify,
            multiplier,
            config,
            features,
        })
    }

    /// Sets queue `index` up in the [`Rings`] at the address `rings`, which no other queue uses,
    /// with MSI-X entry `index` sending `vector` to this vCPU.
    pub fn queue(&self, index: u16, rings: u64, vector: u8) -> Queue {
        put(rings, Rings::new());
        let table = self.function.capabilities(0x11).next().map_or(0, |cap| {
            let place = self.function.read(cap + 4);
            self.function.bar(place as u8 & 7) + u64::from(place & !7)
        });
        let entry = table + 16 * u64::from(index);
        put(entry, 0xFEE0_0000 | u32::from(apic::id()) << 12);
        put(entry + 4, 0u32);
        put(entry + 8, u32::from(vector));
        put(entry + 12, 0u32);
        put(self.common + 0x16, index);
        put(self.common + 0x18, SIZE as u16);
        put(self.common + 0x1A, index);
        for (register, field) in [
            (0x20, core::mem::offset_of!(Rings, descriptors)),
            (0x28, core::mem::offset_of!(Rings, avail)),
            (0x30, core::mem::offset_of!(Rings, used)),
        ] {
            put(self.common + register, (rings + field as u64) as u32);
            put(self.common + register + 4, 0u32);
        }
        put(self.common + 0x1C, 1u16);
        let offset: u16 = get(self.common + 0x1E);
        Queue {
            rings,
            notify: self.notify + self.multiplier * u64::from(offset),
            index,
            vector,
            posted: 0,
            seen: 0,
        }
    }

    /// The driver is ready.
    pub fn start(&self) {
        put(self.common + 0x14, 15u8);
    }

    /// The device status register.
    pub fn status(&self) -> u8 {
        get(self.common + 0x14)
    }

    /// A field of the device's own configuration.
    pub fn read_config<T: Copy>(&self, offset: u64) -> T {
        get(self.config + offset)
    }
}

impl Queue {
    fn put<T>(&self, offset: usize, value: T) {
        put(self.rings + offset as u64, value);
    }

    /// Offers a request of up to [`SIZE`] parts and notifies the device.
    pub fn post(&mut self, parts: &[Buffer]) {
        for (i, part) in parts.iter().enumerate() {
            let more = i + 1 < parts.len();
            let descriptor = Descriptor {
                address: part.address,
                len: part.len,
                flags: u16::from(more) | u16::from(part.writable) << 1,
                next: i as u16 + 1,
            };
            self.put(
                core::mem::offset_of!(Rings, descriptors) + i * size_of::<Descriptor>(),
                descriptor,
            );
        }
        let slot = 2 + usize::from(self.posted) % SIZE;
        self.put(core::mem::offset_of!(Rings, avail) + 2 * slot, 0u16);
        self.posted = self.posted.wrapping_add(1);
        fence(Ordering::SeqCst);
        self.put(core::mem::offset_of!(Rings, avail) + 2, self.posted);
        fence(Ordering::SeqCst);
        put(self.notify, self.index);
    }

    /// True once the device has returned the request; then its length written.
    pub fn poll(&mut self) -> Option<u32> {
        let used = self.rings + core::mem::offset_of!(Rings, used) as u64;
        let index: u16 = get(used + core::mem::offset_of!(Used, index) as u64);
        if index == self.seen {
            return None;
        }
        let slot = usize::from(self.seen) % SIZE;
        self.seen = self.seen.wrapping_add(1);
        let element: [u32; 2] =
            get(used + core::mem::offset_of!(Used, ring) as u64 + 8 * slot as u64);
        Some(element[1])
    }

    /// Makes a request and sleeps until its interrupt; `None` if it does not come in five seconds.
    pub fn request(&mut self, parts: &[Buffer]) -> Option<u32> {
        let before = interrupts::count(self.vector);
        self.post(parts);
        self.finish(before)
    }

    /// Waits for the interrupt of a request posted when the vector's count was `before`.
    pub fn finish(&mut self, before: u32) -> Option<u32> {
        interrupts::enable();
        let came = time::wait(5000, || interrupts::count(self.vector) != before);
        interrupts::disable();
        if came { self.poll() } else { None }
    }
}
