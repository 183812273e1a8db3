//! Creating a VM: its keys, its disk, its seed and its record.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use fleetbox_devices::block::{Base, DiskError, Format, LayerOptions, create_layer};
use fleetbox_net::Subnet;
use fleetbox_vmm::machine::BootSource;

use crate::disk::extra_disk::{ExtraDisk, ExtraDiskError, Source};
use crate::disk::fixture;
use crate::disk::format::{ImageFormat, data_format};
use crate::disk::seed::Seed;
use crate::error::{Error, Result};
use crate::host::bridge::{self, BridgeError};
use crate::host::budget::{Claim, Want};
use crate::images::Image;
use crate::model::keys::Keypair;
use crate::model::lifetime::Lifetime;
use crate::model::mac::MacAddr;
use crate::model::names::{InvalidValue, Name};
use crate::model::network::Network;
use crate::model::size::Size;
use crate::process::{Backend, DiskFormat, DiskSpec, MachineSpec};
use crate::store::{ImageRecord, Store, VmDir, VmPaths, VmRecord, ephemeral, now};
use crate::vm::builder::Plan;
use crate::vm::fixtures;

/// The parts of the VM's machine.
pub(crate) fn machine_spec(vm: &VmDir, record: &VmRecord, backend: Backend) -> MachineSpec {
    let durable = !ephemeral::is_ephemeral(vm);
    let disk = |path: PathBuf, format, read_only, serial: &str| DiskSpec {
        path,
        format,
        read_only,
        durable,
        serial: serial.to_owned(),
    };
    let mut disks = vec![
        disk(vm.paths().disk_layer(), DiskFormat::Layer, false, "disk"),
        disk(vm.paths().seed(), DiskFormat::Raw, true, "seed"),
    ];
    for (i, extra) in record.extra_disks.iter().enumerate() {
        disks.push(disk(
            vm.paths().extra_disk(i + 1),
            DiskFormat::Layer,
            extra.is_read_only(),
            &format!("extra-{}", i + 1),
        ));
    }
    disks.extend(fixtures::disks(&record.fixtures, vm.paths()));
    let want = Want::new(vm.cluster().clone(), vm.name().clone(), record.memory);
    MachineSpec {
        name: record.name.to_string(),
        id: Some(record.instance_id.clone()),
        cpus: record.cpus,
        memory: record.memory.bytes(),
        boot: BootSource::Auto,
        disks,
        mac: record.mac.0,
        ip: record.ip,
        console_log: vm.paths().console_log(),
        failure_note: vm.paths().failure(),
        lock: vm.paths().lock(),
        claim: Some(Claim::new(vm.home(), want)),
        backend,
    }
}

/// Creates a VM: its keys, its disk on top of the image, its seed and its record.
pub(crate) fn create(
    store: &Store,
    cluster: &Name,
    plan: &Plan,
    image: &Image,
    lifetime: Lifetime,
) -> Result<VmDir> {
    let (network, subnet) = network(store, cluster, plan)?;
    let draft = store.create_vm(cluster, &plan.name)?;
    let paths = draft.paths();
    let login = Keypair::of_store(store)?;
    let host_key = Keypair::generate(&format!("{} host key", plan.name))?;
    host_key.save(&paths.host_key())?;
    let disk = create_disk(paths, plan, image, lifetime)?;
    for (i, disk) in plan.extra_disks.iter().enumerate() {
        create_extra_disk(
            disk,
            &paths.extra_disk(i + 1),
            lifetime != Lifetime::Ephemeral,
        )?;
    }
    let mac = MacAddr::random();
    let instance_id = uuid::Uuid::new_v4().to_string();
    Seed {
        instance_id: instance_id.clone(),
        hostname: plan.name.clone(),
        user: plan.user.clone(),
        authorized_keys: vec![login.public().to_string()],
        host_key: host_key.clone(),
        mac,
        mounts: fixture::mounts(&plan.fixtures),
        config: plan.config.clone(),
    }
    .write(&paths.seed())?;
    if lifetime == Lifetime::Ephemeral {
        ephemeral::mark_ephemeral(paths.dir())
            .map_err(Error::io("mark the VM for deletion with its owner"))?;
    }
    let record = VmRecord {
        name: plan.name.clone(),
        cluster: cluster.clone(),
        image: ImageRecord {
            reference: image.reference.clone(),
            path: image.path.clone(),
            sha256: image.sha256.map(|sum| sum.to_string()),
        },
        cpus: plan.cpus,
        memory: plan.memory,
        disk,
        mac,
        // It gets the first free one.
        ip: Ipv4Addr::UNSPECIFIED,
        created: now(),
        instance_id,
        ssh_user: plan.user.clone(),
        ssh_key: login.public().to_string(),
        host_key: host_key.public().to_string(),
        fixtures: plan.fixtures.clone(),
        config: plan.config.clone(),
        extra_disks: plan.extra_disks.clone(),
        network,
    };
    let (vm, lock) = draft.commit_in(&record, subnet)?;
    // The machine process binds it.
    drop(lock);
    Ok(vm)
}

/// The network of a new member: that of the other members, else the requested one, else the user
/// network.
fn network(store: &Store, cluster: &Name, plan: &Plan) -> Result<(Network, Subnet)> {
    let dir = store.cluster(cluster);
    let of_others = dir
        .vms()?
        .iter()
        .find_map(|other| other.record().ok())
        .map(|record| record.network);
    let network = match (of_others, plan.network) {
        (Some(has), Some(asked)) if has != asked => {
            return Err(Error::Bridge(BridgeError::Mixed {
                name: plan.name.clone(),
                cluster: cluster.clone(),
                asked,
                has,
            }));
        }
        (of_others, asked) => of_others.or(asked).unwrap_or_default(),
    };
    let subnet = match network {
        Network::User => Subnet::default(),
        Network::Bridge => match bridge::of_cluster(&dir)? {
            Some(subnet) => subnet,
            None => bridge::free(store, cluster)?,
        },
    };
    Ok((network, subnet))
}

fn create_disk(paths: &VmPaths, plan: &Plan, image: &Image, lifetime: Lifetime) -> Result<Size> {
    let mut base = Base::new(&image.path, Some(layer_format(image.format)));
    base.digest = image.sha256.map(|sum| sum.to_string());
    let options = LayerOptions {
        base: Some(base),
        size: Some(plan.disk.bytes()),
        durable: lifetime != Lifetime::Ephemeral,
        ..LayerOptions::default()
    };
    match create_layer(&paths.disk_layer(), &options) {
        Ok(info) => Ok(Size::from_bytes(info.size)),
        Err(DiskError::TooSmall { base_size, .. }) => {
            let least = Size::mib(base_size.div_ceil(1 << 20));
            Err(InvalidValue::Range {
                what: "disk size",
                given: plan.disk.to_string(),
                least: format!("{least}, the size of the image {}", image.reference),
                most: Size::LARGEST_DISK.to_string(),
            }
            .into())
        }
        Err(error) => Err(error.into()),
    }
}

/// Creates the layer over an extra disk, which is what the guest sees.
fn create_extra_disk(disk: &ExtraDisk, layer: &Path, durable: bool) -> Result<()> {
    let options = match disk.source() {
        Source::Empty(size) => LayerOptions {
            size: Some(size.bytes()),
            durable,
            ..LayerOptions::default()
        },
        Source::File(path) => {
            let format = data_format(path, &path.display().to_string());
            LayerOptions {
                base: Some(Base::new(
                    path,
                    Some(layer_format(format.map_err(ExtraDiskError::from)?)),
                )),
                durable,
                ..LayerOptions::default()
            }
        }
    };
    create_layer(layer, &options)?;
    Ok(())
}

fn layer_format(format: ImageFormat) -> Format {
    match format {
        ImageFormat::Raw => Format::Raw,
        ImageFormat::Qcow2 => Format::Qcow2,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_extra_disk_copies_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("disk.raw");
        std::fs::write(&file, vec![7; 1 << 20]).unwrap();
        let layer = dir.path().join("a.layer");
        create_extra_disk(&ExtraDisk::file(&file), &layer, false).unwrap();
        let stored = std::os::unix::fs::MetadataExt::blocks(&layer.metadata().unwrap()) * 512;
        assert!(stored < 1 << 20, "{stored}");
        let empty = ExtraDisk::empty(Size::mib(64));
        create_extra_disk(&empty, &dir.path().join("b.layer"), false).unwrap();
    }
}
