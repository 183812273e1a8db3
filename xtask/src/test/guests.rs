//! The step `guests`: runs bare-metal payloads on the best local KVM.

use std::fs;
use std::path::PathBuf;

use super::{BARE_METAL, GUESTS};
use crate::cargo::{cargo, executables};
use crate::deps::{self, Need};
use crate::emulate::{Emulation, GuestFile};
use crate::error::{Context, Result};
use crate::kvm::Kvm;
use crate::run::Cmd;
use crate::{bail, target_dir, workspace};

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

/// Runs the payloads with the tests of their crate. The tests find the payloads through `FLEETBOX_GUESTS`, and
/// `fleetbox-vmm` through `FLEETBOX_VMM`. Returns where they ran.
pub(super) fn run() -> Result<String> {
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
    eprintln!("  {kvm}; the payloads run in an emulated host");
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
        emulation.succeed()?;
    }
    Ok(format!("in an emulated host ({kvm})"))
}
