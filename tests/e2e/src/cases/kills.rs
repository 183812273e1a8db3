//! `kill -9` of each process of a VM: nothing is left but the disk, and the disk boots again.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::Duration;

use clap::Args;
use fleetbox::{Fleet, Size, Vm};

use crate::host;
use crate::report::{Must, uses};
use crate::suite::Suite;

/// The VM that the cases kill in turn.
const VICTIM: &str = "victim";

/// The process that owns a VM and is killed.
#[derive(Debug, Args)]
pub(crate) struct Owner {
    /// Name of the VM; a test VM without one.
    name: Option<String>,
    /// Its image.
    #[arg(long)]
    image: String,
}

impl Owner {
    /// Starts the VM, says so, and sleeps.
    pub(crate) fn run(self) -> ExitCode {
        let builder = match self.name {
            Some(name) => fleetbox::blocking::Vm::builder(name),
            None => fleetbox::blocking::Vm::test(),
        };
        let started = builder
            .image(self.image)
            .cpus(1)
            .memory(Size::mib(256))
            .disk(Size::gib(2))
            .boot_timeout(Duration::from_secs(240))
            .start();
        let vm = match started {
            Ok(vm) => vm,
            Err(error) => {
                println!("failed: {error}");
                return ExitCode::FAILURE;
            }
        };
        println!("started {}", vm.name());
        // Without anybody to kill it, it ends by itself.
        std::thread::sleep(Duration::from_secs(600));
        drop(vm);
        ExitCode::FAILURE
    }
}

/// Leaves a disk that is in use: files half written, a journal to be replayed.
fn make_dirty(suite: &Suite, vm: &Vm, file: &str) {
    suite.sh(vm, &format!("echo {file} >{file}; sync"));
    suite.sh(
        vm,
        "(while :; do echo more >>dirt; mkdir -p d; rm -r d; done) >/dev/null 2>&1 & sleep 1; echo",
    );
}

/// What was synced is there after the next boot; the disk works.
fn assert_usable(suite: &Suite, vm: &Vm, file: &str) {
    assert_eq!(suite.sh(vm, &format!("cat {file}")), file);
    assert_eq!(
        suite.sh(vm, "echo works >new; sync; cat new; rm new"),
        "works"
    );
}

pub(crate) fn machine(suite: &Suite) {
    let vm = suite.start(VICTIM);
    make_dirty(suite, &vm, "machine");
    host::kill_now(host::process("machine", VICTIM));
    let failure =
        suite.block(async { tokio::time::timeout(Duration::from_secs(30), vm.wait()).await });
    let failure = failure
        .must("the end was not reported")
        .expect_err("a kill is no power-off")
        .to_string();
    assert!(
        failure.contains("signal") && failure.contains(VICTIM),
        "{failure}"
    );
    drop(vm);
    host::assert_quiet(&suite.vm_dir(VICTIM), VICTIM, true);
    let vm = suite.start(VICTIM);
    assert_usable(suite, &vm, "machine");
    suite.keep(vm);
}

pub(crate) fn worker(suite: &Suite) {
    let vm = suite.start(VICTIM);
    make_dirty(suite, &vm, "worker");
    let machine = host::process("machine", VICTIM);
    host::kill_now(host::process("worker", VICTIM));
    // The socket file stays and means nothing without the lock.
    host::assert_quiet(&suite.vm_dir(VICTIM), VICTIM, false);
    assert!(!host::processes("machine", VICTIM).contains(&machine));
    let error = suite
        .block(vm.ssh("true"))
        .expect_err("a command ran in a killed VM")
        .to_string();
    assert!(!error.is_empty());
    suite.unkeep();
    drop(vm);
    let vm = suite.start(VICTIM);
    assert_usable(suite, &vm, "worker");
    suite.block(vm.stop()).must("cannot stop the VM");
}

/// Starts this program as an owner.
fn start_owner(suite: &Suite, name: Option<&str>) -> Child {
    let mut command = Command::new("/proc/self/exe");
    command
        .arg("owner")
        .args(name)
        .args(["--image", &suite.tiny()]);
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .must("cannot start an owner")
}

/// Waits until an owner has started its VM.
fn first_line(owner: &mut Child) -> String {
    let mut line = String::new();
    BufReader::new(owner.stdout.as_mut().expect("piped"))
        .read_line(&mut line)
        .must("cannot hear the owner");
    line.trim().to_owned()
}

pub(crate) fn owner(suite: &Suite) {
    uses(VICTIM);
    let mut owner = start_owner(suite, Some(VICTIM));
    assert_eq!(first_line(&mut owner), format!("started {VICTIM}"));
    let home = suite.home();
    let vm = suite
        .block(Fleet::at(&home).open(VICTIM))
        .must("cannot open the VM");
    make_dirty(suite, &vm, "owner");
    owner.kill().must("cannot kill the owner");
    owner.wait().must("cannot wait for the owner");
    host::assert_quiet(&suite.vm_dir(VICTIM), VICTIM, true);
    assert!(
        suite.vm_dir(VICTIM).is_dir(),
        "a named VM outlives its owner's process"
    );
    drop(vm);
    let vm = suite.start(VICTIM);
    assert_usable(suite, &vm, "owner");
    suite.block(vm.destroy()).must("cannot destroy the VM");
    assert!(!suite.vm_dir(VICTIM).exists());
}

/// A test VM is gone with its owner, which here is killed while the guest boots.
pub(crate) fn owner_of_test_vm(suite: &Suite) {
    let before = names(suite);
    let mut owner = start_owner(suite, None);
    let name = host::within(Duration::from_secs(60), || {
        let new = names(suite)
            .into_iter()
            .find(|name| !before.contains(name))
            .ok_or("no VM was created")?;
        if host::processes("machine", &new).is_empty() {
            Err("no machine runs".to_owned())
        } else {
            Ok(new)
        }
    })
    .must("the owner's VM");
    uses(&name);
    owner.kill().must("cannot kill the owner");
    owner.wait().must("cannot wait for the owner");
    host::assert_quiet(&suite.vm_dir(&name), &name, true);
    host::within(Duration::from_secs(20), || {
        if suite.vm_dir(&name).exists() {
            Err("its directory is left".to_owned())
        } else {
            Ok(())
        }
    })
    .must(&name);
}

fn names(suite: &Suite) -> Vec<String> {
    let home = suite.home();
    suite
        .block(Fleet::at(&home).list())
        .must("cannot list VMs")
        .into_iter()
        .map(|vm| vm.name)
        .collect()
}
