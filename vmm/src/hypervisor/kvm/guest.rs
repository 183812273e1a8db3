//! A VM in the kernel, and the memory of its guest.

use fleetbox_devices::GuestMemory;
use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use vm_memory::{Address, GuestMemoryBackend, GuestMemoryRegion, MemoryRegionAddress};

use crate::hypervisor::{Error, Result};

pub(super) const NAME: &str = "KVM";

pub(super) fn failed(operation: impl Into<String>) -> impl FnOnce(kvm_ioctls::Error) -> Error {
    let operation = operation.into();
    move |e| Error::Failed {
        backend: NAME,
        operation,
        source: std::io::Error::from_raw_os_error(e.errno()),
    }
}

/// A VM's descriptor, and the memory that the kernel has mapped into the guest.
///
/// A vCPU's descriptor keeps the kernel's VM alive, but not the memory. So everything that can run
/// or change the VM holds this.
pub(super) struct Guest {
    // Dropped before the memory.
    pub(super) fd: VmFd,
    pub(super) memory: GuestMemory,
}

impl Guest {
    pub(super) fn new(fd: VmFd, memory: GuestMemory) -> Result<Self> {
        let guest = Self { fd, memory };
        guest.map_memory()?;
        Ok(guest)
    }

    fn map_memory(&self) -> Result<()> {
        for (slot, region) in self.memory.iter().enumerate() {
            let operation = || {
                format!(
                    "mapping {} MiB of guest memory at {:#x}",
                    region.len() >> 20,
                    region.start_addr().raw_value()
                )
            };
            let host = region
                .get_host_address(MemoryRegionAddress(0))
                .map_err(|error| Error::Failed {
                    backend: NAME,
                    operation: operation(),
                    source: std::io::Error::other(error),
                })?;
            let description = kvm_userspace_memory_region {
                slot: slot as u32,
                flags: 0,
                guest_phys_addr: region.start_addr().raw_value(),
                memory_size: region.len(),
                userspace_addr: host as u64,
            };
            // SAFETY: the region is a mapping of `memory_size` bytes. `self` keeps it until its own
            // descriptor is closed, and so does every vCPU, whose descriptor the kernel's VM
            // lives by too. vm-memory accesses it as volatile memory only.
            unsafe { self.fd.set_user_memory_region(description) }.map_err(failed(operation()))?;
        }
        Ok(())
    }
}
