//! The configuration of a machine.

use std::fmt;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

use fleetbox_arch::x86_64::layout;
use fleetbox_devices::block::Disk;
pub use fleetbox_devices::virtio::LinkFormat;
use serde::{Deserialize, Serialize};

use super::error::Error;
use super::event::Event;

/// Maximum number of vCPUs of one machine. APIC identifiers above 254 would need x2APIC interrupt formats.
pub const MAX_CPUS: u8 = 128;

/// The description of a machine. Nothing is created until [`super::Machine::start`].
///
/// ```
/// use fleetbox_vmm::machine::{BootSource, MachineConfig};
///
/// let config = MachineConfig {
///     cpus: 2,
///     memory: 1 << 30,
///     boot: BootSource::Firmware("firmware.elf".into()),
///     events: Some(Box::new(|event| eprintln!("{event:?}"))),
///     ..MachineConfig::default()
/// };
/// assert!(config.disks.is_empty());
/// ```
pub struct MachineConfig {
    /// Number of vCPUs, 1 to [`MAX_CPUS`].
    pub cpus: u8,
    /// RAM in bytes, a multiple of 4096. The host provides it only when the guest touches it.
    pub memory: u64,
    /// What to run.
    pub boot: BootSource,
    /// Added to the kernel's command line after a space, whichever source it has. Words for the kernel go before a word
    /// `--` of that, behind which are the init program's. Unused for firmware.
    pub append: String,
    /// Disks, in the order in which the guest sees them.
    pub disks: Vec<DiskConfig>,
    /// Network interfaces, in the order in which the guest sees them.
    pub nics: Vec<NicConfig>,
    /// The sink for the guest's serial output. Errors also include the end of the output.
    pub serial: Option<Box<dyn Write + Send>>,
    /// Called for every [`Event`], on the thread where it happens. It must not block.
    pub events: Option<Box<dyn Fn(Event) + Send + Sync>>,
}

impl Default for MachineConfig {
    /// One vCPU and 512 MiB, booting from the first disk, still without disks and network.
    fn default() -> Self {
        Self {
            cpus: 1,
            memory: 512 << 20,
            boot: BootSource::Auto,
            append: String::new(),
            disks: Vec::new(),
            nics: Vec::new(),
            serial: None,
            events: None,
        }
    }
}

impl fmt::Debug for MachineConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MachineConfig")
            .field("cpus", &self.cpus)
            .field("memory", &self.memory)
            .field("boot", &self.boot)
            .field("append", &self.append)
            .field("disks", &self.disks)
            .field("nics", &self.nics)
            .finish_non_exhaustive()
    }
}

/// What a machine runs when it starts, and again after every reset.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum BootSource {
    /// The kernel in the boot loader configuration on the first disk, which is read again at every boot.
    Auto,
    /// A kernel from the host.
    Kernel {
        /// A bzImage, or an uncompressed ELF image with a PVH note or a 64-bit entry point.
        kernel: PathBuf,
        /// An initial RAM disk.
        initrd: Option<PathBuf>,
        /// The kernel command line.
        cmdline: String,
    },
    /// A firmware: an ELF image with a PVH note.
    Firmware(PathBuf),
}

/// A disk of a machine.
#[derive(Clone)]
pub struct DiskConfig {
    /// Its contents.
    pub disk: Arc<dyn Disk>,
    /// Its serial number for the guest (at most 20 bytes).
    pub serial: String,
}

impl fmt::Debug for DiskConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DiskConfig")
            .field("serial", &self.serial)
            .field("len", &self.disk.len())
            .field("read_only", &self.disk.read_only())
            .finish()
    }
}

/// A network interface of a machine.
#[derive(Debug)]
pub struct NicConfig {
    /// Its hardware address.
    pub mac: [u8; 6],
    /// One end of a SOCK_SEQPACKET pair.
    pub link: OwnedFd,
    /// The format of its packets.
    pub format: LinkFormat,
}

impl MachineConfig {
    /// Checks everything that can be checked without using the host.
    pub(super) fn validate(&self) -> Result<(), Error> {
        let bad = |what: String| Err(Error::Config(what));
        if self.cpus == 0 || self.cpus > MAX_CPUS {
            return bad(format!(
                "{} vCPUs are not possible: a machine has 1 to {MAX_CPUS}",
                self.cpus
            ));
        }
        if self.memory < layout::MIN_RAM
            || self.memory > layout::MAX_RAM
            || !self.memory.is_multiple_of(4096)
        {
            return bad(format!(
                "{} bytes of memory are not possible: a machine has {} MiB to {} GiB, in whole pages of 4096 bytes",
                self.memory,
                layout::MIN_RAM >> 20,
                layout::MAX_RAM >> 30
            ));
        }
        if matches!(self.boot, BootSource::Auto) && self.disks.is_empty() {
            return bad("booting from a disk needs a disk: add one, or give a kernel".into());
        }
        // The PCI bus has 31 slots besides the host bridge, and the random number device takes one.
        let slots = self.disks.len() + self.nics.len();
        if slots > 30 {
            return bad(format!(
                "{slots} disks and network interfaces are too many: there is room for 30"
            ));
        }
        if let Some(disk) = self.disks.iter().find(|d| d.serial.len() > 20) {
            return bad(format!(
                "disk serial number {:?} is longer than 20 bytes",
                disk.serial
            ));
        }
        Ok(())
    }
}
