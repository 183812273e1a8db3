//! Finds or installs the programs that this repository's tasks need.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::bail;
use crate::debian;
use crate::error::{Context, Result};
use crate::run::{Cmd, step};

/// What a task is about to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// Build disk images and file systems.
    Images,
    /// Run an emulated host.
    Emulator,
    /// Build payloads for `x86_64-unknown-none`.
    Guests,
    /// Run unit tests that compare with other programs, and are skipped without them.
    Unit,
}

/// Programs and the Debian packages that have them.
const IMAGES: &[(&str, &str)] = &[
    ("mmdebstrap", "mmdebstrap"),
    ("sfdisk", "fdisk"),
    ("mkfs.vfat", "dosfstools"),
    ("mcopy", "mtools"),
    ("mke2fs", "e2fsprogs"),
    ("dpkg-deb", "dpkg"),
    ("qemu-img", "qemu-utils"),
    ("busybox", "busybox-static"),
    ("depmod", "kmod"),
    ("xz", "xz-utils"),
    ("zstd", "zstd"),
];

const EMULATOR: &[(&str, &str)] = &[
    ("mmdebstrap", "mmdebstrap"),
    ("mke2fs", "e2fsprogs"),
    ("dpkg-deb", "dpkg"),
    ("busybox", "busybox-static"),
    ("depmod", "kmod"),
];

const UNIT: &[(&str, &str)] = &[
    ("qemu-img", "qemu-utils"),
    ("sfdisk", "fdisk"),
    ("mkfs.vfat", "dosfstools"),
    ("mcopy", "mtools"),
    ("e2fsck", "e2fsprogs"),
    ("debugfs", "e2fsprogs"),
    ("ssh", "openssh-client"),
    ("ssh-keygen", "openssh-client"),
    ("git", "git"),
    ("python3", "python3"),
];

/// The target of the bare-metal payloads.
const BARE_METAL: &str = "x86_64-unknown-none";

/// Finds a program in `PATH`, or in the directories of administration programs, which a user's `PATH` may lack.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|dir| dir.join(program))
        .find(|p| fs::metadata(p).is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0))
}

/// Checks for the programs of `needs` and, as root on Debian, installs missing ones.
///
/// # Errors
/// Something is missing and cannot be installed automatically. The error has the command that installs it.
pub fn ensure(needs: &[Need]) -> Result<()> {
    let mut missing: Vec<&str> = Vec::new();
    for (need, programs) in [
        (Need::Images, IMAGES),
        (Need::Emulator, EMULATOR),
        (Need::Unit, UNIT),
    ] {
        if needs.contains(&need) {
            let absent = programs
                .iter()
                .filter(|(program, _)| find(program).is_none());
            missing.extend(absent.map(|(_, package)| package));
        }
    }
    missing.sort_unstable();
    missing.dedup();
    if !missing.is_empty() {
        install(&missing)?;
    }
    if needs.contains(&Need::Guests) {
        ensure_target()?;
    }
    Ok(())
}

fn install(packages: &[&str]) -> Result<()> {
    let command = format!(
        "apt-get install --no-install-recommends {}",
        packages.join(" ")
    );
    if debian::codename().is_err() || find("apt-get").is_none() {
        bail!(
            "missing: {} (names of Debian packages). Only on Debian are they installed for you: install what your \
             system calls them, and run this again",
            packages.join(" ")
        );
    }
    if !nix::unistd::geteuid().is_root() {
        bail!(
            "missing: {}. Install them with\n  sudo {command}\nand run this again",
            packages.join(" ")
        );
    }
    step(&format!("installing {}", packages.join(" ")), || {
        Cmd::new("apt-get")
            .args(["update", "-q"])
            .limit(180)
            .run()?;
        // A qemu-system-x86 from backports may be installed, with which the release's own qemu-utils conflicts.
        if needs_backports(packages)? {
            return from_backports(packages);
        }
        apt_install(&[], packages)
    })
}

fn from_backports(packages: &[&str]) -> Result<()> {
    add_backports()?;
    let suite = format!("{}-backports", debian::codename()?);
    apt_install(&["-t", &suite], packages)
}

fn apt_install(options: &[&str], packages: &[&str]) -> Result<()> {
    Cmd::new("apt-get")
        .args([
            "install",
            "-y",
            "-q",
            "--no-install-recommends",
            "--no-remove",
        ])
        .args(options)
        .args(packages)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .limit(900)
        .run()
}

/// True if the release's own packages conflict with those already installed.
fn needs_backports(packages: &[&str]) -> Result<bool> {
    let simulation = Cmd::new("apt-get")
        .args(["install", "-s", "--no-install-recommends"])
        .args(packages);
    let (status, out, err) = simulation.env("LC_ALL", "C").capture()?;
    let said = String::from_utf8_lossy(&[out, err].concat()).into_owned();
    Ok(!status.success() || conflicts(&said))
}

/// True if a simulated installation reports a conflict. apt resolves some of them by removing installed packages.
fn conflicts(simulation: &str) -> bool {
    simulation
        .lines()
        .any(|l| l.contains(" Breaks: ") || l.starts_with("Remv "))
}

/// Adds the release's backports to apt's sources, in a file of our own, from the archive that apt already uses.
fn add_backports() -> Result<()> {
    let codename = debian::codename()?;
    let backports = format!("{codename}-backports");
    let listing = Cmd::new("apt-get")
        .args(["indextargets", "--format", "$(RELEASE)"])
        .text()?;
    if listing.lines().any(|l| l == backports) {
        return Ok(());
    }
    let list = debian::sources_list(&[debian::suite_beside(&codename, &backports)?]);
    let path = Path::new("/etc/apt/sources.list.d/fleetbox-backports.list");
    eprintln!("  adding {backports} to apt's sources: {}", path.display());
    fs::write(path, list).context(|| format!("cannot write {}", path.display()))?;
    Cmd::new("apt-get").args(["update", "-q"]).limit(180).run()
}

/// Adds the parts of the toolchain that a step runs, where rustup has left them out.
///
/// # Errors
/// They are missing, and cannot be added.
pub(crate) fn ensure_components() -> Result<()> {
    for (program, component) in [("cargo-fmt", "rustfmt"), ("cargo-clippy", "clippy")] {
        if find(program).is_some_and(|program| Cmd::new(program).arg("--version").succeeds()) {
            continue;
        }
        if find("rustup").is_none() {
            bail!("{program} is missing, and there is no rustup to add it: install {component}");
        }
        step(&format!("rustup component add {component}"), || {
            Cmd::new("rustup")
                .args(["component", "add", component])
                .limit(300)
                .run()
        })?;
    }
    Ok(())
}

fn ensure_target() -> Result<()> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let libdir = Cmd::new(rustc)
        .args(["--print", "target-libdir", "--target", BARE_METAL])
        .text()?;
    if Path::new(&libdir).is_dir() {
        return Ok(());
    }
    if find("rustup").is_none() {
        bail!(
            "Rust's target {BARE_METAL} is missing, and there is no rustup to add it; install that target"
        );
    }
    step(&format!("rustup target add {BARE_METAL}"), || {
        Cmd::new("rustup")
            .args(["target", "add", BARE_METAL])
            .limit(300)
            .run()
    })
}

/// Checks for the Rust toolchain `version`, and installs it with rustup if it is missing.
///
/// # Errors
/// There is no rustup, or it cannot download the toolchain.
pub(crate) fn ensure_toolchain(version: &str) -> Result<()> {
    if find("rustup").is_none() {
        bail!("rustup is missing");
    }
    let rustc = ["run", version, "rustc", "--version"];
    if Cmd::new("rustup").args(rustc).succeeds() {
        return Ok(());
    }
    step(&format!("rustup toolchain install {version}"), || {
        Cmd::new("rustup")
            .args(["toolchain", "install", version, "--profile", "minimal"])
            .limit(600)
            .run()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conflicts_are_seen_in_both_forms() {
        assert!(!conflicts(
            "Inst a (1 Debian:12 [amd64])\nConf a (1 Debian:12 [amd64])\n"
        ));
        assert!(conflicts(
            "Inst a\n qemu-utils : Breaks: a (< 2) but 1 is to be installed\n"
        ));
        assert!(conflicts("Remv qemu-utils [1:10]\nInst a\n"));
    }

    #[test]
    fn finds_programs_only_where_they_are() {
        assert!(find("sh").is_some_and(|p| p.is_absolute()));
        assert_eq!(find("no-such-program-anywhere"), None);
    }
}
