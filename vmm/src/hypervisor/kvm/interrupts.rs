//! Interrupt routes. The IOAPIC's pins and the devices' MSI vectors share KVM's only route table.
//!
//! The pins' routes tell KVM which vectors are level-triggered, so that it exits at their EOI. The
//! IOAPIC itself sends its messages directly.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use fleetbox_arch::x86_64::layout::IOAPIC_PINS;
use fleetbox_devices::ioapic::IoApicRoutes;
use fleetbox_devices::irq::{MsiController, MsiMessage, MsiVector};
use kvm_bindings::{KVM_IRQ_ROUTING_MSI, KvmIrqRouting, kvm_irq_routing_entry, kvm_msi};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::guest::Guest;
use crate::sync::lock;

/// KVM's own limit on routes (KVM_MAX_IRQ_ROUTES).
const MAX_ROUTES: usize = 4096;

fn os_error(e: kvm_ioctls::Error) -> io::Error {
    io::Error::from_raw_os_error(e.errno())
}

/// The route table of one VM.
pub(super) struct Interrupts {
    guest: Arc<Guest>,
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    routes: BTreeMap<u32, MsiMessage>,
    /// GSIs that are allocated to vectors, with or without a route.
    taken: BTreeSet<u32>,
}

impl Interrupts {
    pub(super) fn new(guest: Arc<Guest>) -> Self {
        Self {
            guest,
            table: Mutex::default(),
        }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        lock(&self.table)
    }

    /// Changes one route. The kernel's table is replaced only if this changes anything, because
    /// that waits for every vCPU.
    fn set_route(&self, gsi: u32, message: Option<MsiMessage>) -> io::Result<()> {
        let mut table = self.table();
        let before = match message {
            Some(message) => table.routes.insert(gsi, message),
            None => table.routes.remove(&gsi),
        };
        if before == message {
            return Ok(());
        }
        let entries: Vec<_> = table
            .routes
            .iter()
            .map(|(gsi, message)| {
                let mut entry = kvm_irq_routing_entry {
                    gsi: *gsi,
                    type_: KVM_IRQ_ROUTING_MSI,
                    ..Default::default()
                };
                entry.u.msi.address_lo = message.address as u32;
                entry.u.msi.address_hi = (message.address >> 32) as u32;
                entry.u.msi.data = message.data;
                entry
            })
            .collect();
        let routing = KvmIrqRouting::from_entries(&entries)
            .map_err(|e| io::Error::other(format!("{} interrupt routes: {e:?}", entries.len())))?;
        self.guest.fd.set_gsi_routing(&routing).map_err(os_error)
    }
}

/// A shared [`Interrupts`], to which the IOAPIC reports its pins' routes.
pub(super) struct PinRoutes(pub(super) Arc<Interrupts>);

impl IoApicRoutes for PinRoutes {
    fn update(&self, pin: u8, message: Option<MsiMessage>) {
        if let Err(error) = self.0.set_route(u32::from(pin), message) {
            tracing::error!(pin, %error, "cannot set the route of an IOAPIC pin");
        }
    }
}

/// A shared [`Interrupts`], from which devices allocate their vectors.
pub(super) struct Controller(pub(super) Arc<Interrupts>);

impl MsiController for Controller {
    fn allocate(&self, count: u16) -> io::Result<Vec<Box<dyn MsiVector>>> {
        (0..count)
            .map(|_| Ok(Box::new(Vector::new(self.0.clone())?) as Box<dyn MsiVector>))
            .collect()
    }

    fn send(&self, message: MsiMessage) -> io::Result<()> {
        let msi = kvm_msi {
            address_lo: message.address as u32,
            address_hi: (message.address >> 32) as u32,
            data: message.data,
            ..Default::default()
        };
        // Zero means that the guest blocked the interrupt, which is the guest's affair.
        self.0.guest.fd.signal_msi(msi).map(drop).map_err(os_error)
    }
}

/// One MSI vector: an irqfd with the route that the guest has programmed last.
struct Vector {
    interrupts: Arc<Interrupts>,
    gsi: u32,
    event: EventFd,
    attached: Mutex<bool>,
    masked: AtomicBool,
}

impl Vector {
    fn new(interrupts: Arc<Interrupts>) -> io::Result<Self> {
        let event = EventFd::new(EFD_NONBLOCK)?;
        let first = u32::from(IOAPIC_PINS);
        let gsi = {
            let mut table = interrupts.table();
            let gsi = (first..MAX_ROUTES as u32)
                .find(|gsi| !table.taken.contains(gsi))
                .ok_or_else(|| io::Error::other("no interrupt route is free"))?;
            table.taken.insert(gsi);
            gsi
        };
        Ok(Self {
            interrupts,
            gsi,
            event,
            attached: Mutex::new(false),
            masked: AtomicBool::new(true),
        })
    }
}

impl MsiVector for Vector {
    fn configure(&self, message: Option<MsiMessage>) -> io::Result<()> {
        // A masked vector keeps its route: guests mask and unmask often, and a change of the table
        // is slow.
        if let Some(message) = message {
            let mut attached = lock(&self.attached);
            self.interrupts.set_route(self.gsi, Some(message))?;
            if !*attached {
                self.interrupts
                    .guest
                    .fd
                    .register_irqfd(&self.event, self.gsi)
                    .map_err(os_error)?;
                *attached = true;
            }
        }
        self.masked.store(message.is_none(), Ordering::Release);
        Ok(())
    }

    fn trigger(&self) -> io::Result<()> {
        if self.masked.load(Ordering::Acquire) {
            return Ok(());
        }
        self.event.write(1)
    }
}

impl Drop for Vector {
    fn drop(&mut self) {
        let attached = *self.attached.get_mut().unwrap_or_else(|e| e.into_inner());
        if attached
            && let Err(error) = self
                .interrupts
                .guest
                .fd
                .unregister_irqfd(&self.event, self.gsi)
        {
            tracing::warn!(gsi = self.gsi, %error, "cannot detach an irqfd");
        }
        let mut table = self.interrupts.table();
        table.routes.remove(&self.gsi);
        table.taken.remove(&self.gsi);
    }
}
