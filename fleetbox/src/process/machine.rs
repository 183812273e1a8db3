//! The machine process: one virtual machine and nothing else.
//!
//! It runs the VMM, parses what the guest has written to its disks, and holds only the file
//! descriptors it was given. It ends when its worker does: however the worker ends, the socket
//! between them then reads as closed.

use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use fleetbox_vmm::machine::Event;
use fleetbox_vmm::output::Backlog;

use super::entry::exit_status;
use super::protocol::{Backend, MachineCommand, MachineConfig, MachineEvent};
use super::{privileges, wire};
use crate::util::sync::lock;

/// Bytes of console output that are sent at once, without waiting for more.
const BATCH: usize = 4096;
/// How long output waits for more, to be sent together with it.
const BATCH_TIME: Duration = Duration::from_millis(20);

/// Events that may wait for the worker.
const EVENT_BACKLOG: usize = 1024;

/// A running machine as this process sees it. A script can take its place, so that the life cycle
/// can be tested without KVM.
pub(super) struct Running {
    pub(super) controls: Controls,
    /// Waits until the machine has ended: `Ok` after a power-off, otherwise the reason.
    pub(super) wait: Box<dyn FnOnce() -> Result<(), String>>,
}

/// Types at a serial console.
pub(super) type TypeIn = Box<dyn Fn(&[u8]) + Send>;

/// The controls of a running machine.
pub(super) struct Controls {
    /// Presses the power button.
    pub(super) power_button: Box<dyn Fn() + Send>,
    /// Types at the serial console.
    pub(super) type_in: TypeIn,
}

/// The callback for the machine's events.
pub(super) type OnEvent = Box<dyn Fn(Event) + Send + Sync>;

/// Entry point of the role.
pub(super) fn main(fds: Vec<OwnedFd>) -> i32 {
    let mut fds = fds.into_iter();
    let Some(control) = fds.next().map(UnixStream::from) else {
        return exit_status::USAGE;
    };
    let mut reader = match control.try_clone() {
        Ok(reader) => reader,
        Err(_) => return exit_status::FAILED,
    };
    let config: MachineConfig = match wire::receive(&mut reader) {
        Ok(config) => config,
        Err(error) => {
            tracing::error!(%error, "cannot read the configuration");
            return exit_status::USAGE;
        }
    };
    // Before there are other threads, which would keep them.
    let prepared = match prepare(config) {
        Ok(prepared) => prepared,
        Err(error) => {
            tracing::error!(%error, "cannot drop privileges");
            return exit_status::FAILED;
        }
    };
    // Open until this process ends, and with it the VM is known to run.
    let Some(_lock) = fds.next() else {
        return exit_status::USAGE;
    };
    let Some(nic) = fds.next() else {
        return exit_status::USAGE;
    };
    // So it is with its memory, where there is a queue for that.
    let _claim = fds.next();
    let reporter = Reporter::start(control);
    let button = Arc::new(Mutex::new(Button::Free));
    {
        let button = Arc::clone(&button);
        let listen = move || run_commands(&mut reader, &button);
        if thread::Builder::new()
            .name("control".to_owned())
            .spawn(listen)
            .is_err()
        {
            return exit_status::FAILED;
        }
    }

    let result = prepared.and_then(|prepared| run(prepared, nic, &reporter, &button));
    let failure = result.err();
    let status = if failure.is_none() {
        exit_status::OK
    } else {
        exit_status::FAILED
    };
    reporter.finish(&MachineEvent::Ended { failure });
    status
}

/// What a machine is made of, once its privileges are gone.
enum Prepared {
    Vmm(Box<super::vmm::Prepared>),
    #[cfg(any(test, fleetbox_fake))]
    Fake(super::fake::Script),
}

/// Opens what the machine needs, and gives up all privileges. The inner error is the machine's, and told to the worker.
fn prepare(config: MachineConfig) -> io::Result<Result<Prepared, String>> {
    privileges::restrict()?;
    let prepared = match config.spec.backend {
        Backend::Vmm => {
            super::vmm::prepare(config.spec).map(|prepared| Prepared::Vmm(Box::new(prepared)))
        }
        #[cfg(any(test, fleetbox_fake))]
        Backend::Fake(script) => Ok(Prepared::Fake(script)),
    };
    privileges::drop_capabilities()?;
    Ok(prepared)
}

fn run(
    prepared: Prepared,
    nic: OwnedFd,
    reporter: &Reporter,
    button: &Mutex<Button>,
) -> Result<(), String> {
    let console = Box::new(reporter.console());
    let running = match prepared {
        Prepared::Vmm(prepared) => super::vmm::start(*prepared, nic, console, reporter.events())?,
        #[cfg(any(test, fleetbox_fake))]
        Prepared::Fake(script) => super::fake::start(script, console, &reporter.events())?,
    };
    {
        // Held while the start is reported: a client that reads of it may type at once.
        let mut button = lock(button);
        reporter.event(MachineEvent::Started);
        if matches!(*button, Button::Pressed) {
            (running.controls.power_button)();
        }
        *button = Button::Wired(running.controls);
    }
    (running.wait)()
}

/// The power button, which may be pressed before there is a machine.
enum Button {
    Free,
    Pressed,
    Wired(Controls),
}

/// Carries out the worker's commands, and ends the process when the worker is gone.
fn run_commands(reader: &mut UnixStream, button: &Mutex<Button>) {
    while let Ok(command) = wire::receive(reader) {
        match command {
            MachineCommand::PowerButton => {
                let mut button = lock(button);
                match &*button {
                    Button::Wired(controls) => (controls.power_button)(),
                    Button::Free | Button::Pressed => *button = Button::Pressed,
                }
            }
            // Before the machine runs there is no one to read it.
            MachineCommand::Type(bytes) => {
                if let Button::Wired(controls) = &*lock(button) {
                    (controls.type_in)(&bytes);
                }
            }
        }
    }
    // SAFETY: ends the process at once. No one is left to report to, and waiting for vCPU threads
    // or for a stuck disk would keep an ownerless machine alive.
    unsafe { libc::_exit(exit_status::ORPHANED) }
}

/// Sends events and console output to the worker from a separate thread, so that a slow worker
/// never stops a vCPU.
struct Reporter {
    shared: Arc<Shared>,
    thread: Option<thread::JoinHandle<()>>,
}

struct Shared {
    queue: Mutex<Queue>,
    changed: Condvar,
}

#[derive(Default)]
struct Queue {
    console: Backlog,
    events: Vec<MachineEvent>,
    finished: bool,
}

impl Reporter {
    fn start(mut control: UnixStream) -> Self {
        let shared = Arc::new(Shared {
            queue: Mutex::default(),
            changed: Condvar::new(),
        });
        let thread = {
            let shared = Arc::clone(&shared);
            let report = move || {
                if let Err(error) = shared.report(&mut control) {
                    tracing::debug!(%error, "the worker no longer listens");
                }
            };
            thread::Builder::new()
                .name("report".to_owned())
                .spawn(report)
        };
        if let Err(error) = &thread {
            tracing::error!(%error, "cannot start the report thread");
        }
        Self {
            shared,
            thread: thread.ok(),
        }
    }

    fn console(&self) -> ConsoleWriter {
        ConsoleWriter(Arc::clone(&self.shared))
    }

    fn event(&self, event: MachineEvent) {
        self.shared.event(event);
    }

    /// The callback for the machine's events.
    fn events(&self) -> OnEvent {
        let shared = Arc::clone(&self.shared);
        Box::new(move |event| {
            tracing::info!(?event, "machine");
            shared.event(MachineEvent::Event(event));
        })
    }

    /// Sends a last event, after everything before it.
    fn finish(self, event: &MachineEvent) {
        {
            let mut queue = lock(&self.shared.queue);
            queue.events.push(event.clone());
            queue.finished = true;
        }
        self.shared.changed.notify_one();
        if let Some(thread) = self.thread {
            let _ = thread.join();
        }
    }
}

impl Shared {
    /// Adds an event. Events are dropped if there are too many, as when a guest resets without end
    /// and the worker does not listen.
    fn event(&self, event: MachineEvent) {
        let mut queue = lock(&self.queue);
        if queue.events.len() < EVENT_BACKLOG {
            queue.events.push(event);
        }
        drop(queue);
        self.changed.notify_one();
    }

    fn report(&self, control: &mut UnixStream) -> io::Result<()> {
        loop {
            let mut queue = {
                let mut queue = lock(&self.queue);
                while queue.console.is_empty() && queue.events.is_empty() && !queue.finished {
                    queue = self
                        .changed
                        .wait(queue)
                        .unwrap_or_else(PoisonError::into_inner);
                }
                // The serial port writes single bytes: what soon follows goes along.
                let alone = |queue: &mut Queue| {
                    queue.events.is_empty() && !queue.finished && queue.console.len() < BATCH
                };
                queue = self
                    .changed
                    .wait_timeout_while(queue, BATCH_TIME, alone)
                    .unwrap_or_else(PoisonError::into_inner)
                    .0;
                std::mem::take(&mut *queue)
            };
            let (lost, output) = queue.console.take(usize::MAX);
            if lost > 0 {
                let note = format!("\n[{lost} bytes of console output lost]\n");
                wire::send_bytes(control, note.as_bytes())?;
            }
            // Output first: what led to an event stands before it.
            wire::send_bytes(control, &output)?;
            for event in &queue.events {
                wire::send(control, event)?;
            }
            if queue.finished {
                return Ok(());
            }
        }
    }
}

/// Where the machine's serial port writes.
struct ConsoleWriter(Arc<Shared>);

impl Write for ConsoleWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut queue = lock(&self.0.queue);
        let before = queue.console.len();
        queue.console.push(bytes);
        let wake = before == 0 || (before < BATCH && queue.console.len() >= BATCH);
        drop(queue);
        if wake {
            self.0.changed.notify_one();
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_precedes_the_event_it_led_to_and_none_is_lost_at_the_end() {
        let (mut worker, machine) = UnixStream::pair().unwrap();
        let reporter = Reporter::start(machine);
        let mut console = reporter.console();
        console.write_all(b"Kernel panic").unwrap();
        reporter.finish(&MachineEvent::Ended {
            failure: Some("panic".to_owned()),
        });
        let mut all = Vec::new();
        io::Read::read_to_end(&mut worker, &mut all).unwrap();
        let text = String::from_utf8_lossy(&all);
        let (output, event) = (
            text.find("Kernel panic").unwrap(),
            text.find("\"Ended\"").unwrap(),
        );
        assert!(output < event);
    }

    #[test]
    fn a_worker_that_does_not_read_costs_no_memory() {
        let (_worker, machine) = UnixStream::pair().unwrap();
        let reporter = Reporter::start(machine);
        let mut console = reporter.console();
        // Until it is stuck, the thread that reports takes what there is, and how much was lost.
        for _ in 0..3 {
            for _ in 0..64 {
                console.write_all(&[b'x'; 128 * 1024]).unwrap();
            }
            thread::sleep(Duration::from_millis(50));
        }
        let mut queue = lock(&reporter.shared.queue);
        assert!(queue.console.len() <= Backlog::CAPACITY);
        assert!(queue.console.take(1).0 > 0);
    }
}
