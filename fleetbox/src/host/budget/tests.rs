use std::io::{BufRead as _, BufReader};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::task::JoinHandle;

use super::queue::{Queue, Ticket, Verdict};
use super::{Budget, BudgetError, Claim, Lease, Want, acquire, acquire_in};
use crate::error::{Error, Result};
use crate::model::names::Name;
use crate::model::size::Size;
use crate::process::Backend;
use crate::progress::Silent;
use crate::progress::{Progress, ProgressEvent};
use crate::store::{Lock, Store};
use crate::testing::test_support::{Home, refuses, skip};
use crate::vm::Vm;
use crate::vm::builder::VmBuilder;
use crate::vm::cluster::Cluster;
use crate::vm::fleet::Fleet;
use crate::vm::list::VmState;
use crate::vm::resize::Resize;
use crate::vm::stop::STOP_DEADLINE;

/// A state directory with a budget of 1000 MiB.
struct Fixture {
    home: Home,
    store: Store,
}

const BUDGET: Budget = Budget::of(Size::mib(1000));

impl Fixture {
    fn new() -> Self {
        let home = Home::new();
        let store = Store::open(home.path()).unwrap();
        Self { home, store }
    }

    /// Asks for memory in mebibytes, in the background.
    fn ask(&self, name: &str, mib: &[u64]) -> JoinHandle<Result<Lease, BudgetError>> {
        let store = self.store.clone();
        let wants = wants(name, mib);
        tokio::spawn(async move { acquire(&store, BUDGET, wants, &Silent).await })
    }

    /// Asks as a process with the state directory of `other` and this one's queue.
    fn ask_from(
        &self,
        other: &Self,
        name: &str,
        mib: &[u64],
    ) -> JoinHandle<Result<Lease, BudgetError>> {
        let queue = Queue::at(self.queue(), &other.store).unwrap();
        let wants = wants(name, mib);
        tokio::spawn(async move { acquire_in(queue, BUDGET, wants, &Silent).await })
    }

    /// A ticket of a process with this state directory. It asks when the test does.
    fn ticket(&self, name: &str, mib: u64) -> Ticket {
        self.ticket_of(self, name, mib)
    }

    /// A ticket of a process with the state directory of `other`, in this one's queue.
    fn ticket_of(&self, other: &Self, name: &str, mib: u64) -> Ticket {
        let queue = Queue::at(self.queue(), &other.store).unwrap();
        Ticket::draw(queue, wants(name, &[mib])).unwrap()
    }

    /// The directory of the queue.
    fn queue(&self) -> PathBuf {
        self.store.home().join("budget")
    }

    /// A builder of a VM that is only a script.
    fn vm(&self, name: &str, mib: u64) -> VmBuilder {
        self.home
            .vm(Vm::builder(name))
            .memory(Size::mib(mib))
            .memory_budget(BUDGET)
    }

    /// Tickets in the queue: waiting and granted.
    fn tickets(&self) -> (usize, usize) {
        let Ok(entries) = std::fs::read_dir(self.queue()) else {
            return (0, 0);
        };
        let paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
        let count = |wanted: &str| {
            let is = |path: &&std::path::PathBuf| path.extension().is_some_and(|e| e == wanted);
            paths.iter().filter(is).count()
        };
        (count("waiting"), count("granted"))
    }

    async fn queued(&self, waiting: usize) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while self.tickets().0 != waiting {
            assert!(Instant::now() < deadline, "{:?}", self.tickets());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Another process that asks for memory, and prints a line when it has it.
    fn other_process(&self, mib: u64) -> Child {
        self.process_of(self.store.home(), mib).spawn().unwrap()
    }

    /// A process that asks for memory for a VM of another state directory.
    fn process_of(&self, home: &Path, mib: u64) -> Command {
        let mut command = Command::new("/proc/self/exe");
        command
            .args(["--exact", "host::budget::tests::other_process", "--ignored"])
            .arg("--nocapture")
            .env("FLEETBOX_TEST_BUDGET_HOME", home)
            .env("FLEETBOX_TEST_BUDGET_QUEUE", self.queue())
            .env("FLEETBOX_TEST_BUDGET_MIB", mib.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        command
    }
}

/// Asks, and is told to wait.
#[track_caller]
fn waits(ticket: Ticket) -> Ticket {
    match ticket.ask(BUDGET.limit()).unwrap() {
        Verdict::Wait(ticket, _) => ticket,
        Verdict::Granted(_) => panic!("it has not waited"),
    }
}

/// Asks, and has its turn.
#[track_caller]
fn granted(ticket: Ticket) -> Lease {
    match ticket.ask(BUDGET.limit()).unwrap() {
        Verdict::Granted(lease) => lease,
        Verdict::Wait(_, view) => panic!("it has to wait: {view}"),
    }
}

fn wants(name: &str, mib: &[u64]) -> Vec<Want> {
    let cluster = Name::new(name).unwrap();
    (1..)
        .zip(mib)
        .map(|(index, mib)| {
            let member = cluster.member(index).unwrap();
            Want::new(cluster.clone(), member, Size::mib(*mib))
        })
        .collect()
}

fn wait_for_line(child: &mut Child, wanted: &str) {
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(
        lines.any(|line| line.unwrap().contains(wanted)),
        "the other process ended without {wanted:?}"
    );
}

fn kill(mut child: Child) {
    child.kill().unwrap();
    child.wait().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "the other process of tests of this module"]
async fn other_process() {
    let home = std::env::var_os("FLEETBOX_TEST_BUDGET_HOME").expect("run by another test");
    let mib = std::env::var("FLEETBOX_TEST_BUDGET_MIB").unwrap();
    let store = Store::open(home).unwrap();
    let wants = wants("other", &[mib.parse().unwrap()]);
    let queue = std::env::var_os("FLEETBOX_TEST_BUDGET_QUEUE").unwrap();
    let queue = Queue::at(queue.into(), &store).unwrap();
    let _lease = acquire_in(queue, BUDGET, wants, &Silent).await.unwrap();
    println!("has memory");
    std::thread::sleep(Duration::from_secs(600));
}

#[test]
fn the_variable_has_three_forms() {
    assert_eq!("8G".parse::<Budget>().unwrap().limit(), Some(Size::gib(8)));
    assert_eq!("unlimited".parse::<Budget>().unwrap().limit(), None);
    let whole = "100%".parse::<Budget>().unwrap().limit().unwrap();
    let half = "50%".parse::<Budget>().unwrap().limit().unwrap();
    assert!(half < whole && half.bytes() >= whole.bytes() / 2 - (1 << 20));
    for wrong in ["0%", "101%", "-1%", "x%", "8", "8GB", "Unlimited"] {
        let error = wrong.parse::<Budget>().unwrap_err().to_string();
        assert!(error.contains(wrong) && error.contains("50%"), "{error}");
    }
}

#[tokio::test]
async fn what_never_fits_is_an_error_at_once() {
    let fixture = Fixture::new();
    let error = fixture.ask("web", &[600, 401]).await.unwrap().unwrap_err();
    assert!(matches!(error, BudgetError::TooLarge { .. }), "{error}");
    let text = error.to_string();
    assert!(
        text.contains("web-1 and 1 more") && text.contains("1001M") && text.contains("1000M"),
        "{text}"
    );
    assert!(!fixture.queue().exists());

    let error = fixture.vm("web", 1001).start().await.unwrap_err();
    assert!(error.to_string().contains("web"), "{error}");
    assert!(!fixture.store.home().join("clusters/web").exists());
}

#[test]
fn first_come_first_served_and_nobody_overtakes() {
    let fixture = Fixture::new();
    let first = granted(fixture.ticket("first", 600));
    let large = waits(fixture.ticket("large", 900));
    // It would fit now, but not after the one that waits.
    let small = waits(fixture.ticket("small", 200));
    assert_eq!(fixture.tickets(), (2, 1));

    drop(first);
    let small = waits(small);
    let large = granted(large);
    let small = waits(small);
    drop(large);
    drop(granted(small));
    assert_eq!(fixture.tickets(), (0, 0));
}

#[tokio::test]
async fn members_of_a_cluster_are_granted_together() {
    let fixture = Fixture::new();
    // Each of two clusters needs more than half: one by one both would get stuck half-way.
    let first = fixture.ask("a", &[300, 300]).await.unwrap().unwrap();
    let second = fixture.ask("b", &[300, 300]);
    fixture.queued(1).await;
    assert_eq!(fixture.tickets(), (1, 1));
    drop(first);
    drop(second.await.unwrap().unwrap());
}

#[tokio::test]
async fn many_at_once_never_exceed_the_budget() {
    let fixture = Fixture::new();
    let used = Arc::new(Mutex::new((0, 0)));
    let tasks: Vec<_> = (0..12)
        .map(|index| {
            let ask = fixture.ask(&format!("vm{index}"), &[400]);
            let used = Arc::clone(&used);
            tokio::spawn(async move {
                let lease = ask.await.unwrap().unwrap();
                {
                    let mut used = used.lock().unwrap();
                    used.0 += 400;
                    used.1 = used.1.max(used.0);
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
                used.lock().unwrap().0 -= 400;
                drop(lease);
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    let most = used.lock().unwrap().1;
    assert!((400..=1000).contains(&most), "{most}");
}

#[tokio::test]
async fn who_gives_up_leaves_the_queue() {
    let fixture = Fixture::new();
    let first = fixture.ask("first", &[600]).await.unwrap().unwrap();
    let large = fixture.ask("large", &[900]);
    fixture.queued(1).await;
    let small = fixture.ask("small", &[200]);
    fixture.queued(2).await;
    large.abort();
    drop(small.await.unwrap().unwrap());
    drop(first);
    assert_eq!(fixture.tickets(), (0, 0));
}

#[tokio::test]
async fn a_killed_holder_and_a_killed_waiter_make_room() {
    let fixture = Fixture::new();
    let mut holder = fixture.other_process(700);
    wait_for_line(&mut holder, "has memory");
    let waiter = fixture.other_process(800);
    fixture.queued(1).await;
    let mine = fixture.ask("mine", &[300]);
    fixture.queued(2).await;
    kill(waiter);
    let mine = mine.await.unwrap().unwrap();
    let next = fixture.ask("next", &[500]);
    fixture.queued(1).await;
    kill(holder);
    drop((mine, next.await.unwrap().unwrap()));
    assert_eq!(fixture.tickets(), (0, 0));
}

#[tokio::test]
async fn state_directories_share_one_budget() {
    let [one, two] = [Fixture::new(), Fixture::new()];
    // Of the same name: they are two all the same.
    let first = granted(one.ticket("web", 600));
    let second = waits(one.ticket_of(&two, "web", 500));
    let third = waits(one.ticket("small", 100));
    drop(first);
    drop((granted(second), granted(third)));

    // A VM that runs counts, too, until it ends; a kill is an end.
    let web = one.vm("web", 600).start().await.unwrap();
    let budget = BUDGET.stalled_after(Duration::from_millis(200));
    let queue = Queue::at(one.queue(), &two.store).unwrap();
    let error = acquire_in(queue, budget, wants("db", &[500]), &Silent).await;
    let error = error.unwrap_err().to_string();
    assert!(
        error.contains("600M of 1000M are in use by web (600M, of another state directory)"),
        "{error}"
    );
    let second = one.ask_from(&two, "db", &[500]);
    one.queued(1).await;
    web.kill().await.unwrap();
    drop(second.await.unwrap().unwrap());
    assert_eq!(std::fs::read_dir(one.queue()).unwrap().count(), 0);
    web.destroy().await.unwrap();
}

#[tokio::test]
async fn another_user_shares_the_budget() {
    if !nix::unistd::geteuid().is_root() {
        return skip("only root can be another user");
    }
    const NOBODY: u32 = 65534;
    let fixture = Fixture::new();
    let theirs = tempfile::tempdir().unwrap();
    std::os::unix::fs::chown(theirs.path(), Some(NOBODY), Some(NOBODY)).unwrap();
    for dir in [fixture.home.dir.path(), fixture.store.home(), theirs.path()] {
        let everybody = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(dir, everybody).unwrap();
    }
    let mine = fixture.ask("mine", &[700]).await.unwrap().unwrap();
    let mut other = fixture.process_of(&theirs.path().join("state"), 600);
    let mut other = other.uid(NOBODY).gid(NOBODY).spawn().unwrap();
    fixture.queued(1).await;
    drop(mine);
    wait_for_line(&mut other, "has memory");
    let budget = BUDGET.stalled_after(Duration::from_millis(200));
    let error = acquire(&fixture.store, budget, wants("mine", &[500]), &Silent).await;
    let error = error.unwrap_err().to_string();
    assert!(
        error.contains("other-1 (600M, of the user with id 65534)"),
        "{error}"
    );
    let mine = fixture.ask("mine", &[500]);
    fixture.queued(1).await;
    kill(other);
    drop(mine.await.unwrap().unwrap());
}

#[test]
fn what_others_write_counts_and_breaks_nothing() {
    let fixture = Fixture::new();
    drop(granted(fixture.ticket("first", 600)));
    let write = |name: &str, text: &str| {
        let path = fixture.queue().join(name);
        std::fs::write(&path, text).unwrap();
        Lock::try_acquire(&path).unwrap().unwrap()
    };
    let vm = |name: &str, memory: u64| {
        format!(r#"{{"cluster": "x", "name": "{name}", "memory": {memory}}}"#)
    };
    let text = |vms: &[String]| {
        let vms = vms.join(", ");
        format!(r#"{{"home": {{"device": 1, "inode": 2}}, "vms": [{vms}]}}"#)
    };
    // Nonsense is no claim, whatever it says.
    let nonsense = [
        write("1-1.granted", "?"),
        write("1-2.running", &text(&[vm("../x", 5000 << 20)])),
        write(
            "1-3.running",
            &text(&[vm("x", 5000 << 20)]).replace("20}", "20"),
        ),
        write("x.granted", &text(&[vm("x", 5000 << 20)])),
    ];
    drop(granted(fixture.ticket("first", 1000)));
    drop(nonsense);
    // More than there can be.
    let most = [vm("a", u64::MAX), vm("b", u64::MAX)];
    let greedy = write(
        "18446744073709551615-ffffffffffffffff.granted",
        &text(&most),
    );
    let mine = waits(fixture.ticket("mine", 1));
    let other = waits(fixture.ticket("other", 1));
    drop(greedy);
    // No number is higher, so chance has said who is first.
    let mut waiting = vec![mine, other];
    for _ in 0..2 {
        let asked = waiting.into_iter().map(|ticket| ticket.ask(BUDGET.limit()));
        waiting = asked
            .filter_map(|verdict| match verdict.unwrap() {
                Verdict::Wait(ticket, _) => Some(ticket),
                Verdict::Granted(_) => None,
            })
            .collect();
    }
    assert!(waiting.is_empty());
}

#[tokio::test]
async fn who_waits_keeps_its_place_when_somebody_cleans_up() {
    let fixture = Fixture::new();
    let first = fixture.vm("first", 600).start().await.unwrap();
    let large = waits(fixture.ticket("large", 900));
    let small = waits(fixture.ticket("small", 200));
    std::fs::rename(fixture.queue(), fixture.home.dir.path().join("gone")).unwrap();
    // The first one runs, by its own lock.
    let (large, small) = (waits(large), waits(small));
    assert_eq!(fixture.tickets(), (2, 0));
    first.destroy().await.unwrap();
    let small = waits(small);
    drop(granted(large));
    drop(granted(small));
}

#[test]
fn a_claim_that_is_removed_is_made_anew() {
    let fixture = Fixture::new();
    let claims = || {
        let found = std::fs::read_dir(fixture.queue()).unwrap();
        let mut names: Vec<_> = found.map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    };
    let want = wants("web", &[500]).remove(0);
    let mut held = Claim::new(fixture.store.home(), want).hold().unwrap();
    let first = claims();
    held.refresh().unwrap();
    assert_eq!((claims(), first.len()), (first.clone(), 1));
    std::fs::remove_file(fixture.queue().join(&first[0])).unwrap();
    held.refresh().unwrap();
    assert_eq!(claims().len(), 1);
    // The directory itself.
    std::fs::rename(fixture.queue(), fixture.home.dir.path().join("gone")).unwrap();
    held.refresh().unwrap();
    assert_eq!(claims().len(), 1);
    drop(held);
    assert_eq!(claims().len(), 0);
}

#[tokio::test]
async fn a_start_gives_up_when_nothing_moves() {
    let fixture = Fixture::new();
    let _first = fixture.ask("first", &[600]).await.unwrap().unwrap();
    let budget = BUDGET.stalled_after(Duration::from_millis(300));
    let error = acquire(&fixture.store, budget, wants("second", &[500]), &Silent)
        .await
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("600M of 1000M are in use by first-1 (600M)") && error.contains("cluster"),
        "{error}"
    );
    assert_eq!(fixture.tickets(), (0, 1));
}

#[tokio::test]
async fn without_a_limit_nobody_waits_but_all_count() {
    let fixture = Fixture::new();
    let all = acquire(
        &fixture.store,
        Budget::UNLIMITED,
        wants("huge", &[9000]),
        &Silent,
    );
    let huge = all.await.unwrap();
    let small = fixture.ask("small", &[1]);
    fixture.queued(1).await;
    drop(huge);
    drop(small.await.unwrap().unwrap());
}

#[derive(Default)]
struct Heard(Mutex<Vec<String>>);

impl Heard {
    /// Waits until somebody has been told that it waits for memory, which is after it was refused.
    async fn waiting<T>(&self, who: &JoinHandle<T>) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while self.0.lock().unwrap().is_empty() {
            assert!(!who.is_finished(), "it has not waited");
            assert!(Instant::now() < deadline, "it does not say that it waits");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert!(!who.is_finished(), "it waits no more");
    }
}

impl Progress for Heard {
    fn event(&self, event: ProgressEvent<'_>) {
        let text = match event {
            ProgressEvent::WaitingForMemory { vm, why } => format!("{vm}: {why}"),
            ProgressEvent::MemoryGranted => "granted".to_owned(),
            ProgressEvent::Stopping { .. }
            | ProgressEvent::Starting { .. }
            | ProgressEvent::WaitingFor { .. } => return,
            other => format!("{other:?}"),
        };
        self.0.lock().unwrap().push(text);
    }
}

#[tokio::test]
async fn a_vm_counts_until_it_ends_and_the_next_one_says_that_it_waits() {
    let fixture = Fixture::new();
    let first = fixture.vm("first", 600).start().await.unwrap();
    assert_eq!(fixture.tickets(), (0, 0), "a VM that runs needs no ticket");
    // One that runs already needs nothing.
    let again = fixture.vm("first", 600).start().await.unwrap();
    assert!(again.was_running());

    let heard = Arc::new(Heard::default());
    let second = fixture
        .vm("second", 500)
        .progress(Arc::clone(&heard) as Arc<dyn Progress>);
    let second = tokio::spawn(second.start());
    heard.waiting(&second).await;
    assert_eq!(fixture.tickets(), (1, 0));
    assert!(!fixture.store.home().join("clusters/second").exists());

    first.stop().await.unwrap();
    let second = second.await.unwrap().unwrap();
    assert_eq!(
        *heard.0.lock().unwrap(),
        [
            "second: it needs 500M, and 600M of 1000M are in use by first (600M)",
            "granted"
        ]
    );
    second.destroy().await.unwrap();
    again.destroy().await.unwrap();
}

#[tokio::test]
async fn a_vm_that_was_changed_is_started_with_its_new_sizes() {
    let fixture = Fixture::new();
    let heard = Arc::new(Heard::default());
    let vm = fixture
        .vm("changed", 100)
        .progress(Arc::clone(&heard) as Arc<dyn Progress>);
    let vm = vm.start().await.unwrap();
    vm.stop().await.unwrap();
    let change = Resize {
        cpus: Some(1),
        memory: Some(Size::mib(500)),
    };
    Fleet::at(fixture.store.home())
        .resize("changed", change)
        .await
        .unwrap();
    let spec = vm.machine().unwrap();
    assert_eq!((spec.cpus, spec.memory), (1, Size::mib(500).bytes()));

    // It needs as much memory as it will have.
    let first = fixture.vm("first", 600).start().await.unwrap();
    let started = tokio::spawn(async move { vm.start().await.map(|()| vm) });
    heard.waiting(&started).await;
    first.stop().await.unwrap();
    let vm = started.await.unwrap().unwrap();
    vm.destroy().await.unwrap();
    first.destroy().await.unwrap();
}

#[tokio::test]
async fn a_cluster_that_is_started_again_waits_as_one_and_says_so() {
    let fixture = Fixture::new();
    let mut clusters = Vec::new();
    for name in ["ca", "cb"] {
        let heard = Arc::new(Heard::default());
        let progress = Arc::clone(&heard) as Arc<dyn Progress>;
        let builder = Cluster::builder(name).count(2);
        let cluster = builder.each(|_| fixture.vm("", 300).progress(progress));
        let cluster = cluster.start().await.unwrap();
        cluster.stop().await.unwrap();
        clusters.push((cluster, heard));
    }
    let holder = fixture.vm("holder", 600).start().await.unwrap();
    let start = |cluster: &Cluster| {
        let cluster = cluster.clone();
        tokio::spawn(async move { cluster.start().await })
    };
    // Member by member each would get one of its own, and wait for the other's.
    let first = start(&clusters[0].0);
    clusters[0].1.waiting(&first).await;
    let second = start(&clusters[1].0);
    clusters[1].1.waiting(&second).await;
    assert_eq!(fixture.tickets(), (2, 0));
    let running = async || {
        let vms = Fleet::at(fixture.store.home()).list().await.unwrap();
        let running = vms.into_iter().filter(|vm| vm.state == VmState::Running);
        running.map(|vm| vm.name).collect::<Vec<_>>()
    };
    assert_eq!(running().await, ["holder"]);

    holder.stop().await.unwrap();
    first.await.unwrap().unwrap();
    assert_eq!(fixture.tickets(), (1, 0));
    assert_eq!(running().await, ["ca-1", "ca-2"]);
    // Those that run need nothing.
    clusters[0].0.start().await.unwrap();
    clusters[0].0.stop().await.unwrap();
    second.await.unwrap().unwrap();
    assert_eq!(running().await, ["cb-1", "cb-2"]);
    assert_eq!(
        *clusters[0].1.0.lock().unwrap(),
        [
            "ca-1 and 1 more: it needs 600M, and 600M of 1000M are in use by holder (600M)",
            "granted"
        ]
    );

    // A VM's own start says so, too.
    let third = start(&clusters[0].0);
    fixture.queued(1).await;
    third.abort();
    assert!(third.await.unwrap_err().is_cancelled());
    fixture.queued(0).await;
    clusters[0].1.0.lock().unwrap().clear();
    let member = Arc::clone(&clusters[0].0.members()[1]);
    clusters[1].0.vm("cb-1").unwrap().stop().await.unwrap();
    let large = fixture.vm("large", 600).start().await.unwrap();
    let alone = tokio::spawn(async move { member.start().await });
    clusters[0].1.waiting(&alone).await;
    large.stop().await.unwrap();
    alone.await.unwrap().unwrap();
    let heard = clusters[0].1.0.lock().unwrap().clone();
    assert!(
        heard.len() == 2 && heard[0].starts_with("ca-2: it needs 300M") && heard[1] == "granted",
        "{heard:?}"
    );
    for (cluster, _) in clusters {
        cluster.destroy().await.unwrap();
    }
}

#[tokio::test]
async fn a_cluster_is_restarted_as_one() {
    let fixture = Fixture::new();
    let builder = |heard: &Arc<Heard>| {
        let progress = Arc::clone(heard) as Arc<dyn Progress>;
        let builder = Cluster::builder("ca").count(2);
        builder.each(|_| fixture.vm("", 300).progress(progress))
    };
    let heard = Arc::new(Heard::default());
    let cluster = builder(&heard).start().await.unwrap();
    let runs = async || {
        let vms = Fleet::at(fixture.store.home()).list().await.unwrap();
        let running = vms.into_iter().filter(|vm| vm.state == VmState::Running);
        running.map(|vm| vm.name).collect::<Vec<_>>()
    };
    for by_handle in [true, false] {
        // It has its turn as soon as the cluster has stopped.
        let other = tokio::spawn(fixture.vm("other", 600).start());
        fixture.queued(1).await;
        let restarted = if by_handle {
            let cluster = cluster.clone();
            tokio::spawn(async move { cluster.restart().await })
        } else {
            let builder = builder(&heard);
            tokio::spawn(async move { builder.restart(STOP_DEADLINE).await.map(drop) })
        };
        let other = other.await.unwrap().unwrap();
        heard.waiting(&restarted).await;
        assert_eq!(fixture.tickets(), (1, 0));
        assert_eq!(runs().await, ["other"]);
        // There is memory for one of the two: neither has it.
        assert!(
            Fleet::at(fixture.store.home())
                .prune()
                .await
                .unwrap()
                .is_empty()
        );
        other.destroy().await.unwrap();
        restarted.await.unwrap().unwrap();
        assert_eq!(runs().await, ["ca-1", "ca-2"]);
        let said: Vec<_> = heard.0.lock().unwrap().drain(..).collect();
        assert!(
            said.len() == 2
                && said[0].starts_with("ca-1 and 1 more: it needs 600M")
                && said[1] == "granted",
            "{said:?}"
        );
    }
    // What could never be started again is not stopped.
    let tight = Budget::of(Size::mib(599));
    let tight = builder(&heard).each(|vm| vm.memory_budget(tight));
    let error = tight.restart(STOP_DEADLINE).await.unwrap_err();
    assert!(matches!(error, Error::Budget(_)), "{error}");
    let none = builder(&heard).member("ca-3", |vm| vm);
    let error = none.restart(STOP_DEADLINE).await.unwrap_err();
    assert!(matches!(error, Error::NoVm { .. }), "{error}");
    assert_eq!(runs().await, ["ca-1", "ca-2"]);
    // All or none.
    let broken = builder(&heard).member("ca-2", |mut vm| {
        vm.backend = Backend::Fake(refuses());
        vm
    });
    let error = broken.restart(STOP_DEADLINE).await.unwrap_err();
    assert!(error.to_string().contains("no such kernel"), "{error}");
    assert!(runs().await.is_empty());
    assert_eq!(fixture.tickets(), (0, 0));
    cluster.destroy().await.unwrap();
}

#[tokio::test]
async fn handles_that_were_opened_say_that_they_wait() {
    let fixture = Fixture::new();
    let builder = Cluster::builder("ca").count(2);
    let cluster = builder.each(|_| fixture.vm("", 300)).start().await.unwrap();
    cluster.stop().await.unwrap();
    let heard = [(); 2].map(|()| Arc::new(Heard::default()));
    let [alone, all] = [0, 1].map(|index| Arc::clone(&heard[index]) as Arc<dyn Progress>);
    let ca = fixture.store.cluster(&Name::new("ca").unwrap());
    let found = ca.vm(&Name::new("ca-1").unwrap()).unwrap();
    let found = Vm::found(&fixture.store, found).unwrap();
    // As it is opened, but for the machine and the budget, which the environment would tell.
    let found = found
        .run_by(fixture.vm("", 0).backend, STOP_DEADLINE, Some(BUDGET))
        .with_progress(alone);
    let holder = fixture.vm("holder", 800).start().await.unwrap();
    let found = tokio::spawn(async move { found.start().await });
    fixture.queued(1).await;
    let again = cluster.clone().with_progress(all);
    let again = tokio::spawn(async move { again.start().await });
    fixture.queued(2).await;
    holder.destroy().await.unwrap();
    found.await.unwrap().unwrap();
    again.await.unwrap().unwrap();
    for (heard, who) in heard.iter().zip(["ca-1: ", "ca-1 and 1 more: "]) {
        let said = heard.0.lock().unwrap();
        assert!(
            said.len() == 2 && said[0].starts_with(who) && said[1] == "granted",
            "{said:?}"
        );
    }
    cluster.destroy().await.unwrap();
}

#[tokio::test]
async fn what_waits_for_memory_is_not_pruned() {
    let fixture = Fixture::new();
    let home = fixture.store.home();
    let web = fixture.vm("web", 300).start().await.unwrap();
    web.stop().await.unwrap();
    drop(web);
    let members = Cluster::builder("mem").count(2);
    let members = members.each(|_| fixture.vm("", 100));
    fixture.vm("mem/mem-1", 100).create().await.unwrap();
    fixture.vm("unused", 100).create().await.unwrap();
    let holder = fixture.vm("holder", 900).start().await.unwrap();

    let alone = tokio::spawn(fixture.vm("web", 300).start());
    fixture.queued(1).await;
    let cluster = tokio::spawn(members.start());
    fixture.queued(2).await;
    let unused = Fleet::at(home).list().await.unwrap().into_iter();
    let unused: Vec<_> = unused.filter(|vm| vm.unused).map(|vm| vm.name).collect();
    assert_eq!(unused, ["unused"]);
    assert_eq!(Fleet::at(home).prune().await.unwrap(), ["unused"]);

    // Nor once it runs; who has given up keeps nothing from being pruned.
    cluster.abort();
    assert!(cluster.await.unwrap_err().is_cancelled());
    fixture.queued(1).await;
    holder.destroy().await.unwrap();
    let web = alone.await.unwrap().unwrap();
    assert_eq!(Fleet::at(home).prune().await.unwrap(), ["mem/mem-1"]);
    web.destroy().await.unwrap();
    assert!(Fleet::at(home).list().await.unwrap().is_empty());
}

#[tokio::test]
async fn a_start_that_fails_gives_its_memory_back() {
    let fixture = Fixture::new();
    let mut builder = fixture.vm("broken", 900);
    builder.backend = Backend::Fake(refuses());
    assert!(builder.start().await.is_err());
    assert_eq!(fixture.tickets(), (0, 0));
    drop(fixture.ask("next", &[900]).await.unwrap().unwrap());
}
