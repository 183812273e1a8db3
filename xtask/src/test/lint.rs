//! The steps that check the code without running it: `fmt`, `clippy`, `features`, `doc`.

use super::{BARE_METAL, GUESTS, VMM_CLI};
use crate::cargo::{cargo, packages};
use crate::deps::{self, Need};
use crate::error::Result;

/// `cargo fmt --check`.
pub(super) fn fmt() -> Result<()> {
    deps::ensure_components()?;
    cargo(&["fmt", "--all", "--check"]).limit(120).passthrough()
}

pub(super) fn clippy() -> Result<()> {
    deps::ensure(&[Need::Guests])?;
    deps::ensure_components()?;
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

pub(super) fn doc() -> Result<()> {
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

/// The feature sets of a package that no other step builds: without features, and with each alone. The step `clippy`
/// checks the default features.
pub(crate) fn feature_sets(package: &str) -> Result<Vec<Option<String>>> {
    let packages = packages()?;
    let package = packages.iter().find(|p| p.name == package);
    let names = package.into_iter().flat_map(|p| p.feature_names());
    Ok(std::iter::once(None)
        .chain(names.map(|name| Some(name.to_owned())))
        .collect())
}

/// The arguments of cargo that choose a feature set.
pub(crate) fn feature_args(set: Option<&str>) -> Vec<&str> {
    let mut args = vec!["--no-default-features"];
    args.extend(set.into_iter().flat_map(|name| ["--features", name]));
    args
}

/// Checks packages that have features without any, and with each alone. Warnings are errors.
pub(super) fn features() -> Result<String> {
    let mut checked = Vec::new();
    for package in packages()?.iter().filter(|p| p.is_published()) {
        if package.feature_names().next().is_none() {
            continue;
        }
        for set in feature_sets(&package.name)? {
            let name = set.as_deref().unwrap_or("no features");
            eprintln!("  {} with {name}", package.name);
            // Warnings are denied by clippy's own arguments: RUSTFLAGS would have every dependency built again.
            cargo(&[
                "clippy",
                "-p",
                &package.name,
                "--lib",
                "--bins",
                "--tests",
                "--locked",
            ])
            .args(feature_args(set.as_deref()))
            .args(["--", "-D", "warnings"])
            .limit(600)
            .passthrough()?;
            checked.push(format!("{} {name}", package.name));
        }
    }
    Ok(checked.join(", "))
}
