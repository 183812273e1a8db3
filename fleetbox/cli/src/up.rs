//! `up`.

use std::collections::BTreeSet;
use std::fmt::Display;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::Duration;

use fleetbox::names::{Name, Reference};
use fleetbox::seed::SeedError;
use fleetbox::{Cluster, Error, ProcessError, Result, Vm, VmBuilder};

use crate::args::{Machine, Up};
use crate::output::{Context, complain};
use crate::progress;
use crate::{FAILURE, REFUSED, ssh_config, vms};

/// How often another name is made up if there is a VM of that name.
const ATTEMPTS: usize = 100;

pub(crate) async fn run(context: &Context, mut up: Up) -> Result<u8> {
    let user_data = match check(&up.machine) {
        Ok(user_data) => user_data,
        Err(error) => {
            complain(error);
            return Ok(REFUSED);
        }
    };
    if let Some(name) = up.name.take() {
        return named(context, name, up, &user_data).await;
    }
    let name = made_up(context)?;
    let status = named(context, name.clone().into(), up, &user_data).await?;
    if status == 0 {
        context.answer(name);
    }
    Ok(status)
}

async fn named(context: &Context, name: Reference, up: Up, user_data: &UserData) -> Result<u8> {
    let bare = name.cluster().is_none().then(|| name.name());
    if let (Some(_), None) = (up.count, bare) {
        complain(
            "-n makes a cluster, and CLUSTER/NAME is one of its members; give the cluster's name",
        );
        return Ok(REFUSED);
    }
    if let Some(name) = bare {
        let store = context.store()?;
        let members = store.cluster(name).vms()?;
        let is_cluster = store.find(name)?.is_empty() && !members.is_empty();
        let given = match (up.no_start, up.machine.publish.is_empty()) {
            (true, _) => Some("--no-start"),
            (false, false) => Some("--publish"),
            (false, true) => None,
        };
        if let (true, Some(given), Some(member)) = (is_cluster, given, members.first()) {
            complain(format_args!(
                "{given} is for one VM, and {name} is a cluster; give it to its members one by one: \
                 `fleetbox up {} {given}`",
                member.reference()
            ));
            return Ok(REFUSED);
        }
        if up.count.is_some() || is_cluster {
            return cluster(context, name, &up.machine, user_data, up.count).await;
        }
    }
    if !up.machine.publish.is_empty() && !runs(context, &name).await? {
        check_ports(&up.machine)?;
    }
    let display = progress::Display::new(context, &format!("starting {name}"));
    let builder = builder(context, &name, &up.machine, user_data)
        .detached()
        .progress(display.progress());
    if up.no_start {
        let created = builder.create().await;
        drop(display);
        let created = created?;
        ssh_config::refresh(context);
        let (exists, result) = if created {
            ("exists", "created")
        } else {
            ("exists already", "exists")
        };
        vms::say_changed(context, &[(name.clone(), result)]).await?;
        context.tell(format_args!(
            "{name} {exists}; `fleetbox up {name}` starts it"
        ));
        return Ok(0);
    }
    let started = builder.start().await;
    drop(display);
    let vm = match started {
        Ok(vm) => vm,
        Err(error) => return failed(context, &name, error, FAILURE).await,
    };
    let name = vm.reference();
    ssh_config::refresh(context);
    remark(context, &vm);
    if let Err(error) = publish(context, &vm, &up.machine).await {
        complain(error);
        complain(format_args!(
            "{name} runs all the same; `fleetbox up {name} --publish HOST:GUEST` publishes a port of it, \
             `fleetbox down {name}` stops it"
        ));
        return Ok(FAILURE);
    }
    vms::say_changed(context, &[(name.clone(), result(&vm))]).await?;
    if vm.was_running() {
        context.tell(format_args!(
            "{name} is running already; `fleetbox ssh {name}` logs in"
        ));
    } else {
        context.tell(format_args!(
            "{name} is running; `fleetbox ssh {name}` logs in"
        ));
        context.note(vm.timings());
    }
    Ok(0)
}

/// The end of a start that has failed: where it was the machine that did, what is left of the VM is said
/// after the error, which says so itself else.
pub(crate) async fn failed(
    context: &Context,
    name: &Reference,
    error: Error,
    status: u8,
) -> Result<u8> {
    let machine = matches!(error, Error::Process(ProcessError::Failed(_)));
    if !machine || fleetbox::find(context.home(), name.as_str()).await.is_err() {
        return Err(error);
    }
    complain(error);
    complain(format_args!(
        "{name} is left with its disk: `fleetbox logs {name}` shows all of its console, `fleetbox up {name}` \
         starts it again, `fleetbox rm {name}` deletes it"
    ));
    Ok(status)
}

/// True for a VM that exists and runs, and so may have these ports itself.
async fn runs(context: &Context, name: &Reference) -> Result<bool> {
    match fleetbox::find(context.home(), name.as_str()).await {
        Ok(vm) => Ok(vm.is_running()?),
        Err(Error::NoVm { .. } | Error::NoMember { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Finds out, before anything is done, whether the ports of this host can be had.
pub(crate) fn check_ports(machine: &Machine) -> Result<()> {
    for (host, _) in &machine.publish {
        TcpListener::bind((Ipv4Addr::LOCALHOST, *host))
            .map_err(|error| unpublishable(*host, error))?;
    }
    Ok(())
}

/// Opens the ports that are to lead to the VM.
pub(crate) async fn publish(context: &Context, vm: &Vm, machine: &Machine) -> Result<()> {
    for (host, guest) in &machine.publish {
        let address = vm.publish(*host, *guest).await?;
        context.note(format_args!(
            "{address} is port {guest} of {}",
            vm.reference()
        ));
    }
    Ok(())
}

/// The documents that are given to cloud-init. They are read once: a pipe has nothing more to say.
pub(crate) struct UserData(Vec<String>);

impl UserData {
    fn read(machine: &Machine) -> Result<Self> {
        let read = |path: &PathBuf| {
            std::fs::read_to_string(path).map_err(|error| in_file(path, error.to_string()))
        };
        let documents: Result<_> = machine.user_data.iter().map(read).collect();
        documents.map(Self)
    }
}

/// What a start came to, as JSON has it.
fn result(vm: &Vm) -> &'static str {
    if vm.was_running() {
        "already-running"
    } else {
        "running"
    }
}

/// What is wrong with a document, and which it is.
fn in_file(path: &Path, why: impl Display) -> Error {
    let why = format!("{}: {why}", path.display());
    SeedError::UserData { why }.into()
}

/// Checks the options beyond what the parser of the command line does, before anything is created: what
/// is wrong is a usage error. Returns the documents that it has read.
pub(crate) fn check(machine: &Machine) -> Result<UserData> {
    let documents = UserData::read(machine)?;
    for (path, document) in machine.user_data.iter().zip(&documents.0) {
        let checked = Vm::builder("any").user_data(document).check();
        checked.map_err(|error| match error {
            Error::Seed(SeedError::UserData { why }) => in_file(path, why),
            error => in_file(path, error),
        })?;
    }
    let mut hosts = BTreeSet::new();
    if let Some((host, _)) = machine
        .publish
        .iter()
        .find(|(host, _)| !hosts.insert(*host))
    {
        return Err(unpublishable(*host, "it is given twice"));
    }
    configured(Vm::builder("any"), machine, &documents).check()?;
    Ok(documents)
}

fn unpublishable(host: u16, why: impl Display) -> Error {
    Error::Io {
        action: "publish by a port of this host",
        source: std::io::Error::other(format!(
            "{host}: {why}; choose another by --publish HOST:GUEST"
        )),
    }
}

/// Says which options were given in vain.
fn remark(context: &Context, vm: &Vm) {
    if !vm.ignored_options().is_empty() {
        context.note(format_args!(
            "{} exists and keeps its {}; `fleetbox set` changes a stopped VM, `fleetbox rm {}` \
             deletes it so that it can be created anew",
            vm.reference(),
            vm.ignored_options().join(", "),
            vm.reference()
        ));
    }
}

/// Starts the members of a cluster: so many, or those there are.
async fn cluster(
    context: &Context,
    name: &Name,
    machine: &Machine,
    user_data: &UserData,
    count: Option<u32>,
) -> Result<u8> {
    let display = progress::Display::new(context, &format!("starting cluster {name}"));
    let mut builder = Cluster::builder(name.as_str())
        .detached()
        .each(|vm| configured(vm, machine, user_data))
        .progress(display.progress());
    if let Some(home) = context.home() {
        builder = builder.home(home);
    }
    if let Some(count) = count {
        builder = builder.count(count);
    }
    let started = builder.start().await;
    drop(display);
    let cluster = started?;
    ssh_config::refresh(context);
    for vm in &cluster {
        remark(context, vm);
        context.tell(format_args!(
            "{} is running, its address is {}",
            vm.reference(),
            vm.ip()
        ));
    }
    let changed = (&cluster)
        .into_iter()
        .map(|vm| (vm.reference(), result(vm)));
    let changed: Vec<_> = changed.collect();
    vms::say_changed(context, &changed).await?;
    context.note(cluster.timings());
    Ok(0)
}

/// A description of a VM by the options for one.
pub(crate) fn builder(
    context: &Context,
    name: impl AsRef<str>,
    machine: &Machine,
    user_data: &UserData,
) -> VmBuilder {
    let builder = configured(Vm::builder(name.as_ref()), machine, user_data);
    match context.home() {
        Some(home) => builder.home(home),
        None => builder,
    }
}

fn configured(mut builder: VmBuilder, machine: &Machine, user_data: &UserData) -> VmBuilder {
    for document in &user_data.0 {
        builder = builder.user_data(document);
    }
    for ready in &machine.wait {
        builder = builder.wait_for(ready.clone());
    }
    builder = builder.boot_timeout(Duration::from_secs(machine.timeout));
    if let Some(image) = &machine.image {
        builder = builder.image(image);
    }
    if let Some(cpus) = machine.cpus {
        builder = builder.cpus(cpus);
    }
    if let Some(memory) = machine.memory {
        builder = builder.memory(memory);
    }
    if let Some(disk) = machine.disk {
        builder = builder.disk(disk);
    }
    if let Some(network) = machine.network {
        builder = builder.network(network);
    }
    for fixture in &machine.fixture {
        builder = builder.fixture(fixture.host(), fixture.guest());
    }
    builder
}

/// A name that no VM has.
pub(crate) fn made_up(context: &Context) -> Result<Name> {
    let store = context.store()?;
    for _ in 0..ATTEMPTS {
        let name = Name::made_up();
        if store.find(&name)?.is_empty() && store.cluster(&name).vms()?.is_empty() {
            return Ok(name);
        }
    }
    Err(Error::Io {
        action: "make up a name that is free; give one",
        source: std::io::ErrorKind::AlreadyExists.into(),
    })
}
