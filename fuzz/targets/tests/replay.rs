//! Runs every target on the inputs in `fuzz/corpus`.

use std::collections::BTreeSet;
use std::fs;
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use fleetbox_fuzz::{TARGETS, Target};

/// Maximum time for one input, on a busy machine. Most take less than a millisecond.
const LIMIT: Duration = Duration::from_secs(20);

/// Maximum bytes of an input, so that the repository stays small.
const MAX_INPUT: u64 = 64 << 10;

/// The directory `fuzz`.
fn fuzz() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

fn inputs(target: &Target) -> Vec<PathBuf> {
    let dir = fuzz().join("corpus").join(target.name);
    let list = fs::read_dir(&dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
    let mut inputs: Vec<_> = list.map(|entry| entry.unwrap().path()).collect();
    inputs.sort();
    assert!(!inputs.is_empty(), "{} has no inputs", dir.display());
    inputs
}

fn replay(target: &Target) {
    for input in inputs(target) {
        let bytes = fs::read(&input).unwrap();
        assert!(
            bytes.len() as u64 <= MAX_INPUT,
            "{} is too large",
            input.display()
        );
        let start = Instant::now();
        let result = catch_unwind(|| (target.run)(&bytes));
        let took = start.elapsed();
        assert!(
            result.is_ok(),
            "the input {} has found a fault",
            input.display()
        );
        assert!(took < LIMIT, "the input {} took {took:?}", input.display());
    }
}

#[test]
fn every_known_input_is_replayed() {
    std::thread::scope(|scope| {
        let running: Vec<_> = TARGETS.iter().map(|t| scope.spawn(|| replay(t))).collect();
        for target in running {
            target.join().unwrap();
        }
    });
}

#[test]
fn every_target_has_its_entry_and_every_corpus_its_target() {
    let listed: BTreeSet<String> = TARGETS.iter().map(|t| t.name.to_owned()).collect();
    let manifest = fs::read_to_string(fuzz().join("Cargo.toml")).unwrap();
    let binaries: BTreeSet<String> = manifest
        .split("[[bin]]")
        .skip(1)
        .map(|bin| bin.split('"').nth(1).unwrap().to_owned())
        .collect();
    assert_eq!(binaries, listed, "the binaries of fuzz/Cargo.toml");
    let names = |dir: &str| -> BTreeSet<String> {
        let list = fs::read_dir(fuzz().join(dir)).unwrap();
        list.map(|entry| {
            entry
                .unwrap()
                .path()
                .file_stem()
                .unwrap()
                .to_string_lossy()
                .into_owned()
        })
        .collect()
    };
    assert_eq!(
        names("fuzz_targets"),
        listed,
        "the files of fuzz/fuzz_targets"
    );
    assert_eq!(names("corpus"), listed, "the directories of fuzz/corpus");
    for target in TARGETS {
        let entry = fuzz().join(format!("fuzz_targets/{}.rs", target.name));
        let entry = fs::read_to_string(entry).unwrap();
        let call = format!("fleetbox_fuzz::{}::run(", target.name);
        assert!(
            entry.contains(&call),
            "the entry of {} runs another target",
            target.name
        );
    }
}
