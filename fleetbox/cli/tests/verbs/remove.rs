//! `rm` and `prune`.

use std::path::Path;

use fleetbox::names::Name;
use fleetbox::store::Lock;

use crate::host::Host;

#[test]
fn rm_deletes_a_vm_or_a_whole_cluster() {
    let host = Host::new();
    for name in ["node-1", "node-2"] {
        host.vm("node", name, Path::new("/none"));
    }
    for name in ["node-extra", "web"] {
        host.vm(name, name, Path::new("/none"));
    }
    assert_eq!(
        host.ends(0, &["rm", "node"]),
        "deleted node/node-1\ndeleted node/node-2\n"
    );
    assert_eq!(host.names(), ["node-extra", "web"]);
    // The VM that exists is deleted even if the other name is unknown.
    let output = host.run(&["rm", "none", "web", "--json"]);
    assert_eq!(output.status.code(), Some(1));
    let outcome: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(
        outcome,
        serde_json::json!([{"name": "web", "cluster": "web", "result": "deleted"}])
    );
    assert_eq!(host.names(), ["node-extra"]);
}

#[test]
fn prune_removes_stopped_and_keeps_running() {
    let host = Host::new();
    for name in ["old", "older", "running"] {
        host.vm(name, name, Path::new("/none"));
    }
    let running: Name = "running".parse().expect("a name");
    let vm = host.store().find(&running).expect("VMs").remove(0);
    let lock = Lock::acquire(&vm.paths().lock()).expect("a lock");
    assert_eq!(
        host.ends(0, &["prune", "--dry-run"]),
        "old would be deleted\nolder would be deleted\n"
    );
    assert_eq!(host.names().len(), 3);
    assert_eq!(host.ends(0, &["prune"]), "deleted old\ndeleted older\n");
    assert_eq!(host.names(), ["running"]);
    assert_eq!(host.ends(0, &["prune"]), "nothing to delete\n");
    drop(lock);
}
