//! `fleetbox-vmm run`.

use std::error::Error;
use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use fleetbox_devices::block::{
    Base, Disk, Format, LayerOptions, OpenOptions, create_layer, open_disk,
};
use fleetbox_devices::event::Event;
use fleetbox_vmm::hypervisor::Hypervisor;
use fleetbox_vmm::hypervisor::kvm::KvmHypervisor;
use fleetbox_vmm::machine::{
    BootSource, DiskConfig, Exit, LinkFormat, Machine, MachineConfig, NicConfig,
};
use fleetbox_vmm::net::{Network, NetworkConfig, Port};

use super::args::{DiskArgument, NetMode, RunOptions, SerialArgument};
use super::attend::{Keys, attend};
use super::{events, signals, terminal};

/// The guest's hardware address: locally administered, unicast.
const GUEST_MAC: [u8; 6] = [0x02, 0xfb, 0, 0, 0, 1];

/// Runs the guest until it ends.
pub(super) fn run(options: Box<RunOptions>, start: Instant) -> Result<ExitCode, Box<dyn Error>> {
    let terminations = signals::Terminations::hold()?;
    let hypervisor: Arc<dyn Hypervisor> = Arc::new(KvmHypervisor::open()?);
    let boot = match (&options.kernel, &options.firmware, &options.image) {
        (Some(kernel), _, _) => BootSource::Kernel {
            kernel: kernel.clone(),
            initrd: options.initrd.clone(),
            cmdline: options.cmdline.clone(),
        },
        (_, Some(firmware), _) => BootSource::Firmware(firmware.clone()),
        _ => BootSource::Auto,
    };
    let mut disks = Vec::new();
    if let Some(image) = &options.image {
        disks.push(open_image(image, options.persist)?);
    }
    for argument in &options.disks {
        disks.push(open_argument(argument)?);
    }
    // Kept until the guest has ended: dropping it takes the network down.
    let network = match options.net {
        NetMode::User => Some(Network::start(NetworkConfig::default())?),
        NetMode::None => None,
    };
    let mut nics = Vec::new();
    if let Some(network) = &network {
        let attachment = network.attach(Port {
            name: "guest".into(),
            mac: GUEST_MAC,
            ip: None,
        })?;
        nics.push(NicConfig {
            mac: GUEST_MAC,
            link: attachment.link,
            format: LinkFormat::Packets,
        });
    }
    let (serial, terminal): (Box<dyn Write + Send>, bool) = match &options.serial {
        SerialArgument::Stdio => (Box::new(FlushingStdout), true),
        SerialArgument::File(path) => (Box::new(File::create(path)?), false),
    };
    let ended = Event::new()?;
    let end = SignalOnDrop(ended.clone());
    let writer = match &options.events {
        Some(path) => Some(events::writer(path, start)?),
        None => None,
    };
    let events = move |event| {
        // The machine drops this function when it has ended, in whatever way.
        let _ = &end;
        if let Some(write) = &writer {
            write(event);
        }
    };
    let raw = if terminal {
        Some(terminal::RawMode::enter()?)
    } else {
        None
    };
    let machine = Machine::start(
        &hypervisor,
        MachineConfig {
            cpus: options.cpus,
            memory: options.memory.0,
            boot,
            disks: disks
                .into_iter()
                .enumerate()
                .map(|(i, disk)| DiskConfig {
                    disk,
                    serial: format!("disk{i}"),
                })
                .collect(),
            nics,
            serial: Some(serial),
            events: Some(Box::new(events)),
        },
    )?;
    let keys = match &raw {
        Some(raw) if raw.active() => Keys::Terminal,
        Some(_) => Keys::Input,
        None => Keys::None,
    };
    let killed = attend(&machine.handle(), keys, &terminations, &ended)?;
    let outcome = machine.wait();
    drop(raw);
    drop(network);
    match outcome? {
        Exit::PowerOff => Ok(ExitCode::SUCCESS),
        Exit::Killed => Ok(ExitCode::from(killed)),
    }
}

/// The boot disk: itself, or a layer on it whose file has no name and ends with this process.
fn open_image(image: &Path, persist: bool) -> Result<Arc<dyn Disk>, Box<dyn Error>> {
    if persist {
        return open_writable(image);
    }
    let directory = std::env::temp_dir();
    let path = directory.join(format!("fleetbox-vmm-{}.layer", std::process::id()));
    create_layer(
        &path,
        &LayerOptions {
            base: Some(Base::new(image, None)),
            durable: false,
            ..LayerOptions::default()
        },
    )?;
    let disk = open_disk(
        &path,
        &OpenOptions {
            durable: false,
            ..OpenOptions::writable(Format::Layer)
        },
    );
    std::fs::remove_file(&path)?;
    Ok(disk?)
}

fn open_argument(argument: &DiskArgument) -> Result<Arc<dyn Disk>, Box<dyn Error>> {
    if argument.read_only {
        Ok(open_disk(&argument.path, &OpenOptions::read_only())?)
    } else {
        open_writable(&argument.path)
    }
}

/// The format is looked for in the content: this is a tool for its user's own files. A disk found
/// to be raw refuses another format's header from its guest, so that it is still raw next time.
fn open_writable(path: &Path) -> Result<Arc<dyn Disk>, Box<dyn Error>> {
    Ok(open_disk(
        path,
        &OpenOptions {
            read_only: false,
            ..OpenOptions::read_only()
        },
    )?)
}

/// Signals its event when it is dropped.
struct SignalOnDrop(Event);

impl Drop for SignalOnDrop {
    fn drop(&mut self) {
        self.0.signal();
    }
}

/// Standard output without its line buffer: a prompt has no newline.
struct FlushingStdout;

impl Write for FlushingStdout {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut out = io::stdout().lock();
        out.write_all(bytes)?;
        out.flush()?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stdout().flush()
    }
}
