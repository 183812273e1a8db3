//! The `fleetbox` command where it needs no VM: refusals, configuration, what is generated.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use fleetbox::names::Name;
use fleetbox::store::{ImageRecord, Lock, MacAddr, Store, VmRecord, now};
use fleetbox::{ExtraDisk, Size, VmState};

/// A state directory, a home directory and the command.
struct Host {
    dir: tempfile::TempDir,
}

impl Host {
    fn new() -> Self {
        Self {
            dir: tempfile::tempdir().expect("a temporary directory"),
        }
    }

    /// The path of an image, which no machine could boot.
    fn image(&self) -> String {
        let image = self.dir.path().join("disk.raw");
        fs::write(&image, vec![0; 1 << 20]).expect("an image");
        image.into_os_string().into_string().expect("UTF-8")
    }

    fn state(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    fn store(&self) -> Store {
        Store::open(self.state()).expect("a state directory")
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_fleetbox"));
        command
            .args(args)
            .env("FLEETBOX_HOME", self.state())
            .env("HOME", self.dir.path())
            .env_remove("FLEETBOX_CATALOGUE")
            .stdin(std::process::Stdio::null());
        command
    }

    fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().expect("the command starts")
    }

    /// Runs the command, which has to end with `status`, and returns its standard output.
    #[track_caller]
    fn ends(&self, status: i32, args: &[&str]) -> String {
        let output = self.run(args);
        assert_eq!(output.status.code(), Some(status), "{args:?}: {output:?}");
        String::from_utf8(output.stdout).expect("text")
    }

    /// A VM that never ran.
    fn vm(&self, cluster: &str, name: &str, image: &Path) {
        let name: Name = name.parse().expect("a name");
        let cluster: Name = cluster.parse().expect("a name");
        let draft = self.store().create_vm(&cluster, &name).expect("a draft");
        let record = VmRecord {
            name: name.clone(),
            cluster,
            image: ImageRecord {
                reference: "tiny".to_owned(),
                path: image.to_owned(),
                sha256: None,
            },
            cpus: 2,
            memory: Size::gib(2),
            disk: Size::gib(20),
            mac: MacAddr::random(),
            ip: Ipv4Addr::new(10, 187, 41, 2),
            created: now(),
            instance_id: "x".to_owned(),
            ssh_user: "fleetbox".to_owned(),
            ssh_key: "ssh-ed25519 AAAA".to_owned(),
            host_key: format!("ssh-ed25519 AAAA{name}"),
            fixtures: Vec::new(),
            config: fleetbox::seed::GuestConfig::default(),
            extra_disks: Vec::new(),
            network: fleetbox::Network::User,
        };
        let (vm, lock) = draft.commit(&record).expect("a VM");
        drop(lock);
        // A command that another test has just forked may hold it on until it executes.
        drop(Lock::acquire(&vm.paths().lock()).expect("a lock"));
    }

    fn names(&self) -> Vec<String> {
        let vms = self.store().vms().expect("VMs");
        vms.iter().map(|vm| vm.name().to_string()).collect()
    }
}

#[test]
fn wrong_arguments_leave_nothing_behind() {
    let host = Host::new();
    for wrong in [
        &["up", "MyBox"][..],
        &["up", "my box"],
        &["up", "box.vm"],
        &["up", "-box"],
        &["up", "box", "--cpus", "0"],
        &["up", "box", "--memory", "1"],
        &["up", "box", "--image", "no such"],
        &["up", "box", "--no-start", "--publish", "8080:80"],
        &["up", "box", "--no-start", "--wait", "cloud-init"],
        &["up", "box", "--no-start", "--timeout", "9"],
        &["up", "box", "--wait", "console:["],
        &["up", "box", "--user-data", "/no/such/file"],
        &["up", "box", "--publish", "8080:2", "--publish", "8080:3"],
        &["run", "--wait", "console:[", "--", "true"],
        &["exec", "box"],
        &["down"],
        &["set", "box"],
        &["no-such-verb"],
    ] {
        let output = host.run(wrong);
        assert_eq!(output.status.code(), Some(2), "{wrong:?}: {output:?}");
        assert!(!output.stderr.is_empty(), "{wrong:?}");
    }
    assert!(!host.state().exists(), "something was created");
}

#[test]
fn wrong_user_data_is_a_wrong_argument() {
    let host = Host::new();
    for (text, why) in [("- a\n", "no mapping"), ("hostname: x\n", "hostname")] {
        let file = host.dir.path().join("setup.yaml");
        fs::write(&file, text).expect("a file");
        let file = file.to_str().expect("UTF-8");
        for command in [&["up", "web"][..], &["up"], &["run", "--rm"]] {
            let output = host.run(&[command, &["--user-data", file]].concat());
            let error = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(2), "{output:?}");
            assert!(
                error.contains("setup.yaml: ") && error.contains(why),
                "{error}"
            );
        }
    }
    assert!(!host.state().exists(), "something was created");
}

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
        assert!(error.contains("left alone (1)"), "{error}");
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
            error.starts_with("fleetbox: there is no VM none") && error.contains("fleetbox ls"),
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

#[test]
fn a_stopped_vm_is_changed_and_a_running_one_is_not() {
    let host = Host::new();
    host.vm("web", "web", Path::new("/none"));
    let text = host.ends(0, &["set", "web", "--cpus", "1", "--memory", "512M"]);
    assert!(text.contains("1 vCPUs and 512M"), "{text}");
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
        error.contains("cannot have 128 CPUs: this host has"),
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
        "node/node-1 is deleted\nnode/node-2 is deleted\n"
    );
    assert_eq!(host.names(), ["node-extra", "web"]);
    // One that is there is deleted although another is not.
    let output = host.run(&["rm", "none", "web", "--json"]);
    assert_eq!(output.status.code(), Some(1));
    let outcome: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(
        outcome,
        serde_json::json!([{"name": "web", "cluster": "web", "result": "deleted"}])
    );
    assert_eq!(host.names(), ["node-extra"]);
}

/// `CLUSTER/NAME` of all VMs.
fn full_names(host: &Host) -> Vec<String> {
    let vms = host.store().vms().expect("VMs");
    vms.iter()
        .map(|vm| format!("{}/{}", vm.cluster(), vm.name()))
        .collect()
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
    // They are shut down together, and told of as they are done.
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
        "shop-test-1a2b3c4d/node-1 is deleted\nshop-test-1a2b3c4d/node-2 is deleted\n"
    );
    assert_eq!(full_names(&host), ["node/node-1", "node/node-2"]);
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
        "kept/node-1 is deleted\nkept/node-2 is deleted\n"
    );
    assert_eq!(full_names(&host), ["node/node-1", "node/node-2"]);
    let output = host.run(&["rm", "kept/node-1", "node/node-3"]);
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        error.contains("cluster kept has no member node-1; it has none")
            && error.contains("cluster node has no member node-3; it has node-1, node-2"),
        "{error}"
    );
    for wrong in ["/node-1", "node/", "node/node-1/x", "Node/node-1"] {
        assert_eq!(host.run(&["rm", wrong]).status.code(), Some(2), "{wrong}");
    }
    assert_eq!(full_names(&host), ["node/node-1", "node/node-2"]);
}

#[test]
fn what_is_for_one_vm_is_refused_for_a_cluster() {
    let host = Host::new();
    for name in ["node-1", "node-2"] {
        host.vm("node", name, Path::new("/none"));
    }
    for option in [&["--no-start"][..], &["--publish", "8080:80"]] {
        let output = host.run(&[&["up", "node"], option].concat());
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{option:?}: {output:?}");
        assert!(
            error.contains(option[0]) && error.contains("`fleetbox up node/node-1"),
            "{error}"
        );
    }
    assert_eq!(
        host.run(&["up", "node/node-1", "-n", "2"]).status.code(),
        Some(2)
    );
    assert_eq!(full_names(&host), ["node/node-1", "node/node-2"]);
    // A member is one VM.
    let text = host.ends(0, &["up", "node/node-1", "--no-start"]);
    assert!(text.starts_with("node/node-1 exists already;"), "{text}");
}

#[test]
fn user_data_comes_from_a_pipe_as_well() {
    let host = Host::new();
    let image = &host.image();
    let up = ["up", "web", "--no-start", "--image", image];
    let mut command = host
        .command(&[&up[..], &["--user-data", "/dev/stdin"]].concat())
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::null())
        .spawn()
        .expect("the command starts");
    let mut pipe = command.stdin.take().expect("a pipe");
    pipe.write_all(b"#cloud-config\ntimezone: Europe/Berlin\n")
        .expect("it reads");
    drop(pipe);
    assert!(command.wait().expect("an end").success());
    let vm = host.store().vms().expect("VMs").remove(0);
    let given = vm.record().expect("a record").config.user_data;
    assert_eq!(given.len(), 1);
    assert_eq!(given[0]["timezone"], "Europe/Berlin");
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
    assert_eq!(
        host.ends(0, &["prune"]),
        "old is deleted\nolder is deleted\n"
    );
    assert_eq!(host.names(), ["running"]);
    assert_eq!(host.ends(0, &["prune"]), "there was nothing to delete\n");
    drop(lock);
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

#[test]
fn ssh_config_twice_in_and_once_out_leaves_every_byte() {
    let host = Host::new();
    host.vm("web", "web", Path::new("/none"));
    let dir = host.dir.path().join(".ssh");
    fs::create_dir(&dir).expect("a directory");
    let file = dir.join("config");
    let own = b"# mine\r\nHost myserver\n\tHostName example.invalid";
    fs::write(&file, own).expect("a file");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).expect("a mode");

    host.ends(0, &["ssh-config", "--install"]);
    let once = fs::read(&file).expect("the file");
    assert!(
        host.ends(0, &["ssh-config", "--install"])
            .contains("already")
    );
    assert_eq!(fs::read(&file).expect("the file"), once);
    let text = String::from_utf8_lossy(&once);
    assert_eq!(text.matches("Include ").count(), 1, "{text}");
    assert!(once.ends_with(own));

    // What OpenSSH makes of it, where it is installed; it looks at the user's real home itself.
    let included = host.state().join("ssh/config");
    let blocks = fs::read_to_string(&included).expect("the included file");
    assert!(
        blocks.contains("Host web web.fleetbox web.web web.web.fleetbox\n"),
        "{blocks}"
    );
    if let Ok(output) = Command::new("ssh")
        .arg("-G")
        .arg("-F")
        .arg(&file)
        .arg("web")
        .output()
    {
        let told = String::from_utf8_lossy(&output.stdout);
        assert!(told.contains("hostname web.fleetbox\n"), "{output:?}");
        assert!(told.contains(" dial web/web 22\n"), "{told}");
    }
    let hosts = fs::read_to_string(host.state().join("ssh/known_hosts")).expect("known hosts");
    assert_eq!(hosts, "web.fleetbox ssh-ed25519 AAAAweb\n");

    // It follows what VMs there are.
    host.ends(0, &["rm", "web"]);
    assert_eq!(
        fs::read_to_string(&included).expect("the included file"),
        ""
    );

    host.ends(0, &["ssh-config", "--uninstall"]);
    assert_eq!(fs::read(&file).expect("the file"), own);
    let mode = fs::metadata(&file).expect("the file").permissions().mode();
    assert_eq!(mode & 0o777, 0o644);
    assert!(!included.exists());
    assert!(
        host.ends(0, &["ssh-config", "--uninstall"])
            .contains("nothing")
    );
}

#[test]
fn json_has_the_documented_shapes() {
    let host = Host::new();
    let image = &host.image();
    let json = |status, args: &[&str]| {
        let text = host.ends(status, &[args, &["--json"]].concat());
        serde_json::from_str::<serde_json::Value>(&text).expect("JSON")
    };
    // Verbs that change VMs: a list of what became of each.
    let up = ["up", "web", "--no-start", "--image", image];
    for result in ["created", "exists"] {
        let changed = json(0, &up);
        assert_eq!(changed.as_array().map(Vec::len), Some(1));
        assert_eq!(
            (
                &changed[0]["name"],
                &changed[0]["cluster"],
                &changed[0]["result"]
            ),
            (&"web".into(), &"web".into(), &result.into())
        );
        assert_eq!(changed[0]["state"], "stopped");
    }
    let became =
        |result: &str| serde_json::json!([{"name": "web", "cluster": "web", "result": result}]);
    assert_eq!(json(0, &["down", "web"]), became("not-running"));
    assert_eq!(json(0, &["kill", "web"]), became("not-running"));
    assert_eq!(json(0, &["rm", "web"]), became("deleted"));
    for (status, args) in [
        (1, &["rm", "web"][..]),
        (1, &["down", "web"]),
        (0, &["down", "--all"]),
        (0, &["prune"]),
        (0, &["prune", "--dry-run"]),
        (0, &["ls"]),
        (0, &["stats"]),
        (0, &["images", "rm", "--all"]),
    ] {
        assert_eq!(json(status, args), serde_json::json!([]), "{args:?}");
    }
    // What is one thing is an object.
    assert_eq!(
        json(0, &["version"]),
        serde_json::json!({"name": "fleetbox", "version": env!("CARGO_PKG_VERSION")})
    );
    fs::create_dir(host.dir.path().join(".ssh")).expect("a directory");
    for (option, result) in [
        ("--install", "installed"),
        ("--install", "unchanged"),
        ("--uninstall", "uninstalled"),
        ("--uninstall", "unchanged"),
    ] {
        let told = json(0, &["ssh-config", option]);
        assert_eq!(told["result"], result, "{option}: {told}");
        assert!(
            told["file"]
                .as_str()
                .is_some_and(|file| file.ends_with(".ssh/config")),
            "{told}"
        );
    }
    for check in json_list(&host.run(&["doctor", "--json"])) {
        assert!(check.get("remedy").is_some(), "{check}");
    }
}

fn json_list(output: &Output) -> Vec<serde_json::Value> {
    serde_json::from_slice(&output.stdout).expect("a list as JSON")
}

#[test]
fn logs_of_a_command_have_colours_on_terminals_only() {
    let host = Host::new();
    let traced = || {
        // What a killed process has left, which is told of.
        fs::create_dir_all(host.state().join("clusters/web/web")).expect("a directory");
        let mut command = host.command(&["prune"]);
        command
            .env("FLEETBOX_LOG", "debug")
            .env("TERM", "xterm")
            .env_remove("NO_COLOR");
        command
    };
    let output = traced().output().expect("the command starts");
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(log.contains("DEBUG"), "{log}");
    assert!(!log.contains('\x1b'), "{log:?}");

    let on_terminal = |mut command: Command| {
        let pair = nix::pty::openpty(None, None).expect("a terminal");
        command.stdout(std::process::Stdio::null());
        let mut child = command.stderr(pair.slave).spawn().expect("it starts");
        // Else this process has the other end of the terminal, too, and there is no end to read.
        drop(command);
        let mut log = Vec::new();
        // The end is an error for whoever reads a terminal.
        let _ = fs::File::from(pair.master).read_to_end(&mut log);
        assert!(child.wait().expect("its end").success());
        String::from_utf8_lossy(&log).into_owned()
    };
    let log = on_terminal(traced());
    assert!(log.contains('\x1b'), "{log:?}");
    let mut plain = traced();
    plain.env("NO_COLOR", "1");
    let log = on_terminal(plain);
    assert!(log.contains("DEBUG") && !log.contains('\x1b'), "{log:?}");
}

#[test]
fn logs_are_shown_without_escape_sequences() {
    let host = Host::new();
    host.vm("web", "web", Path::new("/none"));
    let vm = host.store().vms().expect("VMs").remove(0);
    fs::write(
        vm.paths().console_log(),
        "one\r\n\x1b[31mtwo\x1b[0m\nthree\n",
    )
    .expect("a log");
    assert_eq!(host.ends(0, &["logs", "web"]), "one\ntwo\nthree\n");
    assert_eq!(host.ends(0, &["logs", "web", "-n", "1"]), "three\n");
    // A VM that does not run writes no more.
    assert_eq!(host.ends(0, &["logs", "-f", "web"]), "one\ntwo\nthree\n");
}

#[test]
fn logs_follow_a_running_vm_to_its_end() {
    let host = Host::new();
    host.vm("web", "web", Path::new("/none"));
    let vm = host.store().vms().expect("VMs").remove(0);
    let log = vm.paths().console_log();
    fs::write(&log, "first\n").expect("a log");
    let lock = Lock::try_acquire(&vm.paths().lock())
        .expect("a lock")
        .expect("free");
    let mut child = host
        .command(&["logs", "-f", "web"])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("the command starts");
    let mut out = child.stdout.take().expect("piped");
    let mut first = [0; 6];
    out.read_exact(&mut first).expect("what was there");
    assert_eq!(&first, b"first\n");
    fs::OpenOptions::new()
        .append(true)
        .open(&log)
        .expect("the log")
        .write_all(b"second\n")
        .expect("written");
    let mut second = [0; 7];
    out.read_exact(&mut second).expect("what came");
    assert_eq!(&second, b"second\n");
    drop(lock);
    assert!(child.wait().expect("its end").success());
}

#[test]
fn completions_and_manual_pages_know_the_verbs() {
    let host = Host::new();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let text = host.ends(0, &["completions", shell]);
        assert!(text.contains("ssh-config"), "{shell}");
    }
    let page = host.ends(0, &["man"]);
    assert!(page.contains(".TH fleetbox 1"), "{page}");
    let dir = host.dir.path().join("man1");
    host.ends(0, &["man", "--dir", dir.to_str().expect("UTF-8")]);
    for page in ["fleetbox.1", "fleetbox-up.1", "fleetbox-images-ls.1"] {
        assert!(dir.join(page).is_file(), "{page}");
    }
    assert!(!host.state().exists(), "something was created");
    // A bash that has it loaded offers them.
    let script = host.dir.path().join("completion");
    fs::write(&script, host.ends(0, &["completions", "bash"])).expect("a file");
    let Ok(output) = Command::new("bash")
        .arg("-c")
        .arg("source \"$0\" && COMP_WORDS=(fleetbox re) COMP_CWORD=1 && _fleetbox fleetbox re fleetbox && echo ${COMPREPLY[@]}")
        .arg(&script)
        .output()
    else {
        return;
    };
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "restart\n",
        "{output:?}"
    );
}

#[test]
fn doctor_names_each_precondition() {
    let host = Host::new();
    let output = host.run(&["doctor", "--json"]);
    let checks: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let checks = checks.as_array().expect("a list");
    for name in [
        "kvm",
        "memory",
        "descriptors",
        "state",
        "space",
        "images",
        "vms",
        "git",
        "budget",
        "queue",
        "openssh",
        "ping",
        "bridge",
        "nested",
    ] {
        assert!(
            checks.iter().any(|check| check["name"] == name),
            "{name}: {checks:?}"
        );
    }
    for check in checks {
        let (bad, remedy) = (check["verdict"] != "ok", &check["remedy"]);
        assert_eq!(remedy.is_string(), bad, "{check}");
    }
    let failed = checks.iter().any(|check| check["verdict"] == "fail");
    assert_eq!(output.status.code(), Some(i32::from(failed)));
    // A directory that cannot be made is said, with what to do.
    let file = host.dir.path().join("file");
    fs::write(&file, "").expect("a file");
    let output = host.run(&["--home", file.to_str().expect("UTF-8"), "doctor"]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        text.contains("FAIL state") && text.contains("FLEETBOX_HOME"),
        "{text}"
    );
    let output = host
        .command(&["doctor"])
        .env("FLEETBOX_BUDGET_DIR", &file)
        .output()
        .expect("the command starts");
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        text.contains("FAIL queue") && text.contains("FLEETBOX_BUDGET_DIR"),
        "{text}"
    );
}

/// One answer for each connection: a page that lists snapshots.
fn page_server(page: &'static str) -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    let port = listener.local_addr().expect("an address").port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let mut request = [0; 2048];
            let _ = stream.read(&mut request);
            let _ = write!(
                stream,
                "HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{page}",
                page.len()
            );
        }
    });
    port
}

#[test]
fn newer_snapshots_are_found_and_images_deleted_unless_used() {
    let host = Host::new();
    let port = page_server("<a href=\"20260101-1/\">a</a> <a href=\"20260301-2/\">b</a>");
    let catalogue = host.dir.path().join("catalogue.json");
    let sum = "0".repeat(64);
    let entry = serde_json::json!({
        "snapshot": "20260101-1",
        "amd64": {"url": format!("http://127.0.0.1:{port}/x/20260101-1/mine.raw"), "sha256": sum},
        "arm64": {"url": format!("http://127.0.0.1:{port}/x/20260101-1/mine.raw"), "sha256": sum},
    });
    let text = serde_json::json!({"format": 1, "images": {"mine": entry}});
    fs::write(&catalogue, text.to_string()).expect("a catalogue");
    let run = |args: &[&str]| {
        host.command(args)
            .env("FLEETBOX_CATALOGUE", &catalogue)
            .output()
            .expect("the command starts")
    };
    let output = run(&["images", "refresh", "mine", "--json"]);
    let fresh: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(fresh[0]["newest"], "20260301-2", "{output:?}");
    assert_eq!(run(&["images", "refresh", "none"]).status.code(), Some(1));

    let arch = if cfg!(target_arch = "x86_64") {
        "amd64"
    } else {
        "arm64"
    };
    let image = host
        .store()
        .images_dir()
        .join(format!("mine-{arch}-{}.raw", "0".repeat(16)));
    fs::write(&image, "image").expect("an image");
    host.vm("web", "web", &image);
    let output = run(&["images", "rm", "mine"]);
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        error.contains("VM web needs it") && image.exists(),
        "{error}"
    );
    host.ends(0, &["rm", "web"]);
    let output = run(&["images", "rm", "mine"]);
    assert!(output.status.success() && !image.exists(), "{output:?}");
    fs::write(&image, "image").expect("an image");
    let output = run(&["images", "rm", "--all"]);
    assert!(output.status.success() && !image.exists(), "{output:?}");
    // A file of the user's is not fleetbox's to delete.
    let own = host.dir.path().join("own.raw");
    fs::write(&own, "image").expect("an image");
    let output = run(&["images", "rm", own.to_str().expect("UTF-8")]);
    assert!(!output.status.success() && own.exists(), "{output:?}");
}

/// A git work tree with a file that is tracked, one that is not and one that is ignored.
fn work_tree(host: &Host) -> PathBuf {
    let root = host.dir.path().join("repo");
    fs::create_dir(&root).expect("a directory");
    for (name, content) in [
        ("tracked", "1"),
        ("new", "2"),
        ("ignored", "3"),
        (".gitignore", "ignored"),
    ] {
        fs::write(root.join(name), content).expect("a file");
    }
    for args in [
        &["init", "-q"][..],
        &["add", "tracked", ".gitignore"],
        &[
            "-c",
            "user.name=a",
            "-c",
            "user.email=a@b",
            "commit",
            "-q",
            "-m",
            "one",
        ],
    ] {
        let status = Command::new("git").arg("-C").arg(&root).args(args).status();
        assert!(status.expect("git").success());
    }
    root
}

#[test]
fn a_run_that_cannot_be_leaves_nothing_behind() {
    let host = Host::new();
    for wrong in [
        &["run", "-d", "--rm"][..],
        &["run", "-d", "--", "true"],
        &["run", "--detach", "--rm", "--", "true"],
        &["run", "--name", "MyBox", "--", "true"],
        &["run", "--cpus", "0", "--", "true"],
    ] {
        let output = host.run(wrong);
        assert_eq!(output.status.code(), Some(2), "{wrong:?}: {output:?}");
    }
    assert!(!host.state().exists(), "something was created");
    let plain = host.dir.path().to_str().expect("UTF-8");
    for (wrong, reason) in [
        (
            &["run", "/no/such/place", "--", "true"][..],
            "/no/such/place",
        ),
        (&["run", plain, "--", "true"], "not a git repository"),
    ] {
        let output = host.run(wrong);
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(255), "{wrong:?}: {output:?}");
        assert!(error.contains(reason), "{error}");
    }
    assert!(!host.state().exists(), "something was created");
    let root = work_tree(&host);
    let root = root.to_str().expect("UTF-8");
    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    let taken = taken.local_addr().expect("an address").port().to_string();
    let publish = format!("{taken}:80");
    for (wrong, reason) in [
        (
            &["--branch", "x", "--from", "no-such"][..],
            "there is no no-such",
        ),
        (&["--branch", "a..b"], "a..b"),
        (&["--publish", &publish], &taken),
    ] {
        let output = host.run(&[&["run", root], wrong, &["--", "true"]].concat());
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(255), "{wrong:?}: {output:?}");
        assert!(error.contains(reason), "{error}");
    }
    let name = std::ffi::OsStr::from_bytes(b"caf\xe9");
    fs::write(Path::new(root).join(name), "").expect("a file");
    let output = host.run(&["run", root, "--include-untracked", "--", "true"]);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(error.contains("its name is not UTF-8"), "{error}");
    assert!(!host.state().exists(), "something was created");
    host.vm("web", "web", Path::new("/none"));
    let output = host.run(&["run", "--name", "web", "--rm", "--", "true"]);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(error.contains("VM web exists already"), "{error}");
    assert_eq!(host.names(), ["web"]);
    let output = host.run(&["pull-diff", "web"]);
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1));
    assert!(error.contains("web has no workspace"), "{error}");
}

#[test]
fn a_tree_is_shipped_to_a_vm_that_runs_only() {
    let host = Host::new();
    let root = work_tree(&host);
    let root = root.to_str().expect("UTF-8");
    assert_eq!(
        host.ends(0, &["ship", "web", root, "--dry-run"]),
        ".gitignore\ntracked\n"
    );
    assert!(!host.state().exists(), "something was created");
    host.vm("web", "web", Path::new("/none"));
    for (args, reason) in [
        (&["none", root][..], "there is no VM none"),
        (&["web", root], "`fleetbox up web`"),
        (&["web", "/no/such/place"], "/no/such/place"),
        (
            &["web", root, "--branch", "x", "--from", "gone"],
            "there is no gone",
        ),
    ] {
        let output = host.run(&[&["ship"], args].concat());
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{args:?}: {output:?}");
        assert!(error.contains(reason), "{error}");
    }
    let output = host.run(&["pull-diff", "web"]);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(error.contains("`fleetbox ship web PATH`"), "{error}");
}

#[test]
fn a_dry_run_lists_what_would_be_shipped() {
    let host = Host::new();
    let root = work_tree(&host);
    let root = root.to_str().expect("UTF-8");
    assert_eq!(
        host.ends(0, &["run", "--dry-run", root]),
        ".gitignore\ntracked\n"
    );
    assert_eq!(
        host.ends(0, &["run", "--dry-run", root, "--include-untracked"]),
        ".gitignore\nnew\ntracked\n"
    );
    let all = host.ends(0, &["run", "--dry-run", root, "--full-copy"]);
    assert!(
        all.contains("\nignored\n") && all.contains(".git/HEAD\n"),
        "{all}"
    );
    let json = host.ends(
        0,
        &[
            "run",
            "--dry-run",
            root,
            "--branch",
            "x",
            "--from",
            "HEAD",
            "--json",
        ],
    );
    let files: Vec<String> = serde_json::from_str(&json).expect("JSON");
    assert_eq!(files, [".gitignore", "tracked"]);
    assert!(!host.state().exists(), "something was created");
}

#[test]
fn a_vm_is_created_without_being_started() {
    let host = Host::new();
    let image = &host.image();
    let up = ["up", "web", "--no-start", "--image", image, "--cpus", "1"];
    assert!(host.ends(0, &up).starts_with("web exists;"));
    assert!(host.ends(0, &up).starts_with("web exists already;"));
    let list: serde_json::Value =
        serde_json::from_str(&host.ends(0, &["ls", "--json"])).expect("JSON");
    assert_eq!(
        (&list[0]["state"], &list[0]["cpus"]),
        (&"stopped".into(), &1.into())
    );
    // Without a name one is made up.
    let text = host.ends(0, &["up", "--no-start", "--image", image]);
    let name = text.split(' ').next().expect("a name");
    assert!(host.names().contains(&name.to_owned()), "{text}");
    // That is what was asked for, so that it stays where there are no other remarks.
    let text = host.ends(0, &["up", "--no-start", "--image", image, "-q"]);
    assert!(host.names().contains(&text.trim_end().to_owned()), "{text}");
    assert_eq!(
        host.ends(0, &["up", "quiet", "--no-start", "--image", image, "-q"]),
        ""
    );
    // What is wrong leaves nothing.
    let output = host.run(&["up", "bad", "--no-start", "--image", "/no/such.raw"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(!host.names().contains(&"bad".to_owned()));
}
