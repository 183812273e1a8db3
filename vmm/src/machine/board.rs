//! One boot of a machine: memory, VM, buses and devices, wired up.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::mpsc::Sender;

use fleetbox_arch::x86_64::{acpi, entry, layout, reset_vector};
use fleetbox_devices::GuestMemory;
use fleetbox_devices::acpi::ged::Ged;
use fleetbox_devices::acpi::pm_timer::PmTimer;
use fleetbox_devices::acpi::power::{PowerControl, PowerRequest};
use fleetbox_devices::acpi::pvpanic::{PanicEvent, PvPanic};
use fleetbox_devices::bus::{Bus, BusDevice};
use fleetbox_devices::ioapic::IoApic;
use fleetbox_devices::legacy::rtc::Rtc;
use fleetbox_devices::legacy::serial::Serial;
use fleetbox_devices::pci::PciBus;
use fleetbox_devices::virtio::{Blk, Net, Rng, VirtioDevice, VirtioEnv, VirtioPci};

use super::config::MachineConfig;
use super::console::Console;
use super::error::Error;
use super::panic::Look;
use super::pause::Beats;
use super::payload::Payload;
use super::signal::Signal;
use super::vcpu::{Buses, Vcpus};
use crate::hypervisor::{Hypervisor, Vm, VmSpec};

/// Maximum bytes of console input kept for a guest that does not read it.
const MAX_INPUT: usize = 64 << 10;

/// A machine between power-on and power-off or reset. Dropping it stops everything.
pub(super) struct Board {
    /// `None` only while the board is dropped.
    vcpus: Option<Vcpus>,
    serial: Arc<Serial>,
    ged: Arc<Ged>,
    input: VecDeque<u8>,
    pci: PciBus,
    buses: Arc<Buses>,
    /// The accesses to devices at the last look.
    accesses: u64,
    _vm: Arc<dyn Vm>,
}

impl Drop for Board {
    fn drop(&mut self) {
        // The vCPUs first, which could start a device again. The devices' threads use guest memory,
        // disks and links, which the next board must find unused.
        self.vcpus = None;
        self.pci.reset();
    }
}

impl Board {
    /// Builds everything, loads `payload` and starts the vCPUs.
    pub(super) fn start(
        hypervisor: &dyn Hypervisor,
        config: &MachineConfig,
        payload: Payload,
        console: &Console,
        signals: &Sender<Signal>,
        beats: &Arc<Beats>,
    ) -> Result<Self, Error> {
        let memory = allocate_memory(config.memory)?;
        let vm = hypervisor.create_vm(VmSpec {
            memory: memory.clone(),
            vcpus: config.cpus,
        })?;
        let mut vcpus = Vcpus::create(&vm, config.cpus, signals, beats)?;
        // Before the payload, which may be firmware that has its own.
        reset_vector::write(&memory).map_err(|e| Error::Load {
            what: "the reset vector".into(),
            reason: e.to_string(),
        })?;
        let kernel = payload.load(&memory, vm.as_ref())?;
        acpi::write_tables(&memory, config.cpus).map_err(|e| Error::Load {
            what: "the ACPI tables".into(),
            reason: e.to_string(),
        })?;

        let ioapic = IoApic::new(vm.msi(), vm.ioapic_routes());
        let serial = {
            let signals = signals.clone();
            Arc::new(Serial::new(
                ioapic.line(layout::COM1_GSI as u8),
                Box::new(console.clone()),
                move || drop(signals.send(Signal::InputDrained)),
            ))
        };
        let ged = Arc::new(Ged::new(ioapic.line(layout::GED_GSI as u8)));
        let over = Arc::new(AtomicBool::new(false));
        let power = build_power(signals, &over);
        let pci = build_pci(config, &memory, vm.as_ref())?;

        let ports: [(u16, u16, Arc<dyn BusDevice>); 7] = [
            (layout::COM1_PORT, layout::COM1_PORTS, serial.clone()),
            (
                layout::RTC_PORT,
                layout::RTC_PORTS,
                Arc::new(Rtc::new(ioapic.line(layout::RTC_GSI as u8))),
            ),
            (
                layout::PCI_CONFIG_PORT,
                layout::PCI_CONFIG_PORTS,
                pci.ports(),
            ),
            (layout::SLEEP_CONTROL_PORT, 3, power),
            (layout::GED_STATUS_PORT, 4, ged.clone()),
            (layout::PM_TIMER_PORT, 4, Arc::new(PmTimer::new())),
            (layout::PVPANIC_PORT, 1, build_pvpanic(signals, &over)),
        ];
        let mmio: [(u64, u64, Arc<dyn BusDevice>); 3] = [
            (layout::PCI_MMIO_START, layout::PCI_MMIO_SIZE, pci.mmio()),
            (layout::ECAM_START, layout::ECAM_SIZE, pci.ecam()),
            (layout::IOAPIC_START, layout::IOAPIC_SIZE, ioapic.clone()),
        ];
        let ports = ports.map(|(base, len, device)| (base.into(), len.into(), device));
        let buses = Arc::new(Buses {
            ports: build_bus("port", ports)?,
            mmio: build_bus("mmio", mmio)?,
            ioapic,
            over,
            accesses: AtomicU64::new(0),
        });
        vcpus.run(entry::boot_regs(&kernel.entry), buses.clone())?;
        Ok(Self {
            vcpus: Some(vcpus),
            serial,
            ged,
            input: VecDeque::new(),
            pci,
            buses,
            accesses: 0,
            _vm: vm,
        })
    }

    /// Looks whether the guest goes on: what its vCPUs have done since the last look, and whether it has used a device
    /// since then.
    pub(super) fn look(&mut self) -> Look {
        let accesses = self.buses.accesses.load(Ordering::Relaxed);
        let used = std::mem::replace(&mut self.accesses, accesses) != accesses;
        let mut look = match &self.vcpus {
            Some(vcpus) => vcpus.look(),
            // Only while the board is dropped.
            None => Look {
                complete: false,
                runs: false,
            },
        };
        look.runs |= used;
        look
    }

    /// Makes each vCPU pass by its thread's loop.
    pub(super) fn kick(&self) {
        if let Some(vcpus) = &self.vcpus {
            vcpus.kick();
        }
    }

    pub(super) fn power_button(&self) {
        self.ged.power_button();
    }

    /// Types at the console. Input that does not fit into the UART waits for [`Board::feed`].
    pub(super) fn serial_input(&mut self, bytes: &[u8]) {
        let room = MAX_INPUT.saturating_sub(self.input.len());
        if bytes.len() > room {
            tracing::warn!(
                lost = bytes.len() - room,
                "lost console input, because the guest does not read it"
            );
        }
        self.input.extend(&bytes[..bytes.len().min(room)]);
        self.feed();
    }

    /// Passes waiting input to the UART.
    pub(super) fn feed(&mut self) {
        while !self.input.is_empty() {
            let taken = self.serial.enqueue(self.input.as_slices().0);
            if taken == 0 {
                break;
            }
            self.input.drain(..taken);
        }
    }
}

/// Creates a bus with devices, given the first address of each and its number of addresses.
fn build_bus<const N: usize>(
    name: &'static str,
    devices: [(u64, u64, Arc<dyn BusDevice>); N],
) -> Result<Bus, Error> {
    let bus = Bus::new(name);
    for (base, len, device) in devices {
        let name = device.name().to_owned();
        bus.insert(base, len, device).map_err(|e| Error::Device {
            device: name,
            reason: e.to_string(),
        })?;
    }
    Ok(bus)
}

/// The registers with which the guest ends the board. `over` then stops the vCPUs.
fn build_power(signals: &Sender<Signal>, over: &Arc<AtomicBool>) -> Arc<PowerControl> {
    let (signals, over) = (signals.clone(), over.clone());
    Arc::new(PowerControl::new(move |request| {
        over.store(true, Ordering::Release);
        let signal = match request {
            PowerRequest::PowerOff => Signal::PowerOff,
            PowerRequest::Reset => Signal::Reset,
        };
        let _ = signals.send(signal);
    }))
}

/// The device by which the guest's kernel reports its panic.
fn build_pvpanic(signals: &Sender<Signal>, over: &Arc<AtomicBool>) -> Arc<PvPanic> {
    let (signals, over) = (signals.clone(), over.clone());
    // A guest may write without end, and each event is told once.
    let told = AtomicU8::new(0);
    Arc::new(PvPanic::new(move |event| {
        let (bit, signal) = match event {
            PanicEvent::Panicked | PanicEvent::CrashLoaded => {
                (1 << event as u8, Signal::Panic(event))
            }
            PanicEvent::Shutdown => {
                over.store(true, Ordering::Release);
                (1 << event as u8, Signal::PowerOff)
            }
        };
        if told.fetch_or(bit, Ordering::Relaxed) & bit == 0 {
            let _ = signals.send(signal);
        }
    }))
}

/// Anonymous memory without a reservation. The host provides a page when the guest first touches
/// it.
fn allocate_memory(size: u64) -> Result<GuestMemory, Error> {
    fleetbox_arch::allocate(&layout::memory_regions(size)).map_err(|e| Error::Resource {
        what: format!("{} MiB of guest memory", size >> 20),
        source: std::io::Error::other(e.to_string()),
    })
}

/// Maximum number of queues of a disk, and of pairs of queues of a network interface.
const MAX_QUEUES: u16 = 4;

/// Adds the virtio devices to the bus: disks from slot 1 on, then network interfaces, and last the
/// source of random numbers. A guest names its disks in that order.
fn build_pci(config: &MachineConfig, memory: &GuestMemory, vm: &dyn Vm) -> Result<PciBus, Error> {
    let pci = PciBus::new(layout::PCI_MMIO_START..layout::PCI_MMIO_START + layout::PCI_MMIO_SIZE);
    let env = VirtioEnv {
        memory: memory.clone(),
        io_events: vm.io_events(),
        msi: vm.msi(),
    };
    // One for each vCPU, and no more of them than keep a host's file or link busy.
    let queues = u16::from(config.cpus).min(MAX_QUEUES);
    let mut devices: Vec<Box<dyn VirtioDevice>> = Vec::new();
    for (i, disk) in config.disks.iter().enumerate() {
        devices.push(Box::new(Blk::new(
            &format!("disk{i}"),
            disk.disk.clone(),
            &disk.serial,
            queues,
        )));
    }
    for (i, nic) in config.nics.iter().enumerate() {
        // Every boot has its own descriptor of the one link, so that it can close it.
        let link = nic.link.try_clone().map_err(|source| Error::Resource {
            what: format!("the link of network interface {i}"),
            source,
        })?;
        devices.push(Box::new(Net::new(
            &format!("net{i}"),
            nic.mac,
            link,
            nic.format,
            queues,
        )));
    }
    devices.push(Box::new(Rng::new()));
    for (slot, device) in (1u8..).zip(devices) {
        let name = device.name().to_owned();
        let failed = |reason: String| Error::Device {
            device: name.clone(),
            reason,
        };
        let function = VirtioPci::new(device, &env).map_err(|e| failed(e.to_string()))?;
        pci.add(slot, function).map_err(|e| failed(e.to_string()))?;
    }
    Ok(pci)
}
