//! Stands for a user's test program: it links the library and is built for debugging. With a payload it runs it, as
//! its machine process would run a VM.

use std::sync::Arc;

use fleetbox_vmm::hypervisor::Hypervisor;
use fleetbox_vmm::hypervisor::kvm::KvmHypervisor;
use fleetbox_vmm::machine::{BootSource, Machine, MachineConfig};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let Some(payload) = std::env::args_os().nth(1) else {
        let runtime = tokio::runtime::Runtime::new()?;
        let vm = runtime.block_on(fleetbox::Vm::builder("debian-12").start())?;
        let output = runtime.block_on(vm.ssh("uname -a"))?;
        println!("{output:?}");
        return Ok(());
    };
    let hypervisor: Arc<dyn Hypervisor> = Arc::new(KvmHypervisor::open()?);
    let config = MachineConfig {
        memory: 128 << 20,
        boot: BootSource::Kernel {
            kernel: payload.into(),
            initrd: None,
            cmdline: String::new(),
        },
        serial: Some(Box::new(std::io::stdout())),
        ..MachineConfig::default()
    };
    Machine::start(&hypervisor, config)?.wait()?;
    Ok(())
}
