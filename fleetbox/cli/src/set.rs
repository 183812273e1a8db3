//! `set`.

use fleetbox::names::Reference;
use fleetbox::{Resize, Result};

use crate::args::Set;
use crate::output::Context;
use crate::{outcome, table};

pub(crate) async fn run(context: &Context, set: Set) -> Result<u8> {
    let change = Resize {
        cpus: set.change.cpus,
        memory: set.change.memory,
    };
    let vm = context.fleet().resize(set.name.as_str(), change).await?;
    let (cpus, memory) = (vm.cpus, vm.memory);
    let vm = Reference::new(vm.cluster, vm.name);
    outcome::print_changed(context, &[(vm.clone(), "changed")]).await?;
    context.tell(format_args!(
        "{vm} has {} and {memory} of memory; start it with `fleetbox up {vm}`",
        table::count(cpus.into(), "vCPU")
    ));
    Ok(0)
}
