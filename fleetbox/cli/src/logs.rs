//! `logs`.

use std::time::Duration;

use fleetbox::Result;

use crate::args::Logs;
use crate::output::Context;
use crate::stdout;

/// How often the log is read.
const POLL: Duration = Duration::from_millis(100);

pub(crate) async fn run(context: &Context, logs: Logs) -> Result<u8> {
    let mut log = context.fleet().console_log(logs.name.as_str()).await?;
    if !stdout::write(log.existing(logs.lines)?.as_bytes()) || !logs.follow {
        return Ok(0);
    }
    loop {
        // Asked before reading, so that nothing written before the end is missed.
        let running = log.is_running()?;
        let text = log.next(!running)?;
        if !stdout::send(text.into()).await || !running || stdout::is_closed() {
            return Ok(0);
        }
        tokio::time::sleep(POLL).await;
    }
}
