//! Checks whether this host can run a machine, without creating one, and explains the result in one
//! sentence.

use std::fmt;
use std::fs;
use std::io::{self, BufRead, BufReader};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// The group that distributions give /dev/kvm to. Its members may use KVM and nothing else.
const KVM_GROUP: &str = "kvm";

/// What the host offers.
///
/// ```
/// use fleetbox_vmm::preflight::{Probe, probe};
///
/// match probe() {
///     Probe::Hardware => println!("everything runs"),
///     other => println!("{other}"), // what is missing, and what to do
/// }
/// assert!(!Probe::Software { module: None }.hardware());
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Probe {
    /// KVM with virtualisation hardware: everything runs.
    Hardware,
    /// A KVM that interprets guest kernels: bare-metal payloads run, but distributions do not.
    Software {
        /// The kernel module that provides it, if known.
        module: Option<String>,
    },
    /// There is no /dev/kvm.
    Missing {
        /// True if the CPU has virtualisation extensions, so that only a module is missing.
        cpu_capable: bool,
    },
    /// /dev/kvm exists, but this user cannot open it.
    Denied {
        /// The group that owns the device.
        group: String,
        /// True if the group has access to it.
        group_may: bool,
    },
    /// /dev/kvm exists, but opening it fails for another reason.
    Broken {
        /// The operating system's error.
        error: String,
    },
}

impl Probe {
    /// True if a VM can be created.
    pub fn usable(&self) -> bool {
        matches!(self, Self::Hardware | Self::Software { .. })
    }

    /// True if a stock kernel can be run.
    pub fn hardware(&self) -> bool {
        matches!(self, Self::Hardware)
    }
}

impl Probe {
    /// What was found, without a remedy.
    ///
    /// ```
    /// use fleetbox_vmm::preflight::Probe;
    ///
    /// let found = Probe::Missing { cpu_capable: true }.found();
    /// assert!(found.contains("/dev/kvm is missing"), "{found}");
    /// ```
    pub fn found(&self) -> String {
        match self {
            Self::Hardware => "/dev/kvm works and uses virtualisation hardware".to_owned(),
            Self::Software { module } => format!(
                "/dev/kvm is software only{}: it interprets guest kernels one instruction at a \
                 time and cannot boot a distribution's",
                match module {
                    Some(module) => format!(" (module {module}, no vmx or svm in /proc/cpuinfo)"),
                    None => " (no vmx or svm in /proc/cpuinfo)".to_owned(),
                }
            ),
            Self::Missing { cpu_capable: true } => {
                "/dev/kvm is missing, although the CPU has virtualisation extensions".to_owned()
            }
            Self::Missing { cpu_capable: false } => {
                "/dev/kvm is missing, and the CPU has neither vmx nor svm".to_owned()
            }
            Self::Denied {
                group_may: true, ..
            } => "this user cannot open /dev/kvm".to_owned(),
            Self::Denied {
                group,
                group_may: false,
            } => format!(
                "this user cannot open /dev/kvm, and its group {group} has no access either"
            ),
            Self::Broken { error } => format!("cannot open /dev/kvm: {error}"),
        }
    }

    /// What to do about it; `None` if everything runs.
    ///
    /// ```
    /// use fleetbox_vmm::preflight::Probe;
    ///
    /// let remedy = Probe::Missing { cpu_capable: true }.remedy().unwrap();
    /// assert!(remedy.contains("modprobe"), "{remedy}");
    /// assert_eq!(Probe::Hardware.remedy(), None);
    /// ```
    pub fn remedy(&self) -> Option<String> {
        Some(match self {
            Self::Hardware => return None,
            Self::Software { .. } => {
                "use a host with VT-x or AMD-V, or enable nested virtualisation \
                                      for this machine"
                    .to_owned()
            }
            Self::Missing { cpu_capable: true } => {
                "load the module with `modprobe kvm_intel` or `modprobe kvm_amd`".to_owned()
            }
            Self::Missing { cpu_capable: false } => {
                "enable virtualisation in the firmware setup, or \
                                                     nested virtualisation if this is itself a VM"
                    .to_owned()
            }
            Self::Denied {
                group,
                group_may: true,
            } if group == KVM_GROUP => format!(
                "join the group that owns it with `sudo usermod -aG {KVM_GROUP} $USER` and log in again"
            ),
            // Members of another group, such as root or disk, may do much more than run VMs.
            Self::Denied { .. } => format!(
                "give this user access until the next boot with `sudo setfacl -m u:$USER:rw /dev/kvm`; or for \
                 good: create a group with `sudo groupadd -f -r {KVM_GROUP}`, join it with `sudo usermod -aG \
                 {KVM_GROUP} $USER`, write `KERNEL==\"kvm\", GROUP=\"{KVM_GROUP}\", MODE=\"0660\"` to \
                 /etc/udev/rules.d/65-kvm.rules, and boot again"
            ),
            Self::Broken { .. } => "see `dmesg | grep kvm`".to_owned(),
        })
    }
}

impl fmt::Display for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.found())?;
        // What was found has a colon in it in these two.
        let mark = match self {
            Self::Software { .. } | Self::Broken { .. } => "; ",
            _ => ": ",
        };
        match self.remedy() {
            Some(remedy) => write!(f, "{mark}{remedy}"),
            None => Ok(()),
        }
    }
}

/// Examines the host. This takes well under a millisecond.
pub fn probe() -> Probe {
    match open_kvm() {
        Ok(_) if has_hardware() => Probe::Hardware,
        Ok(_) => Probe::Software {
            module: loaded_backend(Path::new("/sys/module")),
        },
        Err(refusal) => refusal,
    }
}

/// True if the CPU has virtualisation extensions that this kernel may use.
pub(crate) fn has_hardware() -> bool {
    // Only as much as is needed: with many CPUs the whole takes milliseconds.
    fs::File::open("/proc/cpuinfo").is_ok_and(|f| cpu_can_virtualise(BufReader::new(f)))
}

/// Opens /dev/kvm.
///
/// # Errors
/// The result of [`probe`] for a host where it cannot be opened.
pub(crate) fn open_kvm() -> Result<fs::File, Probe> {
    let device = Path::new("/dev/kvm");
    let opened = fs::OpenOptions::new().read(true).write(true).open(device);
    opened.map_err(|e| match e.kind() {
        io::ErrorKind::NotFound => Probe::Missing {
            cpu_capable: has_hardware(),
        },
        io::ErrorKind::PermissionDenied => denied(device),
        _ if matches!(e.raw_os_error(), Some(libc::ENODEV | libc::ENXIO)) => Probe::Missing {
            cpu_capable: has_hardware(),
        },
        _ => Probe::Broken {
            error: e.to_string(),
        },
    })
}

fn denied(device: &Path) -> Probe {
    let (gid, mode) = fs::metadata(device).map_or((0, 0), |m| (m.gid(), m.mode()));
    let groups = fs::read_to_string("/etc/group").unwrap_or_default();
    let group = group_name(&groups, gid).map_or_else(|| gid.to_string(), str::to_owned);
    Probe::Denied {
        group,
        group_may: mode & 0o060 == 0o060,
    }
}

/// The name of a group in the text of /etc/group, where that of a device is. Not by the C library, which looks for it in
/// modules that a static program cannot load everywhere.
fn group_name(groups: &str, gid: u32) -> Option<&str> {
    groups.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let number = fields.nth(1)?.parse::<u32>().ok()?;
        (number == gid && !name.is_empty()).then_some(name)
    })
}

/// True if the first `flags` line of /proc/cpuinfo names VT-x or AMD-V; all CPUs have the same.
fn cpu_can_virtualise(cpuinfo: impl BufRead) -> bool {
    cpuinfo
        .lines()
        .map_while(Result::ok)
        .find(|line| line.starts_with("flags"))
        .is_some_and(|line| line.split_whitespace().any(|f| f == "vmx" || f == "svm"))
}

fn loaded_backend(modules: &Path) -> Option<String> {
    let mut names: Vec<String> = fs::read_dir(modules)
        .ok()?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| name.starts_with("kvm_"))
        .collect();
    names.sort();
    names.into_iter().next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn virtualisation_is_recognised_as_a_whole_word() {
        assert!(cpu_can_virtualise(
            &b"processor: 0\nflags\t\t: fpu svm npt\n"[..]
        ));
        assert!(cpu_can_virtualise(&b"flags : vmx\n"[..]));
        assert!(!cpu_can_virtualise(&b"flags : fpu svmx\nbugs: vmx\n"[..]));
        assert!(!cpu_can_virtualise(&b""[..]));
    }

    #[test]
    fn a_group_is_found_by_its_number() {
        let groups = "root:x:0:\n# kvm:x:1:\nbroken\nkvm:x:104:me,you\nother:x:105:\n";
        assert_eq!(group_name(groups, 104), Some("kvm"));
        assert_eq!(group_name(groups, 0), Some("root"));
        assert_eq!(group_name(groups, 10), None);
        assert_eq!(group_name("", 0), None);
    }

    #[test]
    fn every_refusal_names_a_remedy() {
        let refusals = [
            (Probe::Missing { cpu_capable: true }, "modprobe"),
            (Probe::Missing { cpu_capable: false }, "enable"),
            (
                Probe::Denied {
                    group: "kvm".into(),
                    group_may: true,
                },
                "usermod -aG kvm",
            ),
            (
                Probe::Denied {
                    group: "kvm".into(),
                    group_may: false,
                },
                "setfacl -m u:$USER:rw /dev/kvm",
            ),
            (
                Probe::Software {
                    module: Some("kvm_pvm".into()),
                },
                "use a host",
            ),
        ];
        for (probe, remedy) in refusals {
            let text = probe.to_string();
            assert!(text.contains(remedy), "{text}");
            assert!(!probe.hardware());
            assert!(!text.contains('\n'));
        }
    }

    /// Members of root's group, and of others, may do what only root should.
    #[test]
    fn only_the_group_for_kvm_is_advised() {
        for group in ["root", "disk", "wheel", "docker", "0", "107"] {
            for group_may in [true, false] {
                let group = group.to_owned();
                let denied = Probe::Denied {
                    group: group.clone(),
                    group_may,
                }
                .to_string();
                assert!(!denied.contains(&format!("-aG {group}")), "{denied}");
                assert!(!denied.contains("chmod"), "{denied}");
                for part in ["setfacl", "GROUP=\"kvm\"", "udev/rules.d"] {
                    assert!(denied.contains(part), "{part}: {denied}");
                }
            }
        }
    }
}
