//! A guest as its builder describes it, and waiting for what makes it ready.

use std::fs;
use std::time::Duration;

use fleetbox::{Error, ExtraDisk, Ready, Size, Vm};

use crate::report::{Must, uses};
use crate::suite::Suite;

/// A key that may log in besides fleetbox's own; nobody has its private part.
const OTHER_KEY: &str =
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAWrGMtIOgMlSuEUwNHlW+zwmCY70AOZhf/kvVv1BYxo other";

/// One boot with all of it, and another that has kept it.
pub(crate) fn all(suite: &Suite) {
    let name = "configured";
    uses(name);
    let data = suite.dir().join("data.raw");
    fs::write(&data, b"data of the host\n".repeat(1 << 16)).must("cannot write");
    let builder = suite
        .small(Vm::builder(name))
        .ssh_key(OTHER_KEY)
        .env("COLOUR", "deep blue = 'x'")
        .user_data("write_files:\n- path: /etc/from-user-data\n  content: |\n    hello\n")
        .user_data("#cloud-config\nruncmd:\n- [sh, -c, 'echo first >/order']\n")
        .run_command(
            "echo second >>/order; (while :; do nc -l -p 80 </dev/null; done) >/dev/null 2>&1 &",
        )
        .run_command("sleep 1; echo commands are done >/dev/ttyS0")
        .extra_disk(ExtraDisk::empty(Size::mib(64)))
        .extra_disk(ExtraDisk::file(&data).read_only())
        .wait_for(Ready::CloudInit)
        .wait_for(Ready::Console("commands are done".into()))
        .wait_for(Ready::Port(80))
        .wait_for(Ready::Command("grep -q second /order".into()));
    let vm = suite.block(builder.clone().start()).must("cannot start");
    let check = |vm: &Vm| {
        assert_eq!(suite.sh(vm, "echo \"$COLOUR\""), "deep blue = 'x'");
        assert_eq!(suite.sh(vm, "cat /etc/from-user-data"), "hello");
        let keys = suite.sh(vm, "cat ~/.ssh/authorized_keys");
        assert!(
            keys.contains(OTHER_KEY) && keys.lines().count() == 2,
            "{keys}"
        );
        assert_eq!(suite.sh(vm, "cat /order"), "first\nsecond");
        // The VM's disk, its seed, and these.
        let disks = "for d in vdc vdd; do cd /sys/block/$d; \
                     echo $(cat serial) $(cat size) $(cat ro); done";
        assert_eq!(suite.sh(vm, disks), "extra-1 131072 0\nextra-2 2176 1");
        assert_eq!(suite.sh(vm, "sudo head -c 16 /dev/vdd"), "data of the host");
    };
    check(&vm);
    suite.sh(
        &vm,
        "echo kept | sudo dd of=/dev/vdc bs=512 conv=sync 2>/dev/null; sync",
    );
    assert!(
        suite
            .sh(
                &vm,
                "sudo dd if=/dev/zero of=/dev/vdd bs=512 count=1 2>&1 || echo no"
            )
            .ends_with("no")
    );

    // What never comes is named at its deadline.
    let never = Ready::Console("never printed".into());
    let error = suite
        .block(vm.wait_for(never, Duration::from_secs(2)))
        .expect_err("it is never printed");
    assert!(matches!(error, Error::NotReady { .. }), "{error:?}");
    let error = error.to_string();
    assert!(
        error.contains("/never printed/ on the console") && error.contains("commands are done"),
        "{error}"
    );
    let error = suite
        .block(vm.wait_for(Ready::Command("exit 9".into()), Duration::from_secs(2)))
        .expect_err("it fails");
    assert!(error.to_string().contains("exit status 9"), "{error}");

    suite.block(vm.stop()).must("cannot stop");
    // Commands run at the first boot only.
    let again = suite
        .block(suite.small(Vm::builder(name)).start())
        .must("cannot start again");
    check(&again);
    assert_eq!(suite.sh(&again, "sudo head -c 4 /dev/vdc"), "kept");
    suite.block(again.destroy()).must("cannot destroy");
}

/// More than there is, is refused before anything is created, and the error says what there is.
pub(crate) fn too_much(suite: &Suite) {
    let name = "too-large";
    for (builder, there) in [
        (Vm::builder(name).cpus(128), "this host has"),
        (
            Vm::builder(name).memory(Size::gib(1 << 10)),
            "all VMs together may use",
        ),
        (Vm::builder(name).disk(Size::gib(60 << 10)), "are free"),
    ] {
        let builder = builder.image(suite.tiny());
        let error = suite.block(builder.start()).expect_err("it is too much");
        assert!(
            matches!(error, Error::InsufficientResources(_) | Error::Budget(_)),
            "{error}"
        );
        assert!(error.to_string().contains(there), "{error}");
    }
    assert!(!suite.vm_dir(name).exists());
}
