//! Commands that ask the guest: `ports`, `stats`.

use std::time::Duration;

use fleetbox::guest::{self, Stats};
use fleetbox::names::Reference;
use fleetbox::{Result, VmState};
use futures::future::join_all;
use serde::Serialize;

use crate::exit::FAILURE;
use crate::output::{Context, complain};
use crate::{disk, select, table};

/// How long a guest may take to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);

pub(crate) async fn ports(context: &Context, name: &Reference) -> Result<u8> {
    let vm = context.fleet().open(name.as_str()).await?;
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
    table::print(context, head, &rows);
    Ok(0)
}

/// What a VM uses in the guest and on this host.
#[derive(Debug, Serialize)]
struct Usage {
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
        let all = context.fleet().list().await?.into_iter();
        all.filter(|vm| vm.state == VmState::Running)
            .map(|vm| select::reference(&vm))
            .collect::<Result<Vec<_>>>()?
    } else {
        names.to_vec()
    };
    let results = join_all(names.iter().map(|name| usage(context, name))).await;
    let mut status = 0;
    let mut usages = Vec::new();
    for result in results {
        match result {
            Ok(usage) => usages.push(usage),
            Err(error) => {
                complain(error);
                status = FAILURE;
            }
        }
    }
    if context.json {
        context.say_json(&usages)?;
        return Ok(status);
    }
    print_usage(context, &usages);
    Ok(status)
}

async fn usage(context: &Context, name: &Reference) -> Result<Usage> {
    let vm = context.fleet().open(name.as_str()).await?;
    let answer = tokio::time::timeout(ANSWER_TIMEOUT, guest::stats(&vm)).await;
    let stats = answer.map_err(|_| fleetbox::Error::Guest {
        name: name.to_string(),
        what: "report its resource use",
        why: format!("no answer within {} s", ANSWER_TIMEOUT.as_secs()),
    })??;
    Ok(Usage {
        name: vm.name().to_owned(),
        cluster: vm.cluster().to_owned(),
        shown: name.to_string(),
        guest: stats,
        host_disk: disk::used(context, name).await?,
    })
}

fn print_usage(context: &Context, usages: &[Usage]) {
    let rows: Vec<_> = usages
        .iter()
        .map(|usage| {
            let guest = &usage.guest;
            [
                usage.shown.clone(),
                format!("{:.0}% of {}", guest.cpu * 100.0, guest.cpus),
                share(guest.memory_used, guest.memory_total),
                share(guest.disk_used, guest.disk_total),
                table::size(usage.host_disk),
                format!("{}/s {}/s", kib(guest.disk_read), kib(guest.disk_written)),
                format!("{}/s {}/s", kib(guest.net_received), kib(guest.net_sent)),
            ]
        })
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
    table::print(context, head, &rows);
}

fn share(used: u64, total: u64) -> String {
    format!("{} of {}", table::size(used), table::size(total))
}

fn kib(bytes: u64) -> String {
    format!("{}K", bytes.div_ceil(1 << 10))
}
