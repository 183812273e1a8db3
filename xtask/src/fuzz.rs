//! Runs the fuzz targets in `fuzz/` under libFuzzer, with cargo-fuzz and a nightly compiler.

use std::fs;
use std::path::Path;

use crate::error::{Context, Result};
use crate::run::{Cmd, step};
use crate::{bail, deps, target_dir, workspace};

/// Maximum time in seconds for one input.
const INPUT_LIMIT: u64 = 10;

/// Maximum memory in MiB of a target, which includes that of the sanitizer.
const MEMORY: u64 = 1024;

/// Time in seconds to build the targets.
const BUILD_LIMIT: u64 = 1800;

/// Runs one target, or all one after another, for `seconds` each. New inputs are kept in the target directory, so that
/// the next run goes on from there.
///
/// # Errors
/// There is no such target, a program is missing, or an input found a fault. Then its file is named; add it to
/// `fuzz/corpus` with the correction.
pub fn run(target: Option<&str>, seconds: u32) -> Result<()> {
    let all = targets(&workspace().join("fuzz/fuzz_targets"))?;
    let chosen: Vec<&String> = match target {
        None => all.iter().collect(),
        Some(name) => all.iter().filter(|known| *known == name).collect(),
    };
    if chosen.is_empty() {
        bail!(
            "there is no fuzz target {}; the targets are {}",
            target.unwrap_or_default(),
            all.join(", ")
        );
    }
    find_programs()?;
    for name in chosen {
        step(&format!("fuzzing {name} for {seconds} s"), || {
            fuzz(name, u64::from(seconds))
        })?;
    }
    Ok(())
}

fn fuzz(name: &str, seconds: u64) -> Result<()> {
    let found = target_dir().join("fuzz/corpus").join(name);
    fs::create_dir_all(&found).context(|| format!("cannot create {}", found.display()))?;
    cargo_nightly()
        .args(["fuzz", "run", name])
        .arg("--target-dir")
        .arg(target_dir().join("fuzz"))
        // libFuzzer writes what it finds to the first.
        .arg(&found)
        .arg(workspace().join("fuzz/corpus").join(name))
        .arg("--")
        .arg(format!("-max_total_time={seconds}"))
        .arg(format!("-timeout={INPUT_LIMIT}"))
        .arg(format!("-rss_limit_mb={MEMORY}"))
        .arg("-print_final_stats=1")
        .limit(BUILD_LIMIT + 2 * seconds)
        .passthrough()
}

/// The names of the targets.
fn targets(dir: &Path) -> Result<Vec<String>> {
    let entries = fs::read_dir(dir).context(|| format!("cannot list {}", dir.display()))?;
    let mut names: Vec<String> = entries
        .flatten()
        .filter_map(|entry| Some(entry.path().file_stem()?.to_str()?.to_owned()))
        .collect();
    names.sort();
    Ok(names)
}

/// A command of the nightly compiler's cargo, without what this cargo has set for itself.
fn cargo_nightly() -> Cmd {
    Cmd::new("rustup")
        .args(["run", "nightly", "cargo"])
        .dir(workspace())
        .env_remove("CARGO")
        .env_remove("RUSTUP_TOOLCHAIN")
}

fn find_programs() -> Result<()> {
    if deps::find("rustup").is_none() {
        bail!(
            "fuzzing needs rustup, for a nightly compiler; https://rustup.rs says how to install it"
        );
    }
    if !cargo_nightly().arg("--version").succeeds() {
        bail!(
            "there is no nightly compiler; install it: rustup toolchain install nightly --profile minimal"
        );
    }
    if !cargo_nightly().args(["fuzz", "--version"]).succeeds() {
        bail!("cargo-fuzz is missing; install it: cargo +nightly install cargo-fuzz");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_target_is_refused_with_the_known_ones() {
        let error = run(Some("none-such"), 1).unwrap_err().to_string();
        assert!(
            error.contains("none-such") && error.contains("qcow2"),
            "{error}"
        );
    }
}
