//! `proxy`.

use std::net::SocketAddr;

use fleetbox::Result;
use fleetbox::proxy::Proxy;

use crate::output::Context;

pub(crate) async fn run(context: &Context, listen: SocketAddr) -> Result<u8> {
    let proxy = Proxy::bind(&context.fleet(), listen).await?;
    let address = proxy.address();
    if context.json {
        context.say_json(&serde_json::json!({"address": address}))?;
    } else {
        context.say(format_args!("socks5h://{address}"));
        context.say(format_args!("http://{address}"));
    }
    context.note("serving until interrupted with Ctrl-C");
    proxy.serve().await?;
    Ok(0)
}
