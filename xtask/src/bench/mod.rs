//! The benches, each on a KVM that can run it.

pub mod user;

use std::ffi::OsString;
use std::path::Path;
use std::time::Duration;

use crate::cargo::{cargo, executables};
use crate::deps::{self, Need};
use crate::emulate::{Emulation, GuestFile};
use crate::error::Result;
use crate::image::{Format, Image};
use crate::kvm::Kvm;
use crate::{bail, target_dir};

const BENCHES: &str = "fleetbox-benches";

/// Runs the bench `name`.
///
/// # Errors
/// It cannot be built or run.
pub fn run(name: &str) -> Result<()> {
    match name {
        "start" => {
            deps::ensure(&[Need::Guests])?;
            cargo(&["bench", "-p", BENCHES, "--bench", "start", "--locked"])
                .limit(2400)
                .passthrough()
        }
        "stock" => stock(),
        "net" => net(),
        _ => bail!("unknown bench {name}; use `start`, `stock` or `net`"),
    }
}

/// The crates that do the work are optimised in every profile, so this uses the build of the tests.
fn net() -> Result<()> {
    let image = Image::Tiny.build(Format::Raw)?;
    let benches = executables(
        &[
            "bench",
            "--no-run",
            "--profile",
            "dev",
            "-p",
            BENCHES,
            "--bench",
            "net",
        ],
        "bench",
    )?;
    let Some((_, bench)) = benches.into_iter().next() else {
        bail!("the crate {BENCHES} has no bench `net`")
    };
    let env = [("FLEETBOX_BENCH_IMAGE", image.display().to_string())];
    on_stock_kvm(&bench, &env, &[&image])
}

fn stock() -> Result<()> {
    let image = Image::Debian12.build(Format::Raw)?;
    cargo(&[
        "build",
        "--release",
        "-p",
        "fleetbox-vmm",
        "--features",
        "cli",
        "--bin",
        "fleetbox-vmm",
        "--locked",
    ])
    .limit(2400)
    .passthrough()?;
    let vmm = target_dir().join("release/fleetbox-vmm");
    let benches = executables(
        &["bench", "--no-run", "-p", BENCHES, "--bench", "stock"],
        "bench",
    )?;
    let Some((_, bench)) = benches.into_iter().next() else {
        bail!("the crate {BENCHES} has no bench `stock`")
    };
    let env = [
        ("FLEETBOX_BENCH_IMAGE", image.display().to_string()),
        ("FLEETBOX_BENCH_VMM", vmm.display().to_string()),
    ];
    on_stock_kvm(&bench, &env, &[&image, &vmm])
}

/// Runs a bench on this machine, or in an emulated host if this machine's KVM cannot run stock kernels.
fn on_stock_kvm(bench: &Path, env: &[(&str, String)], files: &[&Path]) -> Result<()> {
    let kvm = Kvm::here();
    if kvm.runs_stock_kernels() {
        eprintln!("  on {kvm}");
        let mut command = crate::run::Cmd::new(bench).arg("--bench");
        for (name, value) in env {
            command = command.env(*name, value.clone());
        }
        return command.limit(1800).passthrough();
    }
    eprintln!("  in an emulated host, as this machine has {kvm}");
    let command: [OsString; 2] = [bench.into(), "--bench".into()];
    let mut emulation = Emulation::new(&command)?;
    for file in files {
        emulation.files.push(GuestFile::same(file)?);
    }
    let env = env.iter().cloned();
    emulation
        .env
        .extend(env.map(|(name, value)| (name.to_owned(), value)));
    emulation.timeout = Duration::from_secs(1800);
    emulation.succeed()
}
