//! `doctor`: checks what VMs need on this host, and says how to fix what is missing.

use std::path::{Path, PathBuf};

use fleetbox::budget::{self, Budget, QUEUE_VARIABLE};
use fleetbox::images::{CATALOGUE_VARIABLE, Images};
use fleetbox::store::Store;
use fleetbox::{BridgeError, DEFAULT_MEMORY, Error, Fleet, Result, VmState, preflight};
use nix::sys::resource::{Resource, getrlimit};
use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};
use nix::sys::statvfs::statvfs;
use nix::unistd::geteuid;
use serde::Serialize;

use crate::exit::FAILURE;
use crate::output::Context;
use crate::{stdout, table};

/// Free space below which there is a warning: space for an image and for what a guest writes at its
/// first boot.
const MIN_SPACE: u64 = 4 << 30;

/// Descriptors of a worker with a busy network.
const MIN_DESCRIPTORS: u64 = 1024;

/// How a check ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Ok,
    /// VMs run, but something else does not work, or will soon fail.
    Warn,
    /// No VM runs until this is fixed.
    Fail,
}

/// What was checked, what was found, and how to fix it.
#[derive(Debug, Serialize)]
struct Check {
    name: &'static str,
    verdict: Verdict,
    found: String,
    remedy: Option<String>,
}

fn good(name: &'static str, found: impl Into<String>) -> Check {
    Check {
        name,
        verdict: Verdict::Ok,
        found: found.into(),
        remedy: None,
    }
}

fn bad(
    name: &'static str,
    verdict: Verdict,
    found: impl Into<String>,
    remedy: impl Into<String>,
) -> Check {
    Check {
        name,
        verdict,
        found: found.into(),
        remedy: Some(remedy.into()),
    }
}

pub(crate) async fn run(context: &Context) -> Result<u8> {
    let mut checks = vec![kvm(), memory(), budget(Budget::from_env()), descriptors()];
    let home = context.fleet().home().map_err(Error::from);
    match home.and_then(|home| Ok(Store::inspect(home)?)) {
        Ok(store) => {
            let missing = match store.home().exists() {
                true => "",
                false => ", which the first VM creates",
            };
            let home = store.home().display();
            checks.push(good("state", format!("{home}{missing}")));
            let found = budget::queue_dir(store.home());
            let found = found.map(|queue| (queue.path, queue.owner));
            checks.push(queue(found, geteuid().as_raw()));
            checks.extend(space(store.home()));
            checks.push(images(&store));
            checks.push(vms(&store).await);
        }
        Err(error) => checks.push(bad(
            "state",
            Verdict::Fail,
            error.to_string(),
            "set FLEETBOX_HOME or --home to a directory that you may write to",
        )),
    }
    checks.extend([
        git(),
        openssh(),
        ping(),
        bridge(preflight::bridge().map_err(Error::from)),
        nested(),
    ]);
    if context.json {
        context.say_json(&checks)?;
    } else {
        for check in &checks {
            let verdict = match check.verdict {
                Verdict::Ok => "ok  ",
                Verdict::Warn => "warn",
                Verdict::Fail => "FAIL",
            };
            if context.quiet && check.verdict == Verdict::Ok {
                continue;
            }
            let mut text = format!("{verdict} {}: {}", check.name, check.found);
            if let Some(remedy) = &check.remedy {
                text.push_str(&format!("\n     {remedy}"));
            }
            match stdout::width() {
                Some(width) => context.say(table::wrap(&text, width, 5)),
                None => context.say(text),
            }
        }
    }
    let failed = checks.iter().any(|check| check.verdict == Verdict::Fail);
    Ok(if failed { FAILURE } else { 0 })
}

fn kvm() -> Check {
    let probe = preflight::probe();
    match probe.remedy() {
        None => good("kvm", probe.found()),
        Some(remedy) => bad("kvm", Verdict::Fail, probe.found(), remedy),
    }
}

fn memory() -> Check {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    // The control group of this process may allow less than the host has.
    let all = "100%".parse::<Budget>().ok().and_then(|all| all.limit());
    let available = available_memory(&text)
        .map(|available| all.map_or(available, |all| all.bytes().min(available)));
    let Some(available) = available else {
        return bad(
            "memory",
            Verdict::Warn,
            "cannot read how much is available",
            "mount /proc",
        );
    };
    let found = format!("{} MiB available", available >> 20);
    if available >= DEFAULT_MEMORY.bytes() {
        good("memory", found)
    } else {
        bad(
            "memory",
            Verdict::Warn,
            found,
            format!(
                "a VM gets {DEFAULT_MEMORY} by default: close programs, or use --memory to give it less"
            ),
        )
    }
}

/// The memory limit of all VMs together.
fn budget(budget: Result<Budget, impl std::fmt::Display>) -> Check {
    match budget.map(|budget| budget.limit()) {
        Ok(None) => good("budget", "the total memory of all VMs has no limit"),
        Ok(Some(limit)) if limit >= DEFAULT_MEMORY => good(
            "budget",
            format!("all VMs together may use {limit} of memory"),
        ),
        Ok(Some(limit)) => bad(
            "budget",
            Verdict::Warn,
            format!("all VMs together may use {limit} of memory"),
            format!(
                "a VM gets {DEFAULT_MEMORY} by default: use --memory to give it less, or raise \
                 FLEETBOX_MEMORY_BUDGET"
            ),
        ),
        Err(error) => bad(
            "budget",
            Verdict::Fail,
            error.to_string(),
            "fix or unset FLEETBOX_MEMORY_BUDGET",
        ),
    }
}

/// The directory in which all VMs of the host register their memory: who owns it, as seen by `user`.
fn queue(found: Result<(PathBuf, u32), impl std::fmt::Display>, user: u32) -> Check {
    match found {
        Ok((path, owner)) if owner == 0 || owner == user => {
            good("queue", path.display().to_string())
        }
        Ok((path, owner)) => bad(
            "queue",
            Verdict::Warn,
            format!(
                "{} belongs to user {owner}, who can delete the memory claims of other users",
                path.display()
            ),
            format!(
                "run `sudo chown root {0}`; to keep it so after a reboot, write `d {0} 1777 root root` to \
                 /etc/tmpfiles.d/fleetbox.conf",
                path.display()
            ),
        ),
        Err(error) => bad(
            "queue",
            Verdict::Fail,
            error.to_string(),
            format!(
                "replace it by a directory with mode 1777, or set {QUEUE_VARIABLE} to another directory"
            ),
        ),
    }
}

/// `MemAvailable` of proc_meminfo(5), in bytes.
fn available_memory(meminfo: &str) -> Option<u64> {
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1 << 10)
}

fn descriptors() -> Check {
    match getrlimit(Resource::RLIMIT_NOFILE) {
        Ok((_, most)) if most >= MIN_DESCRIPTORS => {
            good("descriptors", format!("{most} per process"))
        }
        Ok((_, most)) => bad(
            "descriptors",
            Verdict::Warn,
            format!("{most} per process"),
            format!(
                "raise the limit to {MIN_DESCRIPTORS} (`ulimit -Hn`); otherwise a busy VM refuses connections"
            ),
        ),
        Err(error) => bad(
            "descriptors",
            Verdict::Warn,
            error.to_string(),
            "allow getrlimit(2)",
        ),
    }
}

fn space(home: &Path) -> Option<Check> {
    // Of the file system on which it will be, if it does not exist.
    let space = home.ancestors().find_map(|dir| statvfs(dir).ok())?;
    let free = space
        .blocks_available()
        .saturating_mul(space.fragment_size());
    let found = format!("{} MiB free for images and disks", free >> 20);
    Some(if free >= MIN_SPACE {
        good("space", found)
    } else {
        bad(
            "space",
            Verdict::Warn,
            found,
            format!(
                "free {} MiB: `fleetbox prune` deletes stopped VMs, `fleetbox images rm --all` unused images; \
                 or set FLEETBOX_HOME to a directory on another disk",
                MIN_SPACE.saturating_sub(free).div_ceil(1 << 20)
            ),
        )
    })
}

fn images(store: &Store) -> Check {
    let listed = Images::new(store).and_then(|images| images.list());
    match listed {
        Ok(list) => {
            let here = list.iter().filter(|image| image.bytes.is_some());
            let bytes: u64 = here.clone().filter_map(|image| image.bytes).sum();
            let size = table::size(bytes);
            good(
                "images",
                format!("{} known, {} downloaded ({size})", list.len(), here.count()),
            )
        }
        Err(error) => bad(
            "images",
            Verdict::Fail,
            error.to_string(),
            format!("fix the file that {CATALOGUE_VARIABLE} names, or unset the variable"),
        ),
    }
}

async fn vms(store: &Store) -> Check {
    // A look at a directory that does not exist would create it.
    let listed = match store.vms() {
        Ok(vms) if vms.is_empty() => Ok(Vec::new()),
        _ => Fleet::at(store.home()).list().await,
    };
    match listed {
        Ok(vms) => {
            let running = vms.iter().filter(|vm| vm.state == VmState::Running).count();
            good("vms", format!("{} in total, {running} running", vms.len()))
        }
        Err(error) => bad(
            "vms",
            Verdict::Warn,
            error.to_string(),
            "delete the VM with `fleetbox rm`, or use another state directory",
        ),
    }
}

/// Needed by `run PATH`, `ship` and `pull-diff` only.
fn git() -> Check {
    let remedy = "install git to copy work trees with `fleetbox run PATH`";
    program("git", "git", "--version", remedy)
}

/// Needed by `ssh-config` only.
fn openssh() -> Check {
    let remedy = "install an OpenSSH client to use plain `ssh`, scp and rsync; `fleetbox ssh` and `fleetbox cp` do \
                  not need it";
    program("openssh", "ssh", "-V", remedy)
}

/// Checks whether a program that only some commands need is installed, and shows its version.
fn program(what: &'static str, program: &str, version: &str, remedy: &str) -> Check {
    match std::process::Command::new(program).arg(version).output() {
        Ok(output) if output.status.success() => {
            // OpenSSH prints it on standard error.
            let version = [output.stdout, output.stderr].concat();
            good(what, String::from_utf8_lossy(&version).trim().to_owned())
        }
        _ => bad(what, Verdict::Warn, "not found", remedy),
    }
}

/// Needed by guests that ping hosts outside their network.
fn ping() -> Check {
    let (kind, flags) = (SockType::Datagram, SockFlag::SOCK_CLOEXEC);
    match socket(AddressFamily::Inet, kind, flags, SockProtocol::Icmp) {
        Ok(_) => good("ping", "guests can ping other hosts"),
        Err(error) => bad(
            "ping",
            Verdict::Warn,
            format!("guests cannot ping other hosts: {error}"),
            "run `sudo sysctl net.ipv4.ping_group_range='0 2147483647'` to let all users of this host ping",
        ),
    }
}

/// Needed by `--network bridge`.
fn bridge(may: Result<()>) -> Check {
    match may {
        Ok(()) => good("bridge", "this process may create bridge networks"),
        Err(error) => bad(
            "bridge",
            Verdict::Warn,
            match &error {
                Error::Bridge(BridgeError::NotPermitted) => {
                    "this user may not change this host's network (CAP_NET_ADMIN)".to_owned()
                }
                error => error.to_string(),
            },
            match &error {
                Error::Bridge(BridgeError::NotPermitted) => {
                    "`fleetbox up --network bridge` prints the command to run with sudo; the user network needs no root"
                }
                _ => {
                    "run `sudo modprobe tun` to use `--network bridge`; the user network does not need it"
                }
            },
        ),
    }
}

/// Needed by guests that run VMs themselves.
fn nested() -> Check {
    if fleetbox::nested_virt_supported() {
        return good("nested", "guests have /dev/kvm");
    }
    bad(
        "nested",
        Verdict::Warn,
        "guests have no /dev/kvm",
        "to run VMs in guests, load the KVM module with nested virtualisation: `sudo modprobe -r kvm_intel && sudo \
         modprobe kvm_intel nested=1` (kvm_amd on AMD)",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn available_memory_is_read() {
        let text = "MemTotal:  8000 kB\nMemFree: 10 kB\nMemAvailable:    2048 kB\n";
        assert_eq!(available_memory(text), Some(2 << 20));
        assert_eq!(available_memory("MemTotal: 1 kB\n"), None);
        assert_eq!(available_memory("MemAvailable: x kB\n"), None);
    }

    #[test]
    fn what_fails_has_a_remedy() {
        let here = tempfile::tempdir().unwrap();
        let store = Store::open(here.path()).unwrap();
        let refused = BridgeError::Busy;
        let checks = [
            kvm(),
            memory(),
            budget("1G".parse::<Budget>()),
            budget("lots".parse::<Budget>()),
            budget("unlimited".parse::<Budget>()),
            descriptors(),
            images(&store),
            git(),
            openssh(),
            ping(),
            bridge(preflight::bridge().map_err(Error::from)),
            bridge(Err(refused.into())),
            nested(),
            queue(Ok::<_, Error>(("/queue".into(), 0)), 7),
            queue(Ok::<_, Error>(("/queue".into(), 8)), 7),
            queue(Err("it is a file"), 7),
        ];
        for check in checks {
            assert_eq!(
                check.remedy.is_some(),
                check.verdict != Verdict::Ok,
                "{check:?}"
            );
        }
    }

    #[test]
    fn only_what_no_vm_runs_without_fails() {
        let verdict = |text: &str| budget(text.parse::<Budget>()).verdict;
        assert_eq!(verdict("unlimited"), Verdict::Ok);
        assert_eq!(verdict("8G"), Verdict::Ok);
        assert_eq!(verdict("1G"), Verdict::Warn);
        assert_eq!(verdict("lots"), Verdict::Fail);
        let verdict = |owner| queue(Ok::<_, Error>(("/queue".into(), owner)), 7).verdict;
        let verdicts = [0, 7, 8].map(verdict);
        assert_eq!(verdicts, [Verdict::Ok, Verdict::Ok, Verdict::Warn]);
        assert_eq!(queue(Err("it is a file"), 7).verdict, Verdict::Fail);
        for check in [
            memory(),
            git(),
            openssh(),
            ping(),
            nested(),
            bridge(preflight::bridge().map_err(Error::from)),
        ] {
            assert_ne!(check.verdict, Verdict::Fail, "{check:?}");
        }
        let here = tempfile::tempdir().unwrap();
        assert_ne!(space(here.path()).unwrap().verdict, Verdict::Fail);
    }
}
