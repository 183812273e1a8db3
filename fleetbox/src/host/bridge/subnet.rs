//! Chooses the addresses of a cluster on a bridge.

use std::net::Ipv4Addr;

use fleetbox_net::Subnet;

use super::around;
use super::error::BridgeError;
use super::route::{self, Used};
use crate::model::names::Name;
use crate::store::Store;

/// Finds a network for a new cluster that no route, no address and no other cluster uses.
///
/// # Errors
/// No network is free, or the host's routes cannot be read.
pub(crate) fn free(store: &Store, cluster: &Name) -> Result<Subnet, BridgeError> {
    let mut used = route::talk(route::used)?;
    for vm in store.vms()? {
        if let Ok(record) = vm.record()
            && !record.network.is_user()
            && let Some(subnet) = around(record.ip)
        {
            used.push(Used {
                network: subnet.network(),
                prefix: subnet.prefix(),
                what: format!("the network of {}", vm.cluster()),
            });
        }
    }
    first_free(&used, cluster)
}

/// Checks that the host uses a cluster's network for nothing else. Call this while the cluster has
/// no bridge.
///
/// # Errors
/// [`BridgeError::Collision`], or the host's routes cannot be read.
pub(crate) fn check(cluster: &Name, subnet: Subnet) -> Result<(), BridgeError> {
    let used = route::talk(route::used)?;
    check_against(&used, cluster, subnet)
}

pub(super) fn check_against(
    used: &[Used],
    cluster: &Name,
    subnet: Subnet,
) -> Result<(), BridgeError> {
    match used.iter().find(|used| overlaps(used, subnet)) {
        None => Ok(()),
        Some(used) => Err(BridgeError::Collision {
            cluster: cluster.clone(),
            subnet,
            with: used.what.clone(),
        }),
    }
}

fn overlaps(used: &Used, subnet: Subnet) -> bool {
    let shorter = u32::from(used.prefix.min(subnet.prefix()).min(32));
    let mask = u32::MAX.checked_shl(32 - shorter).unwrap_or(0);
    u32::from(used.network) & mask == u32::from(subnet.network()) & mask
}

/// The first free network. The search begins at a place that depends on the cluster's name, so that
/// clusters created at the same moment, even in different state directories, rarely choose the same
/// network.
fn first_free(used: &[Used], cluster: &Name) -> Result<Subnet, BridgeError> {
    // The upper half of 10.0.0.0/8 first: it is the largest, and hardly anybody's.
    let ranges = [
        (Ipv4Addr::new(10, 128, 0, 0), 1_u32 << 15),
        (Ipv4Addr::new(172, 16, 0, 0), 1 << 12),
        (Ipv4Addr::new(192, 168, 0, 0), 1 << 8),
    ];
    // FNV-1a, which needs to be nothing but the same each time.
    let start = cluster
        .as_str()
        .bytes()
        .fold(0x811c_9dc5_u32, |hash, byte| {
            (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
        });
    let candidates = ranges.into_iter().flat_map(|(base, count)| {
        (0..count).map(move |i| u32::from(base) + ((start.wrapping_add(i)) % count) * 256)
    });
    candidates
        .filter_map(|network| around(network.into()))
        // All user networks use this one. Sharing it would make guests of both kinds indistinguishable.
        .filter(|subnet| *subnet != Subnet::default())
        .find(|subnet| !used.iter().any(|used| overlaps(used, *subnet)))
        .ok_or(BridgeError::NoneFree)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn used(network: &str, prefix: u8) -> Used {
        Used {
            network: network.parse().unwrap(),
            prefix,
            what: format!("the route to {network}/{prefix}"),
        }
    }

    fn name() -> Name {
        Name::new("demo").unwrap()
    }

    #[test]
    fn a_network_overlaps_what_it_holds_and_what_holds_it() {
        let subnet = "10.200.3.0/24".parse().unwrap();
        for (network, prefix) in [
            ("10.200.3.0", 24),
            ("10.200.3.77", 32),
            ("10.200.3.128", 25),
            ("10.200.0.0", 16),
            ("10.0.0.0", 8),
            ("0.0.0.0", 0),
        ] {
            assert!(
                overlaps(&used(network, prefix), subnet),
                "{network}/{prefix}"
            );
        }
        for (network, prefix) in [("10.200.2.0", 24), ("10.200.4.1", 32), ("172.16.0.0", 12)] {
            assert!(
                !overlaps(&used(network, prefix), subnet),
                "{network}/{prefix}"
            );
        }
    }

    #[test]
    fn a_free_network_is_none_that_is_used() {
        let first = first_free(&[], &name()).unwrap();
        assert_eq!(first, first_free(&[], &name()).unwrap());
        let taken = used(&first.network().to_string(), 24);
        let second = first_free(std::slice::from_ref(&taken), &name()).unwrap();
        assert_ne!(first, second);
        let third = first_free(&[used("10.0.0.0", 8)], &name()).unwrap();
        assert_eq!(third.network().octets()[0], 172);
        let fourth = first_free(&[used("10.0.0.0", 8), used("172.16.0.0", 12)], &name());
        assert_eq!(fourth.unwrap().network().octets()[..2], [192, 168]);
        let all = [
            used("10.0.0.0", 8),
            used("172.0.0.0", 8),
            used("192.168.0.0", 16),
        ];
        assert!(matches!(
            first_free(&all, &name()),
            Err(BridgeError::NoneFree)
        ));
    }

    #[test]
    fn a_collision_names_what_it_is_with() {
        let subnet = "10.200.3.0/24".parse().unwrap();
        let error = check_against(&[used("10.200.0.0", 16)], &name(), subnet).unwrap_err();
        assert!(error.to_string().contains("10.200.0.0/16"), "{error}");
        assert!(error.to_string().contains("10.200.3.0/24"), "{error}");
    }
}
