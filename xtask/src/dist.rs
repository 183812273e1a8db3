//! Builds the programs as they are handed out: optimised, stripped, and linked so that they start quickly.
//!
//! `fleetbox-vmm` is static and not position-independent: the dynamic loader's work is a third of what it takes to its
//! guest's first byte. `fleetbox` is not position-independent either, but dynamic, because it resolves names of hosts for
//! downloads: glibc's resolver loads modules of the host's own glibc (nsswitch.conf), which a static program does only on
//! a host with the same version.

use std::fs;
use std::path::{Path, PathBuf};

use crate::cargo::cargo;
use crate::error::{Context, Result};
use crate::{bail, target_dir};

/// Named explicitly, so that flags for static programs do not reach proc macros, which are libraries of the compiler.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// How a program is linked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Link {
    Static,
    Dynamic,
}

/// Builds the programs and returns their paths, in `target/dist`.
///
/// # Errors
/// They cannot be built, or are not linked as they should be.
pub fn run() -> Result<Vec<PathBuf>> {
    // The floor of `bench start` is linked as what it is compared with.
    let programs = [
        ("fleetbox-vmm", Some("cli"), "fleetbox-vmm", Link::Static),
        ("fleetbox-benches", None, "kvm-floor", Link::Static),
        ("fleetbox-cli", None, "fleetbox", Link::Dynamic),
    ];
    let directory = target_dir().join("dist");
    fs::create_dir_all(&directory).context(|| format!("cannot make {}", directory.display()))?;
    programs
        .iter()
        .map(|(package, features, name, link)| {
            build(package, *features, name, *link)?;
            let built = target_dir().join(TARGET).join("release").join(name);
            check(&built, *link)?;
            let path = directory.join(name);
            fs::copy(&built, &path)
                .context(|| format!("cannot copy {name} to {}", directory.display()))?;
            Ok(path)
        })
        .collect()
}

fn build(package: &str, features: Option<&str>, name: &str, link: Link) -> Result<()> {
    let mut flags = "-C relocation-model=static".to_owned();
    if link == Link::Static {
        flags.push_str(" -C target-feature=+crt-static");
    }
    let mut command = cargo(&[
        "build",
        "--release",
        "--locked",
        "--target",
        TARGET,
        "-p",
        package,
        "--bin",
        name,
    ])
    .env("RUSTFLAGS", flags)
    .env("CARGO_PROFILE_RELEASE_STRIP", "symbols");
    if let Some(features) = features {
        command = command.args(["--features", features]);
    }
    command.limit(2400).passthrough()
}

/// Checks how a program is linked.
fn check(program: &Path, want: Link) -> Result<()> {
    let image = fs::read(program).context(|| format!("cannot read {}", program.display()))?;
    match linked(&image) {
        Some((false, link)) if link == want => Ok(()),
        found => bail!(
            "{} should be {want:?} and not position-independent, and is {found:?}",
            program.display()
        ),
    }
}

/// Whether an ELF program is position-independent, and how it is linked.
fn linked(image: &[u8]) -> Option<(bool, Link)> {
    const INTERPRETER: u32 = 3;
    let u16_at = |at: usize| Some(u16::from_le_bytes(*image.get(at..)?.first_chunk()?));
    let u32_at = |at: usize| Some(u32::from_le_bytes(*image.get(at..)?.first_chunk()?));
    if !image.starts_with(b"\x7fELF\x02\x01") {
        return None;
    }
    let independent = match u16_at(16)? {
        2 => false,
        3 => true,
        _ => return None,
    };
    let headers = usize::try_from(u64::from_le_bytes(*image.get(32..)?.first_chunk()?)).ok()?;
    let (size, count) = (usize::from(u16_at(54)?), usize::from(u16_at(56)?));
    let mut link = Link::Static;
    for index in 0..count {
        if u32_at(headers.checked_add(index * size)?)? == INTERPRETER {
            link = Link::Dynamic;
        }
    }
    Some((independent, link))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An ELF program of this type with one program header of that.
    fn image(kind: u16, header: u32) -> Vec<u8> {
        let mut image = b"\x7fELF\x02\x01\x01".to_vec();
        image.resize(64, 0);
        image[16..18].copy_from_slice(&kind.to_le_bytes());
        image[32] = 64;
        image[54] = 56;
        image[56] = 1;
        image.extend(header.to_le_bytes());
        image
    }

    #[test]
    fn the_way_a_program_is_linked_is_recognised() {
        assert_eq!(linked(&image(2, 1)), Some((false, Link::Static)));
        assert_eq!(linked(&image(2, 3)), Some((false, Link::Dynamic)));
        assert_eq!(linked(&image(3, 3)), Some((true, Link::Dynamic)));
        assert_eq!(linked(&image(1, 1)), None);
        assert_eq!(linked(b"#!/bin/sh"), None);
        assert_eq!(linked(&image(2, 1)[..66]), None);
    }

    #[test]
    fn this_program_is_dynamic() {
        let image = fs::read("/proc/self/exe").unwrap();
        assert_eq!(linked(&image), Some((true, Link::Dynamic)));
    }
}
