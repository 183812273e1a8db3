//! Generic Event Device (ACPI 6.5, section 5.6.9). It reports events to the guest; the power button is the only one.

use std::sync::{Arc, Mutex, MutexGuard};

use fleetbox_arch::x86_64::layout::GED_POWER_BUTTON;
use serde::{Deserialize, Serialize};

use crate::bus::BusDevice;
use crate::irq::IrqLine;
use crate::sync::lock;

/// The event status register (4 ports), which a read clears, and its interrupt. The interrupt is level-triggered, so an
/// event that comes while the guest boots is still reported once the guest listens.
pub struct Ged {
    /// The interrupt line. It is high while events are pending.
    status: Mutex<u32>,
    irq: Arc<dyn IrqLine>,
}

/// Events that the guest has not read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GedState {
    /// Event status register.
    pub status: u32,
}

impl Ged {
    /// A device without pending events.
    pub fn new(irq: Arc<dyn IrqLine>) -> Self {
        Self {
            status: Mutex::new(0),
            irq,
        }
    }

    fn status(&self) -> MutexGuard<'_, u32> {
        // A number is whole whatever happened to the thread that had it.
        lock(&self.status)
    }

    /// Presses the power button: the guest is asked to shut down.
    pub fn power_button(&self) {
        let mut status = self.status();
        *status |= GED_POWER_BUTTON;
        self.irq.set_level(true);
    }

    /// Events that the guest has not read.
    pub fn save(&self) -> GedState {
        GedState {
            status: *self.status(),
        }
    }

    /// Sets the pending events and the line.
    pub fn restore(&self, state: &GedState) {
        let mut status = self.status();
        *status = state.status;
        self.irq.set_level(state.status != 0);
    }
}

impl BusDevice for Ged {
    fn name(&self) -> &str {
        "acpi-ged"
    }

    fn read(&self, offset: u64, data: &mut [u8]) {
        match <&mut [u8; 4]>::try_from(&mut *data) {
            Ok(data) if offset == 0 => {
                let mut status = self.status();
                *data = std::mem::take(&mut *status).to_le_bytes();
                self.irq.set_level(false);
            }
            _ => data.fill(0xFF),
        }
    }

    fn write(&self, _offset: u64, _data: &[u8]) {}
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    #[derive(Default)]
    struct Line(AtomicBool);

    impl Line {
        fn is_high(&self) -> bool {
            self.0.load(Ordering::SeqCst)
        }
    }

    impl IrqLine for Line {
        fn set_level(&self, high: bool) {
            self.0.store(high, Ordering::SeqCst);
        }
    }

    fn read(ged: &Ged) -> u32 {
        let mut data = [0; 4];
        ged.read(0, &mut data);
        u32::from_le_bytes(data)
    }

    #[test]
    fn the_power_button_is_seen_once_a_press() {
        let line = Arc::new(Line::default());
        let ged = Ged::new(line.clone());
        assert_eq!(read(&ged), 0);
        for _ in 1..3 {
            ged.power_button();
            assert!(line.is_high());
            assert_eq!(read(&ged), GED_POWER_BUTTON);
            assert!(!line.is_high());
            assert_eq!(read(&ged), 0);
        }
    }

    #[test]
    fn an_access_of_another_width_does_not_eat_the_event() {
        let ged = Ged::new(Arc::new(Line::default()));
        ged.power_button();
        let mut data = [0; 1];
        ged.read(0, &mut data);
        assert_eq!(data, [0xFF]);
        assert_eq!(read(&ged), GED_POWER_BUTTON);
    }

    #[test]
    fn a_saved_event_is_still_there() {
        let ged = Ged::new(Arc::new(Line::default()));
        ged.power_button();
        let json = serde_json::to_string(&ged.save()).unwrap();
        let line = Arc::new(Line::default());
        let other = Ged::new(line.clone());
        other.restore(&serde_json::from_str(&json).unwrap());
        assert!(line.is_high());
        assert_eq!(read(&other), GED_POWER_BUTTON);
    }
}
