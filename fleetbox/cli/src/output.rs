//! Results go to standard output, everything else to standard error.

use std::fmt::Display;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use fleetbox::store::Store;
use fleetbox::{Error, Fleet, Result};

use crate::exit::PIPE;
use crate::stdout::{self, Stream};

/// The options of all commands.
pub(crate) struct Context {
    pub(crate) home: Option<PathBuf>,
    pub(crate) quiet: bool,
    pub(crate) json: bool,
}

impl Context {
    /// The state directory, if one was given.
    pub(crate) fn home(&self) -> Option<&Path> {
        self.home.as_deref()
    }

    /// The VMs of the state directory.
    pub(crate) fn fleet(&self) -> Fleet {
        match &self.home {
            Some(home) => Fleet::at(home),
            None => Fleet::new(),
        }
    }

    /// Opens the state directory.
    pub(crate) fn store(&self) -> Result<Store> {
        Ok(match &self.home {
            Some(home) => Store::open(home)?,
            None => Store::open_default()?,
        })
    }

    /// Prints a result. An error is told at the end, by [`conclude`].
    pub(crate) fn say(&self, line: impl Display) {
        stdout::write(format!("{line}\n").as_bytes());
    }

    /// Prints what was done on standard output; not with `--quiet` or with `--json`.
    pub(crate) fn tell(&self, line: impl Display) {
        if !self.quiet && !self.json {
            self.say(line);
        }
    }

    /// Prints the result alone with `--quiet`, in place of a line of [`Context::tell`].
    pub(crate) fn answer(&self, answer: impl Display) {
        if self.quiet && !self.json {
            self.say(answer);
        }
    }

    /// Prints a remark on standard error; not with `--quiet`.
    pub(crate) fn note(&self, line: impl Display) {
        if !self.quiet {
            let _ = writeln!(std::io::stderr(), "{line}");
        }
    }

    /// Prints `value` as JSON.
    pub(crate) fn say_json(&self, value: &impl serde::Serialize) -> Result<()> {
        let text = serde_json::to_string_pretty(value).map_err(|error| Error::Io {
            action: "write JSON",
            source: error.into(),
        })?;
        self.say(text);
        Ok(())
    }
}

/// Prints an error on standard error.
pub(crate) fn complain(error: impl Display) {
    let _ = writeln!(std::io::stderr(), "fleetbox: {error}");
}

/// The exit status of a command that ended with `status`. If its output could not be written, that is reported, and
/// the status is `failure`; or [`PIPE`] without a word if the reader was gone.
pub(crate) fn conclude(status: u8, failure: u8) -> u8 {
    let Some(lost) = stdout::failure() else {
        return status;
    };
    if lost.is_quiet() {
        return PIPE;
    }
    let stream = match lost.stream {
        Stream::Output => "standard output",
        Stream::Errors => "standard error",
    };
    let error = std::io::Error::from(lost.error);
    complain(format_args!("cannot write to {stream}: {error}"));
    failure
}
