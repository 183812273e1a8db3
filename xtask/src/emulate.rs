//! An emulated KVM host: a Debian kernel under QEMU's TCG with AMD-V and nested paging, for machines whose own KVM
//! cannot run a stock kernel.
//!
//! The host's root is a small Debian of this machine's release. Its disk is never written to; every run gets a
//! copy-on-write layer. The command's files are on other disks, and appear at the same paths as outside.

mod disks;
mod emulator;
mod host;
mod initrd;
mod qemu;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::bail;
use crate::deps;
use crate::error::{Context, Error, Result};

use emulator::Emulator;
use qemu::Ended;
pub use qemu::Outcome;

pub(crate) use host::kernel_parts;
pub(crate) use initrd::{decompress, load_order};

/// How often a command is started if the emulated host's kernel panics.
///
/// Versions of QEMU before [`emulator`]'s sometimes delivered an interrupt to the host between VMRUN's exit and STGI,
/// which makes Linux panic. This is not the command's fault. A command that fails is never tried again.
const ATTEMPTS: u32 = 3;

/// A file to make available in the emulated host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestFile {
    /// Path on this machine.
    pub host: PathBuf,
    /// Absolute path in the emulated host.
    pub guest: PathBuf,
}

impl GuestFile {
    /// A file that has the same path in the emulated host.
    ///
    /// # Errors
    /// There is no such file.
    pub fn same(path: &Path) -> Result<Self> {
        let host =
            std::fs::canonicalize(path).context(|| format!("cannot find {}", path.display()))?;
        // The name by which it was asked for is kept; a link's target would have another one.
        let guest =
            std::path::absolute(path).context(|| format!("cannot resolve {}", path.display()))?;
        Ok(Self { host, guest })
    }

    /// Reads `HOST` or `HOST:GUEST`.
    ///
    /// # Errors
    /// There is no such file, or GUEST is not absolute.
    pub fn parse(spec: &str) -> Result<Self> {
        match spec.rsplit_once(':') {
            Some((host, guest)) if !Path::new(spec).exists() => {
                let mut file = Self::same(Path::new(host))?;
                if !guest.starts_with('/') {
                    bail!("--file {spec}: {guest} is not an absolute path");
                }
                file.guest = guest.into();
                Ok(file)
            }
            _ => Self::same(Path::new(spec)),
        }
    }
}

/// A command to run in an emulated host, and the size of the host.
#[derive(Debug, Clone)]
pub struct Emulation {
    /// Number of CPUs.
    pub cpus: u8,
    /// Memory in MiB.
    pub memory: u32,
    /// Available files.
    pub files: Vec<GuestFile>,
    /// Environment variables of the command, besides `PATH`, `HOME` and `LANG`.
    pub env: Vec<(String, String)>,
    /// Working directory; it is created.
    pub dir: PathBuf,
    /// The command and its arguments.
    pub command: Vec<OsString>,
    /// Time after which host and command are killed.
    pub timeout: Duration,
    /// Copy the host's console to standard error.
    pub console: bool,
}

impl Emulation {
    /// `command` in a host with 2 CPUs and 3 GiB, in the working directory of this process.
    ///
    /// Files that are named as arguments are made available. So are the programs of this workspace's debug build, in
    /// `PATH`, and the images built so far, as `NAME.raw` and `NAME.qcow2` in `/images`.
    ///
    /// # Errors
    /// The command is empty, or the working directory is gone.
    pub fn new(command: &[OsString]) -> Result<Self> {
        let Some(program) = command.first() else {
            bail!("no command to run in the emulated host")
        };
        let mut files = Vec::new();
        for arg in command {
            if Path::new(arg).is_file() {
                files.push(GuestFile::same(Path::new(arg))?);
            }
        }
        let path = Path::new(program);
        let own = ["/usr", "/bin", "/sbin", "/images"];
        if path.components().count() > 1
            && !path.is_file()
            && !own.iter().any(|d| path.starts_with(d))
        {
            bail!("there is no file {}", path.display());
        }
        let build = crate::target_dir().join("debug");
        for program in ["fleetbox", "fleetbox-vmm"] {
            let host = build.join(program);
            if host.is_file() && !files.iter().any(|f| f.host == host) {
                files.push(GuestFile {
                    host,
                    guest: Path::new("/usr/local/bin").join(program),
                });
            }
        }
        for (name, host) in crate::image::built()? {
            files.push(GuestFile {
                host,
                guest: Path::new("/images").join(name),
            });
        }
        Ok(Self {
            cpus: 2,
            memory: 3072,
            files,
            env: vec![("FLEETBOX_EMULATED_HOST".into(), "1".into())],
            dir: std::env::current_dir().context(|| "the working directory is gone")?,
            command: command.to_vec(),
            timeout: Duration::from_secs(900),
            console: false,
        })
    }

    /// Boots a host, runs the command in it with its output on this process's standard output and error, and returns
    /// the result.
    ///
    /// The host is killed when the calling thread ends, so call this from a thread that lives as long as its process.
    ///
    /// # Errors
    /// Something is missing, the host did not boot, the command left no status, or it exceeded its time limit. The
    /// error quotes the end of the host's console.
    pub fn run(&self) -> Result<Outcome> {
        deps::ensure(&[deps::Need::Emulator])?;
        let emulator = Emulator::prepare()?;
        let host = host::prepare()?;
        let disks = disks::prepare(&self.files)?;
        let initrd = initrd::build(&host, &self.script(&disks)?)?;
        let mut attempt = 1;
        loop {
            match qemu::run(self, &emulator, &host, &disks, &initrd)? {
                Ended::Command(outcome) => return Ok(outcome),
                Ended::Panicked(console) if attempt == ATTEMPTS => bail!(
                    "the emulated host's own kernel panicked or reset it {ATTEMPTS} times, last with {console}"
                ),
                Ended::Panicked(console) => {
                    attempt += 1;
                    eprintln!("{console}");
                    eprintln!(
                        "  the emulated host's own kernel panicked or reset it, with the above: the command starts anew in \
                         another host (attempt {attempt} of {ATTEMPTS})"
                    );
                }
            }
        }
    }

    /// Like [`Emulation::run`], for a command that must succeed.
    ///
    /// # Errors
    /// See [`Emulation::run`]; or the command failed.
    pub fn succeed(&self) -> Result<()> {
        match self.run()?.status {
            0 => Ok(()),
            status => bail!("the command ended with status {status} in the emulated host"),
        }
    }

    /// The part of the host's init script that differs between runs.
    fn script(&self, disks: &disks::Disks) -> Result<String> {
        let text = |s: &std::ffi::OsStr| -> Result<String> {
            let s = s
                .to_str()
                .ok_or_else(|| Error::new(format!("{} is not UTF-8", s.to_string_lossy())))?;
            Ok(crate::run::shell_quote(s))
        };
        let mut script = String::from("b=/usr/bin/busybox\n");
        script.push_str(&disks.mount_script());
        let dir = text(self.dir.as_os_str())?;
        script.push_str(&format!("$b mkdir -p {dir}\ncd {dir}\n"));
        for (name, value) in &self.env {
            script.push_str(&format!(
                "export {name}={}\n",
                crate::run::shell_quote(value)
            ));
        }
        let words = self
            .command
            .iter()
            .map(|w| text(w))
            .collect::<Result<Vec<_>>>()?;
        script.push_str(&format!("{} 3>&- </dev/null\n", words.join(" ")));
        Ok(script)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_keep_the_path_they_are_asked_for_by() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk:1");
        std::fs::write(&path, "x").unwrap();
        let spec = path.to_str().unwrap();
        assert_eq!(GuestFile::parse(spec).unwrap().guest, path);
        let renamed = GuestFile::parse(&format!("{spec}:/other")).unwrap();
        assert_eq!(
            (renamed.host, renamed.guest),
            (std::fs::canonicalize(&path).unwrap(), "/other".into())
        );
        assert!(
            GuestFile::parse(&format!("{spec}:other"))
                .unwrap_err()
                .to_string()
                .contains("absolute")
        );
        assert!(GuestFile::parse("/no/such/file").is_err());
    }
}
