//! `ls`.

use fleetbox::Result;
use fleetbox::store::now;

use crate::output::Context;
use crate::{select, table};

pub(crate) async fn run(context: &Context) -> Result<u8> {
    let vms = context.fleet().list().await?;
    if context.json {
        context.say_json(&vms)?;
        return Ok(0);
    }
    let rows = vms
        .into_iter()
        .map(|vm| {
            Ok([
                // The shown name is unambiguous.
                select::reference(&vm)?.to_string(),
                table::state(vm.state, vm.device_error.is_some()),
                vm.image,
                vm.cpus.to_string(),
                vm.memory.to_string(),
                vm.disk.to_string(),
                vm.ip.to_string(),
                table::age(now().saturating_sub(vm.created)),
            ])
        })
        .collect::<Result<Vec<_>>>()?;
    let head = [
        "NAME", "STATE", "IMAGE", "CPUS", "MEMORY", "DISK", "IP", "AGE",
    ];
    table::print(context, head, &rows);
    Ok(0)
}
