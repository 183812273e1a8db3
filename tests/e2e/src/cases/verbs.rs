//! The command line's verbs about running guests, and throw-away VMs with work trees.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use fleetbox::budget::QUEUE_VARIABLE;
use fleetbox::names::Name;
use fleetbox::store::{Store, VmRecord, now};
use fleetbox::{Event, Fleet};
use serde_json::json;
use tokio::io::AsyncReadExt as _;

use super::cli::{QUICK, listed, run, text};
use crate::host;
use crate::report::Must;
use crate::suite::Suite;

/// How long a command may take that boots the tiny image.
pub(super) const BOOT: Duration = Duration::from_secs(300);

/// Boot options of the small VMs here.
pub(super) const SMALL: [&str; 8] = [
    "--cpus",
    "1",
    "--memory",
    "256M",
    "--disk",
    "2G",
    "--timeout",
    "240",
];

/// What a kernel prints last.
const LAST_WORDS: &str = "reboot: Power down";

/// What can be asked of a running VM, named `name`.
pub(crate) fn inside(suite: &Suite, name: &str) {
    // Words arrive as they are, and so does the status.
    let words = ["exec", name, "--", "printf", "%s|", "a b", "$HOME", "'"];
    assert_eq!(text(&run(suite, &words, 0, QUICK)), "a b|$HOME|'|");
    run(
        suite,
        &["exec", name, "--", "sh", "-c", "exit 42"],
        42,
        QUICK,
    );

    let ports = text(&run(suite, &["ports", name], 0, QUICK));
    assert!(
        ports
            .lines()
            .any(|line| line.starts_with("tcp ") && line.contains(" 22 ") && line.contains("sshd")),
        "{ports}"
    );
    let load = "(i=0; while [ $i -lt 50 ]; do dd if=/dev/zero of=load bs=65536 count=4 conv=fsync; \
                i=$((i+1)); sleep 0.2; done; rm load) >/dev/null 2>&1 &";
    run(suite, &["ssh", name, "--", load], 0, QUICK);
    let stats: serde_json::Value =
        serde_json::from_slice(&run(suite, &["stats", name, "--json"], 0, QUICK).stdout)
            .must("stats --json is no JSON");
    assert_eq!(stats[0]["cpus"], 1, "{stats}");
    assert!(
        stats[0]["memory_total"].as_u64() > Some(100 << 20),
        "{stats}"
    );
    assert!(stats[0]["disk_total"].as_u64() > Some(10 << 20), "{stats}");
    for counted in ["disk_written", "net_received", "net_sent"] {
        assert!(stats[0][counted].as_u64() > Some(0), "{counted}: {stats}");
    }

    let logs = text(&run(suite, &["logs", name], 0, QUICK));
    assert!(logs.contains("login:"), "{logs}");
    let shown = text(&run(suite, &["show", name], 0, QUICK));
    assert!(shown.contains("state         running"), "{shown}");
    // What runs is not changed.
    run(suite, &["set", name, "--cpus", "2"], 1, QUICK);

    published(suite, name);
    console(suite, name);
    copied(suite, name);
    proxied(suite, name);
    by_openssh(suite, name);
}

/// A port of this host that leads to the guest's SSH server, on a VM that runs already.
fn published(suite: &Suite, name: &str) {
    let free = std::net::TcpListener::bind("127.0.0.1:0").must("cannot listen");
    let port = free.local_addr().must("no address").port();
    let publish = format!("{port}:22");
    let up = ["up", name, "--publish", &publish];
    let taken = run(suite, &up, 1, QUICK);
    let error = String::from_utf8_lossy(&taken.stderr).into_owned();
    assert!(
        error.contains(&format!("port {port} of this host")),
        "{error}"
    );
    drop(free);
    run(suite, &up, 0, QUICK);
    // Said again it is the same.
    run(suite, &up, 0, QUICK);
    let mut stream = std::net::TcpStream::connect(("127.0.0.1", port)).must("cannot connect");
    stream
        .set_read_timeout(Some(QUICK))
        .must("cannot set a deadline");
    let mut banner = [0; 8];
    stream
        .read_exact(&mut banner)
        .must("cannot read the banner");
    assert_eq!(&banner, b"SSH-2.0-");
    let shown: serde_json::Value =
        serde_json::from_slice(&run(suite, &["show", name, "--json"], 0, QUICK).stdout)
            .must("show --json is no JSON");
    let expected = serde_json::json!({"address": format!("127.0.0.1:{port}"), "port": 22});
    let published = shown["published"].as_array();
    assert!(
        published.is_some_and(|all| all.contains(&expected)),
        "{shown}"
    );
}

/// The console shows what it did last, and what is typed reaches the log-in prompt.
fn console(suite: &Suite, name: &str) {
    let mut command = suite.fleetbox(&["console", name]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().must("cannot start fleetbox");
    let mut input = child.stdin.take().expect("piped");
    let output = child.stdout.take().expect("piped");
    let pid = host::pid_of(&child);
    let mut screen = host::Screen::read(output, QUICK);
    let mut wait_for = |wanted: &str| {
        let shown = screen.wait_for(wanted);
        if shown.is_err() {
            host::kill_now(pid);
        }
        shown.must("on the console");
    };
    wait_for("login:");
    input.write_all(b"nobody-known\r").must("cannot type");
    wait_for("nobody-known");
    host::kill_now(pid);
    child.wait().must("fleetbox console");
}

fn copied(suite: &Suite, name: &str) {
    let dir = suite.dir().join("cp");
    fs::create_dir_all(dir.join("tree/sub")).must("cannot create a directory");
    fs::write(dir.join("tree/sub/file"), "content").must("cannot write a file");
    let path = |part: &str| dir.join(part).display().to_string();
    // Into a directory that is there, and back under another name.
    let guest = format!("{name}:/tmp");
    run(suite, &["cp", &path("tree"), &guest], 0, QUICK);
    let guest = format!("{name}:/tmp/tree/sub/file");
    run(suite, &["cp", &guest, &path("back")], 0, QUICK);
    assert_eq!(fs::read(dir.join("back")).must("cannot read"), b"content");
    run(suite, &["cp", &path("tree"), &path("x")], 2, QUICK);
    // A file that only root may read.
    let guest = format!("{name}:/etc/shadow");
    run(suite, &["cp", &guest, &path("shadow")], 1, QUICK);
    run(suite, &["cp", "--root", &guest, &path("shadow")], 0, QUICK);
    let shadow = fs::read(dir.join("shadow")).must("cannot read");
    assert!(shadow.starts_with(b"root:"));
}

/// A web server of the guest through both protocols of the proxy.
fn proxied(suite: &Suite, name: &str) {
    let serve =
        "mkdir -p /tmp/www; echo from the guest > /tmp/www/index.html; httpd -p 8000 -h /tmp/www";
    run(suite, &["ssh", name, "--", serve], 0, QUICK);
    let mut command = suite.fleetbox(&["proxy", "--listen", "127.0.0.1:0", "-q"]);
    let mut proxy = command
        .stdout(Stdio::piped())
        .spawn()
        .must("cannot start the proxy");
    let out = proxy.stdout.take().expect("piped");
    let mut lines = BufReader::new(out).lines();
    for _ in 0..2 {
        let address = lines.next().expect("an address").must("cannot read");
        // The last has the cluster in it, which is called as its only member.
        for host in [
            name.to_owned(),
            format!("{name}.fleetbox"),
            format!("{name}.{name}"),
        ] {
            let mut curl = Command::new("curl");
            curl.args(["-sS", "--max-time", "50", "--proxy", &address]);
            curl.arg(format!("http://{host}:8000/"));
            let output = host::run(curl, QUICK);
            assert_eq!(
                text(&output),
                "from the guest",
                "{address}: {}",
                host::both(&output)
            );
        }
    }
    host::kill_now(host::pid_of(&proxy));
    proxy.wait().must("the proxy");
    run(suite, &["ssh", name, "--", "killall httpd"], 0, QUICK);
}

/// OpenSSH with what `ssh-config` prints.
fn by_openssh(suite: &Suite, name: &str) {
    let file = suite.dir().join("ssh-config");
    let own = "Host other\n";
    fs::write(&file, own).must("cannot write a file");
    let path = file.display().to_string();
    run(
        suite,
        &["ssh-config", "--install", "--file", &path],
        0,
        QUICK,
    );
    // The latter has the cluster in it, which is called as its only member.
    for alias in [name, &format!("{name}.{name}")] {
        let mut ssh = Command::new("ssh");
        // It runs the ProxyCommand by this; the emulated host has no /bin/sh.
        ssh.env("SHELL", "/bin/bash");
        ssh.arg("-F").arg(&file).args([alias, "exit 42"]);
        let output = host::run(ssh, QUICK);
        assert_eq!(output.status.code(), Some(42), "{}", host::both(&output));
    }
    run(
        suite,
        &["ssh-config", "--uninstall", "--file", &path],
        0,
        QUICK,
    );
    assert_eq!(fs::read_to_string(&file).must("cannot read"), own);
}

/// `restart` is another boot.
pub(crate) fn restarted(suite: &Suite, name: &str) {
    let boot_id = || {
        let command = ["exec", name, "--", "cat", "/proc/sys/kernel/random/boot_id"];
        text(&run(suite, &command, 0, QUICK))
    };
    let before = boot_id();
    run(suite, &["restart", name], 0, BOOT);
    let after = boot_id();
    assert!(
        !after.is_empty() && before != after,
        "{before} is still the boot"
    );
}

/// A stopped VM is given another CPU and more memory, which its next boot has. What was written right before `down`
/// is there: `sum` is its sum. Then the power button is pressed, and what the guest says to that followed.
pub(crate) fn changed(suite: &Suite, name: &str, sum: &str) {
    let set = ["set", name, "--cpus", "2", "--memory", "320M"];
    run(suite, &set, 0, QUICK);
    run(suite, &["up", name, "--timeout", "240"], 0, BOOT);
    assert_eq!(
        text(&run(suite, &["exec", name, "--", "nproc"], 0, QUICK)),
        "2"
    );
    let memory = [
        "exec",
        name,
        "--",
        "sed",
        "-n",
        "s/^MemTotal: *//p",
        "/proc/meminfo",
    ];
    let memory = text(&run(suite, &memory, 0, QUICK));
    let kib: u32 = memory.trim_end_matches(" kB").parse().must(&memory);
    assert!(kib > 256 << 10, "{memory}");
    let kept = ["exec", name, "--", "sha256sum", "kept"];
    let kept = text(&run(suite, &kept, 0, QUICK));
    assert!(kept.starts_with(sum), "{kept} was {sum}");

    let mut logs = suite.fleetbox(&["logs", "-f", name]);
    logs.stdin(Stdio::null()).stdout(Stdio::piped());
    let logs = logs.spawn().must("cannot start fleetbox");
    run(suite, &["kill", name, "--signal", "TERM"], 0, QUICK);
    let said = text(&host::finish(logs, BOOT, "fleetbox logs -f"));
    assert!(said.contains(LAST_WORDS), "{said}");
    host::within(QUICK, || match listed(suite, name) {
        Some(vm) if vm["state"] == "stopped" => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .must("after the power button");
}

/// Writes what has to be there after `down`, and no guest's program syncs it. Returns its sum.
pub(crate) fn write_much(suite: &Suite, name: &str) -> String {
    let write = "head -c 20971520 /dev/urandom | tee kept | sha256sum | cut -c -64";
    text(&run(suite, &["ssh", name, "--", write], 0, QUICK))
}

/// `down` returns as soon as it is sure that nothing is lost: right after the guest's kernel has said its last words.
pub(crate) fn down(suite: &Suite, name: &str) -> Output {
    /// How long our own part may take where the host is busy.
    const OURS: f64 = 2.0;
    let home = suite.home();
    let (vm, mut events, mut console) = suite
        .block(async {
            let vm = Fleet::at(&home).open(name).await?;
            let (events, console) = (vm.events().await?, vm.console().await?);
            Ok::<_, fleetbox::Error>((vm, events, console))
        })
        .must("cannot watch the VM");
    let last_words = suite.spawn(async move {
        let (mut seen, mut buffer) = (String::new(), [0; 4096]);
        while let Ok(n @ 1..) = console.read(&mut buffer).await {
            seen.push_str(&String::from_utf8_lossy(&buffer[..n]));
            if seen.contains(LAST_WORDS) {
                return Some(Instant::now());
            }
        }
        None
    });
    let began = Instant::now();
    let output = run(suite, &["down", name], 0, Duration::from_secs(120));
    let ended = Instant::now();

    let last_words = suite
        .block(last_words)
        .must("the thread that reads the console")
        .unwrap_or_else(|| panic!("{name} ended without {LAST_WORDS:?}"));
    let mut history = Vec::new();
    suite.block(async {
        while let Ok(Some(event)) = events.next().await {
            history.push(event);
        }
    });
    let [.., button, off] = &history[..] else {
        panic!("{history:?}");
    };
    assert_eq!(
        (&button.event, &off.event),
        (&Event::PowerButton, &Event::PoweredOff),
        "{history:?}"
    );
    let seconds = |from: Instant, to: Instant| to.saturating_duration_since(from).as_secs_f64();
    let (whole, ours) = (seconds(began, ended), seconds(last_words, ended));
    println!(
        "  down of {name} took {whole:.2} s: {:.2} s from the power button to the end of its process, and {ours:.2} s \
         from the kernel's last words to that of the command",
        Duration::from_millis(off.at.saturating_sub(button.at)).as_secs_f64()
    );
    assert!(
        ours < OURS,
        "{ours:.2} s from the guest's end to the command's"
    );
    drop(vm);
    output
}

/// Two throw-away VMs at once; the status of one's command passes through, and nothing is left.
pub(crate) fn two_runs(suite: &Suite) {
    let home = own_home(suite, "two-runs");
    let image = suite.tiny();
    let children: Vec<_> = ["hostname; exit 42", "hostname"]
        .into_iter()
        .map(|script| {
            let mut command = suite.fleetbox(&["run", "--rm", "-q", "--image", &image]);
            command.args(SMALL).args(["--", "sh", "-c", script]);
            command
                .env("FLEETBOX_HOME", &home)
                .env(QUEUE_VARIABLE, home.join("memory"))
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped());
            command.spawn().must("cannot start fleetbox")
        })
        .collect();
    let outputs: Vec<_> = children
        .into_iter()
        .map(|child| host::finish(child, BOOT, "fleetbox run"))
        .collect();
    let shown: Vec<_> = outputs.iter().map(host::both).collect();
    let statuses: Vec<_> = outputs.iter().map(|output| output.status.code()).collect();
    assert_eq!(statuses, [Some(42), Some(0)], "{shown:?}");
    assert_ne!(text(&outputs[0]), text(&outputs[1]), "{shown:?}");
    let store = Store::open(&home).must("cannot open a state directory");
    assert_eq!(store.vms().must("cannot list").len(), 0, "VMs are left");
}

/// A state directory of a case's own, with the images that are here.
pub(super) fn own_home(suite: &Suite, name: &str) -> PathBuf {
    let home = suite.dir().join(name);
    fs::create_dir_all(&home).must("cannot create a directory");
    fs::create_dir_all(suite.home().join("images")).must("cannot create a directory");
    symlink(suite.home().join("images"), home.join("images")).must("cannot link");
    home
}

/// A git work tree goes to a guest, is worked on and comes back as a patch; then `prune` removes
/// what does not run and keeps what does.
pub(crate) fn work_tree(suite: &Suite) {
    let home = own_home(suite, "work-tree");
    let fleetbox = |arguments: &[&str], status: i32, limit: Duration| {
        let mut command = suite.fleetbox(arguments);
        command
            .env("FLEETBOX_HOME", &home)
            .env(QUEUE_VARIABLE, home.join("memory"));
        let output = host::run(command, limit);
        let shown = host::both(&output);
        assert_eq!(output.status.code(), Some(status), "{arguments:?}: {shown}");
        output
    };
    let tree = suite.dir().join("my repo");
    fs::create_dir(&tree).must("cannot create a directory");
    for (file, content) in [
        ("kept", "1\n"),
        ("changed", "1\n"),
        (".gitignore", "out\n"),
        ("new", "1\n"),
    ] {
        fs::write(tree.join(file), content).must("cannot write a file");
    }
    git(&tree, &["init", "-q"]);
    git(&tree, &["add", "kept", "changed", ".gitignore"]);
    git(&tree, &["commit", "-q", "-m", "one"]);

    let image = suite.tiny();
    let path = tree.display().to_string();
    let whole = [
        "run",
        "-d",
        "--name",
        "whole",
        "--full-copy",
        "--image",
        &image,
    ];
    let output = fleetbox(&[&whole[..], &SMALL, &[&path[..]]].concat(), 0, BOOT);
    assert_eq!(text(&output), "whole");
    let output = fleetbox(
        &["exec", "whole", "--", "cat", "new", ".git/HEAD"],
        0,
        QUICK,
    );
    let head = git(&tree, &["symbolic-ref", "HEAD"]);
    assert_eq!(text(&output), format!("1\nref: {head}"));
    fleetbox(&["rm", "--force", "whole"], 0, QUICK);

    let branch = [
        "run", "-q", "--name", "tree", "--branch", "topic", "--image", &image,
    ];
    let look = [&path, "--", "sh", "-c", "cat .git/HEAD; exit 42"];
    let output = fleetbox(&[&branch[..], &SMALL, &look].concat(), 42, BOOT);
    assert_eq!(text(&output), "ref: refs/heads/topic");

    let work = "pwd; ls; echo 2 > changed; echo 3 > made; echo 4 > out; rm kept";
    let output = fleetbox(&["exec", "tree", "--", "sh", "-c", work], 0, QUICK);
    assert!(
        text(&output).ends_with("/my-repo\nchanged\nkept"),
        "{}",
        host::both(&output)
    );
    let patch = fleetbox(&["pull-diff", "tree"], 0, QUICK).stdout;
    let file = suite.dir().join("patch");
    fs::write(&file, &patch).must("cannot write a file");
    git(&tree, &["apply", "--index", &file.display().to_string()]);
    assert_eq!(
        git(&tree, &["status", "--porcelain", "-uno"]),
        "M  changed\nD  kept\nA  made"
    );
    assert!(!tree.join("out").exists());

    // The host's tree has changed: that is reported, and a sync copies it again.
    let output = fleetbox(&["exec", "tree", "--", "cat", "changed"], 0, QUICK);
    let remark = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(remark.contains("has changed since"), "{remark}");
    fs::write(tree.join("changed"), "5\n").must("cannot write a file");
    let output = fleetbox(
        &["exec", "tree", "--sync", "--", "cat", "changed"],
        0,
        QUICK,
    );
    assert_eq!(text(&output), "5");
    let output = fleetbox(&["exec", "tree", "--", "true"], 0, QUICK);
    assert!(output.stderr.is_empty(), "{}", host::both(&output));

    // Another directory, and a tree for a VM that is there.
    let output = fleetbox(&["exec", "tree", "--dir", "/", "--", "pwd"], 0, QUICK);
    assert_eq!(text(&output), "/");
    let output = fleetbox(&["exec", "tree", "--dir", ".git", "--", "pwd"], 0, QUICK);
    assert!(text(&output).ends_with("/my-repo/.git"));
    fleetbox(&["ship", "tree", &path, "--branch", "other"], 0, QUICK);
    let output = fleetbox(&["exec", "tree", "--", "cat", ".git/HEAD"], 0, QUICK);
    assert_eq!(text(&output), "ref: refs/heads/other");

    // The tree's tools are mise's: without it there is a remark, with it it runs the command.
    fs::write(tree.join(".tool-versions"), "").must("cannot write a file");
    git(&tree, &["add", ".tool-versions"]);
    let output = fleetbox(&["exec", "tree", "--sync", "--", "echo", "plain"], 0, QUICK);
    let remark = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(remark.contains("mise"), "{remark}");
    assert_eq!(text(&output), "plain");
    let mise = suite.dir().join("mise");
    fs::write(&mise, "#!/bin/sh\necho by mise: \"$@\"\n").must("cannot write a file");
    fs::set_permissions(&mise, fs::Permissions::from_mode(0o755)).must("cannot set a mode");
    fleetbox(
        &["exec", "tree", "--", "mkdir", "-p", "../.local/bin"],
        0,
        QUICK,
    );
    let mise = mise.display().to_string();
    fleetbox(&["cp", &mise, "tree:.local/bin/mise"], 0, QUICK);
    let output = fleetbox(&["exec", "tree", "--", "echo", "x"], 0, QUICK);
    assert_eq!(text(&output), "by mise: exec -- echo x");

    stopped_vm(&home, "old");
    assert_eq!(text(&fleetbox(&["prune"], 0, QUICK)), "deleted old");
    let list = text(&fleetbox(&["ls"], 0, QUICK));
    assert!(list.contains("tree") && list.contains("running"), "{list}");
    fleetbox(&["down", "--all"], 0, QUICK);
    assert_eq!(text(&fleetbox(&["prune"], 0, QUICK)), "deleted tree");
}

fn git(tree: &Path, arguments: &[&str]) -> String {
    let mut command = Command::new("git");
    command.arg("-C").arg(tree);
    command.args(["-c", "user.name=e2e", "-c", "user.email=e2e@example.org"]);
    command.args(arguments);
    let output = host::run(command, QUICK);
    assert!(
        output.status.success(),
        "git {arguments:?}: {}",
        host::both(&output)
    );
    text(&output)
}

/// A VM that never ran.
fn stopped_vm(home: &Path, name: &str) {
    let store = Store::open(home).must("cannot open a state directory");
    let name: Name = name.parse().must("a name");
    let draft = store.create_vm(&name, &name).must("cannot create a VM");
    let record = json!({
        "name": name, "cluster": name,
        "image": {"reference": "none", "path": "/none", "sha256": null},
        "cpus": 1, "memory": 256 << 20, "disk": 2_u64 << 30,
        "mac": "02:00:00:00:00:09", "ip": "10.187.41.9", "created": now(), "instance_id": "none",
        "ssh_user": "fleetbox", "ssh_key": "", "host_key": "",
    });
    let record: VmRecord = serde_json::from_value(record).must("not a record");
    draft.commit(&record).must("cannot create a VM");
}
