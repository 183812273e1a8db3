//! `--full`: runs every step, and the cases that take too long for everyday use. An interrupted run continues where it
//! stopped.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use super::report::{self, Line, Outcome};
use super::{Step, fail, lint, record, time, unit};
use crate::cache::Key;
use crate::cargo::{cargo, packages};
use crate::error::{Context, Result};
use crate::kvm::Kvm;
use crate::run::Cmd;
use crate::{bail, check, target_dir, workspace};

/// How often the coordination test runs.
const COORDINATION_RUNS: u32 = 10;

/// How long random verbs run at once after that.
const STRESS_SECONDS: &str = "600";

/// How often the randomised tests run, with [`PROPTEST_CASES`] cases each if the test sets no number. In total these
/// are twenty times the 256 cases of the step `unit`.
const PROPTEST_RUNS: u32 = 5;
const PROPTEST_CASES: &str = "1024";

/// The library whose features are tested.
const LIBRARY: &str = "fleetbox";

/// The options of the full run.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Only the cases whose names contain one of these.
    pub cases: Vec<String>,
    /// Forget the cases that have already passed.
    pub restart: bool,
    /// Record the run in docs/testing.md once it is complete.
    pub record: bool,
    /// Only print the names.
    pub list: bool,
}

/// A case that has passed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Done {
    pub(super) name: String,
    pub(super) seconds: f64,
    pub(super) note: Option<String>,
}

struct Case {
    name: String,
    work: Box<dyn Fn() -> Result<Option<String>>>,
}

impl Case {
    fn new(name: impl Into<String>, work: impl Fn() -> Result<Option<String>> + 'static) -> Self {
        Self {
            name: name.into(),
            work: Box::new(work),
        }
    }
}

/// Runs the cases that have not passed yet at this commit.
///
/// # Errors
/// A case failed, after which later ones still run; or the run should be recorded and is not complete.
pub fn run(options: &Options) -> Result<()> {
    let cases = cases()?;
    if options.list {
        cases.iter().for_each(|case| println!("{}", case.name));
        return Ok(());
    }
    let wanted = |case: &&Case| {
        options.cases.is_empty() || options.cases.iter().any(|w| case.name.contains(w.as_str()))
    };
    if !cases.iter().any(|case| wanted(&case)) {
        bail!("no case has such a name; run `cargo xtask test --full --list` to list them");
    }
    let state = State::here()?;
    if options.record && state.dirty {
        bail!("cannot record the run: there are uncommitted changes; commit them first");
    }
    let progress = Progress::open(&state, options.restart)?;
    let passed = progress.read()?;
    let mut lines = Vec::new();
    for case in cases.iter().filter(wanted) {
        if passed.iter().any(|done| done.name == case.name) {
            eprintln!("== {}: already passed", case.name);
            continue;
        }
        let line = time(&case.name, None, || (case.work)());
        progress.add(&line)?;
        lines.push(line);
    }
    eprint!("{}", report::summary(&lines));
    fail(&lines)?;
    let passed = progress.read()?;
    let missing = cases.len() - passed.len();
    eprintln!("{} of {} cases have passed", passed.len(), cases.len());
    match (options.record, missing) {
        (false, _) => Ok(()),
        (true, 0) => {
            let date = Cmd::new("date").args(["-u", "+%F"]).text()?;
            record::write(&state.commit, &date, &host(), &passed)
        }
        (true, _) => bail!("not recorded: {missing} cases have not run"),
    }
}

/// All cases, in order.
fn cases() -> Result<Vec<Case>> {
    let steps = Step::value_variants().iter();
    let mut cases: Vec<_> = steps
        .map(|step| Case::new(step.name(), || step.run(&[])))
        .collect();
    for set in lint::feature_sets(LIBRARY)? {
        let name = format!("features:{}", set.as_deref().unwrap_or("none"));
        cases.push(Case::new(name, move || {
            cargo(&["test", "-p", LIBRARY, "--lib", "--locked"])
                .args(lint::feature_args(set.as_deref()))
                .limit(1800)
                .echoed()
                .map(|()| None)
        }));
    }
    for package in packages()? {
        if package.is_library() && package.depends_on("proptest") {
            let name = format!("proptest:{}", package.name);
            cases.push(Case::new(name, move || proptest(&package.name)));
        }
    }
    for run in 1..=COORDINATION_RUNS {
        cases.push(Case::new(format!("coordination:{run}"), || {
            unit::coordination()?.limit(600).echoed().map(|()| None)
        }));
    }
    cases.push(Case::new("stress", || {
        unit::coordination()?
            .args(["--", "random_verbs"])
            .env("FLEETBOX_STRESS_SECONDS", STRESS_SECONDS)
            .limit(1800)
            .echoed()
            .map(|()| None)
    }));
    cases.push(Case::new("package:build", || {
        check::package_and_build().map(Some)
    }));
    cases.push(Case::new("msrv", msrv));
    Ok(cases)
}

fn proptest(package: &str) -> Result<Option<String>> {
    for _ in 0..PROPTEST_RUNS {
        cargo(&["test", "-p", package, "--lib", "--locked"])
            .env("PROPTEST_CASES", PROPTEST_CASES)
            .limit(1800)
            .echoed()?;
    }
    Ok(Some(format!("{PROPTEST_RUNS} runs")))
}

/// Builds the published packages with the oldest supported Rust, if it is available.
fn msrv() -> Result<Option<String>> {
    let manifest = fs::read_to_string(workspace().join("Cargo.toml"))
        .context(|| "cannot read the workspace's Cargo.toml")?;
    let Some(version) = manifest
        .lines()
        .find_map(|line| line.strip_prefix("rust-version = "))
    else {
        bail!("the workspace's Cargo.toml has no rust-version")
    };
    let version = version.trim_matches('"');
    if crate::deps::find("rustup").is_none() {
        return Ok(Some(format!("skipped: no rustup to get Rust {version}")));
    }
    crate::deps::ensure_toolchain(version)?;
    let mut command = Cmd::new("rustup").args(["run", version, "cargo", "check", "--locked"]);
    for package in packages()?.iter().filter(|p| p.is_published()) {
        command = command.args(["-p", &package.name]);
    }
    command
        .dir(workspace())
        .env_remove("CARGO")
        .env_remove("RUSTUP_TOOLCHAIN")
        .env("CARGO_TARGET_DIR", target_dir().join("msrv"))
        .limit(2400)
        .passthrough()?;
    Ok(Some(format!("Rust {version}")))
}

/// "2 cores, this machine's KVM (AMD-V)"
fn host() -> String {
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    format!("{cores} cores, {}", Kvm::here())
}

/// The tested state of the repository.
struct State {
    commit: String,
    /// True if there are uncommitted changes.
    dirty: bool,
    /// A name for the commit and the changes.
    key: String,
}

impl State {
    fn here() -> Result<Self> {
        let git = |args: &[&str]| Cmd::new("git").args(args).dir(workspace()).text();
        let commit = git(&["rev-parse", "--short=12", "HEAD"])?;
        let new = git(&["ls-files", "--others", "--exclude-standard"])?;
        let new: Vec<_> = new.lines().collect();
        let new_content = match new.as_slice() {
            [] => String::new(),
            names => git(&[&["hash-object", "--"], names].concat())?,
        };
        let changes = git(&["diff", "HEAD"])? + &git(&["status", "--porcelain"])? + &new_content;
        Ok(Self {
            dirty: !changes.is_empty(),
            key: Key::new("full").with(&commit).with(changes).finish(),
            commit,
        })
    }
}

/// A file with a line for each case that has passed.
struct Progress(PathBuf);

impl Progress {
    fn open(state: &State, restart: bool) -> Result<Self> {
        let dir = target_dir().join("xtask");
        fs::create_dir_all(&dir).context(|| format!("cannot create {}", dir.display()))?;
        let path = dir.join(format!("full-{}.jsonl", state.key));
        if restart && path.exists() {
            fs::remove_file(&path).context(|| format!("cannot remove {}", path.display()))?;
        }
        Ok(Self(path))
    }

    fn read(&self) -> Result<Vec<Done>> {
        read(&self.0)
    }

    fn add(&self, line: &Line) -> Result<()> {
        let Outcome::Passed(note) = &line.outcome else {
            return Ok(());
        };
        let done = Done {
            name: line.name.clone(),
            seconds: line.took.as_secs_f64(),
            note: note.clone(),
        };
        add(&self.0, &done)
    }
}

fn read(path: &Path) -> Result<Vec<Done>> {
    if !path.exists() {
        return Ok(Vec::new());
    }
    let text = fs::read_to_string(path).context(|| format!("cannot read {}", path.display()))?;
    // A line that was cut off by a kill is a case that has not passed.
    Ok(text
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect())
}

fn add(path: &Path, done: &Done) -> Result<()> {
    let line = serde_json::to_string(done).context(|| "cannot write a case as JSON")?;
    OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .and_then(|mut file| file.write_all(format!("\n{line}").as_bytes()))
        .context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_that_was_cut_off_does_not_count_and_hides_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("progress");
        assert_eq!(read(&path).unwrap(), []);
        let done = |name: &str| Done {
            name: name.into(),
            seconds: 1.5,
            note: None,
        };
        add(&path, &done("one")).unwrap();
        let mut file = OpenOptions::new().append(true).open(&path).unwrap();
        file.write_all(b"\n{\"name\":\"cut").unwrap();
        add(&path, &done("two")).unwrap();
        assert_eq!(read(&path).unwrap(), [done("one"), done("two")]);
    }

    #[test]
    fn cases_have_names_of_their_own() {
        let cases = cases().unwrap();
        let mut names: Vec<_> = cases.iter().map(|case| &case.name).collect();
        for name in ["e2e", "features:none", "coordination:10", "stress", "msrv"] {
            assert!(names.iter().any(|n| *n == name), "{name}: {names:?}");
        }
        let count = names.len();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), count);
    }
}
