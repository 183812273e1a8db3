//! Which VMs a name means.

use std::fs;
use std::path::Path;

use fleetbox::names::Name;
use fleetbox::store::Lock;

use crate::host::Host;

#[test]
fn all_does_not_mean_those_of_running_tests() {
    let host = Host::new();
    host.vm("test", "test", Path::new("/none"));
    let vm = host.store().vms().expect("VMs").remove(0);
    fs::write(vm.paths().dir().join("ephemeral"), "").expect("a marker");
    let lock = Lock::acquire(&vm.paths().lock()).expect("a lock");
    for verb in ["down", "restart", "kill"] {
        let output = host.run(&[verb, "--all"]);
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        assert!(
            error.contains("skipped") && error.contains("(1)"),
            "{error}"
        );
    }
    drop(lock);
}

#[test]
fn what_is_not_there_is_said_and_what_to_do() {
    let host = Host::new();
    for (args, status) in [
        (&["show", "none"][..], 1),
        (&["down", "none"], 1),
        (&["restart", "none"], 1),
        (&["kill", "none"], 1),
        (&["rm", "none"], 1),
        (&["set", "none", "--cpus", "1"], 1),
        (&["logs", "none"], 1),
        (&["ports", "none"], 1),
        (&["ssh", "none", "--", "true"], 255),
        (&["exec", "none", "--", "true"], 255),
    ] {
        let output = host.run(args);
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(status), "{args:?}: {output:?}");
        assert!(
            error.starts_with("fleetbox: no VM named none") && error.contains("fleetbox ls"),
            "{args:?}: {error}"
        );
    }
    host.vm("web", "web", Path::new("/none"));
    let output = host.run(&["exec", "web", "--", "true"]);
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(255));
    assert!(error.contains("`fleetbox up web`"), "{error}");
    assert_eq!(host.ends(0, &["down", "web"]), "web was not running\n");
    assert_eq!(host.ends(0, &["down", "--all"]), "");
}

#[test]
fn a_clusters_name_means_its_own_members() {
    let host = Host::new();
    for cluster in ["node", "shop-test-1a2b3c4d"] {
        for name in ["node-1", "node-2"] {
            host.vm(cluster, name, Path::new("/none"));
        }
    }
    // Members of a running test's cluster, which are always called so.
    let test: Name = "shop-test-1a2b3c4d".parse().expect("a name");
    for vm in host.store().cluster(&test).vms().expect("VMs") {
        fs::write(vm.paths().dir().join("ephemeral"), "").expect("a marker");
    }
    let output = host.run(&["down", test.as_str()]);
    let text = String::from_utf8_lossy(&output.stdout);
    // They are shut down together, and reported in the order in which they finish.
    let mut lines = text.lines().collect::<Vec<_>>();
    lines.sort_unstable();
    assert_eq!(
        lines,
        [
            "shop-test-1a2b3c4d/node-1 was not running",
            "shop-test-1a2b3c4d/node-2 was not running"
        ],
        "{output:?}"
    );
    assert_eq!(
        host.ends(0, &["rm", test.as_str()]),
        "deleted shop-test-1a2b3c4d/node-1\ndeleted shop-test-1a2b3c4d/node-2\n"
    );
    assert_eq!(host.full_names(), ["node/node-1", "node/node-2"]);
}

#[test]
fn a_name_that_several_clusters_have_is_refused_and_a_reference_is_not() {
    let host = Host::new();
    for (cluster, cpus) in [("kept", "1"), ("node", "2")] {
        for name in ["node-1", "node-2"] {
            host.vm(cluster, name, Path::new("/none"));
        }
        let member = format!("{cluster}/node-1");
        let text = host.ends(0, &["set", &member, "--cpus", cpus]);
        assert!(
            text.starts_with(&member) && text.contains(&format!("`fleetbox up {member}`")),
            "{text}"
        );
    }
    for vm in host.store().vms().expect("VMs") {
        fs::write(vm.paths().console_log(), format!("{}\n", vm.cluster())).expect("a log");
    }
    for (args, status) in [
        (&["show", "node-1"][..], 1),
        (&["logs", "node-1"], 1),
        (&["set", "node-1", "--cpus", "1"], 1),
        (&["down", "node-1"], 1),
        (&["restart", "node-1"], 1),
        (&["kill", "node-1"], 1),
        (&["rm", "node-1"], 1),
        (&["pull-diff", "node-1"], 1),
        (&["ssh", "node-1", "--", "true"], 255),
        (&["exec", "node-1", "--", "true"], 255),
    ] {
        let output = host.run(args);
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(status), "{args:?}: {output:?}");
        assert!(
            error.contains("kept/node-1, node/node-1"),
            "{args:?}: {error}"
        );
    }
    for (cluster, cpus) in [("kept", 1), ("node", 2)] {
        let member = format!("{cluster}/node-1");
        let shown: serde_json::Value =
            serde_json::from_str(&host.ends(0, &["show", &member, "--json"])).expect("JSON");
        assert_eq!(
            (&shown["cluster"], &shown["cpus"]),
            (&cluster.into(), &cpus.into())
        );
        assert_eq!(host.ends(0, &["logs", &member]), format!("{cluster}\n"));
        let output = host.run(&["exec", &member, "--", "true"]);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(
            error.contains(&format!("`fleetbox up {member}`")),
            "{error}"
        );
    }
    // A member twice is one, and none of another cluster's is it.
    assert_eq!(
        host.ends(0, &["rm", "kept/node-1", "kept"]),
        "deleted kept/node-1\ndeleted kept/node-2\n"
    );
    assert_eq!(host.full_names(), ["node/node-1", "node/node-2"]);
    let output = host.run(&["rm", "kept/node-1", "node/node-3"]);
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        error.contains("cluster kept has no member node-1; its members: none")
            && error.contains("cluster node has no member node-3; its members: node-1, node-2"),
        "{error}"
    );
    for wrong in ["/node-1", "node/", "node/node-1/x", "Node/node-1"] {
        assert_eq!(host.run(&["rm", wrong]).status.code(), Some(2), "{wrong}");
    }
    assert_eq!(host.full_names(), ["node/node-1", "node/node-2"]);
}

#[test]
fn members_of_one_name_are_told_apart_wherever_they_are_shown() {
    let host = Host::new();
    for cluster in ["kept", "shop"] {
        host.vm(cluster, "node-1", Path::new("/none"));
    }
    host.vm("web", "web", Path::new("/none"));
    let list = host.ends(0, &["ls"]);
    for name in ["kept/node-1 ", "shop/node-1 ", "web "] {
        assert!(list.lines().any(|line| line.starts_with(name)), "{list}");
    }

    let config = host.ends(0, &["ssh-config"]);
    let hosts: Vec<_> = config
        .lines()
        .filter(|line| line.starts_with("Host "))
        .collect();
    assert_eq!(
        hosts,
        [
            "Host node-1.kept node-1.kept.fleetbox",
            "Host node-1.shop node-1.shop.fleetbox",
            "Host web web.fleetbox web.web web.web.fleetbox"
        ]
    );
    for member in ["kept/node-1", "shop/node-1"] {
        assert!(config.contains(&format!(" dial {member} 22\n")), "{config}");
        let output = host.run(&["dial", member, "22"]);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(error.contains("is not running"), "{error}");
    }
    let dir = host.dir.path().join(".ssh");
    fs::create_dir(&dir).expect("a directory");
    host.ends(0, &["ssh-config", "--install"]);
    let keys = fs::read_to_string(host.state().join("ssh/known_hosts")).expect("known hosts");
    let named: Vec<_> = keys
        .lines()
        .filter_map(|line| line.split(' ').next())
        .collect();
    assert_eq!(
        named,
        [
            "node-1.kept.fleetbox",
            "node-1.shop.fleetbox",
            "web.fleetbox"
        ]
    );
    // With one of them gone the name alone is the other's.
    host.ends(0, &["rm", "kept"]);
    let blocks = fs::read_to_string(host.state().join("ssh/config")).expect("a file");
    assert!(
        blocks.contains("Host node-1 node-1.fleetbox node-1.shop "),
        "{blocks}"
    );

    host.vm("kept", "node-1", Path::new("/none"));
    assert_eq!(
        host.ends(0, &["prune", "--dry-run", "-q"]),
        "kept/node-1 would be deleted\nshop/node-1 would be deleted\nweb would be deleted\n"
    );
    let outcomes = |result: &str| {
        let outcome = |cluster: &str, name: &str| serde_json::json!({"name": name, "cluster": cluster, "result": result});
        serde_json::json!([
            outcome("kept", "node-1"),
            outcome("shop", "node-1"),
            outcome("web", "web")
        ])
    };
    for (args, result) in [
        (&["prune", "--dry-run", "--json"][..], "would-be-deleted"),
        (&["prune", "--json"], "deleted"),
    ] {
        let told: serde_json::Value = serde_json::from_str(&host.ends(0, args)).expect("JSON");
        assert_eq!(told, outcomes(result), "{args:?}");
    }
    assert!(host.names().is_empty());
}
