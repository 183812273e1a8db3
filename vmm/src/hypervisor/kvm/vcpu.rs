//! One KVM vCPU.

use std::os::raw::c_int;
use std::sync::{Arc, Once};

use fleetbox_arch::x86_64::regs::{BootRegs, VcpuState};
use kvm_bindings::{
    KVM_INTERNAL_ERROR_EMULATION, KVM_MP_STATE_HALTED, KVM_MP_STATE_RUNNABLE, kvm_run,
};
use kvm_ioctls::{VcpuExit, VcpuFd};
use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler};

use super::guest::{Guest, NAME, failed};
use super::state;
use crate::hypervisor::{Activity, Error, IoHandler, Result, Vcpu, VcpuKicker, VmExit};

/// The guest takes interrupts.
const RFLAGS_IF: u64 = 1 << 9;

pub(super) struct KvmVcpu {
    // Dropped before the guest: it runs on the guest's memory.
    fd: VcpuFd,
    _guest: Arc<Guest>,
    index: u8,
}

impl KvmVcpu {
    pub(super) fn new(fd: VcpuFd, guest: Arc<Guest>, index: u8) -> Result<Self> {
        install_kick_handler()?;
        Ok(Self {
            fd,
            _guest: guest,
            index,
        })
    }

    /// The details of an I/O exit. `VcpuExit` lacks the size of an element, and string instructions
    /// transfer several.
    fn port_access(&mut self) -> PortAccess {
        let run = self.fd.get_kvm_run();
        // SAFETY: only called after an exit whose reason is KVM_EXIT_IO, for which KVM fills in
        // this member of the union.
        let io = unsafe { run.__bindgen_anon_1.io };
        PortAccess {
            port: io.port,
            size: usize::from(io.size).max(1),
        }
    }
}

struct PortAccess {
    port: u16,
    /// Bytes of one element, at least 1.
    size: usize,
}

/// The result of one KVM_RUN, without a borrow of the vCPU.
enum Step {
    Again,
    PortRead(*mut [u8]),
    PortWrite(*const [u8]),
    Exit(VmExit),
    Internal,
    FailEntry(u64, u32),
}

impl Vcpu for KvmVcpu {
    fn run(&mut self, io: &dyn IoHandler) -> Result<VmExit> {
        loop {
            let step = match self.fd.run() {
                Ok(VcpuExit::IoIn(_, data)) => Step::PortRead(data),
                Ok(VcpuExit::IoOut(_, data)) => Step::PortWrite(data),
                Ok(VcpuExit::MmioRead(gpa, data)) => {
                    io.mmio_read(gpa, data);
                    Step::Again
                }
                Ok(VcpuExit::MmioWrite(gpa, data)) => {
                    io.mmio_write(gpa, data);
                    Step::Again
                }
                Ok(VcpuExit::IoapicEoi(vector)) => {
                    io.end_of_interrupt(vector);
                    Step::Again
                }
                Ok(VcpuExit::Hlt) => Step::Exit(VmExit::Halted),
                Ok(VcpuExit::Shutdown) => Step::Exit(VmExit::TripleFault),
                Ok(VcpuExit::Intr) => Step::Exit(VmExit::Interrupted),
                Ok(VcpuExit::IrqWindowOpen) => Step::Again,
                Ok(VcpuExit::InternalError) => Step::Internal,
                Ok(VcpuExit::FailEntry(reason, cpu)) => Step::FailEntry(reason, cpu),
                Ok(other) => Step::Exit(VmExit::Fault(format!("unexpected KVM exit {other:?}"))),
                Err(e) if e.errno() == libc::EINTR => Step::Exit(VmExit::Interrupted),
                Err(e) if e.errno() == libc::EAGAIN => Step::Again,
                Err(e) => return Err(failed(format!("running vCPU {}", self.index))(e)),
            };
            match step {
                Step::Again => {}
                Step::Exit(exit) => return Ok(exit),
                Step::Internal => {
                    let why = internal_error(self.fd.get_kvm_run());
                    return Ok(VmExit::Fault(why));
                }
                Step::FailEntry(reason, cpu) => {
                    return Ok(VmExit::Fault(format!(
                        "KVM could not enter the guest: hardware reason {reason:#x} on host CPU {cpu}"
                    )));
                }
                Step::PortRead(data) => {
                    let access = self.port_access();
                    // SAFETY: the slice that `run` returned, in the vCPU's shared run area, which
                    // lives as long as `self.fd`. Until the next KVM_RUN nothing else refers to it:
                    // it is not part of the structure that `port_access` reads.
                    let data = unsafe { &mut *data };
                    for element in data.chunks_mut(access.size) {
                        io.port_read(access.port, element);
                    }
                    if io.over() {
                        return Ok(VmExit::Interrupted);
                    }
                }
                Step::PortWrite(data) => {
                    let access = self.port_access();
                    // SAFETY: as above, and nothing writes to it.
                    let data = unsafe { &*data };
                    for element in data.chunks(access.size) {
                        io.port_write(access.port, element);
                    }
                    if io.over() {
                        return Ok(VmExit::Interrupted);
                    }
                }
            }
        }
    }

    fn kicker(&self) -> Arc<dyn VcpuKicker> {
        Arc::new(Kicker {
            process: std::process::id() as libc::pid_t,
            thread: nix::unistd::gettid().as_raw(),
        })
    }

    fn boot(&mut self, boot: &BootRegs) -> Result<()> {
        state::boot(&self.fd, self.index, boot)
    }

    fn activity(&self) -> Result<Activity> {
        let asking = || failed(format!("asking what vCPU {} does", self.index));
        let state = self.fd.get_mp_state().map_err(asking())?.mp_state;
        let interrupts = self.fd.get_regs().map_err(asking())?.rflags & RFLAGS_IF != 0;
        Ok(match state {
            KVM_MP_STATE_RUNNABLE => {
                let sregs = self.fd.get_sregs().map_err(asking())?;
                // The privilege level is that of the stack.
                if sregs.ss.dpl == 3 {
                    Activity::Program
                } else {
                    Activity::Kernel
                }
            }
            KVM_MP_STATE_HALTED if interrupts => Activity::Idle,
            _ => Activity::Halted,
        })
    }

    fn tell_of_pause(&self) {
        // It fails for a guest that does not use the paravirtual clock.
        if let Err(error) = self.fd.kvmclock_ctrl() {
            tracing::debug!(vcpu = self.index, %error, "the guest cannot be told of a pause");
        }
    }

    fn save(&self) -> Result<VcpuState> {
        state::save(&self.fd, self.index)
    }

    fn restore(&mut self, state: &VcpuState) -> Result<()> {
        state::restore(&self.fd, self.index, state)
    }
}

/// The text of KVM_EXIT_INTERNAL_ERROR, with the instruction bytes if KVM reports them.
fn internal_error(run: &kvm_run) -> String {
    // SAFETY: only called after an exit whose reason is KVM_EXIT_INTERNAL_ERROR, for which KVM
    // fills in this member of the union; it is plain data.
    let error = unsafe { run.__bindgen_anon_1.internal };
    let kind = match error.suberror {
        KVM_INTERNAL_ERROR_EMULATION => "emulation failure".to_owned(),
        2 => "simultaneous exceptions".to_owned(),
        3 => "event delivery failed".to_owned(),
        4 => "unexpected exit reason".to_owned(),
        other => format!("suberror {other}"),
    };
    // Emulation failures carry flags, then size and bytes of the instruction
    // (struct kvm_run.emulation_failure).
    let words = &error.data[..error.data.len().min(error.ndata as usize)];
    let mut text = format!("KVM internal error: {kind}");
    if error.suberror == KVM_INTERNAL_ERROR_EMULATION && words.len() >= 4 && words[0] & 1 != 0 {
        let bytes: Vec<u8> = words[1..].iter().flat_map(|w| w.to_le_bytes()).collect();
        let len = usize::from(bytes[0]).min(15).min(bytes.len() - 1);
        text.push_str(" at instruction");
        for byte in &bytes[1..1 + len] {
            text.push_str(&format!(" {byte:02x}"));
        }
    } else if !words.is_empty() {
        text.push_str(&format!(" (data {words:#x?})"));
    }
    text
}

struct Kicker {
    process: libc::pid_t,
    thread: libc::pid_t,
}

impl VcpuKicker for Kicker {
    fn kick(&self) {
        // SAFETY: tgkill takes plain numbers. The thread may have ended, and its number may even
        // belong to another thread of this process: the signal's handler does nothing.
        unsafe { libc::syscall(libc::SYS_tgkill, self.process, self.thread, SIGRTMIN()) };
    }
}

extern "C" fn on_kick(_: c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}

/// Installs a handler that does nothing, so that the signal interrupts KVM_RUN instead of ending
/// the process.
fn install_kick_handler() -> Result<()> {
    static INSTALLED: Once = Once::new();
    let mut result = Ok(());
    INSTALLED.call_once(|| {
        result = register_signal_handler(SIGRTMIN(), on_kick).map_err(|e| Error::Failed {
            backend: NAME,
            operation: "installing the vCPU signal handler".into(),
            source: std::io::Error::from_raw_os_error(e.errno()),
        });
    });
    result
}
