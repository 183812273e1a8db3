//! Removing what killed processes left behind.

use crate::error::Result;
use crate::host::bridge;
use crate::store::{Store, ephemeral};

/// Removes the bridges that killed processes left behind, if this process has the rights to do so.
/// Otherwise a later process that has them will.
pub(crate) fn sweep_bridges(store: &Store) {
    if let Err(error) = bridge::sweep(store) {
        tracing::warn!(%error, "cannot remove the bridges that killed processes left behind");
    }
}

/// Removes what killed processes left behind: incomplete VMs, ephemeral VMs that their worker did
/// not get to delete, and bridges.
pub(crate) fn sweep(store: &Store) -> Result<()> {
    store.sweep()?;
    sweep_bridges(store);
    for vm in store.vms()? {
        if !ephemeral::is_ephemeral(&vm) {
            continue;
        }
        // While the VM is in use, its creator or its worker holds the cluster's lock.
        let cluster = store.cluster(vm.cluster());
        if let Some(lock) = cluster.try_lock()? {
            match vm.destroy() {
                Ok(()) => tracing::info!(vm = %vm.name(), "deleted an orphaned test VM"),
                // Its machine process is about to end; the next sweep finds it.
                Err(error) => {
                    tracing::debug!(vm = %vm.name(), %error, "cannot delete an orphaned test VM yet")
                }
            }
            drop(lock);
            cluster.remove_if_unused()?;
        }
    }
    Ok(())
}
