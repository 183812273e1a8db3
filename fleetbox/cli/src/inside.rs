//! Commands about what is in a guest: `ports`, `stats`.

use std::time::Duration;

use fleetbox::guest::{self, Stats};
use fleetbox::names::Reference;
use fleetbox::{Result, Size, Vm, VmState};
use futures::future::join_all;
use serde::Serialize;

use crate::output::{Context, complain};
use crate::{FAILURE, table, vms};

/// How long a guest may take to say what it uses.
const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) async fn ports(context: &Context, name: &Reference) -> Result<u8> {
    let vm = Vm::open_in(context.home(), name.as_str()).await?;
    let listeners = guest::ports(&vm).await?;
    if context.json {
        context.say_json(&listeners)?;
        return Ok(0);
    }
    let rows: Vec<_> = listeners
        .into_iter()
        .map(|listener| {
            [
                listener.protocol.to_string(),
                listener.address.ip().to_string(),
                listener.address.port().to_string(),
                listener.process.unwrap_or_default(),
                listener.pid.map_or_else(String::new, |pid| pid.to_string()),
            ]
        })
        .collect();
    let head = ["PROTOCOL", "ADDRESS", "PORT", "PROCESS", "PID"];
    context.say(table::render(head, &rows, false));
    Ok(0)
}

/// What a VM uses, in the guest and on this host.
#[derive(Debug, Serialize)]
struct Used {
    name: String,
    cluster: String,
    #[serde(skip)]
    shown: String,
    #[serde(flatten)]
    guest: Stats,
    /// Bytes that the VM's disk takes on this host.
    host_disk: u64,
}

pub(crate) async fn stats(context: &Context, names: &[Reference]) -> Result<u8> {
    let names = if names.is_empty() {
        let all = fleetbox::list(context.home()).await?.into_iter();
        all.filter(|vm| vm.state == VmState::Running)
            .map(|vm| vms::reference(&vm))
            .collect::<Result<Vec<_>>>()?
    } else {
        names.to_vec()
    };
    let asked = join_all(names.iter().map(|name| async move {
        let vm = Vm::open_in(context.home(), name.as_str()).await?;
        let asked = tokio::time::timeout(PATIENCE, guest::stats(&vm)).await;
        let stats = asked.map_err(|_| fleetbox::Error::Guest {
            name: name.to_string(),
            what: "say what it uses",
            why: format!("it did not answer in {} s", PATIENCE.as_secs()),
        })??;
        Ok::<_, fleetbox::Error>(Used {
            name: vm.name().to_owned(),
            cluster: vm.cluster().to_owned(),
            shown: name.to_string(),
            guest: stats,
            host_disk: vms::disk_used(context, name).await?,
        })
    }))
    .await;
    let mut status = 0;
    let mut used = Vec::new();
    for asked in asked {
        match asked {
            Ok(one) => used.push(one),
            Err(error) => {
                complain(error);
                status = FAILURE;
            }
        }
    }
    if context.json {
        context.say_json(&used)?;
        return Ok(status);
    }
    let rows: Vec<_> = used
        .iter()
        .map(
            |Used {
                 shown,
                 guest,
                 host_disk,
                 ..
             }| {
                [
                    shown.clone(),
                    format!("{:.0}% of {}", guest.cpu * 100.0, guest.cpus),
                    share(guest.memory_used, guest.memory_total),
                    share(guest.disk_used, guest.disk_total),
                    mib(*host_disk),
                    format!("{}/s {}/s", kib(guest.disk_read), kib(guest.disk_written)),
                    format!("{}/s {}/s", kib(guest.net_received), kib(guest.net_sent)),
                ]
            },
        )
        .collect();
    let head = [
        "NAME",
        "CPU",
        "MEMORY",
        "DISK",
        "ON HOST",
        "DISK READ WRITE",
        "NET IN OUT",
    ];
    context.say(table::render(head, &rows, false));
    Ok(status)
}

fn mib(bytes: u64) -> String {
    Size::mib(bytes.div_ceil(1 << 20)).to_string()
}

fn share(used: u64, total: u64) -> String {
    format!("{} of {}", mib(used), mib(total))
}

fn kib(bytes: u64) -> String {
    format!("{}K", bytes.div_ceil(1 << 10))
}
