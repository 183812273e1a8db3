//! `doctor`: whether VMs can run here, a line for each thing they need, and what to do about what
//! is missing.

use std::path::Path;

use fleetbox::images::{CATALOGUE_VARIABLE, Images};
use fleetbox::store::Store;
use fleetbox::{DEFAULT_MEMORY, Result, Size, VmState, preflight};
use nix::sys::resource::{Resource, getrlimit};
use nix::sys::statvfs::statvfs;
use serde::Serialize;

use super::FAILURE;
use super::output::Context;

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

pub(super) async fn run(context: &Context) -> Result<u8> {
    let mut checks = vec![kvm(), memory(), descriptors()];
    match context.store() {
        Ok(store) => {
            checks.push(good("state", store.home().display().to_string()));
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
    checks.push(git());
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
    if probe.hardware() {
        good("kvm", probe.to_string())
    } else {
        // Its text says what to do.
        Check {
            name: "kvm",
            verdict: Verdict::Fail,
            found: probe.to_string(),
            remedy: None,
        }
    }
}

fn memory() -> Check {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let Some(available) = available_memory(&text) else {
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
            Verdict::Fail,
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
            Verdict::Fail,
            error.to_string(),
            "delete the VM that is named by `fleetbox rm`, or use another state directory",
        ),
    }
}

/// Needed by `run PATH` and `pull-diff` only.
fn git() -> Check {
    match std::process::Command::new("git").arg("--version").output() {
        Ok(output) if output.status.success() => good(
            "git",
            String::from_utf8_lossy(&output.stdout).trim().to_owned(),
        ),
        _ => bad(
            "git",
            Verdict::Warn,
            "not found",
            "install git to ship work trees by `fleetbox run PATH`",
        ),
    }
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
        for check in [memory(), descriptors(), images(&store), git()] {
            assert_eq!(
                check.remedy.is_some(),
                check.verdict != Verdict::Ok,
                "{check:?}"
            );
        }
    }
}
