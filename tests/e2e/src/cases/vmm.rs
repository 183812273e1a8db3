//! The debugging binary.

use std::io::Read;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};

use crate::host;
use crate::report::Must;
use crate::suite::Suite;

/// How long the tiny image may take to its login prompt.
const BOOT: Duration = Duration::from_secs(240);

/// An image runs to its login prompt on standard output; told to end, the guest powers itself off, which is success.
pub(crate) fn login_prompt(suite: &Suite) {
    let image = suite.image_file("tiny.raw");
    let mut child = Command::new(host::program("fleetbox-vmm"))
        .args(["run", "--memory", "256M", "--net", "user", "--image"])
        .arg(&image)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .must("cannot start fleetbox-vmm");
    let pid = host::pid_of(&child);
    let mut out = child.stdout.take().expect("piped");
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(n @ 1..) = out.read(&mut buffer) {
            if sender.send(buffer[..n].to_vec()).is_err() {
                return;
            }
        }
    });
    let mut console = String::new();
    let deadline = Instant::now() + BOOT;
    while !console.contains("login: ") {
        match receiver.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(bytes) => console.push_str(&String::from_utf8_lossy(&bytes)),
            Err(_) => {
                // It may have ended by itself.
                let _ = kill(pid, Signal::SIGKILL);
                let output = child.wait_with_output().must("fleetbox-vmm");
                panic!(
                    "no login prompt; {}; the console: {console}",
                    host::both(&output)
                );
            }
        }
    }
    kill(pid, Signal::SIGTERM).must("cannot signal");
    let output = host::finish(child, Duration::from_secs(120), "fleetbox-vmm run");
    console.extend(
        receiver
            .try_iter()
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned()),
    );
    assert_eq!(
        output.status.code(),
        Some(0),
        "{}; the console: {console}",
        host::both(&output)
    );
    assert!(
        console.contains("tiny: down"),
        "the guest did not shut down in order: {console}"
    );
}
