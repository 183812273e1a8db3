//! What a machine is made of.

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

/// Maximum number of vCPUs of one machine; APIC identifiers beyond 254 would need x2APIC interrupt formats.
pub const MAX_CPUS: u8 = 128;

/// A machine's description: nothing is created until [`super::Machine::start`].
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
    /// RAM in bytes, a multiple of 4096. It costs the host nothing until the guest touches it.
    pub memory: u64,
    /// What to run.
    pub boot: BootSource,
    /// Disks, in the order in which the guest sees them.
    pub disks: Vec<DiskConfig>,
    /// Network interfaces, in the order in which the guest sees them.
    pub nics: Vec<NicConfig>,
    /// Where the bytes that the guest writes to its serial port go, besides the tail that errors
    /// carry.
    pub serial: Option<Box<dyn Write + Send>>,
    /// Called for every [`Event`], on the thread where it happens: it must not block.
    pub events: Option<Box<dyn Fn(Event) + Send + Sync>>,
}

impl Default for MachineConfig {
    /// One vCPU, 512 MiB, boots the first disk; no disks and no network yet.
    fn default() -> Self {
        Self {
            cpus: 1,
            memory: 512 << 20,
            boot: BootSource::Auto,
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
            .field("disks", &self.disks)
            .field("nics", &self.nics)
            .finish_non_exhaustive()
    }
}

/// What a machine runs when it starts, and again after every reset.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum BootSource {
    /// What the boot loader configuration on the first disk names, read anew at every boot.
    Auto,
    /// A kernel given from outside.
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
    /// What the guest sees as its serial number (at most 20 bytes).
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
    /// What its packets are.
    pub format: LinkFormat,
}

impl MachineConfig {
    /// Checks what can be checked without touching the host.
    pub(super) fn validate(&self) -> Result<(), Error> {
        let bad = |what: String| Err(Error::Config(what));
        if self.cpus == 0 || self.cpus > MAX_CPUS {
            return bad(format!(
                "{} vCPUs: a machine has 1 to {MAX_CPUS}",
                self.cpus
            ));
        }
        if self.memory < layout::MIN_RAM
            || self.memory > layout::MAX_RAM
            || !self.memory.is_multiple_of(4096)
        {
            return bad(format!(
                "{} bytes of memory: a machine has {} MiB to {} GiB, in whole pages of 4096 bytes",
                self.memory,
                layout::MIN_RAM >> 20,
                layout::MAX_RAM >> 30
            ));
        }
        if matches!(self.boot, BootSource::Auto) && self.disks.is_empty() {
            return bad(
                "booting from a disk's own configuration needs a disk: add one, or name a kernel"
                    .into(),
            );
        }
        // The PCI bus has 31 slots besides the host bridge, and the random number device takes one.
        let slots = self.disks.len() + self.nics.len();
        if slots > 30 {
            return bad(format!(
                "{slots} disks and network interfaces: there is room for 30"
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
