//! One machine as its worker sees it: a process, its console, and how it ended.

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use fleetbox_net::{Attachment, Forward};
use nix::sys::signal::Signal;
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::process::{Child, Command};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{broadcast, mpsc, watch};
use tokio::time::{Instant, timeout};

use super::console::Console;
use super::protocol::{
    ExitReport, MachineCommand, MachineConfig, MachineEvent, MachineSpec, MemberId,
};
use super::spawn::{self, Role};
use super::trouble::Trouble;
use super::wire::{self, Frame};
use crate::host::budget::Held;
use crate::model::event::{Event, TimedEvent, from_machine};
use crate::store::{self, Lock};
use crate::util::fs::{remove_file_if_there, write_atomic};
use crate::util::sync::lock;
use crate::util::text::{last_lines, printable};

/// Lines of console output in the message of a failure.
const LINES_IN_ERROR: usize = 30;

/// Commands that wait for a machine process to read them; further ones are dropped.
const UNREAD_COMMANDS: usize = 1024;

/// Maximum number of events that are kept from a machine's run.
const EVENTS_KEPT: usize = 256;

/// Maximum number of forwarded ports that are listed.
const FORWARDS_TOLD: usize = 1024;

/// How long a machine process may take to end once it has closed its socket, and its socket to
/// drain once it has ended.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// How long to wait for the VM's lock while a process that holds it ends.
const LOCK_PATIENCE: Duration = Duration::from_secs(3);

/// How often the claim of a VM's memory is refreshed. If its file was removed, it is created again.
const REFRESH: Duration = Duration::from_secs(60);

/// The state of a machine.
#[derive(Debug, Clone)]
pub(super) enum State {
    /// The process has been started.
    Starting,
    /// The vCPUs are running.
    Running,
    /// The process is gone.
    Ended(ExitReport),
}

enum Order {
    PowerButton,
    Type(Vec<u8>),
    Kill,
}

/// A machine process and what is known about it.
pub(super) struct Member {
    name: String,
    /// What tells its VM from another of that name.
    id: Option<String>,
    ip: Ipv4Addr,
    console: Mutex<Console>,
    state: watch::Sender<State>,
    orders: mpsc::UnboundedSender<Order>,
    // By the host's port, 0 for one that was not chosen, and the guest's.
    forwards: Mutex<BTreeMap<(u16, u16), Forward>>,
    failure_note: PathBuf,
    trouble: Mutex<Trouble>,
    events: Mutex<History>,
    /// The vCPUs have run.
    ran: AtomicBool,
}

/// The events of a machine so far, and the receivers of later ones.
struct History {
    past: Vec<TimedEvent>,
    live: broadcast::Sender<TimedEvent>,
}

impl History {
    fn new() -> Self {
        Self {
            past: Vec::new(),
            live: broadcast::Sender::new(EVENTS_KEPT),
        }
    }

    fn add(&mut self, event: Event) {
        let event = TimedEvent::now(event);
        // A guest that resets without end pushes its own past out.
        if self.past.len() >= EVENTS_KEPT {
            self.past.remove(0);
        }
        self.past.push(event.clone());
        // There may be no receivers.
        let _ = self.live.send(event);
    }
}

impl Member {
    /// Starts a process for the machine, whose memory has been claimed. [`Member::settled`] says whether the machine
    /// runs.
    pub(super) async fn spawn(
        spec: MachineSpec,
        link: Attachment,
        claim: Option<Held>,
    ) -> io::Result<Arc<Self>> {
        let lock = lock_vm(&spec).await?.into_file();
        let (ours, theirs) = StdUnixStream::pair()?;
        let console = Console::with_log(&spec.console_log)?;
        let failure_note = spec.failure_note.clone();
        remove_file_if_there(&failure_note)?;
        let trouble = Trouble::reserve(&failure_note.with_file_name(store::DEVICE_ERROR))?;
        let mut inherited = vec![theirs.as_fd(), lock.as_fd(), link.link.as_fd()];
        inherited.extend(claim.as_ref().map(Held::as_fd));
        let command = spawn::command(Role::Machine, &spec.name, &inherited)?;
        let mut command = Command::from(command);
        // What it logs goes where the worker's goes.
        command.stderr(Stdio::inherit()).kill_on_drop(true);
        let child = command.spawn()?;
        // Only the machine process has these now. The claim's file is removed here, too.
        drop((theirs, lock, link.link));

        let (name, id) = (spec.name.clone(), spec.id.clone());
        let config = MachineConfig { spec };
        let mut configure = ours.try_clone()?;
        wire::send(&mut configure, &config)?;
        ours.set_nonblocking(true)?;
        let stream = UnixStream::from_std(ours)?;
        let (orders, receiver) = mpsc::unbounded_channel();
        let member = Arc::new(Self {
            name,
            id,
            ip: link.ip,
            console: Mutex::new(console),
            state: watch::Sender::new(State::Starting),
            orders,
            forwards: Mutex::default(),
            failure_note,
            trouble: Mutex::new(trouble),
            events: Mutex::new(History::new()),
            ran: AtomicBool::new(false),
        });
        tokio::spawn(Arc::clone(&member).supervise(child, stream, receiver, claim));
        Ok(member)
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// True if this is the machine of that VM, and not of another one that has or had its name.
    pub(super) fn is(&self, target: &MemberId) -> bool {
        let same = |ours: &String| target.id.as_ref().is_none_or(|id| id == ours);
        self.name == target.vm && self.id.as_ref().is_none_or(same)
    }

    pub(super) fn ip(&self) -> Ipv4Addr {
        self.ip
    }

    /// The loopback address that is forwarded from port `host` (0 for any) to the guest's port. It is opened by `open`
    /// if it is missing.
    pub(super) fn forward<E>(
        &self,
        ports: (u16, u16),
        open: impl FnOnce() -> Result<Forward, E>,
    ) -> Result<SocketAddr, E> {
        let mut forwards = lock(&self.forwards);
        if let Some(forward) = forwards.get(&ports) {
            return Ok(forward.address());
        }
        let forward = open()?;
        let address = forward.address();
        forwards.insert(ports, forward);
        Ok(address)
    }

    /// The loopback addresses that are forwarded to the guest, with the guest's ports; at most as many as fit into a
    /// message.
    pub(super) fn forwards(&self) -> Vec<(SocketAddr, u16)> {
        let forwards = lock(&self.forwards);
        let each = forwards.iter().map(|((_, port), to)| (to.address(), *port));
        let mut forwards: Vec<_> = each.take(FORWARDS_TOLD).collect();
        forwards.sort_unstable();
        forwards
    }

    pub(super) fn console_tail(&self) -> String {
        lock(&self.console).tail()
    }

    /// The end of the console's output, and a receiver for everything after it.
    pub(super) fn follow_console(&self) -> (Vec<u8>, broadcast::Receiver<Arc<[u8]>>) {
        lock(&self.console).follow()
    }

    /// The events so far, and a receiver for later ones.
    pub(super) fn follow_events(&self) -> (Vec<TimedEvent>, broadcast::Receiver<TimedEvent>) {
        let events = lock(&self.events);
        (events.past.clone(), events.live.subscribe())
    }

    /// Types at the serial console.
    pub(super) fn type_in(&self, bytes: &[u8]) {
        let _ = self.orders.send(Order::Type(bytes.to_vec()));
    }

    pub(super) fn has_ended(&self) -> bool {
        matches!(*self.state.borrow(), State::Ended(_))
    }

    pub(super) fn press_power_button(&self) {
        // Without a receiver the machine has ended already.
        let _ = self.orders.send(Order::PowerButton);
    }

    pub(super) fn kill(&self) {
        let _ = self.orders.send(Order::Kill);
    }

    /// Waits until the machine runs or has failed to start, and returns its state.
    pub(super) async fn settled(&self) -> State {
        self.state_when(|state| !matches!(state, State::Starting))
            .await
    }

    /// Waits until the machine has ended, and returns how.
    pub(super) async fn ended(&self) -> ExitReport {
        match self
            .state_when(|state| matches!(state, State::Ended(_)))
            .await
        {
            State::Ended(report) => report,
            // Not reached: the state awaited is the one above.
            State::Starting | State::Running => ExitReport {
                failure: None,
                console: String::new(),
                ran: true,
            },
        }
    }

    async fn state_when(&self, what: impl FnMut(&State) -> bool) -> State {
        let mut states = self.state.subscribe();
        // `self` owns the sender, so the channel is open.
        match states.wait_for(what).await {
            Ok(state) => state.clone(),
            Err(_) => self.state.borrow().clone(),
        }
    }

    async fn supervise(
        self: Arc<Self>,
        mut child: Child,
        stream: UnixStream,
        mut orders: mpsc::UnboundedReceiver<Order>,
        claim: Option<Held>,
    ) {
        let (read, write) = stream.into_split();
        let commands = commands_to(write);
        let mut reading = tokio::spawn(Arc::clone(&self).read_events(read));
        let mut last_words = None;
        let mut killed = false;
        let name = self.name.clone();
        let claim = claim.map(|claim| tokio::spawn(keep_claim(name, claim)));
        let status = loop {
            tokio::select! {
                status = child.wait() => break status,
                ended = &mut reading, if last_words.is_none() => {
                    last_words = Some(ended.unwrap_or(None));
                    match timeout(LAST_WORDS, child.wait()).await {
                        Ok(status) => break status,
                        Err(_) => drop(child.start_kill()),
                    }
                }
                order = orders.recv() => match order {
                    Some(Order::PowerButton) => self.command(&commands, MachineCommand::PowerButton),
                    Some(Order::Type(bytes)) => self.command(&commands, MachineCommand::Type(bytes)),
                    Some(Order::Kill) | None => {
                        killed = true;
                        let _ = child.start_kill();
                    }
                },
            }
        };
        let last_words = match last_words {
            Some(words) => words,
            None => match timeout(LAST_WORDS, &mut reading).await {
                Ok(words) => words.unwrap_or(None),
                Err(_) => {
                    reading.abort();
                    None
                }
            },
        };
        let console = self.console_tail();
        let failure = failure(&self.name, status, last_words, killed, &console);
        if let Some(failure) = &failure {
            tracing::warn!(vm = self.name, failure, "machine ended");
            // Before anybody is told, who then finds it. A full disk must not hide the failure.
            if let Err(error) = write_atomic(&self.failure_note, failure.as_bytes()) {
                tracing::warn!(vm = self.name, %error, "cannot record the failure");
            }
        } else {
            tracing::info!(vm = self.name, "machine powered off");
        }
        let console = last_lines(&console, 4 * LINES_IN_ERROR);
        // A report has to fit a frame whatever the guest printed.
        let start = console.len().saturating_sub(16 * 1024);
        let console = (start..console.len())
            .find_map(|start| console.get(start..))
            .unwrap_or_default()
            .to_owned();
        lock(&self.forwards).clear();
        // Before anybody is told, who may start another one.
        if let Some(claim) = claim {
            claim.abort();
            let _ = claim.await;
        }
        lock(&self.events).add(match &failure {
            Some(reason) => Event::Failed {
                reason: reason.clone(),
            },
            None if killed => Event::Killed,
            None => Event::PoweredOff,
        });
        self.state.send_replace(State::Ended(ExitReport {
            failure,
            console,
            ran: self.ran.load(Ordering::Acquire),
        }));
    }

    /// Sends a command to the machine process, which may have ended or stopped listening.
    fn command(&self, commands: &mpsc::Sender<MachineCommand>, command: MachineCommand) {
        if let Err(TrySendError::Full(_)) = commands.try_send(command) {
            tracing::warn!(vm = self.name, "the machine process does not listen");
        }
    }

    /// Reads what the machine process reports until it closes its socket. Returns its last event.
    async fn read_events(self: Arc<Self>, mut read: OwnedReadHalf) -> Option<MachineEvent> {
        let mut last = None;
        loop {
            match wire::receive_frame::<MachineEvent>(&mut read).await {
                Ok(Frame::Bytes(bytes)) => lock(&self.console).append(&bytes),
                Ok(Frame::Message(MachineEvent::Started)) => {
                    self.ran.store(true, Ordering::Release);
                    self.state.send_if_modified(|state| {
                        let starting = matches!(state, State::Starting);
                        if starting {
                            *state = State::Running;
                        }
                        starting
                    });
                }
                Ok(Frame::Message(MachineEvent::Event(event))) => {
                    if let Some(event) = from_machine(event) {
                        if let Event::DeviceError { device, error } = &event {
                            tracing::warn!(vm = self.name, device, error, "a device has failed");
                            lock(&self.trouble).note(&format!("{device}: {error}"));
                        }
                        lock(&self.events).add(event);
                    }
                }
                Ok(Frame::Message(event @ MachineEvent::Ended { .. })) => last = Some(event),
                Err(error) => {
                    if error.kind() != io::ErrorKind::UnexpectedEof {
                        tracing::warn!(vm = self.name, %error, "the machine process sent an invalid message");
                    }
                    return last;
                }
            }
        }
    }
}

/// Keeps the claim of a machine's memory fresh until the task is aborted.
async fn keep_claim(name: String, mut claim: Held) {
    loop {
        tokio::time::sleep(REFRESH).await;
        // This may wait for other processes.
        let refreshed = tokio::task::spawn_blocking(move || {
            let refreshed = claim.refresh();
            (claim, refreshed)
        });
        let Ok((held, refreshed)) = refreshed.await else {
            return;
        };
        claim = held;
        if let Err(error) = refreshed {
            tracing::debug!(vm = name, %error, "cannot refresh the claim of its memory");
        }
    }
}

/// Takes the VM's lock. The process that created the VM held it until a moment ago, and a child that another thread has
/// just forked still holds it until it calls exec. The VM must be the one that was asked for: it may have been removed
/// and created again since.
async fn lock_vm(spec: &MachineSpec) -> io::Result<Lock> {
    let deadline = Instant::now() + LOCK_PATIENCE;
    loop {
        if let Some(lock) = Lock::try_acquire(&spec.lock).map_err(io::Error::other)? {
            let record = spec.lock.with_file_name(store::RECORD);
            if spec.id.is_some() && store::identity(&record) != Some(spec.id.clone()) {
                return Err(io::Error::other("it has been removed"));
            }
            return Ok(lock);
        }
        if Instant::now() > deadline {
            return Err(io::Error::other("another process is using its disk"));
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// A bounded queue of commands to a machine process. A separate task writes them, so that a process that does not read
/// can still be killed.
fn commands_to(mut write: OwnedWriteHalf) -> mpsc::Sender<MachineCommand> {
    let (sender, mut commands) = mpsc::channel(UNREAD_COMMANDS);
    tokio::spawn(async move {
        while let Some(command) = commands.recv().await {
            // A failure means that the machine is ending.
            if wire::send_async(&mut write, &command).await.is_err() {
                break;
            }
        }
    });
    sender
}

/// Why a machine ended, as text; `None` if its guest powered off or it was told to end.
fn failure(
    name: &str,
    status: io::Result<ExitStatus>,
    last_words: Option<MachineEvent>,
    killed: bool,
    console: &str,
) -> Option<String> {
    let what = match (last_words, status) {
        (Some(MachineEvent::Ended { failure: None }), _) => return None,
        _ if killed => return None,
        (
            Some(MachineEvent::Ended {
                failure: Some(failure),
            }),
            _,
        ) => {
            format!("{name} failed: {}", printable(failure.as_bytes()))
        }
        (_, Ok(status)) => match (status.signal(), status.code()) {
            (Some(signal), _) => {
                let signal = Signal::try_from(signal)
                    .map_or_else(|_| signal.to_string(), |signal| signal.as_str().to_owned());
                format!("the machine process of {name} was ended by signal {signal}")
            }
            (None, code) => format!(
                "the machine process of {name} ended with status {} and gave no reason",
                code.unwrap_or(-1)
            ),
        },
        (_, Err(error)) => format!("the machine process of {name} was lost: {error}"),
    };
    let tail = last_lines(console, LINES_IN_ERROR);
    if tail.is_empty() {
        return Some(format!("{what}; its console printed nothing"));
    }
    Some(format!("{what}; the console's last lines:\n{tail}"))
}
