//! Interprets GRUB's configuration to find which entry boots by default, and what it loads.
//!
//! It follows GRUB 2.12 and the output of `grub-mkconfig` on Debian and Ubuntu. It behaves like GRUB
//! when no key is pressed: the menu's default is booted, whatever `timeout` says. It does not write
//! (`save_env` is only recorded), and loads nothing except Linux.
//!
//! GRUB prints an error and goes on where a command fails or is unknown, and so does this. But what
//! the choice depends on is known, or an error: a command whose result cannot be told is one as soon
//! as a condition, `$?` or a variable asks for it. [`interpreter`] has the table of commands.
//!
//! Scripts are hostile: what they cost is charged where it is done, over all files ([`account`]).

mod account;
mod environment;
mod expression;
mod interpreter;
mod number;
mod regexp;
mod syntax;
mod wildcard;

use super::devices::{Devices, Location};
use super::error::BootError;
use super::limits::Limits;
use interpreter::{Choice, Flow, Interpreter};

/// Runs the configuration at `config` as GRUB does when it starts, with `prefix` set to its
/// directory.
///
/// # Errors
/// It ends without a kernel, or does something unsupported.
pub(super) fn run(
    devices: &Devices,
    config: &Location,
    limits: &Limits,
) -> Result<Choice, BootError> {
    let mut grub = Interpreter::new(devices, limits);
    let device = devices
        .get(config.device)
        .map_or("", |device| device.name.as_str());
    let path = devices.display(config);
    let directory = path
        .rsplit_once('/')
        .map_or("", |(directory, _)| directory)
        .to_string();
    for (name, value) in [
        ("root", device),
        ("prefix", directory.as_str()),
        ("cmdpath", &format!("({device})/EFI/BOOT")),
        ("grub_cpu", "x86_64"),
        ("grub_platform", "efi"),
        ("lang", "en"),
        ("feature_chainloader_bpb", "y"),
        ("feature_ntldr", "y"),
        ("feature_platform_search_hint", "y"),
        ("feature_default_font_path", "y"),
        ("feature_all_video_module", "y"),
        ("feature_menuentry_id", "y"),
        ("feature_menuentry_options", "y"),
        ("feature_200_final", "y"),
        ("feature_nativedisk_cmd", "y"),
        ("feature_timeout_style", "y"),
    ] {
        grub.set(name, value)?;
        grub.export(name)?;
    }
    let booted = match grub.file(&path)? {
        Flow::Boot => true,
        _ => grub.menu()?,
    };
    grub.finish(booted, &path)
}

#[cfg(test)]
mod commands_test;
#[cfg(test)]
mod distributions_test;
#[cfg(test)]
mod grub_test;
#[cfg(test)]
mod testing;
