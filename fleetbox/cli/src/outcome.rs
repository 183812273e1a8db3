//! What a command did to each VM, for people and as JSON.

use std::future::Future;

use fleetbox::names::Reference;
use fleetbox::{Result, VmInfo};
use futures::future::join_all;
use serde::Serialize;

use crate::exit::FAILURE;
use crate::output::Context;
use crate::progress::Display;
use crate::{select, sudo};

/// The result for a VM that still exists, with what `ls` shows of it.
#[derive(Debug, Serialize)]
struct Change {
    #[serde(flatten)]
    vm: VmInfo,
    result: &'static str,
}

/// Prints, if JSON was asked for, the result for each VM and its state now.
pub(crate) async fn print_changed(
    context: &Context,
    results: &[(Reference, &'static str)],
) -> Result<()> {
    if !context.json {
        return Ok(());
    }
    let mut changes = Vec::new();
    for (name, result) in results {
        changes.push(Change {
            vm: select::info(context, name).await?,
            result,
        });
    }
    context.say_json(&changes)
}

/// The result for a VM, which may be gone.
#[derive(Debug, Serialize)]
pub(crate) struct Outcome {
    name: String,
    cluster: String,
    result: &'static str,
    /// The line for people.
    #[serde(skip)]
    text: String,
}

impl Outcome {
    pub(crate) fn new(vm: &Reference, result: &'static str, text: impl Into<String>) -> Self {
        Self {
            name: vm.name().to_string(),
            cluster: select::cluster_of(vm).to_string(),
            result,
            text: text.into(),
        }
    }

    pub(crate) fn text(&self) -> &str {
        &self.text
    }
}

/// Does `work` for all of `items` at once, and reports each outcome as it comes.
pub(crate) async fn for_each<T, F: Future<Output = Result<Vec<Outcome>>>>(
    context: &Context,
    display: Option<&Display>,
    (items, mut status): (Vec<T>, u8),
    work: impl Fn(T) -> F,
) -> Result<u8> {
    let outcomes = join_all(items.into_iter().map(|item| async {
        let outcomes = work(item).await;
        let print = || match &outcomes {
            Ok(outcomes) => outcomes.iter().for_each(|vm| context.tell(vm.text())),
            Err(error) => sudo::complain(context.home(), error),
        };
        match display {
            Some(display) => display.suspend(print),
            None => print(),
        }
        outcomes
    }))
    .await;
    if outcomes.iter().any(Result::is_err) {
        status = FAILURE;
    }
    if context.json {
        let outcomes: Vec<_> = outcomes.into_iter().flatten().flatten().collect();
        context.say_json(&outcomes)?;
    }
    Ok(status)
}
