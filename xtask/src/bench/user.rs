//! Measures the cost of a dev-dependency on this library: builds and starts a new crate with one `#[fleetbox::test]`.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::error::{Context, Error, Result};
use crate::run::Cmd;
use crate::{bail, workspace};

/// How often a test program is started for one measurement of its start.
const STARTS: usize = 40;

/// The crate's only test of the library.
const TEST: &str = "\
#[fleetbox::test(image = \"debian-12\")]
async fn a_real_kernel(vm: fleetbox::Vm) -> fleetbox::Result<()> {
    let out = vm.ssh(\"uname -a\").await?;
    assert!(out.success(), \"{out:?}\");
    Ok(())
}
";

/// A test program without the library, for comparison.
const EMPTY: &str = "#[test]\nfn nothing() {}\n";

/// The results of one round.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Round {
    packages: usize,
    cold: f64,
    warm: f64,
    bytes: u64,
    start: f64,
    empty_start: f64,
}

/// Measures this checkout and, alternating with it, `baseline`. Prints medians.
///
/// # Errors
/// The crate does not build.
pub fn run(baseline: Option<&Path>, runs: u8) -> Result<()> {
    let mut checkouts = vec![("this checkout", workspace())];
    if let Some(dir) = baseline {
        let dir = fs::canonicalize(dir).context(|| format!("cannot find {}", dir.display()))?;
        checkouts.push(("baseline", dir));
    }
    let mut rounds = vec![Vec::new(); checkouts.len()];
    for run in 1..=runs {
        for ((name, checkout), rounds) in checkouts.iter().zip(&mut rounds) {
            eprintln!("  {name}, run {run} of {runs}");
            rounds.push(measure(checkout)?);
        }
    }
    print!("{}", table(&checkouts, &rounds));
    Ok(())
}

fn measure(checkout: &Path) -> Result<Round> {
    let dir = tempfile::tempdir().context(|| "cannot create a directory for the crate")?;
    let dir = dir.path();
    write_crate(dir, checkout)?;
    // What is downloaded is not a part of what is measured.
    cargo(dir).args(["fetch"]).limit(900).run()?;
    let cold = build(dir)?;
    let test = dir.join("tests/vm.rs");
    let changed = TEST.replace("uname -a", "uname -r");
    fs::write(&test, changed).context(|| format!("cannot write {}", test.display()))?;
    let warm = build(dir)?;
    let program = warm.program("vm")?;
    let meta = fs::metadata(&program).context(|| format!("cannot read {}", program.display()))?;
    Ok(Round {
        packages: cold.packages,
        cold: cold.seconds,
        warm: warm.seconds,
        bytes: meta.len(),
        start: start(&program)?,
        empty_start: start(&warm.program("empty")?)?,
    })
}

/// Writes a crate like a user's, with the checkout's versions of dependencies.
fn write_crate(dir: &Path, checkout: &Path) -> Result<()> {
    let library = checkout.join("fleetbox");
    let manifest = format!(
        "[package]\nname = \"user\"\nversion = \"0.1.0\"\nedition = \"2024\"\n\n\
         [dev-dependencies]\nfleetbox = {{ path = {library:?} }}\n\n[workspace]\n"
    );
    let lock = checkout.join("Cargo.lock");
    let lock = fs::read_to_string(&lock).context(|| format!("cannot read {}", lock.display()))?;
    for (name, text) in [
        ("Cargo.toml", manifest.as_str()),
        ("Cargo.lock", &lock),
        ("src/lib.rs", ""),
        ("tests/vm.rs", TEST),
        ("tests/empty.rs", EMPTY),
    ] {
        let path = dir.join(name);
        path.parent()
            .map_or(Ok(()), fs::create_dir_all)
            .and_then(|()| fs::write(&path, text))
            .context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

/// Cargo as a user runs it, without the settings in this run's environment that change the build.
fn cargo(dir: &Path) -> Cmd {
    let mut command = crate::cargo::cargo(&[])
        .dir(dir)
        .env("CARGO_TARGET_DIR", dir.join("target"));
    let ours = ["RUSTFLAGS", "CARGO_INCREMENTAL", "RUSTC_WORKSPACE_WRAPPER"];
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if ours.contains(&text.as_ref()) || text.starts_with("CARGO_PROFILE_") {
            command = command.env_remove(&name);
        }
    }
    command
}

struct Build {
    seconds: f64,
    /// The number of compiled packages.
    packages: usize,
    /// The test programs, by their targets.
    programs: Vec<(String, PathBuf)>,
}

impl Build {
    fn program(&self, target: &str) -> Result<PathBuf> {
        let found = self.programs.iter().find(|(name, _)| name == target);
        found
            .map(|(_, path)| path.clone())
            .ok_or_else(|| Error::new(format!("cargo built no test program `{target}`")))
    }
}

fn build(dir: &Path) -> Result<Build> {
    let begin = Instant::now();
    let messages = cargo(dir)
        .args(["build", "--tests", "--message-format=json"])
        .limit(1800)
        .output()?;
    read_messages(&messages, begin.elapsed())
}

fn read_messages(messages: &[u8], took: Duration) -> Result<Build> {
    let mut packages = BTreeSet::new();
    let mut programs = Vec::new();
    for line in messages.split(|b| *b == b'\n').filter(|l| !l.is_empty()) {
        let message: serde_json::Value =
            serde_json::from_slice(line).context(|| "cannot read the output of cargo")?;
        if message["reason"] != "compiler-artifact" {
            continue;
        }
        let (Some(package), Some(target)) = (
            message["package_id"].as_str(),
            message["target"]["name"].as_str(),
        ) else {
            bail!("cargo describes an artefact without package and target")
        };
        if message["fresh"] == false {
            packages.insert(package.to_owned());
        }
        if let Some(path) = message["executable"].as_str() {
            programs.push((target.to_owned(), PathBuf::from(path)));
        }
    }
    Ok(Build {
        seconds: took.as_secs_f64(),
        packages: packages.len(),
        programs,
    })
}

/// The median time in milliseconds from the start of a test program to the end of `--list`, which is the first thing in
/// `main`. It includes everything before `main`, and the harness.
fn start(program: &Path) -> Result<f64> {
    let mut times = Vec::new();
    for _ in 0..STARTS {
        let begin = Instant::now();
        let out = std::process::Command::new(program)
            .arg("--list")
            .output()
            .context(|| format!("cannot start {}", program.display()))?;
        times.push(begin.elapsed().as_secs_f64() * 1000.0);
        if !out.status.success() {
            bail!("`{} --list` failed", program.display());
        }
    }
    Ok(median(times))
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}

fn table(checkouts: &[(&str, PathBuf)], rounds: &[Vec<Round>]) -> String {
    let mut text = String::from("| |");
    for (name, _) in checkouts {
        text.push_str(&format!(" {name} |"));
    }
    text.push_str(&format!("\n|---|{}\n", "---|".repeat(checkouts.len())));
    type Field = (&'static str, fn(&Round) -> f64, usize);
    let fields: [Field; 6] = [
        ("packages compiled", |r| r.packages as f64, 0),
        ("cold `cargo build --tests`, s", |r| r.cold, 1),
        ("rebuild after a change in the test, s", |r| r.warm, 1),
        ("size of the test program, MB", |r| r.bytes as f64 / 1e6, 1),
        ("start to the end of `--list`, ms", |r| r.start, 2),
        ("the same without the library, ms", |r| r.empty_start, 2),
    ];
    for (name, field, digits) in fields {
        text.push_str(&format!("| {name} |"));
        for rounds in rounds {
            let value = median(rounds.iter().map(field).collect());
            text.push_str(&format!(" {value:.digits$} |"));
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_fresh_is_not_counted() {
        let messages = br#"{"reason":"compiler-artifact","package_id":"a","target":{"name":"a"},"fresh":false,"executable":null}
{"reason":"compiler-artifact","package_id":"a","target":{"name":"build-script-build"},"fresh":false,"executable":null}
{"reason":"compiler-artifact","package_id":"b","target":{"name":"b"},"fresh":true,"executable":null}
{"reason":"compiler-artifact","package_id":"c","target":{"name":"vm"},"fresh":false,"executable":"/t/vm"}
{"reason":"build-finished","success":true}
"#;
        let build = read_messages(messages, Duration::from_secs(2)).unwrap();
        assert_eq!(build.packages, 2);
        assert_eq!(build.program("vm").unwrap(), PathBuf::from("/t/vm"));
        assert!(build.program("other").is_err());
    }

    #[test]
    fn the_table_has_medians() {
        let round = |cold| Round {
            packages: 7,
            cold,
            warm: 1.0,
            bytes: 2_500_000,
            start: 3.0,
            empty_start: 1.0,
        };
        let table = table(
            &[("here", PathBuf::new())],
            &[vec![round(9.0), round(5.0), round(6.0)]],
        );
        assert!(
            table.contains("| cold `cargo build --tests`, s | 6.0 |"),
            "{table}"
        );
        assert!(table.contains("| packages compiled | 7 |"), "{table}");
        assert!(table.contains("MB | 2.5 |"), "{table}");
    }
}
