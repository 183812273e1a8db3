//! The step `e2e`: runs the end-to-end suite on a KVM that runs stock kernels. If this machine's cannot, an emulated
//! host is used.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::E2E;
use crate::cargo::executables;
use crate::deps::{self, Need};
use crate::emulate::{Emulation, GuestFile};
use crate::error::{Context, Result};
use crate::image::{Format, Image};
use crate::kvm::Kvm;
use crate::run::Cmd;
use crate::{bail, target_dir};

/// The test target of that crate whose tests its cases run, and the name of its executable for them.
const E2E_TESTS: (&str, &str) = ("attribute", "fleetbox-e2e-attribute");

/// Time limit of the end-to-end suite in seconds.
const E2E_LIMIT: u64 = 2700;

/// Memory in MiB of each emulated host of the end-to-end suite.
const E2E_MEMORY: u32 = 4096;

/// Runs the end-to-end suite, which is the binary `fleetbox-e2e`. With `--list` it prints its cases, one per line,
/// followed by what the case needs. It runs the cases that are given as arguments. It finds the images in the directory
/// `FLEETBOX_E2E_IMAGES` (as `tiny.raw`, `tiny.qcow2` and `debian-12.raw`), and the programs of this workspace in
/// `PATH`. If stock kernels need an emulated host, the cases without them run on this machine. Returns where it ran.
pub(super) fn run(wanted: &[String]) -> Result<String> {
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
            super::VMM_CLI,
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

/// Builds the tests that cases run, and returns their executable, which is linked in `bins` under a name without a
/// hash.
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

/// Runs cases in emulated hosts: those of Debian's image in parallel to the others.
///
/// These hosts have one CPU, because QEMU's emulation of AMD-V fails mostly when CPUs of the host interrupt each other,
/// which can also crash the host's kernel. Two hosts in parallel keep two cores as busy as one host with two CPUs.
/// Cases that need two CPUs run in a separate host afterwards.
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
        emulation.succeed()
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

/// A case of the end-to-end suite, from its list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct E2eCase<'a> {
    name: &'a str,
    /// True if it needs a KVM that runs stock kernels.
    stock_kernel: bool,
    /// True if it needs two CPUs.
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

/// A directory with links to the images, like `/images` in an emulated host.
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
}
