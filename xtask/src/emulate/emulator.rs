//! Finds or installs the QEMU that emulates the host.
//!
//! QEMU's emulation of AMD-V became reliable only recently. With 10.0 a guest that is busy on two vCPUs loses
//! interrupts or ends in a triple fault within minutes, and sometimes the emulated host's own kernel panics. So if the
//! installed QEMU is older than [`OLDEST`], a newer one is unpacked from Debian's testing release, with its libraries,
//! and run from the cache. Nothing is installed.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::bail;
use crate::cache::{self, Key};
use crate::debian;
use crate::deps;
use crate::error::{Error, Result};
use crate::run::{Cmd, step};

/// The oldest QEMU whose emulated AMD-V is good enough: major and minor version.
const OLDEST: (u32, u32) = (11, 1);

/// The release of Debian that has a newer one.
const SUITE: &str = "forky";

/// Its packages. Their dependencies come with them.
const PACKAGES: &str = "qemu-system-x86,libc6";

/// The name of the program.
const PROGRAM: &str = "qemu-system-x86_64";

/// A QEMU that can be started.
#[derive(Debug)]
pub(super) enum Emulator {
    /// In `PATH`.
    Installed(PathBuf),
    /// In this directory, as the root of a Debian.
    Unpacked(PathBuf),
}

impl Emulator {
    /// Finds QEMU, or unpacks it into the cache.
    pub(super) fn prepare() -> Result<Self> {
        let installed = deps::find(PROGRAM);
        if let Some(path) = &installed {
            let said = Cmd::new(path).arg("--version").text()?;
            if version(&said).is_some_and(|v| v >= OLDEST) {
                return Ok(Self::Installed(path.clone()));
            }
        }
        let Ok(codename) = debian::codename() else {
            bail!(
                "the emulated host needs {PROGRAM} {}.{} or newer, but {}; install it, and run this again",
                OLDEST.0,
                OLDEST.1,
                if installed.is_some() {
                    "the installed one is older"
                } else {
                    "it is missing"
                }
            );
        };
        let archive = debian::sources_list(&[debian::suite_beside(&codename, SUITE)?]);
        let key = Key::new("qemu")
            .with(PACKAGES)
            .with(&archive)
            .with(format!("{OLDEST:?}"))
            .finish();
        let dir = cache::artefact("qemu", &key, |dir| {
            step(&format!("unpacking QEMU from Debian {SUITE}"), || {
                unpack(dir, &archive)
            })
        })?;
        Ok(Self::Unpacked(dir.join("root")))
    }

    /// A command that starts it.
    pub(super) fn command(&self) -> Command {
        match self {
            Self::Installed(path) => Command::new(path),
            Self::Unpacked(root) => {
                let lib = root.join("usr/lib/x86_64-linux-gnu");
                let mut command = Command::new(lib.join("ld-linux-x86-64.so.2"));
                command
                    .arg("--library-path")
                    .arg(&lib)
                    .arg(root.join("usr/bin").join(PROGRAM));
                for data in ["usr/share/qemu", "usr/share/seabios"] {
                    command.arg("-L").arg(root.join(data));
                }
                command
            }
        }
    }
}

fn unpack(dir: &Path, archive: &str) -> Result<()> {
    let root = dir.join("root");
    // A mirror may be some weeks behind, which a release under way takes for too old. Signatures are checked.
    let options = ["--aptopt=Acquire::Check-Valid-Until \"false\""];
    debian::extract(&root, SUITE, PACKAGES, archive, &options)?;
    let said = Emulator::Unpacked(root).command();
    let said = Cmd::new(said.get_program())
        .args(said.get_args())
        .arg("--version")
        .text()?;
    match version(&said) {
        Some(version) if version >= OLDEST => Ok(()),
        _ => Err(Error::new(format!(
            "Debian {SUITE} has QEMU {}, but {}.{} or newer is needed",
            said.lines().next().unwrap_or("of unknown version"),
            OLDEST.0,
            OLDEST.1
        ))),
    }
}

/// Major and minor version in the output of `--version`.
fn version(said: &str) -> Option<(u32, u32)> {
    let mut numbers = said
        .split_once("version ")?
        .1
        .split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_versions() {
        let said = "QEMU emulator version 11.1.3 (Debian 1:11.1.3+ds-1)\nCopyright (c) 2003-2026\n";
        assert_eq!(version(said), Some((11, 1)));
        assert_eq!(version("QEMU emulator version 9.0.50"), Some((9, 0)));
        assert!(version(said) >= Some(OLDEST));
        assert_eq!(version("QEMU"), None);
        assert_eq!(version("version x"), None);
    }

    #[test]
    fn an_unpacked_one_runs_with_its_own_libraries() {
        let command = Emulator::Unpacked("/q".into()).command();
        assert_eq!(
            command.get_program(),
            "/q/usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2"
        );
        let args: Vec<_> = command.get_args().collect();
        assert!(args.contains(&"/q/usr/bin/qemu-system-x86_64".as_ref()));
    }
}
