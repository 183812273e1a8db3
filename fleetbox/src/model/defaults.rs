//! The default values of a VM.

use std::time::Duration;

use crate::model::size::Size;

/// Default number of vCPUs of a VM.
///
/// ```
/// use fleetbox::{DEFAULT_BOOT_TIMEOUT, DEFAULT_CPUS, DEFAULT_DISK, DEFAULT_MEMORY, Size};
///
/// assert_eq!((DEFAULT_CPUS, DEFAULT_MEMORY, DEFAULT_DISK), (2, Size::gib(2), Size::gib(20)));
/// assert_eq!(DEFAULT_BOOT_TIMEOUT.as_secs(), 300);
/// ```
pub const DEFAULT_CPUS: u32 = 2;
/// Default memory of a VM. The guest takes host memory only as it uses it.
///
/// ```
/// use fleetbox::{DEFAULT_MEMORY, Vm};
///
/// let twice = Vm::test().memory(fleetbox::Size::from_bytes(2 * DEFAULT_MEMORY.bytes()));
/// ```
pub const DEFAULT_MEMORY: Size = Size::gib(2);
/// Default size of a VM's disk. The host stores only what the guest writes.
pub const DEFAULT_DISK: Size = Size::gib(20);
/// Default time that a guest may take from its first instruction to a log-in over SSH.
///
/// ```
/// use fleetbox::{DEFAULT_BOOT_TIMEOUT, Vm};
///
/// let emulated = Vm::test().boot_timeout(3 * DEFAULT_BOOT_TIMEOUT);
/// ```
pub const DEFAULT_BOOT_TIMEOUT: Duration = Duration::from_secs(300);
