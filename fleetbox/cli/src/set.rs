//! `set`.

use fleetbox::names::Reference;
use fleetbox::{Resize, Result};

use crate::args::Set;
use crate::outcome;
use crate::output::Context;

pub(crate) async fn run(context: &Context, set: Set) -> Result<u8> {
    let change = Resize {
        cpus: set.cpus,
        memory: set.memory,
    };
    let vm = context.fleet().resize(set.name.as_str(), change).await?;
    let (cpus, memory) = (vm.cpus, vm.memory);
    let vm = Reference::new(vm.cluster, vm.name);
    outcome::print_changed(context, &[(vm.clone(), "changed")]).await?;
    context.tell(format_args!(
        "{vm} has {cpus} vCPUs and {memory} of memory; start it with `fleetbox up {vm}`"
    ));
    Ok(0)
}
