//! Creates a cluster's bridge, and removes bridges that are no longer needed.

use std::fs;
use std::net::Ipv4Addr;

use fleetbox_net::{Subnet, open_tap};

use super::error::BridgeError;
use super::lock::HostLock;
use super::record::{BRIDGE_PREFIX, Place, Record, Records};
use super::{Uplink, forwarding, nat, route, subnet};
use crate::model::mac::MacAddr;
use crate::model::names::Name;
use crate::store::Store;

/// Number of the capability in <linux/capability.h>.
const CAP_NET_ADMIN: u32 = 12;

/// The address of the host in a cluster's network: the last one. The first belongs to the gateway,
/// which still answers DHCP and DNS.
pub(super) fn router(subnet: Subnet) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(subnet.broadcast()).saturating_sub(1))
}

/// Checks that this process may change the host's network.
///
/// # Errors
/// [`BridgeError::NotPermitted`].
pub(crate) fn permitted() -> Result<(), BridgeError> {
    let status = fs::read_to_string("/proc/thread-self/status")
        .map_err(BridgeError::host("read the capabilities of this process"))?;
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .unwrap_or(0);
    if effective >> CAP_NET_ADMIN & 1 == 1 {
        Ok(())
    } else {
        Err(BridgeError::NotPermitted)
    }
}

/// Creates the bridge of a cluster. The caller must hold the cluster's lock. Blocks for
/// milliseconds.
///
/// # Errors
/// The process lacks the permission, the network is now used by something else, or the host refuses
/// something. In each case nothing is left behind.
pub(crate) fn up(store: &Store, cluster: &Name, subnet: Subnet) -> Result<Uplink, BridgeError> {
    permitted()?;
    let records = Records::of(store);
    let here = Place::here()?;
    let _lock = HostLock::acquire()?;
    if let Some(old) = records.read(cluster)? {
        remove(&records, cluster, &old, &here)?;
    }
    subnet::check_against(&route::talk(route::used)?, cluster, subnet)?;
    let record = Record::new(here.clone(), subnet);
    records.write(cluster, &record)?;
    let made = make(&records, &record);
    if made.is_err()
        && let Err(error) = take_away(&records, cluster, &record, &here)
    {
        tracing::warn!(%cluster, %error, "cannot clean up after a bridge that could not be created");
    }
    made
}

fn make(records: &Records, record: &Record) -> Result<Uplink, BridgeError> {
    let subnet = record.subnet;
    let MacAddr(mac) = MacAddr::random();
    let router = router(subnet);
    let tap = route::talk(async |handle| {
        route::add_bridge(handle, &record.bridge, mac, router, subnet.prefix()).await?;
        let tap = open_tap(&record.tap).map_err(BridgeError::host("open a tap device"))?;
        route::join(handle, &record.tap, &record.bridge).await?;
        Ok(tap)
    })?;
    nat::add(&record.table, &record.bridge, subnet)?;
    // Last: from here on the host forwards, and the rules are there already.
    forwarding::enable(records, &record.place)?;
    tracing::info!(bridge = record.bridge, %subnet, "bridge is up");
    Ok(Uplink { tap, mac, router })
}

/// Removes the bridge of a cluster that has ended. The caller must hold the cluster's lock. Blocks
/// for milliseconds.
///
/// # Errors
/// The host or the file system refuses. The next [`sweep`] tries again.
pub(crate) fn down(store: &Store, cluster: &Name) -> Result<(), BridgeError> {
    let records = Records::of(store);
    if records.read(cluster)?.is_none() {
        return Ok(());
    }
    let here = Place::here()?;
    let _lock = HostLock::acquire()?;
    match records.read(cluster)? {
        Some(record) => take_away(&records, cluster, &record, &here),
        None => Ok(()),
    }
}

/// Removes the bridges of clusters without a worker, which a kill leaves behind, and restores
/// `ip_forward` if no bridge is left. Blocks for milliseconds. Does nothing if there never was a
/// bridge.
///
/// # Errors
/// The process lacks the permission, or the host or the file system refuses.
pub(crate) fn sweep(store: &Store) -> Result<(), BridgeError> {
    let records = Records::of(store);
    if records.is_empty() {
        return Ok(());
    }
    let here = Place::here()?;
    let _lock = HostLock::acquire()?;
    for name in records.clusters()? {
        let cluster = store.cluster(&name);
        let Some(lock) = cluster.try_lock()? else {
            continue;
        };
        if let Some(record) = records.read(&name)? {
            remove(&records, &name, &record, &here)?;
            tracing::info!(cluster = %name, bridge = record.bridge, "removed an orphaned bridge");
        }
        drop(lock);
        cluster.remove_if_unused()?;
    }
    finish(&records, &here)
}

fn take_away(
    records: &Records,
    cluster: &Name,
    record: &Record,
    here: &Place,
) -> Result<(), BridgeError> {
    remove(records, cluster, record, here)?;
    finish(records, here)
}

/// Removes everything that a record describes, and the record.
fn remove(
    records: &Records,
    cluster: &Name,
    record: &Record,
    here: &Place,
) -> Result<(), BridgeError> {
    if record.place == *here {
        nat::remove(&record.table)?;
        route::talk(async |handle| {
            // Gone already, unless its holder still ends.
            route::remove(handle, &record.tap).await?;
            route::remove(handle, &record.bridge).await
        })?;
    } else if !record.place.is_gone(here) {
        // In another namespace, where it is somebody else's to remove.
        return Ok(());
    }
    records.remove(cluster)
}

/// Restores `ip_forward` if no bridge of any state directory is left.
fn finish(records: &Records, here: &Place) -> Result<(), BridgeError> {
    if records.forwarding()?.is_none() {
        return Ok(());
    }
    let left = route::talk(async |handle| route::links(handle, BRIDGE_PREFIX).await)?;
    if left.is_empty() {
        forwarding::restore(records, here)?;
    }
    Ok(())
}
