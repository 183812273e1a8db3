//! Commands that stop VMs or start them again: `down`, `restart`, `kill`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use fleetbox::names::Reference;
use fleetbox::progress::Progress;
use fleetbox::{Cluster, Result, StopOutcome, Vm, VmBuilder};

use crate::args::{Down, Kill, Restart};
use crate::outcome::{Outcome, for_each};
use crate::output::{Context, complain};
use crate::progress::Display;
use crate::select;
use crate::values::Signal;

/// How long a press of the power button waits for a quick guest, or for a worker's error.
const PRESS_WAIT: Duration = Duration::from_millis(500);

/// Long enough that no guest is killed for being slow.
const FOREVER: Duration = Duration::from_secs(10 * 365 * 86400);

pub(crate) async fn down(context: &Context, down: Down) -> Result<u8> {
    let limit = Duration::from_secs(if down.force { 0 } else { down.timeout });
    let names = select::which(context, &down.which).await?;
    // Only a running VM takes time.
    let mut running = Vec::new();
    for name in names.0.iter().filter(|_| !limit.is_zero()) {
        let vm = context.fleet().find(name.as_str()).await;
        if vm.is_ok_and(|vm| vm.is_running().unwrap_or(false)) {
            running.push(name.clone());
        }
    }
    let display = (!running.is_empty())
        .then(|| Display::begin(context, &format!("stopping {}", select::summary(&running))));
    let stopped = for_each(context, display.as_ref(), names, |name| async move {
        Ok(vec![stop(context, name, limit).await?])
    });
    stopped.await
}

async fn stop(context: &Context, name: Reference, limit: Duration) -> Result<Outcome> {
    let began = Instant::now();
    let stopped = context.fleet().stop(name.as_str(), limit).await?;
    let took = began.elapsed().as_secs_f32();
    if stopped.is_some() {
        warn_of_device(context, &name).await;
    }
    Ok(match stopped {
        Some(StopOutcome::PoweredOff) => Outcome::new(
            &name,
            "powered-off",
            format!("{name} powered off after {took:.1} s"),
        ),
        Some(StopOutcome::Forced) if limit.is_zero() => {
            Outcome::new(&name, "killed", format!("{name} was killed"))
        }
        Some(StopOutcome::Forced) => Outcome::new(
            &name,
            "killed",
            format!(
                "{name} did not power off within {} s and was killed",
                limit.as_secs()
            ),
        ),
        None => Outcome::new(&name, "not-running", format!("{name} was not running")),
    })
}

/// Says that the guest may not have stored all that it wrote.
async fn warn_of_device(context: &Context, name: &Reference) {
    let Ok(vm) = context.fleet().find(name.as_str()).await else {
        return;
    };
    if let Ok(Some(error)) = vm.device_error() {
        complain(format_args!(
            "a device of {name} failed on this host while it ran: {error}; check the guest's data before you rely on it"
        ));
    }
}

pub(crate) async fn restart(context: &Context, restart: Restart) -> Result<u8> {
    let timeout = Duration::from_secs(restart.timeout);
    let stop_limit = if restart.force {
        Duration::ZERO
    } else {
        fleetbox::STOP_DEADLINE
    };
    let (names, status) = select::which(context, &restart.which).await?;
    // Restart the members of one cluster together. One by one, some would hold the memory that others wait for.
    let mut clusters: Vec<Vec<Reference>> = Vec::new();
    for name in names.iter().cloned() {
        match clusters
            .iter_mut()
            .find(|all| all[0].cluster() == name.cluster())
        {
            Some(cluster) => cluster.push(name),
            None => clusters.push(vec![name]),
        }
    }
    let restarting = format!("restarting {}", select::summary(&names));
    let display = Display::new(context, &restarting);
    let status = for_each(context, Some(&display), (clusters, status), |names| {
        let progress = display.progress();
        async move {
            restart_together(context, &names, progress, stop_limit, timeout).await?;
            let running = |name| Outcome::new(name, "running", format!("{name} was restarted"));
            Ok(names.iter().map(running).collect::<Vec<_>>())
        }
    });
    let status = status.await;
    drop(display);
    status
}

/// Stops and starts one VM, or several of one cluster.
async fn restart_together(
    context: &Context,
    names: &[Reference],
    progress: Arc<dyn Progress>,
    stop_limit: Duration,
    timeout: Duration,
) -> Result<()> {
    let configured = |vm: VmBuilder| {
        let vm = vm.boot_timeout(timeout).progress(Arc::clone(&progress));
        match context.home() {
            Some(home) => vm.home(home),
            None => vm,
        }
    };
    match names {
        [] => {}
        [name] => {
            let vm = Vm::builder(name.as_str()).detached();
            configured(vm).restart(stop_limit).await?;
        }
        [name, ..] => {
            let cluster = select::cluster_of(name);
            let mut builder = Cluster::builder(cluster.as_str())
                .detached()
                .each(configured);
            for name in names {
                builder = builder.member(name.name().as_str(), |vm| vm);
            }
            builder.restart(stop_limit).await?;
        }
    }
    Ok(())
}

pub(crate) async fn kill(context: &Context, kill: Kill) -> Result<u8> {
    let names = select::which(context, &kill.which).await?;
    for_each(context, None, names, |name| async move {
        let outcome = match kill.signal {
            Signal::Kill => stop(context, name, Duration::ZERO).await,
            Signal::PowerButton => press(context, name).await,
        };
        Ok(vec![outcome?])
    })
    .await
}

/// Presses the power button. The worker carries on after this process has ended.
async fn press(context: &Context, name: Reference) -> Result<Outcome> {
    match tokio::time::timeout(PRESS_WAIT, stop(context, name.clone(), FOREVER)).await {
        Ok(outcome) => outcome,
        Err(_) => Ok(Outcome::new(
            &name,
            "signalled",
            format!("pressed the power button of {name}"),
        )),
    }
}
