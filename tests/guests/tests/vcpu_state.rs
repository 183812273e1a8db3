//! A vCPU's state survives saving and restoring on this host's KVM.

use fleetbox_arch::x86_64::entry::{Entry, boot_regs};
use fleetbox_arch::x86_64::regs::MpState;
use fleetbox_vmm::hypervisor::kvm::KvmHypervisor;
use fleetbox_vmm::hypervisor::{Hypervisor, VmSpec};
use vm_memory::GuestAddress;

fn spec() -> VmSpec {
    VmSpec {
        memory: fleetbox_arch::allocate(&[(GuestAddress(0), 4 << 20)]).unwrap(),
        vcpus: 2,
    }
}

#[test]
fn a_saved_vcpu_is_the_same_elsewhere() {
    let hypervisor = KvmHypervisor::open().unwrap();
    let first = hypervisor.create_vm(spec()).unwrap();
    let mut vcpu = first.create_vcpu(0).unwrap();
    vcpu.boot(&boot_regs(&Entry::Linux64 {
        rip: 0x10_0000,
        zero_page: GuestAddress(0x7000),
    }))
    .unwrap();
    let saved = vcpu.save().unwrap();
    assert_eq!((saved.regs.rip, saved.regs.rsi), (0x10_0000, 0x7000));
    assert!(saved.lapic.len() == 1024 && !saved.msrs.is_empty() && !saved.cpuid.is_empty());

    let text = serde_json::to_string(&saved).unwrap();
    let read = serde_json::from_str(&text).unwrap();
    assert_eq!(saved, read, "as text and back");

    let second = hypervisor.create_vm(spec()).unwrap();
    let mut other = second.create_vcpu(0).unwrap();
    other.restore(&read).unwrap();
    let mut again = other.save().unwrap();
    // The time-stamp counter goes on.
    for (now, then) in again.msrs.iter_mut().zip(&saved.msrs) {
        assert_eq!(now.index, then.index);
        if now.index == 0x10 {
            now.data = then.data;
        }
    }
    assert_eq!(again, saved);
}

#[test]
fn secondary_vcpus_wait_for_their_start() {
    let hypervisor = KvmHypervisor::open().unwrap();
    let vm = hypervisor.create_vm(spec()).unwrap();
    assert_eq!(
        vm.create_vcpu(0).unwrap().save().unwrap().mp_state,
        MpState::Runnable
    );
    assert_eq!(
        vm.create_vcpu(1).unwrap().save().unwrap().mp_state,
        MpState::Uninitialized
    );
    assert!(vm.create_vcpu(1).is_err(), "its index is taken");
}

#[test]
fn a_damaged_state_is_refused() {
    let hypervisor = KvmHypervisor::open().unwrap();
    let vm = hypervisor.create_vm(spec()).unwrap();
    let mut vcpu = vm.create_vcpu(0).unwrap();
    let good = vcpu.save().unwrap();
    let mut short = good.clone();
    short.lapic.truncate(10);
    assert!(
        vcpu.restore(&short)
            .unwrap_err()
            .to_string()
            .contains("LAPIC")
    );
    let mut short = good;
    short.xsave.clear();
    assert!(
        vcpu.restore(&short)
            .unwrap_err()
            .to_string()
            .contains("XSAVE")
    );
}
