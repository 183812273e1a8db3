//! `#[fleetbox::test]`: the tests of `tests/attribute.rs`, run as `cargo test` runs them, and what they leave.

use std::process::{Command, Output};
use std::time::Duration;

use crate::host;
use crate::suite::Suite;

/// How long a run of some tests may take.
const LIMIT: Duration = Duration::from_secs(500);

/// Runs the tests whose names contain `filter`, with these variables and none of the suite's own.
fn run(filter: &str, variables: &[(&str, &str)]) -> (Output, String) {
    let mut command = Command::new(host::program("fleetbox-e2e-attribute"));
    command.args(["--ignored", filter]);
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

/// On a host without VMs tests are skipped with the reason, or fail with it where they are required.
pub(crate) fn without_vms(_suite: &Suite) {
    let (output, text) = run("", &[]);
    assert!(output.status.success(), "{text}");
    assert!(text.contains("4 passed"), "{text}");
    let errors = String::from_utf8_lossy(&output.stderr);
    let skipped = errors
        .lines()
        .filter(|line| line.contains("skipped attribute::"));
    assert_eq!(skipped.count(), 4, "{text}");
    assert!(errors.contains("software only"), "{text}");

    let (output, text) = run("passes", &[("FLEETBOX_REQUIRE", "1")]);
    assert_eq!(output.status.code(), Some(101), "{text}");
    assert!(
        text.contains("2 failed")
            && text.contains("FLEETBOX_REQUIRE")
            && text.contains("software only"),
        "{text}"
    );

    let (output, text) = run("", &[("FLEETBOX_REQUIRE", "1"), ("FLEETBOX_SHORT", "1")]);
    assert!(output.status.success(), "{text}");
    assert!(text.contains("FLEETBOX_SHORT is set"), "{text}");
}
