//! Removing what killed processes left.

use crate::error::Result;
use crate::host::bridge;
use crate::store::{Store, ephemeral};

/// Removes the bridges that killed processes left, if this process may; else one that may will.
pub(crate) fn sweep_bridges(store: &Store) {
    if let Err(error) = bridge::sweep(store) {
        tracing::warn!(%error, "cannot remove the bridges that killed processes left");
    }
}

/// Removes what killed processes left: half-created VMs, ephemeral ones whose worker could not
/// delete them any more, and bridges.
pub(crate) fn sweep(store: &Store) -> Result<()> {
    store.sweep()?;
    sweep_bridges(store);
    for vm in store.vms()? {
        if !ephemeral::is_ephemeral(&vm) {
            continue;
        }
        // Its creator or its worker holds the cluster's lock while it is of use.
        let cluster = store.cluster(vm.cluster());
        if let Some(lock) = cluster.try_lock()? {
            match vm.destroy() {
                Ok(()) => tracing::info!(vm = %vm.name(), "deleted an orphaned test VM"),
                // Its machine process is about to end; the next sweep finds it.
                Err(error) => tracing::debug!(vm = %vm.name(), %error, "not deleted yet"),
            }
            drop(lock);
            cluster.remove_if_unused()?;
        }
    }
    Ok(())
}
