//! Conditions to wait for.

use std::fmt;
use std::time::Duration;

use regex_lite::Regex;

use crate::util::readable::readable_debug;

/// Maximum bytes of a compiled pattern.
const PATTERN_LIMIT: usize = 1 << 20;

/// A condition for [`VmBuilder::wait_for`](crate::VmBuilder::wait_for) and [`Vm::wait_for`](crate::Vm::wait_for) to
/// wait for.
///
/// ```no_run
/// # async fn example() -> fleetbox::Result<()> {
/// use fleetbox::{Ready, Vm};
///
/// let vm = Vm::test()
///     .package("nginx")
///     .wait_for(Ready::CloudInit)
///     .wait_for(Ready::Port(80))
///     .start()
///     .await?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Ready {
    /// fleetbox can log in to the guest over SSH.
    Ssh,
    /// cloud-init has finished: packages are installed, commands have run. If cloud-init fails, the
    /// wait fails.
    CloudInit,
    /// A TCP port of the guest accepts connections.
    Port(u16),
    /// The console has shown text that matches this regular expression since the VM was started,
    /// anywhere in a line or across lines. Escape sequences and carriage returns are removed first.
    /// The syntax is that of the [`regex-lite`](https://docs.rs/regex-lite) crate: `\w`, `\d` and
    /// `\s` match ASCII only.
    Console(String),
    /// A shell command in the guest succeeds. It is run repeatedly until then.
    Command(String),
}

impl fmt::Display for Ready {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ssh => f.write_str("SSH"),
            Self::CloudInit => f.write_str("the end of cloud-init"),
            Self::Port(port) => write!(f, "TCP port {port}"),
            Self::Console(pattern) => write!(f, "/{pattern}/ on the console"),
            Self::Command(command) => write!(f, "success of `{command}`"),
        }
    }
}

impl Ready {
    /// Checks the condition as far as possible without a VM.
    ///
    /// # Errors
    /// [`InvalidReady`] for a bad pattern, an empty command, or port 0.
    pub(crate) fn check(&self) -> Result<(), InvalidReady> {
        let why = match self {
            Self::Console(pattern) => return compile(pattern).map(drop),
            Self::Port(0) => "port 0 is not a real port",
            Self::Command(command) if command.trim().is_empty() => "the command is empty",
            _ => return Ok(()),
        };
        Err(InvalidReady {
            what: self.to_string(),
            why: why.to_owned(),
        })
    }
}

/// The compiled pattern of [`Ready::Console`].
pub(crate) fn compile(pattern: &str) -> Result<Regex, InvalidReady> {
    regex_lite::RegexBuilder::new(pattern)
        .size_limit(PATTERN_LIMIT)
        .build()
        .map_err(|error| InvalidReady {
            what: Ready::Console(pattern.to_owned()).to_string(),
            why: error.to_string(),
        })
}

/// A condition is invalid.
#[derive(Clone, PartialEq, Eq, thiserror::Error)]
#[error("cannot wait for {what}: {why}")]
pub struct InvalidReady {
    /// The condition.
    pub what: String,
    /// What is wrong with it.
    pub why: String,
}

readable_debug!(InvalidReady);

/// A condition to wait for, and for how long.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct WaitCondition {
    pub(crate) what: Ready,
    /// Time limit, from the VM's start. The default is the builder's boot timeout.
    pub(crate) within: Option<Duration>,
}
