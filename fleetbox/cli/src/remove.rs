//! Commands that delete VMs: `rm`, `prune`.

use fleetbox::Result;
use fleetbox::names::Reference;
use fleetbox::store::VmDir;

use crate::args::{Prune, Rm};
use crate::exit::FAILURE;
use crate::outcome::Outcome;
use crate::output::{Context, complain};
use crate::{confirm, select, ssh_config};

pub(crate) async fn rm(context: &Context, rm: Rm) -> Result<u8> {
    let (names, mut status) = select::all(context, &rm.names).await;
    // Another VM may have one of the names when the question has been answered.
    let (mut vms, found) = find(context, &names).await;
    status = status.max(found);
    let what = format!(
        "Delete {} and all data on its disk?",
        select::enumerate(&names)
    );
    if !vms.is_empty() && !confirm::confirm(&what, rm.force) {
        context.note("nothing was deleted");
        (vms, status) = (Vec::new(), FAILURE);
    }
    status = status.max(remove(context, &vms).await?);
    Ok(status)
}

/// Deletes one VM after another, because deleting the last member of a cluster also deletes the
/// cluster's directory.
async fn remove(context: &Context, vms: &[VmDir]) -> Result<u8> {
    let mut status = 0;
    let mut outcomes = Vec::new();
    for vm in vms {
        match context.fleet().remove_found(vm).await {
            Ok(()) => {
                let name = vm.reference();
                let outcome = Outcome::new(&name, "deleted", format!("deleted {name}"));
                context.tell(outcome.text());
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
    if !vms.is_empty() {
        ssh_config::refresh(context);
    }
    Ok(status)
}

/// The VMs of these names. Those that are gone meanwhile are reported, and make the exit status a failure.
async fn find(context: &Context, names: &[Reference]) -> (Vec<VmDir>, u8) {
    let mut status = 0;
    let mut vms = Vec::new();
    for name in names {
        match context.fleet().find(name.as_str()).await {
            Ok(vm) => vms.push(vm),
            Err(error) => {
                complain(error);
                status = FAILURE;
            }
        }
    }
    (vms, status)
}

pub(crate) async fn prune(context: &Context, prune: Prune) -> Result<u8> {
    let mut vms = Vec::new();
    for vm in context.fleet().list().await? {
        if vm.unused {
            let name = select::reference(&vm)?;
            // Otherwise another process has deleted it.
            vms.extend(context.fleet().find(name.as_str()).await.ok());
        }
    }
    let names: Vec<_> = vms.iter().map(VmDir::reference).collect();
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
        let what = format!(
            "Delete {} and all data on its disk?",
            select::enumerate(&names)
        );
        if !confirm::confirm(&what, prune.force) {
            context.note("nothing was deleted");
            if context.json {
                context.say_json(&[(); 0])?;
            }
            return Ok(FAILURE);
        }
    }
    let mut outcomes = Vec::new();
    // Only what was shown: other VMs may have stopped since.
    for name in context.fleet().prune_only(&vms).await? {
        let name: Reference = name.parse()?;
        let name = Reference::new(select::cluster_of(&name).clone(), name.name().clone());
        let outcome = Outcome::new(&name, "deleted", format!("deleted {name}"));
        context.tell(outcome.text());
        outcomes.push(outcome);
    }
    ssh_config::refresh(context);
    if outcomes.is_empty() {
        context.tell("nothing to delete");
    }
    if context.json {
        context.say_json(&outcomes)?;
    }
    Ok(0)
}
