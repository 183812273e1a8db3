//! What worker and machine processes may do, and who may talk to them.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::os::unix::process::CommandExt as _;

use nix::unistd::{Uid, geteuid};

use super::super::client::Client;
use super::super::log::LIMIT as LOG_LIMIT;
use super::*;

/// A user who owns nothing.
const NOBODY: u32 = 65534;

/// Where the process of [`a_client_of_another_user`] finds the socket.
const SOCKET_VARIABLE: &str = "FLEETBOX_TEST_SOCKET_IN";

/// A user who is not the superuser, to whom `fixture` is given.
fn plain_user(fixture: &Fixture) -> Uid {
    let user = geteuid();
    if !user.is_root() {
        return user;
    }
    each_entry(fixture._dir.path(), &|path| {
        chown(path, Some(NOBODY), Some(NOBODY)).unwrap();
    });
    Uid::from_raw(NOBODY)
}

/// Calls `change` with a directory and everything in it.
fn each_entry(path: &Path, change: &dyn Fn(&Path)) {
    change(path);
    if path.is_dir() {
        for entry in std::fs::read_dir(path).unwrap() {
            each_entry(&entry.unwrap().path(), change);
        }
    }
}

/// Lets a command run as that user, which changes nothing if it is this process's.
fn run_as(user: Uid) -> impl FnOnce(&mut Command) -> &mut Command {
    move |command| {
        if user != geteuid() {
            command.uid(user.as_raw()).gid(user.as_raw());
        }
        command
    }
}

#[test]
fn neither_process_inherits_more_than_it_is_given() {
    let fixture = Fixture::new();
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    // Inheritable, as a careless program's files are.
    nix::fcntl::fcntl(
        &theirs,
        nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty()),
    )
    .unwrap();
    let (_attached, started) = fixture.start(Lifetime::Bound, runs());
    assert!(!started.unwrap());
    drop(theirs);
    // The end comes when no process has the other one any more. Children of other tests may, for as
    // long as they run.
    ours.set_read_timeout(Some(SECONDS)).unwrap();
    assert_eq!(ours.read(&mut [0]).unwrap(), 0);
    assert!(fixture.vm().unwrap().is_running().unwrap());
}

#[test]
fn a_machine_process_gains_nothing_and_opens_little() {
    let fixture = Fixture::new();
    let (_attached, started) = fixture.start(Lifetime::Bound, runs());
    assert!(!started.unwrap());
    let machine = fixture.processes(Role::Machine)[0];
    let read = |name| std::fs::read_to_string(format!("/proc/{machine}/{name}")).unwrap();
    assert!(read("status").contains("NoNewPrivs:\t1\n"));
    let limits = read("limits");
    // What is allowed, and what it could allow itself.
    let limit = |name: &str| {
        let line = limits.lines().find_map(|line| line.strip_prefix(name));
        let values: Vec<_> = line.expect(name).split_whitespace().take(2).collect();
        values.join(" ")
    };
    assert_eq!(limit("Max core file size"), "0 0");
    assert_eq!(limit("Max open files"), "1024 1024");
}

#[test]
fn a_machine_process_has_no_capability() {
    let fixture = Fixture::new();
    let (_attached, started) = fixture.start(Lifetime::Bound, runs());
    assert!(!started.unwrap());
    let machine = fixture.processes(Role::Machine)[0];
    // Each thread has its own.
    for thread in std::fs::read_dir(format!("/proc/{machine}/task")).unwrap() {
        let status = std::fs::read_to_string(thread.unwrap().path().join("status")).unwrap();
        for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
            let line = status.lines().find(|line| line.starts_with(set));
            let (_, mask) = line.unwrap().split_once(':').unwrap();
            let mask = u64::from_str_radix(mask.trim(), 16).unwrap();
            // What a user could gain is only root's to drop, and cannot be gained.
            if set != "CapBnd" || geteuid().is_root() {
                assert_eq!(mask, 0, "{set} of a thread: {mask:x}");
            }
        }
    }
}

#[test]
fn no_process_has_the_users_environment() {
    if !geteuid().is_root() {
        return skip("only root may read a machine process's environment");
    }
    let fixture = Fixture::new();
    let (mut owner, mut control) = fixture.owner_by(Lifetime::Bound, runs(), |command| {
        command
            .env("MY_SECRET", "hunter2")
            .env("FLEETBOX_CATALOGUE", "/nowhere")
            .env("FLEETBOX_LOG", "info")
    });
    assert_eq!(answer(&mut control), Ok(false));
    let names = |role| {
        let process = fixture.processes(role)[0];
        let environment = std::fs::read(format!("/proc/{process}/environ")).unwrap();
        let mut names: Vec<String> = String::from_utf8(environment)
            .unwrap()
            .split_terminator('\0')
            .map(|variable| variable.split_once('=').unwrap().0.to_owned())
            // Where this test was started with libraries of its own.
            .filter(|name| name != "LD_LIBRARY_PATH")
            .collect();
        names.sort();
        names
    };
    assert_eq!(names(Role::Machine), ["FLEETBOX_LOG", "FLEETBOX_PROCESS"]);
    let worker = names(Role::Worker);
    assert!(worker.contains(&"FLEETBOX_LOG".to_owned()), "{worker:?}");
    assert!(
        worker.iter().all(|name| name.starts_with("FLEETBOX_")),
        "{worker:?}"
    );
    drop(control);
    owner.wait().unwrap();
    fixture.assert_quiet();
}

#[test]
fn a_machine_process_has_only_what_it_was_given() {
    if !geteuid().is_root() {
        return skip("only root may see what a machine process has open");
    }
    let fixture = Fixture::new();
    let (_attached, started) = fixture.start(Lifetime::Bound, runs());
    assert!(!started.unwrap());
    let machine = fixture.processes(Role::Machine)[0];
    let cluster = fixture.store.cluster(&fixture.name);
    let vm = fixture.vm().unwrap();
    let files = [Path::new("/dev/null"), &cluster.log(), &vm.paths().lock()];
    let mut sockets = std::collections::BTreeSet::new();
    for fd in std::fs::read_dir(format!("/proc/{machine}/fd")).unwrap() {
        let open = std::fs::read_link(fd.unwrap().path()).unwrap();
        if open.to_str().unwrap().starts_with("socket:") {
            sockets.insert(open);
        } else {
            assert!(files.contains(&open.as_path()), "{}", open.display());
        }
    }
    assert_eq!(sockets.len(), 2, "the worker's and the network's");
}

#[test]
fn other_processes_of_the_user_do_not_read_a_machine() {
    let fixture = Fixture::new();
    let user = plain_user(&fixture);
    let (mut owner, mut control) = fixture.owner_by(Lifetime::Bound, runs(), run_as(user));
    assert_eq!(answer(&mut control), Ok(false));
    // The files of a process that is not dumpable are the superuser's.
    let owner_of = |role| {
        let process = fixture.processes(role)[0];
        let found = std::fs::metadata(format!("/proc/{process}/mem")).unwrap();
        Uid::from_raw(found.uid())
    };
    assert_eq!(owner_of(Role::Worker), user);
    assert!(owner_of(Role::Machine).is_root());
    drop(control);
    owner.wait().unwrap();
    fixture.assert_quiet();
}

#[test]
fn the_workers_socket_refuses_another_user() {
    if !geteuid().is_root() {
        return skip("only root can be another user");
    }
    let fixture = Fixture::new();
    let user = plain_user(&fixture);
    let (mut owner, mut control) = fixture.owner_by(Lifetime::Bound, runs(), run_as(user));
    assert_eq!(answer(&mut control), Ok(false));
    let cluster = fixture.store.cluster(&fixture.name);
    let asks = |user: Uid| {
        let mut command = Command::new("/proc/self/exe");
        let name = "process::tests::confinement::a_client_of_another_user";
        command
            .args(["--exact", name, "--ignored", "--nocapture"])
            .env(SOCKET_VARIABLE, cluster.path());
        let output = run_as(user)(&mut command).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        let text = String::from_utf8(output.stdout).unwrap();
        let answer = text.lines().find_map(|line| line.split_once("answer: "));
        answer.expect(&text).1.to_owned()
    };
    let other = Uid::from_raw(NOBODY - 1);
    assert!(
        asks(other).starts_with("cannot talk to the worker process of "),
        "the directory is private"
    );
    // Nor where a careless umask or chmod has let everybody in.
    each_entry(fixture._dir.path(), &|path| {
        let everybody = std::fs::Permissions::from_mode(0o777);
        std::fs::set_permissions(path, everybody).unwrap();
    });
    assert_eq!(asks(user), "1 VM");
    let lost = asks(other);
    assert!(lost.starts_with("lost the worker process of "), "{lost}");
    drop(control);
    owner.wait().unwrap();
    fixture.assert_quiet();
}

#[test]
#[ignore = "the other process of a test of this module"]
fn a_client_of_another_user() {
    let dir = std::env::var_os(SOCKET_VARIABLE).expect("run by another test");
    let client = Client::new("cluster", Path::new(&dir));
    match runtime().block_on(client.list()) {
        Ok(machines) => println!("\nanswer: {} VM", machines.len()),
        Err(error) => println!("\nanswer: {error:?}"),
    }
}

#[test]
fn a_process_logs_no_more_than_its_limit() {
    let log = tempfile::NamedTempFile::new().unwrap();
    let file = log.reopen().unwrap();
    let (mut process, _control) = run_task(&Task::Log(LOG_LIMIT + (1 << 20)), |command| {
        command.env("FLEETBOX_LOG", "info").stderr(file)
    });
    assert!(process.wait().unwrap().success());
    let text = std::fs::read_to_string(log.path()).unwrap();
    // The line that reaches the limit is whole.
    assert!(
        (LOG_LIMIT..LOG_LIMIT + 4096).contains(&text.len()),
        "{} bytes",
        text.len()
    );
    assert!(text.ends_with("the log ends here: it has reached its size limit\n"));
}

#[test]
fn contained_panics_are_short_lines_and_few() {
    let log = tempfile::NamedTempFile::new().unwrap();
    let file = log.reopen().unwrap();
    let (mut process, _control) = run_task(&Task::Panic(3000), |command| {
        command.env("RUST_BACKTRACE", "full").stderr(file)
    });
    assert!(process.wait().unwrap().success());
    let text = std::fs::read_to_string(log.path()).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 20, "{text}");
    for line in lines {
        assert!(line.contains(" ERROR thread "), "{line}");
        assert!(line.contains(" panicked at "), "{line}");
        assert!(line.contains("segment 0: two lines xxx"), "{line}");
        assert!(line.len() < 600, "{line}");
    }
}
