//! Commands about VMs as wholes: `ls`, `show`, `down`, `restart`, `kill`, `set`, `rm`, `prune`.

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fleetbox::names::{Name, Reference};
use fleetbox::progress::Progress;
use fleetbox::store::now;
use fleetbox::{Cluster, Error, Result, Stopped, Vm, VmBuilder, VmInfo, VmState};
use futures::future::join_all;
use serde::Serialize;

use crate::args::{Down, Kill, Prune, Restart, Rm, Set, Signal, Which};
use crate::output::{Context, colours, complain};
use crate::progress::Display;
use crate::{FAILURE, ask, ssh_config, sudo, table};

/// How long a press of the power button stays for a guest that is quick, or a worker that objects.
const PRESSED: Duration = Duration::from_millis(500);

/// So long that no guest is killed for being slow.
const FOREVER: Duration = Duration::from_secs(10 * 365 * 86400);

pub(crate) async fn ls(context: &Context) -> Result<u8> {
    let vms = fleetbox::list(context.home()).await?;
    if context.json {
        context.say_json(&vms)?;
        return Ok(0);
    }
    let rows = vms
        .into_iter()
        .map(|vm| {
            Ok([
                // So that no other VM is meant by what is shown.
                reference(&vm)?.to_string(),
                vm.state.to_string(),
                vm.image,
                vm.cpus.to_string(),
                vm.memory.to_string(),
                vm.disk.to_string(),
                vm.ip.to_string(),
                table::age(now().saturating_sub(vm.created)),
            ])
        })
        .collect::<Result<Vec<_>>>()?;
    let head = [
        "NAME", "STATE", "IMAGE", "CPUS", "MEMORY", "DISK", "IP", "AGE",
    ];
    context.say(table::render(head, &rows, colours()));
    Ok(0)
}

/// Bytes that a VM's disk takes on this host.
pub(crate) async fn disk_used(context: &Context, name: &Reference) -> Result<u64> {
    let vm = fleetbox::find(context.home(), name.as_str()).await?;
    Ok(allocated(&vm.paths().disk_layer()))
}

/// Bytes that a file takes on its file system; 0 if it cannot be looked at.
pub(crate) fn allocated(path: &std::path::Path) -> u64 {
    use std::os::unix::fs::MetadataExt as _;
    std::fs::metadata(path).map_or(0, |metadata| metadata.blocks().saturating_mul(512))
}

/// The VM of that name, or `CLUSTER/NAME`, in a listing.
pub(crate) async fn find(context: &Context, name: impl AsRef<str>) -> Result<VmInfo> {
    let vm = fleetbox::find(context.home(), name.as_ref()).await?;
    fleetbox::list(context.home())
        .await?
        .into_iter()
        .find(|info| info.name == vm.name().as_str() && info.cluster == vm.cluster().as_str())
        .ok_or_else(|| Error::NoVm {
            name: vm.name().clone(),
        })
}

/// What a listed VM is called among those of all clusters.
pub(crate) fn reference(vm: &VmInfo) -> Result<Reference> {
    Ok(Reference::new(vm.cluster.parse()?, vm.name.parse()?))
}

/// The VMs that `name` means: the one of that name, or else all members of the cluster. Each is
/// called so that no other VM is meant.
async fn meant(context: &Context, name: &Reference) -> Result<Vec<Reference>> {
    let none = match fleetbox::find(context.home(), name.as_str()).await {
        Ok(vm) => return Ok(vec![vm.reference()]),
        Err(error @ Error::NoVm { .. }) => error,
        Err(error) => return Err(error),
    };
    let members = context.store()?.cluster(name.name()).vms()?;
    if members.is_empty() {
        return Err(none);
    }
    Ok(members.iter().map(|vm| vm.reference()).collect())
}

/// As [`meant`] for each name, each VM once. Names of nothing are complained about and make the
/// status that of a failure.
async fn all_meant(context: &Context, names: &[Reference]) -> (Vec<Reference>, u8) {
    let mut status = 0;
    let mut all = Vec::new();
    for name in names {
        match meant(context, name).await {
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

async fn which(context: &Context, which: &Which) -> Result<(Vec<Reference>, u8)> {
    if !which.all {
        return Ok(all_meant(context, &which.names).await);
    }
    let mut names = Vec::new();
    let mut of_tests = 0;
    for vm in fleetbox::list(context.home()).await? {
        match vm.state {
            VmState::Running if vm.ephemeral => of_tests += 1,
            VmState::Running => names.push(reference(&vm)?),
            _ => {}
        }
    }
    if of_tests > 0 {
        context.note(format_args!(
            "VMs of running tests and of `run --rm` are left alone ({of_tests}); name them if you mean them"
        ));
    }
    Ok((names, 0))
}

/// What became of a VM that is there, with what `ls` says of it.
#[derive(Debug, Serialize)]
struct Changed {
    #[serde(flatten)]
    vm: VmInfo,
    result: &'static str,
}

/// As JSON, if that was asked for, what became of VMs and how they are now.
pub(crate) async fn say_changed(
    context: &Context,
    changed: &[(Reference, &'static str)],
) -> Result<()> {
    if !context.json {
        return Ok(());
    }
    let mut vms = Vec::new();
    for (name, result) in changed {
        vms.push(Changed {
            vm: find(context, name).await?,
            result,
        });
    }
    context.say_json(&vms)
}

/// What became of a VM.
#[derive(Debug, Serialize)]
struct Outcome {
    name: String,
    cluster: String,
    result: &'static str,
    #[serde(skip)]
    text: String,
}

impl Outcome {
    fn new(vm: &Reference, result: &'static str, text: impl Into<String>) -> Self {
        Self {
            name: vm.name().to_string(),
            cluster: cluster_of(vm).to_string(),
            result,
            text: text.into(),
        }
    }
}

/// Does `work` for each of `all` at once, and reports what became of the VMs as it comes.
async fn for_each<T, F: Future<Output = Result<Vec<Outcome>>>>(
    context: &Context,
    display: Option<&Display>,
    (all, mut status): (Vec<T>, u8),
    work: impl Fn(T) -> F,
) -> Result<u8> {
    let outcomes = join_all(all.into_iter().map(|each| async {
        let outcomes = work(each).await;
        let print = || match &outcomes {
            Ok(outcomes) => outcomes.iter().for_each(|vm| context.tell(&vm.text)),
            Err(error) => sudo::complain(context.home(), error),
        };
        match display {
            Some(display) => display.aside(print),
            None => print(),
        }
        outcomes
    }))
    .await;
    if outcomes.iter().any(Result::is_err) {
        status = FAILURE;
    }
    if context.json {
        let outcomes: Vec<_> = outcomes.into_iter().flatten().flatten().collect();
        context.say_json(&outcomes)?;
    }
    Ok(status)
}

pub(crate) async fn down(context: &Context, down: Down) -> Result<u8> {
    let limit = Duration::from_secs(if down.force { 0 } else { down.timeout });
    let names = which(context, &down.which).await?;
    // Nothing is waited for else.
    let mut running = Vec::new();
    for name in names.0.iter().filter(|_| !limit.is_zero()) {
        let vm = fleetbox::find(context.home(), name.as_str()).await;
        if vm.is_ok_and(|vm| vm.is_running().unwrap_or(false)) {
            running.push(name.clone());
        }
    }
    let display = (!running.is_empty())
        .then(|| Display::begin(context, &format!("stopping {}", these(&running))));
    let stopped = for_each(context, display.as_ref(), names, |name| async move {
        Ok(vec![stop(context, name, limit).await?])
    });
    stopped.await
}

async fn stop(context: &Context, name: Reference, limit: Duration) -> Result<Outcome> {
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

pub(crate) async fn restart(context: &Context, restart: Restart) -> Result<u8> {
    let timeout = Duration::from_secs(restart.timeout);
    let stop_limit = if restart.force {
        Duration::ZERO
    } else {
        fleetbox::STOP_DEADLINE
    };
    let (names, status) = which(context, &restart.which).await?;
    // Members of one cluster together, so that none has memory which the others wait for.
    let mut clusters: Vec<Vec<Reference>> = Vec::new();
    for name in names.iter().cloned() {
        match clusters
            .iter_mut()
            .find(|all| all[0].cluster() == name.cluster())
        {
            Some(cluster) => cluster.push(name),
            None => clusters.push(vec![name]),
        }
    }
    let restarting = format!("restarting {}", these(&names));
    let display = Display::new(context, &restarting);
    let status = for_each(context, Some(&display), (clusters, status), |names| {
        let progress = display.progress();
        async move {
            start_again(context, &names, progress, stop_limit, timeout).await?;
            let running = |name| Outcome::new(name, "running", format!("{name} is running again"));
            Ok(names.iter().map(running).collect::<Vec<_>>())
        }
    });
    let status = status.await;
    drop(display);
    status
}

/// Stops and starts one VM, or several of one cluster.
async fn start_again(
    context: &Context,
    names: &[Reference],
    progress: Arc<dyn Progress>,
    stop_limit: Duration,
    timeout: Duration,
) -> Result<()> {
    let configured = |vm: VmBuilder| {
        let vm = vm.boot_timeout(timeout).progress(Arc::clone(&progress));
        match context.home() {
            Some(home) => vm.home(home),
            None => vm,
        }
    };
    match names {
        [] => {}
        [name] => {
            let vm = Vm::builder(name.as_str()).detached();
            configured(vm).restart(stop_limit).await?;
        }
        [name, ..] => {
            let cluster = cluster_of(name);
            let mut builder = Cluster::builder(cluster.as_str())
                .detached()
                .each(configured);
            for name in names {
                builder = builder.member(name.name().as_str(), |vm| vm);
            }
            builder.restart(stop_limit).await?;
        }
    }
    Ok(())
}

pub(crate) async fn kill(context: &Context, kill: Kill) -> Result<u8> {
    let names = which(context, &kill.which).await?;
    for_each(context, None, names, |name| async move {
        let outcome = match kill.signal {
            Signal::Kill => stop(context, name, Duration::ZERO).await,
            Signal::PowerButton => press(context, name).await,
        };
        Ok(vec![outcome?])
    })
    .await
}

/// Presses the power button. The worker sees it through, whoever waits for that.
async fn press(context: &Context, name: Reference) -> Result<Outcome> {
    match tokio::time::timeout(PRESSED, stop(context, name.clone(), FOREVER)).await {
        Ok(outcome) => outcome,
        Err(_) => Ok(Outcome::new(
            &name,
            "signalled",
            format!("the power button of {name} was pressed"),
        )),
    }
}

pub(crate) async fn set(context: &Context, set: Set) -> Result<u8> {
    let change = fleetbox::Resize {
        cpus: set.cpus,
        memory: set.memory,
    };
    let vm = fleetbox::resize(context.home(), set.name.as_str(), change).await?;
    let (cpus, memory) = (vm.cpus, vm.memory);
    let vm = Reference::new(vm.cluster, vm.name);
    say_changed(context, &[(vm.clone(), "changed")]).await?;
    context.tell(format_args!(
        "{vm} has {cpus} vCPUs and {memory} of memory; start it with `fleetbox up {vm}`"
    ));
    Ok(0)
}

pub(crate) async fn rm(context: &Context, rm: Rm) -> Result<u8> {
    let (mut names, mut status) = all_meant(context, &rm.names).await;
    let what = format!("Delete {} and what is on its disk?", list(&names));
    if !names.is_empty() && !ask::may(&what, rm.force) {
        context.note("nothing was deleted");
        (names, status) = (Vec::new(), FAILURE);
    }
    status = status.max(remove(context, &names).await?);
    Ok(status)
}

/// Deletes one after another: the last member of a cluster takes its directory along.
async fn remove(context: &Context, names: &[Reference]) -> Result<u8> {
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
    if !names.is_empty() {
        ssh_config::refresh(context);
    }
    Ok(status)
}

pub(crate) async fn prune(context: &Context, prune: Prune) -> Result<u8> {
    let mut names = Vec::new();
    for vm in fleetbox::list(context.home()).await? {
        if vm.unused {
            names.push(reference(&vm)?);
        }
    }
    if prune.dry_run {
        if context.json {
            let outcome = |name| Outcome::new(name, "would-be-deleted", "");
            context.say_json(&names.iter().map(outcome).collect::<Vec<_>>())?;
            return Ok(0);
        }
        for name in &names {
            context.say(format_args!("{name} would be deleted"));
        }
        return Ok(0);
    }
    if !names.is_empty() {
        let what = format!("Delete {} and what is on its disk?", list(&names));
        if !ask::may(&what, prune.force) {
            context.note("nothing was deleted");
            if context.json {
                context.say_json(&[(); 0])?;
            }
            return Ok(FAILURE);
        }
    }
    let mut outcomes = Vec::new();
    // What has stopped since is not what was shown.
    for name in fleetbox::prune_only(context.home(), &names).await? {
        let name: Reference = name.parse()?;
        let name = Reference::new(cluster_of(&name).clone(), name.name().clone());
        let outcome = Outcome::new(&name, "deleted", format!("{name} is deleted"));
        context.tell(&outcome.text);
        outcomes.push(outcome);
    }
    ssh_config::refresh(context);
    if outcomes.is_empty() {
        context.tell("there was nothing to delete");
    }
    if context.json {
        context.say_json(&outcomes)?;
    }
    Ok(0)
}

/// The cluster of a VM: one without is the only member of one of its own name.
fn cluster_of(vm: &Reference) -> &Name {
    vm.cluster().unwrap_or(vm.name())
}

/// Names for a line, unless they are too many for it.
fn these(names: &[Reference]) -> String {
    match names.len() {
        0..=3 => list(names),
        many => format!("{many} VMs"),
    }
}

/// `a`, `a and b`, `a, b and c`.
fn list(names: &[impl std::fmt::Display]) -> String {
    match names {
        [] => String::new(),
        [one] => one.to_string(),
        [firsts @ .., last] => {
            let firsts: Vec<_> = firsts.iter().map(ToString::to_string).collect();
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

    #[tokio::test]
    async fn a_name_is_a_vm_or_else_a_cluster() {
        let dir = tempfile::tempdir().unwrap();
        let context = Context {
            home: Some(dir.path().to_owned()),
            quiet: true,
            json: false,
        };
        let store = context.store().unwrap();
        for vm in ["web/web", "node/node-1", "node/node-2", "kept/node-1"] {
            let path = store.home().join("clusters").join(vm);
            std::fs::create_dir_all(&path).unwrap();
            std::fs::write(path.join("vm.json"), "{}").unwrap();
        }
        let meant = async |name: &str| {
            let found = meant(&context, &name.parse().unwrap()).await;
            found.map(|names| {
                names
                    .iter()
                    .map(|vm| vm.as_str().to_owned())
                    .collect::<Vec<_>>()
            })
        };
        assert_eq!(meant("web").await.unwrap(), ["web/web"]);
        assert_eq!(meant("node-2").await.unwrap(), ["node/node-2"]);
        assert_eq!(meant("kept/node-1").await.unwrap(), ["kept/node-1"]);
        assert_eq!(meant("node").await.unwrap(), ["node/node-1", "node/node-2"]);
        assert!(matches!(meant("nod").await, Err(Error::NoVm { .. })));
        assert!(matches!(
            meant("node-1").await,
            Err(Error::Ambiguous { .. })
        ));
        assert!(matches!(
            meant("nod/node-1").await,
            Err(Error::NoMember { .. })
        ));
        let names = ["node", "node-2", "none"].map(|n| n.parse().unwrap());
        let (all, status) = all_meant(&context, &names).await;
        assert_eq!((all.len(), status), (2, FAILURE));
    }
}
