//! A state directory for the tests, and the program in it.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

pub(crate) const RUNS: &str = r#"{"Run": {"console": "login: "}}"#;
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// A state directory, an image, and VMs whose names no other test has.
pub(crate) struct Host {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) stem: String,
    /// Name of the state directory.
    state: String,
}

impl Host {
    pub(crate) fn new(stem: &str) -> Self {
        Self::with_state(stem, "state")
    }

    pub(crate) fn with_state(stem: &str, state: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("disk.raw"), vec![7; 1 << 20]).unwrap();
        Self {
            dir,
            stem: format!("{stem}{}", std::process::id()),
            state: state.to_owned(),
        }
    }

    pub(crate) fn home(&self) -> PathBuf {
        self.dir.path().join(&self.state)
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_fleetbox"));
        command
            .args(arguments)
            .env("FLEETBOX_HOME", self.home())
            .env("HOME", self.dir.path())
            .env("FLEETBOX_MEMORY_BUDGET", "unlimited")
            .env("FLEETBOX_BUDGET_DIR", self.dir.path().join("budget"))
            .env("FLEETBOX_FAKE", RUNS)
            .env_remove("FLEETBOX_FAKE_PROTOCOL")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    pub(crate) fn up(&self) -> Command {
        let image = self.dir.path().join("disk.raw");
        self.command(&[
            "up",
            &self.stem,
            "--disk",
            "8M",
            "--image",
            image.to_str().unwrap(),
        ])
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// Name and state of each VM.
    pub(crate) fn states(&self) -> Vec<(String, String)> {
        let output = succeeded(self.run(&["ls", "--json"]));
        let vms: Value = serde_json::from_slice(&output.stdout).unwrap();
        let text = |vm: &Value, key: &str| vm[key].as_str().unwrap().to_owned();
        let vms = vms.as_array().unwrap();
        vms.iter()
            .map(|vm| (text(vm, "name"), text(vm, "state")))
            .collect()
    }

    pub(crate) fn state(&self) -> String {
        let states = self.states();
        assert_eq!(states.len(), 1, "{states:?}");
        states[0].1.clone()
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.home()
            .join("clusters")
            .join(&self.stem)
            .join("worker.sock")
    }

    /// The processes of the VM `name` or, as a worker, of its cluster.
    pub(crate) fn processes(&self, role: &str, name: &str) -> Vec<Pid> {
        let wanted = format!("fleetbox-{role}: {name}\0");
        let entries = std::fs::read_dir("/proc").unwrap().flatten();
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        pids.filter(|pid: &i32| {
            std::fs::read(format!("/proc/{pid}/cmdline"))
                .is_ok_and(|line| line.starts_with(wanted.as_bytes()))
        })
        .map(Pid::from_raw)
        .collect()
    }

    pub(crate) fn kill(&self, role: &str, name: &str) {
        let found = self.processes(role, name);
        assert_eq!(found.len(), 1, "{role} of {name}");
        kill(found[0], Signal::SIGKILL).unwrap();
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // A failed test must not leave processes behind either.
        let members = (1..=3).map(|index| format!("{}-{index}", self.stem));
        for name in members.chain([self.stem.clone()]) {
            for role in ["worker", "machine"] {
                for pid in self.processes(role, &name) {
                    let _ = kill(pid, Signal::SIGKILL);
                }
            }
        }
    }
}

#[track_caller]
pub(crate) fn succeeded(output: Output) -> Output {
    assert!(output.status.success(), "{}", said(&output));
    output
}

pub(crate) fn said(output: &Output) -> String {
    format!(
        "{:?} {} {}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

#[track_caller]
pub(crate) fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[track_caller]
pub(crate) fn assert_nothing_left(home: &Path) {
    let clusters = std::fs::read_dir(home.join("clusters"));
    let left: Vec<_> = clusters
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    assert!(left.is_empty(), "{left:?}");
}
