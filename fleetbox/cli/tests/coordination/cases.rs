//! The cases.

use std::io::BufRead as _;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Output};

use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{SigHandler, Signal, signal};
use serde_json::Value;

use crate::host::{Host, RUNS, assert_nothing_left, eventually, said, succeeded};

#[test]
fn commands_at_once_start_one_machine_and_stop_it_once() {
    let host = Host::new("once");
    let children: Vec<Child> = (0..3).map(|_| host.up().spawn().unwrap()).collect();
    for child in children {
        succeeded(child.wait_with_output().unwrap());
    }
    assert_eq!(host.state(), "running");
    assert_eq!(host.processes("machine", &host.stem).len(), 1);
    assert_eq!(host.processes("worker", &host.stem).len(), 1);
    let children: Vec<Child> = (0..3)
        .map(|_| host.command(&["down", &host.stem]).spawn().unwrap())
        .collect();
    for child in children {
        succeeded(child.wait_with_output().unwrap());
    }
    assert_eq!(host.state(), "stopped");
}

#[test]
fn a_killed_worker_takes_its_machine_along_and_its_socket_means_nothing() {
    let host = Host::new("work");
    succeeded(host.up().output().unwrap());
    host.kill("worker", &host.stem);
    eventually("the machine ends", || {
        host.processes("machine", &host.stem).is_empty()
    });
    assert!(host.socket().exists(), "a killed worker removes nothing");
    assert_eq!(host.state(), "stopped");
    succeeded(host.up().output().unwrap());
    assert_eq!(host.state(), "running");
    succeeded(host.run(&["rm", "--force", &host.stem]));
    assert!(host.states().is_empty());
}

#[test]
fn a_file_in_the_sockets_place_does_no_harm() {
    let host = Host::new("sock");
    succeeded(host.up().output().unwrap());
    succeeded(host.run(&["down", &host.stem]));
    eventually("the worker ends", || {
        host.processes("worker", &host.stem).is_empty()
    });
    std::fs::write(host.socket(), "no socket").unwrap();
    assert_eq!(host.state(), "stopped");
    assert!(succeeded(host.run(&["down", &host.stem])).stderr.is_empty());
    succeeded(host.up().output().unwrap());
    assert_eq!(host.state(), "running");
}

#[test]
fn a_killed_machine_is_that_members_failure() {
    let host = Host::new("mach");
    succeeded(host.up().args(["-n", "3"]).output().unwrap());
    let member = |index| format!("{}-{index}", host.stem);
    host.kill("machine", &member(2));
    let expected = |second: &str| {
        [(1, "running"), (2, second), (3, "running")]
            .map(|(index, state)| (member(index), state.to_owned()))
    };
    eventually("it has failed", || host.states() == expected("failed"));
    let shown = said(&succeeded(host.run(&["show", &member(2)])));
    assert!(
        shown.contains("failure       ") && shown.contains("signal SIGKILL"),
        "{shown}"
    );
    assert!(shown.contains("login:"), "{shown}");
    let before = host.processes("machine", &member(1));
    succeeded(host.run(&["up", &member(2)]));
    assert_eq!(host.states(), expected("running"));
    assert_eq!(host.processes("machine", &member(1)), before);
}

#[test]
fn published_ports_are_shown_while_the_vm_runs() {
    let host = Host::new("publ");
    let result = |output: Output| {
        let vms: Value = serde_json::from_slice(&succeeded(output).stdout).unwrap();
        assert_eq!(vms[0]["state"], "running", "{vms}");
        vms[0]["result"].clone()
    };
    let up = host.up().arg("--json").output().unwrap();
    assert_eq!(result(up), "running");
    // Any that is free.
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = free.local_addr().unwrap().port();
    drop(free);
    let publish = format!("{port}:80");
    let up = host.run(&["up", &host.stem, "--publish", &publish, "--json"]);
    assert_eq!(result(up), "already-running");
    let shown = || {
        let output = succeeded(host.run(&["show", &host.stem, "--json"]));
        let shown: Value = serde_json::from_slice(&output.stdout).unwrap();
        shown["published"].clone()
    };
    let address = format!("127.0.0.1:{port}");
    assert_eq!(
        shown(),
        serde_json::json!([{"address": address, "port": 80}])
    );
    let text = said(&succeeded(host.run(&["show", &host.stem])));
    assert!(
        text.contains(&format!("published     {address} -> guest port 80\n")),
        "{text}"
    );
    succeeded(host.run(&["down", &host.stem]));
    assert_eq!(shown(), serde_json::json!([]));
}

#[test]
fn each_phase_is_a_line_where_there_is_no_terminal() {
    let host = Host::new("phase");
    let name = &host.stem;
    let lines = |output: Output| {
        let output = succeeded(output);
        let text = String::from_utf8(output.stderr).unwrap();
        // Timings are not phases.
        let lines = text.lines().filter(|line| !line.starts_with("preflight"));
        lines.map(str::to_owned).collect::<Vec<_>>()
    };
    let awaited = ["--wait", "console:login"];
    let up = || host.up().args(awaited).args(["-n", "2"]).output().unwrap();
    let starting = format!("starting cluster {name}");
    let waiting = "waiting for /login/ on the console";
    let expected = [starting.clone(), format!("{starting}: {waiting}")];
    assert_eq!(lines(up()), expected);
    // They run already.
    assert_eq!(lines(up()), [""; 0]);
    let restarting = format!("restarting {name}/{name}-1");
    assert_eq!(
        lines(host.run(&["restart", &format!("{name}-1")])),
        [
            format!("{restarting}: stopping"),
            format!("{restarting}: starting")
        ]
    );
    assert_eq!(
        lines(host.run(&["down", name])),
        [format!("stopping {name}/{name}-1 and {name}/{name}-2")]
    );
    assert_eq!(lines(host.run(&["down", name])), [""; 0]);
    let quiet = host.up().args(["-q", "-n", "2"]).output().unwrap();
    assert!(succeeded(quiet).stderr.is_empty());
}

#[test]
fn a_member_is_meant_by_its_clusters_name_and_its_own() {
    let host = Host::new("memb");
    succeeded(host.up().args(["-n", "2"]).output().unwrap());
    let member = |index| format!("{}-{index}", host.stem);
    let first = format!("{}/{}", host.stem, member(1));
    let expected = |state: &str| {
        [(1, state), (2, "running")].map(|(index, state)| (member(index), state.to_owned()))
    };
    let untouched = host.processes("machine", &member(2));
    let down = succeeded(host.run(&["down", &first, "--json"]));
    assert_eq!(
        serde_json::from_slice::<Value>(&down.stdout).unwrap(),
        serde_json::json!([{"name": member(1), "cluster": host.stem, "result": "powered-off"}])
    );
    assert_eq!(host.states(), expected("stopped"));
    let up = succeeded(host.run(&["up", &first]));
    assert!(
        said(&up).contains(&format!("{first} is running;")),
        "{}",
        said(&up)
    );
    for verb in ["restart", "kill", "restart"] {
        succeeded(host.run(&[verb, &first]));
    }
    assert_eq!(host.states(), expected("running"));
    assert_eq!(host.processes("machine", &member(2)), untouched);
    let none = host.run(&["restart", &format!("{}/none", host.stem)]);
    assert!(
        said(&none).contains("has no member none"),
        "{}",
        said(&none)
    );
    succeeded(host.run(&["rm", "--force", &host.stem]));
    assert!(host.states().is_empty());
}

#[test]
fn a_cluster_is_restarted_as_one_or_not_at_all() {
    let host = Host::new("again");
    let mut up = host.up();
    succeeded(up.args(["-n", "2", "--memory", "128M"]).output().unwrap());
    let member = |index| format!("{}-{index}", host.stem);
    let machines = || [1, 2].map(|index| host.processes("machine", &member(index)));
    let before = machines();
    let restart = |budget| {
        let mut restart = host.command(&["restart", &host.stem, "--json"]);
        restart.env("FLEETBOX_MEMORY_BUDGET", budget);
        restart.output().unwrap()
    };
    // There is memory for each of them, but not for both.
    let refused = restart("200M");
    assert!(!refused.status.success(), "{}", said(&refused));
    assert!(
        said(&refused).contains(&format!("cannot start {} and 1 more", member(1))),
        "{}",
        said(&refused)
    );
    assert_eq!(machines(), before);
    let restarted = succeeded(restart("256M"));
    let outcome = |index| {
        let name = member(index);
        serde_json::json!({"name": name, "cluster": host.stem, "result": "running"})
    };
    assert_eq!(
        serde_json::from_slice::<Value>(&restarted.stdout).unwrap(),
        Value::from([1, 2].map(outcome).to_vec())
    );
    for (before, after) in before.iter().zip(machines()) {
        assert!(after.len() == 1 && *before != after, "{before:?} {after:?}");
    }
    // One that runs and one that does not.
    succeeded(host.run(&["down", &member(2)]));
    succeeded(host.run(&["restart", &host.stem]));
    let states = [1, 2].map(|index| (member(index), "running".to_owned()));
    assert_eq!(host.states(), states);
    succeeded(host.run(&["rm", "--force", &host.stem]));
    assert!(host.states().is_empty());
}

#[test]
fn a_killed_command_leaves_a_vm_that_the_next_one_starts() {
    let host = Host::new("cmd");
    let mut child = host.up().spawn().unwrap();
    // In the middle of its work: the VM is being created.
    let cluster = host.home().join("clusters").join(&host.stem);
    eventually("it begins", || cluster.exists());
    child.kill().unwrap();
    child.wait().unwrap();
    succeeded(host.up().output().unwrap());
    assert_eq!(host.state(), "running");
    succeeded(host.run(&["rm", "--force", &host.stem]));
    assert!(host.states().is_empty());
}

#[test]
fn memory_is_shared_by_all_state_directories_of_the_host() {
    let (one, two) = (Host::new("shareone"), Host::new("sharetwo"));
    let up = |host: &Host| {
        let mut command = host.up();
        command
            .args(["--memory", "400M"])
            .env("FLEETBOX_BUDGET_DIR", one.dir.path().join("budget"))
            .env("FLEETBOX_MEMORY_BUDGET", "600M");
        command
    };
    succeeded(up(&one).output().unwrap());
    let mut waiting = up(&two).spawn().unwrap();
    let mut stderr = std::io::BufReader::new(waiting.stderr.take().unwrap()).lines();
    let wanted = format!(
        "400M of 600M are in use by {} (400M, of another state",
        one.stem
    );
    let line = stderr.find(|line| line.as_ref().unwrap().contains("waits for memory"));
    let line = line.unwrap().unwrap();
    assert!(line.contains(&wanted), "{line}");
    assert!(waiting.try_wait().unwrap().is_none());

    // What a killed machine had is free at once, and what a killed worker's had.
    one.kill("machine", &one.stem);
    let rest: Vec<_> = stderr.map(Result::unwrap).collect();
    assert!(waiting.wait().unwrap().success(), "{rest:?}");
    let mut waiting = up(&one).spawn().unwrap();
    let queue = one.dir.path().join("budget");
    let waits = || {
        let mut files = std::fs::read_dir(&queue).unwrap().flatten();
        files.any(|file| {
            file.path()
                .extension()
                .is_some_and(|kind| kind == "waiting")
        })
    };
    eventually("the start waits", waits);
    two.kill("worker", &two.stem);
    assert!(waiting.wait().unwrap().success());
    succeeded(one.run(&["down", &one.stem]));
    // A worker removes what it has written; what is left of a killed one counts for nothing.
    succeeded(up(&two).output().unwrap());
    succeeded(two.run(&["down", &two.stem]));
    assert_eq!(std::fs::read_dir(&queue).unwrap().count(), 0);
}

#[test]
fn a_queue_that_cannot_be_is_an_error_that_says_so() {
    let host = Host::new("noqueue");
    let mut command = host.up();
    command.env("FLEETBOX_BUDGET_DIR", host.dir.path().join("disk.raw"));
    let output = command.output().unwrap();
    assert!(!output.status.success());
    let said = said(&output);
    assert!(
        said.contains("disk.raw") && said.contains("FLEETBOX_BUDGET_DIR"),
        "{said}"
    );
}

#[test]
fn a_signal_is_the_plug_or_the_button_or_refused_before_anything_happens() {
    let host = Host::new("sig");
    succeeded(host.up().output().unwrap());
    let kill = |signal| host.run(&["kill", &host.stem, "--signal", signal]);
    let refused = kill("HUP");
    assert_eq!(refused.status.code(), Some(2), "{}", said(&refused));
    assert_eq!(host.state(), "running");
    for signal in ["INT", "sigkill"] {
        succeeded(kill(signal));
        eventually("it ends", || host.state() == "stopped");
        succeeded(host.up().output().unwrap());
    }
}

#[test]
fn a_worker_of_another_version_is_named_and_left_alone() {
    let host = Host::new("vers");
    let other = "FLEETBOX_FAKE_PROTOCOL";
    succeeded(host.up().env(other, "9999").output().unwrap());
    for arguments in [&["down", &host.stem][..], &["up", &host.stem]] {
        let refused = host.run(arguments);
        assert!(!refused.status.success(), "{}", said(&refused));
        assert!(
            said(&refused).contains("cannot talk to"),
            "{}",
            said(&refused)
        );
    }
    // What needs no worker works, and the machine has not been touched.
    assert_eq!(host.state(), "running");
    succeeded(
        host.command(&["down", &host.stem])
            .env(other, "9999")
            .output()
            .unwrap(),
    );
    assert_eq!(host.state(), "stopped");
}

#[test]
fn a_host_that_cannot_store_a_vm_has_none_of_it() {
    let host = Host::new("full");
    let mut up = host.up();
    let limit = || {
        // As on a full disk a write fails, here for files of more than so many bytes.
        setrlimit(Resource::RLIMIT_FSIZE, 2048, 2048)?;
        // SAFETY: no handler is installed, so none runs in the child of a process with threads.
        unsafe { signal(Signal::SIGXFSZ, SigHandler::SigIgn) }?;
        Ok(())
    };
    // SAFETY: the closure only makes two system calls and allocates nothing.
    unsafe { up.pre_exec(limit) };
    let output = up.output().unwrap();
    assert!(!output.status.success(), "{}", said(&output));
    assert!(
        said(&output).contains("File too large"),
        "{}",
        said(&output)
    );
    assert!(host.states().is_empty());
    assert_nothing_left(&host.home());
    succeeded(host.up().output().unwrap());
    assert_eq!(host.state(), "running");
}

#[test]
fn what_fails_after_the_boot_says_what_has_become_of_the_vm() {
    let host = Host::new("late");
    let taken = std::net::TcpListener::bind((std::net::Ipv4Addr::LOCALHOST, 0)).unwrap();
    let publish = format!("{}:80", taken.local_addr().unwrap().port());
    let refused = host.up().args(["--publish", &publish]).output().unwrap();
    assert_eq!(refused.status.code(), Some(1), "{}", said(&refused));
    assert!(host.states().is_empty(), "found out before the boot");

    // One that runs may have the port itself, so that is found out by opening it.
    succeeded(host.up().output().unwrap());
    let failed = host.run(&["up", &host.stem, "--publish", &publish]);
    assert_eq!(failed.status.code(), Some(1), "{}", said(&failed));
    for part in [
        &format!("cannot publish port 80 of {}", host.stem),
        &format!("{} is running; publish another port", host.stem),
    ] {
        assert!(said(&failed).contains(part), "{}", said(&failed));
    }
    assert_eq!(host.state(), "running");
    drop(taken);
    for _ in 0..2 {
        succeeded(host.run(&["up", &host.stem, "--publish", &publish]));
    }
    succeeded(host.run(&["rm", "--force", &host.stem]));

    // Found wanting by what is waited for, it runs on; failed, it is left.
    for (script, limit, told) in [
        (RUNS, "1", "is still running and keeps its memory"),
        (
            r#"{"Fail": {"console": "", "error": "the CPU has caught fire"}}"#,
            // It ends by itself, on a busy host later than on others.
            "60",
            "and its disk are kept: `fleetbox logs",
        ),
    ] {
        let wait = ["--wait", "console:never", "--timeout", limit];
        let mut up = host.up();
        let failed = up.args(wait).env("FLEETBOX_FAKE", script).output().unwrap();
        assert_eq!(failed.status.code(), Some(1), "{}", said(&failed));
        let told = format!("{} {told}", host.stem);
        assert!(said(&failed).contains(&told), "{}", said(&failed));
        let state = if script == RUNS { "running" } else { "failed" };
        assert_eq!(host.state(), state);
        succeeded(host.run(&["rm", "--force", &host.stem]));
    }

    // SSH does not answer, so no tree can be copied.
    let tree = host.dir.path().join("tree");
    std::fs::create_dir(&tree).unwrap();
    let git = Command::new("git")
        .arg("-C")
        .arg(&tree)
        .arg("init")
        .output();
    assert!(git.unwrap().status.success());
    let image = host.dir.path().join("disk.raw");
    let mut run = host.command(&["run", "-d", "--name", &host.stem, "--disk", "8M", "--image"]);
    let failed = run.arg(image).arg(tree).output().unwrap();
    assert_eq!(failed.status.code(), Some(255), "{}", said(&failed));
    let told = format!("deleted {} again", host.stem);
    assert!(said(&failed).contains(&told), "{}", said(&failed));
    assert!(host.states().is_empty());
}
