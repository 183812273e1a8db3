//! VMs come and go.

use std::sync::Arc;
use std::time::Duration;

use fleetbox::{Size, StopOutcome, Vm};

use crate::host;
use crate::report::{Must, uses};
use crate::suite::Suite;

/// The named VM whose disk the cases of stopping and rebooting share.
pub(super) const KEEPER: &str = "keeper";
/// How long a reboot of the tiny image may take.
const REBOOT: Duration = Duration::from_secs(240);

/// Two VMs, one of a raw image and one of a compressed qcow2, start and answer at the same time.
pub(crate) fn two_at_once(suite: &Suite) {
    let image = suite.tiny_qcow2();
    let other = suite.small(Vm::builder("other")).image(image);
    uses("other");
    // The shared VM boots on this thread while the other does on the runtime's.
    let starting = suite.spawn(other.start());
    let first = suite.shared();
    let second = suite
        .block(starting)
        .must("the thread of the second VM")
        .must("cannot start the second VM");
    let ids: Vec<_> = [&*first, &second]
        .map(|vm| {
            assert_eq!(suite.sh(vm, "hostname"), vm.name());
            suite.sh(vm, "cat /proc/sys/kernel/random/boot_id")
        })
        .into();
    assert_ne!(ids[0], ids[1]);
    // Both reach the same port of the host's world, each through its own gateway.
    let server = super::network::Echo::start();
    for vm in [&*first, &second] {
        assert_eq!(server.asked_by(suite, vm), server.answer());
    }
    suite
        .block(second.destroy())
        .must("cannot destroy the second VM");
    host::assert_quiet(&suite.vm_dir("other"), "other", true);
    assert_eq!(suite.sh(&first, "echo still here"), "still here");
}

/// A test VM ends and is deleted with its last handle.
pub(crate) fn drop_destroys(suite: &Suite) {
    let vm = suite.take_shared();
    let (name, dir) = (vm.name().to_owned(), suite.vm_dir(vm.name()));
    assert!(dir.is_dir());
    host::process("worker", &name);
    host::process("machine", &name);
    let vm = Arc::into_inner(vm).expect("no other case runs in this lane");
    drop(vm);
    host::assert_quiet(&dir, &name, true);
    host::within(Duration::from_secs(20), || {
        if dir.parent().is_some_and(std::path::Path::exists) {
            Err("its directory is left".to_owned())
        } else {
            Ok(())
        }
    })
    .must(&name);
}

/// What was on the disk when it was powered off is there when it is started again.
pub(crate) fn stop_and_start(suite: &Suite) {
    let vm = suite.start(KEEPER);
    // The last handle is to go below.
    suite.unkeep();
    let boot_id = suite.sh(&vm, "cat /proc/sys/kernel/random/boot_id");
    suite.sh(&vm, "echo kept > kept");
    let stopped = suite.block(vm.stop()).must("cannot stop the VM");
    assert_eq!(
        stopped,
        StopOutcome::PoweredOff,
        "the guest did not power itself off"
    );
    drop(vm);
    host::assert_quiet(&suite.vm_dir(KEEPER), KEEPER, true);
    let vm = suite.start(KEEPER);
    assert_eq!(suite.sh(&vm, "cat kept"), "kept");
    assert_ne!(
        suite.sh(&vm, "cat /proc/sys/kernel/random/boot_id"),
        boot_id
    );
    // Idempotent: a second start finds the first.
    let again = suite.start(KEEPER);
    assert!(again.was_running());
    assert_eq!(suite.sh(&again, "hostname"), KEEPER);
    drop(again);
    suite.keep(vm);
}

/// A guest that reboots itself boots anew, in the same machine process.
pub(crate) fn reboot(suite: &Suite) {
    let vm = suite.start(KEEPER);
    let process = host::process("machine", KEEPER);
    suite.sh(&vm, "echo before > rebooted; sync");
    suite.reboot(&vm, REBOOT);
    assert_eq!(suite.sh(&vm, "cat rebooted"), "before");
    assert_eq!(host::process("machine", KEEPER), process);
    suite.keep(vm);
}

/// The boot configuration that the guest has written last is the one that counts, at a reboot already.
pub(crate) fn second_kernel(suite: &Suite) {
    let vm = suite.start(KEEPER);
    let before = suite.sh(&vm, "cat /proc/cmdline");
    assert!(
        before.contains("BOOT_IMAGE=") && !before.contains("9.9.9"),
        "{before}"
    );
    suite.sh(
        &vm,
        "v=$(uname -r) && sudo cp /boot/vmlinuz-$v /boot/vmlinuz-9.9.9-second && \
         sudo cp /boot/initrd.img-$v /boot/initrd.img-9.9.9-second && sudo update-grub",
    );
    suite.reboot(&vm, REBOOT);
    let after = suite.sh(&vm, "cat /proc/cmdline");
    assert!(
        after.contains("BOOT_IMAGE=/boot/vmlinuz-9.9.9-second"),
        "{after}"
    );
    suite.unkeep();
    suite.block(vm.destroy()).must("cannot destroy the VM");
}

/// The façade for code that is not asynchronous.
pub(crate) fn blocking(suite: &Suite) {
    use fleetbox::blocking::Vm;
    let vm = Vm::test()
        .image(suite.tiny())
        .memory(Size::mib(256))
        .cpus(1)
        .boot_timeout(REBOOT)
        .start()
        .must("cannot start the VM");
    uses(vm.name());
    let output = vm.ssh("uname -a").must("uname");
    assert!(
        output.success() && output.stdout_text().starts_with("Linux "),
        "{output:?}"
    );
    let sum = vm.ssh_with_input("sha256sum", b"abc").must("sha256sum");
    assert!(sum.stdout_text().starts_with("ba7816bf8f01cfea"), "{sum:?}");
    assert!(!vm.console_tail().must("console").is_empty());
    vm.destroy().must("cannot destroy the VM");
}
