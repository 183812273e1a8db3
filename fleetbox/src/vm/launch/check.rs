//! Checks before anything is created.

use super::find::Member;
use crate::error::Result;
use crate::host::budget::{Budget, Want};
use crate::host::resources::{HostResources, Request};
use crate::host::{bridge, preflight};
use crate::model::names::Name;
use crate::store::Store;

/// Checks that this host can run the members at all, and returns the budget of the start.
pub(super) fn budget_of(members: &[Member]) -> Result<Budget> {
    let budget = match members.iter().find_map(|member| member.builder.budget) {
        Some(budget) => budget,
        None => Budget::from_env()?,
    };
    if members.iter().any(|member| member.builder.needs_kvm()) {
        preflight::check()?;
    }
    Ok(budget)
}

/// Checks that this process may change the host's network, if the cluster needs a bridge and has no worker that has
/// set it up.
pub(super) fn network(store: &Store, cluster: &Name, members: &[Member]) -> Result<()> {
    let dir = store.cluster(cluster);
    if dir.is_running()? {
        return Ok(());
    }
    let asked = members.iter().any(|member| member.plan.is_bridged());
    if asked || bridge::of_cluster(&dir)?.is_some() {
        bridge::permitted()?;
    }
    Ok(())
}

/// Like [`network`], except for members that run and are stopped first. With the last of them the worker ends.
pub(super) fn network_again(store: &Store, cluster: &Name, members: &[Member]) -> Result<()> {
    let dir = store.cluster(cluster);
    if bridge::of_cluster(&dir)?.is_none() {
        return Ok(());
    }
    for vm in dir.vms()? {
        let stopped = members.iter().any(|member| member.plan.name == *vm.name());
        if !stopped && vm.is_running()? {
            return Ok(());
        }
    }
    Ok(bridge::permitted()?)
}

/// The memory of the members that do not run.
pub(super) fn wants(cluster: &Name, members: &[Member]) -> Result<Vec<Want>> {
    let mut wants = Vec::new();
    for Member { plan, found, .. } in members {
        let memory = match found {
            Some(vm) if vm.is_running()? => continue,
            Some(vm) => vm.record()?.memory,
            None => plan.memory,
        };
        wants.push(Want::new(cluster.clone(), plan.name.clone(), memory));
    }
    Ok(wants)
}

/// Checks that this host has what each new member asks for. If the members will be started, it also
/// checks what the existing, stopped members need.
pub(super) fn resources(store: &Store, members: &[Member], starting: bool) -> Result<()> {
    let there = HostResources::of_host(store.home());
    for member in members {
        let Member { builder, plan, .. } = member;
        match &member.found {
            None => there.check(&builder.asked(plan))?,
            Some(vm) if starting && !vm.is_running()? => {
                there.check(&Request::of(&vm.record()?))?
            }
            Some(_) => {}
        }
    }
    Ok(())
}
