//! Random verbs at once, on a few VMs. No verb takes longer than docs/life-cycle.md says, none ends with another status
//! than documented or with an error that nobody would understand, and at the end nothing is left.
//!
//! `FLEETBOX_STRESS_SEED` repeats the verbs of a run (how they meet still depends on the host), and
//! `FLEETBOX_STRESS_SECONDS` sets its length.

use std::process::{Command, Output};
use std::sync::Mutex;
use std::time::{Duration, Instant, SystemTime};

use nix::sys::signal::{Signal, kill};

use crate::host::{Host, RUNS, assert_nothing_left, eventually, said, succeeded};

/// Seconds of a run.
const SECONDS: u64 = 30;

/// Programs at once.
const THREADS: u64 = 4;

/// How long `down` and `restart` give the guest, in seconds.
const TIMEOUT: u64 = 2;

/// Other machines than one that runs until its power button is pressed.
const SCRIPTS: [&str; 4] = [
    r#""Deaf""#,
    r#"{"Refuse": {"error": "no such kernel"}}"#,
    r#"{"Fail": {"console": "oops", "error": "the CPU has caught fire"}}"#,
    r#"{"Abort": {"console": "oops"}}"#,
];

/// What errors say, each of a situation that others can cause at any time.
const EXPECTED: &[&str] = &[
    "no VM named",
    "no cluster named",
    "has no member",
    "exists already and differs",
    "is running; stop it first",
    "is not running; start it with",
    "no such kernel",
    "the CPU has caught fire",
    "was ended by signal",
    "powered off immediately",
    "did not come up",
    // Its worker was killed, by this test, before it served or while it was asked.
    "cannot start the worker process of",
    "lost the worker process of",
    "and its disk are kept",
    // The lines of a failed machine's console, and of the error of a signal.
    "oops",
];

/// What is printed to standard error without being an error.
const NOTES: &[&str] = &[
    "starting ",
    "stopping ",
    "restarting ",
    "creating ",
    "preflight ",
    "skipped VMs",
];

/// A small generator of random numbers, so that the seed is all that a run depends on (SplitMix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    fn choose<'a, T: ?Sized>(&mut self, from: &[&'a T]) -> &'a T {
        from[self.below(from.len() as u64) as usize]
    }
}

/// The stated longest time of a verb, in seconds, on a host that is not overloaded.
fn longest(arguments: &[String]) -> u64 {
    let force = arguments.iter().any(|argument| argument == "--force");
    match (arguments[0].as_str(), force) {
        ("ls" | "logs" | "set" | "prune", _) => 10,
        ("show", _) => 30,
        ("kill", _) | ("down", true) => 30,
        ("down", false) => TIMEOUT + 30,
        ("rm", _) => 60,
        ("up", _) => 120,
        // `--timeout` is that of the start; a guest has a minute to power off.
        ("restart", true) => 30 + 120,
        ("restart", false) => 60 + 30 + 120,
        (verb, _) => panic!("{verb} has no stated longest time"),
    }
}

struct Stress {
    host: Host,
    /// A VM alone, and the members of a cluster.
    names: Vec<String>,
    cluster: String,
    /// What went wrong.
    faults: Mutex<Vec<String>>,
    /// Verb, status and time of each.
    ended: Mutex<Vec<(String, Option<i32>, Duration)>>,
}

impl Stress {
    fn new() -> Self {
        let host = Host::new("storm");
        let cluster = host.stem.clone();
        let names = vec![
            format!("{cluster}/{cluster}-1"),
            format!("{cluster}/{cluster}-2"),
            format!("{cluster}-3"),
        ];
        Self {
            host,
            names,
            cluster,
            faults: Mutex::default(),
            ended: Mutex::default(),
        }
    }

    /// The next verb, and the machine that it starts if it starts one.
    fn verb(&self, random: &mut Random) -> (Vec<String>, &'static str) {
        let name = self.names[random.below(3) as usize].clone();
        let any = match random.below(4) {
            0 => self.cluster.clone(),
            _ => name.clone(),
        };
        let image = self.host.dir.path().join("disk.raw");
        let image = image.to_str().unwrap();
        let words = |words: &[&str]| {
            words
                .iter()
                .map(|&word| word.to_owned())
                .collect::<Vec<_>>()
        };
        let up = ["--disk", "8M", "--image", image];
        let timeout = TIMEOUT.to_string();
        let arguments = match random.below(20) {
            0..=3 => words(&[&["up", &name][..], &up].concat()),
            4..=5 => words(&[&["up", &self.cluster, "-n", "2"][..], &up].concat()),
            6 => words(&[&["up", &name, "--cpus", "1"][..], &up].concat()),
            7 => words(&[&["up", &name, "--no-start"][..], &up].concat()),
            8..=9 => words(&["rm", "--force", &any]),
            10 => words(&["down", "--timeout", &timeout, &any]),
            11 => words(&["down", "--force", &any]),
            12 => words(&["kill", &any]),
            13..=14 => words(&["restart", "--force", &any]),
            15 => words(&["set", &name, "--cpus", random.choose(&["1", "2"])]),
            16 => words(&["ls"]),
            17 => words(&["show", &name]),
            18 => words(&["logs", &name]),
            _ => words(&["prune", "--force"]),
        };
        let script = match random.below(3) {
            0 => random.choose(&SCRIPTS),
            _ => RUNS,
        };
        (arguments, script)
    }

    fn run(&self, random: &mut Random, until: Instant) {
        while Instant::now() < until && self.faults.lock().unwrap().is_empty() {
            // Now and then, what no verb does.
            if random.below(40) == 0 {
                let role = random.choose(&["worker", "machine"]);
                let name = random.choose(&["", "-1", "-2", "-3"]);
                for pid in self
                    .host
                    .processes(role, &format!("{}{name}", self.cluster))
                {
                    let _ = kill(pid, Signal::SIGKILL);
                }
            }
            let (arguments, script) = self.verb(random);
            let strings: Vec<&str> = arguments.iter().map(String::as_str).collect();
            let mut command = self.host.command(&strings);
            command.env("FLEETBOX_FAKE", script);
            let limit = Duration::from_secs(longest(&arguments));
            let began = Instant::now();
            let output = within(&mut command, limit);
            let took = began.elapsed();
            let status = output.as_ref().and_then(|output| output.status.code());
            let verb = arguments[0].clone();
            self.ended.lock().unwrap().push((verb, status, took));
            let fault = match &output {
                None => Some(format!("not ended after {took:?}")),
                Some(output) => fault(output),
            };
            if let Some(fault) = fault {
                let fault = format!("{arguments:?} with {script}: {fault}");
                self.faults.lock().unwrap().push(fault);
            }
        }
    }
}

/// The output of a command that ends in time.
fn within(command: &mut Command, limit: Duration) -> Option<Output> {
    let mut child = command.spawn().unwrap();
    let deadline = Instant::now() + limit;
    while child.try_wait().unwrap().is_none() {
        if Instant::now() > deadline {
            let _ = child.kill();
            let output = child.wait_with_output().unwrap();
            eprintln!("stuck: {}", said(&output));
            return None;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Some(child.wait_with_output().unwrap())
}

/// What is wrong with how a verb ended.
fn fault(output: &Output) -> Option<String> {
    let errors = String::from_utf8_lossy(&output.stderr);
    let mut lines = errors.lines().map(str::trim);
    let expected = |line: &str| {
        line.is_empty()
            || EXPECTED.iter().any(|part| line.contains(part))
            || NOTES.iter().any(|start| line.starts_with(start))
    };
    match output.status.code() {
        Some(0) => None,
        Some(1) if errors.is_empty() => Some(format!("no error: {}", said(output))),
        Some(1) => lines
            .find(|line| !expected(line))
            .map(|line| format!("unexpected {line:?}: {}", said(output))),
        _ => Some(format!("undocumented status: {}", said(output))),
    }
}

#[test]
fn random_verbs_at_once_end_in_time_and_leave_nothing() {
    let variable = |name: &str| std::env::var(name).ok().map(|value| value.parse().unwrap());
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let seed = variable("FLEETBOX_STRESS_SEED").unwrap_or(now.unwrap().as_nanos() as u64);
    let seconds = variable("FLEETBOX_STRESS_SECONDS").unwrap_or(SECONDS);
    println!("FLEETBOX_STRESS_SEED={seed} repeats these verbs");

    let stress = Stress::new();
    succeeded(stress.host.run(&["ls"]));
    let until = Instant::now() + Duration::from_secs(seconds);
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let mut random = Random(seed.wrapping_add(thread << 32));
            let stress = &stress;
            scope.spawn(move || stress.run(&mut random, until));
        }
    });
    let ended = stress.ended.lock().unwrap();
    let failed = ended.iter().filter(|(_, status, _)| *status != Some(0));
    let slowest = ended.iter().max_by_key(|(_, _, took)| *took);
    let (verbs, failed) = (ended.len(), failed.count());
    println!("{verbs} verbs, {failed} with an error, the slowest: {slowest:?}");
    let faults = stress.faults.lock().unwrap();
    assert!(faults.is_empty(), "seed {seed}: {}", faults.join("\n"));

    let Host { stem, .. } = &stress.host;
    for (name, _) in stress.host.states() {
        succeeded(stress.host.run(&["rm", "--force", &name]));
    }
    let processes = || {
        let names = ["", "-1", "-2", "-3"].map(|index| format!("{stem}{index}"));
        let roles = ["worker", "machine"].into_iter();
        let each = roles.flat_map(|role| names.each_ref().map(|name| (role, name)));
        let mut found = each.flat_map(|(role, name)| stress.host.processes(role, name));
        found.next().is_some()
    };
    // A worker that was asked for nothing waits for a while.
    eventually("no process is left", || !processes());
    succeeded(stress.host.run(&["prune", "--force"]));
    assert_nothing_left(&stress.host.home());
    let queue = stress.host.dir.path().join("budget");
    // What killed processes have left counts for nothing, and the next start removes it.
    succeeded(stress.host.up().output().unwrap());
    succeeded(stress.host.run(&["rm", "--force", &stress.host.stem]));
    assert_eq!(std::fs::read_dir(&queue).unwrap().count(), 0);
}
