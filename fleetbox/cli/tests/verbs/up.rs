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
