//! The builder's options for configuration and readiness, with a fake machine.

use std::time::Duration;

use crate::disk::extra_disk::ExtraDisk;
use crate::error::{Error, VmFate};
use crate::model::names::Reference;
use crate::model::ready::Ready;
use crate::model::size::Size;
use crate::process::fake::Script;
use crate::store::Store;
use crate::testing::test_support::{Home, eventually};
use crate::vm::Vm;
use crate::vm::builder::VmBuilder;
use crate::vm::fleet::Fleet;

impl Home {
    fn quick(&self, script: Script) -> VmBuilder {
        self.scripted(Vm::builder("web"), script)
            .boot_timeout(Duration::from_millis(400))
    }

    fn prints(&self, console: &str) -> VmBuilder {
        self.quick(Script::Run {
            console: console.to_owned(),
        })
    }
}

#[tokio::test]
async fn a_console_is_waited_for() {
    let home = Home::new();
    let vm = home
        .prints("one\n\x1b[1mtwo\x1b[0m 42\r\nthree")
        .wait_for(Ready::Console("(?m)^two [0-9]+$".into()))
        .start()
        .await
        .unwrap();
    vm.wait_for(Ready::Console("three".into()), Duration::from_secs(20))
        .await
        .unwrap();
    let error = vm
        .wait_for(Ready::Console("four".into()), Duration::from_millis(300))
        .await
        .unwrap_err();
    assert!(matches!(error, Error::NotReady { .. }), "{error:?}");
    let error = error.to_string();
    assert!(error.contains("/four/ on the console"), "{error}");
    assert!(error.contains("two 42\nthree"), "the tail: {error}");
}

/// What an error says is left, and its text.
fn left(error: Error) -> (VmFate, String) {
    let text = error.to_string();
    match error {
        Error::NotReady { left, .. } => (left, text),
        error => panic!("{error:?}"),
    }
}

#[tokio::test]
async fn what_is_left_of_a_vm_that_does_not_come_up_is_so() {
    let home = Home::new();
    let never = || Ready::Console("never".into());
    let web = Reference::new("web".parse().unwrap(), "web".parse().unwrap());
    let builder = home.prints("login: ").wait_for(never());
    // It has no handle left, so it ends.
    let (what, text) = left(builder.clone().start().await.unwrap_err());
    assert_eq!(what, VmFate::Stopped(Box::new(web.clone())));
    assert!(text.ends_with("`fleetbox rm web` deletes it"), "{text}");
    let dir = Fleet::at(home.path()).find("web").await.unwrap();
    eventually("it is stopped", || !dir.is_running().unwrap());
    let held = home.prints("login: ").start().await.unwrap();
    let limit = Duration::from_millis(200);
    let (what, _) = left(held.wait_for(never(), limit).await.unwrap_err());
    assert_eq!(what, VmFate::Held);
    assert!(dir.is_running().unwrap());
    drop(held);
    eventually("it is stopped", || !dir.is_running().unwrap());

    let started = builder.clone().detached().start().await;
    let (what, text) = left(started.unwrap_err());
    assert_eq!(what, VmFate::Running(Box::new(web.clone())));
    assert!(
        text.contains("web is still running and keeps its memory"),
        "{text}"
    );
    assert!(dir.is_running().unwrap());
    Fleet::at(home.path()).remove("web").await.unwrap();

    let (what, text) = left(builder.ephemeral().start().await.unwrap_err());
    assert_eq!(what, VmFate::Deleted);
    assert!(text.ends_with("it was deleted with its disk"), "{text}");
    eventually("nothing is left", || home.clusters() == 0);

    let cluster = home.cluster(crate::vm::cluster::Cluster::builder("node").count(2));
    let cluster = cluster.member("node-2", |vm| {
        vm.wait_for_within(Ready::Console("never".into()), Duration::from_millis(200))
    });
    let (what, _) = left(cluster.start().await.unwrap_err());
    assert_eq!(what, VmFate::Deleted);
    assert_eq!(home.clusters(), 0);
}

#[tokio::test]
async fn deadlines_name_what_was_awaited() {
    let home = Home::new();
    for (ready, shown) in [
        (Ready::Port(80), " waiting for TCP port 80; last attempt: "),
        (Ready::Console("x".into()), "/x/ on the console"),
    ] {
        let builder = home.prints("login: ").wait_for(ready.clone());
        let error = builder.start().await.unwrap_err().to_string();
        assert!(error.contains(shown), "{error}");
        assert!(error.contains("login:"), "{error}");
        let builder = home
            .prints("login: ")
            .boot_timeout(Duration::from_secs(60))
            .wait_for_within(ready, Duration::from_millis(200));
        let begun = std::time::Instant::now();
        builder.start().await.unwrap_err();
        assert!(begun.elapsed() < Duration::from_secs(30));
    }
}

#[tokio::test]
async fn a_machine_that_ends_is_not_waited_for() {
    let home = Home::new();
    let builder = home
        .quick(Script::Fail {
            console: "panic".into(),
            error: "it broke".into(),
        })
        .boot_timeout(Duration::from_secs(60))
        .wait_for(Ready::Port(80));
    let begun = std::time::Instant::now();
    let error = builder.start().await.unwrap_err().to_string();
    assert!(error.contains("it broke"), "{error}");
    assert!(begun.elapsed() < Duration::from_secs(30));
}

#[tokio::test]
async fn configuration_and_disks_are_recorded_and_kept() {
    let home = Home::new();
    let file = home.dir.path().join("data.raw");
    std::fs::write(&file, vec![9; 1 << 20]).unwrap();
    let builder = home
        .prints("")
        .user_data("locale: C.UTF-8")
        .package("curl")
        .run_command("touch /done")
        .env("COLOUR", "blue")
        .extra_disk(ExtraDisk::empty(Size::mib(64)))
        .extra_disk(ExtraDisk::file(&file).read_only());
    let vm = builder.clone().start().await.unwrap();
    let dir = home.path().join("clusters/web/web");
    let store = Store::open(home.path()).unwrap();
    let found = store.find(&"web".parse().unwrap()).unwrap();
    let record = found.first().unwrap().record().unwrap();
    assert_eq!(record.config.packages, ["curl"]);
    assert_eq!(record.config.commands, ["touch /done"]);
    assert_eq!(record.config.user_data[0]["locale"], "C.UTF-8");
    assert_eq!(record.extra_disks.len(), 2);
    assert!(record.extra_disks[1].is_read_only());
    for layer in ["extra-1.layer", "extra-2.layer"] {
        assert!(dir.join(layer).exists(), "{layer}");
    }
    vm.stop().await.unwrap();

    // Started again as it was, and not as something else.
    let other = home.prints("").env("COLOUR", "red").start().await;
    let differs = other.unwrap_err().to_string();
    assert!(
        differs.contains("its settings for the guest are not those that were given"),
        "{differs}"
    );
    assert_eq!(found[0].record().unwrap(), record);
    builder.start().await.unwrap();
}

#[tokio::test]
async fn what_is_wrong_is_refused_before_anything_is_created() {
    let home = Home::new();
    let disks = (0..9).fold(home.prints(""), |vm, _| {
        vm.extra_disk(ExtraDisk::empty(Size::mib(1)))
    });
    let cases = [
        home.prints("").user_data("hostname: other"),
        home.prints("").user_data("a: [1"),
        home.prints("").package("a b"),
        home.prints("").env("A B", "c"),
        home.prints("").ssh_key("no key"),
        home.prints("").run_command(""),
        home.prints("").extra_disk(ExtraDisk::file("/no/such/file")),
        home.prints("").wait_for(Ready::Console("(".into())),
        home.prints("").wait_for(Ready::Port(0)),
        home.prints("").wait_for(Ready::Command(" ".into())),
        disks,
    ];
    for builder in cases {
        let shown = format!("{builder:?}");
        assert!(builder.start().await.is_err(), "{shown}");
        assert!(!home.path().exists(), "{shown}");
    }
}
