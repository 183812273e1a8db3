//! What a VM has for which nothing else is given.

use std::time::Duration;

use crate::model::size::Size;

/// vCPUs of a VM for which no number is given.
///
/// ```
/// use fleetbox::{DEFAULT_BOOT_TIMEOUT, DEFAULT_CPUS, DEFAULT_DISK, DEFAULT_MEMORY, Size};
///
/// assert_eq!((DEFAULT_CPUS, DEFAULT_MEMORY, DEFAULT_DISK), (2, Size::gib(2), Size::gib(20)));
/// assert_eq!(DEFAULT_BOOT_TIMEOUT.as_secs(), 300);
/// ```
pub const DEFAULT_CPUS: u32 = 2;
/// Memory of a VM for which no size is given. The host gives what the guest touches.
///
/// ```
/// use fleetbox::{DEFAULT_MEMORY, Vm};
///
/// let twice = Vm::test().memory(fleetbox::Size::from_bytes(2 * DEFAULT_MEMORY.bytes()));
/// ```
pub const DEFAULT_MEMORY: Size = Size::gib(2);
/// Disk of a VM for which no size is given. The host stores what the guest writes.
pub const DEFAULT_DISK: Size = Size::gib(20);
/// How long a guest may take from its first instruction to an SSH log-in.
///
/// ```
/// use fleetbox::{DEFAULT_BOOT_TIMEOUT, Vm};
///
/// let emulated = Vm::test().boot_timeout(3 * DEFAULT_BOOT_TIMEOUT);
/// ```
pub const DEFAULT_BOOT_TIMEOUT: Duration = Duration::from_secs(300);
