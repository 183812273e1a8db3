//! `proxy`.

use std::net::SocketAddr;

use fleetbox::Result;
use fleetbox::proxy::Proxy;

use crate::output::Context;
use crate::stdout;

pub(crate) async fn run(context: &Context, listen: SocketAddr) -> Result<u8> {
    let proxy = Proxy::bind(&context.fleet(), listen).await?;
    let address = proxy.address();
    if context.json {
        context.say_json(&serde_json::json!({"address": address}))?;
    } else {
        // At once: a reader may want the first line only.
        context.say(format_args!("socks5h://{address}\nhttp://{address}"));
    }
    if stdout::failure().is_some() {
        // A proxy with an unknown address is of no use.
        return Ok(0);
    }
    context.note("serving until interrupted with Ctrl-C");
    proxy.serve().await?;
    Ok(0)
}
