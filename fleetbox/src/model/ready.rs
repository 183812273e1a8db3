//! What a VM can be waited for.

use std::fmt;
use std::time::Duration;

use regex_lite::Regex;

/// Largest compiled pattern in bytes.
const PATTERN_LIMIT: usize = 1 << 20;

/// What [`VmBuilder::wait_for`](crate::VmBuilder::wait_for) and [`Vm::wait_for`](crate::Vm::wait_for) wait for.
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
    /// The guest lets fleetbox log in by SSH.
    Ssh,
    /// cloud-init has done all that it was told: packages are installed, commands have run. A
    /// failure of cloud-init's ends the wait.
    CloudInit,
    /// A TCP port of the guest accepts connections.
    Port(u16),
    /// The console, since the VM was started, has shown what this regular expression (of the
    /// [`regex-lite`](https://docs.rs/regex-lite) crate: `\w`, `\d` and `\s` match ASCII) matches,
    /// anywhere in a line or across lines. Escape sequences and carriage returns are left out.
    Console(String),
    /// A shell command in the guest, run again and again, succeeds.
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
    /// Checks what can be before a VM is started.
    ///
    /// # Errors
    /// [`InvalidReady`] for a bad pattern, an empty command, or port 0.
    pub(crate) fn check(&self) -> Result<(), InvalidReady> {
        let why = match self {
            Self::Console(pattern) => return compile(pattern).map(drop),
            Self::Port(0) => "there is no port 0",
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

/// Something that cannot be waited for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("cannot wait for {what}: {why}")]
pub struct InvalidReady {
    /// What was to be waited for.
    pub what: String,
    /// What is wrong with it.
    pub why: String,
}

/// Something that is waited for, and how long.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Awaited {
    pub(crate) what: Ready,
    /// From the VM's start; the builder's boot timeout if not given.
    pub(crate) within: Option<Duration>,
}
