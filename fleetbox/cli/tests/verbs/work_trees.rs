//! `run`, `ship` and `pull-diff`, as far as no VM is started.

use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::host::Host;

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
            "no-such does not exist",
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
    assert!(error.contains("VM web already exists"), "{error}");
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
        (&["none", root][..], "no VM named none"),
        (&["web", root], "`fleetbox up web`"),
        (&["web", "/no/such/place"], "/no/such/place"),
        (
            &["web", root, "--branch", "x", "--from", "gone"],
            "gone does not exist",
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
