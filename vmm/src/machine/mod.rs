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
mod panic;
mod pause;
mod payload;
mod resets;
mod signal;
mod vcpu;

use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

pub use config::{BootSource, DiskConfig, LinkFormat, MAX_CPUS, MachineConfig, NicConfig};
pub use error::{Error, GuestFailure};
pub use event::Event;

use fleetbox_devices::acpi::pvpanic::PanicEvent;

use crate::hypervisor::Hypervisor;
use crate::sync::lock;
use board::Board;
use console::{Console, Notice};
use panic::{PanicWatch, Verdict};
use pause::{BEAT, Beats};
use resets::{Next, Resets};
use signal::Signal;

/// Lines of the console in an error.
const ERROR_LINES: usize = 40;

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
            cmdline: String::new(),
            beats: Arc::new(Beats::new()),
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
    /// The command line of this boot's kernel.
    cmdline: String,
    beats: Arc<Beats>,
}

/// How one boot ended.
enum BoardEnd {
    Reset,
    Exit(Exit),
}

/// What a board's supervision keeps of panics.
struct Watch {
    panic: PanicWatch,
    /// When it must be checked.
    next: Instant,
    announced: bool,
}

impl Watch {
    fn new(cmdline: &str) -> Self {
        Self {
            panic: PanicWatch::new(cmdline),
            next: Instant::now() + BEAT,
            announced: false,
        }
    }
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
        let payload = payload::read(&self.config, || self.hypervisor.capabilities().hardware)?;
        self.emit(Event::Booting {
            boot: self.boot,
            source: payload.source.clone(),
            cmdline: payload.cmdline.clone(),
        });
        self.cmdline.clone_from(&payload.cmdline);
        let board = Board::start(
            self.hypervisor.as_ref(),
            &self.config,
            payload,
            &self.console,
            &self.signals,
            &self.beats,
        )?;
        self.emit(Event::Running { boot: self.boot });
        Ok(board)
    }

    fn run(mut self, mut board: Board) -> Result<Exit, Error> {
        let mut resets = Resets::default();
        let outcome = loop {
            let begun = Instant::now();
            let end = self.supervise(&mut board);
            drop(board);
            match end {
                Ok(BoardEnd::Exit(exit)) => break Ok(exit),
                Ok(BoardEnd::Reset) => {}
                Err(e) => break Err(e),
            }
            self.emit(Event::Reset);
            let delay = match resets.after(begun.elapsed()) {
                Next::Boot(delay) => delay,
                Next::GiveUp(why) => break Err(self.guest_failure(why)),
            };
            if self.killed_within(delay) {
                break Ok(Exit::Killed);
            }
            self.boot += 1;
            board = match self.boot() {
                Ok(board) => board,
                Err(e) => break Err(e),
            };
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

    /// Waits between two boots. What the old board's devices still had to say does not concern the new one, but what
    /// the machine's owner wants does: it is kept for the new one, and true is returned at once if that is the end.
    fn killed_within(&self, delay: Duration) -> bool {
        let end = Instant::now() + delay;
        let mut kept = Vec::new();
        if !delay.is_zero() {
            tracing::warn!(
                boot = self.boot,
                ?delay,
                "the guest resets the machine again and again, so its next boot waits"
            );
        }
        loop {
            let left = end.saturating_duration_since(Instant::now());
            match self.inbox.recv_timeout(left) {
                Ok(Signal::Kill) | Err(RecvTimeoutError::Disconnected) => return true,
                Ok(signal @ (Signal::PowerButton | Signal::Input(_))) => kept.push(signal),
                Ok(_) => {}
                Err(RecvTimeoutError::Timeout) => break,
            }
        }
        for signal in kept {
            // The receiver is ours.
            let _ = self.signals.send(signal);
        }
        false
    }

    /// Serves the board until it ends.
    fn supervise(&self, board: &mut Board) -> Result<BoardEnd, Error> {
        let mut watch = Watch::new(&self.cmdline);
        loop {
            let wait = watch.next.saturating_duration_since(Instant::now());
            let signal = self.inbox.recv_timeout(wait.min(BEAT));
            if self.beats.beat() {
                tracing::info!("the machine has not run for a while, and its guest is told");
                board.kick();
            }
            match signal {
                Ok(Signal::PowerOff) => return Ok(BoardEnd::Exit(Exit::PowerOff)),
                Ok(Signal::Kill) | Err(RecvTimeoutError::Disconnected) => {
                    return Ok(BoardEnd::Exit(Exit::Killed));
                }
                Ok(Signal::Reset) => {
                    // A line on the console that led to this was a panic.
                    if let Some(text) = self.console.panic().text {
                        self.announce(&mut watch, text.line);
                    }
                    return Ok(BoardEnd::Reset);
                }
                Ok(Signal::PowerButton) => {
                    board.power_button();
                    self.emit(Event::PowerButton);
                }
                Ok(Signal::Input(bytes)) => board.serial_input(&bytes),
                Ok(Signal::InputDrained) => board.feed(),
                Ok(Signal::Console(Notice::FirstOutput)) => {
                    self.emit(Event::FirstOutput { boot: self.boot });
                }
                Ok(Signal::Panic(event)) => {
                    let crash_kernel = event == PanicEvent::CrashLoaded;
                    let view = self.console.panic();
                    watch.next = Instant::now();
                    let message = watch.panic.report(&view, crash_kernel, watch.next);
                    self.announce(&mut watch, message);
                }
                Ok(Signal::Failure(failure)) => {
                    return Err(Error::Guest(Box::new(GuestFailure {
                        what: failure.what,
                        vcpu: Some(failure.vcpu),
                        registers: failure.registers,
                        console: self.console.tail(ERROR_LINES),
                    })));
                }
                Ok(Signal::Console(Notice::Panic)) => watch.next = Instant::now(),
                Err(RecvTimeoutError::Timeout) => {}
            }
            if Instant::now() >= watch.next {
                self.check_panic(&mut watch, board)?;
            }
        }
    }

    /// Looks what has become of a panic.
    fn check_panic(&self, watch: &mut Watch, board: &mut Board) -> Result<(), Error> {
        let now = Instant::now();
        let view = self.console.panic();
        let check_in = match watch.panic.check(&view, now, || board.look()) {
            Verdict::Calm => BEAT,
            Verdict::CheckIn(time) => time,
            Verdict::Forget => {
                self.console.forget_panic();
                Duration::ZERO
            }
            Verdict::Stopped(why) => {
                self.announce(watch, why.clone());
                return Err(self.guest_failure(why));
            }
        };
        watch.next = now + check_in;
        Ok(())
    }

    /// Reports a panic, once in a boot.
    fn announce(&self, watch: &mut Watch, message: String) {
        if !std::mem::replace(&mut watch.announced, true) {
            self.emit(Event::Panic { message });
        }
    }

    fn guest_failure(&self, what: String) -> Error {
        Error::Guest(Box::new(GuestFailure {
            what,
            vcpu: None,
            registers: None,
            console: self.console.tail(ERROR_LINES),
        }))
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
