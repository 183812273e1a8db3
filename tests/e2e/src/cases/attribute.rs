//! `#[fleetbox::test]`: the tests of `tests/attribute.rs`, run as `cargo test` runs them, and what they leave.

use std::os::unix::fs::symlink;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use fleetbox::Fleet;
use fleetbox::budget::QUEUE_VARIABLE;

use crate::host;
use crate::report::{Must, uses};
use crate::suite::Suite;

/// How long a run of some tests may take.
const LIMIT: Duration = Duration::from_secs(500);

/// Runs the tests whose names contain `filter`, with these variables and none of the suite's own.
fn run(filter: &str, variables: &[(&str, &str)]) -> (Output, String) {
    let mut command = Command::new(host::program("fleetbox-e2e-attribute"));
    command.args(["--test-threads=2", "--ignored", filter]);
    for name in ["FLEETBOX_SHORT", "FLEETBOX_REQUIRE", "FLEETBOX_KEEP"] {
        command.env_remove(name);
    }
    command.envs(variables.iter().copied());
    let output = host::run(command, LIMIT);
    let text = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    (output, text)
}

/// Runs one test in a process of its own, as cargo-nextest does, with these variables.
fn start_alone(test: &str, variables: &[(&str, &str)]) -> Child {
    let mut command = as_nextest(&[test, "--exact", "--nocapture", "--ignored"]);
    command
        .env("NEXTEST_EXECUTION_MODE", "process-per-test")
        .envs(variables.iter().copied())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command.spawn().must("cannot start a test")
}

/// The tests as cargo-nextest asks for them: `name: test`, a line each, and nothing else.
fn listed(arguments: &[&str]) -> Vec<String> {
    let output = host::run(
        as_nextest(&[&["--list", "--format", "terse"], arguments].concat()),
        LIMIT,
    );
    assert!(output.status.success(), "{}", host::both(&output));
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .map(|line| match line.strip_suffix(": test") {
            Some(name) => name.to_owned(),
            None => panic!("{line:?} is not the name of a test"),
        })
        .collect()
}

fn as_nextest(arguments: &[&str]) -> Command {
    let mut command = Command::new(host::program("fleetbox-e2e-attribute"));
    command.args(arguments).env("NEXTEST", "1");
    for name in ["FLEETBOX_SHORT", "FLEETBOX_REQUIRE", "FLEETBOX_KEEP"] {
        command.env_remove(name);
    }
    command
}

/// A list, then a process for each test, all at once.
fn one_by_one() {
    const NAMES: [&str; 5] = [
        "fails",
        "panics",
        "passes_with_a_cluster",
        "passes_with_a_vm",
        "passes_without_the_macro",
    ];
    assert_eq!(listed(&[]), NAMES);
    assert_eq!(listed(&["--ignored"]), NAMES);
    let tests = NAMES.map(|name| (name, start_alone(name, &[])));
    for (name, test) in tests {
        let output = host::finish(test, LIMIT, name);
        let said = host::both(&output);
        assert!(
            output.status.success() && said.contains("1 passed"),
            "{said}"
        );
        assert!(
            said.contains(&format!("skipped attribute::{name}: ")),
            "{said}"
        );
    }
}

/// On a host without VMs tests are skipped with the reason, or fail with it where they are required; by `cargo test`
/// and by cargo-nextest.
pub(crate) fn without_vms(_suite: &Suite) {
    let (output, text) = run("", &[]);
    assert!(output.status.success(), "{text}");
    assert!(text.contains("5 passed"), "{text}");
    let errors = String::from_utf8_lossy(&output.stderr);
    let skipped = errors
        .lines()
        .filter(|line| line.contains("skipped attribute::"));
    assert_eq!(skipped.count(), 5, "{text}");
    assert!(errors.contains("software only"), "{text}");

    one_by_one();

    let (output, text) = run("passes", &[("FLEETBOX_REQUIRE", "1")]);
    assert_eq!(output.status.code(), Some(101), "{text}");
    assert!(
        text.contains("3 failed")
            && text.contains("FLEETBOX_REQUIRE")
            && text.contains("software only"),
        "{text}"
    );

    let (output, text) = run("", &[("FLEETBOX_REQUIRE", "1"), ("FLEETBOX_SHORT", "1")]);
    assert!(output.status.success(), "{text}");
    assert!(text.contains("FLEETBOX_SHORT is set"), "{text}");
}

/// A VM and a cluster of two processes, for which there is memory only one after the other.
pub(crate) fn passing(suite: &Suite) {
    suite.tiny();
    // Of its own, as VMs of other cases would have a part of the budget.
    let home = suite.dir().join("attribute");
    let images = suite.home().join("images");
    for dir in [&home, &images] {
        std::fs::create_dir_all(dir).must("cannot create a directory");
    }
    let link = home.join("images");
    // The case may run a second time.
    if !link.is_symlink() {
        symlink(images, link).must("cannot link the images");
    }
    let path = home.display().to_string();
    let queue = home.join("memory").display().to_string();
    let own = [
        ("FLEETBOX_HOME", path.as_str()),
        (QUEUE_VARIABLE, queue.as_str()),
    ];
    let with = |budget| [own[0], own[1], ("FLEETBOX_MEMORY_BUDGET", budget)];
    let variables = with("600M");
    let tests = ["passes_with_a_vm", "passes_with_a_cluster"];
    let processes = tests.map(|test| (test, start_alone(test, &variables)));
    let said = processes.map(|(test, process)| {
        let output = host::finish(process, LIMIT, test);
        let said = host::both(&output);
        assert!(
            output.status.success() && said.contains("1 passed"),
            "{said}"
        );
        said
    });
    let waits = |said: &String| said.contains("waits for memory: it needs");
    assert!(said.iter().any(waits), "{said:?}");
    let (output, text) = run("passes_without", &variables);
    assert!(output.status.success(), "{text}");
    assert!(text.contains("1 passed"), "{text}");
    host::within(Duration::from_secs(20), || {
        match std::fs::read_dir(home.join("clusters"))
            .must("cannot list")
            .count()
        {
            0 => Ok(()),
            left => Err(format!("{left} VMs are left")),
        }
    })
    .must("after the tests");

    let (output, text) = run("passes_with_a_cluster", &with("500M"));
    assert_eq!(output.status.code(), Some(101), "{text}");
    assert!(text.contains("it needs 512M of memory"), "{text}");
}

/// A failed test shows what happened in its guest, and keeps it: here in a process of its own.
pub(crate) fn failing(suite: &Suite) {
    suite.tiny();
    let output = host::finish(
        start_alone("fails", &[("FLEETBOX_KEEP", "1")]),
        LIMIT,
        "fails",
    );
    let text = [&output.stdout[..], &output.stderr].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    assert_eq!(output.status.code(), Some(101), "{text}");
    for part in [
        "this test fails on purpose",
        "this-is-on-the-console\n",
        "failed units\n| broken.service loaded failed failed A broken unit",
        "1 failed",
    ] {
        assert!(text.contains(part), "{part:?} is not in {text}");
    }
    let name = text
        .split(" is kept: log in with `")
        .next()
        .and_then(|before| before.rsplit("--- ").next())
        .unwrap_or_default()
        .to_owned();
    assert!(text.contains(&format!("fleetbox ssh {name}`")), "{text}");
    uses(&name);
    let home = suite.home();
    let vm = suite
        .block(Fleet::at(&home).open(&name))
        .must("the VM was not kept");
    assert_eq!(suite.sh(&vm, "hostname"), name);
    drop(vm);
    let output = host::run(suite.fleetbox(&["rm", &name]), Duration::from_secs(60));
    assert!(output.status.success(), "{}", host::both(&output));
    host::assert_quiet(&suite.vm_dir(&name), &name, true);
    assert!(!suite.vm_dir(&name).exists());
}
