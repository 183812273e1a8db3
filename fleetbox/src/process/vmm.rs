//! The real machine: the VMM, on this host's KVM.

use std::io::Write;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use fleetbox_devices::block::{Format, OpenOptions, open_disk};
use fleetbox_vmm::hypervisor::Hypervisor;
use fleetbox_vmm::hypervisor::kvm::KvmHypervisor;
use fleetbox_vmm::machine::{DiskConfig, Error, LinkFormat, Machine, MachineConfig, NicConfig};

use super::machine::{Controls, OnEvent, Running};
use super::protocol::{DiskFormat, DiskSpec, MachineSpec};
use super::watched::Watched;

/// A machine's hypervisor and disks, opened.
pub(super) struct Prepared {
    hypervisor: Arc<dyn Hypervisor>,
    disks: Vec<DiskConfig>,
    spec: MachineSpec,
}

/// Opens the hypervisor and the disks, which locks them.
pub(super) fn prepare(mut spec: MachineSpec) -> Result<Prepared, String> {
    let hypervisor = KvmHypervisor::open().map_err(|error| error.to_string())?;
    let disks = std::mem::take(&mut spec.disks);
    Ok(Prepared {
        hypervisor: Arc::new(hypervisor),
        disks: disks.into_iter().map(open).collect::<Result<_, _>>()?,
        spec,
    })
}

/// Starts the machine.
pub(super) fn start(
    prepared: Prepared,
    nic: OwnedFd,
    console: Box<dyn Write + Send>,
    on_event: OnEvent,
) -> Result<Running, String> {
    let Prepared {
        hypervisor,
        disks,
        spec,
    } = prepared;
    let on_event = Arc::new(on_event);
    let watch = |config: DiskConfig| DiskConfig {
        disk: Watched::around(config.disk, &config.serial, &on_event),
        serial: config.serial,
    };
    let disks = disks.into_iter().map(watch).collect();
    let config = MachineConfig {
        cpus: spec.cpus,
        memory: spec.memory,
        boot: spec.boot,
        append: String::new(),
        disks,
        nics: vec![NicConfig {
            mac: spec.mac,
            link: nic,
            format: LinkFormat::Packets,
        }],
        serial: Some(console),
        events: Some(Box::new(move |event| on_event(event))),
    };
    let machine = Machine::start(&hypervisor, config).map_err(|error| describe(&error))?;
    let handle = machine.handle();
    let typing = handle.clone();
    Ok(Running {
        controls: Controls {
            power_button: Box::new(move || handle.power_button()),
            type_in: Box::new(move |bytes| typing.serial_input(bytes)),
        },
        wait: Box::new(move || match machine.wait() {
            Ok(_) => Ok(()),
            Err(error) => Err(describe(&error)),
        }),
    })
}

fn open(disk: DiskSpec) -> Result<DiskConfig, String> {
    let format = match disk.format {
        DiskFormat::Layer => Format::Layer,
        DiskFormat::Raw => Format::Raw,
    };
    let options = OpenOptions {
        read_only: disk.read_only,
        durable: disk.durable,
        ..OpenOptions::writable(format)
    };
    let opened = open_disk(&disk.path, &options).map_err(|error| error.to_string())?;
    Ok(DiskConfig {
        disk: opened,
        serial: disk.serial,
    })
}

/// The error without the console's lines, which the worker adds.
fn describe(error: &Error) -> String {
    match error {
        Error::Guest(failure) => {
            let vcpu = failure
                .vcpu
                .map_or_else(String::new, |vcpu| format!(" (vCPU {vcpu})"));
            let registers = failure.registers.as_deref().unwrap_or_default();
            format!("{}{vcpu}\n{registers}", failure.what)
                .trim_end()
                .to_owned()
        }
        error => error.to_string(),
    }
}
