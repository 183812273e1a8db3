//! `logs`.

use std::io::Write as _;
use std::time::Duration;

use fleetbox::Result;

use crate::args::Logs;
use crate::output::Context;

/// How often the log is read.
const POLL: Duration = Duration::from_millis(100);

pub(crate) async fn run(context: &Context, logs: Logs) -> Result<u8> {
    let mut log = context.fleet().console_log(logs.name.as_str()).await?;
    if !print(log.existing(logs.lines)?.as_bytes()) || !logs.follow {
        return Ok(0);
    }
    loop {
        // Asked before reading, so that nothing written before the end is missed.
        let running = log.is_running()?;
        let text = log.next(!running)?;
        if !print(text.as_bytes()) {
            return Ok(0);
        }
        if !running {
            return Ok(0);
        }
        tokio::time::sleep(POLL).await;
    }
}

/// False if the reader is gone.
fn print(text: &[u8]) -> bool {
    let mut out = std::io::stdout();
    out.write_all(text).and_then(|()| out.flush()).is_ok()
}
