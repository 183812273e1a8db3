//! `set`.

use std::path::Path;

use fleetbox::store::Lock;

use crate::host::Host;

#[test]
fn a_stopped_vm_is_changed_and_a_running_one_is_not() {
    let host = Host::new();
    host.vm("web", "web", Path::new("/none"));
    let text = host.ends(0, &["set", "web", "--cpus", "1", "--memory", "512M"]);
    assert!(text.contains("1 vCPU and 512M"), "{text}");
    assert_eq!(host.ends(0, &["set", "web", "--cpus", "2", "-q"]), "");
    let changed: serde_json::Value =
        serde_json::from_str(&host.ends(0, &["set", "web", "--cpus", "2", "--json"]))
            .expect("JSON");
    assert_eq!(
        (&changed[0]["result"], &changed[0]["cpus"]),
        (&"changed".into(), &2.into())
    );
    let shown: serde_json::Value =
        serde_json::from_str(&host.ends(0, &["show", "web", "--json"])).expect("JSON");
    assert_eq!(
        (&shown["cpus"], &shown["memory"]),
        (&2.into(), &(512 << 20).into())
    );

    let output = host.run(&["set", "web", "--cpus", "128"]);
    assert_eq!(output.status.code(), Some(1));
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(
        error.contains("not enough CPUs: asked for 128, this host has"),
        "{error}"
    );

    let vm = host.store().vms().expect("VMs").remove(0);
    assert_eq!(vm.record().expect("a record").cpus, 2);
    let lock = Lock::try_acquire(&vm.paths().lock())
        .expect("a lock")
        .expect("free");
    let output = host.run(&["set", "web", "--cpus", "1"]);
    assert_eq!(output.status.code(), Some(1));
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(error.contains("web is running; stop it first"), "{error}");
    drop(lock);
}
