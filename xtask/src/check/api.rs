//! Compares the public API of the published libraries with the listings in docs/api.
//!
//! rustdoc describes a crate as JSON in an unstable format, which changes every few releases. So the listing is made
//! with one toolchain, whose format the crate `public-api` reads. A script in place of rustdoc allows unstable options
//! for rustdoc only, so that nothing is built twice.

use std::fs;
use std::path::{Path, PathBuf};

use crate::cargo::{Package, cargo, packages};
use crate::error::{Context, Error, Result};
use crate::run::{Cmd, shell_quote};
use crate::test::unit::write_script;
use crate::{bail, deps, target_dir, workspace};

/// The toolchain whose rustdoc writes the format that `public-api` reads. Change both together.
const TOOLCHAIN: &str = "1.95.0";

const DIR: &str = "docs/api";

/// Compares the listings with the code, or writes them.
///
/// # Errors
/// They differ, which is printed, or they cannot be made.
pub fn run(write: bool) -> Result<String> {
    if !is_current()?
        && let Err(reason) = deps::ensure_toolchain(TOOLCHAIN)
    {
        if deps::find("rustup").is_some() {
            return Err(reason);
        }
        return Ok(format!("skipped: no Rust {TOOLCHAIN}: {reason}"));
    }
    let dir = workspace().join(DIR);
    fs::create_dir_all(&dir).context(|| format!("cannot create {DIR}"))?;
    let packages: Vec<_> = packages()?
        .into_iter()
        .filter(|package| package.is_published() && package.is_library())
        .collect();
    let mut complaints = stale(&dir, &packages, write)?;
    let mut items = 0;
    for package in &packages {
        let listing = list(package)?;
        items += listing.lines().count();
        let name = format!("{DIR}/{}.txt", package.name);
        let path = workspace().join(&name);
        if write {
            fs::write(&path, &listing).context(|| format!("cannot write {name}"))?;
            continue;
        }
        let held = fs::read_to_string(&path).unwrap_or_default();
        let difference = difference(&held, &listing);
        if !difference.is_empty() {
            eprintln!("  {name}:\n{}", difference.join("\n"));
            complaints.push(format!(
                "the public API of {} differs from {name}; run `cargo xtask api` to update it",
                package.name
            ));
        }
    }
    super::report(&complaints)?;
    Ok(format!("{items} items of {} packages", packages.len()))
}

/// Listings of packages that no longer exist. They are removed when listings are written.
fn stale(dir: &Path, packages: &[Package], write: bool) -> Result<Vec<String>> {
    let mut complaints = Vec::new();
    let entries = fs::read_dir(dir).context(|| format!("cannot list {DIR}"))?;
    for path in entries.flatten().map(|entry| entry.path()) {
        let name = path.file_stem().unwrap_or_default().to_string_lossy();
        if packages.iter().any(|package| package.name == name) {
            continue;
        }
        if write {
            fs::remove_file(&path).context(|| format!("cannot remove {}", path.display()))?;
        } else {
            complaints.push(format!(
                "{DIR}/{name}.txt belongs to no published package; run `cargo xtask api` to remove it"
            ));
        }
    }
    Ok(complaints)
}

/// True if the current toolchain is the one that is needed.
fn is_current() -> Result<bool> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let version = Cmd::new(rustc).arg("--version").text()?;
    Ok(version.split(' ').nth(1) == Some(TOOLCHAIN))
}

/// The public items of a package's library with all its features, sorted by path.
fn list(package: &Package) -> Result<String> {
    let script = target_dir().join("xtask/rustdoc-json");
    let args = ["rustdoc", "-p", &package.name, "--lib", "--all-features"];
    let mut command = cargo(&args).arg("--locked");
    let (rustdoc, target) = if is_current()? {
        let rustdoc = std::env::var("RUSTDOC").unwrap_or_else(|_| "rustdoc".to_owned());
        (shell_quote(&rustdoc), target_dir())
    } else {
        command = Cmd::new("rustup")
            .args(["run", TOOLCHAIN, "cargo"])
            .args(args)
            .arg("--locked")
            .dir(workspace())
            .env_remove("CARGO")
            .env_remove("RUSTUP_TOOLCHAIN");
        ("rustdoc".to_owned(), target_dir().join("api"))
    };
    let text = format!("#!/bin/sh\nRUSTC_BOOTSTRAP=1 exec {rustdoc} \"$@\"\n");
    write_script(&script, &text).context(|| format!("cannot write {}", script.display()))?;
    command
        .args(["--", "-Z", "unstable-options", "--output-format", "json"])
        .args(["--cap-lints", "allow"])
        .env("RUSTDOC", &script)
        .env("CARGO_TARGET_DIR", &target)
        .limit(900)
        .run()?;
    let json = format!("doc/{}.json", package.name.replace('-', "_"));
    read(&target.join(json))
}

fn read(json: &PathBuf) -> Result<String> {
    let api = public_api::Builder::from_rustdoc_json(json)
        .omit_blanket_impls(true)
        .omit_auto_trait_impls(true)
        .omit_auto_derived_impls(true)
        .build()
        .map_err(|error| Error::new(format!("cannot read {}: {error}", json.display())))?;
    let lines: Vec<_> = api.items().map(|item| format!("{item}\n")).collect();
    if lines.is_empty() {
        bail!("{} has no public item", json.display());
    }
    Ok(lines.concat())
}

/// The lines that are in only one listing, with `-` before removed and `+` before new ones.
fn difference(old: &str, new: &str) -> Vec<String> {
    let (old, new): (Vec<_>, Vec<_>) = (old.lines().collect(), new.lines().collect());
    let gone = old.iter().filter(|line| !new.contains(line));
    let added = new.iter().filter(|line| !old.contains(line));
    let mut lines: Vec<_> = gone.map(|line| format!("    - {line}")).collect();
    lines.extend(added.map(|line| format!("    + {line}")));
    if lines.is_empty() && old != new {
        lines.push("    the same items in another order".to_owned());
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_names_what_is_gone_and_what_is_new() {
        assert_eq!(difference("a\nb\n", "a\nb\n"), Vec::<String>::new());
        assert_eq!(difference("a\nb\n", "a\nc\n"), ["    - b", "    + c"]);
        assert_eq!(difference("a\nb\n", "b\na\n").len(), 1);
    }

    #[test]
    fn listings_of_packages_that_are_gone_are_named_and_removed() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("gone.txt"), "").unwrap();
        let found = stale(dir.path(), &[], false).unwrap();
        assert!(found[0].contains("gone.txt"), "{found:?}");
        assert!(stale(dir.path(), &[], true).unwrap().is_empty());
        assert!(!dir.path().join("gone.txt").exists());
    }
}
