//! Clusters of fake machines.

use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::process::fake::Script;
use crate::process::{Backend, Role};
use crate::testing::test_support::{Home, eventually, processes, refuses};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::blocking;
use crate::error::Error;
use crate::model::event::Event;
use crate::model::size::Size;
use crate::vm::Vm;
use crate::vm::builder::VmBuilder;
use crate::vm::cluster::Cluster;
use crate::vm::events::Events;
use crate::vm::fleet::Fleet;
use crate::vm::links::{LinkConditions, LinkEnd};
use crate::vm::list::VmState;

impl Home {
    /// `CLUSTER/NAME` and state of all VMs.
    async fn states_by_cluster(&self) -> Vec<(String, VmState)> {
        let vms = Fleet::at(self.path()).list().await.unwrap();
        vms.into_iter()
            .map(|vm| (format!("{}/{}", vm.cluster, vm.name), vm.state))
            .collect()
    }

    /// Two clusters of tests, which both have a `node-1`.
    async fn two_tests(&self) -> [Cluster; 2] {
        let test = || self.cluster(Cluster::test().count(1)).start();
        [test().await.unwrap(), test().await.unwrap()]
    }
}

fn run_by(script: Script) -> impl Fn(VmBuilder) -> VmBuilder + Send + Sync + 'static {
    move |mut vm| {
        vm.backend = Backend::Fake(script.clone());
        vm
    }
}

fn machines(name: &str) -> Vec<Pid> {
    processes(Role::Machine, name)
}

#[tokio::test]
async fn only_those_are_pruned_that_were_shown() {
    let home = Home::new();
    for name in ["old", "other"] {
        home.vm(Vm::builder(name)).create().await.unwrap();
    }
    let fleet = Fleet::at(home.path());
    let shown = fleet.find("old").await.unwrap();
    let pruned = fleet.prune_only(std::slice::from_ref(&shown)).await;
    assert_eq!(pruned.unwrap(), ["old"]);
    // Another one, of the same name.
    home.vm(Vm::builder("old")).create().await.unwrap();
    fleet.remove_found(&shown).await.unwrap();
    let pruned = fleet.prune_only(&[shown]).await.unwrap();
    assert_eq!(pruned, [""; 0]);
    fleet.remove("old").await.unwrap();
    let pruned = Fleet::at(home.path()).prune().await.unwrap();
    assert_eq!(pruned, ["other"]);
}

#[tokio::test]
async fn members_have_names_addresses_and_options_of_their_own() {
    let home = Home::new();
    let cluster = home
        .cluster(Cluster::test().count(3).cpus(1))
        .member("node-2", |vm| vm.cpus(2))
        .member("db", |vm| vm.memory(Size::gib(1)))
        .start()
        .await
        .unwrap();
    let names: Vec<_> = cluster.into_iter().map(|vm| vm.name()).collect();
    assert_eq!(names, ["node-1", "node-2", "node-3", "db"]);
    let last: Vec<_> = cluster
        .members()
        .iter()
        .map(|vm| vm.ip().octets()[3])
        .collect();
    assert_eq!(last, [2, 3, 4, 5]);
    let infos = Fleet::at(home.path()).list().await.unwrap();
    let cpus: Vec<_> = infos.iter().map(|vm| (vm.name.as_str(), vm.cpus)).collect();
    assert_eq!(
        cpus,
        [("db", 1), ("node-1", 1), ("node-2", 2), ("node-3", 1)]
    );
    assert!(
        infos
            .iter()
            .all(|vm| vm.ephemeral && vm.cluster == cluster.name())
    );
    assert_eq!(home.clusters(), 1, "one worker has them all");

    let error = cluster.vm("node-9").unwrap_err().to_string();
    assert!(error.contains("node-1, node-2, node-3, db"), "{error}");
    // The last handle counts, whatever it is of.
    let member = cluster.vm("node-1").unwrap().clone();
    let name = cluster.name().to_owned();
    drop(cluster);
    home.assert_served(&name).await;
    assert!(member.console_tail().await.unwrap().contains("login"));
    drop(member);
    eventually("nothing is left", || home.clusters() == 0);
}

#[tokio::test]
async fn a_member_that_cannot_start_leaves_nothing_behind() {
    let home = Home::new();
    let builder = home
        .cluster(Cluster::builder("all").count(3))
        .member("all-3", run_by(refuses()));
    let error = builder.start().await.unwrap_err().to_string();
    assert!(
        error.contains("no such kernel") && error.contains("all-3"),
        "{error}"
    );
    assert_eq!(home.clusters(), 0);
    assert!(machines("all-1").is_empty() && machines("all-2").is_empty());

    // Neither does one that is refused before.
    let builder = home
        .cluster(Cluster::builder("all").count(2))
        .member("all-2", |vm| vm.disk(Size::from_bytes(4096 * 2)));
    assert!(builder.start().await.is_err());
    assert_eq!(home.clusters(), 0);
    for builder in [
        Cluster::builder("all").count(0),
        Cluster::builder("all").count(201),
        Cluster::builder("all"),
        Cluster::builder("all").count(1).member("No", |vm| vm),
        Cluster::builder("all").count(2).cpus(0),
        Cluster::builder("A").count(2),
    ] {
        let shown = format!("{builder:?}");
        assert!(home.cluster(builder).start().await.is_err(), "{shown}");
        assert_eq!(home.clusters(), 0, "{shown}");
    }
}

#[tokio::test]
async fn what_existed_survives_a_failed_start() {
    let home = Home::new();
    let cluster = home
        .cluster(Cluster::builder("ex").count(2))
        .start()
        .await
        .unwrap();
    cluster.vm("ex-2").unwrap().stop().await.unwrap();
    let builder = home
        .cluster(Cluster::builder("ex").count(3))
        .member("ex-3", run_by(refuses()));
    builder.start().await.unwrap_err();
    assert_eq!(
        home.states_by_cluster().await,
        [
            ("ex/ex-1".to_owned(), VmState::Running),
            ("ex/ex-2".to_owned(), VmState::Stopped)
        ]
    );
    cluster.destroy().await.unwrap();
    assert_eq!(home.clusters(), 0);
}

#[tokio::test]
async fn a_killed_member_fails_alone_and_comes_back_with_its_address() {
    let home = Home::new();
    let cluster = home
        .cluster(Cluster::builder("kin").count(3))
        .start()
        .await
        .unwrap();
    let victim = cluster.vm("kin-2").unwrap();
    kill(machines("kin-2")[0], Signal::SIGKILL).unwrap();
    let failure = victim.wait().await.unwrap_err().to_string();
    assert!(
        failure.contains("kin-2") && failure.contains("SIGKILL"),
        "{failure}"
    );
    let state = |name: &str, state| (format!("kin/{name}"), state);
    assert_eq!(
        home.states_by_cluster().await,
        [
            state("kin-1", VmState::Running),
            state("kin-2", VmState::Failed),
            state("kin-3", VmState::Running)
        ]
    );
    let infos = Fleet::at(home.path()).list().await.unwrap();
    assert!(infos[1].failure.as_ref().unwrap().contains("SIGKILL"));

    let before = machines("kin-1");
    victim.start().await.unwrap();
    assert_eq!(
        home.states_by_cluster().await[1],
        state("kin-2", VmState::Running)
    );
    assert_eq!(
        Fleet::at(home.path()).list().await.unwrap()[1].ip,
        victim.ip()
    );
    assert_eq!(machines("kin-1"), before, "no other VM was touched");

    // Stopped and started, by another handle too.
    victim.stop().await.unwrap();
    assert_eq!(
        home.states_by_cluster().await[1],
        state("kin-2", VmState::Stopped)
    );
    let found = Fleet::at(home.path()).open_cluster("kin").await.unwrap();
    assert_eq!(found.vm("kin-2").unwrap().ip(), victim.ip());
    cluster.start().await.unwrap();
    victim.restart().await.unwrap();
    victim.kill().await.unwrap();
    victim.restart().await.unwrap();
    assert_eq!(
        home.states_by_cluster().await[1],
        state("kin-2", VmState::Running)
    );
    drop(found);
    cluster.destroy().await.unwrap();
    assert_eq!(home.clusters(), 0);
}

#[tokio::test]
async fn addresses_outlive_the_worker() {
    let home = Home::new();
    let builder = home.cluster(Cluster::builder("keep").count(3).detached());
    let mut cluster = builder.clone().start().await.unwrap();
    cluster.remove("keep-1").await.unwrap();
    let ips: Vec<_> = cluster.members().iter().map(|vm| vm.ip()).collect();
    cluster.stop().await.unwrap();
    cluster.stop().await.unwrap();
    let dir = home.path().join("clusters/keep/worker.sock");
    eventually("the worker ends with its last machine", || !dir.exists());

    // A member by its own name is started in its cluster.
    let alone = home
        .vm(Vm::builder("keep-3").detached())
        .start()
        .await
        .unwrap();
    assert_eq!((alone.cluster(), alone.ip()), ("keep", ips[1]));
    let cluster = builder.clone().start().await.unwrap();
    assert_eq!(cluster.vm("keep-2").unwrap().ip(), ips[0]);
    assert_eq!(cluster.vm("keep-3").unwrap().ip(), ips[1]);
    assert!(cluster.vm("keep-3").unwrap().was_running());
    let new = cluster.vm("keep-1").unwrap();
    assert!(!ips.contains(&new.ip()));
    Fleet::at(home.path()).remove("keep-2").await.unwrap();
    assert!(new.console_tail().await.is_ok(), "the others run on");
    cluster.vm("keep-3").unwrap().kill().await.unwrap();
    new.kill().await.unwrap();
    // With no worker left, a handle starts one.
    new.start().await.unwrap();
    assert_eq!(
        home.states_by_cluster().await[0],
        ("keep/keep-1".to_owned(), VmState::Running)
    );
    for name in ["keep-1", "keep-3"] {
        Fleet::at(home.path()).remove(name).await.unwrap();
    }
    assert_eq!(home.clusters(), 0);
}

#[tokio::test]
async fn members_come_and_go_while_others_run() {
    let home = Home::new();
    let mut cluster = home
        .cluster(Cluster::test().count(2))
        .start()
        .await
        .unwrap();
    // Two at once, which ask for an address at the same time.
    let mut other = cluster.clone();
    let (a, b) = tokio::join!(
        cluster.add("late-1", |vm| vm.cpus(1)),
        other.add("late-2", |vm| vm)
    );
    let (a, b) = (a.unwrap(), b.unwrap());
    assert_ne!(a.ip(), b.ip());
    assert_eq!(cluster.members().len(), 3);
    let error = cluster.add("bad", run_by(refuses())).await.unwrap_err();
    assert!(error.to_string().contains("no such kernel"), "{error}");
    assert!(cluster.vm("bad").is_err());
    cluster.remove("node-1").await.unwrap();
    let states = home.states_by_cluster().await;
    assert_eq!(states.len(), 3, "{states:?}");
    assert!(states.iter().all(|(_, state)| *state == VmState::Running));
    drop((cluster, other, a, b));
    eventually("nothing is left", || home.clusters() == 0);
}

#[tokio::test]
async fn a_name_means_one_vm() {
    let home = Home::new();
    let tests = home.two_tests().await;
    let open = async |name: &str| Fleet::at(home.path()).open(name).await;
    assert!(matches!(open("node-1").await, Err(Error::Ambiguous { .. })));
    let full = format!("{}/node-1", tests[1].name());
    assert_eq!(open(&full).await.unwrap().cluster(), tests[1].name());
    let named = home
        .cluster(Cluster::builder("node").count(1))
        .start()
        .await
        .unwrap();
    assert_eq!(open("node-1").await.unwrap().cluster(), "node");
    let other = home
        .cluster(Cluster::builder("other"))
        .member("node-1", |vm| vm);
    assert!(matches!(other.start().await, Err(Error::NameTaken { .. })));
    named.destroy().await.unwrap();
}

#[tokio::test]
async fn a_member_is_started_by_its_clusters_name_and_its_own() {
    let home = Home::new();
    let clusters = home.two_tests().await;
    for cluster in &clusters {
        // As for the kept VM of a test.
        for vm in cluster {
            vm.detach().await.unwrap();
            vm.stop().await.unwrap();
        }
    }
    let fleet = Fleet::at(home.path());
    let change = crate::vm::resize::Resize {
        cpus: Some(1),
        memory: None,
    };
    let builder = |name: &str| home.vm(Vm::builder(name)).detached();
    for error in [
        builder("node-1").start().await.unwrap_err(),
        fleet.find("node-1").await.unwrap_err(),
        fleet.resize("node-1", change).await.unwrap_err(),
        fleet.console_log("node-1").await.unwrap_err(),
        crate::guest::workspace::Workspace::of(&fleet, "node-1")
            .await
            .unwrap_err()
            .into(),
    ] {
        assert!(matches!(error, Error::Ambiguous { .. }), "{error}");
    }
    let member = format!("{}/node-1", clusters[1].name());
    assert_eq!(fleet.resize(&member, change).await.unwrap().cpus, 1);
    let vm = builder(&member).start().await.unwrap();
    assert_eq!(vm.reference().as_str(), member);
    assert_eq!(
        (vm.cluster(), vm.ip()),
        (clusters[1].name(), clusters[1].members()[0].ip())
    );
    let states = home.states_by_cluster().await;
    assert_eq!(states.len(), 2, "{states:?}");
    for (name, state) in states {
        let runs = name == member;
        assert_eq!(state == VmState::Running, runs, "{name}");
    }
    assert!(!builder(&member).create().await.unwrap(), "it exists");
    // A new one is a member of the cluster that is named.
    let second = builder(&format!("{}/late", clusters[1].name()));
    let second = second.start().await.unwrap();
    assert_eq!(second.cluster(), clusters[1].name());
    assert_ne!(second.ip(), vm.ip());
    // One of that name is another cluster's.
    let other = builder(&format!("{}/late", clusters[0].name()));
    let error = other.start().await.unwrap_err();
    assert!(matches!(error, Error::NameTaken { .. }), "{error}");
    assert!(
        error
            .to_string()
            .contains(&format!("`fleetbox rm {}/late`", clusters[1].name()))
    );
    fleet.remove(&member).await.unwrap();
    second.destroy().await.unwrap();
    drop(clusters);
}

#[test]
fn the_blocking_facade_has_clusters() {
    let home = Home::new();
    let mut cluster = blocking::ClusterBuilder::from(home.cluster(Cluster::test().count(2)))
        .member("node-1", |vm| vm.cpus(1))
        .start()
        .unwrap();
    cluster.add("node-3", |vm| vm.cpus(1)).unwrap();
    cluster.vm("node-2").unwrap().restart().unwrap();
    cluster.remove("node-1").unwrap();
    let names: Vec<_> = cluster
        .members()
        .iter()
        .map(|vm| vm.name().to_owned())
        .collect();
    assert_eq!(names, ["node-2", "node-3"]);
    cluster.stop().unwrap();
    cluster.start().unwrap();
    cluster.restart().unwrap();
    cluster.destroy().unwrap();
    assert_eq!(home.clusters(), 0);
}

#[tokio::test]
async fn the_console_is_live_in_both_directions() {
    let home = Home::new();
    let vm = home.vm(Vm::test()).start().await.unwrap();
    let mut first = vm.console().await.unwrap();
    let mut text = vec![0; 7];
    first.read_exact(&mut text).await.unwrap();
    assert_eq!(text, b"login: ");
    first.write_all(b"root").await.unwrap();
    // Who comes later sees what was printed before.
    let mut second = vm.console().await.unwrap();
    let mut all = vec![0; 4];
    first.read_exact(&mut all).await.unwrap();
    assert_eq!(all, b"root");
    vm.stop().await.unwrap();
    let mut rest = String::new();
    first.read_to_string(&mut rest).await.unwrap();
    assert_eq!(rest, "Power down.\n");
    let mut all = String::new();
    second.read_to_string(&mut all).await.unwrap();
    assert_eq!(all, "login: rootPower down.\n");
}

#[tokio::test]
async fn events_are_told_from_the_start_to_the_end() {
    let home = Home::new();
    let vm = home.vm(Vm::builder("ev")).start().await.unwrap();
    let all = async |events: Result<Events, Error>| {
        let mut events = events.unwrap();
        let mut all = Vec::new();
        while let Some(event) = events.next().await.unwrap() {
            all.push(event.event);
        }
        all
    };
    let early = vm.events().await;
    vm.stop().await.unwrap();
    let told = [Event::Running { boot: 0 }, Event::PoweredOff];
    assert_eq!(all(early).await, told);
    assert_eq!(all(vm.events().await).await, told);
    vm.start().await.unwrap();
    vm.kill().await.unwrap();
    // They are of one run.
    assert_eq!(
        all(vm.events().await).await,
        [Event::Running { boot: 0 }, Event::Killed]
    );
    vm.start().await.unwrap();
    kill(machines("ev")[0], Signal::SIGKILL).unwrap();
    let failed = all(vm.events().await).await.pop();
    assert!(
        matches!(&failed, Some(Event::Failed { reason }) if reason.contains("SIGKILL")),
        "{failed:?}"
    );
    vm.destroy().await.unwrap();
}

#[tokio::test]
async fn prune_deletes_what_does_not_run_and_nothing_else() {
    let home = Home::new();
    let test = home
        .cluster(Cluster::test().count(2))
        .start()
        .await
        .unwrap();
    test.vm("node-2").unwrap().stop().await.unwrap();
    let named = home
        .cluster(Cluster::builder("pr").count(3))
        .start()
        .await
        .unwrap();
    named.vm("pr-2").unwrap().stop().await.unwrap();
    let alone = home.vm(Vm::builder("alone")).start().await.unwrap();
    alone.stop().await.unwrap();
    let detached = home
        .cluster(Cluster::builder("up").count(2).detached())
        .start()
        .await
        .unwrap();
    detached.vm("up-1").unwrap().stop().await.unwrap();
    // Somebody has them all.
    assert!(Fleet::at(home.path()).prune().await.unwrap().is_empty());
    drop((alone, detached));
    let pruned = Fleet::at(home.path()).prune().await.unwrap();
    assert_eq!(pruned, ["alone", "up/up-1"]);
    named.vm("pr-2").unwrap().start().await.unwrap();
    named.vm("pr-2").unwrap().stop().await.unwrap();
    let left: Vec<_> = home
        .states_by_cluster()
        .await
        .into_iter()
        .map(|(name, _)| name)
        .collect();
    let test = test.name();
    let mut expected: Vec<_> = ["pr/pr-1", "pr/pr-2", "pr/pr-3", "up/up-2"]
        .map(str::to_owned)
        .into();
    expected.extend([format!("{test}/node-1"), format!("{test}/node-2")]);
    expected.sort();
    assert_eq!(left, expected);
    // It would outlive this test.
    Fleet::at(home.path()).remove("up/up-2").await.unwrap();
}

#[test]
fn the_blocking_facade_has_console_and_events() {
    use std::io::{Read as _, Write as _};
    let home = Home::new();
    let vm = blocking::VmBuilder::from(home.vm(Vm::test()))
        .start()
        .unwrap();
    let events = vm.events().unwrap();
    let mut console = vm.console().unwrap();
    console.write_all(b"hi").unwrap();
    let mut text = [0; 9];
    console.read_exact(&mut text).unwrap();
    assert_eq!(&text, b"login: hi");
    vm.kill().unwrap();
    let last = events.last().unwrap().unwrap().event;
    assert_eq!(last, Event::Killed);
    assert_eq!(blocking::Fleet::at(home.path()).list().unwrap().len(), 1);
    assert!(blocking::Fleet::at(home.path()).prune().unwrap().is_empty());
    vm.destroy().unwrap();
}

#[tokio::test]
async fn faults_are_set_by_members_names() {
    let home = Home::new();
    let cluster = home
        .cluster(Cluster::test().count(3))
        .start()
        .await
        .unwrap();
    cluster
        .partition(&["node-1"], &["node-2", "node-3"])
        .await
        .unwrap();
    cluster
        .partition(&["node-2"], &[LinkEnd::Gateway])
        .await
        .unwrap();
    cluster.heal().await.unwrap();
    cluster.seed_links(7).await.unwrap();
    let second = Duration::from_secs(1);
    cluster.latency("node-1", "node-2", second).await.unwrap();
    cluster.loss("node-1", "node-2", 0.5).await.unwrap();
    cluster
        .bandwidth("node-1", LinkEnd::Gateway, Some(1_000))
        .await
        .unwrap();
    let lossy = LinkConditions {
        loss: 1.0,
        ..LinkConditions::default()
    };
    cluster.set_link("node-2", "node-3", lossy).await.unwrap();
    cluster.set_links_of("node-3", lossy).await.unwrap();
    cluster.clear_links().await.unwrap();
    // Impossible values and unknown names are refused.
    assert!(cluster.loss("node-1", "node-2", 1.5).await.is_err());
    assert!(
        cluster
            .latency("node-1", "node-2", second * 100)
            .await
            .is_err()
    );
    let error = cluster
        .partition(&["node-1"], &["node-9"])
        .await
        .unwrap_err();
    assert!(error.to_string().contains("node-9"), "{error}");
    // A member that does not run has its name.
    cluster.vm("node-2").unwrap().stop().await.unwrap();
    cluster.partition(&["node-1"], &["node-2"]).await.unwrap();
}

#[test]
fn the_blocking_facade_has_faults() {
    let home = Home::new();
    let cluster = blocking::ClusterBuilder::from(home.cluster(Cluster::test().count(2)))
        .start()
        .unwrap();
    cluster.partition(&["node-1"], &["node-2"]).unwrap();
    cluster.heal().unwrap();
    cluster.seed_links(1).unwrap();
    cluster
        .latency("node-1", "node-2", Duration::from_millis(5))
        .unwrap();
    cluster.loss("node-1", "node-2", 0.1).unwrap();
    cluster.bandwidth("node-1", "node-2", None).unwrap();
    let none = LinkConditions::default();
    cluster.set_link("node-1", LinkEnd::Gateway, none).unwrap();
    cluster.set_links_of("node-1", none).unwrap();
    cluster.clear_links().unwrap();
    assert!(cluster.partition(&["node-1"], &["nobody"]).is_err());
}
