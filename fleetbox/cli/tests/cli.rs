//! The command as its user meets it, as far as no VM is needed.

use std::path::Path;
use std::process::{Command, Output};

fn fleetbox(home: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_fleetbox"))
        .args(arguments)
        .env("FLEETBOX_HOME", home)
        .output()
        .unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn bad_arguments_are_refused_before_anything_is_created() {
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path().join("state");
    for (arguments, reason) in [
        (&["up", "Web"][..], "upper-case"),
        (&["up", "web", "--cpus", "0"], "vCPU"),
        (&["up", "web", "--memory", "12"], "unit"),
        (&["up", "web", "--disk", "1K"], "out of range"),
        (&["up", "web", "--image", "a b"], "invalid image"),
        (&["ssh", "-x"], "unexpected argument"),
        (&["frobnicate"], "unrecognized subcommand"),
    ] {
        let output = fleetbox(&home, arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(
            stderr(&output).contains(reason),
            "{arguments:?}: {}",
            stderr(&output)
        );
        assert!(!home.exists(), "{arguments:?}");
    }
}

#[test]
fn what_does_not_exist_is_named_with_the_documented_status() {
    let dir = tempfile::tempdir().unwrap();
    for (arguments, status) in [
        (&["ssh", "web", "--", "true"][..], 255),
        (&["dial", "web", "22"], 1),
        (&["down", "web"], 1),
        (&["rm", "web"], 1),
    ] {
        let output = fleetbox(dir.path(), arguments);
        assert_eq!(output.status.code(), Some(status), "{arguments:?}");
        let error = stderr(&output);
        assert!(
            error.starts_with("fleetbox: no VM named web"),
            "{arguments:?}: {error}"
        );
        assert_eq!(error.lines().count(), 1, "{error}");
    }
}

#[test]
fn an_empty_state_lists_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let output = fleetbox(dir.path(), &["ls", "--json"]);
    assert!(output.status.success());
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "[]");
    let images = fleetbox(dir.path(), &["images", "ls"]);
    assert!(String::from_utf8_lossy(&images.stdout).contains("debian-12"));
}

#[test]
fn the_version_is_the_packages() {
    let dir = tempfile::tempdir().unwrap();
    let output = fleetbox(dir.path(), &["version"]);
    let expected = format!("fleetbox {}\n", env!("CARGO_PKG_VERSION"));
    assert_eq!(String::from_utf8_lossy(&output.stdout), expected);
}

#[test]
fn a_closed_pipe_is_no_panic() {
    let dir = tempfile::tempdir().unwrap();
    let shell = format!("{} images ls | head -n 1", env!("CARGO_BIN_EXE_fleetbox"));
    let output = Command::new("sh")
        .args(["-c", &shell])
        .env("FLEETBOX_HOME", dir.path())
        .output()
        .unwrap();
    assert!(stderr(&output).is_empty(), "{}", stderr(&output));
}
