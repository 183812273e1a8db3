//! Files to and from a guest.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, UNIX_EPOCH};

use fleetbox::Vm;
use fleetbox::files::{FileOptions, FilesError, GuestReason};

use crate::report::Must;
use crate::suite::{Suite, sha256};

/// A directory goes there and back with its modes, times and links.
pub(crate) fn directory(suite: &Suite) {
    let vm = suite.shared();
    let dir = suite.dir().join("files");
    let source = dir.join("source");
    plant(&source);
    let copied = suite
        .block(vm.copy_to(&source, "/tmp/tree"))
        .must("cannot copy to the guest");
    assert_eq!((copied.files, copied.directories, copied.links), (22, 3, 2));
    assert_eq!(
        suite.sh(
            &vm,
            "cd /tmp/tree && stat -c '%a %Y' bin/run sub && readlink bin/link"
        ),
        "755 1000000000\n750 1100000000\n../sub/0"
    );
    let sum = sha256(&fs::read(source.join("bin/run")).must("cannot read"));
    assert!(
        suite
            .sh(&vm, "sha256sum /tmp/tree/bin/run")
            .starts_with(&sum)
    );

    let back = suite
        .block(vm.copy_from("/tmp/tree", dir.join("back")))
        .must("cannot copy from the guest");
    assert_eq!(back, copied);
    assert_eq!(snapshot(&dir.join("back")), snapshot(&source));
    suite.sh(&vm, "rm -r /tmp/tree");
}

fn plant(root: &Path) {
    fs::create_dir_all(root.join("bin")).must("cannot create a directory");
    fs::create_dir(root.join("sub")).must("cannot create a directory");
    let content: Vec<u8> = (0..700_000u32).map(|i| (i ^ (i >> 8)) as u8).collect();
    fs::write(root.join("bin/run"), content).must("cannot write");
    fs::write(root.join("bin/empty"), "").must("cannot write");
    for i in 0..20 {
        fs::write(root.join(format!("sub/{i}")), i.to_string()).must("cannot write");
    }
    symlink("../sub/0", root.join("bin/link")).must("cannot link");
    symlink("/no/where", root.join("broken")).must("cannot link");
    for (path, mode, time) in [
        ("bin/run", 0o755, 1_000_000_000),
        ("sub", 0o750, 1_100_000_000),
    ] {
        let path = root.join(path);
        let file = fs::File::open(&path).must("cannot open");
        file.set_permissions(fs::Permissions::from_mode(mode))
            .must("cannot set a mode");
        file.set_modified(UNIX_EPOCH + Duration::from_secs(time))
            .must("cannot set a time");
    }
}

/// Path, mode, time and content of all that is below.
fn snapshot(root: &Path) -> Vec<(PathBuf, u32, i64, Vec<u8>)> {
    let mut found = Vec::new();
    let mut waiting = vec![root.to_owned()];
    while let Some(path) = waiting.pop() {
        let metadata = fs::symlink_metadata(&path).must("cannot look at a file");
        let (mut mode, mut time, mut bytes) = (metadata.mode(), metadata.mtime(), Vec::new());
        if metadata.is_symlink() {
            (mode, time) = (0, 0);
            let target = fs::read_link(&path).must("cannot read a link");
            bytes = target.into_os_string().into_encoded_bytes();
        } else if metadata.is_dir() {
            for entry in fs::read_dir(&path).must("cannot list") {
                waiting.push(entry.must("cannot list").path());
            }
        } else {
            bytes = fs::read(&path).must("cannot read");
        }
        let relative = path.strip_prefix(root).must("is below").to_owned();
        found.push((relative, mode, time, bytes));
    }
    found.sort();
    found
}

pub(crate) fn read_and_write(suite: &Suite) {
    let vm = suite.shared();
    let bytes: Vec<u8> = (0..300_000u32).map(|i| (i * 7) as u8).collect();
    suite.block(async {
        vm.write("a file", &bytes).await.must("cannot write");
        assert!(vm.read("~/a file").await.must("cannot read") == bytes);
        // A file without a length.
        let kernel = vm.read("/proc/sys/kernel/ostype").await.must("cannot read");
        assert_eq!(kernel, b"Linux\n");
        // Root's files.
        let error = vm.read("/etc/shadow").await.expect_err("only root may");
        assert!(
            matches!(
                &error,
                fleetbox::Error::Files(FilesError::Guest {
                    why: GuestReason::PermissionDenied,
                    ..
                })
            ),
            "{error}"
        );
        let root = FileOptions::new().as_root().mode(0o750);
        let shadow = vm.read_with("/etc/shadow", &root).await.must("cannot read");
        assert!(shadow.starts_with(b"root:"));
        vm.write_with("/etc/of-root", "x", &root)
            .await
            .must("cannot write");
    });
    assert_eq!(suite.sh(&vm, "stat -c '%U %a' /etc/of-root"), "root 750");
    suite.sh(&vm, "sudo rm /etc/of-root 'a file'");
}

/// Prints how quick a copy is, beside a pipe through SSH and, where there is one, `scp`.
pub(crate) fn throughput(suite: &Suite) {
    const SIZE: usize = 6 << 20;
    let vm = suite.shared();
    let file = suite.dir().join("six-mib");
    let bytes: Vec<u8> = (0..SIZE).map(|i| (i ^ (i >> 9)) as u8).collect();
    fs::write(&file, &bytes).must("cannot write");
    let rate = |what: &str, begun: Instant| {
        let seconds = begun.elapsed().as_secs_f64();
        println!("  {what}: {:.1} MiB/s", 6.0 / seconds);
    };

    let seen = Arc::new(AtomicU64::new(0));
    let listener = Arc::clone(&seen);
    let options = FileOptions::new().progress(move |at| {
        assert_eq!(at.total, Some(SIZE as u64));
        assert!(listener.swap(at.bytes, Ordering::Relaxed) <= at.bytes);
    });
    let begun = Instant::now();
    suite
        .block(vm.copy_to_with(&file, "/tmp/copy", &options))
        .must("cannot copy");
    rate("copy_to", begun);
    assert_eq!(seen.load(Ordering::Relaxed), SIZE as u64);
    let begun = Instant::now();
    suite
        .block(vm.ssh_with_input("cat >/tmp/pipe", &bytes))
        .must("cannot pipe");
    rate("ssh 'cat >file'", begun);
    match scp(suite, &vm, &file) {
        Some(begun) => rate("scp", begun),
        None => println!("  scp: this host has none"),
    }
    let begun = Instant::now();
    suite
        .block(vm.copy_from("/tmp/copy", suite.dir().join("six-back")))
        .must("cannot copy");
    rate("copy_from", begun);
    assert!(fs::read(suite.dir().join("six-back")).must("cannot read") == bytes);
    let sums = suite.sh(&vm, "sha256sum /tmp/copy /tmp/pipe | cut -c -64 | uniq");
    assert_eq!(sums, sha256(&bytes));
    suite.sh(&vm, "rm -f /tmp/copy /tmp/pipe /tmp/scp");
}

fn scp(suite: &Suite, vm: &Vm, file: &Path) -> Option<Instant> {
    let address = suite.block(vm.forward(22)).must("cannot forward");
    let begun = Instant::now();
    let copied = Command::new("scp")
        .args([
            "-q",
            "-o",
            "StrictHostKeyChecking=no",
            "-o",
            "UserKnownHostsFile=/dev/null",
        ])
        .arg("-i")
        .arg(suite.home().join("keys/id_ed25519"))
        .args(["-P", &address.port().to_string()])
        .arg(file)
        .arg(format!("fleetbox@{}:/tmp/scp", address.ip()))
        .stdin(Stdio::null())
        .status()
        .ok()?;
    assert!(copied.success(), "scp ended with {copied}");
    Some(begun)
}
