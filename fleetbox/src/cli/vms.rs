//! `up`, `ls`, `down` and `rm`.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fleetbox::images::{Progress, progress};
use fleetbox::names::Name;
use fleetbox::{Result, Stopped, Vm};

use super::{FAILURE, Up, complain, note, say, say_json, table};

pub(super) async fn up(home: Option<&Path>, up: Up) -> Result<u8> {
    let mut builder = Vm::builder(up.name.as_str())
        .detached()
        .boot_timeout(Duration::from_secs(up.timeout))
        .progress(Arc::<dyn Progress>::from(progress::stderr()));
    if let Some(home) = home {
        builder = builder.home(home);
    }
    if let Some(image) = up.image {
        builder = builder.image(image);
    }
    if let Some(cpus) = up.cpus {
        builder = builder.cpus(cpus);
    }
    if let Some(memory) = up.memory {
        builder = builder.memory(memory);
    }
    if let Some(disk) = up.disk {
        builder = builder.disk(disk);
    }
    let vm = builder.start().await?;
    if !vm.ignored_options().is_empty() {
        note(format_args!(
            "{} exists and keeps its {}; remove it with `fleetbox rm {}` to create it anew",
            vm.name(),
            vm.ignored_options().join(", "),
            vm.name()
        ));
    }
    if vm.was_running() {
        say(format_args!(
            "{} is running already; `fleetbox ssh {0}` logs in",
            vm.name()
        ));
    } else {
        say(format_args!(
            "{} is running; `fleetbox ssh {0}` logs in",
            vm.name()
        ));
        note(vm.timings());
    }
    Ok(0)
}

pub(super) async fn ls(home: Option<&Path>, json: bool) -> Result<u8> {
    let vms = fleetbox::list(home).await?;
    if json {
        say_json(&vms)?;
        return Ok(0);
    }
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    let rows: Vec<_> = vms
        .into_iter()
        .map(|vm| {
            [
                vm.name,
                vm.state.to_string(),
                vm.image,
                vm.cpus.to_string(),
                vm.memory.to_string(),
                vm.disk.to_string(),
                vm.ip.to_string(),
                table::age(now.saturating_sub(vm.created)),
            ]
        })
        .collect();
    let head = [
        "NAME", "STATE", "IMAGE", "CPUS", "MEMORY", "DISK", "IP", "AGE",
    ];
    say(table::render(head, &rows));
    Ok(0)
}

pub(super) async fn down(home: Option<&Path>, names: &[Name], timeout: u64) -> Result<u8> {
    let mut status = 0;
    for name in names {
        match fleetbox::stop(home, name.as_str(), Duration::from_secs(timeout)).await {
            Ok(Some(Stopped::PoweredOff)) => say(format_args!("{name} powered off")),
            Ok(Some(Stopped::Forced)) if timeout > 0 => {
                say(format_args!(
                    "{name} did not power off in {timeout} s and was killed"
                ));
            }
            Ok(Some(Stopped::Forced)) => say(format_args!("{name} was killed")),
            Ok(None) => say(format_args!("{name} was not running")),
            Err(error) => {
                complain(error);
                status = FAILURE;
            }
        }
    }
    Ok(status)
}

pub(super) async fn rm(home: Option<&Path>, names: &[Name]) -> Result<u8> {
    let mut status = 0;
    for name in names {
        match fleetbox::remove(home, name.as_str()).await {
            Ok(()) => say(format_args!("{name} is deleted")),
            Err(error) => {
                complain(error);
                status = FAILURE;
            }
        }
    }
    Ok(status)
}
