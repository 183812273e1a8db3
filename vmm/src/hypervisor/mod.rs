//! What a hypervisor must offer, and the backends that offer it.
//!
//! Building a machine has two phases. First it is described ([`VmSpec`]) and the backend says what
//! it can do ([`Capabilities`]); then [`Hypervisor::create_vm`] makes the VM, and each vCPU is
//! created on the thread that will run it ([`Vm::create_vcpu`]), as Hypervisor.framework demands.
//! A backend refuses what it lacks; it never ignores it.

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
        /// What was requested.
        operation: String,
        /// The operating system's answer.
        source: std::io::Error,
    },
}

/// Result of a hypervisor operation.
pub type Result<T> = std::result::Result<T, Error>;

/// What a backend on this host can do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Capabilities {
    /// Maximum number of vCPUs of one VM.
    pub max_vcpus: u32,
    /// The vCPU's local timer has a TSC-deadline mode.
    pub tsc_deadline: bool,
    /// Guest kernels run at speed: the host's virtualisation is hardware's, not an interpreter.
    pub hardware: bool,
}

/// The VM to build.
#[derive(Debug, Clone)]
pub struct VmSpec {
    /// Guest physical memory; the VM keeps it alive.
    pub memory: GuestMemory,
    /// Number of vCPUs.
    pub vcpus: u8,
}

/// A hypervisor of the host.
pub trait Hypervisor: Send + Sync {
    /// What it can do on this host.
    fn capabilities(&self) -> Capabilities;

    /// A hint: a VM is about to be created. What takes long and does not need the VM can be done
    /// here, on a thread that has nothing else to do.
    fn prepare(&self) {}

    /// Creates a VM with its memory mapped and its interrupt controller ready.
    ///
    /// # Errors
    /// The host refuses, or lacks something in `spec`.
    fn create_vm(&self, spec: VmSpec) -> Result<Arc<dyn Vm>>;
}

/// A virtual machine: memory, interrupts, and the makings of vCPUs.
pub trait Vm: Send + Sync {
    /// Creates vCPU `index` on the calling thread, which is the one that will run it.
    ///
    /// # Errors
    /// The index is out of range or taken, or the host refuses.
    fn create_vcpu(&self, index: u8) -> Result<Box<dyn Vcpu>>;

    /// Message-signalled interrupts into this VM.
    fn msi(&self) -> Arc<dyn MsiController>;

    /// Where the IOAPIC announces what its pins send.
    fn ioapic_routes(&self) -> Box<dyn IoApicRoutes>;

    /// Guest writes that become events without leaving the kernel.
    fn io_events(&self) -> Arc<dyn IoEvents>;

    /// A hint: this range of guest memory (GPA) is about to be filled from end to end.
    fn will_fill(&self, range: Range<u64>) {
        let _ = range;
    }
}

/// Answers a vCPU's accesses to what is not memory.
///
/// Called on the vCPU's thread while it is stopped at the access. Slices are as long as the access:
/// 1, 2, 4 or 8 bytes.
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
    /// True once the guest must not run any further: its latest port access powered it off, say. The
    /// vCPU then returns [`VmExit::Interrupted`].
    fn over(&self) -> bool {
        false
    }
}

/// Why a vCPU came back from [`Vcpu::run`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VmExit {
    /// A kick ([`Vcpu::kicker`]), or the guest must not run any further ([`IoHandler::over`]).
    Interrupted,
    /// The vCPU halted and nothing can wake it but the machine.
    Halted,
    /// The vCPU shut down: a triple fault.
    TripleFault,
    /// The hypervisor cannot go on with this guest; the text says why.
    Fault(String),
}

/// A handle with which any thread interrupts one vCPU's [`Vcpu::run`].
///
/// A kick that comes while the vCPU is between two runs may be lost: repeat it until the vCPU's
/// thread has answered.
pub trait VcpuKicker: Send + Sync {
    /// Makes the vCPU return [`VmExit::Interrupted`] soon.
    fn kick(&self);
}

/// A virtual CPU. It stays on the thread that created it, and keeps alive what it runs on: the VM in
/// the kernel and the guest's memory.
pub trait Vcpu {
    /// Runs the guest until something needs the machine; accesses go to `io` and do not end it.
    ///
    /// # Errors
    /// The host refuses to run the vCPU.
    fn run(&mut self, io: &dyn IoHandler) -> Result<VmExit>;

    /// A handle to interrupt [`Vcpu::run`] with.
    fn kicker(&self) -> Arc<dyn VcpuKicker>;

    /// Sets what a boot protocol prescribes for the first vCPU; the rest stays as after reset.
    ///
    /// # Errors
    /// The host refuses the state.
    fn boot(&mut self, boot: &BootRegs) -> Result<()>;

    /// The architectural state, complete enough to continue from it elsewhere.
    ///
    /// # Errors
    /// The host refuses to tell.
    fn save(&self) -> Result<VcpuState>;

    /// Takes over a state; parts that are absent stay as they are.
    ///
    /// # Errors
    /// The host refuses the state.
    fn restore(&mut self, state: &VcpuState) -> Result<()>;
}
