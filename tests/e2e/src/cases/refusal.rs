//! Hosts whose KVM cannot boot a stock kernel are told so at once, before anything is downloaded or created.

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use fleetbox::Vm;

use crate::host;
use crate::report::Must;
use crate::suite::{Suite, sha256};

/// How long a refusal may take. Unoptimised programs start in some tens of milliseconds.
const AT_ONCE: Duration = Duration::from_secs(1);

fn assert_refusal(text: &str, took: Duration) {
    assert!(
        text.contains("software only") && text.contains("VT-x or AMD-V"),
        "{text}"
    );
    assert!(took < AT_ONCE, "the refusal took {took:?}");
}

fn catalogued(suite: &Suite) {
    fs::write(suite.served("refused.img"), b"image").must("cannot write a file");
    suite.add_to_catalogue("refused", "refused.img", &sha256(b"image"));
}

fn assert_untouched(suite: &Suite) {
    let asked: Vec<_> = suite
        .server()
        .requests()
        .into_iter()
        .filter(|r| r.path == "/refused.img")
        .collect();
    assert!(asked.is_empty(), "the image was asked for: {asked:?}");
    assert!(!suite.vm_dir("refused").exists(), "a VM was created");
}

pub(crate) fn up(suite: &Suite) {
    catalogued(suite);
    let began = Instant::now();
    let output = host::run(
        suite.fleetbox(&["up", "refused", "--image", "refused"]),
        Duration::from_secs(30),
    );
    assert_eq!(output.status.code(), Some(1), "{}", host::both(&output));
    let error = String::from_utf8_lossy(&output.stderr);
    assert_refusal(&error, began.elapsed());
    assert_eq!(
        error.trim().lines().count(),
        1,
        "more than a sentence: {error}"
    );
    assert_untouched(suite);
}

pub(crate) fn library(suite: &Suite) {
    catalogued(suite);
    let began = Instant::now();
    let error = suite
        .block(Vm::builder("refused").image("refused").start())
        .err();
    let error = error.expect("a VM started on software KVM").to_string();
    assert_refusal(&error, began.elapsed());
    assert_untouched(suite);
}

pub(crate) fn vmm(suite: &Suite) {
    let image = suite.dir().join("refused.raw");
    fs::write(&image, vec![0; 1 << 20]).must("cannot write a file");
    let mut command = Command::new(host::program("fleetbox-vmm"));
    command.args(["run", "--image"]).arg(&image);
    let began = Instant::now();
    let output = host::run(command, Duration::from_secs(30));
    assert_eq!(output.status.code(), Some(1), "{}", host::both(&output));
    assert_refusal(&String::from_utf8_lossy(&output.stderr), began.elapsed());
}
