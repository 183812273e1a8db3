//! What one boot of a machine loads. It is read again for every boot.

use std::fs::File;
use std::path::{Path, PathBuf};

use fleetbox_arch::x86_64::bzimage;
use fleetbox_arch::x86_64::kernel::{self, LoadOptions, LoadedKernel, Source};
use fleetbox_devices::GuestMemory;

use super::config::{BootSource, MachineConfig};
use super::error::Error;
use crate::boot;
use crate::hypervisor::Vm;

/// Kernel, initial RAM disk and command line of one boot.
pub(super) struct Payload {
    kernel: Part,
    initrd: Option<Part>,
    pub(super) cmdline: String,
    /// Their source, as text for users.
    pub(super) source: String,
}

enum Part {
    File(PathBuf, File),
    Bytes(String, Vec<u8>),
}

impl Part {
    fn open(path: &Path) -> Result<Self, Error> {
        let file = File::open(path).map_err(|source| Error::File {
            path: path.to_owned(),
            source,
        })?;
        Ok(Self::File(path.to_owned(), file))
    }

    fn source(&self) -> Source<'_> {
        match self {
            Self::File(_, file) => Source::File(file),
            Self::Bytes(_, bytes) => Source::Bytes(bytes),
        }
    }

    fn name(&self) -> String {
        match self {
            Self::File(path, _) => path.display().to_string(),
            Self::Bytes(name, _) => name.clone(),
        }
    }
}

/// Finds what to boot. `stock_kernels` says whether the host can run a distribution's kernel. If
/// not, an image or a bzImage is refused here, before anything is loaded.
pub(super) fn read(
    config: &MachineConfig,
    stock_kernels: impl Fn() -> bool,
) -> Result<Payload, Error> {
    let refuse = |what: String| Error::Host {
        what,
        reason: crate::preflight::probe().to_string(),
    };
    match &config.boot {
        BootSource::Auto => {
            if !stock_kernels() {
                return Err(refuse("a disk image's kernel".into()));
            }
            let disk = config
                .disks
                .first()
                .ok_or_else(|| Error::Config("it has no disk to boot from".into()))?;
            let plan = boot::discover(disk.disk.clone(), &boot::Limits::default())?;
            Ok(Payload {
                source: format!("{} ({})", plan.source.entry.join(" > "), plan.source.kernel),
                kernel: Part::Bytes("the image's kernel".into(), plan.kernel),
                initrd: plan
                    .initrd
                    .map(|bytes| Part::Bytes("the image's initrd".into(), bytes)),
                cmdline: append(plan.cmdline, &config.append),
            })
        }
        BootSource::Kernel {
            kernel,
            initrd,
            cmdline,
        } => {
            let source = kernel.display().to_string();
            let kernel = Part::open(kernel)?;
            if bzimage::is_bzimage(&kernel.source()) && !stock_kernels() {
                return Err(refuse(format!("{source}, a bzImage,")));
            }
            Ok(Payload {
                kernel,
                initrd: initrd.as_deref().map(Part::open).transpose()?,
                cmdline: append(cmdline.clone(), &config.append),
                source,
            })
        }
        BootSource::Firmware(path) => Ok(Payload {
            kernel: Part::open(path)?,
            initrd: None,
            cmdline: String::new(),
            source: path.display().to_string(),
        }),
    }
}

/// Adds words to a command line, before a word `--`.
fn append(cmdline: String, more: &str) -> String {
    if more.is_empty() || cmdline.is_empty() {
        return cmdline + more;
    }
    let mut end = None;
    let mut at = 0;
    // A value in quotes may have spaces, and what looks like a word in it is none.
    let mut quoted = false;
    for word in cmdline.split(' ') {
        if word == "--" && !quoted {
            end = Some(at);
            break;
        }
        quoted ^= word.matches('"').count() % 2 == 1;
        at += word.len() + 1;
    }
    match end {
        Some(end) => {
            let (kernel, init) = cmdline.split_at(end);
            format!("{kernel}{more} {init}")
        }
        None => format!("{cmdline} {more}"),
    }
}

impl Payload {
    /// Loads everything into guest memory, with the tables of its boot protocol.
    pub(super) fn load(self, memory: &GuestMemory, vm: &dyn Vm) -> Result<LoadedKernel, Error> {
        let initrd = self.initrd.as_ref().map(Part::source);
        kernel::load_with(
            memory,
            &self.kernel.source(),
            initrd.as_ref(),
            &self.cmdline,
            &LoadOptions::default(),
            &|range| vm.will_fill(range),
        )
        .map_err(|e| Error::Load {
            what: self.kernel.name(),
            reason: e.to_string(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_added_before_those_of_the_init_program() {
        for (cmdline, more, want) in [
            ("", "", ""),
            ("", "quiet", "quiet"),
            ("root=/dev/vda1 ro", "", "root=/dev/vda1 ro"),
            (
                "root=/dev/vda1 ro",
                "quiet x=y",
                "root=/dev/vda1 ro quiet x=y",
            ),
            ("ro -- single", "quiet", "ro quiet -- single"),
            ("-- single", "quiet", "quiet -- single"),
            ("a=\"b -- c\" d--e", "quiet", "a=\"b -- c\" d--e quiet"),
            ("ro", "-- single", "ro -- single"),
        ] {
            assert_eq!(
                append(cmdline.to_owned(), more),
                want,
                "{cmdline:?} {more:?}"
            );
        }
    }
}
