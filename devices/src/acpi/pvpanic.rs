//! The pvpanic device, by which a guest's kernel tells that it has panicked.
//!
//! It is one port, described in QEMU's docs/specs/pvpanic.rst: a read gives the events that the device knows, a write
//! reports some of them. It has no state.

use crate::bus::BusDevice;

/// The kernel has panicked, and the machine is to handle that.
const PANICKED: u8 = 1;
/// The kernel has panicked, and its crash kernel is about to run.
const CRASH_LOADED: u8 = 1 << 1;
/// The guest has shut down.
const SHUTDOWN: u8 = 1 << 2;

/// An event that a guest's kernel reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PanicEvent {
    /// It has panicked, and will do no more than its command line tells it: hang, or reset the machine.
    Panicked,
    /// It has panicked, and boots a crash kernel, which saves a dump.
    CrashLoaded,
    /// It has shut down, and the machine may be switched off.
    Shutdown,
}

/// The register (1 port).
///
/// ```
/// use std::sync::mpsc::channel;
///
/// use fleetbox_devices::acpi::pvpanic::{PanicEvent, PvPanic};
/// use fleetbox_devices::bus::BusDevice;
///
/// let (events, seen) = channel();
/// let device = PvPanic::new(move |event| drop(events.send(event)));
/// device.write(0, &[1]);
/// assert_eq!(seen.recv(), Ok(PanicEvent::Panicked));
/// ```
pub struct PvPanic {
    report: Box<dyn Fn(PanicEvent) + Send + Sync>,
}

impl PvPanic {
    /// A device that calls `report` on the vCPU's thread, as often as the guest writes.
    pub fn new(report: impl Fn(PanicEvent) + Send + Sync + 'static) -> Self {
        Self {
            report: Box::new(report),
        }
    }
}

impl BusDevice for PvPanic {
    fn name(&self) -> &str {
        "pvpanic"
    }

    fn read(&self, offset: u64, data: &mut [u8]) {
        match data {
            [events] if offset == 0 => *events = PANICKED | CRASH_LOADED | SHUTDOWN,
            _ => data.fill(0xFF),
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let [events] = data else { return };
        if offset != 0 {
            return;
        }
        // One event for each write, and the gravest, as on other virtual machines.
        if events & PANICKED != 0 {
            (self.report)(PanicEvent::Panicked);
        } else if events & CRASH_LOADED != 0 {
            (self.report)(PanicEvent::CrashLoaded);
        } else if events & SHUTDOWN != 0 {
            (self.report)(PanicEvent::Shutdown);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[test]
    fn only_the_documented_writes_are_events() {
        for (offset, data, want) in [
            (0, &[1][..], vec![PanicEvent::Panicked]),
            (0, &[2], vec![PanicEvent::CrashLoaded]),
            (0, &[4], vec![PanicEvent::Shutdown]),
            (0, &[0xFF], vec![PanicEvent::Panicked]),
            (0, &[0xF8], vec![]), // events that the device does not know
            (0, &[0], vec![]),
            (0, &[1, 0], vec![]), // too wide
            (1, &[1], vec![]),
            (u64::MAX, &[1], vec![]),
        ] {
            let seen = Arc::new(Mutex::new(Vec::new()));
            let device = PvPanic::new({
                let seen = seen.clone();
                move |event| seen.lock().unwrap().push(event)
            });
            device.write(offset, data);
            assert_eq!(*seen.lock().unwrap(), want, "{offset:#x} {data:x?}");
        }
    }

    #[test]
    fn a_read_tells_which_events_there_are() {
        let device = PvPanic::new(|_| {});
        let mut data = [0];
        device.read(0, &mut data);
        assert_eq!(data, [7]);
        let mut wide = [0; 4];
        device.read(0, &mut wide);
        assert_eq!(wide, [0xFF; 4]);
    }
}
