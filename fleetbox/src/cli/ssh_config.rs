//! `ssh-config`.

use fleetbox::ssh_config::SshConfig;
use fleetbox::{Error, Result};

use super::args;
use super::output::Context;

pub(super) async fn run(context: &Context, options: args::SshConfig) -> Result<u8> {
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
    match (options.install, options.install && config.install(&file)?) {
        (true, true) => context.tell(format_args!(
            "{shown} includes {}; `ssh NAME` reaches a VM",
            config.included().display()
        )),
        (true, false) => context.tell(format_args!(
            "{shown} includes {} already",
            config.included().display()
        )),
        (false, _) if config.uninstall(&file)? => {
            context.tell(format_args!("{shown} is as it was"));
        }
        (false, _) => context.tell(format_args!("{shown} has nothing of fleetbox's")),
    }
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
pub(super) fn refresh(context: &Context) {
    let refreshed = config(context).and_then(|config| Ok(config.refresh(false)?));
    if let Err(error) = refreshed {
        context.note(format_args!("`ssh` does not know of the change: {error}"));
    }
}
