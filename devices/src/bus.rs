//! Address buses: they find the device for an access at an address.

use std::sync::{Arc, RwLock};

use crate::sync::{read, write};

/// A device that answers accesses at addresses of a bus.
///
/// Accesses are 1, 2, 4 or 8 bytes; `offset` counts from the start of the device's range. A guest
/// chooses both, so a device must handle every offset and length. Anything that it does not
/// implement reads as all ones and ignores writes.
pub trait BusDevice: Send + Sync {
    /// Name for log messages.
    fn name(&self) -> &str;
    /// Fills `data` with the value at `offset`.
    fn read(&self, offset: u64, data: &mut [u8]);
    /// Stores `data` at `offset`.
    fn write(&self, offset: u64, data: &[u8]);
}

/// Why a range cannot be added to a [`Bus`].
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum BusError {
    /// The range is empty or wraps around the end of the address space.
    #[error("{device}: range {base:#x}+{len:#x} is empty or wraps around the address space")]
    BadRange {
        /// The device to insert.
        device: String,
        /// First address.
        base: u64,
        /// Length in bytes.
        len: u64,
    },
    /// Another device owns part of the range.
    #[error("{device}: range {base:#x}+{len:#x} overlaps that of {other}")]
    Overlap {
        /// The device to insert.
        device: String,
        /// First address.
        base: u64,
        /// Length in bytes.
        len: u64,
        /// The device that owns it.
        other: String,
    },
}

#[derive(Clone)]
struct Range {
    base: u64,
    last: u64,
    device: Arc<dyn BusDevice>,
}

/// A map from address ranges to devices (port I/O or memory-mapped I/O).
///
/// If there is no device, reads return all ones and writes are dropped. Both are traced.
///
/// ```
/// use std::sync::Arc;
/// use fleetbox_devices::bus::{Bus, BusDevice};
///
/// struct Answer;
///
/// impl BusDevice for Answer {
///     fn name(&self) -> &str {
///         "answer"
///     }
///     fn read(&self, _offset: u64, data: &mut [u8]) {
///         data.fill(42);
///     }
///     fn write(&self, _offset: u64, _data: &[u8]) {}
/// }
///
/// let bus = Bus::new("ports");
/// bus.insert(0x80, 1, Arc::new(Answer))?;
/// let mut byte = [0];
/// bus.read(0x80, &mut byte);
/// assert_eq!(byte, [42]);
/// bus.read(0x81, &mut byte);
/// assert_eq!(byte, [0xff]); // no device answers
/// # Ok::<(), fleetbox_devices::bus::BusError>(())
/// ```
#[derive(Default)]
pub struct Bus {
    name: &'static str,
    ranges: RwLock<Vec<Range>>,
}

impl Bus {
    /// An empty bus. `name` appears in traces.
    pub fn new(name: &'static str) -> Self {
        Self {
            name,
            ranges: RwLock::default(),
        }
    }

    /// Gives `[base, base + len)` to `device`.
    ///
    /// # Errors
    /// The range is empty, wraps, or overlaps another device's.
    pub fn insert(&self, base: u64, len: u64, device: Arc<dyn BusDevice>) -> Result<(), BusError> {
        let last = match len.checked_sub(1).and_then(|n| base.checked_add(n)) {
            Some(last) => last,
            None => {
                return Err(BusError::BadRange {
                    device: device.name().to_owned(),
                    base,
                    len,
                });
            }
        };
        let mut ranges = write(&self.ranges);
        let at = ranges.partition_point(|r| r.base <= base);
        let before = at.checked_sub(1).map(|i| &ranges[i]);
        let clash = before
            .filter(|r| r.last >= base)
            .or_else(|| ranges.get(at).filter(|r| r.base <= last));
        if let Some(other) = clash {
            return Err(BusError::Overlap {
                device: device.name().to_owned(),
                base,
                len,
                other: other.device.name().to_owned(),
            });
        }
        ranges.insert(at, Range { base, last, device });
        Ok(())
    }

    fn find(&self, addr: u64, len: usize) -> Option<(u64, Arc<dyn BusDevice>)> {
        let ranges = read(&self.ranges);
        let at = ranges.partition_point(|r| r.base <= addr).checked_sub(1)?;
        let range = &ranges[at];
        let end = addr.checked_add(len as u64 - 1)?;
        (end <= range.last).then(|| (addr - range.base, range.device.clone()))
    }

    /// Reads `data.len()` bytes at `addr`.
    pub fn read(&self, addr: u64, data: &mut [u8]) {
        data.fill(0xff);
        if data.is_empty() {
            return;
        }
        match self.find(addr, data.len()) {
            Some((offset, device)) => device.read(offset, data),
            None => {
                tracing::trace!(bus = self.name, addr, len = data.len(), "unclaimed read");
            }
        }
    }

    /// Writes `data` at `addr`.
    pub fn write(&self, addr: u64, data: &[u8]) {
        if data.is_empty() {
            return;
        }
        match self.find(addr, data.len()) {
            Some((offset, device)) => device.write(offset, data),
            None => {
                tracing::trace!(bus = self.name, addr, ?data, "unclaimed write");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fixed(u8);

    impl BusDevice for Fixed {
        fn name(&self) -> &str {
            "fixed"
        }
        fn read(&self, offset: u64, data: &mut [u8]) {
            data.fill(self.0 + offset as u8);
        }
        fn write(&self, _offset: u64, _data: &[u8]) {}
    }

    #[test]
    fn unclaimed_reads_return_all_ones() {
        let bus = Bus::new("test");
        bus.insert(0x10, 4, Arc::new(Fixed(1))).unwrap();
        for addr in [0, 0xf, 0x14, u64::MAX] {
            let mut data = [0; 2];
            bus.read(addr, &mut data);
            assert_eq!(data, [0xff; 2], "at {addr:#x}");
        }
    }

    #[test]
    fn an_access_across_the_end_of_a_device_is_unclaimed() {
        let bus = Bus::new("test");
        bus.insert(0x10, 4, Arc::new(Fixed(1))).unwrap();
        let mut data = [0; 4];
        bus.read(0x12, &mut data);
        assert_eq!(data, [0xff; 4]);
        bus.read(0x10, &mut data);
        assert_eq!(data, [1; 4]);
    }

    #[test]
    fn overlapping_and_wrapping_ranges_are_refused() {
        let bus = Bus::new("test");
        bus.insert(0x10, 4, Arc::new(Fixed(1))).unwrap();
        for (base, len) in [(0x10, 1), (0xc, 5), (0x13, 9), (0, 0x100)] {
            assert!(matches!(
                bus.insert(base, len, Arc::new(Fixed(2))),
                Err(BusError::Overlap { .. })
            ));
        }
        assert!(matches!(
            bus.insert(u64::MAX, 2, Arc::new(Fixed(2))),
            Err(BusError::BadRange { .. })
        ));
        assert!(bus.insert(0, 0, Arc::new(Fixed(2))).is_err());
        bus.insert(0x14, 4, Arc::new(Fixed(2))).unwrap();
        bus.insert(0xc, 4, Arc::new(Fixed(2))).unwrap();
        bus.insert(u64::MAX, 1, Arc::new(Fixed(2))).unwrap();
    }
}
