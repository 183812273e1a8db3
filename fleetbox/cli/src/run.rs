//! `run`, `exec` and `pull-diff`: commands in VMs, and work trees for them.

use std::io::Write as _;
use std::path::PathBuf;

use fleetbox::guest::quote;
use fleetbox::names::Reference;
use fleetbox::workspace::{Selection, ShipOptions, Tree, Workspace};
use fleetbox::{Error, Result, Vm};

use crate::args::{Exec, Machine, Run, Ship, Shipment};
use crate::output::{Context, complain};
use crate::progress::Display;
use crate::{GUEST_FAILURE, REFUSED, ssh, ssh_config, up, vms};

pub(crate) async fn run(context: &Context, run: Run) -> Result<u8> {
    let user_data = match up::check(&run.machine) {
        Ok(user_data) => user_data,
        Err(error) => {
            complain(error);
            return Ok(REFUSED);
        }
    };
    let options = options(&run.shipment);
    let tree = match &run.path {
        Some(path) => Some(Tree::open(path).await?),
        None => None,
    };
    if run.shipment.dry_run {
        return match &tree {
            Some(tree) => list(context, tree, &options).await,
            None => Ok(0),
        };
    }
    // What is wrong is found out before there is a VM that nobody has asked for any more.
    if let Some(tree) = &tree {
        tree.check(&options).await?;
    }
    up::check_ports(&run.machine)?;
    let is_made_up = run.name.is_none();
    let name = match run.name {
        Some(name) => name,
        None => up::made_up(context)?,
    };
    let display = Display::new(context, &format!("starting {name}"));
    let builder =
        up::builder(context, &name, &run.machine, &user_data).progress(display.progress());
    // One that exists may hold what its user wants to keep.
    let builder = builder.create_new();
    let builder = if run.rm {
        builder.ephemeral()
    } else {
        builder.detached()
    };
    let started = builder.start().await;
    drop(display);
    let vm = match started {
        Ok(vm) => vm,
        Err(error) if run.rm => return Err(error),
        Err(error) => return up::failed(context, &name.into(), error, GUEST_FAILURE).await,
    };
    ssh_config::refresh(context);
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
        let command = command(workspace.as_ref(), &run.command);
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
    if run.detach && context.json {
        vms::say_changed(context, &[(name.clone().into(), "running")]).await?;
    } else if run.detach {
        context.say(&name);
    }
    // Standard output is the command's.
    if is_made_up && context.quiet && !run.detach {
        let _ = writeln!(std::io::stderr(), "{name}");
    }
    context.note(format_args!(
        "{name} runs on; `fleetbox exec {name} -- COMMAND` runs more in it, `fleetbox rm {name}` deletes it"
    ));
    Ok(status)
}

/// Deletes a VM in which nothing was run, because it is not what was asked for.
async fn discard(context: &Context, vm: Vm) {
    let name = vm.reference();
    match vm.destroy().await {
        Ok(()) => complain(format_args!(
            "{name} is deleted again; nothing was run in it"
        )),
        Err(error) => {
            complain(error);
            complain(format_args!(
                "{name} is left, and nothing was run in it; `fleetbox rm {name}` deletes it"
            ));
        }
    }
    ssh_config::refresh(context);
}

/// Publishes the VM's ports and ships the tree to it.
async fn prepare(
    context: &Context,
    vm: &Vm,
    machine: &Machine,
    tree: Option<&Tree>,
    options: &ShipOptions,
) -> Result<Option<Workspace>> {
    up::publish(context, vm, machine).await?;
    let Some(tree) = tree else { return Ok(None) };
    let display = Display::begin(context, &format!("shipping {}", tree.root().display()));
    let shipped = Workspace::ship(vm, tree, options).await;
    drop(display);
    Ok(Some(shipped?))
}

/// A command line for the guest's shell; `None` is a log-in.
fn command(workspace: Option<&Workspace>, words: &[String]) -> Option<String> {
    match workspace {
        Some(workspace) => Some(workspace.command(words)),
        None if words.is_empty() => None,
        None => {
            let words: Vec<_> = words.iter().map(|word| quote(word)).collect();
            Some(format!("exec {}", words.join(" ")))
        }
    }
}

fn options(shipment: &Shipment) -> ShipOptions {
    ShipOptions {
        selection: if shipment.full_copy {
            Selection::Everything
        } else if shipment.include_untracked {
            Selection::WithUntracked
        } else {
            Selection::Tracked
        },
        branch: shipment.branch.clone(),
        from: shipment.from.clone(),
    }
}

async fn list(context: &Context, tree: &Tree, options: &ShipOptions) -> Result<u8> {
    let files: Vec<PathBuf> = tree.list(options).await?;
    if context.json {
        context.say_json(&files)?;
        return Ok(0);
    }
    for file in &files {
        context.say(file.display());
    }
    context.note(format_args!(
        "{} files of {} would be shipped",
        files.len(),
        tree.root().display()
    ));
    Ok(0)
}

pub(crate) async fn exec(context: &Context, exec: Exec) -> Result<u8> {
    let vm = Vm::open_in(context.home(), exec.name.as_str()).await?;
    let elsewhere = exec.dir.as_ref().is_some_and(|dir| dir.starts_with('/'));
    let mut workspace = if elsewhere && !exec.sync {
        None
    } else {
        Workspace::of(context.home(), exec.name.as_str()).await?
    };
    if exec.sync && workspace.is_none() {
        return Err(no_workspace(&exec.name));
    }
    if let Some(known) = &workspace {
        if exec.sync {
            workspace = Some(known.sync(&vm).await?);
        } else {
            // The command is what was asked for, whatever has become of the host's tree.
            match known.moved_on().await {
                Ok(None) => {}
                Ok(Some(how)) => context.note(format_args!(
                    "{} has moved on since it was shipped to {}: {how}; --sync ships it again",
                    known.host.display(),
                    exec.name
                )),
                Err(error) => context.note(error),
            }
        }
    }
    let command = match (&workspace, exec.dir) {
        (workspace, None) => command(workspace.as_ref(), &exec.command),
        (Some(workspace), Some(dir)) if !elsewhere => {
            Some(workspace.command_in(&dir, &exec.command))
        }
        (_, Some(dir)) => command(None, &exec.command)
            .map(|command| format!("cd -- {} && {command}", quote(&dir))),
    };
    ssh::pass_through(&vm, command.as_deref(), exec.tty).await
}

pub(crate) async fn ship(context: &Context, ship: Ship) -> Result<u8> {
    let options = options(&ship.shipment);
    let tree = Tree::open(&ship.path).await?;
    if ship.shipment.dry_run {
        return list(context, &tree, &options).await;
    }
    tree.check(&options).await?;
    let vm = Vm::open_in(context.home(), ship.name.as_str()).await?;
    let name = vm.reference();
    let earlier = Workspace::of(context.home(), name.as_str()).await?;
    let display = Display::begin(context, &format!("shipping {}", tree.root().display()));
    let shipped = Workspace::ship(&vm, &tree, &options).await;
    drop(display);
    let directory = shipped?.directory;
    if let Some(earlier) = earlier.filter(|earlier| earlier.directory != directory) {
        context.note(format_args!(
            "the work tree that {name} had stays in ~/{}, and is not its workspace any more",
            earlier.directory
        ));
    }
    context.tell(format_args!(
        "{} is in ~/{directory} of {name}; `fleetbox exec {name} -- COMMAND` runs there",
        tree.root().display()
    ));
    if context.json {
        vms::say_changed(context, &[(name, "shipped")]).await?;
    }
    Ok(0)
}

pub(crate) async fn pull_diff(
    context: &Context,
    name: &Reference,
    output: Option<PathBuf>,
) -> Result<u8> {
    let Some(workspace) = Workspace::of(context.home(), name.as_str()).await? else {
        return Err(no_workspace(name));
    };
    let vm = Vm::open_in(context.home(), name.as_str()).await?;
    let display = Display::begin(context, &format!("fetching the changes of {name}"));
    let patch = workspace.diff(&vm).await;
    drop(display);
    let patch = patch?;
    if workspace.is_dirty() {
        context.note(format_args!(
            "{} had changes that are in no commit when it was shipped; they are part of the patch",
            workspace.host.display()
        ));
    }
    let written = match &output {
        Some(path) => std::fs::write(path, &patch),
        None => std::io::stdout().write_all(&patch),
    };
    match written {
        // Whoever reads it has enough.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(0),
        written => written.map(|()| 0).map_err(|source| Error::Io {
            action: "write the patch",
            source,
        }),
    }
}

fn no_workspace(name: &Reference) -> Error {
    fleetbox::workspace::WorkspaceError::None {
        name: name.to_string(),
    }
    .into()
}
