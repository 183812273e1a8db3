//! Waiting until a VM is ready.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use regex_lite::Regex;
use tokio::time::{Instant, sleep, timeout_at};

use crate::error::{Error, Result, VmFate};
use crate::model::ready::{Ready, compile};
use crate::process::{Client, ProcessError};
use crate::progress::ProgressEvent;
use crate::ssh;
use crate::store::VmDir;
use crate::util::text::{last_lines, printable};
use crate::vm::logs::ConsoleLog;
use crate::vm::{SSH_PORT, Vm, attach};

/// Lines of the console that an error contains.
const CONSOLE_LINES: usize = 40;
/// Pause after the first attempt.
const SHORTEST_PAUSE: Duration = Duration::from_millis(50);
/// Longest pause between attempts.
const LONGEST_PAUSE: Duration = Duration::from_millis(500);
/// How long one connection to a port may take. A guest that has not booted yet does not answer at
/// all.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// Characters from earlier reads of the console that are kept, because a match may begin there.
const OVERLAP: usize = 16 << 10;

/// Result of one attempt.
enum Probe {
    Ready,
    /// Not yet, and why.
    NotYet(String),
    /// Never, and why.
    Failed(String),
}

impl Vm {
    /// Waits for the builder's conditions, or until the guest answers over SSH if there is one. A
    /// `new` machine takes long enough to report progress.
    pub(crate) async fn wait_until_up(&self, deadline: Instant, new: bool) -> Result<()> {
        let tell = |what: &Ready| {
            if new {
                let (vm, what) = (self.name.as_str(), &what.to_string());
                self.progress.event(ProgressEvent::WaitingFor { vm, what });
            }
        };
        if self.conditions.is_empty() && self.backend.has_guest() {
            tell(&Ready::Ssh);
            self.wait_for_ssh(deadline).await?;
        }
        let begun = Instant::now();
        for conditions in &self.conditions {
            tell(&conditions.what);
            let deadline = conditions.within.map_or(deadline, |within| begun + within);
            self.wait_until(&conditions.what, deadline).await?;
        }
        Ok(())
    }

    /// The error of a VM that did not become ready, with the last lines of its console.
    pub(crate) async fn not_ready(&self, why: String) -> Error {
        let console = self.console_tail().await.unwrap_or_default();
        let left = match self.is_held() {
            true => VmFate::Held,
            false => fate(&self.dir, &self.client).await,
        };
        Error::NotReady {
            name: self.name.clone(),
            why,
            console: last_lines(&console, CONSOLE_LINES).to_owned(),
            left,
        }
    }

    /// Waits until the guest answers over SSH or its machine ends.
    pub(crate) async fn wait_for_ssh(&self, deadline: Instant) -> Result<()> {
        let connect = || async {
            self.client
                .dial(&self.target(), SSH_PORT)
                .await
                .map_err(io::Error::other)
        };
        let target = self.target();
        let ready = ssh::wait_ready(connect, &self.target, deadline);
        let error = tokio::select! {
            ready = ready => match ready {
                Ok(session) => {
                    *self.session.lock().await = Some(Arc::new(session));
                    return Ok(());
                }
                Err(error) => error.to_string(),
            },
            ended = self.client.wait(&target) => match ended {
                Ok(report) => match report.failure {
                    // It already contains the console's last lines.
                    Some(failure) => return Err(ProcessError::Failed(failure).into()),
                    None => "the guest powered off before it answered over SSH".to_owned(),
                },
                Err(error) => error.to_string(),
            },
        };
        Err(self.not_ready(error).await)
    }

    /// Waits until the guest answers over SSH, for example again after a reboot.
    ///
    /// ```no_run
    /// # async fn example(vm: fleetbox::Vm) -> fleetbox::Result<()> {
    /// # use std::time::Duration;
    /// vm.ssh("sudo reboot").await.ok(); // the connection may be lost before the command ends
    /// tokio::time::sleep(Duration::from_secs(5)).await;
    /// vm.wait_ready(Duration::from_secs(120)).await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Error::NotReady`] at the deadline, with the console's last lines.
    pub async fn wait_ready(&self, timeout: Duration) -> Result<()> {
        self.wait_for_ssh(Instant::now() + timeout).await
    }

    /// Waits until the guest meets the condition, for at most `timeout`.
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
    /// [`Error::NotReady`] after `timeout`, with the last attempt and the last lines of the
    /// console; [`Error::Process`] if the VM ends; [`Error::Ready`] for an invalid condition.
    pub async fn wait_for(&self, ready: Ready, timeout: Duration) -> Result<()> {
        ready.check()?;
        self.wait_until(&ready, Instant::now() + timeout).await
    }

    /// Like [`Vm::wait_for`], for a condition that was already checked.
    pub(crate) async fn wait_until(&self, ready: &Ready, deadline: Instant) -> Result<()> {
        if *ready == Ready::Ssh {
            return self.wait_for_ssh(deadline).await;
        }
        let begun = Instant::now();
        let mut last = String::new();
        let probed = tokio::select! {
            probed = timeout_at(deadline, self.probe_until(ready, deadline, &mut last)) => probed,
            ended = self.ended() => match ended {
                // It already contains the console's last lines.
                Err(error @ Error::Process(ProcessError::Failed(_))) => return Err(error),
                Err(error) => return Err(self.not_ready(error.to_string()).await),
                Ok(why) => return Err(self.not_ready(why).await),
            },
        };
        let why = match probed {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(why)) => format!("gave up waiting for {ready}: {why}"),
            Err(_) => {
                let waited = begun.elapsed();
                let last = if last.is_empty() { "no answer" } else { &last };
                format!("timed out after {waited:.1?} waiting for {ready}; last attempt: {last}")
            }
        };
        Err(self.not_ready(why).await)
    }

    /// Waits for the machine's end, which is unexpected here: an error, or a text that describes
    /// it.
    async fn ended(&self) -> Result<String> {
        match self.wait().await {
            Ok(()) => Ok("the guest powered off before it was ready".to_owned()),
            Err(error) => Err(error),
        }
    }

    /// Tries until the condition is met. It fails only if waiting longer would not help.
    async fn probe_until(
        &self,
        ready: &Ready,
        deadline: Instant,
        last: &mut String,
    ) -> std::result::Result<(), String> {
        if matches!(ready, Ready::CloudInit | Ready::Command(_)) {
            "the guest does not answer over SSH".clone_into(last);
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
            let probe = match ready {
                Ready::Ssh => Probe::Ready,
                Ready::CloudInit => self.probe_cloud_init().await,
                Ready::Port(port) => self.probe_port(*port).await,
                Ready::Command(command) => self.probe_command(command).await,
                Ready::Console(_) => match console.as_mut().map(ConsoleWatch::probe) {
                    Some(Ok(true)) | None => Probe::Ready,
                    Some(Ok(false)) => Probe::NotYet("the pattern has not appeared".to_owned()),
                    Some(Err(error)) => {
                        Probe::NotYet(format!("cannot read the console log: {error}"))
                    }
                },
            };
            match probe {
                Probe::Ready => return Ok(()),
                Probe::Failed(why) => return Err(why),
                Probe::NotYet(why) => *last = why,
            }
            sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    async fn probe_port(&self, port: u16) -> Probe {
        match tokio::time::timeout(CONNECT_LIMIT, self.connect(port)).await {
            Ok(Ok(_)) => Probe::Ready,
            Ok(Err(error)) => Probe::NotYet(error.to_string()),
            Err(_) => Probe::NotYet("no answer".to_owned()),
        }
    }

    async fn probe_command(&self, command: &str) -> Probe {
        match self.ssh(command).await {
            Ok(output) if output.success() => Probe::Ready,
            Ok(output) => Probe::NotYet(format!("{}{}", output.status, last_said(&output.stderr))),
            // The guest may be about to reboot.
            Err(error) => Probe::NotYet(error.to_string()),
        }
    }

    async fn probe_cloud_init(&self) -> Probe {
        let output = match self.ssh("cloud-init status --wait --long").await {
            Ok(output) => output,
            Err(error) => return Probe::NotYet(error.to_string()),
        };
        match output.status.code() {
            // 2 is success with warnings (cloud-init 23.4 and later).
            Some(0 | 2) => Probe::Ready,
            Some(127) => Probe::Failed("the guest has no cloud-init".to_owned()),
            _ => Probe::Failed(format!(
                "cloud-init failed ({}): {}; see /var/log/cloud-init-output.log in the guest",
                output.status,
                last_lines_of(&output.stdout),
            )),
        }
    }
}

/// What happened to a VM that has no owner. A machine that is about to end is given time for that: it ends a moment
/// after its worker was killed.
pub(super) async fn fate(dir: &VmDir, client: &Client) -> VmFate {
    let vm = || Box::new(dir.reference());
    let deadline = Instant::now() + attach::ENDING;
    loop {
        match dir.is_running() {
            Ok(false) if dir.check().is_err() => return VmFate::Deleted,
            Ok(false) => return VmFate::Stopped(vm()),
            Ok(true) | Err(_) => {}
        }
        let serving = match client.list().await {
            Ok(machines) => {
                let mut machines = machines.iter();
                machines.any(|machine| machine.name == dir.name().as_str() && machine.running)
            }
            Err(error) => !error.is_worker_gone(),
        };
        if serving || Instant::now() > deadline {
            return VmFate::Running(vm());
        }
        sleep(SHORTEST_PAUSE).await;
    }
}

/// A colon and the last line of an output, or nothing.
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

/// Searches a growing console log for a pattern.
struct ConsoleWatch {
    log: ConsoleLog,
    pattern: Regex,
    seen: String,
}

impl ConsoleWatch {
    /// True if the pattern has appeared.
    fn probe(&mut self) -> Result<bool> {
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
