//! The threads that run the vCPUs.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::Duration;

use fleetbox_arch::x86_64::layout;
use fleetbox_arch::x86_64::regs::{BootRegs, VcpuState};
use fleetbox_devices::bus::Bus;
use fleetbox_devices::ioapic::IoApic;

use super::error::Error;
use super::panic::Look;
use super::pause::Beats;
use super::signal::{Signal, VcpuFailure};
use crate::hypervisor::{self, Activity, IoHandler, Vcpu, VcpuKicker, Vm, VmExit};

/// How often a vCPU is told to stop, because a kick between two runs is lost.
const KICK_INTERVAL: Duration = Duration::from_millis(1);

/// The state that all vCPUs of a machine share.
pub(super) struct Buses {
    pub(super) ports: Bus,
    pub(super) mmio: Bus,
    pub(super) ioapic: Arc<IoApic>,
    /// The guest has powered off or reset, so it must not run any further.
    pub(super) over: Arc<AtomicBool>,
    /// Accesses to devices, other than to the timer that a kernel reads even if it does nothing else.
    pub(super) accesses: AtomicU64,
}

impl Buses {
    fn count(&self) {
        self.accesses.fetch_add(1, Ordering::Relaxed);
    }
}

impl IoHandler for Buses {
    fn port_read(&self, port: u16, data: &mut [u8]) {
        if !(layout::PM_TIMER_PORT..layout::PM_TIMER_PORT + 4).contains(&port) {
            self.count();
        }
        self.ports.read(port.into(), data);
    }

    fn port_write(&self, port: u16, data: &[u8]) {
        self.count();
        self.ports.write(port.into(), data);
    }

    fn mmio_read(&self, gpa: u64, data: &mut [u8]) {
        self.count();
        self.mmio.read(gpa, data);
    }

    fn mmio_write(&self, gpa: u64, data: &[u8]) {
        self.count();
        self.mmio.write(gpa, data);
    }

    fn end_of_interrupt(&self, vector: u8) {
        self.ioapic.end_of_interrupt(vector);
    }

    fn over(&self) -> bool {
        self.over.load(Ordering::Acquire)
    }
}

struct RunningVcpu {
    thread: JoinHandle<()>,
    kicker: Arc<dyn VcpuKicker>,
    question: Arc<Question>,
    ended: Receiver<()>,
}

/// The question to a vCPU's thread what its vCPU does. The thread answers when the vCPU is kicked.
#[derive(Default)]
struct Question {
    asked: AtomicBool,
    answer: AtomicU8,
}

/// The guest does not run on this vCPU.
const STANDS: u8 = 1;
/// The guest runs on this vCPU, or it is not known.
const RUNS: u8 = 2;

/// A thread that is creating its vCPU.
struct PendingVcpu {
    thread: JoinHandle<()>,
    creation: Receiver<hypervisor::Result<Arc<dyn VcpuKicker>>>,
    question: Arc<Question>,
    ended: Receiver<()>,
}

/// The start signal that the vCPUs wait for once they exist.
struct Go {
    boot: BootRegs,
    buses: Arc<Buses>,
}

/// The gate before the guest's start. `None` means that the guest will not be started.
type Gate = OnceLock<Option<Go>>;

/// The vCPUs of a machine. Dropping it stops them.
pub(super) struct Vcpus {
    stop: Arc<AtomicBool>,
    gate: Arc<Gate>,
    creating: VecDeque<PendingVcpu>,
    running: Vec<RunningVcpu>,
}

impl Vcpus {
    /// Starts to create all vCPUs, each on a separate thread, so that the caller can load the guest
    /// meanwhile.
    pub(super) fn create(
        vm: &Arc<dyn Vm>,
        count: u8,
        signals: &Sender<Signal>,
        beats: &Arc<Beats>,
    ) -> Result<Self, Error> {
        let mut vcpus = Self {
            stop: Arc::new(AtomicBool::new(false)),
            gate: Arc::default(),
            creating: VecDeque::with_capacity(count.into()),
            running: Vec::with_capacity(count.into()),
        };
        for index in 0..count {
            let (created, creation) = sync_channel(1);
            let (alive, ended) = channel();
            let question = Arc::<Question>::default();
            let thread = VcpuThread {
                index,
                question: question.clone(),
                beats: beats.clone(),
                vm: vm.clone(),
                signals: signals.clone(),
                stop: vcpus.stop.clone(),
                gate: vcpus.gate.clone(),
                _alive: alive,
            };
            let thread = std::thread::Builder::new()
                .name(format!("vcpu{index}"))
                .spawn(move || thread.main(&created))
                .map_err(|e| thread_error(index, e))?;
            vcpus.creating.push_back(PendingVcpu {
                thread,
                creation,
                question,
                ended,
            });
        }
        Ok(vcpus)
    }

    /// Starts the guest. Its first vCPU begins at `boot`. No vCPU runs before all exist.
    pub(super) fn run(&mut self, boot: BootRegs, buses: Arc<Buses>) -> Result<(), Error> {
        // One after the other, so that those behind a failure are still there to be joined.
        while let Some(vcpu) = self.creating.front() {
            let index = self.running.len() as u8;
            let kicker = match vcpu.creation.recv() {
                Ok(kicker) => kicker?,
                Err(_) => {
                    return Err(thread_error(
                        index,
                        io::Error::other("it ended immediately"),
                    ));
                }
            };
            if let Some(PendingVcpu {
                thread,
                question,
                ended,
                ..
            }) = self.creating.pop_front()
            {
                self.running.push(RunningVcpu {
                    thread,
                    kicker,
                    question,
                    ended,
                });
            }
        }
        let _ = self.gate.set(Some(Go { boot, buses }));
        Ok(())
    }

    /// What the vCPUs have answered since the last look, and asks them again.
    pub(super) fn look(&self) -> Look {
        let mut look = Look {
            complete: true,
            runs: false,
        };
        for vcpu in &self.running {
            let answer = vcpu.question.answer.swap(0, Ordering::Relaxed);
            look.complete &= answer != 0;
            look.runs |= answer & RUNS != 0;
            vcpu.question.asked.store(true, Ordering::Release);
        }
        self.kick();
        look
    }

    /// Lets each vCPU leave the guest for a moment. A kick may be lost.
    pub(super) fn kick(&self) {
        for vcpu in &self.running {
            vcpu.kicker.kick();
        }
    }
}

fn thread_error(index: u8, source: io::Error) -> Error {
    Error::Resource {
        what: format!("the thread of vCPU {index}"),
        source,
    }
}

impl Drop for Vcpus {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        // Those that wait at the gate have to come through it.
        let _ = self.gate.set(None);
        for vcpu in &self.running {
            vcpu.kicker.kick();
        }
        for vcpu in self.running.drain(..) {
            // Nothing is ever sent: it is over when the other end is gone.
            while vcpu.ended.recv_timeout(KICK_INTERVAL) == Err(RecvTimeoutError::Timeout) {
                vcpu.kicker.kick();
            }
            let _ = vcpu.thread.join();
        }
        for vcpu in self.creating.drain(..) {
            let _ = vcpu.thread.join();
        }
    }
}

struct VcpuThread {
    index: u8,
    vm: Arc<dyn Vm>,
    signals: Sender<Signal>,
    stop: Arc<AtomicBool>,
    gate: Arc<Gate>,
    question: Arc<Question>,
    beats: Arc<Beats>,
    /// The other end of this channel learns that the thread has ended.
    _alive: Sender<()>,
}

impl VcpuThread {
    fn main(self, created: &SyncSender<hypervisor::Result<Arc<dyn VcpuKicker>>>) {
        let mut vcpu = match self.vm.create_vcpu(self.index) {
            Ok(vcpu) => vcpu,
            Err(e) => {
                let _ = created.send(Err(e));
                return;
            }
        };
        let _ = created.send(Ok(vcpu.kicker()));
        let Some(go) = self.gate.wait() else {
            return;
        };
        // A device's bug must end as this machine's error, not as a machine that hangs.
        let outcome =
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.run(vcpu.as_mut(), go)))
                .unwrap_or_else(|panic| {
                    let text = panic
                        .downcast_ref::<String>()
                        .map(String::as_str)
                        .or_else(|| panic.downcast_ref::<&str>().copied())
                        .unwrap_or("no message");
                    Some(format!(
                        "the VMM has a bug: its vCPU thread panicked: {text}"
                    ))
                });
        if let Some(what) = outcome {
            let registers = vcpu.save().ok().map(|state| format_registers(&state));
            let _ = self.signals.send(Signal::Failure(VcpuFailure {
                vcpu: self.index,
                what,
                registers,
            }));
        }
    }

    /// Runs until it is told to stop. Returns what went wrong, if anything did.
    fn run(&self, vcpu: &mut dyn Vcpu, go: &Go) -> Option<String> {
        if self.index == 0
            && let Err(e) = vcpu.boot(&go.boot)
        {
            return Some(e.to_string());
        }
        let mut pauses = 0;
        while !self.stop.load(Ordering::Acquire) && !go.buses.over() {
            match vcpu.run(go.buses.as_ref()) {
                // A process that was stopped, or whose host slept, comes by here before the guest runs on.
                Ok(VmExit::Interrupted) => {
                    if self.beats.missed(&mut pauses) {
                        vcpu.tell_of_pause();
                    }
                    if self.question.asked.swap(false, Ordering::AcqRel) {
                        self.answer(vcpu);
                    }
                }
                // The LAPIC is in the hypervisor, so that a halted vCPU waits there; one that
                // comes out will never be woken.
                Ok(VmExit::Halted) => {
                    return Some("the vCPU halted, and nothing can wake it".into());
                }
                Ok(VmExit::TripleFault) => return Some("triple fault".into()),
                Ok(VmExit::Fault(what)) => return Some(what),
                Err(e) => return Some(e.to_string()),
            }
        }
        None
    }

    fn answer(&self, vcpu: &dyn Vcpu) {
        let answer = match vcpu.activity() {
            Ok(Activity::Kernel | Activity::Halted) => STANDS,
            Ok(Activity::Idle | Activity::Program) | Err(_) => RUNS,
        };
        self.question.answer.fetch_or(answer, Ordering::Relaxed);
    }
}

/// The registers as text, for debugging a guest.
pub(super) fn format_registers(state: &VcpuState) -> String {
    let (r, s) = (&state.regs, &state.sregs);
    format!(
        "RIP={:016x} RFLAGS={:08x} RSP={:016x} RBP={:016x}\n\
         RAX={:016x} RBX={:016x} RCX={:016x} RDX={:016x}\n\
         RSI={:016x} RDI={:016x} R8 ={:016x} R9 ={:016x}\n\
         R10={:016x} R11={:016x} R12={:016x} R13={:016x}\n\
         R14={:016x} R15={:016x} CS={:04x} SS={:04x} DS={:04x}\n\
         CR0={:08x} CR2={:016x} CR3={:016x} CR4={:08x} EFER={:08x}",
        r.rip,
        r.rflags,
        r.rsp,
        r.rbp,
        r.rax,
        r.rbx,
        r.rcx,
        r.rdx,
        r.rsi,
        r.rdi,
        r.r8,
        r.r9,
        r.r10,
        r.r11,
        r.r12,
        r.r13,
        r.r14,
        r.r15,
        s.cs.selector,
        s.ss.selector,
        s.ds.selector,
        s.cr0,
        s.cr2,
        s.cr3,
        s.cr4,
        s.efer
    )
}
