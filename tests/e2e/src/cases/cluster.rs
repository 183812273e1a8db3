//! Three VMs in one network.

use std::time::Duration;

use fleetbox::{Cluster, Stopped, Vm};

use crate::host;
use crate::report::{Must, uses};
use crate::suite::Suite;

/// The cluster, whose members are called after it.
const TRIO: &str = "trio";

/// Whether `from` reaches a member by name: by its question to the gateway and by an echo.
/// The tiny image lets only root open raw sockets.
fn reaches(suite: &Suite, from: &Vm, name: &str, seconds: u32) -> bool {
    suite
        .output(from, &format!("sudo ping -c 1 -W {seconds} {name}"))
        .success()
}

/// Milliseconds to a member and back.
fn round_trip(suite: &Suite, from: &Vm, name: &str) -> f64 {
    let said = suite.sh(from, &format!("sudo ping -c 1 -W 20 {name}"));
    let time = said
        .split("time=")
        .nth(1)
        .and_then(|rest| rest.split_ascii_whitespace().next());
    time.unwrap_or_default().parse().must(&said)
}

#[track_caller]
fn assert_reaches(suite: &Suite, from: &Vm, name: &str) {
    let tried = host::within(Duration::from_secs(60), || {
        if reaches(suite, from, name, 10) {
            Ok(())
        } else {
            Err(format!("{} does not reach {name}", from.name()))
        }
    });
    tried.must("a member of the cluster");
}

/// Members find each other by name both ways; a partition is felt and healed; a member that was stopped comes back
/// with its address; one that is killed fails alone. Slow and lossy links are felt, too.
pub(crate) fn of_three(suite: &Suite) {
    for index in 1..=3 {
        uses(&format!("{TRIO}-{index}"));
    }
    let builder = Cluster::builder(TRIO).count(3).each(|vm| suite.small(vm));
    let cluster = suite
        .block(builder.start())
        .must("cannot start the cluster");
    let [one, two, three] = cluster.members() else {
        panic!("{} members", cluster.members().len());
    };
    for vm in [one, two, three] {
        assert_eq!(suite.sh(vm, "hostname"), vm.name());
        let address = suite.sh(vm, "ip -4 addr show");
        assert!(address.contains(&vm.ip().to_string()), "{address}");
    }
    assert_reaches(suite, one, "trio-2");
    assert_reaches(suite, two, "trio-1.fleetbox");
    assert_reaches(suite, three, "trio-1");

    suite
        .block(cluster.partition(&["trio-1"], &["trio-2", "trio-3"]))
        .must("cannot partition");
    assert!(!reaches(suite, one, "trio-2", 3), "through a partition");
    assert!(!reaches(suite, three, "trio-1", 3), "through a partition");
    assert_reaches(suite, two, "trio-3");
    suite.block(cluster.heal()).must("cannot heal");
    assert_reaches(suite, one, "trio-2");
    assert_reaches(suite, three, "trio-1");

    // Each frame takes its time, there and back; then none arrives.
    let latency = Duration::from_millis(150);
    suite
        .block(cluster.latency("trio-1", "trio-2", latency))
        .must("cannot set a latency");
    let took = round_trip(suite, one, "trio-2");
    // By the guest's clock, which need not be ours to the last digit.
    assert!(took > 290.0, "{took} ms");
    suite
        .block(cluster.loss("trio-1", "trio-2", 1.0))
        .must("cannot set a loss");
    assert!(!reaches(suite, one, "trio-2", 1), "though all is lost");
    suite
        .block(cluster.clear_links())
        .must("cannot clear the links");
    assert_reaches(suite, one, "trio-2");

    let machine = host::process("machine", three.name());
    host::kill_now(machine);
    let failure =
        suite.block(async { tokio::time::timeout(Duration::from_secs(30), three.wait()).await });
    let failure = failure
        .must("the end was not reported")
        .expect_err("a kill is no power-off")
        .to_string();
    assert!(
        failure.contains("SIGKILL") && failure.contains(three.name()),
        "{failure}"
    );
    assert_reaches(suite, one, "trio-2");

    let before = suite.sh(two, "cat /proc/sys/kernel/random/boot_id");
    assert_eq!(
        suite.block(two.stop()).must("cannot stop a member"),
        Stopped::PoweredOff
    );
    assert!(
        !reaches(suite, one, "trio-2", 1),
        "a stopped member answers"
    );
    suite.block(two.start()).must("cannot start a member again");
    assert_ne!(suite.sh(two, "cat /proc/sys/kernel/random/boot_id"), before);
    let address = suite.sh(two, "ip -4 addr show");
    assert!(address.contains(&two.ip().to_string()), "{address}");
    assert_reaches(suite, one, "trio-2");
    assert_reaches(suite, two, "trio-1");

    let home = suite.home();
    let dir = home.join("clusters").join(TRIO);
    suite
        .block(cluster.destroy())
        .must("cannot destroy the cluster");
    assert!(!dir.exists(), "{} is left", dir.display());
}
