//! `run`: a new VM for one command, or to log in.

use std::io::Write as _;

use fleetbox::names::Name;
use fleetbox::workspace::{ShipOptions, Tree, Workspace};
use fleetbox::{Result, Vm};

use crate::args::{Machine, Run};
use crate::exit::{GUEST_FAILURE, REFUSED};
use crate::machine::{self, UserData};
use crate::output::{Context, complain};
use crate::progress::Display;
use crate::{outcome, ssh, ssh_config, workspace};

pub(crate) async fn run(context: &Context, mut run: Run) -> Result<u8> {
    let user_data = match machine::check(&run.machine) {
        Ok(user_data) => user_data,
        Err(error) => {
            complain(error);
            return Ok(REFUSED);
        }
    };
    let options = workspace::options(&run.shipment);
    let tree = match &run.path {
        Some(path) => Some(Tree::open(path).await?),
        None => None,
    };
    if run.shipment.dry_run {
        return match &tree {
            Some(tree) => workspace::list(context, tree, &options).await,
            None => Ok(0),
        };
    }
    // Find errors before creating a VM that would be useless.
    if let Some(tree) = &tree {
        tree.check(&options).await?;
    }
    machine::check_ports(&run.machine)?;
    let given = run.name.take();
    let is_random = given.is_none();
    let name = match given {
        Some(name) => name,
        None => machine::free_name(context).await?,
    };
    let vm = match start(context, &name, &run, &user_data).await {
        Ok(vm) => vm,
        Err(error) if run.rm => return Err(error),
        Err(error) => return machine::failed(context, &name.into(), error, GUEST_FAILURE).await,
    };
    let workspace = match prepare(context, &vm, &run.machine, tree.as_ref(), &options).await {
        Ok(workspace) => workspace,
        Err(error) => {
            complain(error);
            discard(context, vm).await;
            return Ok(GUEST_FAILURE);
        }
    };
    let status = if run.detach {
        Ok(0)
    } else {
        let command = workspace::command(workspace.as_ref(), &run.command);
        ssh::pass_through(&vm, command.as_deref(), false).await
    };
    if run.rm {
        let destroyed = vm.destroy().await;
        ssh_config::refresh(context);
        let status = status?;
        destroyed?;
        return Ok(status);
    }
    let status = status.unwrap_or_else(|error| {
        complain(error);
        GUEST_FAILURE
    });
    print_name(context, &name, run.detach, is_random).await?;
    Ok(status)
}

/// Creates and starts the VM.
async fn start(context: &Context, name: &Name, run: &Run, user_data: &UserData) -> Result<Vm> {
    let display = Display::new(context, &format!("starting {name}"));
    let builder = machine::builder(context, name, &run.machine, user_data)
        .progress(display.progress())
        // An existing VM may hold data that its user wants to keep.
        .create_new();
    let builder = if run.rm {
        builder.ephemeral()
    } else {
        builder.detached()
    };
    let started = builder.start().await;
    drop(display);
    let vm = started?;
    ssh_config::refresh(context);
    Ok(vm)
}

/// Publishes the VM's ports and copies the tree to it.
async fn prepare(
    context: &Context,
    vm: &Vm,
    machine: &Machine,
    tree: Option<&Tree>,
    options: &ShipOptions,
) -> Result<Option<Workspace>> {
    machine::publish(context, vm, machine).await?;
    let Some(tree) = tree else { return Ok(None) };
    let display = Display::begin(context, &format!("copying {}", tree.root().display()));
    let shipped = Workspace::ship(vm, tree, options).await;
    drop(display);
    Ok(Some(shipped?))
}

/// Deletes a VM that could not be prepared.
async fn discard(context: &Context, vm: Vm) {
    let name = vm.reference();
    match vm.destroy().await {
        Ok(()) => complain(format_args!("deleted {name} again; nothing was run in it")),
        Err(error) => {
            complain(error);
            complain(format_args!(
                "{name} is still there, and nothing was run in it; delete it with `fleetbox rm {name}`"
            ));
        }
    }
    ssh_config::refresh(context);
}

/// Prints the name of the VM that stays: as the result, or as a note if standard output belongs to the command.
async fn print_name(context: &Context, name: &Name, detach: bool, is_random: bool) -> Result<()> {
    if detach && context.json {
        outcome::print_changed(context, &[(name.clone().into(), "running")]).await?;
    } else if detach {
        context.say(name);
    } else if is_random && context.quiet {
        let _ = writeln!(std::io::stderr(), "{name}");
    }
    context.note(format_args!(
        "{name} is still running; run more with `fleetbox exec {name} -- COMMAND`, delete it with \
         `fleetbox rm {name}`"
    ));
    Ok(())
}
