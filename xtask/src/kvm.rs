//! Finds this machine's KVM, and what it can run.

use std::fmt;
use std::fs::{self, OpenOptions};
use std::path::Path;

/// This machine's KVM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kvm {
    /// It uses the processor's virtualisation extensions and runs everything.
    Hardware(&'static str),
    /// It interprets guest kernels and runs only bare-metal payloads.
    Software,
    /// `/dev/kvm` cannot be opened, for this reason.
    None(String),
}

impl Kvm {
    /// Finds this machine's KVM.
    pub fn here() -> Self {
        let device = OpenOptions::new().read(true).write(true).open("/dev/kvm");
        if let Err(error) = device {
            return Self::None(error.to_string());
        }
        let cpus = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        Self::by(&cpus, Path::new("/sys/module/kvm_pvm").exists())
    }

    fn by(cpuinfo: &str, pvm: bool) -> Self {
        let has = |flag: &str| {
            cpuinfo
                .lines()
                .filter_map(|l| l.strip_prefix("flags"))
                .any(|l| l.split_ascii_whitespace().any(|f| f == flag))
        };
        match (pvm, has("vmx"), has("svm")) {
            (false, true, _) => Self::Hardware("VT-x"),
            (false, _, true) => Self::Hardware("AMD-V"),
            _ => Self::Software,
        }
    }

    /// True if it runs a distribution's kernel.
    pub fn runs_stock_kernels(&self) -> bool {
        matches!(self, Self::Hardware(_))
    }

    /// True if it runs bare-metal payloads.
    pub fn runs_payloads(&self) -> bool {
        !matches!(self, Self::None(_))
    }
}

impl fmt::Display for Kvm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hardware(kind) => write!(f, "this machine's KVM ({kind})"),
            Self::Software => f.write_str("this machine's KVM (software only)"),
            Self::None(reason) => write!(f, "no KVM (/dev/kvm: {reason})"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_processor_decides_unless_the_module_is_software() {
        let intel = "processor\t: 0\nflags\t\t: fpu vmx sse\n";
        let amd = "flags\t\t: fpu svm\n";
        assert_eq!(Kvm::by(intel, false), Kvm::Hardware("VT-x"));
        assert_eq!(Kvm::by(amd, false), Kvm::Hardware("AMD-V"));
        assert_eq!(Kvm::by(intel, true), Kvm::Software);
        assert_eq!(Kvm::by("flags\t\t: fpu novmx\n", false), Kvm::Software);
    }
}
