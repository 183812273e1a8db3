//! Tests that pass, fail and panic, with a fake machine in place of the VMM.

use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::expansion::Call;
use super::settings::Settings;
use super::{End, Verdict, drive};
use crate::blocking;
use crate::model::size::Size;
use crate::process::Backend;
use crate::process::fake::Script;
use crate::testing::test_support::{assert_served, refuses};
use crate::vm::Vm;
use crate::vm::builder::VmBuilder;
use crate::vm::cluster::{Cluster, ClusterBuilder};
use crate::vm::fleet::Fleet;
use crate::vm::list::VmState;

/// A state directory beside this program: a test's VM goes with it, so there is nothing to clean.
fn home() -> PathBuf {
    let exe = std::env::current_exe().unwrap();
    exe.with_file_name("fleetbox-testing-home")
}

fn script() -> Script {
    Script::Run {
        console: "booting\n\x1b[31mlogin: ".to_owned(),
    }
}

fn fake(mut builder: VmBuilder) -> VmBuilder {
    let home = home();
    std::fs::create_dir_all(&home).unwrap();
    let image = home.join(format!("disk-{}.raw", std::process::id()));
    let image = if image.exists() {
        image
    } else {
        let other = home.join(uuid::Uuid::new_v4().to_string());
        std::fs::write(&other, vec![7; 1 << 20]).unwrap();
        std::fs::rename(&other, &image).unwrap();
        image
    };
    builder.backend = Backend::Fake(script());
    builder
        .home(home.join("state"))
        .image(image.to_str().unwrap())
        .disk(Size::mib(8))
        .memory(Size::mib(32))
}

fn fake_cluster(builder: ClusterBuilder) -> ClusterBuilder {
    builder.count(2).each(fake).home(home().join("state"))
}

#[test]
fn a_closure_stands_for_the_test_that_it_is_in() {
    let within = || Call::of(&|| ()).path;
    let name = "a_closure_stands_for_the_test_that_it_is_in";
    assert!(
        within().ends_with(&format!("tests::{name}")),
        "{}",
        within()
    );
}

async fn state(name: &str) -> Option<VmState> {
    let vms = Fleet::at(home().join("state")).list().await.unwrap();
    vms.into_iter()
        .find(|vm| vm.name == name)
        .map(|vm| vm.state)
}

async fn gone(name: &str) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while state(name).await.is_some() {
        assert!(Instant::now() < deadline, "{name} is left");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

const CALL: Call = Call {
    path: "app::tests::boots",
    should_panic: None,
};

fn plain() -> Settings {
    Settings::default()
}

fn keeping() -> Settings {
    Settings {
        keep: true,
        ..Settings::default()
    }
}

fn failure(end: &End) -> &str {
    match &end.verdict {
        Verdict::Failed(why) => why,
        _ => panic!("the test did not fail by a result"),
    }
}

#[tokio::test]
async fn a_test_that_passes_leaves_nothing() {
    for settings in [plain(), keeping()] {
        let mut name = String::new();
        let end = drive(&CALL, settings, fake(Vm::test()), async |vm: Vm| {
            vm.name().clone_into(&mut name);
            assert_eq!(state(vm.name()).await, Some(VmState::Running));
        })
        .await;
        assert!(matches!(end.verdict, Verdict::Passed));
        assert_eq!(end.report, "");
        assert!(name.starts_with("app-tests-boots-"), "{name}");
        gone(&name).await;
    }
}

#[tokio::test]
async fn an_error_fails_the_test_and_shows_the_console() {
    let end = drive(&CALL, plain(), fake(Vm::test()), async |vm: Vm| {
        // Dropped before the test ends: its console is there all the same.
        drop(vm);
        Err("no answer".to_owned())
    })
    .await;
    assert_eq!(failure(&end), "\"no answer\"");
    assert!(
        end.report
            .contains("the end of its console\n| booting\n| login:"),
        "{}",
        end.report
    );
    assert!(!end.report.contains("kept") && !end.report.contains('\x1b'));
}

#[tokio::test]
async fn errors_of_the_library_are_shown_as_they_are_meant() {
    type Boxed = Box<dyn std::error::Error>;
    let end = drive(&CALL, plain(), fake(Vm::test()), async |_vm| {
        Fleet::at(home().join("state")).open("no-such-vm").await?;
        Ok::<(), crate::error::Error>(())
    })
    .await;
    assert!(failure(&end).starts_with("no VM named no-such-vm"));
    let end = drive(&CALL, plain(), fake(Vm::test()), async |_vm| {
        Fleet::at(home().join("state")).open("no-such-vm").await?;
        Ok::<(), Boxed>(())
    })
    .await;
    assert!(failure(&end).starts_with("no VM named no-such-vm"));
}

#[tokio::test]
async fn a_panic_stays_what_it_is_and_shows_the_console() {
    let end = drive(&CALL, plain(), fake(Vm::test()), async |_vm: Vm| -> () {
        std::panic::resume_unwind(Box::new(42_u8));
    })
    .await;
    let Verdict::Panicked(panic) = end.verdict else {
        panic!("no panic");
    };
    assert_eq!(panic.downcast_ref(), Some(&42_u8));
    assert!(end.report.contains("login:"), "{}", end.report);
}

#[tokio::test]
async fn a_panic_that_is_expected_is_no_failure() {
    let call = Call {
        should_panic: Some(""),
        ..CALL
    };
    let mut name = String::new();
    let end = drive(&call, keeping(), fake(Vm::test()), async |vm: Vm| -> () {
        vm.name().clone_into(&mut name);
        std::panic::resume_unwind(Box::new(42_u8));
    })
    .await;
    assert!(matches!(end.verdict, Verdict::Panicked(_)));
    assert_eq!(end.report, "");
    gone(&name).await;
}

#[tokio::test]
async fn a_vm_of_a_failed_test_is_kept_where_that_is_asked_for() {
    let mut name = String::new();
    let end = drive(&CALL, keeping(), fake(Vm::test()), async |vm: Vm| {
        vm.name().clone_into(&mut name);
        Err(17)
    })
    .await;
    assert_eq!(failure(&end), "17");
    let enter = format!("state' fleetbox ssh {name}`, remove it with");
    assert!(end.report.contains(&enter), "{}", end.report);
    // Its owner has let go of it.
    let home = home().join("state");
    assert_served(&home, &name).await;
    let vm = Fleet::at(&home).open(&name).await.unwrap();
    assert!(vm.console_tail().await.unwrap().ends_with("login: "));
    drop(vm);
    assert_eq!(state(&name).await, Some(VmState::Running));
    Fleet::at(&home).remove(&name).await.unwrap();
    gone(&name).await;
}

#[tokio::test]
async fn members_of_a_cluster_are_reported_and_kept() {
    let mut name = String::new();
    let builder = fake_cluster(Cluster::test());
    let end = drive(&CALL, keeping(), builder, async |cluster: Cluster| {
        cluster.name().clone_into(&mut name);
        assert_eq!(cluster.members().len(), 2);
        Err(17)
    })
    .await;
    assert_eq!(failure(&end), "17");
    assert!(name.starts_with("app-tests-boots-"), "{name}");
    let home = home().join("state");
    for member in ["node-1", "node-2"] {
        let reference = format!("{name}/{member}");
        assert!(
            end.report.contains(&format!("fleetbox ssh {reference}`"))
                && end.report.contains(&format!("--- {member}: the end")),
            "{}",
            end.report
        );
        let vm = Fleet::at(&home).open(&reference).await.unwrap();
        drop(vm);
    }
    for member in ["node-1", "node-2"] {
        Fleet::at(&home)
            .remove(&format!("{name}/{member}"))
            .await
            .unwrap();
    }
    assert!(!home.join("clusters").join(name).exists());
}

#[tokio::test]
async fn a_test_may_destroy_its_vm_and_fail_then() {
    let mut name = String::new();
    let end = drive(&CALL, keeping(), fake(Vm::test()), async |vm: Vm| {
        vm.name().clone_into(&mut name);
        vm.destroy().await.unwrap();
        Err(17)
    })
    .await;
    assert_eq!(failure(&end), "17");
    assert!(
        end.report.contains(&name) && end.report.contains("cannot keep"),
        "{}",
        end.report
    );
    gone(&name).await;
}

#[tokio::test]
async fn the_console_of_a_machine_that_has_died_is_shown() {
    let mut builder = fake(Vm::test());
    builder.backend = Backend::Fake(Script::Abort {
        console: "Kernel panic\n".to_owned(),
    });
    let end = drive(&CALL, plain(), builder, async |vm: Vm| {
        vm.wait().await?;
        Ok::<_, crate::error::Error>(())
    })
    .await;
    assert!(failure(&end).contains("signal"), "{}", failure(&end));
    assert!(end.report.contains("| Kernel panic"), "{}", end.report);
}

#[tokio::test]
async fn a_vm_that_does_not_start_fails_the_test() {
    let mut builder = fake(Vm::test());
    builder.backend = Backend::Fake(refuses());
    let body = async |_vm: Vm| -> () { unreachable!("there is no VM") };
    let end = drive(&CALL, keeping(), builder, body).await;
    assert!(failure(&end).contains("no such kernel"));
}

#[tokio::test]
async fn a_test_is_skipped_before_anything_is_done() {
    let elsewhere = Settings {
        unavailable: Some("no /dev/kvm".to_owned()),
        ..Settings::default()
    };
    let body = async |_vm: Vm| -> () { unreachable!("there is no VM") };
    // One that needs the host, and would fail at once.
    let real = || Vm::builder("Bad Name");
    let end = drive(&CALL, elsewhere.clone(), real(), body).await;
    assert!(matches!(&end.verdict, Verdict::Skipped(why) if why == "no /dev/kvm"));
    let required = Settings {
        require: true,
        ..elsewhere
    };
    let end = drive(&CALL, required, real(), body).await;
    assert!(failure(&end).contains("no /dev/kvm"));
    let short = Settings {
        short: true,
        ..Settings::default()
    };
    let end = drive(&CALL, short, fake(Vm::test()), body).await;
    assert!(matches!(end.verdict, Verdict::Skipped(_)));
}

#[test]
fn a_skipped_test_that_is_to_panic_panics_as_expected() {
    let call = Call {
        should_panic: Some("disk full"),
        ..CALL
    };
    let end = || End::from(Verdict::Skipped("no /dev/kvm".to_owned()));
    let panic = std::panic::catch_unwind(|| end().conclude(&call)).unwrap_err();
    let message = panic.downcast_ref::<String>().unwrap();
    assert!(message.contains("disk full"), "{message}");
    end().conclude(&CALL);
}

static RUNS: AtomicUsize = AtomicUsize::new(0);

#[test]
fn functions_run_tests_without_the_attribute() {
    super::run(fake(Vm::test()), async |vm| {
        assert!(
            vm.name()
                .contains("functions-run-tests-without-the-attribute"),
            "{}",
            vm.name()
        );
        RUNS.fetch_add(1, Ordering::SeqCst);
    });
    super::run_blocking(
        blocking::VmBuilder::from(fake(Vm::test())),
        |vm: blocking::Vm| -> crate::error::Result<()> {
            assert!(vm.console_tail()?.contains("login"));
            RUNS.fetch_add(1, Ordering::SeqCst);
            Ok(())
        },
    );
    super::run(fake_cluster(Cluster::test()), async |cluster| {
        assert!(cluster.vm("node-2").is_ok());
        RUNS.fetch_add(1, Ordering::SeqCst);
    });
    assert_eq!(RUNS.load(Ordering::SeqCst), 3);
    let named = fake(Vm::builder("my-own-name"));
    super::run(named, async |vm| {
        assert_eq!(vm.name(), "my-own-name");
        vm.destroy().await
    });
}

#[tokio::test]
async fn an_asynchronous_test_has_its_own_function() {
    super::run_async(fake(Vm::test()), async |vm: Vm| {
        assert!(
            vm.name().contains("test-has-its-own-function"),
            "{}",
            vm.name()
        );
    })
    .await;
    let wrong = std::panic::catch_unwind(|| super::run(fake(Vm::test()), async |_vm| ()));
    let message = *wrong.unwrap_err().downcast::<String>().unwrap();
    assert!(message.contains("run_async"), "{message}");
}

#[fleetbox::test(configure = fake, cpus = 1, memory = "64MiB")]
async fn the_attribute_gives_a_vm(vm: Vm) -> crate::error::Result<()> {
    assert!(
        vm.name().contains("the-attribute-gives-a-vm"),
        "{}",
        vm.name()
    );
    let vms = Fleet::at(home().join("state")).list().await?;
    let info = vms.into_iter().find(|info| info.name == vm.name()).unwrap();
    assert_eq!(info.cpus, 1);
    Ok(())
}

#[fleetbox::test(nodes = 2, configure = fake_cluster)]
async fn the_attribute_gives_a_cluster(cluster: Cluster) {
    assert_eq!(cluster.members().len(), 2);
}

#[fleetbox::test(configure = |vm: blocking::VmBuilder| fake(vm.into()).into())]
fn the_attribute_gives_a_blocking_vm(vm: blocking::Vm) {
    assert!(vm.console_tail().unwrap().contains("booting"));
}

#[fleetbox::test(configure = fake)]
#[should_panic(expected = "as it should")]
async fn the_attribute_keeps_should_panic(_vm: Vm) {
    panic!("fails as it should");
}

#[fleetbox::test(configure = fake)]
#[should_panic(expected = "17")]
async fn the_attribute_fails_by_an_error(_vm: Vm) -> Result<(), u8> {
    Err(17)
}

#[fleetbox::test(configure = fake)]
#[ignore = "checks that ignored tests do not run"]
async fn the_attribute_keeps_ignore(_vm: Vm) {
    panic!("it is ignored");
}
