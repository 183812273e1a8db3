//! What a VM is waited for before it counts as started.

use std::fmt;
use std::time::Duration;

use regex::Regex;
use tokio::time::{Instant, sleep, timeout_at};

use crate::logs::ConsoleLog;
use crate::process::printable;
use crate::{Error, Result, Vm};

/// Pause after a first attempt.
const SHORTEST_PAUSE: Duration = Duration::from_millis(50);
/// Pause after many.
const LONGEST_PAUSE: Duration = Duration::from_millis(500);
/// How long one connection to a port may take; a guest that is not there answers nothing.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// Characters of the console that a match may reach back over what was read at once.
const OVERLAP: usize = 16 << 10;
/// Largest compiled pattern in bytes.
const PATTERN_LIMIT: usize = 1 << 20;

/// What [`VmBuilder::wait_for`](crate::VmBuilder::wait_for) and [`Vm::wait_for`] wait for.
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
    /// [`regex`](https://docs.rs/regex) crate) matches, anywhere in a line or across lines. Escape
    /// sequences and carriage returns are left out.
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
    /// [`Error::Ready`] for a pattern that is none, an empty command, or port 0.
    pub(crate) fn check(&self) -> Result<()> {
        let why = match self {
            Self::Console(pattern) => return compile(pattern).map(drop),
            Self::Port(0) => "there is no port 0",
            Self::Command(command) if command.trim().is_empty() => "the command is empty",
            _ => return Ok(()),
        };
        Err(Error::Ready {
            what: self.to_string(),
            why: why.to_owned(),
        })
    }
}

fn compile(pattern: &str) -> Result<Regex> {
    regex::RegexBuilder::new(pattern)
        .size_limit(PATTERN_LIMIT)
        .build()
        .map_err(|error| Error::Ready {
            what: Ready::Console(pattern.to_owned()).to_string(),
            why: error.to_string(),
        })
}

/// Something that is waited for, and how long.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Awaited {
    pub(crate) what: Ready,
    /// From the VM's start; the builder's boot timeout if not given.
    pub(crate) within: Option<Duration>,
}

/// How one look went.
enum Look {
    Ready,
    /// Not yet, and why.
    NotYet(String),
    /// Never, and why.
    Failed(String),
}

impl Vm {
    /// Waits until the guest is ready in this way, and no longer than `timeout`.
    ///
    /// ```no_run
    /// # async fn example(vm: fleetbox::Vm) -> fleetbox::Result<()> {
    /// use std::time::Duration;
    /// use fleetbox::Ready;
    ///
    /// vm.ssh("sudo systemctl start nginx").await?;
    /// vm.wait_for(Ready::Port(80), Duration::from_secs(30)).await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::NotReady`] at the deadline says what was awaited and what was seen last, with the
    /// console's last lines; [`Error::Process`] if the VM ends; [`Error::Ready`] for a pattern
    /// that is none.
    pub async fn wait_for(&self, ready: Ready, timeout: Duration) -> Result<()> {
        ready.check()?;
        self.wait_until(&ready, Instant::now() + timeout).await
    }

    /// As [`Vm::wait_for`], of something that was checked.
    pub(crate) async fn wait_until(&self, ready: &Ready, deadline: Instant) -> Result<()> {
        if *ready == Ready::Ssh {
            return self.wait_for_ssh(deadline).await;
        }
        let begun = Instant::now();
        let mut last = String::new();
        let looked = tokio::select! {
            looked = timeout_at(deadline, self.look_until(ready, deadline, &mut last)) => looked,
            ended = self.ended() => return Err(self.not_ready(ended?).await),
        };
        let why = match looked {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(why)) => format!("{ready} was awaited, and will not come: {why}"),
            Err(_) => {
                let waited = begun.elapsed();
                let last = if last.is_empty() { "no answer" } else { &last };
                format!("{ready} was awaited for {waited:.1?} in vain; the last look: {last}")
            }
        };
        Err(self.not_ready(why).await)
    }

    /// The machine's end, which nobody asked for: an error, or in words.
    async fn ended(&self) -> Result<String> {
        match self.wait().await {
            Ok(()) => Ok("the guest powered off before it was ready".to_owned()),
            Err(error) => Err(error),
        }
    }

    /// Looks again and again. The error is one that waiting does not mend.
    async fn look_until(
        &self,
        ready: &Ready,
        deadline: Instant,
        last: &mut String,
    ) -> std::result::Result<(), String> {
        if matches!(ready, Ready::CloudInit | Ready::Command(_)) {
            "the guest does not answer by SSH".clone_into(last);
            if let Err(error) = self.wait_for_ssh(deadline).await {
                return Err(match error {
                    Error::NotReady { why, .. } => why,
                    error => error.to_string(),
                });
            }
        }
        let mut console = match ready {
            Ready::Console(pattern) => {
                let pattern = compile(pattern).map_err(|error| error.to_string())?;
                Some(ConsoleWatch {
                    log: ConsoleLog::of(self.dir().clone()),
                    pattern,
                    seen: String::new(),
                })
            }
            _ => None,
        };
        let mut pause = SHORTEST_PAUSE;
        loop {
            let look = match ready {
                Ready::Ssh => Look::Ready,
                Ready::CloudInit => self.look_at_cloud_init().await,
                Ready::Port(port) => self.look_at_port(*port).await,
                Ready::Command(command) => self.look_at_command(command).await,
                Ready::Console(_) => match console.as_mut().map(ConsoleWatch::look) {
                    Some(Ok(true)) | None => Look::Ready,
                    Some(Ok(false)) => Look::NotYet("it has not been shown".to_owned()),
                    Some(Err(error)) => Look::NotYet(format!("the log cannot be read: {error}")),
                },
            };
            match look {
                Look::Ready => return Ok(()),
                Look::Failed(why) => return Err(why),
                Look::NotYet(why) => *last = why,
            }
            sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    async fn look_at_port(&self, port: u16) -> Look {
        match tokio::time::timeout(CONNECT_LIMIT, self.connect(port)).await {
            Ok(Ok(_)) => Look::Ready,
            Ok(Err(error)) => Look::NotYet(error.to_string()),
            Err(_) => Look::NotYet("no answer".to_owned()),
        }
    }

    async fn look_at_command(&self, command: &str) -> Look {
        match self.ssh(command).await {
            Ok(output) if output.success() => Look::Ready,
            Ok(output) => Look::NotYet(format!("{}{}", output.status, last_said(&output.stderr))),
            // The guest may be about to reboot.
            Err(error) => Look::NotYet(error.to_string()),
        }
    }

    async fn look_at_cloud_init(&self) -> Look {
        let output = match self.ssh("cloud-init status --wait --long").await {
            Ok(output) => output,
            Err(error) => return Look::NotYet(error.to_string()),
        };
        match output.status.code() {
            // 2 is success with warnings (cloud-init 23.4 and later).
            Some(0 | 2) => Look::Ready,
            Some(127) => Look::Failed("the guest has no cloud-init".to_owned()),
            _ => Look::Failed(format!(
                "cloud-init failed ({}): {}; /var/log/cloud-init-output.log in the guest says more",
                output.status,
                last_lines_of(&output.stdout),
            )),
        }
    }
}

/// The last line of an output, if it has one, after a colon.
fn last_said(bytes: &[u8]) -> String {
    let text = printable(
        bytes
            .get(bytes.len().saturating_sub(2000)..)
            .unwrap_or_default(),
    );
    match text.trim_end().lines().last() {
        Some(line) if !line.is_empty() => format!(": {line}"),
        _ => String::new(),
    }
}

fn last_lines_of(bytes: &[u8]) -> String {
    let text = printable(bytes.get(..2000.min(bytes.len())).unwrap_or_default());
    text.trim().replace('\n', "; ")
}

/// Looks for a pattern in a console's log as it grows.
struct ConsoleWatch {
    log: ConsoleLog,
    pattern: Regex,
    seen: String,
}

impl ConsoleWatch {
    /// True if the pattern has been shown.
    fn look(&mut self) -> Result<bool> {
        let new = self.log.next(false)?;
        if new.is_empty() {
            return Ok(false);
        }
        self.seen.push_str(&new);
        if self.pattern.is_match(&self.seen) {
            return Ok(true);
        }
        let excess = self.seen.len().saturating_sub(OVERLAP);
        let cut = (excess..=self.seen.len()).find(|at| self.seen.is_char_boundary(*at));
        self.seen.drain(..cut.unwrap_or(0));
        Ok(false)
    }
}
