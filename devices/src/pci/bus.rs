//! The bus: finds functions by slot for configuration accesses and by BAR for memory accesses.

use std::ops::Range;
use std::sync::{Arc, Mutex, RwLock};

use super::device::{BarMapping, PciDevice, SLOTS};
use super::host_bridge::HostBridge;
use super::registers::le_value;
use crate::bus::BusDevice;
use crate::state::{PciDeviceState, RestoreError};
use crate::sync::{lock, read, write};

/// Why a function cannot be added to a [`PciBus`].
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum PciError {
    /// The slot does not exist or is taken.
    #[error("{device}: PCI slot {slot} is taken or does not exist; use a free one of 1 to 31")]
    Slot {
        /// The function to add.
        device: String,
        /// Its slot.
        slot: u8,
    },
    /// The memory window is full.
    #[error(
        "{device}: the PCI memory window has no {size:#x} free bytes for BAR {bar}; use fewer devices"
    )]
    NoSpace {
        /// The function to add.
        device: String,
        /// The BAR.
        bar: u8,
        /// Its size in bytes.
        size: u32,
    },
}

/// The state of the bus and all functions on it, for snapshots.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct PciBusState {
    /// The address register of configuration mechanism #1.
    pub config_address: u32,
    /// The used slots and the state of their functions, in order.
    pub devices: Vec<(u8, PciDeviceState)>,
}

#[derive(Clone)]
struct Decoded {
    bar: BarMapping,
    device: Arc<dyn PciDevice>,
}

struct Inner {
    window: Range<u64>,
    slots: RwLock<Vec<Option<Arc<dyn PciDevice>>>>,
    decoded: RwLock<Vec<Decoded>>,
    next_bar: Mutex<u64>,
    config_address: Mutex<u32>,
}

/// One PCI bus with a host bridge at 00:00.0.
///
/// The machine puts [`PciBus::ports`] at I/O port 0xCF8 (8 ports), [`PciBus::ecam`] at the ECAM
/// base (1 MiB) and [`PciBus::mmio`] over the whole memory window.
#[derive(Clone)]
pub struct PciBus {
    inner: Arc<Inner>,
}

impl PciBus {
    /// A bus whose memory BARs are in `window` (GPAs below 4 GiB, start aligned to 1 MiB).
    pub fn new(window: Range<u64>) -> Self {
        let mut slots: Vec<Option<Arc<dyn PciDevice>>> = vec![None; SLOTS.into()];
        slots[0] = Some(Arc::new(HostBridge::new()));
        Self {
            inner: Arc::new(Inner {
                next_bar: Mutex::new(window.start),
                window,
                slots: RwLock::new(slots),
                decoded: RwLock::default(),
                config_address: Mutex::new(0),
            }),
        }
    }

    /// Adds a function in a slot (1 to 31), and assigns addresses to its BARs.
    ///
    /// # Errors
    /// The slot is taken or does not exist, or the memory window is full.
    pub fn add(&self, slot: u8, device: Arc<dyn PciDevice>) -> Result<(), PciError> {
        {
            let mut slots = write(&self.inner.slots);
            let Some(entry @ None) = slots.get_mut(usize::from(slot)) else {
                return Err(PciError::Slot {
                    device: device.name().to_owned(),
                    slot,
                });
            };
            let mut next = lock(&self.inner.next_bar);
            let mut at = *next;
            let mut assigned = Vec::new();
            for bar in device.bars() {
                let base = at.next_multiple_of(bar.size.into());
                at = base + u64::from(bar.size);
                let Some(low) = u32::try_from(base)
                    .ok()
                    .filter(|_| at <= self.inner.window.end)
                else {
                    return Err(PciError::NoSpace {
                        device: device.name().to_owned(),
                        bar: bar.index,
                        size: bar.size,
                    });
                };
                assigned.push((bar.index, low));
            }
            *next = at;
            for (index, base) in assigned {
                device.assign_bar(index, base);
            }
            *entry = Some(device);
        }
        self.inner.decode();
        Ok(())
    }

    /// I/O ports 0xCF8 to 0xCFF: configuration mechanism #1.
    pub fn ports(&self) -> Arc<dyn BusDevice> {
        Arc::new(Ports(self.inner.clone()))
    }

    /// 1 MiB of memory-mapped configuration space (ECAM) of bus 0.
    pub fn ecam(&self) -> Arc<dyn BusDevice> {
        Arc::new(Ecam(self.inner.clone()))
    }

    /// The whole memory window: every function's BARs, wherever they are.
    pub fn mmio(&self) -> Arc<dyn BusDevice> {
        Arc::new(Mmio(self.inner.clone()))
    }

    /// Resets every function to its state after power-on, which stops worker threads.
    pub fn reset(&self) {
        self.inner.devices().for_each(|(_, d)| d.reset());
        *lock(&self.inner.config_address) = 0;
        self.inner.decode();
    }

    /// Stops every function from accessing guest memory, and waits until that is done.
    pub fn pause(&self) {
        self.inner.devices().for_each(|(_, d)| d.pause());
    }

    /// Undoes [`PciBus::pause`], and starts the threads that a restored state needs.
    pub fn resume(&self) {
        self.inner.devices().for_each(|(_, d)| d.resume());
    }

    /// The state of all functions. Pause first, so that it is consistent with guest memory.
    pub fn save(&self) -> PciBusState {
        PciBusState {
            config_address: *lock(&self.inner.config_address),
            devices: self.inner.devices().map(|(s, d)| (s, d.save())).collect(),
        }
    }

    /// Restores a state. The functions stay paused until [`PciBus::resume`].
    ///
    /// # Errors
    /// The functions on this bus are not those of the state.
    pub fn restore(&self, state: &PciBusState) -> Result<(), RestoreError> {
        let devices: Vec<_> = self.inner.devices().collect();
        if !devices
            .iter()
            .map(|(slot, _)| slot)
            .eq(state.devices.iter().map(|(slot, _)| slot))
        {
            return Err(RestoreError::Mismatch {
                device: "PCI bus".to_owned(),
                what: "which slots are taken".to_owned(),
            });
        }
        for ((_, device), (_, state)) in devices.iter().zip(&state.devices) {
            device.restore(state)?;
        }
        *lock(&self.inner.config_address) = state.config_address;
        self.inner.decode();
        Ok(())
    }
}

impl Inner {
    fn devices(&self) -> impl Iterator<Item = (u8, Arc<dyn PciDevice>)> {
        let slots = read(&self.slots).clone();
        (0u8..)
            .zip(slots)
            .filter_map(|(slot, device)| Some((slot, device?)))
    }

    /// Rebuilds the table of decoded BARs. If two overlap, the lower slot wins.
    fn decode(&self) {
        // The lock is held all through: of two concurrent changes the later one must prevail.
        let mut decoded = write(&self.decoded);
        decoded.clear();
        for (_, device) in self.devices() {
            let bars = device.mapped_bars().into_iter();
            decoded.extend(bars.map(|bar| Decoded {
                bar,
                device: device.clone(),
            }));
        }
    }

    fn function(&self, devfn: u8) -> Option<Arc<dyn PciDevice>> {
        if devfn & 7 != 0 {
            return None;
        }
        read(&self.slots).get(usize::from(devfn >> 3))?.clone()
    }

    fn read_config(&self, devfn: u8, register: u16, data: &mut [u8]) {
        let end = usize::from(register) + data.len();
        // Functions here have no extended configuration space, which reads as all ones.
        if let (Some(device), Ok(offset), ..=256) =
            (self.function(devfn), u8::try_from(register), end)
        {
            device.read_config(offset, data);
        }
    }

    fn write_config(&self, devfn: u8, register: u16, data: &[u8]) {
        let end = usize::from(register) + data.len();
        if let (Some(device), Ok(offset), ..=256) =
            (self.function(devfn), u8::try_from(register), end)
        {
            device.write_config(offset, data);
            // Command register and BARs.
            if offset < 0x28 {
                self.decode();
            }
        }
    }

    fn find_bar(&self, addr: u64, len: usize) -> Option<(Arc<dyn PciDevice>, u8, u64)> {
        let decoded = read(&self.decoded);
        decoded.iter().find_map(|d| {
            let offset = addr.checked_sub(d.bar.base)?;
            let end = offset.checked_add(len as u64)?;
            (end <= d.bar.size.into()).then(|| (d.device.clone(), d.bar.index, offset))
        })
    }
}

struct Ports(Arc<Inner>);

impl Ports {
    /// The device and function, and the register, of an access to the data port at `offset`.
    fn target(&self, offset: u64, len: usize) -> Option<(u8, u16)> {
        let address = *lock(&self.0.config_address);
        let enabled = address & 1 << 31 != 0;
        let byte = offset.checked_sub(4)?;
        // Bus 0 only; accesses do not cross the dword.
        if !enabled || address >> 16 & 0xff != 0 || byte + len as u64 > 4 {
            return None;
        }
        Some(((address >> 8) as u8, (address & 0xfc) as u16 + byte as u16))
    }
}

impl BusDevice for Ports {
    fn name(&self) -> &str {
        "pci-ports"
    }

    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        if offset == 0 && data.len() == 4 {
            data.copy_from_slice(&lock(&self.0.config_address).to_le_bytes());
        } else if let Some((devfn, register)) = self.target(offset, data.len()) {
            self.0.read_config(devfn, register, data);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if offset == 0 && data.len() == 4 {
            *lock(&self.0.config_address) = le_value(data) as u32 & 0x80ff_fffc;
        } else if let Some((devfn, register)) = self.target(offset, data.len()) {
            self.0.write_config(devfn, register, data);
        }
    }
}

struct Ecam(Arc<Inner>);

/// The device and function on bus 0, and the register, at an offset of the ECAM.
fn ecam_target(offset: u64) -> Option<(u8, u16)> {
    let devfn = u8::try_from(offset >> 12).ok()?;
    Some((devfn, (offset & 0xfff) as u16))
}

impl BusDevice for Ecam {
    fn name(&self) -> &str {
        "pci-ecam"
    }

    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        for (i, chunk) in (0..).step_by(4).zip(data.chunks_mut(4)) {
            if let Some((devfn, register)) = ecam_target(offset.wrapping_add(i)) {
                self.0.read_config(devfn, register, chunk);
            }
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        for (i, chunk) in (0..).step_by(4).zip(data.chunks(4)) {
            if let Some((devfn, register)) = ecam_target(offset.wrapping_add(i)) {
                self.0.write_config(devfn, register, chunk);
            }
        }
    }
}

struct Mmio(Arc<Inner>);

impl BusDevice for Mmio {
    fn name(&self) -> &str {
        "pci-mmio"
    }

    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        let addr = self.0.window.start.saturating_add(offset);
        match self.0.find_bar(addr, data.len()) {
            Some((device, bar, offset)) => device.read_bar(bar, offset, data),
            None => tracing::trace!(addr, len = data.len(), "unclaimed PCI memory read"),
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let addr = self.0.window.start.saturating_add(offset);
        match self.0.find_bar(addr, data.len()) {
            Some((device, bar, offset)) => device.write_bar(bar, offset, data),
            None => tracing::trace!(addr, ?data, "unclaimed PCI memory write"),
        }
    }
}

#[cfg(test)]
#[path = "bus_test.rs"]
mod tests;
