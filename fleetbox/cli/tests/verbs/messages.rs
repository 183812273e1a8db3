//! What is said to people: in their words, with the right options, about the right user.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};

use crate::host::Host;

fn said(output: &std::process::Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_usage_does_not_demand_the_state_directory() {
    let host = Host::new();
    for wrong in [&["rm"][..], &["set", "web"], &["logs"], &["up", "--frob"]] {
        let error = said(&host.run(wrong));
        assert!(error.contains("Usage: fleetbox "), "{error}");
        assert!(!error.contains("--home"), "{wrong:?}: {error}");
    }
    let error = said(&host.run(&["set", "web"]));
    assert!(
        error.contains("--cpus <N>") && error.contains("--memory <SIZE>"),
        "{error}"
    );
}

#[test]
fn an_empty_state_directory_of_the_environment_is_none() {
    let host = Host::new();
    let mut command = host.command(&["show", "web", "--json"]);
    let output = command.env("FLEETBOX_HOME", "").output().expect("it runs");
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(said(&output).contains("no VM named web"), "{output:?}");
    assert!(host.dir.path().join(".fleetbox").is_dir());
    let output = host.run(&["--home", "", "ls"]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    assert!(said(&output).contains("--home"), "{output:?}");
}

#[test]
fn help_is_a_verb() {
    let host = Host::new();
    for (verb, option) in [
        (&["help", "up"][..], &["up", "--help"][..]),
        (&["help", "images", "pull"], &["images", "pull", "--help"]),
        (&["help"], &["--help"]),
    ] {
        assert_eq!(host.ends(0, verb), host.ends(0, option), "{verb:?}");
    }
    let output = host.run(&["help", "frob"]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
}

#[test]
fn a_disk_below_the_size_of_its_image_is_told_in_units() {
    let host = Host::new();
    let image = host.image();
    fs::File::options()
        .write(true)
        .open(&image)
        .and_then(|file| file.set_len(3 << 20))
        .expect("an image");
    let up = ["up", "web", "--no-start", "--image", &image, "--disk"];
    let error = said(&host.run(&[&up[..], &["2M"]].concat()));
    assert!(
        error.contains(
            "disk size 2M is out of range; it must be between 3M, the size of the image "
        ),
        "{error}"
    );
    host.ends(0, &[&up[..], &["3M"]].concat());
}

#[test]
fn nothing_is_copied_before_a_refusal() {
    let host = Host::new();
    host.vm("web", "web", Path::new("/none"));
    let file = host.dir.path().join("file");
    fs::write(&file, "x").expect("a file");
    let file = file.to_str().expect("UTF-8");
    for args in [
        &["cp", file, "web:"][..],
        &["cp", file, "none:"],
        &["cp", "/no/such", "web:"],
        &["cp", "web:x", "none:y"],
        &["cp", "a", "b"],
        &["ship", "web", "/no/such"],
        &["pull-diff", "web"],
        &["down", "web", "none"],
    ] {
        let error = said(&host.run(args));
        for word in ["copying", "fetching", "stopping"] {
            assert!(!error.contains(word), "{args:?}: {error}");
        }
    }
}

/// The sources of programs and libraries whose messages the command prints.
fn sources() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut dirs: Vec<_> = [
        "fleetbox/src",
        "fleetbox/cli/src",
        "devices/src",
        "vmm/src",
        "vmm/net/src",
    ]
    .map(|dir| root.join(dir))
    .into();
    let mut files = Vec::new();
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).expect("a directory") {
            let path = entry.expect("an entry").path();
            let name = path
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            // What `testing` says is for those who write tests.
            if path.is_dir() && name != "tests" && name != "testing" {
                dirs.push(path);
            } else if name.ends_with(".rs")
                && !name.ends_with("tests.rs")
                && !name.ends_with("_test.rs")
            {
                files.push(path);
            }
        }
    }
    files
}

/// The string literals of the code, without comments, attributes for other programs, and tests.
fn literals(path: &Path) -> Vec<String> {
    let text = fs::read_to_string(path).expect("a source");
    let text = text
        .split("#[cfg(test)]\nmod tests")
        .next()
        .unwrap_or_default();
    let mut found = Vec::new();
    let mut rest = String::new();
    for line in text.lines() {
        let line = line.trim_start();
        if !line.starts_with("//") && !line.starts_with("#[serde") {
            rest.push_str(line);
            rest.push('\n');
        }
    }
    // A quotation mark within a literal does not end it.
    let rest = rest
        .replace("'\"'", "")
        .replace(r"\\", "")
        .replace("\\\"", "");
    for (index, part) in rest.split('"').enumerate() {
        if index % 2 == 1 {
            found.push(part.to_owned());
        }
    }
    found
}

#[test]
fn no_message_names_a_function_or_gives_dangerous_advice() {
    let mut seen = 0;
    for path in sources() {
        for text in literals(&path) {
            // A message has words.
            if !text.contains(' ') {
                continue;
            }
            seen += 1;
            let parts: Vec<_> = text.split("::").collect();
            for pair in parts.windows(2) {
                let before = pair[0].chars().last().is_some_and(char::is_alphanumeric);
                let after = pair[1].chars().next().is_some_and(char::is_alphabetic);
                assert!(!(before && after), "{}: {text:?}", path.display());
            }
            let lower = text.to_lowercase();
            for advice in ["chmod g+", "-ag root", "chmod 777", "chmod 666"] {
                assert!(!lower.contains(advice), "{}: {text:?}", path.display());
            }
        }
    }
    assert!(seen > 500, "{seen} messages");
}

#[test]
fn what_belongs_to_another_user_is_said_to() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: only root can act as two users");
        return;
    }
    /// Neither root nor the user of these tests.
    const NOBODY: u32 = 65534;
    let host = Host::new();
    host.vm("web", "web", Path::new("/none"));
    let open = |path: &Path| {
        let mode = fs::Permissions::from_mode(0o755);
        fs::set_permissions(path, mode).expect("a mode");
    };
    let own = |path: &Path| {
        std::os::unix::fs::chown(path, Some(NOBODY), Some(NOBODY)).expect("an owner");
    };
    open(host.dir.path());
    for dir in ["", "clusters", "images", "keys", "version", "lock"] {
        if host.state().join(dir).exists() {
            own(&host.state().join(dir));
        }
    }
    // The build's directory may be root's alone.
    let program = host.dir.path().join("fleetbox");
    fs::copy(env!("CARGO_BIN_EXE_fleetbox"), &program).expect("a copy of the program");
    let as_nobody = |host: &Host, args: &[&str]| {
        let mut command = host.command_of(&program, args);
        let output = command.uid(NOBODY).gid(NOBODY).output().expect("it runs");
        assert_eq!(output.stdout, b"", "{output:?}");
        said(&output)
    };
    // The user's state directory, in which root has made a VM.
    for args in [
        &["show", "web"][..],
        &["show", "web/web"],
        &["ssh", "web"],
        &["down", "web"],
        &["rm", "web"],
        &["up", "web"],
        &["logs", "web"],
    ] {
        let error = as_nobody(&host, args);
        assert!(
            error.contains("belongs to root; run the command as root"),
            "{args:?}: {error}"
        );
        assert!(
            !error.contains("is not running") && !error.contains("no VM"),
            "{args:?}: {error}"
        );
    }
    // A state directory that is root's as a whole.
    let theirs = Host::new();
    open(theirs.dir.path());
    theirs.vm("web", "web", Path::new("/none"));
    let error = as_nobody(&theirs, &["ls"]);
    assert!(error.contains("belongs to root"), "{error}");
    assert!(error.contains("FLEETBOX_HOME"), "{error}");
}
