//! `doctor`: whether VMs can run here, a line for each thing they need, and what to do about what
//! is missing.

use std::path::{Path, PathBuf};

use fleetbox::budget::{self, Budget, QUEUE_VARIABLE};
use fleetbox::images::{CATALOGUE_VARIABLE, Images};
use fleetbox::store::Store;
use fleetbox::{BridgeError, DEFAULT_MEMORY, Error, Result, Size, VmState, preflight};
use nix::sys::resource::{Resource, getrlimit};
use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};
use nix::sys::statvfs::statvfs;
use nix::unistd::geteuid;
use serde::Serialize;

use crate::FAILURE;
use crate::output::Context;

/// Less free space than this is remarked on: an image and what a guest writes at its first boot.
const ROOM: u64 = 4 << 30;

/// A process of a VM has as many descriptors as a worker with a busy network.
const DESCRIPTORS: u64 = 1024;

/// How a check ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Ok,
    /// VMs run, but something else does not, or soon will not.
    Warn,
    /// No VM runs before this is mended.
    Fail,
}

/// What was looked at, what was found, and what to do.
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
    match context.store() {
        Ok(store) => {
            checks.push(good("state", store.home().display().to_string()));
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
            "name a directory that you may write to by FLEETBOX_HOME or --home",
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
            context.say(format_args!("{verdict} {}: {}", check.name, check.found));
            if let Some(remedy) = &check.remedy {
                context.say(format_args!("     {remedy}"));
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
    // All that this process may have at all: its control group may have less than the host.
    let all = "100%".parse::<Budget>().ok().and_then(|all| all.limit());
    let available = available_memory(&text)
        .map(|available| all.map_or(available, |all| all.bytes().min(available)));
    let Some(available) = available else {
        return bad(
            "memory",
            Verdict::Warn,
            "this host does not say how much is available",
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
                "a VM is given {DEFAULT_MEMORY} unless told otherwise: end programs, or give it less by --memory"
            ),
        )
    }
}

/// What all VMs together may have.
fn budget(budget: Result<Budget, impl std::fmt::Display>) -> Check {
    match budget.map(|budget| budget.limit()) {
        Ok(None) => good("budget", "no limit for the memory of all VMs together"),
        Ok(Some(limit)) if limit >= DEFAULT_MEMORY => {
            good("budget", format!("{limit} of memory for all VMs together"))
        }
        Ok(Some(limit)) => bad(
            "budget",
            Verdict::Warn,
            format!("{limit} of memory for all VMs together"),
            format!(
                "a VM is given {DEFAULT_MEMORY} unless told otherwise: give it less by --memory, or raise \
                 FLEETBOX_MEMORY_BUDGET"
            ),
        ),
        Err(error) => bad(
            "budget",
            Verdict::Fail,
            error.to_string(),
            "mend or unset FLEETBOX_MEMORY_BUDGET",
        ),
    }
}

/// Where all VMs of the host tell each other of their memory: whose it is, as `user` sees it.
fn queue(found: Result<(PathBuf, u32), impl std::fmt::Display>, user: u32) -> Check {
    match found {
        Ok((path, owner)) if owner == 0 || owner == user => {
            good("queue", path.display().to_string())
        }
        Ok((path, owner)) => bad(
            "queue",
            Verdict::Warn,
            format!(
                "{} belongs to user {owner}, who may remove what others say there of their memory",
                path.display()
            ),
            format!(
                "`sudo chown root {0}`, and `d {0} 1777 root root` in /etc/tmpfiles.d/fleetbox.conf, so \
                 that it is root's from the start",
                path.display()
            ),
        ),
        Err(error) => bad(
            "queue",
            Verdict::Fail,
            error.to_string(),
            format!(
                "put a directory of mode 1777 in its place, or name another one by {QUEUE_VARIABLE}"
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
        Ok((_, most)) if most >= DESCRIPTORS => {
            good("descriptors", format!("{most} for each process"))
        }
        Ok((_, most)) => bad(
            "descriptors",
            Verdict::Warn,
            format!("{most} for each process"),
            format!(
                "raise the limit to {DESCRIPTORS} (`ulimit -Hn`), or connections will be refused"
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
    let space = statvfs(home).ok()?;
    let free = space
        .blocks_available()
        .saturating_mul(space.fragment_size());
    let found = format!("{} MiB free for images and disks", free >> 20);
    Some(if free >= ROOM {
        good("space", found)
    } else {
        bad(
            "space",
            Verdict::Warn,
            found,
            format!(
                "free {} MiB: `fleetbox prune` deletes stopped VMs, `fleetbox images rm --all` unused images; \
                 or put the state elsewhere by FLEETBOX_HOME",
                ROOM.saturating_sub(free).div_ceil(1 << 20)
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
            let size = Size::mib(bytes.div_ceil(1 << 20));
            good(
                "images",
                format!("{} known, {} downloaded ({size})", list.len(), here.count()),
            )
        }
        Err(error) => bad(
            "images",
            Verdict::Fail,
            error.to_string(),
            format!("mend or unset what {CATALOGUE_VARIABLE} names"),
        ),
    }
}

async fn vms(store: &Store) -> Check {
    match fleetbox::list(Some(store.home())).await {
        Ok(vms) => {
            let running = vms.iter().filter(|vm| vm.state == VmState::Running).count();
            good("vms", format!("{} in all, {running} running", vms.len()))
        }
        Err(error) => bad(
            "vms",
            Verdict::Warn,
            error.to_string(),
            "delete the VM that is named by `fleetbox rm`, or use another state directory",
        ),
    }
}

/// Needed by `run PATH`, `ship` and `pull-diff` only.
fn git() -> Check {
    let remedy = "install git to ship work trees by `fleetbox run PATH`";
    program("git", "git", "--version", remedy)
}

/// Needed by those who use `ssh-config`.
fn openssh() -> Check {
    let remedy = "install an OpenSSH client for plain `ssh`, scp and rsync by `fleetbox ssh-config`; `fleetbox ssh` \
                  and `cp` need none";
    program("openssh", "ssh", "-V", remedy)
}

/// Whether there is a program, which only some commands need, by what it says of its version.
fn program(what: &'static str, program: &str, version: &str, remedy: &str) -> Check {
    match std::process::Command::new(program).arg(version).output() {
        Ok(output) if output.status.success() => {
            // OpenSSH's is on standard error.
            let told = [output.stdout, output.stderr].concat();
            good(what, String::from_utf8_lossy(&told).trim().to_owned())
        }
        _ => bad(what, Verdict::Warn, "not found", remedy),
    }
}

/// Needed by guests that ping more than each other.
fn ping() -> Check {
    let (kind, flags) = (SockType::Datagram, SockFlag::SOCK_CLOEXEC);
    match socket(AddressFamily::Inet, kind, flags, SockProtocol::Icmp) {
        Ok(_) => good("ping", "guests can ping the world"),
        Err(error) => bad(
            "ping",
            Verdict::Warn,
            format!("guests cannot ping the world: {error}"),
            "`sudo sysctl net.ipv4.ping_group_range='0 2147483647'` lets every user of this host ping",
        ),
    }
}

/// Needed by `--network bridge`.
fn bridge(may: Result<()>) -> Check {
    match may {
        Ok(()) => good("bridge", "this process may make bridge networks"),
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
                    "`fleetbox up --network bridge` prints the command to run with sudo; the user network needs no rights"
                }
                _ => {
                    "`sudo modprobe tun` for `--network bridge`; the user network needs none of it"
                }
            },
        ),
    }
}

/// Needed by guests that run VMs themselves.
fn nested() -> Check {
    if fleetbox::nested_virt_supported() {
        return good("nested", "guests have a /dev/kvm of their own");
    }
    bad(
        "nested",
        Verdict::Warn,
        "guests have no /dev/kvm of their own",
        "for VMs in guests, load the KVM module with nested virtualisation: `sudo modprobe -r kvm_intel && sudo \
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
