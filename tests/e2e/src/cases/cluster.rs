//! Three VMs in one network.

use std::time::Duration;

use fleetbox::{Cluster, Error, Ready, StopOutcome, Vm};

use super::cli::{QUICK, listed, run, text};
use super::verbs::{BOOT, SMALL};
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

/// Milliseconds that `bytes` and what is around them take to a member and back.
fn round_trip(suite: &Suite, from: &Vm, name: &str, bytes: u32) -> f64 {
    let said = suite.sh(from, &format!("sudo ping -c 1 -W 20 -s {bytes} {name}"));
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
/// with its address; one that is killed fails alone. Slow, narrow and lossy links are felt, too.
pub(crate) fn of_three(suite: &Suite) {
    for index in 1..=3 {
        uses(&format!("{TRIO}-{index}"));
    }
    let builder = Cluster::builder(TRIO).count(3).each(|vm| suite.small(vm));
    let mut cluster = suite
        .block(builder.start())
        .must("cannot start the cluster");
    let members = cluster.members().to_vec();
    let [one, two, three] = &members[..] else {
        panic!("{} members", members.len());
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
    let took = round_trip(suite, one, "trio-2", 56);
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
    // Twice 1400 bytes and their headers at 100 bits a millisecond.
    suite
        .block(cluster.bandwidth("trio-1", "trio-2", Some(100_000)))
        .must("cannot set a bandwidth");
    let took = round_trip(suite, one, "trio-2", 1400);
    assert!(took > 2.0 * 1400.0 * 8.0 / 100.0, "{took} ms");
    suite
        .block(cluster.bandwidth("trio-1", "trio-2", None))
        .must("cannot lift the bandwidth");

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
    let failed = listed(suite, three.name()).expect("listed");
    assert_eq!(failed["state"], "failed", "{failed}");
    let why = failed["failure"].as_str().unwrap_or_default();
    assert!(why.contains("SIGKILL"), "{failed}");

    // One that does not become ready does not join, and leaves nothing.
    let refused = suite.block(cluster.add("trio-4", |vm| {
        suite
            .small(vm)
            .boot_timeout(Duration::from_secs(2))
            .wait_for(Ready::Port(9))
    }));
    let error = refused.expect_err("nothing boots in two seconds");
    assert!(matches!(error, Error::NotReady { .. }), "{error}");
    let dir = suite.home().join("clusters").join(TRIO);
    assert!(!dir.join("trio-4").exists());

    suite
        .block(cluster.partition(&["trio-1"], &["trio-2"]))
        .must("cannot partition");
    let before = suite.sh(two, "cat /proc/sys/kernel/random/boot_id");
    assert_eq!(
        suite.block(two.stop()).must("cannot stop a member"),
        StopOutcome::PoweredOff
    );
    assert!(
        !reaches(suite, one, "trio-2", 1),
        "a stopped member answers"
    );
    suite.block(two.start()).must("cannot start a member again");
    assert_ne!(suite.sh(two, "cat /proc/sys/kernel/random/boot_id"), before);
    let address = suite.sh(two, "ip -4 addr show");
    assert!(address.contains(&two.ip().to_string()), "{address}");
    assert!(
        !reaches(suite, one, "trio-2", 3),
        "through a partition that is older than the member's boot"
    );
    suite.block(cluster.heal()).must("cannot heal");
    assert_reaches(suite, one, "trio-2");
    assert_reaches(suite, two, "trio-1");

    suite
        .block(cluster.destroy())
        .must("cannot destroy the cluster");
    assert!(!dir.exists(), "{} is left", dir.display());
}

/// The same by the command line: its verbs take the cluster as one, and a member by its name.
pub(crate) fn by_commands(suite: &Suite) {
    const PAIR: [&str; 2] = ["pair-1", "pair-2"];
    PAIR.into_iter().for_each(uses);
    // The case may run a second time.
    host::run(suite.fleetbox(&["rm", "--force", "pair"]), QUICK);
    let image = suite.tiny();
    let up = [&["up", "pair", "-n", "2", "--image", &image], &SMALL[..]].concat();
    run(suite, &up, 0, BOOT);
    let states = || PAIR.map(|name| listed(suite, name).map(|vm| vm["state"].clone()));
    assert_eq!(states(), [Some("running".into()), Some("running".into())]);
    let ping = ["exec", PAIR[0], "--", "sudo", "ping", "-c", "1"];
    run(suite, &[&ping[..], &["pair-2.fleetbox"]].concat(), 0, QUICK);

    let boot_ids = || {
        PAIR.map(|name| {
            let ask = ["exec", name, "--", "cat", "/proc/sys/kernel/random/boot_id"];
            text(&run(suite, &ask, 0, QUICK))
        })
    };
    let before = boot_ids();
    run(suite, &["restart", "pair"], 0, BOOT);
    let after = boot_ids();
    assert!(
        before.iter().zip(&after).all(|(old, new)| old != new),
        "{before:?}, {after:?}"
    );
    // Without a worker none of them runs; all come back with their addresses.
    let addresses = || PAIR.map(|name| listed(suite, name).map(|vm| vm["ip"].clone()));
    let before = addresses();
    run(suite, &["down", PAIR[1]], 0, QUICK);
    assert_eq!(states(), [Some("running".into()), Some("stopped".into())]);
    host::kill_now(host::process("worker", "pair"));
    host::within(QUICK, || match states() {
        [Some(one), Some(two)] if one == "stopped" && two == "stopped" => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .must("after the worker's end");
    run(suite, &["up", "pair"], 0, BOOT);
    assert_eq!(addresses(), before);
    run(suite, &[&ping[..], &[PAIR[1]]].concat(), 0, QUICK);

    run(suite, &["down", "pair"], 0, QUICK);
    assert_eq!(states(), [Some("stopped".into()), Some("stopped".into())]);
    run(suite, &["rm", "--force", "pair"], 0, QUICK);
    assert_eq!(states(), [None, None]);
    let dir = suite.home().join("clusters/pair");
    assert!(!dir.exists(), "{} is left", dir.display());
}
