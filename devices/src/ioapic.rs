//! I/O APIC (Intel 82093AA): wired interrupts become messages to the local APICs.

use std::sync::{Arc, Mutex, MutexGuard};

use fleetbox_arch::x86_64::layout::{IOAPIC_PINS, LAPIC_START};
use serde::{Deserialize, Serialize};

use crate::bus::BusDevice;
use crate::irq::{IrqLine, MsiController, MsiMessage};
use crate::sync::lock;

const PINS: usize = IOAPIC_PINS as usize;

// Memory-mapped registers (datasheet, section 3.1).
const SELECT: u64 = 0x00;
const WINDOW: u64 = 0x10;

// Registers behind the window (section 3.2).
const REG_ID: u8 = 0x00;
const REG_VERSION: u8 = 0x01;
const REG_ARBITRATION: u8 = 0x02;
const REG_REDIRECTION: u8 = 0x10;

/// Version 0x11 has no EOI register. Ends of interrupts arrive as broadcasts.
const VERSION: u32 = 0x11 | (IOAPIC_PINS as u32 - 1) << 16;
const ID_MASK: u32 = 0x0F00_0000;

// A redirection entry (section 3.2.4).
const VECTOR: u64 = 0xFF;
const DELIVERY_MODE: u64 = 7 << 8;
const DESTINATION_LOGICAL: u64 = 1 << 11;
const DELIVERY_STATUS: u64 = 1 << 12;
const REMOTE_IRR: u64 = 1 << 14;
const LEVEL_TRIGGERED: u64 = 1 << 15;
const MASKED: u64 = 1 << 16;
const DESTINATION_SHIFT: u32 = 56;
const READ_ONLY: u64 = DELIVERY_STATUS | REMOTE_IRR;
const WRITABLE: u64 = 0x1_FFFF & !READ_ONLY | 0xFF << DESTINATION_SHIFT;

/// Learns what each pin sends, for a hypervisor that keeps its own routes.
pub trait IoApicRoutes: Send + Sync {
    /// The guest changed the redirection entry of `pin`.
    ///
    /// A masked entry is reported with its message too, because an earlier interrupt may still be
    /// in service, and the hypervisor needs the route to report its end. `None` is an entry that
    /// was never programmed.
    fn update(&self, pin: u8, message: Option<MsiMessage>);
}

/// An [`IoApicRoutes`] that ignores everything.
impl IoApicRoutes for () {
    fn update(&self, _pin: u8, _message: Option<MsiMessage>) {}
}

/// Registers and line levels of an [`IoApic`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IoApicState {
    /// Identification register.
    pub id: u32,
    /// Register select.
    pub select: u8,
    /// Redirection entries, including their remote IRR bits.
    pub redirection: [u64; PINS],
    /// Lines that are high, one bit per pin.
    pub levels: u32,
}

impl Default for IoApicState {
    /// After reset: all pins masked, all lines low.
    fn default() -> Self {
        Self {
            id: 0,
            select: 0,
            redirection: [MASKED; PINS],
            levels: 0,
        }
    }
}

/// An I/O APIC with 24 pins.
pub struct IoApic {
    state: Mutex<IoApicState>,
    msi: Arc<dyn MsiController>,
    routes: Box<dyn IoApicRoutes>,
}

/// The message that the redirection entry `entry` stands for (Intel SDM volume 3, section 11.11).
fn message(entry: u64) -> MsiMessage {
    let logical = u64::from(entry & DESTINATION_LOGICAL != 0);
    MsiMessage {
        address: LAPIC_START | (entry >> DESTINATION_SHIFT) << 12 | logical << 2,
        // Vector, delivery mode and trigger mode are at the same places.
        data: (entry & (VECTOR | DELIVERY_MODE | LEVEL_TRIGGERED)) as u32
            // A level-triggered message says that the level is asserted.
            | if entry & LEVEL_TRIGGERED != 0 { 1 << 14 } else { 0 },
    }
}

impl IoApic {
    /// An I/O APIC after reset that sends its interrupts to `msi`.
    pub fn new(msi: Arc<dyn MsiController>, routes: Box<dyn IoApicRoutes>) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::default(),
            msi,
            routes,
        })
    }

    /// The input `pin`. If it does not exist, the result is a line that does nothing.
    pub fn line(self: &Arc<Self>, pin: u8) -> Arc<dyn IrqLine> {
        Arc::new(Pin {
            ioapic: self.clone(),
            pin,
        })
    }

    /// Handles the end of the level-triggered interrupt `vector`, broadcast by a local APIC.
    pub fn end_of_interrupt(&self, vector: u8) {
        let mut state = self.lock();
        for pin in 0..PINS {
            let entry = state.redirection[pin];
            if entry & (LEVEL_TRIGGERED | REMOTE_IRR) == LEVEL_TRIGGERED | REMOTE_IRR
                && entry & VECTOR == u64::from(vector)
            {
                state.redirection[pin] &= !REMOTE_IRR;
                self.service_level(&mut state, pin);
            }
        }
    }

    /// Registers and line levels.
    pub fn save(&self) -> IoApicState {
        self.lock().clone()
    }

    /// Sets registers and line levels, and reports every route. Interrupts that were already sent
    /// are not sent again.
    pub fn restore(&self, saved: &IoApicState) {
        let mut state = self.lock();
        *state = saved.clone();
        for pin in 0..PINS {
            self.report(&state, pin);
        }
    }

    fn lock(&self) -> MutexGuard<'_, IoApicState> {
        lock(&self.state)
    }

    fn send(&self, pin: usize, entry: u64) {
        if let Err(error) = self.msi.send(message(entry)) {
            tracing::warn!(pin, entry, %error, "cannot deliver an interrupt");
        }
    }

    /// Sends a level-triggered interrupt if its line asks for it and none is in service.
    fn service_level(&self, state: &mut IoApicState, pin: usize) {
        let entry = state.redirection[pin];
        let high = state.levels & 1 << pin != 0;
        if high && entry & (LEVEL_TRIGGERED | MASKED | REMOTE_IRR) == LEVEL_TRIGGERED {
            state.redirection[pin] |= REMOTE_IRR;
            self.send(pin, entry);
        }
    }

    fn set_level(&self, pin: u8, high: bool) {
        let pin = usize::from(pin);
        if pin >= PINS {
            return;
        }
        let mut state = self.lock();
        let was_high = state.levels & 1 << pin != 0;
        if high == was_high {
            return;
        }
        state.levels ^= 1 << pin;
        let entry = state.redirection[pin];
        if entry & LEVEL_TRIGGERED != 0 {
            self.service_level(&mut state, pin);
        } else if high && entry & MASKED == 0 {
            self.send(pin, entry);
        }
        // An edge at a masked pin is lost, as the datasheet has it; drivers know.
    }

    fn report(&self, state: &IoApicState, pin: usize) {
        let entry = state.redirection[pin];
        let programmed = entry != MASKED;
        self.routes
            .update(pin as u8, programmed.then(|| message(entry)));
    }

    fn read_register(&self, state: &IoApicState) -> u32 {
        match state.select {
            REG_ID => state.id,
            REG_VERSION => VERSION,
            REG_ARBITRATION => state.id,
            select => match half(select) {
                Some((pin, high)) => (state.redirection[pin] >> if high { 32 } else { 0 }) as u32,
                None => u32::MAX,
            },
        }
    }

    fn write_register(&self, state: &mut IoApicState, value: u32) {
        match state.select {
            REG_ID => state.id = value & ID_MASK,
            select => {
                let Some((pin, high)) = half(select) else {
                    return;
                };
                let shift = if high { 32 } else { 0 };
                let written = 0xFFFF_FFFF << shift & WRITABLE;
                let mut entry = state.redirection[pin];
                entry = entry & !written | u64::from(value) << shift & written;
                if entry & LEVEL_TRIGGERED == 0 {
                    // Kernels switch to edge and back to clear a stuck interrupt.
                    entry &= !REMOTE_IRR;
                }
                if entry != state.redirection[pin] {
                    state.redirection[pin] = entry;
                    self.report(state, pin);
                    self.service_level(state, pin);
                }
            }
        }
    }
}

/// The pin whose redirection entry `select` names, and whether it names the high half.
fn half(select: u8) -> Option<(usize, bool)> {
    let index = select.checked_sub(REG_REDIRECTION)?;
    let pin = usize::from(index / 2);
    (pin < PINS).then_some((pin, index % 2 == 1))
}

impl BusDevice for IoApic {
    fn name(&self) -> &str {
        "ioapic"
    }

    fn read(&self, offset: u64, data: &mut [u8]) {
        let state = self.lock();
        let value = match offset {
            SELECT => u32::from(state.select),
            WINDOW => self.read_register(&state),
            _ => u32::MAX,
        };
        data.fill(0);
        for (to, from) in data.iter_mut().zip(value.to_le_bytes()) {
            *to = from;
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let mut bytes = [0; 4];
        for (to, from) in bytes.iter_mut().zip(data) {
            *to = *from;
        }
        let value = u32::from_le_bytes(bytes);
        let mut state = self.lock();
        match offset {
            SELECT => state.select = value as u8,
            WINDOW => self.write_register(&mut state, value),
            _ => {}
        }
    }
}

struct Pin {
    ioapic: Arc<IoApic>,
    pin: u8,
}

impl IrqLine for Pin {
    fn set_level(&self, high: bool) {
        self.ioapic.set_level(self.pin, high);
    }
}

#[cfg(test)]
#[path = "ioapic_test.rs"]
mod tests;
