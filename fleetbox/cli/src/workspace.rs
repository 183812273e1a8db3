//! Work trees in VMs: `exec`, `ship` and `pull-diff`.

use std::path::PathBuf;

use fleetbox::guest::quote;
use fleetbox::names::Reference;
use fleetbox::workspace::{Selection, ShipOptions, Tree, Workspace, WorkspaceError};
use fleetbox::{Error, Result};

use crate::args::{Exec, Ship, Shipment};
use crate::output::Context;
use crate::progress::Display;
use crate::{outcome, ssh, stdout, table};

/// The command for the guest's shell; `None` logs in.
pub(crate) fn command(workspace: Option<&Workspace>, words: &[String]) -> Option<String> {
    match workspace {
        Some(workspace) => Some(workspace.command(words)),
        None if words.is_empty() => None,
        None => {
            let words: Vec<_> = words.iter().map(|word| quote(word)).collect();
            Some(format!("exec {}", words.join(" ")))
        }
    }
}

pub(crate) fn options(shipment: &Shipment) -> ShipOptions {
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

pub(crate) async fn list(context: &Context, tree: &Tree, options: &ShipOptions) -> Result<u8> {
    let files: Vec<PathBuf> = tree.list(options).await?;
    if context.json {
        context.say_json(&files)?;
        return Ok(0);
    }
    for file in &files {
        context.say(file.display());
    }
    context.note(format_args!(
        "{} of {} would be copied",
        table::count(files.len() as u64, "file"),
        tree.root().display()
    ));
    Ok(0)
}

pub(crate) async fn exec(context: &Context, exec: Exec) -> Result<u8> {
    let vm = context.fleet().open(exec.name.as_str()).await?;
    let is_absolute = exec.dir.as_ref().is_some_and(|dir| dir.starts_with('/'));
    let mut workspace = if is_absolute && !exec.sync {
        None
    } else {
        Workspace::of(&context.fleet(), exec.name.as_str()).await?
    };
    if exec.sync && workspace.is_none() {
        return Err(no_workspace(&exec.name));
    }
    if let Some(known) = &workspace {
        if exec.sync {
            workspace = Some(known.sync(&vm).await?);
        } else {
            // The command runs in any case, even if the host's tree has changed or cannot be read.
            match known.host_changes().await {
                Ok(None) => {}
                Ok(Some(how)) => context.note(format_args!(
                    "{} has changed since it was copied to {}: {how}; copy it again with --sync",
                    known.host.display(),
                    exec.name
                )),
                Err(error) => context.note(error),
            }
        }
    }
    let command = match (&workspace, exec.dir) {
        (workspace, None) => command(workspace.as_ref(), &exec.command),
        (Some(workspace), Some(dir)) if !is_absolute => {
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
    let vm = context.fleet().open(ship.name.as_str()).await?;
    let name = vm.reference();
    let earlier = Workspace::of(&context.fleet(), name.as_str()).await?;
    let display = Display::begin(context, &format!("copying {}", tree.root().display()));
    let shipped = Workspace::ship(&vm, &tree, &options).await;
    drop(display);
    let directory = shipped?.directory;
    if let Some(earlier) = earlier.filter(|earlier| earlier.directory != directory) {
        context.note(format_args!(
            "the previous work tree of {name} stays in ~/{}, but is no longer its workspace",
            earlier.directory
        ));
    }
    context.tell(format_args!(
        "copied {} to ~/{directory} of {name}; run commands there with `fleetbox exec {name} -- COMMAND`",
        tree.root().display()
    ));
    if context.json {
        outcome::print_changed(context, &[(name, "shipped")]).await?;
    }
    Ok(0)
}

pub(crate) async fn pull_diff(
    context: &Context,
    name: &Reference,
    output: Option<PathBuf>,
) -> Result<u8> {
    let Some(workspace) = Workspace::of(&context.fleet(), name.as_str()).await? else {
        return Err(no_workspace(name));
    };
    let vm = context.fleet().open(name.as_str()).await?;
    let display = Display::begin(context, &format!("fetching the changes in {name}"));
    let patch = workspace.diff(&vm).await;
    drop(display);
    let patch = patch?;
    if workspace.is_dirty() {
        context.note(format_args!(
            "{} had uncommitted changes when it was copied; the patch includes them",
            workspace.host.display()
        ));
    }
    match &output {
        Some(path) => std::fs::write(path, &patch).map_err(|source| Error::Io {
            action: "write the patch",
            source,
        })?,
        None => {
            stdout::send(patch).await;
        }
    }
    Ok(0)
}

fn no_workspace(name: &Reference) -> Error {
    WorkspaceError::None {
        name: name.to_string(),
    }
    .into()
}
