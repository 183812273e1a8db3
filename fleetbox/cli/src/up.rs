//! `up`.

use fleetbox::names::{Name, Reference};
use fleetbox::{Cluster, Resolution, Result, Vm};

use crate::args::{Machine, Up};
use crate::exit::{FAILURE, REFUSED};
use crate::machine::{self, UserData};
use crate::output::{Context, complain};
use crate::progress::Display;
use crate::{outcome, ssh_config};

pub(crate) async fn run(context: &Context, mut up: Up) -> Result<u8> {
    let user_data = match machine::check(&up.machine) {
        Ok(user_data) => user_data,
        Err(error) => {
            complain(error);
            return Ok(REFUSED);
        }
    };
    if let Some(name) = up.name.take() {
        return named(context, &name, &up, &user_data).await;
    }
    let name = machine::free_name(context).await?;
    let status = named(context, &name.clone().into(), &up, &user_data).await?;
    if status == 0 {
        context.answer(name);
    }
    Ok(status)
}

/// Decides whether the name means a cluster or one VM.
async fn named(context: &Context, name: &Reference, up: &Up, user_data: &UserData) -> Result<u8> {
    if let Some(count) = up.count {
        if name.cluster().is_some() {
            complain(
                "-n creates a cluster, but CLUSTER/NAME names a single VM; use the cluster's name",
            );
            return Ok(REFUSED);
        }
        return cluster(context, name.name(), &up.machine, user_data, Some(count)).await;
    }
    let is_running = if name.cluster().is_some() {
        is_running(context, name).await?
    } else {
        match context.fleet().resolve(name.as_str()).await? {
            Resolution::Vm(vm) => vm.is_running()?,
            Resolution::Nothing => false,
            Resolution::Cluster(members) => {
                if let (Some(option), Some(member)) = (option_for_one(up), members.first()) {
                    complain(format_args!(
                        "{option} is for one VM, and {name} is a cluster; use it with each member: \
                         `fleetbox up {} {option}`",
                        member.reference()
                    ));
                    return Ok(REFUSED);
                }
                return cluster(context, name.name(), &up.machine, user_data, None).await;
            }
        }
    };
    // A VM that runs may have published these ports itself.
    if !is_running {
        machine::check_ports(&up.machine)?;
    }
    if up.no_start {
        create(context, name, up, user_data).await
    } else {
        start(context, name, up, user_data).await
    }
}

/// Whether a VM exists and runs.
async fn is_running(context: &Context, name: &Reference) -> Result<bool> {
    match context.fleet().find(name.as_str()).await {
        Ok(vm) => Ok(vm.is_running()?),
        Err(fleetbox::Error::NoVm { .. } | fleetbox::Error::NoMember { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}

/// An option that only one VM can have, if one is given.
fn option_for_one(up: &Up) -> Option<&'static str> {
    if up.no_start {
        Some("--no-start")
    } else if !up.machine.publish.is_empty() {
        Some("--publish")
    } else {
        None
    }
}

/// Creates a VM without starting it.
async fn create(context: &Context, name: &Reference, up: &Up, user_data: &UserData) -> Result<u8> {
    let display = Display::new(context, &format!("creating {name}"));
    let created = machine::builder(context, name, &up.machine, user_data)
        .detached()
        .progress(display.progress())
        .create()
        .await;
    drop(display);
    let created = created?;
    ssh_config::refresh(context);
    let (what, result) = if created {
        ("was created", "created")
    } else {
        ("exists already", "exists")
    };
    outcome::print_changed(context, &[(name.clone(), result)]).await?;
    context.tell(format_args!(
        "{name} {what}; start it with `fleetbox up {name}`"
    ));
    Ok(0)
}

/// Starts a VM, and creates it first if it does not exist.
async fn start(context: &Context, name: &Reference, up: &Up, user_data: &UserData) -> Result<u8> {
    let display = Display::new(context, &format!("starting {name}"));
    let started = machine::builder(context, name, &up.machine, user_data)
        .detached()
        .progress(display.progress())
        .start()
        .await;
    drop(display);
    let vm = match started {
        Ok(vm) => vm,
        Err(error) => return machine::failed(context, name, error, FAILURE).await,
    };
    let name = vm.reference();
    ssh_config::refresh(context);
    if let Err(error) = machine::publish(context, &vm, &up.machine).await {
        complain(error);
        complain(format_args!(
            "{name} is running; publish another port with `fleetbox up {name} --publish HOST:GUEST`, or \
             stop it with `fleetbox down {name}`"
        ));
        return Ok(FAILURE);
    }
    outcome::print_changed(context, &[(name.clone(), result(&vm))]).await?;
    let already = if vm.was_running() { " already" } else { "" };
    context.tell(format_args!(
        "{name} is running{already}; log in with `fleetbox ssh {name}`"
    ));
    if !vm.was_running() {
        context.note(vm.timings());
    }
    Ok(0)
}

/// The result of a start, for JSON.
fn result(vm: &Vm) -> &'static str {
    if vm.was_running() {
        "already-running"
    } else {
        "running"
    }
}

/// Starts the members of a cluster: `count` of them, or those that exist.
async fn cluster(
    context: &Context,
    name: &Name,
    machine: &Machine,
    user_data: &UserData,
    count: Option<u32>,
) -> Result<u8> {
    let display = Display::new(context, &format!("starting cluster {name}"));
    let mut builder = Cluster::builder(name.as_str())
        .detached()
        .each(|vm| machine::configure(vm, machine, user_data))
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
        context.tell(format_args!("{} is running at {}", vm.reference(), vm.ip()));
    }
    let changed: Vec<_> = (&cluster)
        .into_iter()
        .map(|vm| (vm.reference(), result(vm)))
        .collect();
    outcome::print_changed(context, &changed).await?;
    context.note(cluster.timings());
    Ok(0)
}
