//! `ls` and `show`.

use std::fs;
use std::path::Path;

use fleetbox::{ExtraDisk, Size, VmState};

use crate::host::Host;

#[test]
fn vms_are_listed_and_shown() {
    let host = Host::new();
    host.vm("web", "web", Path::new("/images/tiny.raw"));
    for verb in ["ls", "ps"] {
        let list = host.ends(0, &[verb]);
        assert!(
            list.starts_with("NAME ") && list.contains("\nweb "),
            "{list}"
        );
        assert!(!list.contains('\x1b'), "colours in a pipe: {list:?}");
    }
    let list: serde_json::Value =
        serde_json::from_str(&host.ends(0, &["ls", "--json"])).expect("JSON");
    assert_eq!(list[0]["name"], "web");
    assert_eq!(list[0]["state"], VmState::Stopped.to_string());
    let shown: serde_json::Value =
        serde_json::from_str(&host.ends(0, &["--json", "show", "web"])).expect("JSON");
    assert_eq!(shown["image_file"], "/images/tiny.raw");
    assert_eq!(shown["cpus"], 2);
    assert!(
        host.ends(0, &["show", "web"])
            .contains("state         stopped")
    );
}

#[test]
fn one_vm_is_shown_without_a_look_at_the_others() {
    let host = Host::new();
    for vm in ["web", "node-1", "node-2"] {
        let cluster = vm.split('-').next().expect("a name");
        host.vm(cluster, vm, Path::new("/images/tiny.raw"));
    }
    // Reading them fails.
    for vm in ["node/node-1", "node/node-2"] {
        fs::write(host.state().join("clusters").join(vm).join("vm.json"), "{").expect("a record");
    }
    for args in [
        &["show", "web"][..],
        &["show", "web/web"],
        &["set", "web", "--cpus", "1", "--json"],
    ] {
        assert!(host.ends(0, args).contains("web"), "{args:?}");
    }
    host.ends(1, &["ls"]);
    host.ends(1, &["show", "node-1"]);
}

#[test]
fn what_a_vm_has_and_why_it_failed_is_shown() {
    let host = Host::new();
    host.vm("web", "web", Path::new("/images/tiny.raw"));
    let vm = host.store().vms().expect("VMs").remove(0);
    let mut record = vm.record().expect("a record");
    record.fixtures = vec!["/data:/work".parse().expect("a fixture")];
    record.extra_disks = vec![
        ExtraDisk::empty(Size::gib(1)),
        ExtraDisk::file("/data.raw").read_only(),
    ];
    vm.save_record(&record).expect("a record");
    let reason = "web failed: it broke; the console's last lines:\none\ntwo";
    fs::write(vm.paths().failure(), reason).expect("a note");
    let workspace = serde_json::json!({
        "host": "/src/shop", "directory": "shop", "commit": "0123456789abcdef", "mise": false,
        "options": {"selection": "tracked", "branch": "try", "from": null},
        "fingerprint": "", "dirty": false, "files": ["a"],
    });
    fs::write(
        vm.paths().dir().join("workspace.json"),
        workspace.to_string(),
    )
    .expect("a note");

    let text = host.ends(0, &["show", "web"]);
    for lines in [
        "state         failed\n\
         failure       web failed: it broke; the console's last lines:\n              one\n              two\n",
        "fixture       /data:/work\n",
        "extra disk    1G, empty\nextra disk    /data.raw, read-only\n",
        "workspace     /src/shop as ~/shop, commit 0123456789ab, branch try\n",
    ] {
        assert!(text.contains(lines), "{lines}: {text}");
    }
    assert!(!text.contains("published"), "{text}");

    let text = host.ends(0, &["show", "web", "--json"]);
    let mut keys: Vec<_> = text
        .lines()
        .filter_map(|line| line.strip_prefix("  \"")?.split('"').next())
        .collect();
    let all = keys.len();
    keys.sort_unstable();
    keys.dedup();
    assert_eq!(keys.len(), all, "a key twice: {text}");
    let shown: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(shown["failure"], reason);
    assert_eq!(shown["fixtures"][0]["guest"], "/work");
    assert_eq!(shown["extra_disks"].as_array().expect("a list").len(), 2);
    assert_eq!(shown["published"], serde_json::json!([]));
    assert_eq!(shown["workspace"]["guest"], "shop");
}
