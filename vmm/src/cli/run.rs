//! `fleetbox-vmm run`.

use std::error::Error;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use fleetbox_devices::block::{
    Base, Disk, DiskError, Format, LayerOptions, OpenOptions, create_layer, open_disk,
};
use fleetbox_devices::event::Event;
use fleetbox_net::{Member, Network, NetworkConfig};
use fleetbox_vmm::boot;
use fleetbox_vmm::hypervisor::Hypervisor;
use fleetbox_vmm::hypervisor::kvm::KvmHypervisor;
use fleetbox_vmm::machine::{
    BootSource, DiskConfig, Exit, LinkFormat, Machine, MachineConfig, NicConfig,
};
use fleetbox_vmm::output::BoundedWriter;

use super::args::{DiskArgument, NetMode, RunOptions, SerialArgument};
use super::foreground::{self, Keys};
use super::remarks::remarks;
use super::signals::Terminations;
use super::{events, terminal};

/// The guest's hardware address: locally administered, unicast.
const GUEST_MAC: [u8; 6] = [0x02, 0xfb, 0, 0, 0, 1];

/// Runs the guest until it ends. `stderr` writes to standard error.
pub(super) fn run(
    options: Box<RunOptions>,
    start: Instant,
    terminations: &Terminations,
    stderr: &BoundedWriter,
) -> Result<ExitCode, Box<dyn Error>> {
    let hypervisor: Arc<dyn Hypervisor> = Arc::new(KvmHypervisor::open()?);
    let disks = open_disks(&options)?;
    let boot = boot_source(&options, &disks)?;
    let cmdline = match &boot {
        BootSource::Kernel { cmdline, .. } => Some(cmdline.as_str()),
        _ => None,
    };
    for remark in remarks(&options, cmdline) {
        tell(stderr, &format!("fleetbox-vmm: {remark}\n"));
    }
    // Kept until the guest has ended: dropping it takes the network down.
    let network = match options.net {
        NetMode::User => Some(Network::start(NetworkConfig::default())?),
        NetMode::None => None,
    };
    let nics = match &network {
        Some(network) => vec![attach(network)?],
        None => Vec::new(),
    };
    let (sink, terminal) = match &options.serial {
        SerialArgument::Stdio => (stdout()?, true),
        SerialArgument::File(path) => (File::create(path)?, false),
    };
    // Should its reader stop reading, the guest and its end do not wait for it.
    let console = BoundedWriter::start(sink, |lost| {
        format!("\r\n[{lost} bytes of console output lost]\r\n")
    });
    let ended = Event::new()?;
    let end = SignalOnDrop(ended.clone());
    let events_file = match &options.events {
        Some(path) if path != Path::new("-") => Some(events::file(path)?),
        _ => None,
    };
    let writer = options.events.as_ref().map(|_| {
        let out = events_file.as_ref().unwrap_or(stderr);
        events::writer(out.clone(), start)
    });
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
            append: options.append.clone().unwrap_or_default(),
            disks,
            nics,
            serial: Some(Box::new(console.clone())),
            events: Some(Box::new(events)),
        },
    )?;
    let keys = match &raw {
        Some(raw) if raw.active() => Keys::Terminal,
        Some(_) => Keys::Input,
        None => Keys::None,
    };
    let killed = foreground::serve(&machine.handle(), keys, terminations, &ended)?;
    let outcome = machine.wait();
    let unread = console.finish();
    if let Some(events) = events_file {
        events.finish();
    }
    drop(raw);
    drop(network);
    if unread > 0 {
        let note = format!("fleetbox-vmm: {unread} bytes of the console's output were not read\n");
        tell(stderr, &note);
    }
    match outcome? {
        Exit::PowerOff => Ok(ExitCode::SUCCESS),
        Exit::Killed => Ok(ExitCode::from(killed)),
    }
}

fn boot_source(options: &RunOptions, disks: &[DiskConfig]) -> Result<BootSource, Box<dyn Error>> {
    Ok(match (&options.kernel, &options.firmware) {
        (Some(kernel), _) => BootSource::Kernel {
            kernel: kernel.clone(),
            initrd: options.initrd.clone(),
            cmdline: match (&options.cmdline, &options.image, disks.first()) {
                (Some(cmdline), _, _) => cmdline.clone(),
                (None, Some(_), Some(disk)) => cmdline_of(disk)?,
                (None, _, _) => String::new(),
            },
        },
        (_, Some(firmware)) => BootSource::Firmware(firmware.clone()),
        _ => BootSource::Auto,
    })
}

/// The command line in an image's boot loader configuration.
fn cmdline_of(disk: &DiskConfig) -> Result<String, Box<dyn Error>> {
    match boot::discover(disk.disk.clone(), &boot::Limits::default()) {
        Ok(plan) => Ok(plan.cmdline),
        Err(error) => Err(format!(
            "cannot take the kernel's command line from the image: {error}; give one with --cmdline"
        )
        .into()),
    }
}

/// The disks in the order in which the guest sees them.
fn open_disks(options: &RunOptions) -> Result<Vec<DiskConfig>, Box<dyn Error>> {
    let mut disks = Vec::new();
    if let Some(image) = &options.image {
        disks.push(open_image(image, options)?);
    }
    for argument in &options.disks {
        disks.push(open_argument(argument, options.backing_files)?);
    }
    let config = |(i, disk)| DiskConfig {
        disk,
        serial: format!("disk{i}"),
    };
    Ok(disks.into_iter().enumerate().map(config).collect())
}

fn attach(network: &Network) -> Result<NicConfig, Box<dyn Error>> {
    let attachment = network.attach(Member {
        name: "guest".into(),
        mac: GUEST_MAC,
        ip: None,
    })?;
    Ok(NicConfig {
        mac: GUEST_MAC,
        link: attachment.link,
        format: LinkFormat::Packets,
    })
}

/// The boot disk: the image itself, or a layer over it whose file has no name and is removed with
/// this process.
fn open_image(image: &Path, options: &RunOptions) -> Result<Arc<dyn Disk>, Box<dyn Error>> {
    if options.persist {
        return open_detected(image, false, options.backing_files);
    }
    let directory = std::env::temp_dir();
    let path = directory.join(format!("fleetbox-vmm-{}.layer", std::process::id()));
    create_layer(
        &path,
        &LayerOptions {
            base: Some(Base::new(image, None)),
            follow: options.backing_files,
            durable: false,
            ..LayerOptions::default()
        },
    )
    .map_err(with_option)?;
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

fn open_argument(argument: &DiskArgument, follow: bool) -> Result<Arc<dyn Disk>, Box<dyn Error>> {
    open_detected(&argument.path, argument.read_only, follow)
}

/// The format is detected from the content, because this tool is for the user's own files. A disk
/// detected as raw refuses the header of another format from its guest, so it is still raw the next
/// time.
fn open_detected(
    path: &Path,
    read_only: bool,
    follow: bool,
) -> Result<Arc<dyn Disk>, Box<dyn Error>> {
    let options = OpenOptions {
        read_only,
        follow,
        ..OpenOptions::read_only()
    };
    open_disk(path, &options).map_err(with_option)
}

/// Adds the option with which the images that another image names are opened.
fn with_option(error: DiskError) -> Box<dyn Error> {
    match error {
        DiskError::NamesFile { .. } => {
            format!("{error}; or let this image name files: --backing-files").into()
        }
        error => error.into(),
    }
}

/// Signals its event when it is dropped.
struct SignalOnDrop(Event);

impl Drop for SignalOnDrop {
    fn drop(&mut self) {
        self.0.signal();
    }
}

/// Standard output without its line buffer: a prompt has no newline.
fn stdout() -> io::Result<File> {
    Ok(io::stdout().as_fd().try_clone_to_owned()?.into())
}

/// Writes to standard error. If that fails, there is nowhere else to report it.
pub(super) fn tell(mut stderr: &BoundedWriter, text: &str) {
    let _ = stderr.write_all(text.as_bytes());
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::args::{Arguments, Command};

    fn options(args: &[&str]) -> RunOptions {
        let args = ["fleetbox-vmm", "run"].iter().chain(args);
        match Arguments::parse_from(args).command {
            Command::Run(options) => *options,
            Command::Probe => unreachable!("run was asked for"),
        }
    }

    /// A qcow2 image of one sector, all of which is in the raw file `secret`.
    fn image_that_names_a_file() -> Vec<u8> {
        let mut image = vec![0; 3 * 512];
        let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, b"QFI\xfb\0\0\0\x02");
        put(8, &96u64.to_be_bytes());
        put(16, &6u32.to_be_bytes());
        put(20, &9u32.to_be_bytes());
        put(24, &512u64.to_be_bytes());
        put(36, &1u32.to_be_bytes());
        put(40, &512u64.to_be_bytes());
        put(48, &1024u64.to_be_bytes());
        put(56, &1u32.to_be_bytes());
        put(72, b"\xe2\x79\x2a\xca\0\0\0\x03raw");
        put(96, b"secret");
        image
    }

    #[test]
    fn files_that_an_image_names_are_opened_only_on_request() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("secret"), [7; 512]).unwrap();
        let image = dir.path().join("image.qcow2");
        std::fs::write(&image, image_that_names_a_file()).unwrap();
        let image = image.to_str().unwrap();
        let read_only = format!("{image}:ro");
        for args in [&["--image", image][..], &["--disk", &read_only]] {
            let error = open_disks(&options(args)).err().unwrap().to_string();
            assert!(
                error.contains("\"secret\" as its backing file")
                    && error.contains("--backing-files"),
                "{error}"
            );
            let allowed: Vec<_> = args.iter().copied().chain(["--backing-files"]).collect();
            let disks = open_disks(&options(&allowed)).unwrap();
            let mut sector = [0; 512];
            disks[0].disk.read_at(&mut sector, 0).unwrap();
            assert_eq!(sector, [7; 512]);
        }
        for args in [&["--image", image, "--persist"][..], &["--disk", image]] {
            let error = open_disks(&options(args)).err().unwrap().to_string();
            assert!(error.contains("--backing-files"), "{error}");
        }
    }
}
