//! `up`, as far as no VM is started.

use std::io::Write as _;
use std::path::Path;

use crate::host::Host;

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
    assert_eq!(host.full_names(), ["node/node-1", "node/node-2"]);
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

/// A public key, as `ssh-keygen` writes it.
fn key(comment: &str) -> String {
    let pair = fleetbox::ssh::Keypair::generate(comment).expect("a key");
    pair.public().to_string()
}

#[test]
fn options_configure_the_guest() {
    let host = Host::new();
    let image = &host.image();
    let write = |name: &str, text: &str| {
        let path = host.dir.path().join(name);
        std::fs::write(&path, text).expect("a file");
        path.to_str().expect("UTF-8").to_owned()
    };
    let all = ["a", "b", "c"].map(key);
    let keys = write(
        "authorized_keys",
        &format!("# mine\n{}\n\n{}\r\n", all[0], all[1]),
    );
    let key = write("id.pub", &format!("{}\n", all[2]));
    let variables = write("variables", "# these\nA=file\nB=1\n");
    let disk = write("data.raw", &"x".repeat(1 << 20));
    let read_only = format!("{disk}:ro");
    let mut command = host.command(&[
        "up",
        "web",
        "--no-start",
        "--image",
        image,
        "--user",
        "admin",
        "--ssh-key",
        &keys,
        "--ssh-key",
        &key,
        "--package",
        "curl",
        "--package",
        "jq",
        "--run",
        "echo a: b",
        "--run",
        "true",
        "--env",
        "A=x y=z",
        "--env",
        "FROM_HERE",
        "--env-file",
        &variables,
        "--extra-disk",
        "64M",
        "--extra-disk",
        &read_only,
    ]);
    assert!(
        command
            .env("FROM_HERE", "here")
            .status()
            .expect("it runs")
            .success()
    );
    let record = host
        .store()
        .vms()
        .expect("VMs")
        .remove(0)
        .record()
        .expect("a record");
    assert_eq!(record.ssh_user, "admin");
    let config = &record.config;
    assert_eq!(config.authorized_keys, all);
    assert_eq!(config.packages, ["curl", "jq"]);
    assert_eq!(config.commands, ["echo a: b", "true"]);
    let variables = [("A", "x y=z"), ("B", "1"), ("FROM_HERE", "here")];
    let variables = variables.map(|(name, value)| (name.to_owned(), value.to_owned()));
    assert_eq!(
        config.environment,
        std::collections::BTreeMap::from(variables)
    );
    let disks: Vec<_> = record.extra_disks.iter().map(ToString::to_string).collect();
    assert_eq!(disks.len(), 2);
    assert_eq!(disks[0], "64M, empty");
    assert!(disks[1].ends_with("data.raw, read-only"), "{disks:?}");
}

#[test]
fn what_is_wrong_in_an_option_that_configures_the_guest_is_said() {
    let host = Host::new();
    let write = |name: &str, text: &str| {
        let path = host.dir.path().join(name);
        std::fs::write(&path, text).expect("a file");
        path.to_str().expect("UTF-8").to_owned()
    };
    let private = write("id", "-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n");
    let empty = write("empty", "# nothing\n");
    let bad = write("bad", &format!("{}\nhello\n", key("a")));
    let variables = write("variables", "A=1\n=2\n");
    for (options, why) in [
        (["--ssh-key", &private], "private key"),
        (["--ssh-key", &empty], "no key in it"),
        (["--ssh-key", &bad], "bad: line 2: "),
        (["--ssh-key", "/no/such.pub"], "/no/such.pub"),
        (["--env-file", &variables], "variables: line 2: "),
        (["--env", "=x"], "NAME=VALUE"),
        (["--env", "NOT_SET_ANYWHERE"], "NAME=VALUE"),
        (["--env", "A=\u{7f}"], "control character"),
        (["--package", "a b"], "invalid package"),
        (["--run", " "], "empty"),
        (["--user", "Root"], "invalid user name"),
        (["--extra-disk", ""], "a size or the path"),
        (["--extra-disk", "/no/such.raw"], "/no/such.raw"),
        (["--extra-disk", "7"], "7"),
    ] {
        let output = host.run(&[&["up", "web", "--no-start"][..], &options].concat());
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{options:?}: {output:?}");
        assert!(error.contains(why), "{options:?}: {error}");
    }
    assert!(!host.state().exists(), "something was created");
}

#[test]
fn a_vm_is_created_without_being_started() {
    let host = Host::new();
    let image = &host.image();
    let up = ["up", "web", "--no-start", "--image", image, "--cpus", "1"];
    assert!(host.ends(0, &up).starts_with("web was created;"));
    assert!(host.ends(0, &up).starts_with("web exists already;"));
    let list: serde_json::Value =
        serde_json::from_str(&host.ends(0, &["ls", "--json"])).expect("JSON");
    assert_eq!(
        (&list[0]["state"], &list[0]["cpus"]),
        (&"stopped".into(), &1.into())
    );
    // Without a name it gets a random one.
    let text = host.ends(0, &["up", "--no-start", "--image", image]);
    let name = text.split(' ').next().expect("a name");
    assert!(host.names().contains(&name.to_owned()), "{text}");
    // It is the result, so --quiet prints it too.
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
