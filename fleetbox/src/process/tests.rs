//! What is left after processes are killed, with a fake machine in place of the VMM.

mod confinement;
mod real;

use std::io::Read;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Duration;

use fleetbox_vmm::machine::BootSource;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use tokio::io::AsyncWriteExt as _;

use super::fake::Script;
use super::protocol::{Backend, Hello, MachineSpec, MemberId, Reply, Request};
use super::spawn::{self, Role};
use super::{ProcessError, socket, wire};
use crate::host::budget::{Claim, Want};
use crate::model::lifetime::Lifetime;
use crate::model::mac::MacAddr;
use crate::model::names::Name;
use crate::model::size::Size;
use crate::store::ephemeral;
use crate::store::{ImageRecord, Store, StoreError, VmDir, VmRecord, now};
use crate::testing::test_support::{eventually, processes, refuses, runs, skip};
use crate::vm::attach::{self, Attachment};

const SECONDS: Duration = Duration::from_secs(20);

/// A state directory and a name no other test has.
struct Fixture {
    _dir: tempfile::TempDir,
    store: Store,
    name: Name,
}

impl Fixture {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        // Longer than a socket address, as temporary directories tend to be.
        let store = Store::open(dir.path().join("long".repeat(30))).unwrap();
        let name = Name::new(format!("t{}", uuid::Uuid::new_v4().simple())).unwrap();
        Self {
            _dir: dir,
            store,
            name,
        }
    }

    /// Attaches as the library does, and starts the machine.
    fn start(
        &self,
        lifetime: Lifetime,
        script: Script,
    ) -> (Attachment, Result<bool, ProcessError>) {
        start(&self.store, &self.name, lifetime, script)
    }

    /// Another process that starts the VM and then sleeps for ever.
    fn owner(&self, lifetime: Lifetime, script: Script) -> (Child, UnixStream) {
        self.owner_by(lifetime, script, |command| command)
    }

    /// As [`Fixture::owner`], by a command that `change` has changed.
    fn owner_by(
        &self,
        lifetime: Lifetime,
        script: Script,
        change: impl FnOnce(&mut Command) -> &mut Command,
    ) -> (Child, UnixStream) {
        let task = Task::Start(Order {
            home: self.store.home().to_owned(),
            name: self.name.clone(),
            ephemeral: lifetime == Lifetime::Ephemeral,
            detached: lifetime == Lifetime::Detached,
            script,
        });
        run_task(&task, change)
    }

    /// Processes of this fixture's VM in a role.
    fn processes(&self, role: Role) -> Vec<Pid> {
        processes(role, self.name.as_str())
    }

    fn kill(&self, role: Role) {
        let processes = self.processes(role);
        assert_eq!(processes.len(), 1, "{role:?}");
        kill(processes[0], Signal::SIGKILL).unwrap();
    }

    fn vm(&self) -> Option<VmDir> {
        self.store.cluster(&self.name).vm(&self.name)
    }

    /// The VM, for its worker.
    fn id(&self) -> MemberId {
        MemberId::of(&self.vm().unwrap())
    }

    /// No process and no held lock.
    fn assert_quiet(&self) {
        let cluster = self.store.cluster(&self.name);
        eventually("no process and no lock is left", || {
            self.processes(Role::Worker).is_empty()
                && self.processes(Role::Machine).is_empty()
                && !cluster.is_running().unwrap()
                && self.vm().is_none_or(|vm| !vm.is_running().unwrap())
        });
    }

    /// Nothing at all in the file system.
    fn assert_gone(&self) {
        let cluster = self.store.cluster(&self.name);
        eventually("the cluster's directory is gone", || {
            !cluster.path().exists()
        });
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        // A failed test must not leave processes behind either.
        for role in [Role::Worker, Role::Machine] {
            for pid in self.processes(role) {
                let _ = kill(pid, Signal::SIGKILL);
            }
        }
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap()
}

fn create(store: &Store, name: &Name, lifetime: Lifetime) -> crate::error::Result<VmDir> {
    let draft = store.create_vm(name, name)?;
    std::fs::write(draft.paths().disk_layer(), b"disk").unwrap();
    if lifetime == Lifetime::Ephemeral {
        ephemeral::mark_ephemeral(draft.paths().dir()).unwrap();
    }
    let record = VmRecord {
        name: name.clone(),
        cluster: name.clone(),
        image: ImageRecord {
            reference: "tiny".into(),
            path: "/tiny".into(),
            sha256: None,
        },
        cpus: 1,
        memory: Size::mib(64),
        disk: Size::mib(64),
        mac: MacAddr([2, 0, 0, 0, 0, 1]),
        ip: Ipv4Addr::new(10, 187, 41, 2),
        created: now(),
        instance_id: "i".into(),
        ssh_user: "u".into(),
        ssh_key: "k".into(),
        host_key: "h".into(),
        fixtures: Vec::new(),
        config: crate::disk::seed::GuestConfig::default(),
        extra_disks: Vec::new(),
        network: crate::model::network::Network::User,
    };
    let (vm, _lock) = draft.commit(&record)?;
    Ok(vm)
}

fn spec(vm: &VmDir, script: Script) -> MachineSpec {
    MachineSpec {
        name: vm.name().to_string(),
        id: vm.id().map(str::to_owned),
        cpus: 1,
        memory: 64 << 20,
        boot: BootSource::Auto,
        disks: Vec::new(),
        mac: [2, 0, 0, 0, 0, 1],
        ip: Ipv4Addr::new(10, 187, 41, 2),
        console_log: vm.paths().console_log(),
        lock: vm.paths().lock(),
        failure_note: vm.paths().failure(),
        claim: None,
        backend: Backend::Fake(script),
    }
}

fn attach(
    store: &Store,
    name: &Name,
    lifetime: Lifetime,
    runtime: &tokio::runtime::Runtime,
) -> Attachment {
    let prepare = || match create(store, name, lifetime) {
        Ok(_) | Err(crate::error::Error::Store(StoreError::Exists { .. })) => Ok(()),
        Err(error) => Err(error),
    };
    attach::attach(store, name, lifetime, runtime.handle(), prepare).unwrap()
}

fn start(
    store: &Store,
    name: &Name,
    lifetime: Lifetime,
    script: Script,
) -> (Attachment, Result<bool, ProcessError>) {
    let runtime = runtime();
    let attached = attach(store, name, lifetime, &runtime);
    let vm = store.cluster(name).vm(name).unwrap();
    let started = runtime.block_on(attached.client.start(spec(&vm, script)));
    (attached, started.map(|(already, _)| already))
}

/// What another process does for a test.
#[derive(Serialize, Deserialize)]
enum Task {
    Start(Order),
    /// Logs that many bytes, and more.
    Log(usize),
    /// Panics that often, and goes on.
    Panic(usize),
}

#[derive(Serialize, Deserialize)]
struct Order {
    home: PathBuf,
    name: Name,
    ephemeral: bool,
    detached: bool,
    script: Script,
}

/// Starts another process for a task, by a command that `change` has changed.
fn run_task(task: &Task, change: impl FnOnce(&mut Command) -> &mut Command) -> (Child, UnixStream) {
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    wire::send(&mut ours, task).unwrap();
    let mut command = spawn::command(Role::Owner, "test", &[theirs.as_fd()]).unwrap();
    let child = change(&mut command).spawn().unwrap();
    (child, ours)
}

/// The process of a task.
pub(super) fn owner_main(fds: Vec<OwnedFd>) -> i32 {
    let mut control = UnixStream::from(fds.into_iter().next().unwrap());
    match wire::receive(&mut control).unwrap() {
        Task::Start(order) => own(control, order),
        Task::Panic(times) => {
            for number in 0..times {
                let caught = std::panic::catch_unwind(|| {
                    panic!("segment {}: two\nlines {}", number / 20, "x".repeat(5000))
                });
                assert!(caught.is_err());
            }
        }
        Task::Log(bytes) => {
            let line = "x".repeat(1000);
            for _ in 0..=bytes / line.len() {
                tracing::error!("{line}");
            }
        }
    }
    0
}

/// What the process that is killed does: starts the VM, says whether it ran already, and sleeps.
fn own(mut control: UnixStream, order: Order) {
    let lifetime = match (order.ephemeral, order.detached) {
        (true, _) => Lifetime::Ephemeral,
        (false, true) => Lifetime::Detached,
        (false, false) => Lifetime::Bound,
    };
    let store = Store::open(&order.home).unwrap();
    let (attached, started) = start(&store, &order.name, lifetime, order.script);
    wire::send(&mut control, &started.map_err(|e| e.to_string())).unwrap();
    // Until the test closes its end, or kills this process.
    let _ = control.read(&mut [0]);
    drop(attached);
}

fn answer(control: &mut UnixStream) -> Result<bool, String> {
    control.set_read_timeout(Some(SECONDS)).unwrap();
    wire::receive(control).unwrap()
}

/// Whether a process has that file or directory open.
fn has_open(process: Pid, path: &Path) -> bool {
    let fds = std::fs::read_dir(format!("/proc/{process}/fd")).unwrap();
    fds.flatten()
        .any(|fd| std::fs::read_link(fd.path()).is_ok_and(|to| to == path))
}

#[test]
fn a_start_that_waits_for_the_memory_queue_keeps_nobody_else_waiting() {
    let fixture = Fixture::new();
    let runtime = runtime();
    let attached = attach(&fixture.store, &fixture.name, Lifetime::Bound, &runtime);
    let home = fixture.store.home();
    // As another user of the host may do.
    let queue_dir = home.join("budget");
    std::fs::create_dir_all(&queue_dir).unwrap();
    let queue = std::fs::File::open(&queue_dir).unwrap();
    queue.lock().unwrap();
    let want = Want::new(fixture.name.clone(), fixture.name.clone(), Size::mib(64));
    let mut spec = spec(&fixture.vm().unwrap(), runs());
    spec.claim = Some(Claim::new(home, want));
    runtime.block_on(async {
        let client = attached.client.clone();
        let starting = tokio::spawn(async move { client.start(spec).await });
        let worker = fixture.processes(Role::Worker)[0];
        while !has_open(worker, &queue_dir) {
            assert!(!starting.is_finished());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let listed = tokio::time::timeout(Duration::from_secs(10), attached.client.list());
        listed.await.unwrap().unwrap();
        assert!(!starting.is_finished());
        queue.unlock().unwrap();
        let (already, _) = starting.await.unwrap().unwrap();
        assert!(!already);
    });
}

#[test]
fn a_killed_owner_leaves_its_vm_stopped_and_nothing_else() {
    let fixture = Fixture::new();
    let (mut owner, mut control) = fixture.owner(Lifetime::Bound, runs());
    assert_eq!(answer(&mut control), Ok(false));
    assert_eq!(fixture.processes(Role::Machine).len(), 1);
    assert!(fixture.vm().unwrap().is_running().unwrap());
    owner.kill().unwrap();
    owner.wait().unwrap();
    fixture.assert_quiet();
    assert!(fixture.vm().is_some());
    assert!(
        !fixture
            .store
            .cluster(&fixture.name)
            .path()
            .join(super::socket::NAME)
            .exists()
    );
}

#[test]
fn a_killed_owner_takes_its_ephemeral_vm_with_it() {
    let fixture = Fixture::new();
    let (mut owner, mut control) = fixture.owner(Lifetime::Ephemeral, runs());
    assert_eq!(answer(&mut control), Ok(false));
    owner.kill().unwrap();
    owner.wait().unwrap();
    fixture.assert_quiet();
    fixture.assert_gone();
}

#[test]
fn dropping_the_handle_is_enough() {
    let fixture = Fixture::new();
    let (attached, started) = fixture.start(Lifetime::Ephemeral, runs());
    assert!(!started.unwrap());
    drop(attached);
    fixture.assert_quiet();
    fixture.assert_gone();
}

#[test]
fn a_detached_vm_outlives_its_owner_until_it_is_stopped() {
    let fixture = Fixture::new();
    let (mut owner, mut control) = fixture.owner(Lifetime::Detached, runs());
    assert_eq!(answer(&mut control), Ok(false));
    let before = [Role::Worker, Role::Machine].map(|role| fixture.processes(role));
    owner.kill().unwrap();
    owner.wait().unwrap();

    // A worker that ends with its owner starts nothing from here on.
    let (attached, again) = fixture.start(Lifetime::Detached, runs());
    assert!(again.unwrap(), "it runs already");
    let after = [Role::Worker, Role::Machine].map(|role| fixture.processes(role));
    assert_eq!(before, after);
    let runtime = runtime();
    let tail = runtime
        .block_on(attached.client.console(&fixture.id()))
        .unwrap();
    assert_eq!(tail, "login: ");
    let forced = runtime
        .block_on(attached.client.stop(&fixture.id(), SECONDS))
        .unwrap();
    assert!(!forced);
    fixture.assert_quiet();
    assert!(fixture.vm().is_some());
    let log = std::fs::read_to_string(fixture.vm().unwrap().paths().console_log()).unwrap();
    assert_eq!(log, "login: Power down.\n");
}

#[test]
fn a_deaf_guest_is_stopped_by_force() {
    let fixture = Fixture::new();
    let (attached, started) = fixture.start(Lifetime::Bound, Script::Deaf);
    assert!(!started.unwrap());
    let id = fixture.id();
    let stop = attached.client.stop(&id, Duration::from_millis(200));
    let forced = runtime().block_on(stop);
    assert!(forced.unwrap());
    assert!(fixture.processes(Role::Machine).is_empty());
    assert!(!fixture.vm().unwrap().is_running().unwrap());
}

#[test]
fn a_machine_that_does_not_listen_can_be_killed() {
    let fixture = Fixture::new();
    let (attached, started) = fixture.start(Lifetime::Bound, runs());
    assert!(!started.unwrap());
    let machines = fixture.processes(Role::Machine);
    kill(machines[0], Signal::SIGSTOP).unwrap();
    runtime().block_on(async {
        let vm = &fixture.id();
        let mut serial = attached.client.serial(vm).await.unwrap();
        // More than any socket holds.
        serial.write_all(&vec![b'x'; 4 << 20]).await.unwrap();
        let stopped = attached.client.stop(vm, Duration::ZERO);
        let forced = tokio::time::timeout(Duration::from_secs(10), stopped).await;
        assert!(forced.unwrap().unwrap());
    });
    assert!(fixture.processes(Role::Machine).is_empty());
}

#[test]
fn after_a_killed_worker_the_next_start_works() {
    let fixture = Fixture::new();
    let (attached, started) = fixture.start(Lifetime::Detached, runs());
    assert!(!started.unwrap());
    fixture.kill(Role::Worker);
    fixture.assert_quiet();
    // The socket is still there, and says nothing.
    assert!(
        fixture
            .store
            .cluster(&fixture.name)
            .path()
            .join(super::socket::NAME)
            .exists()
    );
    let lost = runtime().block_on(attached.client.list());
    assert!(
        matches!(lost, Err(ProcessError::NoWorker { .. })),
        "{lost:?}"
    );

    let (attached, started) = fixture.start(Lifetime::Detached, runs());
    assert!(!started.unwrap());
    let target = fixture.id();
    let forgotten = attached.client.forget(&target, true);
    runtime().block_on(forgotten).unwrap();
    fixture.assert_quiet();
}

#[test]
fn a_terminated_worker_clears_away() {
    let fixture = Fixture::new();
    let (attached, started) = fixture.start(Lifetime::Ephemeral, runs());
    assert!(!started.unwrap());
    let worker = fixture.processes(Role::Worker);
    kill(worker[0], Signal::SIGTERM).unwrap();
    fixture.assert_quiet();
    fixture.assert_gone();
    drop(attached);
}

#[test]
fn a_killed_machine_is_that_vms_failure() {
    let fixture = Fixture::new();
    let (attached, started) = fixture.start(Lifetime::Bound, runs());
    assert!(!started.unwrap());
    let runtime = runtime();
    eventually("the console's output has arrived", || {
        runtime
            .block_on(attached.client.console(&fixture.id()))
            .unwrap()
            .contains("login")
    });
    fixture.kill(Role::Machine);
    let report = runtime
        .block_on(attached.client.wait(&fixture.id()))
        .unwrap();
    let failure = report.failure.unwrap();
    assert!(
        failure.contains("SIGKILL") && failure.contains("login:"),
        "{failure}"
    );
    let machines = runtime.block_on(attached.client.list()).unwrap();
    assert!(!machines[0].running);
    assert!(!fixture.vm().unwrap().is_running().unwrap());

    let again = runtime
        .block_on(attached.client.start(spec(&fixture.vm().unwrap(), runs())))
        .unwrap();
    assert!(!again.0, "started anew");
}

#[test]
fn a_worker_whose_owner_is_gone_starts_nothing_any_more() {
    let runtime = runtime();
    for script in [runs(), Script::Deaf] {
        let fixture = Fixture::new();
        let (attached, started) = fixture.start(Lifetime::Bound, script);
        started.unwrap();
        let worker = fixture.processes(Role::Worker)[0];
        kill(worker, Signal::SIGSTOP).unwrap();
        drop(attached.lifeline);
        // When it goes on it hears of the end and of both requests in the same moment.
        let spec = spec(&fixture.vm().unwrap(), runs());
        let requests = [Request::List, Request::Start(Box::new(spec))];
        let cluster = fixture.store.cluster(&fixture.name);
        runtime.block_on(async {
            let mut asked = Vec::new();
            for request in &requests {
                let mut stream = socket::connect(cluster.path()).await.unwrap();
                wire::send_async(&mut stream, &Hello::own()).await.unwrap();
                wire::send_async(&mut stream, request).await.unwrap();
                asked.push(stream);
            }
            kill(worker, Signal::SIGCONT).unwrap();
            for mut stream in asked {
                // It may have ended before it could greet.
                if wire::receive_async::<Hello>(&mut stream).await.is_ok() {
                    let reply = wire::receive_async::<Reply>(&mut stream).await;
                    assert!(reply.is_err(), "{reply:?}");
                }
            }
        });
        let late = runtime.block_on(attached.client.list());
        assert!(
            matches!(
                late,
                Err(ProcessError::NoWorker { .. } | ProcessError::Lost { .. })
            ),
            "{late:?}"
        );
        fixture.assert_quiet();
    }
}

#[test]
fn a_worker_that_was_let_go_starts_machines_without_its_owner() {
    let fixture = Fixture::new();
    let (attached, started) = fixture.start(Lifetime::Bound, runs());
    started.unwrap();
    attached.lifeline.as_ref().unwrap().let_go().unwrap();
    drop(attached.lifeline);
    let runtime = runtime();
    let (client, vm) = (&attached.client, fixture.vm().unwrap());
    let (already, _) = runtime.block_on(client.start(spec(&vm, runs()))).unwrap();
    assert!(already);
    assert_eq!(runtime.block_on(client.list()).unwrap().len(), 1);
    runtime
        .block_on(client.stop(&fixture.id(), SECONDS))
        .unwrap();
    fixture.assert_quiet();
}

#[test]
fn failures_carry_the_reason_and_the_console() {
    let fixture = Fixture::new();
    let (attached, refused) = fixture.start(Lifetime::Bound, refuses());
    let refused = refused.unwrap_err().to_string();
    assert!(refused.contains("no such kernel"), "{refused}");

    let runtime = runtime();
    for (script, expected) in [
        (
            Script::Fail {
                console: "Oops".to_owned(),
                error: "triple fault".to_owned(),
            },
            "triple",
        ),
        (
            Script::Abort {
                console: "Oops".to_owned(),
            },
            "SIGABRT",
        ),
    ] {
        // It may fail before or after the start is acknowledged.
        let message =
            match runtime.block_on(attached.client.start(spec(&fixture.vm().unwrap(), script))) {
                Err(error) => error.to_string(),
                Ok(_) => runtime
                    .block_on(attached.client.wait(&fixture.id()))
                    .unwrap()
                    .failure
                    .unwrap(),
            };
        assert!(
            message.contains(expected) && message.contains("Oops"),
            "{message}"
        );
    }
}

#[test]
fn two_starts_at_once_give_one_machine() {
    let fixture = Fixture::new();
    let mut owners: Vec<_> = (0..3)
        .map(|_| fixture.owner(Lifetime::Detached, runs()))
        .collect();
    let answers: Vec<_> = owners
        .iter_mut()
        .map(|(_, control)| answer(control))
        .collect();
    let first = answers
        .iter()
        .filter(|answer| **answer == Ok(false))
        .count();
    let others = answers.iter().filter(|answer| **answer == Ok(true)).count();
    assert_eq!((first, others), (1, 2), "{answers:?}");
    assert_eq!(fixture.processes(Role::Machine).len(), 1);
    assert_eq!(fixture.processes(Role::Worker).len(), 1);
    for (owner, _) in &mut owners {
        owner.kill().unwrap();
        owner.wait().unwrap();
    }
}

#[test]
fn what_killed_processes_left_is_swept() {
    let fixture = Fixture::new();
    // An ephemeral VM whose worker was killed, and a VM half-created.
    let (attached, started) = fixture.start(Lifetime::Ephemeral, runs());
    assert!(!started.unwrap());
    let other = Name::new("kept").unwrap();
    create(&fixture.store, &other, Lifetime::Bound).unwrap();
    crate::vm::sweep::sweep(&fixture.store).unwrap();
    assert!(fixture.vm().is_some(), "in use");
    fixture.kill(Role::Worker);
    fixture.assert_quiet();
    drop(attached);
    assert!(fixture.vm().is_some());
    crate::vm::sweep::sweep(&fixture.store).unwrap();
    fixture.assert_gone();
    assert!(fixture.store.cluster(&other).vm(&other).is_some());
}
