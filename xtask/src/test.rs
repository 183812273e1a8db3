//! The whole test run, in steps: formatting, clippy, documentation, unit tests, bare-metal guests on the best local
//! KVM, and the end-to-end suite on a KVM that runs stock kernels, which is an emulated one where this machine's own
//! cannot.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::ValueEnum;

use crate::bail;
use crate::deps::{self, Need};
use crate::emulate::{Emulation, GuestFile};
use crate::error::{Context, Error, Result};
use crate::image::{Format, Image};
use crate::kvm::Kvm;
use crate::run::Cmd;
use crate::{target_dir, workspace};

/// A part of the test run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Step {
    /// `cargo fmt --check`.
    Fmt,
    /// clippy, warnings denied.
    Clippy,
    /// Documentation, warnings denied.
    Doc,
    /// Unit and integration tests that need no guest, and documentation's examples.
    Unit,
    /// Bare-metal payloads on a KVM.
    Guests,
    /// The end-to-end suite.
    E2e,
}

/// The crate of the bare-metal payloads. It is built for another target, and its tests need the payloads.
const GUESTS: &str = "fleetbox-guests";

/// The target of the payloads.
const BARE_METAL: &str = "x86_64-unknown-none";

/// The crate and binary of the end-to-end suite.
const E2E: &str = "fleetbox-e2e";

/// The feature that the program `fleetbox-vmm` is behind.
const VMM_CLI: &str = "fleetbox-vmm/cli";

/// The test target of that crate whose tests its cases run, and what they call its executable.
const E2E_TESTS: (&str, &str) = ("attribute", "fleetbox-e2e-attribute");

/// Seconds that the end-to-end suite may take.
const E2E_LIMIT: u64 = 2700;

/// Memory in MiB of each emulated host of the end-to-end suite.
const E2E_MEMORY: u32 = 4096;

/// Runs `steps`, or all when there are none; `cases` restricts the end-to-end suite to cases whose names contain one
/// of them. Prints what each step took and what ran where.
///
/// # Errors
/// Steps failed, or one could not be run. Later steps run all the same.
pub fn run(steps: &[Step], cases: &[String]) -> Result<()> {
    let all = Step::value_variants();
    let steps = if steps.is_empty() { all } else { steps };
    let mut report = Vec::new();
    let mut failed = Vec::new();
    for step in steps {
        let name = step
            .to_possible_value()
            .map(|v| v.get_name().to_owned())
            .unwrap_or_default();
        eprintln!("== {name}");
        let start = Instant::now();
        let result = match step {
            Step::Fmt => cargo(&["fmt", "--all", "--check"])
                .limit(120)
                .passthrough()
                .map(|()| None),
            Step::Clippy => clippy().map(|()| None),
            Step::Doc => doc().map(|()| None),
            Step::Unit => unit().map(|()| None),
            Step::Guests => guests().map(Some),
            Step::E2e => e2e(cases).map(Some),
        };
        let took = start.elapsed().as_secs_f64();
        match result {
            Ok(None) => report.push(format!("{name:8} ok      {took:7.1} s")),
            Ok(Some(place)) => report.push(format!("{name:8} ok      {took:7.1} s  {place}")),
            Err(error) => {
                eprintln!("error: {name}: {error}");
                report.push(format!("{name:8} FAILED  {took:7.1} s  {error}"));
                failed.push(name);
            }
        }
    }
    eprintln!("== summary\n{}", report.join("\n"));
    if failed.is_empty() {
        Ok(())
    } else {
        Err(Error::new(format!("failed: {}", failed.join(", "))))
    }
}

pub(crate) fn cargo(args: &[&str]) -> Cmd {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Cmd::new(cargo)
        .args(args)
        .dir(workspace())
        .env("CARGO_TERM_PROGRESS_WHEN", "never");
    // `cargo xtask` runs under cargo, whose variables for this crate are none of the other crates' business: build
    // scripts that look at theirs would run again, and so would all that depends on them, at each change between
    // `cargo xtask` and `cargo`.
    for (name, _) in std::env::vars_os() {
        let of_crate = ["CARGO_MANIFEST_", "CARGO_PKG_"];
        if of_crate
            .iter()
            .any(|prefix| name.to_string_lossy().starts_with(prefix))
        {
            command = command.env_remove(name);
        }
    }
    command
}

fn clippy() -> Result<()> {
    deps::ensure(&[Need::Guests])?;
    let denied = ["--", "-D", "warnings"];
    cargo(&["clippy", "--workspace", "--all-targets", "--locked"])
        .args(["--features", VMM_CLI])
        .args(denied)
        .limit(1800)
        .passthrough()?;
    // The payloads are empty on the host's target.
    cargo(&[
        "clippy", "-p", GUESTS, "--lib", "--bins", "--locked", "--target", BARE_METAL,
    ])
    .args(denied)
    .limit(600)
    .passthrough()
}

fn doc() -> Result<()> {
    cargo(&[
        "doc",
        "--workspace",
        "--no-deps",
        "--locked",
        "--document-private-items",
        "--features",
        VMM_CLI,
        "--exclude",
        GUESTS,
    ])
    .env(
        "RUSTDOCFLAGS",
        "-D warnings -A rustdoc::private_intra_doc_links",
    )
    .limit(1200)
    .passthrough()
}

fn unit() -> Result<()> {
    let chosen = [
        "--workspace",
        "--features",
        VMM_CLI,
        "--exclude",
        GUESTS,
        "--exclude",
        E2E,
        "--locked",
    ];
    let tests = if deps::find("cargo-nextest").is_some() {
        cargo(&["nextest", "run", "--no-fail-fast"])
            .args(["--status-level", "slow", "--failure-output", "final"])
            .args(chosen)
    } else {
        cargo(&["test", "--no-fail-fast", "--lib", "--bins", "--tests"]).args(chosen)
    };
    // Built once more with the fake machine, which no other program should have in it. A target directory of its own
    // keeps the flag from building everything else again.
    let flags = std::env::var("RUSTFLAGS").unwrap_or_default() + " --cfg fleetbox_fake";
    let coordination = cargo(&["test", "-p", "fleetbox-cli", "--locked"])
        .args(["--test", "coordination"])
        .env("RUSTFLAGS", flags)
        .env("CARGO_TARGET_DIR", target_dir().join("fake"));
    // None of the above runs the examples of the documentation.
    let examples = cargo(&["test", "--doc"]).args(chosen);
    // Each runs whatever became of the others.
    let results = [tests, coordination, examples].map(|part| part.limit(2400).echoed());
    let failed: Vec<_> = results.into_iter().filter_map(Result::err).collect();
    if failed.is_empty() {
        return Ok(());
    }
    let failed: Vec<_> = failed.iter().map(Error::to_string).collect();
    bail!("{}", failed.join("\n"))
}

/// Builds the payloads and returns the directory they are in.
///
/// # Errors
/// The target is missing or they do not compile.
pub fn payloads() -> Result<PathBuf> {
    deps::ensure(&[Need::Guests])?;
    cargo(&[
        "build",
        "-p",
        GUESTS,
        "--bins",
        "--release",
        "--locked",
        "--target",
        BARE_METAL,
    ])
    .limit(600)
    .passthrough()?;
    Ok(target_dir().join(BARE_METAL).join("release"))
}

/// Runs the payloads by the tests of their crate, which find them through `FLEETBOX_GUESTS` and `fleetbox-vmm`
/// through `FLEETBOX_VMM`. Returns where they ran.
fn guests() -> Result<String> {
    let directory = payloads()?;
    let program = executables(
        &["build", "-p", "fleetbox-vmm", "--features", "cli", "--bins"],
        "bin",
    )?;
    let Some((_, program)) = program.first() else {
        bail!("fleetbox-vmm has no program");
    };
    let kvm = Kvm::here();
    let tests = executables(&["test", "--no-run", "-p", GUESTS, "--tests"], "test")?;
    if tests.is_empty() {
        bail!("the crate {GUESTS} has no tests");
    }
    if kvm.runs_payloads() {
        for (_, test) in &tests {
            Cmd::new(test)
                .dir(workspace().join("tests/guests"))
                .env("FLEETBOX_GUESTS", &directory)
                .env("FLEETBOX_VMM", program)
                .limit(900)
                .passthrough()?;
        }
        return Ok(format!("on {kvm}"));
    }
    eprintln!("  {kvm}: the payloads run in an emulated host");
    for (_, test) in &tests {
        let mut emulation = Emulation::new(&[test.clone().into()])?;
        for entry in fs::read_dir(&directory)
            .context(|| "cannot list the payloads")?
            .flatten()
        {
            if entry.path().is_file() {
                emulation.files.push(GuestFile::same(&entry.path())?);
            }
        }
        emulation
            .env
            .push(("FLEETBOX_GUESTS".into(), directory.display().to_string()));
        emulation.files.push(GuestFile::same(program)?);
        emulation
            .env
            .push(("FLEETBOX_VMM".into(), program.display().to_string()));
        finish(&emulation)?;
    }
    Ok(format!("in an emulated host ({kvm})"))
}

pub(crate) fn finish(emulation: &Emulation) -> Result<()> {
    match emulation.run()?.status {
        0 => Ok(()),
        status => bail!("ended with status {status} in the emulated host"),
    }
}

/// Builds and returns the executables of targets of one kind, with the targets' names.
pub(crate) fn executables(build: &[&str], kind: &str) -> Result<Vec<(String, PathBuf)>> {
    let out = cargo(build)
        .args(["--locked", "--message-format=json-render-diagnostics"])
        .limit(1800)
        .output()?;
    parse_executables(&out, kind)
}

fn parse_executables(messages: &[u8], kind: &str) -> Result<Vec<(String, PathBuf)>> {
    let mut found = Vec::new();
    for line in messages
        .split(|b| *b == b'\n')
        .filter(|l| l.starts_with(b"{"))
    {
        let message: serde_json::Value =
            serde_json::from_slice(line).context(|| "cannot read what cargo says")?;
        let target = &message["target"];
        let is_kind = target["kind"]
            .as_array()
            .is_some_and(|k| k.iter().any(|k| k == kind));
        if let (true, Some(name), Some(path)) = (
            is_kind,
            target["name"].as_str(),
            message["executable"].as_str(),
        ) {
            found.push((name.to_owned(), PathBuf::from(path)));
        }
    }
    Ok(found)
}

/// Runs the end-to-end suite: the binary `fleetbox-e2e`, which lists its cases with `--list`, one first in each
/// line with what it needs after it, and runs those it is given. It finds the images in the directory
/// `FLEETBOX_E2E_IMAGES` (as `tiny.raw`, `tiny.qcow2` and `debian-12.raw`) and the programs of this workspace in
/// `PATH`. Where stock kernels need an emulated host, the cases that need none run here. Returns where it ran.
fn e2e(wanted: &[String]) -> Result<String> {
    deps::ensure(&[Need::Images])?;
    let binaries = executables(
        &[
            "build",
            "--bins",
            "-p",
            E2E,
            "-p",
            "fleetbox-cli",
            "-p",
            "fleetbox-vmm",
            "--features",
            VMM_CLI,
        ],
        "bin",
    )?;
    let suite = binaries.iter().find(|(name, _)| name == E2E);
    let Some((_, suite)) = suite else {
        bail!("the crate {E2E} has no binary {E2E}")
    };
    let attribute = e2e_tests(suite.parent().unwrap_or(Path::new(".")))?;
    let list = Cmd::new(suite).arg("--list").text()?;
    let cases: Vec<E2eCase<'_>> = list
        .lines()
        .filter_map(E2eCase::parse)
        .filter(|case| wanted.is_empty() || wanted.iter().any(|w| case.name.contains(w.as_str())))
        .collect();
    if cases.is_empty() {
        bail!(
            "the list of end-to-end cases is empty{}",
            if wanted.is_empty() {
                ""
            } else {
                " after the filter"
            }
        );
    }
    for (image, format) in [
        (Image::Tiny, Format::Raw),
        (Image::Tiny, Format::Qcow2),
        (Image::Debian12, Format::Raw),
    ] {
        image.build(format)?;
    }
    let kvm = Kvm::here();
    let emulated = !kvm.runs_stock_kernels();
    let place = if emulated {
        format!("an emulated KVM host, as this machine has {kvm}")
    } else {
        kvm.to_string()
    };
    eprintln!("  {} end-to-end cases on {place}:", cases.len());
    for case in &cases {
        eprintln!("    {}", case.name);
    }
    let place = format!("{} cases on {place}", cases.len());
    let (there, here): (Vec<E2eCase<'_>>, Vec<_>) = cases
        .into_iter()
        .partition(|case| emulated && case.stock_kernel);
    emulated_lanes(suite, &attribute, &there)?;
    if !here.is_empty() {
        let images = image_directory()?;
        let bins = suite.parent().unwrap_or(Path::new("."));
        let path = std::env::join_paths(std::iter::once(bins.to_owned()).chain(
            std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()),
        ))
        .context(|| "cannot extend PATH")?;
        Cmd::new(suite)
            .args(here.iter().map(|case| case.name))
            .env("PATH", path)
            .env("FLEETBOX_E2E_IMAGES", &images)
            .limit(E2E_LIMIT)
            .passthrough()?;
    }
    Ok(place)
}

/// Builds the tests that cases run, and returns their executable, which is in `bins` by a name without a sum.
fn e2e_tests(bins: &Path) -> Result<PathBuf> {
    let (target, name) = E2E_TESTS;
    let built = executables(&["test", "--no-run", "-p", E2E, "--test", target], "test")?;
    let Some((_, built)) = built.into_iter().next() else {
        bail!("the crate {E2E} has no tests {target}")
    };
    let link = bins.join(name);
    let _ = fs::remove_file(&link);
    symlink(&built, &link).context(|| format!("cannot link {}", link.display()))?;
    Ok(built)
}

/// Runs cases in emulated hosts, those of Debian's image beside the others.
///
/// These hosts have one CPU: QEMU's emulation of AMD-V loses its way, host kernel included, mostly when CPUs of the host
/// interrupt each other. Two hosts side by side keep two cores as busy as one host with two CPUs would. Cases that need
/// two CPUs have a host of their own afterwards.
fn emulated_lanes(suite: &Path, attribute: &Path, cases: &[E2eCase<'_>]) -> Result<()> {
    let (two_cpus, cases): (Vec<E2eCase<'_>>, Vec<_>) =
        cases.iter().partition(|case| case.two_cpus);
    let (debian, others): (Vec<E2eCase<'_>>, Vec<_>) = cases
        .iter()
        .partition(|case| case.name.starts_with("debian_"));
    let lane = |cases: &[E2eCase<'_>], cpus: u8| -> Result<()> {
        if cases.is_empty() {
            return Ok(());
        }
        let command: Vec<OsString> = std::iter::once(suite.into())
            .chain(cases.iter().map(|case| case.name.into()))
            .collect();
        let mut emulation = Emulation::new(&command)?;
        emulation.cpus = cpus;
        emulation.memory = E2E_MEMORY;
        emulation.files.push(GuestFile {
            host: attribute.to_owned(),
            guest: Path::new("/usr/local/bin").join(E2E_TESTS.1),
        });
        emulation.timeout = Duration::from_secs(E2E_LIMIT);
        emulation
            .env
            .push(("FLEETBOX_E2E_IMAGES".into(), "/images".into()));
        finish(&emulation)
    };
    std::thread::scope(|scope| {
        let beside = scope.spawn(|| lane(&debian, 1));
        let ours = lane(&others, 1);
        let theirs = beside
            .join()
            .unwrap_or_else(|_| bail!("the thread that ran Debian's cases panicked"));
        match (ours, theirs) {
            (Err(ours), Err(theirs)) => bail!("{ours}; Debian's cases: {theirs}"),
            (ours, theirs) => ours.and(theirs),
        }
    })
    .and_then(|()| lane(&two_cpus, 2))
}

/// A case of the end-to-end suite, as its list has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct E2eCase<'a> {
    name: &'a str,
    /// It needs a KVM that runs stock kernels.
    stock_kernel: bool,
    /// It needs two CPUs.
    two_cpus: bool,
}

impl<'a> E2eCase<'a> {
    /// Reads a line such as `tiny_cli (hardware KVM)`.
    fn parse(line: &'a str) -> Option<Self> {
        let name = line.split_whitespace().next()?;
        Some(Self {
            name,
            stock_kernel: line.contains("(hardware KVM"),
            two_cpus: line.contains("two CPUs)"),
        })
    }
}

/// A directory with links to the images, as an emulated host has them in `/images`.
fn image_directory() -> Result<PathBuf> {
    let directory = target_dir().join("images");
    let _ = fs::remove_dir_all(&directory);
    fs::create_dir_all(&directory).context(|| format!("cannot create {}", directory.display()))?;
    for (name, path) in crate::image::built()? {
        symlink(&path, directory.join(&name)).context(|| format!("cannot link {name}"))?;
    }
    Ok(directory)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cases_are_read_with_what_they_need() {
        let case = |name, stock_kernel, two_cpus| {
            Some(E2eCase {
                name,
                stock_kernel,
                two_cpus,
            })
        };
        assert_eq!(
            E2eCase::parse("tiny_cli (hardware KVM)"),
            case("tiny_cli", true, false)
        );
        assert_eq!(
            E2eCase::parse("tiny_smp (hardware KVM, two CPUs)"),
            case("tiny_smp", true, true)
        );
        assert_eq!(
            E2eCase::parse("refusal (software KVM)"),
            case("refusal", false, false)
        );
        assert_eq!(
            E2eCase::parse("download (no KVM)"),
            case("download", false, false)
        );
        assert_eq!(E2eCase::parse(""), None);
    }

    #[test]
    fn executables_are_told_by_their_kind() {
        let messages = br#"{"reason":"compiler-artifact","target":{"kind":["bin"],"name":"a"},"executable":"/t/a"}
{"reason":"compiler-artifact","target":{"kind":["lib"],"name":"b"},"executable":null}
{"reason":"compiler-artifact","target":{"kind":["test"],"name":"c"},"executable":"/t/c"}
{"reason":"build-finished","success":true}
"#;
        assert_eq!(
            parse_executables(messages, "bin").unwrap(),
            [("a".to_owned(), PathBuf::from("/t/a"))]
        );
        assert_eq!(parse_executables(messages, "test").unwrap()[0].0, "c");
        assert!(parse_executables(b"{broken", "bin").is_err());
    }
}
