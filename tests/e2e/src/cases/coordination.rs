//! Programs that use the same VM at once and interfere with each other: the cases of the library's
//! `tests/coordination.rs`, once with a guest. What a killed owner, worker or machine leaves is among the kills.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Output, Stdio};
use std::thread;
use std::time::Duration;

use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{SigHandler, Signal, signal};
use serde_json::{Value, json};

use super::cli::{QUICK, listed, run, text};
use super::verbs::{BOOT, SMALL};
use crate::host;
use crate::report::{Must, uses};
use crate::suite::Suite;

/// The VM that all of them use.
const NAME: &str = "crowd";
/// A version of the protocol that nobody speaks.
const OTHER: u32 = 9999;

/// One VM and one boot for all.
pub(crate) fn of_commands(suite: &Suite) {
    uses(NAME);
    let image = suite.tiny();
    let setup = suite.dir().join("crowd.yaml");
    fs::write(
        &setup,
        "write_files:\n- {path: /etc/crowd, content: here}\n",
    )
    .must("cannot write a file");
    let setup = setup.display().to_string();
    let new = ["up", NAME, "--image", &image, "--user-data", &setup];
    let create = [&new[..], &SMALL].concat();
    // The case may run a second time.
    host::run(suite.fleetbox(&["rm", "--force", NAME]), QUICK);
    run(suite, &["images", "pull", &image], 0, QUICK);
    full_disk(suite, &create);

    // A VM that is not started has no time to do it in.
    let not_timed = &SMALL[..SMALL.len() - 2];
    let create = [&new[..], not_timed, &["--no-start"]].concat();
    run(suite, &create, 0, QUICK);
    let socket = socket(suite);
    fs::write(&socket, "no socket").must("cannot write a file");
    assert_eq!(state(suite), "stopped");
    let down = run(suite, &["down", NAME], 0, QUICK);
    assert!(text(&down).contains("was not running"), "{}", text(&down));

    let mut killed = start(suite, &["up", NAME]);
    // The guest has begun to boot, and the command waits for it.
    host::within(QUICK, || match host::processes("machine", NAME).len() {
        1 => Ok(()),
        n => Err(format!("{n} machines")),
    })
    .must(NAME);
    killed.kill().must("cannot kill a command");
    killed.wait().must("cannot wait for a command");
    let up = [
        "up",
        NAME,
        "--timeout",
        "240",
        "--wait",
        "port:22",
        "--wait",
        "command:grep here /etc/crowd",
    ];
    for output in at_once(suite, &up, BOOT) {
        assert!(output.status.success(), "{}", host::both(&output));
    }
    assert_eq!(state(suite), "running");
    host::process("worker", NAME);
    let machine = host::process("machine", NAME);

    stranger(&socket);
    another_version(suite, &socket);
    assert_eq!(host::process("machine", NAME), machine);
    let hostname = ["exec", NAME, "--", "hostname"];
    assert_eq!(text(&run(suite, &hostname, 0, QUICK)), NAME);

    let downs = at_once(suite, &["down", NAME], Duration::from_secs(120));
    assert!(
        downs.iter().all(|output| output.status.success()),
        "{downs:?}"
    );
    assert!(
        downs
            .iter()
            .any(|output| text(output).contains("powered off")),
        "{downs:?}"
    );
    host::assert_quiet(&suite.vm_dir(NAME), NAME, true);
    assert_eq!(state(suite), "stopped");
    run(suite, &["rm", NAME], 0, QUICK);
}

fn socket(suite: &Suite) -> PathBuf {
    let dir = suite.vm_dir(NAME);
    dir.with_file_name("worker.sock")
}

fn state(suite: &Suite) -> Value {
    listed(suite, NAME).map_or(Value::Null, |vm| vm["state"].clone())
}

fn start(suite: &Suite, arguments: &[&str]) -> Child {
    let mut command = suite.fleetbox(arguments);
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command.spawn().must("cannot start fleetbox")
}

/// Runs a command three times at once.
fn at_once(suite: &Suite, arguments: &[&str], limit: Duration) -> Vec<Output> {
    let children: Vec<_> = (0..3).map(|_| start(suite, arguments)).collect();
    children
        .into_iter()
        .map(|child| host::finish(child, limit, &arguments.join(" ")))
        .collect()
}

/// On a host that cannot store a VM there is nothing of it.
fn full_disk(suite: &Suite, create: &[&str]) {
    let mut up = suite.fleetbox(create);
    let limit = || {
        // As on a full disk a write fails, here for files of more than so many bytes.
        setrlimit(Resource::RLIMIT_FSIZE, 2048, 2048)?;
        // SAFETY: no handler is installed, so none runs in the child of a process with threads.
        unsafe { signal(Signal::SIGXFSZ, SigHandler::SigIgn) }?;
        Ok(())
    };
    // SAFETY: the closure only makes two system calls and allocates nothing.
    unsafe { up.pre_exec(limit) };
    let output = host::run(up, QUICK);
    assert_eq!(output.status.code(), Some(1), "{}", host::both(&output));
    assert!(
        String::from_utf8_lossy(&output.stderr).contains("File too large"),
        "{}",
        host::both(&output)
    );
    assert_eq!(state(suite), Value::Null);
    assert!(!suite.vm_dir(NAME).exists());
}

/// A client of another version learns the worker's, and no more.
fn stranger(socket: &Path) {
    let mut stream = UnixStream::connect(socket).must("cannot connect to the worker");
    stream
        .set_read_timeout(Some(QUICK))
        .must("cannot set a deadline");
    greet(&mut stream).must("cannot greet the worker");
    let hello = heard(&mut stream).must("the worker does not greet");
    assert!(hello["version"].is_string(), "{hello}");
    assert_ne!(hello["protocol"], json!(OTHER), "{hello}");
    let mut rest = Vec::new();
    stream
        .read_to_end(&mut rest)
        .must("the worker does not hang up");
    assert!(rest.is_empty(), "{rest:?}");
}

/// A worker of another version is named, and left alone.
fn another_version(suite: &Suite, socket: &Path) {
    let aside = socket.with_extension("aside");
    fs::rename(socket, &aside).must("cannot move the socket");
    let listener = UnixListener::bind(socket).must("cannot listen in the worker's place");
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            // What becomes of it is seen in what the command says.
            let _ = heard(&mut stream).and_then(|_| greet(&mut stream));
        }
    });
    for arguments in [["down", NAME], ["up", NAME], ["kill", NAME]] {
        let output = run(suite, &arguments, 1, QUICK);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            said.contains("cannot talk to") && said.contains("fleetbox 9.9.9"),
            "{said}"
        );
    }
    assert_eq!(state(suite), "running");
    fs::rename(&aside, socket).must("cannot move the socket back");
}

/// Says the first message of the protocol, whose form stays the same in all versions: the length of what follows, the
/// kind 0 of JSON, and the sender's version.
fn greet(stream: &mut UnixStream) -> std::io::Result<()> {
    let hello = json!({"protocol": OTHER, "version": "9.9.9"}).to_string();
    let mut frame = u32::try_from(hello.len())
        .unwrap_or_default()
        .to_le_bytes()
        .to_vec();
    frame.push(0);
    frame.extend(hello.bytes());
    stream.write_all(&frame)
}

fn heard(stream: &mut UnixStream) -> std::io::Result<Value> {
    let mut header = [0; 5];
    stream.read_exact(&mut header)?;
    let [a, b, c, d, _] = header;
    let mut hello = vec![0; u32::from_le_bytes([a, b, c, d]).min(1 << 16) as usize];
    stream.read_exact(&mut hello)?;
    Ok(serde_json::from_slice(&hello)?)
}
