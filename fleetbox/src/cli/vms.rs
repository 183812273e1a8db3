//! Commands about VMs as wholes: `ls`, `show`, `down`, `restart`, `kill`, `set`, `rm`, `prune`.

use std::future::Future;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use fleetbox::names::Name;
use fleetbox::store::{Store, VmDir, now};
use fleetbox::{Error, Result, Size, Stopped, Vm, VmInfo, VmState};
use futures::future::join_all;
use serde::Serialize;

use super::args::{Down, Kill, Prune, Restart, Rm, Set, Signal, Which};
use super::output::{Context, colours, complain};
use super::progress::Display;
use super::{FAILURE, ask, ssh_config, table};

/// How long `kill --signal TERM` stays for a guest that is quick, or a worker that objects.
const PRESSED: Duration = Duration::from_millis(500);

/// So long that no guest is killed for being slow.
const FOREVER: Duration = Duration::from_secs(10 * 365 * 86400);

pub(super) async fn ls(context: &Context) -> Result<u8> {
    let vms = fleetbox::list(context.home()).await?;
    if context.json {
        context.say_json(&vms)?;
        return Ok(0);
    }
    let rows: Vec<_> = vms
        .into_iter()
        .map(|vm| {
            [
                vm.name,
                vm.state.to_string(),
                vm.image,
                vm.cpus.to_string(),
                vm.memory.to_string(),
                vm.disk.to_string(),
                vm.ip.to_string(),
                table::age(now().saturating_sub(vm.created)),
            ]
        })
        .collect();
    let head = [
        "NAME", "STATE", "IMAGE", "CPUS", "MEMORY", "DISK", "IP", "AGE",
    ];
    context.say(table::render(head, &rows, colours()));
    Ok(0)
}

/// All that is known of a VM.
#[derive(Debug, Serialize)]
struct Shown {
    #[serde(flatten)]
    info: VmInfo,
    cluster: String,
    image_file: PathBuf,
    image_sha256: Option<String>,
    mac: String,
    user: String,
    host_key: String,
    directory: PathBuf,
    console_log: PathBuf,
    /// Bytes that the VM's disk takes on this host.
    disk_used: u64,
}

pub(super) async fn show(context: &Context, name: &Name) -> Result<u8> {
    let info = find(context, name).await?;
    let vm = member(&context.store()?, name)?;
    let record = vm.record()?;
    let paths = vm.paths();
    let shown = Shown {
        info,
        cluster: record.cluster.to_string(),
        image_file: record.image.path,
        image_sha256: record.image.sha256,
        mac: record.mac.to_string(),
        user: record.ssh_user,
        host_key: record.host_key,
        directory: paths.dir().to_owned(),
        console_log: paths.console_log(),
        disk_used: allocated(&paths.disk_layer()),
    };
    if context.json {
        context.say_json(&shown)?;
        return Ok(0);
    }
    let info = &shown.info;
    let age = table::age(now().saturating_sub(info.created));
    let used = Size::mib(shown.disk_used.div_ceil(1 << 20));
    for (what, value) in [
        ("name", info.name.clone()),
        ("state", info.state.to_string()),
        ("cluster", shown.cluster.clone()),
        ("image", info.image.clone()),
        ("cpus", info.cpus.to_string()),
        ("memory", info.memory.to_string()),
        ("disk", format!("{} ({used} used on this host)", info.disk)),
        ("ip", info.ip.to_string()),
        ("mac", shown.mac.clone()),
        ("user", shown.user.clone()),
        ("host key", shown.host_key.clone()),
        ("created", format!("{age} ago")),
        ("directory", shown.directory.display().to_string()),
        ("console", shown.console_log.display().to_string()),
        ("image file", shown.image_file.display().to_string()),
        (
            "image sha256",
            shown.image_sha256.clone().unwrap_or_default(),
        ),
    ] {
        if !value.is_empty() {
            context.say(format_args!("{what:14}{value}"));
        }
    }
    Ok(0)
}

/// Bytes that a VM's disk takes on this host.
pub(super) fn disk_used(context: &Context, name: &Name) -> Result<u64> {
    let vm = member(&context.store()?, name)?;
    Ok(allocated(&vm.paths().disk_layer()))
}

/// Bytes that a file takes on its file system; 0 if it cannot be looked at.
fn allocated(path: &std::path::Path) -> u64 {
    use std::os::unix::fs::MetadataExt as _;
    std::fs::metadata(path).map_or(0, |metadata| metadata.blocks().saturating_mul(512))
}

/// The VM of that name in a listing.
pub(super) async fn find(context: &Context, name: &Name) -> Result<VmInfo> {
    fleetbox::list(context.home())
        .await?
        .into_iter()
        .find(|vm| vm.name == name.as_str())
        .ok_or_else(|| Error::NoVm { name: name.clone() })
}

fn member(store: &Store, name: &Name) -> Result<VmDir> {
    store
        .find(name)?
        .into_iter()
        .next()
        .ok_or_else(|| Error::NoVm { name: name.clone() })
}

/// The VMs that `name` means: the one of that name, or else all members of the cluster.
fn meant(store: &Store, name: &Name) -> Result<Vec<Name>> {
    if !store.find(name)?.is_empty() {
        return Ok(vec![name.clone()]);
    }
    let members: Vec<_> = store
        .cluster(name)
        .vms()?
        .iter()
        .map(|vm| vm.name().clone())
        .collect();
    if members.is_empty() {
        return Err(Error::NoVm { name: name.clone() });
    }
    Ok(members)
}

/// As [`meant`] for each name, each VM once. Names of nothing are complained about and make the
/// status that of a failure.
fn all_meant(store: &Store, names: &[Name]) -> (Vec<Name>, u8) {
    let mut status = 0;
    let mut all = Vec::new();
    for name in names {
        match meant(store, name) {
            Ok(found) => {
                for vm in found {
                    if !all.contains(&vm) {
                        all.push(vm);
                    }
                }
            }
            Err(error) => {
                complain(error);
                status = FAILURE;
            }
        }
    }
    (all, status)
}

async fn which(context: &Context, which: &Which) -> Result<(Vec<Name>, u8)> {
    if !which.all {
        return Ok(all_meant(&context.store()?, &which.names));
    }
    let mut names = Vec::new();
    for vm in fleetbox::list(context.home()).await? {
        if vm.state == VmState::Running {
            names.push(Name::new(vm.name)?);
        }
    }
    Ok((names, 0))
}

/// What became of a VM.
#[derive(Debug, Serialize)]
struct Outcome {
    name: String,
    result: &'static str,
    #[serde(skip)]
    text: String,
}

impl Outcome {
    fn new(name: &Name, result: &'static str, text: impl Into<String>) -> Self {
        Self {
            name: name.to_string(),
            result,
            text: text.into(),
        }
    }
}

/// Does `work` for all of `names` at once, and reports what became of each as it comes.
async fn for_each<F: Future<Output = Result<Outcome>>>(
    context: &Context,
    (names, mut status): (Vec<Name>, u8),
    work: impl Fn(Name) -> F,
) -> Result<u8> {
    let outcomes = join_all(names.into_iter().map(|name| async {
        let outcome = work(name).await;
        match &outcome {
            Ok(outcome) => context.tell(&outcome.text),
            Err(error) => complain(error),
        }
        outcome
    }))
    .await;
    if outcomes.iter().any(Result::is_err) {
        status = FAILURE;
    }
    if context.json {
        let outcomes: Vec<_> = outcomes.into_iter().flatten().collect();
        context.say_json(&outcomes)?;
    }
    Ok(status)
}

pub(super) async fn down(context: &Context, down: Down) -> Result<u8> {
    let limit = Duration::from_secs(if down.force { 0 } else { down.timeout });
    let names = which(context, &down.which).await?;
    for_each(context, names, |name| stop(context, name, limit)).await
}

async fn stop(context: &Context, name: Name, limit: Duration) -> Result<Outcome> {
    let began = Instant::now();
    let stopped = fleetbox::stop(context.home(), name.as_str(), limit).await?;
    let took = began.elapsed().as_secs_f32();
    Ok(match stopped {
        Some(Stopped::PoweredOff) => Outcome::new(
            &name,
            "powered-off",
            format!("{name} powered off after {took:.1} s"),
        ),
        Some(Stopped::Forced) if limit.is_zero() => {
            Outcome::new(&name, "killed", format!("{name} was killed"))
        }
        Some(Stopped::Forced) => Outcome::new(
            &name,
            "killed",
            format!(
                "{name} did not power off in {} s and was killed",
                limit.as_secs()
            ),
        ),
        None => Outcome::new(&name, "not-running", format!("{name} was not running")),
    })
}

pub(super) async fn restart(context: &Context, restart: Restart) -> Result<u8> {
    let timeout = Duration::from_secs(restart.timeout);
    let stop_limit = if restart.force {
        Duration::ZERO
    } else {
        timeout
    };
    let names = which(context, &restart.which).await?;
    let display = Display::new(context, "restarting");
    let status = for_each(context, names, |name| {
        let progress = display.progress();
        async move {
            fleetbox::stop(context.home(), name.as_str(), stop_limit).await?;
            let mut builder = Vm::builder(name.as_str())
                .detached()
                .boot_timeout(timeout)
                .progress(progress);
            if let Some(home) = context.home() {
                builder = builder.home(home);
            }
            builder.start().await?;
            Ok(Outcome::new(
                &name,
                "running",
                format!("{name} is running again"),
            ))
        }
    });
    let status = status.await;
    drop(display);
    status
}

pub(super) async fn kill(context: &Context, kill: Kill) -> Result<u8> {
    let names = which(context, &kill.which).await?;
    for_each(context, names, |name| async move {
        match kill.signal {
            Signal::Kill => stop(context, name, Duration::ZERO).await,
            Signal::Term => press(context, name).await,
        }
    })
    .await
}

/// Presses the power button. The worker sees it through, whoever waits for that.
async fn press(context: &Context, name: Name) -> Result<Outcome> {
    match tokio::time::timeout(PRESSED, stop(context, name.clone(), FOREVER)).await {
        Ok(outcome) => outcome,
        Err(_) => Ok(Outcome::new(
            &name,
            "signalled",
            format!("the power button of {name} was pressed"),
        )),
    }
}

pub(super) async fn set(context: &Context, set: Set) -> Result<u8> {
    let change = fleetbox::Resize {
        cpus: set.cpus,
        memory: set.memory,
    };
    let vm = fleetbox::resize(context.home(), set.name.as_str(), change).await?;
    if context.json {
        context.say_json(&find(context, &set.name).await?)?;
    }
    context.tell(format_args!(
        "{} has {} vCPUs and {} of memory; start it with `fleetbox up {0}`",
        vm.name, vm.cpus, vm.memory
    ));
    Ok(0)
}

pub(super) async fn rm(context: &Context, rm: Rm) -> Result<u8> {
    let (names, mut status) = all_meant(&context.store()?, &rm.names);
    if names.is_empty() {
        return Ok(status);
    }
    let what = format!("Delete {} and what is on its disk?", list(&names));
    if !ask::may(&what, rm.force) {
        context.note("nothing was deleted");
        return Ok(FAILURE);
    }
    status = status.max(remove(context, &names).await?);
    Ok(status)
}

/// Deletes one after another: the last member of a cluster takes its directory along.
async fn remove(context: &Context, names: &[Name]) -> Result<u8> {
    let mut status = 0;
    let mut outcomes = Vec::new();
    for name in names {
        match fleetbox::remove(context.home(), name.as_str()).await {
            Ok(()) => {
                let outcome = Outcome::new(name, "deleted", format!("{name} is deleted"));
                context.tell(&outcome.text);
                outcomes.push(outcome);
            }
            Err(error) => {
                complain(error);
                status = FAILURE;
            }
        }
    }
    if context.json {
        context.say_json(&outcomes)?;
    }
    ssh_config::refresh(context);
    Ok(status)
}

pub(super) async fn prune(context: &Context, prune: Prune) -> Result<u8> {
    let mut names = Vec::new();
    for vm in fleetbox::list(context.home()).await? {
        // Those of running tests are not anybody else's.
        if vm.state != VmState::Running && !vm.ephemeral {
            names.push(Name::new(vm.name)?);
        }
    }
    if prune.dry_run {
        for name in &names {
            context.tell(format_args!("{name} would be deleted"));
        }
        if context.json {
            context.say_json(&names)?;
        }
        return Ok(0);
    }
    if !names.is_empty() {
        let what = format!("Delete {} and what is on its disk?", list(&names));
        if !ask::may(&what, prune.force) {
            context.note("nothing was deleted");
            return Ok(FAILURE);
        }
    }
    let pruned = fleetbox::prune(context.home()).await?;
    ssh_config::refresh(context);
    for name in &pruned {
        context.tell(format_args!("{name} is deleted"));
    }
    if pruned.is_empty() {
        context.tell("there was nothing to delete");
    }
    if context.json {
        context.say_json(&pruned)?;
    }
    Ok(0)
}

/// `a`, `a and b`, `a, b and c`.
fn list(names: &[Name]) -> String {
    match names {
        [] => String::new(),
        [one] => one.to_string(),
        [firsts @ .., last] => {
            let firsts: Vec<_> = firsts.iter().map(Name::as_str).collect();
            format!("{} and {last}", firsts.join(", "))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_listed_as_people_do() {
        let names: Vec<_> = ["a", "b", "c"].map(|n| Name::new(n).unwrap()).into();
        assert_eq!(list(&names[..1]), "a");
        assert_eq!(list(&names[..2]), "a and b");
        assert_eq!(list(&names), "a, b and c");
    }

    #[test]
    fn a_name_is_a_vm_or_else_a_cluster() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        for (cluster, vm) in [("web", "web"), ("node", "node-1"), ("node", "node-2")] {
            let path = store.cluster(&Name::new(cluster).unwrap()).path().join(vm);
            std::fs::create_dir_all(&path).unwrap();
            std::fs::write(path.join("vm.json"), "{}").unwrap();
        }
        let meant = |name: &str| {
            meant(&store, &Name::new(name).unwrap())
                .map(|names| names.iter().map(Name::to_string).collect::<Vec<_>>())
        };
        assert_eq!(meant("web").unwrap(), ["web"]);
        assert_eq!(meant("node-2").unwrap(), ["node-2"]);
        assert_eq!(meant("node").unwrap(), ["node-1", "node-2"]);
        assert!(matches!(meant("nod"), Err(Error::NoVm { .. })));
        let names = ["node", "node-1", "none"].map(|n| Name::new(n).unwrap());
        let (all, status) = all_meant(&store, &names);
        assert_eq!((all.len(), status), (2, FAILURE));
    }
}
