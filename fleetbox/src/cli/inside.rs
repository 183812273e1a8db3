//! Commands about what is in a guest: `ports`.

use fleetbox::guest;
use fleetbox::names::Name;
use fleetbox::{Result, Vm};

use super::output::Context;
use super::table;

pub(super) async fn ports(context: &Context, name: &Name) -> Result<u8> {
    let vm = Vm::open_in(context.home(), name.as_str()).await?;
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
    context.say(table::render(head, &rows, false));
    Ok(0)
}
