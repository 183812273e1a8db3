//! `logs`, and the log of a command itself.

use std::fs;
use std::io::{Read as _, Write as _};
use std::path::Path;
use std::process::Command;

use fleetbox::store::Lock;

use crate::host::Host;

#[test]
fn logs_of_a_command_have_colours_on_terminals_only() {
    let host = Host::new();
    let traced = || {
        // Left by a killed process; removing it is logged.
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
        // Reading a terminal ends with an error.
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
