//! The public API with a fake machine in place of the VMM.

use std::future::poll_fn;
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::blocking;
use crate::error::{Error, Result};
use crate::host::budget::Budget;
use crate::model::size::Size;
use crate::process::{Backend, ProcessError, Role};
use crate::progress::{Progress, ProgressEvent};
use crate::store::{Lock, StoreError, VmRecord};
use crate::testing::test_support::{Home, eventually, processes, refuses};
use crate::vm::Vm;
use crate::vm::cluster::Cluster;
use crate::vm::fleet::Fleet;
use crate::vm::list::VmState;
use crate::vm::stop::StopOutcome;

/// Tells that a start waits for memory.
struct Waits(tokio::sync::mpsc::UnboundedSender<()>);

impl Progress for Waits {
    fn event(&self, event: ProgressEvent<'_>) {
        if matches!(event, ProgressEvent::WaitingForMemory { .. }) {
            let _ = self.0.send(());
        }
    }
}

impl Home {
    async fn states(&self) -> Vec<(String, VmState)> {
        let vms = Fleet::at(self.path()).list().await.unwrap();
        vms.into_iter().map(|vm| (vm.name, vm.state)).collect()
    }
}

#[tokio::test]
async fn a_test_vm_is_gone_with_its_handle() {
    let home = Home::new();
    let vm = home.vm(Vm::test()).start().await.unwrap();
    assert!(
        vm.name()
            .starts_with("vm-vm-test-a-test-vm-is-gone-with-its-handle-"),
        "{}",
        vm.name()
    );
    assert_eq!(
        home.states().await,
        [(vm.name().to_owned(), VmState::Running)]
    );
    drop(vm);
    eventually("nothing is left", || home.clusters() == 0);
}

#[test]
fn a_drop_needs_no_runtime() {
    let home = Home::new();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let vm = runtime.block_on(home.vm(Vm::test()).start()).unwrap();
    drop(runtime);
    drop(vm);
    eventually("nothing is left", || home.clusters() == 0);
}

#[tokio::test]
async fn a_named_vm_is_started_once_and_keeps_its_disk() {
    let home = Home::new();
    let builder = home.vm(Vm::builder("web")).cpus(1);
    let first = builder.clone().start().await.unwrap();
    let layer = home.path().join("clusters/web/web/disk.layer");
    std::fs::metadata(&layer).unwrap();
    assert!(first.console_tail().await.unwrap().ends_with("login: "));

    // Other options are refused, and say how to change it.
    let other = builder.clone().cpus(2).memory(Size::gib(1));
    let differs = other.clone().start().await.unwrap_err().to_string();
    let expected = "web exists already and differs: its number of CPUs is 1, and 2 was given";
    let set = "`fleetbox set web --cpus 2 --memory 1G`";
    for part in [expected, "`fleetbox up web`", "`fleetbox down web`", set] {
        assert!(differs.contains(part), "{differs}");
    }
    assert!(matches!(other.create().await, Err(Error::Differs { .. })));
    let second = builder.clone().start().await.unwrap();
    drop(first);
    home.assert_served("web").await;
    assert_eq!(home.states().await, [("web".to_owned(), VmState::Running)]);

    assert_eq!(second.stop().await.unwrap(), StopOutcome::PoweredOff);
    assert!(second.stop().await.is_err(), "stopped already");
    let third = builder.start().await.unwrap();
    drop(second);
    drop(third);
    let mut states = home.states().await;
    let deadline = Instant::now() + Duration::from_secs(20);
    while states != [("web".to_owned(), VmState::Stopped)] && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(10)).await;
        states = home.states().await;
    }
    assert_eq!(states, [("web".to_owned(), VmState::Stopped)]);
    assert!(layer.exists());
    Fleet::at(home.path()).remove("web").await.unwrap();
    assert_eq!(home.clusters(), 0);
}

#[tokio::test]
async fn a_vm_that_is_let_go_and_started_at_once_runs() {
    let home = Home::new();
    let name = format!("t{}", uuid::Uuid::new_v4().simple());
    let mut before = Vec::new();
    for round in 0..15 {
        let vm = home.vm(Vm::builder(&name)).start().await.unwrap();
        // The worker of the one before may be ending, and must not take this one along.
        assert!(!vm.was_running(), "round {round}");
        let workers = processes(Role::Worker, &name);
        assert!(workers.len() == 1 && workers != before, "round {round}");
        before = workers;
        vm.console_tail().await.unwrap();
    }
}

#[tokio::test]
async fn a_detached_vm_is_found_by_name_and_removed_while_it_runs() {
    let home = Home::new();
    drop(
        home.vm(Vm::builder("box"))
            .detached()
            .start()
            .await
            .unwrap(),
    );
    let vm = Fleet::at(home.path()).open("box").await.unwrap();
    assert_eq!(vm.name(), "box");
    drop(vm);
    Fleet::at(home.path()).remove("box").await.unwrap();
    assert_eq!(home.clusters(), 0);
    assert!(matches!(
        Fleet::at(home.path()).open("box").await,
        Err(Error::NoVm { .. })
    ));
}

#[tokio::test]
async fn what_is_wrong_is_refused_before_anything_is_created() {
    let home = Home::new();
    let cases = [
        home.vm(Vm::builder("Bad_Name")),
        home.vm(Vm::builder("web")).cpus(0),
        home.vm(Vm::builder("web")).memory(Size::mib(1)),
        home.vm(Vm::builder("web")).disk(Size::from_bytes(17)),
        home.vm(Vm::builder("web")).image("no such image"),
        home.vm(Vm::builder("web")).user("root; rm"),
    ];
    for builder in cases {
        let shown = format!("{builder:?}");
        assert!(builder.start().await.is_err(), "{shown}");
        assert!(!home.path().exists(), "{shown}");
    }
    // The disk is found to be too small for the image when the VM is made, and the VM is not.
    let small = home.vm(Vm::builder("web")).disk(Size::from_bytes(4096 * 2));
    assert!(small.start().await.is_err());
    assert!(!home.path().join("clusters/web/web").exists());
}

#[tokio::test]
async fn fixtures_are_settled_at_creation_and_copied_at_each_start() {
    let home = Home::new();
    let data = home.dir.path().join("data");
    std::fs::create_dir(&data).unwrap();
    std::fs::write(data.join("file"), "one").unwrap();
    let image = home.path().join("clusters/web/web/fixture-00.img");
    let read = || {
        let fs = ext4_view::Ext4::load_from_path(&image).unwrap();
        fs.read_to_string("/file").unwrap()
    };
    let builder = home.vm(Vm::builder("web")).fixture(&data, "/work");
    let vm = builder.clone().start().await.unwrap();
    assert_eq!(read(), "one");

    // A VM that runs keeps what it has.
    std::fs::write(data.join("file"), "two").unwrap();
    let other = builder.clone().fixture(&data, "/other").start().await;
    let differs = other.unwrap_err().to_string();
    for part in [
        "its fixtures are not those that were given",
        "`fleetbox rm web`",
    ] {
        assert!(differs.contains(part), "{differs}");
    }
    let same = builder.clone().start().await.unwrap();
    assert_eq!(read(), "one");
    vm.stop().await.unwrap();
    drop((vm, same));

    // No fixture need be named again.
    let record = std::fs::read_to_string(home.path().join("clusters/web/web/vm.json")).unwrap();
    assert!(record.contains(data.to_str().unwrap()), "{record}");
    let vm = home.vm(Vm::builder("web")).start().await.unwrap();
    assert_eq!(read(), "two");
    vm.stop().await.unwrap();

    // Without its directory it does not start, and stays.
    std::fs::remove_dir_all(&data).unwrap();
    let error = home.vm(Vm::builder("web")).start().await.unwrap_err();
    assert!(
        error.to_string().contains(data.to_str().unwrap()),
        "{error}"
    );
    assert_eq!(read(), "two");
    assert_eq!(home.states().await.len(), 1);
    drop(vm);
}

#[tokio::test]
async fn a_fixture_that_cannot_be_copied_creates_nothing() {
    let home = Home::new();
    let data = home.dir.path().join("data");
    std::fs::create_dir(&data).unwrap();
    let socket = data.join("socket");
    let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    for builder in [
        home.vm(Vm::builder("web")).fixture(&data, "/work"),
        home.vm(Vm::test())
            .fixture(home.dir.path().join("missing"), "/work"),
        home.vm(Vm::test()).fixture(home.dir.path(), "/etc"),
    ] {
        let error = builder.start().await.unwrap_err();
        assert!(matches!(error, Error::Fixture(_)), "{error}");
        let left = home.path().join("clusters").read_dir();
        assert_eq!(left.map_or(0, Iterator::count), 0);
    }
    let error = home
        .vm(Vm::test())
        .fixture(&data, "/work")
        .start()
        .await
        .unwrap_err();
    assert!(
        error.to_string().contains(socket.to_str().unwrap()),
        "{error}"
    );
}

#[tokio::test]
async fn a_machine_that_cannot_start_says_why_and_leaves_nothing_running() {
    let home = Home::new();
    let mut builder = home.vm(Vm::test());
    builder.backend = Backend::Fake(refuses());
    let error = builder.start().await.unwrap_err().to_string();
    assert!(error.contains("no such kernel"), "{error}");
    eventually("nothing is left", || home.clusters() == 0);
}

#[tokio::test]
async fn the_blocking_facade_works_inside_a_runtime_too() {
    let home = Home::new();
    let vm = blocking::VmBuilder::from(home.vm(Vm::test()))
        .start()
        .unwrap();
    // What the machine has written reaches the worker a moment later.
    let deadline = Instant::now() + Duration::from_secs(20);
    while !vm.console_tail().unwrap().contains("login") {
        assert!(Instant::now() < deadline, "no login prompt");
        std::thread::sleep(Duration::from_millis(20));
    }
    vm.destroy().unwrap();
    assert_eq!(home.clusters(), 0);
}

#[test]
fn the_state_is_private() {
    use std::os::unix::fs::PermissionsExt as _;
    fn check(path: &Path) {
        let mode = std::fs::symlink_metadata(path)
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o077, 0, "{} {mode:o}", path.display());
        if path.is_dir() {
            for entry in std::fs::read_dir(path).unwrap() {
                check(&entry.unwrap().path());
            }
        }
    }
    let home = Home::new();
    let vm = blocking::VmBuilder::from(home.vm(Vm::builder("web")))
        .start()
        .unwrap();
    for entry in std::fs::read_dir(home.path()).unwrap() {
        let path = entry.unwrap().path();
        // A public key is for everybody, and so is the queue for memory, which only tests have here.
        if !path.ends_with("keys") && !path.ends_with("budget") {
            check(&path);
        }
    }
    vm.destroy().unwrap();
}

#[tokio::test]
async fn what_this_host_does_not_have_is_neither_created_nor_set_nor_started() {
    fn lacking<T>(result: crate::error::Result<T>, what: &str) {
        match result.map(drop) {
            Err(error @ Error::InsufficientResources(_)) => {
                let text = error.to_string();
                assert!(text.contains(what) && text.contains(" has "), "{text}");
            }
            other => panic!("{what}: {other:?}"),
        }
    }
    let home = Home::new();
    let fleet = Fleet::at(home.path());
    let (most, pib) = (crate::model::names::MAX_CPUS, Size::gib(1 << 10));
    let builder = || home.vm(Vm::builder("web")).memory_budget(Budget::UNLIMITED);
    lacking(builder().cpus(most).start().await, "CPUs: asked for 128");
    lacking(builder().cpus(most).create().await, "CPUs: asked for 128");
    lacking(builder().memory(pib).create().await, "memory: asked for 1T");
    lacking(
        builder().disk(Size::gib(64 << 10)).create().await,
        "disk space: asked for 64T",
    );
    assert_eq!(home.clusters(), 0, "nothing is left");

    // Those that exist, no matter which process created them.
    let vm = builder().start().await.unwrap();
    let running = vm.machine().unwrap();
    let change = |cpus, memory| fleet.resize("web", crate::vm::resize::Resize { cpus, memory });
    lacking(change(Some(most), None).await, "CPUs: asked for 128");
    lacking(change(None, Some(pib)).await, "memory: asked for 1T");
    assert_eq!(vm.machine().unwrap().cpus, running.cpus);
    let dir = fleet.find("web").await.unwrap();
    let good = dir.record().unwrap();
    let records = [
        (
            VmRecord {
                cpus: 128,
                ..good.clone()
            },
            "CPUs: asked for 128",
        ),
        (
            VmRecord {
                memory: pib,
                ..good.clone()
            },
            "memory: asked for 1T",
        ),
        (
            VmRecord {
                disk: Size::gib(64 << 10),
                ..good.clone()
            },
            "disk space: asked for 64T",
        ),
    ];
    for (record, what) in &records {
        dir.save_record(record).unwrap();
        lacking(vm.restart().await, what);
        let same = builder().disk(record.disk);
        lacking(same.restart(crate::vm::stop::STOP_DEADLINE).await, what);
        assert!(dir.is_running().unwrap(), "it was not stopped");
    }
    vm.stop().await.unwrap();
    for (record, what) in &records {
        dir.save_record(record).unwrap();
        lacking(vm.start().await, what);
        let same = builder().disk(record.disk);
        lacking(same.clone().start().await, what);
        assert!(!same.create().await.unwrap(), "it exists");
    }
    dir.save_record(&good).unwrap();
    vm.start().await.unwrap();
    vm.destroy().await.unwrap();
}

#[tokio::test]
async fn a_new_vm_never_is_one_that_exists() {
    let home = Home::new();
    let ours = home
        .vm(Vm::builder("web"))
        .detached()
        .start()
        .await
        .unwrap();
    let refused = home.vm(Vm::builder("web")).create_new().start().await;
    assert!(
        matches!(&refused, Err(Error::Store(StoreError::Exists { .. }))),
        "{refused:?}"
    );
    // Nor one of another cluster, however long either is to live, unless it is that of a test.
    let node = home.vm(Vm::builder("shop/node-1")).detached();
    let node = node.start().await.unwrap();
    for builder in [Vm::builder("node-1"), Vm::builder("node-1").ephemeral()] {
        let refused = home.vm(builder.create_new()).start().await;
        assert!(
            matches!(&refused, Err(Error::Store(StoreError::Exists { cluster, .. }))
                if cluster.as_str() == "shop"),
            "{refused:?}"
        );
    }
    let refused = home.vm(Vm::builder("node-1")).create_new().create().await;
    assert!(refused.is_err());
    node.destroy().await.unwrap();
    let test = home.cluster(Cluster::test().count(1)).start();
    let test = test.await.unwrap();
    let node = home.vm(Vm::builder("node-1")).create_new().start();
    node.await.unwrap().destroy().await.unwrap();
    test.destroy().await.unwrap();
    // Nor when it comes to be while the start waits for memory.
    let budget = Budget::of(Size::mib(256));
    let builder = |name| {
        home.vm(Vm::builder(name))
            .memory(Size::mib(256))
            .memory_budget(budget)
    };
    ours.destroy().await.unwrap();
    let first = builder("first").start().await.unwrap();
    let (told, mut waits) = tokio::sync::mpsc::unbounded_channel();
    let waiting = builder("web")
        .create_new()
        .progress(Arc::new(Waits(told)) as Arc<dyn Progress>);
    let mut waiting = tokio::spawn(waiting.start());
    tokio::select! {
        told = waits.recv() => told.unwrap(),
        _ = &mut waiting => panic!("it has not waited"),
    }
    let theirs = home.vm(Vm::builder("web")).create().await;
    theirs.unwrap();
    first.destroy().await.unwrap();
    let refused = waiting.await.unwrap();
    assert!(
        matches!(&refused, Err(Error::Store(StoreError::Exists { .. }))),
        "{refused:?}"
    );
    assert_eq!(home.states().await, [("web".to_owned(), VmState::Stopped)]);
}

#[tokio::test]
async fn a_vm_that_runs_without_an_answer_of_its_worker_is_not_said_to_be_stopped() {
    let home = Home::new();
    let fleet = Fleet::at(home.path());
    home.vm(Vm::builder("web")).create().await.unwrap();
    let dir = fleet.find("web").await.unwrap();
    let running = Lock::acquire(&dir.paths().lock()).unwrap();
    let stopped = fleet.stop("web", Duration::ZERO).await;
    assert!(
        matches!(stopped, Err(Error::Process(ProcessError::NoWorker { .. }))),
        "{stopped:?}"
    );
    // Its worker was killed, and it ends, too.
    let mut running = Some(running);
    let mut stopping = pin!(fleet.stop("web", Duration::ZERO));
    let mut looks = 0;
    let stopped = poll_fn(|context| {
        looks += 1;
        // Most are for the lock by then.
        if looks == 20 {
            running = None;
        }
        stopping.as_mut().poll(context)
    });
    let stopped = stopped.await;
    assert!(matches!(stopped, Ok(None)), "{stopped:?}");
    assert!(running.is_none(), "it was not awaited");
}

#[tokio::test]
async fn a_handle_never_means_a_later_vm_of_its_name() {
    let home = Home::new();
    let builder = home.vm(Vm::builder("web")).detached();
    let old = builder.clone().start().await.unwrap();
    // As another process does.
    let fleet = Fleet::at(home.path());
    fleet.remove("web").await.unwrap();
    let new = builder.clone().start().await.unwrap();

    for ended in [old.kill().await, old.stop().await.map(drop)] {
        assert!(ended.is_err_and(|error| error.is_not_running()));
    }
    let lost = |result: Result<()>| matches!(result, Err(Error::NoVm { .. }));
    assert!(lost(old.start().await));
    assert!(lost(old.restart().await));
    assert!(old.console_tail().await.is_err());
    assert!(old.publish(0, 80).await.is_err());
    old.destroy().await.unwrap();
    assert!(new.console_tail().await.unwrap().ends_with("login: "));
    assert_eq!(home.states().await, [("web".to_owned(), VmState::Running)]);

    // One that does not run is not started in place of the old one either.
    new.stop().await.unwrap();
    let old = new;
    fleet.remove("web").await.unwrap();
    builder.clone().create().await.unwrap();
    assert!(lost(old.start().await));
    assert_eq!(home.states().await, [("web".to_owned(), VmState::Stopped)]);
}

#[tokio::test]
async fn a_restart_that_cannot_succeed_stops_nothing() {
    let home = Home::new();
    let data = home.dir.path().join("data");
    std::fs::create_dir(&data).unwrap();
    let image = home.dir.path().join("other.raw");
    std::fs::copy(home.dir.path().join("disk.raw"), &image).unwrap();
    let builder = home.vm(Vm::builder("web")).fixture(&data, "/work");
    let builder = builder.image(image.to_str().unwrap());
    let vm = builder.clone().start().await.unwrap();
    let refused = async |path: &Path| {
        let moved = path.with_extension("moved");
        std::fs::rename(path, &moved).unwrap();
        let again = builder.clone().restart(Duration::from_secs(20)).await;
        for error in [
            again.map(drop).unwrap_err(),
            vm.restart().await.unwrap_err(),
        ] {
            let error = error.to_string();
            assert!(error.contains(path.to_str().unwrap()), "{error}");
        }
        assert_eq!(home.states().await, [("web".to_owned(), VmState::Running)]);
        std::fs::rename(&moved, path).unwrap();
    };
    refused(&data).await;
    refused(&image).await;
    vm.restart().await.unwrap();
}
