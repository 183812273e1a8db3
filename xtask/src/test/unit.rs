//! The step `unit`: runs unit and integration tests that need no guest, and the examples of the documentation.

use std::ffi::OsString;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::{fs, io};

use super::{E2E, GUESTS, VMM_CLI};
use crate::cargo::cargo;
use crate::deps::Need;
use crate::error::{Context, Error, Result};
use crate::kvm::Kvm;
use crate::run::Cmd;
use crate::{bail, debian, deps, target_dir};

/// Time limit of each part in seconds.
const LIMIT: u64 = 2400;

/// Where the unit tests find the real cloud-init, which they compare the seed with.
const CLOUD_INIT: &str = "FLEETBOX_CLOUD_INIT";

/// The test target in which a script takes the VMM's place.
const COORDINATION: &str = "coordination";

/// The packages whose tests run. The coordination test is built together with the same packages, so that cargo chooses
/// the same features of dependencies and does not build them again.
const CHOSEN: [&str; 8] = [
    "--workspace",
    "--features",
    VMM_CLI,
    "--exclude",
    GUESTS,
    "--exclude",
    E2E,
    "--locked",
];

pub(super) fn run() -> Result<()> {
    let tests = if deps::find("cargo-nextest").is_some() {
        cargo(&["nextest", "run", "--no-fail-fast"])
            .args(["--status-level", "slow", "--failure-output", "final"])
            .args(CHOSEN)
    } else {
        cargo(&["test", "--no-fail-fast", "--lib", "--bins", "--tests"]).args(CHOSEN)
    };
    // None of the above runs the examples of the documentation.
    let examples = cargo(&["test", "--doc"]).args(CHOSEN);
    let required = nothing_may_be_skipped()?;
    let cloud_init = cloud_init(required)?;
    // Each runs even if another has failed.
    let results = [tests, coordination()?, examples].map(|part| {
        let part = if required {
            part.env("FLEETBOX_REQUIRE", "1")
        } else {
            part
        };
        let part = match &cloud_init {
            Some(path) => part.env(CLOUD_INIT, path),
            None => part,
        };
        part.limit(LIMIT).echoed()
    });
    let failed: Vec<_> = results.into_iter().filter_map(Result::err).collect();
    if failed.is_empty() {
        return Ok(());
    }
    let failed: Vec<_> = failed.iter().map(Error::to_string).collect();
    bail!("{}", failed.join("\n"))
}

/// The directories of the real cloud-init, as `PYTHONPATH` has them. Without it, the tests that ask it are skipped.
fn cloud_init(required: bool) -> Result<Option<OsString>> {
    match debian::cloud_init() {
        Ok(dirs) => {
            let path = std::env::join_paths(dirs).context(|| "cannot use the cache's path")?;
            Ok(Some(path))
        }
        Err(error) if required => Err(error),
        Err(error) => {
            eprintln!("  no comparison with the real cloud-init: {error}");
            Ok(None)
        }
    }
}

/// True if this machine can run every test, so that a skipped one must fail. Some tests need root, some need a KVM, and
/// some compare with other programs, which are installed here.
fn nothing_may_be_skipped() -> Result<bool> {
    let possible = nix::unistd::geteuid().is_root() && Kvm::here().runs_payloads();
    if possible {
        deps::ensure(&[Need::Unit])?;
    }
    Ok(possible)
}

/// The coordination test, built with `--cfg fleetbox_fake`, which the other tests do not have.
///
/// A wrapper of the compiler passes the flag for this workspace's packages only. RUSTFLAGS would build every dependency
/// a second time.
pub(super) fn coordination() -> Result<Cmd> {
    Ok(cargo(&["test", "--test", COORDINATION])
        .args(CHOSEN)
        .env("RUSTC_WORKSPACE_WRAPPER", fake_compiler()?))
}

/// Writes a script that runs the given compiler with the flag.
fn fake_compiler() -> Result<PathBuf> {
    let path = target_dir().join("xtask/rustc-fleetbox-fake");
    write_script(&path, "#!/bin/sh\nexec \"$@\" --cfg fleetbox_fake\n")
        .context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}

/// Writes an executable script, unless it already exists, because cargo rebuilds everything when its time changes.
pub(crate) fn write_script(path: &std::path::Path, text: &str) -> io::Result<()> {
    if fs::read(path).is_ok_and(|there| there == text.as_bytes()) {
        return Ok(());
    }
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir)?;
    }
    fs::write(path, text)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))
}
