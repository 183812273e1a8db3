//! `doctor`.

use std::fs;

use crate::host::Host;

#[test]
fn doctor_creates_nothing() {
    let host = Host::new();
    let queue = host.dir.path().join("queue/below");
    let state = host.dir.path().join("above/state");
    let output = host
        .command(&["doctor"])
        .env("FLEETBOX_HOME", &state)
        .env("FLEETBOX_BUDGET_DIR", &queue)
        .output()
        .expect("it runs");
    let text = String::from_utf8_lossy(&output.stdout);
    let expected = format!(
        "ok   state: {}, which the first VM creates\n",
        state.display()
    );
    assert!(text.contains(&expected), "{text}");
    for check in [
        "ok   queue: ",
        "ok   vms: 0 in total, 0 running\n",
        " space: ",
        "ok   images: ",
    ] {
        assert!(text.contains(check), "{check}: {text}");
    }
    let left = fs::read_dir(host.dir.path()).expect("a directory").count();
    assert_eq!(left, 0);
    // One that exists is not changed, either.
    fs::create_dir_all(&state).expect("a directory");
    let output = host
        .command(&["doctor"])
        .env("FLEETBOX_HOME", &state)
        .output();
    let output = output.expect("it runs");
    let text = String::from_utf8_lossy(&output.stdout);
    let expected = format!("ok   state: {}\n", state.display());
    assert!(text.contains(&expected), "{text}");
    assert_eq!(fs::read_dir(&state).expect("a directory").count(), 0);
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
