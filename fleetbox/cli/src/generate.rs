//! Completions and manual pages, generated from the description of the arguments.

use std::io;
use std::path::Path;

use clap::CommandFactory as _;
use clap_complete::Shell;
use fleetbox::{Error, Result};

use crate::args::Cli;
use crate::stdout;

pub(crate) fn completions(shell: Shell) -> u8 {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "fleetbox", &mut text);
    stdout::write(&text);
    0
}

pub(crate) fn man(dir: Option<&Path>) -> Result<u8> {
    match dir {
        Some(dir) => std::fs::create_dir_all(dir)
            .and_then(|()| clap_mangen::generate_to(Cli::command(), dir))
            .map(|()| 0)
            .map_err(failed("write the manual pages")),
        None => {
            let mut text = Vec::new();
            clap_mangen::Man::new(Cli::command())
                .render(&mut text)
                .map_err(failed("write the manual page"))?;
            stdout::write(&text);
            Ok(0)
        }
    }
}

fn failed(action: &'static str) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::Io { action, source }
}
