//! Results go to standard output, everything else to standard error.

use std::fmt::Display;
use std::io::{IsTerminal, Write as _};
use std::path::{Path, PathBuf};

use fleetbox::store::Store;
use fleetbox::{Error, Fleet, Result};

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

    /// Prints a result.
    pub(crate) fn say(&self, line: impl Display) {
        // A reader that is gone is not an error.
        let _ = writeln!(std::io::stdout(), "{line}");
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

/// True if standard output may have colours.
pub(crate) fn colours() -> bool {
    colours_on(&std::io::stdout())
}

/// True if a stream may have colours: it is a terminal, and `NO_COLOR` is not set
/// (<https://no-color.org>).
pub(crate) fn colours_on(stream: &impl IsTerminal) -> bool {
    stream.is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}
