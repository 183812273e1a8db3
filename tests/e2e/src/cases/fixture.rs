//! Directories of the host in a guest.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt as _, PermissionsExt as _, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use fleetbox::Vm;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

use super::life::KEEPER;
use crate::report::{Must, uses};
use crate::suite::Suite;

/// The directory of the VM that cases share.
const NAME: &str = "fixture";
/// Where guests have it.
pub(crate) const MOUNT: &str = "/srv/work";
const SECOND_MOUNT: &str = "/opt/second";
/// Length of a file of which nearly all is a hole; more than 32 bits count.
const LARGE: u64 = (5 << 30) + 3;

/// A directory in that of the cases, made anew with `text` in one of its files.
pub(crate) fn directory(suite: &Suite, name: &str, text: &str) -> PathBuf {
    let dir = suite.dir().join(name);
    let _ = fs::remove_dir_all(&dir);
    fs::create_dir_all(dir.join("sub")).must("cannot create a directory");
    let put = |name: &str, mode, text: &str| {
        let path = dir.join(name);
        fs::write(&path, text).must("cannot write a file");
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).must("cannot set a mode");
    };
    put("state", 0o600, text);
    put("sub/tool", 0o755, "#!/bin/sh\nexit 42\n");
    symlink("sub/tool", dir.join("link")).must("cannot make a link");
    let time = SystemTime::UNIX_EPOCH + Duration::new(1_000_000_000, 0);
    File::open(dir.join("state"))
        .and_then(|file| file.set_modified(time))
        .must("cannot set a time");
    let large = File::create(dir.join("large")).must("cannot create a file");
    large.set_len(LARGE).must("cannot set a length");
    large
        .write_all_at(b"end", LARGE - 3)
        .must("cannot write a file");
    dir
}

/// The VM whose disk other cases share, with the fixture.
fn keeper(suite: &Suite) -> Vm {
    uses(KEEPER);
    let builder = suite.small(Vm::builder(KEEPER));
    let builder = builder
        .fixture(suite.dir().join(NAME), MOUNT)
        .fixture(second(suite), SECOND_MOUNT);
    suite.block(builder.start()).must("cannot start the VM")
}

/// Another directory, with one file of two names.
fn second(suite: &Suite) -> PathBuf {
    let dir = suite.dir().join("second-fixture");
    let (one, other) = (dir.join("one"), dir.join("other"));
    fs::create_dir_all(&dir).must("cannot create a directory");
    fs::write(&one, "second").must("cannot write a file");
    if !other.exists() {
        fs::hard_link(&one, &other).must("cannot link a file");
    }
    dir
}

/// Modes, owners, times, links and holes are as on the host; nothing can be written.
pub(crate) fn content(suite: &Suite) {
    directory(suite, NAME, "one");
    let vm = keeper(suite);
    check(suite, &vm);
    let same = "cd /opt/second && cat other && [ one -ef other ] && echo && echo same";
    assert_eq!(suite.sh(&vm, same), "second\nsame");
    // The set is that of the creation.
    let builder = suite.small(Vm::builder(KEEPER));
    let builder = builder.fixture(second(suite), "/opt/third");
    let other = suite.block(builder.start());
    assert!(matches!(other, Err(fleetbox::Error::Differs { .. })));
    // For the case that restarts the VM, or the one below.
    directory(suite, NAME, "two");
    suite.keep(vm);
}

/// Looks at the fixture in a guest that was started with "one" in it.
pub(crate) fn check(suite: &Suite, vm: &Vm) {
    let sh = |command: &str| suite.sh(vm, command);
    assert_eq!(
        sh("cd /srv/work && stat -c '%a %s %Y' state && cat state"),
        "600 3 1000000000\none"
    );
    // The guest's user owns it, so that it reads what only its owner may.
    assert_eq!(sh("stat -c %U /srv/work/state"), sh("id -un"));
    assert_eq!(sh("readlink /srv/work/link"), "sub/tool");
    let tool = suite.output(vm, "/srv/work/link");
    assert_eq!(tool.status.code(), Some(42), "{tool:?}");
    assert_eq!(
        sh("cd /srv/work && stat -c %s large && tail -c 3 large"),
        format!("{LARGE}\nend")
    );
    let blocks: u64 = sh("stat -c %b /srv/work/large").parse().must("a number");
    assert!(blocks < 4096, "{blocks} blocks for one that has data");
    let write = suite.output(vm, "sudo touch /srv/work/new");
    assert!(!write.success(), "{write:?}");
}

/// A start copies what is there then.
pub(crate) fn refreshed(suite: &Suite) {
    directory(suite, NAME, "two");
    let mut vm = keeper(suite);
    if suite.sh(&vm, "cat /srv/work/state") != "two" {
        // No case has restarted it.
        suite.block(vm.stop()).must("cannot stop the VM");
        suite.unkeep();
        drop(vm);
        vm = keeper(suite);
    }
    assert_eq!(suite.sh(&vm, "cat /srv/work/state"), "two");
    suite.keep(vm);
}

/// What cannot be copied is named, and nothing is created.
pub(crate) fn refused(suite: &Suite) {
    let dir = suite.dir().join("sockets");
    fs::create_dir_all(&dir).must("cannot create a directory");
    let pair = format!("{}:/work", dir.display());
    let image = suite.tiny();
    let refused = |path: &Path, what: &str| {
        let up = ["up", "refused", "--image", &image, "--fixture", &pair];
        let output = suite.fleetbox(&up).output().must("cannot run fleetbox");
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        let expected = format!("{} is a {what}", path.display());
        assert!(said.contains(&expected), "{said}");
        fs::remove_file(path).must("cannot remove a file");
    };
    let socket = dir.join("socket");
    let listener = UnixListener::bind(&socket).must("cannot make a socket");
    refused(&socket, "socket");
    drop(listener);
    let pipe = dir.join("pipe");
    mkfifo(&pipe, Mode::S_IRWXU).must("cannot make a pipe");
    refused(&pipe, "FIFO");
    assert!(!suite.vm_dir("refused").exists());
}
