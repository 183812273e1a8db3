//! A running machine, as described by a [`MachineConfig`].
//!
//! A machine has one or more boots. Each boot builds a new board (memory, VM, devices, vCPUs) from the same
//! description, and tears it down when the guest asks for a reset. So a reboot begins in the same state as a start. The
//! disks, the network links and the console are kept.

mod board;
mod config;
mod console;
mod error;
mod event;
mod payload;
mod signal;
mod vcpu;

use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

pub use config::{BootSource, DiskConfig, LinkFormat, MAX_CPUS, MachineConfig, NicConfig};
pub use error::{Error, GuestFailure};
pub use event::Event;

use crate::hypervisor::Hypervisor;
use crate::sync::lock;
use board::Board;
use console::{Console, Notice};
use signal::Signal;

/// Lines of the console in an error.
const ERROR_LINES: usize = 40;
/// How long the machine waits after a kernel panic for the guest to reset itself (`panic=` on its command line).
const PANIC_GRACE: Duration = Duration::from_secs(2);

/// How a machine ended without a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// The guest powered off.
    PowerOff,
    /// [`Handle::kill`] ended it.
    Killed,
}

/// A handle on a running machine, for any thread. It does not keep the machine alive.
///
/// ```no_run
/// # fn example(machine: fleetbox_vmm::machine::Machine) -> Result<(), fleetbox_vmm::machine::Error> {
/// let handle = machine.handle();
/// std::thread::spawn(move || {
///     handle.serial_input(b"poweroff\n");
///     std::thread::sleep(std::time::Duration::from_secs(10));
///     eprintln!("{}", handle.console_tail(20));
///     handle.kill();
/// });
/// println!("{:?}", machine.wait()?);
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Handle {
    signals: Sender<Signal>,
    console: Console,
}

impl Handle {
    /// Presses the power button: the guest's operating system decides what it does.
    pub fn power_button(&self) {
        let _ = self.signals.send(Signal::PowerButton);
    }

    /// Ends the machine at once, like a power cut. Writes that the guest has not flushed may be lost.
    pub fn kill(&self) {
        let _ = self.signals.send(Signal::Kill);
    }

    /// Types `bytes` at the serial console. Up to 64 KiB of input that the guest does not read are kept.
    pub fn serial_input(&self, bytes: &[u8]) {
        let _ = self.signals.send(Signal::Input(bytes.to_vec()));
    }

    /// The last `lines` lines of the console's output, without escape sequences.
    pub fn console_tail(&self, lines: usize) -> String {
        self.console.tail(lines)
    }
}

/// A running machine. Dropping it ends it.
///
/// ```no_run
/// use fleetbox_vmm::hypervisor::kvm::KvmHypervisor;
/// use fleetbox_vmm::machine::{BootSource, Machine, MachineConfig};
///
/// let machine = Machine::start(
///     &(std::sync::Arc::new(KvmHypervisor::open()?) as _),
///     MachineConfig {
///         boot: BootSource::Kernel {
///             kernel: "payload.elf".into(),
///             initrd: None,
///             cmdline: String::new(),
///         },
///         ..Default::default()
///     },
/// )?;
/// let exit = machine.wait()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Machine {
    handle: Handle,
    thread: Option<JoinHandle<Result<Exit, Error>>>,
}

impl Machine {
    /// Builds the machine and starts its first boot.
    ///
    /// # Errors
    /// The description is invalid, there is nothing to boot or it is unsupported, or the host refuses. Then nothing is
    /// running.
    pub fn start(
        hypervisor: &Arc<dyn Hypervisor>,
        mut config: MachineConfig,
    ) -> Result<Self, Error> {
        config.validate()?;
        let (signals, inbox) = channel();
        let notices = Mutex::new(signals.clone());
        let console = Console::new(config.serial.take(), move |notice| {
            let signals = lock(&notices);
            let _ = signals.send(Signal::Console(notice));
        });
        // Begun before the board, so that it is there when the guest runs, and of use until then.
        let (start, begin) = sync_channel::<(Life, Board)>(1);
        let preparing = hypervisor.clone();
        let thread = std::thread::Builder::new()
            .name("machine".into())
            .spawn(move || {
                preparing.prepare();
                drop(preparing);
                match begin.recv() {
                    Ok((life, board)) => life.run(board),
                    Err(_) => Ok(Exit::Killed),
                }
            })
            .map_err(|source| Error::Resource {
                what: "the machine's thread".into(),
                source,
            })?;
        let machine = Self {
            handle: Handle {
                signals: signals.clone(),
                console: console.clone(),
            },
            thread: Some(thread),
        };
        let mut life = Life {
            hypervisor: hypervisor.clone(),
            config,
            console,
            signals,
            inbox,
            boot: 0,
        };
        let board = match life.boot() {
            Ok(board) => board,
            Err(e) => {
                // Without a board the thread ends, and how the machine ended does not matter.
                drop(start);
                drop(machine);
                return Err(e);
            }
        };
        // The thread waits for it; should it be gone, `wait` says so.
        let _ = start.send((life, board));
        Ok(machine)
    }

    /// A handle to press the power button or to kill the machine.
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Waits until the machine ends.
    ///
    /// # Errors
    /// The guest failed, or a later boot could not be started.
    pub fn wait(mut self) -> Result<Exit, Error> {
        self.join()
    }

    fn join(&mut self) -> Result<Exit, Error> {
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(outcome)) => outcome,
            Some(Err(_)) => Err(Error::Resource {
                what: "the machine's thread".into(),
                source: std::io::Error::other("it panicked, which is a bug in the VMM"),
            }),
            None => Ok(Exit::Killed),
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if self.thread.is_some() {
            self.handle.kill();
            let _ = self.join();
        }
    }
}

/// The state that is kept from one boot to the next.
struct Life {
    hypervisor: Arc<dyn Hypervisor>,
    config: MachineConfig,
    console: Console,
    signals: Sender<Signal>,
    inbox: Receiver<Signal>,
    boot: u64,
}

/// How one boot ended.
enum BoardEnd {
    Reset,
    Exit(Exit),
}

impl Life {
    fn emit(&self, event: Event) {
        tracing::debug!(?event, "machine event");
        if let Some(events) = &self.config.events {
            events(event);
        }
    }

    /// Builds a board and runs it.
    fn boot(&mut self) -> Result<Board, Error> {
        self.console.begin_boot();
        let payload = payload::read(&self.config, self.hypervisor.capabilities().hardware)?;
        self.emit(Event::Booting {
            boot: self.boot,
            source: payload.source.clone(),
            cmdline: payload.cmdline.clone(),
        });
        let board = Board::start(
            self.hypervisor.as_ref(),
            &self.config,
            payload,
            &self.console,
            &self.signals,
        )?;
        self.emit(Event::Running { boot: self.boot });
        Ok(board)
    }

    fn run(mut self, mut board: Board) -> Result<Exit, Error> {
        let outcome = loop {
            match self.supervise(&mut board) {
                Ok(BoardEnd::Exit(exit)) => {
                    drop(board);
                    break Ok(exit);
                }
                Ok(BoardEnd::Reset) => {
                    drop(board);
                    // What the old board's devices still had to say does not concern the new one,
                    // but what its owner wants does.
                    let waiting: Vec<_> = self.inbox.try_iter().collect();
                    if waiting.iter().any(|s| matches!(s, Signal::Kill)) {
                        break Ok(Exit::Killed);
                    }
                    let still_wanted =
                        |s: &Signal| matches!(s, Signal::PowerButton | Signal::Input(_));
                    for signal in waiting.into_iter().filter(still_wanted) {
                        // The receiver is ours.
                        let _ = self.signals.send(signal);
                    }
                    self.emit(Event::Reset);
                    self.boot += 1;
                    board = match self.boot() {
                        Ok(board) => board,
                        Err(e) => break Err(e),
                    };
                }
                Err(e) => {
                    drop(board);
                    break Err(e);
                }
            }
        };
        let flushed = self.flush_disks();
        // What ended the machine comes before what that led to.
        let outcome = outcome.and_then(|exit| flushed.map(|()| exit));
        self.emit(match &outcome {
            Ok(Exit::PowerOff) => Event::PoweredOff,
            Ok(Exit::Killed) => Event::Killed,
            Err(e) => Event::Failed {
                reason: e.to_string(),
            },
        });
        outcome
    }

    /// Serves the board until it ends.
    fn supervise(&self, board: &mut Board) -> Result<BoardEnd, Error> {
        let mut panicked: Option<(Instant, String)> = None;
        loop {
            let signal = match &panicked {
                None => self
                    .inbox
                    .recv()
                    .map_err(|_| RecvTimeoutError::Disconnected),
                Some((deadline, _)) => self
                    .inbox
                    .recv_timeout(deadline.saturating_duration_since(Instant::now())),
            };
            match signal {
                Ok(Signal::PowerOff) => return Ok(BoardEnd::Exit(Exit::PowerOff)),
                Ok(Signal::Kill) | Err(RecvTimeoutError::Disconnected) => {
                    return Ok(BoardEnd::Exit(Exit::Killed));
                }
                Ok(Signal::Reset) => return Ok(BoardEnd::Reset),
                Ok(Signal::PowerButton) => {
                    board.power_button();
                    self.emit(Event::PowerButton);
                }
                Ok(Signal::Input(bytes)) => board.serial_input(&bytes),
                Ok(Signal::InputDrained) => board.feed(),
                Ok(Signal::Console(Notice::FirstOutput)) => {
                    self.emit(Event::FirstOutput { boot: self.boot });
                }
                Ok(Signal::Console(Notice::Panic(message))) => {
                    self.emit(Event::Panic {
                        message: message.clone(),
                    });
                    panicked.get_or_insert((Instant::now() + PANIC_GRACE, message));
                }
                Ok(Signal::Failure(failure)) => {
                    return Err(Error::Guest(Box::new(GuestFailure {
                        what: failure.what,
                        vcpu: Some(failure.vcpu),
                        registers: failure.registers,
                        console: self.console.tail(ERROR_LINES),
                    })));
                }
                Err(RecvTimeoutError::Timeout) => {
                    return Err(Error::Guest(Box::new(GuestFailure {
                        what: panicked.map_or_else(String::new, |(_, message)| message),
                        vcpu: None,
                        registers: None,
                        console: self.console.tail(ERROR_LINES),
                    })));
                }
            }
        }
    }

    fn flush_disks(&self) -> Result<(), Error> {
        let mut flushed = Ok(());
        for disk in self.config.disks.iter().filter(|d| !d.disk.read_only()) {
            // All of them, whatever becomes of one.
            flushed = flushed.and(disk.disk.flush().map_err(|source| Error::Resource {
                what: format!("flushing disk {}", disk.serial),
                source,
            }));
        }
        flushed
    }
}
