//! The floor under every VMM: the fewest KVM ioctls that run a PVH payload. No interrupt
//! controller, no devices but the two ports that the `hello` payload writes to.
//!
//! Usage: `kvm-floor PAYLOAD`; 128 MiB of memory, one vCPU.

use std::error::Error;
use std::fs::File;
use std::io::Write;

use fleetbox_arch::x86_64::entry::Entry;
use fleetbox_arch::x86_64::kernel::{self, LoadOptions, Source};
use fleetbox_arch::x86_64::layout;
use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::{Kvm, VcpuExit};
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryRegion, MemoryRegionAddress};

fn main() -> Result<(), Box<dyn Error>> {
    let payload = std::env::args_os()
        .nth(1)
        .ok_or("usage: kvm-floor PAYLOAD")?;
    let memory = fleetbox_arch::allocate(&[(GuestAddress(0), 128 << 20)])?;
    let loaded = kernel::load(
        &memory,
        &Source::File(&File::open(payload)?),
        None,
        "",
        &LoadOptions::default(),
    )?;
    let Entry::Pvh { rip, start_info } = loaded.entry else {
        return Err("the payload has no PVH entry".into());
    };
    let vm = Kvm::new()?.create_vm()?;
    let region = memory.iter().next().ok_or("no memory")?;
    let slot = kvm_userspace_memory_region {
        memory_size: region.len(),
        userspace_addr: region.get_host_address(MemoryRegionAddress(0))? as u64,
        ..Default::default()
    };
    // SAFETY: `memory` is mapped until the end of this function, where the VM ends before it.
    unsafe { vm.set_user_memory_region(slot)? };
    let mut vcpu = vm.create_vcpu(0)?;
    let mut sregs = vcpu.get_sregs()?;
    for segment in [
        &mut sregs.cs,
        &mut sregs.ds,
        &mut sregs.es,
        &mut sregs.fs,
        &mut sregs.gs,
        &mut sregs.ss,
    ] {
        (segment.base, segment.limit, segment.g, segment.db) = (0, u32::MAX, 1, 1);
    }
    sregs.cr0 |= 1;
    vcpu.set_sregs(&sregs)?;
    let mut regs = vcpu.get_regs()?;
    (regs.rip, regs.rbx, regs.rflags) = (rip, start_info.0, 2);
    vcpu.set_regs(&regs)?;
    loop {
        match vcpu.run()? {
            VcpuExit::IoOut(layout::COM1_PORT, bytes) => {
                let mut out = std::io::stdout().lock();
                out.write_all(bytes)?;
                out.flush()?;
            }
            VcpuExit::IoOut(layout::SLEEP_CONTROL_PORT, _) => return Ok(()),
            exit => return Err(format!("unexpected exit {exit:?}").into()),
        }
    }
}
