//! Generic Event Device (ACPI 6.5, section 5.6.9): tells the guest of events, of which the power
//! button is the only one.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use fleetbox_arch::x86_64::layout::GED_POWER_BUTTON;
use serde::{Deserialize, Serialize};

use crate::bus::BusDevice;
use crate::irq::IrqLine;

/// The event status register (4 ports), whose read clears it, and its interrupt.
pub struct Ged {
    status: AtomicU32,
    irq: Arc<dyn IrqLine>,
}

/// Events that the guest has not read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GedState {
    /// Event status register.
    pub status: u32,
}

impl Ged {
    /// A device without events.
    pub fn new(irq: Arc<dyn IrqLine>) -> Self {
        Self {
            status: AtomicU32::new(0),
            irq,
        }
    }

    /// Presses the power button: the guest is asked to shut down.
    pub fn power_button(&self) {
        self.status.fetch_or(GED_POWER_BUTTON, Ordering::SeqCst);
        self.irq.pulse();
    }

    /// Events that the guest has not read.
    pub fn save(&self) -> GedState {
        GedState {
            status: self.status.load(Ordering::SeqCst),
        }
    }

    /// Sets the pending events. Their interrupt has been sent and is part of other devices' state.
    pub fn restore(&self, state: &GedState) {
        self.status.store(state.status, Ordering::SeqCst);
    }
}

impl BusDevice for Ged {
    fn name(&self) -> &str {
        "acpi-ged"
    }

    fn read(&self, offset: u64, data: &mut [u8]) {
        match <&mut [u8; 4]>::try_from(&mut *data) {
            Ok(data) if offset == 0 => {
                *data = self.status.swap(0, Ordering::SeqCst).to_le_bytes();
            }
            _ => data.fill(0xFF),
        }
    }

    fn write(&self, _offset: u64, _data: &[u8]) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Counter(AtomicU32);

    impl IrqLine for Counter {
        fn set_level(&self, high: bool) {
            self.0.fetch_add(u32::from(high), Ordering::SeqCst);
        }
    }

    fn read(ged: &Ged) -> u32 {
        let mut data = [0; 4];
        ged.read(0, &mut data);
        u32::from_le_bytes(data)
    }

    #[test]
    fn the_power_button_is_seen_once_a_press() {
        let irq = Arc::new(Counter::default());
        let ged = Ged::new(irq.clone());
        assert_eq!(read(&ged), 0);
        for presses in 1..3 {
            ged.power_button();
            assert_eq!(irq.0.load(Ordering::SeqCst), presses);
            assert_eq!(read(&ged), GED_POWER_BUTTON);
            assert_eq!(read(&ged), 0);
        }
    }

    #[test]
    fn an_access_of_another_width_does_not_eat_the_event() {
        let ged = Ged::new(Arc::new(Counter::default()));
        ged.power_button();
        let mut data = [0; 1];
        ged.read(0, &mut data);
        assert_eq!(data, [0xFF]);
        assert_eq!(read(&ged), GED_POWER_BUTTON);
    }

    #[test]
    fn a_saved_event_is_still_there() {
        let ged = Ged::new(Arc::new(Counter::default()));
        ged.power_button();
        let json = serde_json::to_string(&ged.save()).unwrap();
        let other = Ged::new(Arc::new(Counter::default()));
        other.restore(&serde_json::from_str(&json).unwrap());
        assert_eq!(read(&other), GED_POWER_BUTTON);
    }
}
