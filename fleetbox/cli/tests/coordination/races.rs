//! Verbs that get in each other's way at a chosen moment, and workers that do not answer.

use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Output};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::host::{Host, assert_nothing_left, eventually, said, succeeded};

/// A guest that ignores its power button.
const DEAF: &str = r#""Deaf""#;

/// Starts a command, and waits until it says `what`.
fn begun(mut command: Command, what: &str) -> Child {
    let mut child = command.spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let said = lines.find(|line| line.as_ref().is_ok_and(|line| line.contains(what)));
    assert!(said.is_some(), "it never says {what:?}");
    let (reader, writer) = std::io::pipe().unwrap();
    // What it says after that is the test's again.
    let mut writer = File::from(std::os::fd::OwnedFd::from(writer));
    std::thread::spawn(move || {
        for line in lines.map_while(Result::ok) {
            let _ = std::io::Write::write_all(&mut writer, format!("{line}\n").as_bytes());
        }
    });
    child.stderr = Some(std::os::fd::OwnedFd::from(reader).into());
    child
}

#[track_caller]
fn failed(output: &Output, parts: &[&str]) {
    assert_eq!(output.status.code(), Some(1), "{}", said(output));
    for part in parts {
        assert!(said(output).contains(part), "{part}: {}", said(output));
    }
}

#[test]
fn a_restart_beside_an_rm_makes_no_new_vm() {
    let host = Host::new("gone");
    succeeded(host.up().env("FLEETBOX_FAKE", DEAF).output().unwrap());
    let restart = || begun(host.command(&["restart", &host.stem]), "stopping");
    let restarting = restart();
    succeeded(host.run(&["rm", "--force", &host.stem]));
    failed(
        &restarting.wait_with_output().unwrap(),
        &[&format!("no VM named {}", host.stem)],
    );
    assert!(host.states().is_empty());
    eventually("nothing is left", || {
        is_empty(&host.home().join("clusters"))
    });

    // Nor does it touch the one that has the name by then.
    succeeded(host.up().env("FLEETBOX_FAKE", DEAF).output().unwrap());
    let restarting = restart();
    succeeded(host.run(&["rm", "--force", &host.stem]));
    succeeded(host.up().output().unwrap());
    let new = host.processes("machine", &host.stem);
    failed(&restarting.wait_with_output().unwrap(), &["no VM named"]);
    assert_eq!(host.processes("machine", &host.stem), new);
    assert_eq!(host.state(), "running");
}

#[test]
fn the_last_rm_does_not_wait_for_a_start_that_has_the_cluster() {
    let host = Host::new("last");
    succeeded(host.up().arg("--no-start").output().unwrap());
    let cluster = host.home().join("clusters").join(&host.stem);
    // As a start does while it creates another member.
    let lock = File::create(cluster.join("worker.lock")).unwrap();
    lock.lock().unwrap();
    let began = Instant::now();
    succeeded(host.run(&["rm", "--force", &host.stem]));
    assert!(began.elapsed() < Duration::from_secs(20), "{began:?}");
    assert!(host.states().is_empty());
    drop(lock);
    succeeded(host.run(&["prune", "--force"]));
    assert_nothing_left(&host.home());
}

#[test]
fn a_member_that_is_being_added_survives_the_rm_of_the_others() {
    let host = Host::new("added");
    let member = |index| format!("{0}/{0}-{index}", host.stem);
    let image = host.dir.path().join("disk.raw");
    let up = |index| {
        let name = member(index);
        let up = ["up", &name, "--disk", "8M", "--image"];
        let mut up = host.command(&up);
        up.arg(&image);
        up
    };
    for round in 0..5 {
        succeeded(up(1).output().unwrap());
        let adding = up(2).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(40 * round));
        succeeded(host.run(&["rm", "--force", &member(1)]));
        succeeded(adding.wait_with_output().unwrap());
        assert_eq!(host.state(), "running", "round {round}");
        succeeded(host.run(&["rm", "--force", &member(2)]));
    }
    assert_nothing_left(&host.home());
}

#[test]
fn a_name_is_free_once_rm_has_ended() {
    let host = Host::new("reuse");
    for round in 0..5 {
        let up = host.up().arg("--json").output().unwrap();
        let up = said(&succeeded(up));
        assert!(up.contains(r#""result": "running""#), "round {round}: {up}");
        if round % 2 == 0 {
            host.kill("machine", &host.stem);
        }
        succeeded(host.run(&["rm", "--force", &host.stem]));
        assert_nothing_left(&host.home());
    }
}

#[test]
fn a_bad_image_leaves_nothing_and_a_good_one_is_not_ignored() {
    let host = Host::new("image");
    let refuse = r#"{"Refuse": {"error": "it boots nothing"}}"#;
    let refused = host.up().env("FLEETBOX_FAKE", refuse).output().unwrap();
    let deleted = format!("; it was deleted again\n");
    failed(&refused, &["it boots nothing", &deleted]);
    assert!(host.states().is_empty());
    succeeded(host.up().output().unwrap());

    let other = host.dir.path().join("other.raw");
    std::fs::copy(host.dir.path().join("disk.raw"), &other).unwrap();
    let up = |options: &[&str]| {
        let mut up = host.command(&["up", &host.stem]);
        up.args(options).current_dir(host.dir.path());
        up.output().unwrap()
    };
    let rm = format!("`fleetbox rm {}`", host.stem);
    for options in [
        &["--image", "./other.raw"][..],
        &["--image", "./other.raw", "--no-start"],
        &["--image", "./other.raw", "--cpus", "1"],
        &["--disk", "16M"],
    ] {
        failed(&up(options), &["exists already and differs", &rm]);
    }
    let set = format!("`fleetbox set {} --cpus 1 --memory 1G`", host.stem);
    failed(&up(&["--cpus", "1", "--memory", "1G"]), &[&set]);
    // The same image by another path is the same.
    succeeded(up(&["--image", "./disk.raw", "--disk", "8M"]));

    // One that exists is kept when it cannot be started.
    succeeded(host.run(&["down", &host.stem]));
    let refused = host.up().env("FLEETBOX_FAKE", refuse).output().unwrap();
    failed(&refused, &["it boots nothing", "and its disk are kept"]);
    assert_eq!(host.states().len(), 1);
    succeeded(host.run(&["rm", "--force", &host.stem]));
}

#[test]
fn a_worker_that_is_killed_meanwhile_is_not_said_to_run_on() {
    let host = Host::new("fate");
    for _ in 0..3 {
        let mut up = host.up();
        up.args(["--wait", "console:never", "--timeout", "60"]);
        let up = begun(up, "waiting for /never/");
        host.kill("worker", &host.stem);
        let output = up.wait_with_output().unwrap();
        failed(&output, &["has stopped and keeps its disk"]);
        assert_eq!(host.state(), "stopped");
    }
}

#[test]
fn a_suspended_worker_is_ended_by_kill_and_by_rm_with_its_machine() {
    let host = Host::new("stop");
    succeeded(host.up().output().unwrap());
    let suspend = |roles: &[&str]| {
        for role in roles {
            for pid in host.processes(role, &host.stem) {
                kill(pid, Signal::SIGSTOP).unwrap();
            }
        }
    };
    let within = |limit, arguments: &[&str]| {
        let began = Instant::now();
        let output = host.run(arguments);
        let took = began.elapsed();
        assert!(took < Duration::from_secs(limit), "{arguments:?}: {took:?}");
        output
    };
    suspend(&["worker"]);
    assert_eq!(host.state(), "running");
    let hint = "end the VM with `fleetbox kill`";
    let shown = succeeded(within(30, &["show", &host.stem]));
    assert!(
        said(&shown).contains("has not answered"),
        "{}",
        said(&shown)
    );
    failed(&within(30, &["down", &host.stem]), &[hint]);
    let killed = succeeded(within(30, &["kill", &host.stem]));
    assert!(said(&killed).contains("was killed"), "{}", said(&killed));
    assert_eq!(host.state(), "stopped");
    assert!(processes(&host).is_empty());

    succeeded(host.up().output().unwrap());
    suspend(&["machine", "worker"]);
    succeeded(within(30, &["down", "--force", &host.stem]));
    assert_eq!(host.state(), "stopped");
    assert!(processes(&host).is_empty());

    succeeded(host.up().output().unwrap());
    suspend(&["machine", "worker"]);
    succeeded(within(60, &["rm", "--force", &host.stem]));
    assert!(processes(&host).is_empty());
    assert_nothing_left(&host.home());
}

#[test]
fn a_suspended_machine_ends_with_its_killed_worker() {
    let host = Host::new("frozen");
    succeeded(host.up().output().unwrap());
    for pid in host.processes("machine", &host.stem) {
        kill(pid, Signal::SIGSTOP).unwrap();
    }
    host.kill("worker", &host.stem);
    eventually("the machine ends", || processes(&host).is_empty());
    assert_eq!(host.state(), "stopped");
}

#[test]
fn a_start_that_waits_for_memory_sleeps_until_there_is_some() {
    let host = Host::new("sleep");
    let name = |index| format!("{}-{index}", host.stem);
    let image = host.dir.path().join("disk.raw");
    let up = |index| {
        let mut up = host.command(&["up", &name(index), "--disk", "8M", "--memory", "400M"]);
        up.arg("--image").arg(&image);
        up.env("FLEETBOX_MEMORY_BUDGET", "600M");
        up
    };
    succeeded(up(1).output().unwrap());
    let waiting = begun(up(2), "waits for memory");
    let pid = Pid::from_raw(waiting.id() as i32);
    std::thread::sleep(Duration::from_secs(1));
    let before = wake_ups(pid);
    std::thread::sleep(Duration::from_secs(3));
    let woken = wake_ups(pid) - before;
    // With a look each 100 ms it would be sixty, in two threads.
    assert!(woken <= 15, "{woken}");
    // Killed, so that nothing is cleared away by its worker.
    for role in ["worker", "machine"] {
        for pid in host.processes(role, &name(1)) {
            let _ = kill(pid, Signal::SIGKILL);
        }
    }
    succeeded(waiting.wait_with_output().unwrap());
    for index in [1, 2] {
        succeeded(host.run(&["rm", "--force", &name(index)]));
    }
}

#[test]
fn a_full_disk_of_the_host_is_shown() {
    let host = Host::new("full");
    let full = r#"{"Full": {"console": "", "error": "cannot write: No space left on device"}}"#;
    succeeded(host.up().env("FLEETBOX_FAKE", full).output().unwrap());
    let error = "disk: cannot write: No space left on device";
    let shown = || said(&succeeded(host.run(&["show", &host.stem])));
    eventually("it is shown", || {
        shown().contains(&format!("device error  {error}\n"))
    });
    let listed = said(&succeeded(host.run(&["ls"])));
    assert!(listed.contains("running, device error"), "{listed}");
    let json = said(&succeeded(host.run(&["ls", "--json"])));
    assert!(
        json.contains(&format!("\"device_error\": \"{error}\"")),
        "{json}"
    );
    let down = succeeded(host.run(&["down", &host.stem]));
    assert!(said(&down).contains(error), "{}", said(&down));
    assert!(shown().contains(error));
    // The next start may find space again.
    succeeded(host.up().output().unwrap());
    assert!(!shown().contains("device error"));
    succeeded(host.run(&["rm", "--force", &host.stem]));
}

/// How often the threads of a process have been woken.
fn wake_ups(pid: Pid) -> u64 {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let count = |task: &Path| {
        let status = std::fs::read_to_string(task.join("status")).unwrap_or_default();
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        line.map_or(0, |count| count.trim().parse().unwrap())
    };
    tasks.flatten().map(|task| count(&task.path())).sum()
}

fn is_empty(dir: &Path) -> bool {
    std::fs::read_dir(dir).unwrap().next().is_none()
}

/// The worker and the machines.
fn processes(host: &Host) -> Vec<Pid> {
    let roles = ["worker", "machine"].into_iter();
    roles
        .flat_map(|role| host.processes(role, &host.stem))
        .collect()
}
