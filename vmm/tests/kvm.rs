//! A vCPU of the host's KVM, alone. Where there is no usable /dev/kvm the tests are skipped and
//! say why, unless `FLEETBOX_REQUIRE` is set.

use std::cell::Cell;

use fleetbox_arch::x86_64::entry::{Entry, boot_regs};
use fleetbox_devices::GuestMemory;
use fleetbox_vmm::hypervisor::kvm::KvmHypervisor;
use fleetbox_vmm::hypervisor::{Hypervisor, IoHandler, VmExit, VmSpec};
use fleetbox_vmm::preflight;
use vm_memory::{Bytes, GuestAddress};

const MEMORY: usize = 2 << 20;
const CODE: u64 = 0x1000;
const PORT: u8 = 0x80;

/// `None` where this host cannot run a vCPU and may be without.
fn hypervisor() -> Option<KvmHypervisor> {
    let probe = preflight::probe();
    if !probe.usable() {
        let is_on = |value: String| {
            !matches!(
                value.trim().to_ascii_lowercase().as_str(),
                "" | "0" | "false"
            )
        };
        let required = std::env::var("FLEETBOX_REQUIRE").is_ok_and(is_on);
        assert!(!required, "FLEETBOX_REQUIRE is set, but {probe}");
        eprintln!("skipped: {probe}");
        return None;
    }
    Some(KvmHypervisor::open().unwrap())
}

/// Memory with code that writes `value` to [`PORT`] and then loops.
fn memory(value: u8) -> GuestMemory {
    let memory = fleetbox_arch::allocate(&[(GuestAddress(0), MEMORY)]).unwrap();
    let code = [
        0xB0, value, // mov al, value
        0xE6, PORT, // out PORT, al
        0xEB, 0xFE, // jmp to itself
    ];
    memory.write_slice(&code, GuestAddress(CODE)).unwrap();
    memory
}

/// Keeps what is written to [`PORT`], after which the vCPU runs no further.
#[derive(Default)]
struct Port(Cell<Option<u8>>);

impl IoHandler for Port {
    fn port_read(&self, _: u16, _: &mut [u8]) {}
    fn port_write(&self, port: u16, data: &[u8]) {
        assert_eq!((port, data.len()), (PORT.into(), 1));
        self.0.set(Some(data[0]));
    }
    fn mmio_read(&self, _: u64, _: &mut [u8]) {}
    fn mmio_write(&self, _: u64, _: &[u8]) {}
    fn end_of_interrupt(&self, _: u8) {}
    fn over(&self) -> bool {
        self.0.get().is_some()
    }
}

#[test]
fn a_vcpu_outlives_every_other_handle_on_its_vm_and_memory() {
    let Some(hypervisor) = hypervisor() else {
        return;
    };
    let vm = hypervisor
        .create_vm(VmSpec {
            memory: memory(1),
            vcpus: 1,
        })
        .unwrap();
    let mut vcpu = vm.create_vcpu(0).unwrap();
    drop(vm);
    drop(hypervisor);
    // Where memory was freed, these take its place.
    let others: Vec<_> = (0..8).map(|_| memory(2)).collect();

    let entry = Entry::Pvh {
        rip: CODE,
        start_info: GuestAddress(0),
    };
    vcpu.boot(&boot_regs(&entry)).unwrap();
    let port = Port::default();
    assert_eq!(vcpu.run(&port).unwrap(), VmExit::Interrupted);
    assert_eq!(port.0.get(), Some(1), "the vCPU runs on its own memory");
    drop(others);
}
