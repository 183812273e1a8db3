//! The interface of hypervisors, and its backends.
//!
//! A machine is built in two phases. First it is described ([`VmSpec`]), and the backend reports
//! its [`Capabilities`]. Then [`Hypervisor::create_vm`] creates the VM, and each vCPU is created on
//! the thread that will run it ([`Vm::create_vcpu`]), as Hypervisor.framework requires. A backend
//! never ignores a request that it does not support; it returns an error.

use std::ops::Range;
use std::sync::Arc;

use fleetbox_arch::x86_64::regs::{BootRegs, VcpuState};
use fleetbox_devices::GuestMemory;
use fleetbox_devices::event::IoEvents;
use fleetbox_devices::ioapic::IoApicRoutes;
use fleetbox_devices::irq::MsiController;

pub mod kvm;

/// Why a hypervisor operation failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The host has no usable hypervisor; the message says what to do about it.
    #[error("{0}")]
    Unavailable(String),
    /// The host's hypervisor lacks a capability that a machine needs.
    #[error("{backend} lacks {what}; {remedy}")]
    Lacks {
        /// The backend.
        backend: &'static str,
        /// The capability.
        what: String,
        /// What the user can do.
        remedy: &'static str,
    },
    /// A request to the hypervisor failed.
    #[error("{backend}: {operation}: {source}")]
    Failed {
        /// The backend.
        backend: &'static str,
        /// The operation.
        operation: String,
        /// The operating system's error.
        source: std::io::Error,
    },
}

/// The result of a hypervisor operation.
pub type Result<T> = std::result::Result<T, Error>;

/// The capabilities of a backend on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Capabilities {
    /// Maximum number of vCPUs of one VM.
    pub max_vcpus: u32,
    /// True if the vCPU's local timer has a TSC-deadline mode.
    pub tsc_deadline: bool,
    /// True if guest kernels run at full speed, because the host has hardware virtualisation and
    /// does not interpret them.
    pub hardware: bool,
}

/// The VM to build.
#[derive(Debug, Clone)]
pub struct VmSpec {
    /// Guest physical memory. The VM keeps it alive.
    pub memory: GuestMemory,
    /// Number of vCPUs.
    pub vcpus: u8,
}

/// A hypervisor of the host.
pub trait Hypervisor: Send + Sync {
    /// Its capabilities on this host.
    fn capabilities(&self) -> Capabilities;

    /// A hint that a VM is about to be created. Slow work that does not need the VM can be done
    /// here, on a thread that would otherwise be idle.
    fn prepare(&self) {}

    /// Creates a VM with its memory mapped and its interrupt controller ready.
    ///
    /// # Errors
    /// The host refuses, or lacks something that `spec` needs.
    fn create_vm(&self, spec: VmSpec) -> Result<Arc<dyn Vm>>;
}

/// A virtual machine: memory, interrupts and the creation of vCPUs.
pub trait Vm: Send + Sync {
    /// Creates vCPU `index` on the calling thread, which is the one that will run it.
    ///
    /// # Errors
    /// The index is out of range or taken, or the host refuses.
    fn create_vcpu(&self, index: u8) -> Result<Box<dyn Vcpu>>;

    /// The message-signalled interrupts of this VM.
    fn msi(&self) -> Arc<dyn MsiController>;

    /// The receiver of the IOAPIC's pin routes.
    fn ioapic_routes(&self) -> Box<dyn IoApicRoutes>;

    /// Turns guest writes into events in the kernel.
    fn io_events(&self) -> Arc<dyn IoEvents>;

    /// A hint that this range of guest memory (GPA) is about to be filled completely.
    fn will_fill(&self, range: Range<u64>) {
        let _ = range;
    }
}

/// Handles a vCPU's accesses that are not to memory.
///
/// It is called on the vCPU's thread while the vCPU is stopped at the access. Slices are as long as
/// the access: 1, 2, 4 or 8 bytes.
pub trait IoHandler {
    /// The guest reads from a port.
    fn port_read(&self, port: u16, data: &mut [u8]);
    /// The guest writes to a port.
    fn port_write(&self, port: u16, data: &[u8]);
    /// The guest reads memory-mapped I/O.
    fn mmio_read(&self, gpa: u64, data: &mut [u8]);
    /// The guest writes memory-mapped I/O.
    fn mmio_write(&self, gpa: u64, data: &[u8]);
    /// The guest acknowledged a level-triggered interrupt.
    fn end_of_interrupt(&self, vector: u8);
    /// True once the guest must not run any further, for example because a port access powered it
    /// off. The vCPU then returns [`VmExit::Interrupted`].
    fn over(&self) -> bool {
        false
    }
}

/// Why [`Vcpu::run`] returned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VmExit {
    /// It was kicked ([`Vcpu::kicker`]), or the guest must not run any further
    /// ([`IoHandler::over`]).
    Interrupted,
    /// The vCPU halted, and only the machine can wake it.
    Halted,
    /// The vCPU shut down: a triple fault.
    TripleFault,
    /// The hypervisor cannot continue to run this guest. The text says why.
    Fault(String),
}

/// What a vCPU does while it is not in the machine's hands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activity {
    /// It is halted until an interrupt comes, as an idle operating system is.
    Idle,
    /// It runs a program of the guest, without the kernel's privileges.
    Program,
    /// It runs the guest's kernel.
    Kernel,
    /// It is halted and takes no interrupts, or was never started.
    Halted,
}

/// A handle with which any thread interrupts one vCPU's [`Vcpu::run`].
///
/// A kick between two runs may be lost, so repeat it until the vCPU's thread has answered.
pub trait VcpuKicker: Send + Sync {
    /// Makes the vCPU return [`VmExit::Interrupted`] soon.
    fn kick(&self);
}

/// A virtual CPU. It stays on the thread that created it, and keeps the VM in the kernel and the
/// guest's memory alive.
pub trait Vcpu {
    /// Runs the guest until it needs the machine. Accesses are passed to `io` and do not end the
    /// run.
    ///
    /// # Errors
    /// The host refuses to run the vCPU.
    fn run(&mut self, io: &dyn IoHandler) -> Result<VmExit>;

    /// A handle that interrupts [`Vcpu::run`].
    fn kicker(&self) -> Arc<dyn VcpuKicker>;

    /// Sets the registers that a boot protocol prescribes for the first vCPU. The others stay as
    /// after reset.
    ///
    /// # Errors
    /// The host refuses the state.
    fn boot(&mut self, boot: &BootRegs) -> Result<()>;

    /// What it did when [`Vcpu::run`] returned [`VmExit::Interrupted`].
    ///
    /// # Errors
    /// The host refuses.
    fn activity(&self) -> Result<Activity>;

    /// Tells the guest that it has not run for a while, as when the host slept, so that it does not take the gap for a
    /// hang of its own. A guest that does not know of such gaps is told nothing.
    fn tell_of_pause(&self);

    /// The complete architectural state, from which another vCPU can continue.
    ///
    /// # Errors
    /// The host refuses.
    fn save(&self) -> Result<VcpuState>;

    /// Restores a state. Missing parts are not changed.
    ///
    /// # Errors
    /// The host refuses the state.
    fn restore(&mut self, state: &VcpuState) -> Result<()>;
}
