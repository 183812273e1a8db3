//! `ssh-config`.

use fleetbox::ssh_config::SshConfig;
use fleetbox::{Error, Result};

use crate::args;
use crate::output::Context;

pub(crate) async fn run(context: &Context, options: args::SshConfig) -> Result<u8> {
    let config = config(context)?;
    if !options.install && !options.uninstall {
        context.say(config.text()?.trim_end());
        return Ok(0);
    }
    let file = match options.file {
        Some(file) => file,
        None => SshConfig::default_file()?,
    };
    let shown = file.display();
    let included = config.included();
    let (result, text) = if options.install {
        let includes = format!("{shown} includes {}", included.display());
        if config.install(&file)? {
            ("installed", format!("{includes}; `ssh NAME` reaches a VM"))
        } else {
            ("unchanged", format!("{includes} already"))
        }
    } else if config.uninstall(&file)? {
        ("uninstalled", format!("{shown} is as it was"))
    } else {
        ("unchanged", format!("{shown} has nothing of fleetbox's"))
    };
    if context.json {
        context.say_json(&serde_json::json!({
            "file": file,
            "included": included,
            "result": result,
        }))?;
    }
    context.tell(text);
    Ok(0)
}

fn config(context: &Context) -> Result<SshConfig> {
    let program = std::env::current_exe().map_err(|source| Error::Io {
        action: "find this program",
        source,
    })?;
    Ok(SshConfig::new(&context.store()?, &program))
}

/// Tells OpenSSH which VMs there are now, if it was told of any.
pub(crate) fn refresh(context: &Context) {
    let refreshed = config(context).and_then(|config| Ok(config.refresh(false)?));
    if let Err(error) = refreshed {
        context.note(format_args!("`ssh` does not know of the change: {error}"));
    }
}
