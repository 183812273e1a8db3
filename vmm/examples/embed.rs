//! Boots a guest in this process: an ELF payload or kernel, with its console on standard output.
//!
//! ```text
//! cargo run -p fleetbox-vmm --example embed -- vmlinux "console=ttyS0"
//! ```

use std::sync::Arc;

use fleetbox_vmm::hypervisor::Hypervisor;
use fleetbox_vmm::hypervisor::kvm::KvmHypervisor;
use fleetbox_vmm::machine::{BootSource, Machine, MachineConfig};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let kernel = arguments
        .next()
        .ok_or("usage: embed KERNEL [COMMAND LINE]")?;
    let hypervisor: Arc<dyn Hypervisor> = Arc::new(KvmHypervisor::open()?);
    let machine = Machine::start(
        &hypervisor,
        MachineConfig {
            cpus: 1,
            memory: 128 << 20,
            boot: BootSource::Kernel {
                kernel: kernel.into(),
                initrd: None,
                cmdline: arguments.next().unwrap_or_default(),
            },
            serial: Some(Box::new(std::io::stdout())),
            ..Default::default()
        },
    )?;
    let exit = machine.wait()?;
    eprintln!("the guest ended: {exit:?}");
    Ok(())
}
