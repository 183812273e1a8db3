//! `ssh-config`.

use fleetbox::ssh_config::SshConfig;
use fleetbox::{Error, Result};

use crate::args;
use crate::output::Context;

pub(crate) async fn run(context: &Context, options: args::SshConfig) -> Result<u8> {
    let config = config(context)?;
    if !options.install && !options.uninstall {
        let text = config.text()?;
        if text.is_empty() {
            context
                .note("there is no VM yet; `fleetbox ssh-config --install` includes those to come");
        } else {
            // The file that it is appended to may end within a line.
            context.say(format_args!(
                "\n# VMs of fleetbox. `fleetbox ssh-config --install` keeps such a list up to date.\n{}",
                text.trim_end()
            ));
        }
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
            (
                "installed",
                format!("{includes}; log in to a VM with `ssh NAME`"),
            )
        } else {
            ("unchanged", format!("{includes} already"))
        }
    } else if config.uninstall(&file)? {
        ("uninstalled", format!("removed the Include from {shown}"))
    } else {
        (
            "unchanged",
            format!("{shown} includes nothing of fleetbox's"),
        )
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

/// Updates OpenSSH's configuration after a change of VMs, if it is installed.
pub(crate) fn refresh(context: &Context) {
    let refreshed = config(context).and_then(|config| Ok(config.refresh(false)?));
    if let Err(error) = refreshed {
        context.note(format_args!(
            "cannot update the configuration of OpenSSH: {error}"
        ));
    }
}
