//! The KVM backend (Linux).
//!
//! x86_64 uses the split irqchip: each vCPU's LAPIC is in the kernel, and the IOAPIC is ours. There
//! is no PIT, because creating one makes every later memory slot slow, and tear-down even slower.

mod guest;
mod interrupts;
mod state;
mod vcpu;

use std::ops::Range;
use std::os::fd::{FromRawFd, IntoRawFd};
use std::sync::{Arc, Mutex, OnceLock};

use fleetbox_arch::x86_64::{cpuid, layout};
use fleetbox_devices::event::{Event, IoEvents, IoTrigger};
use fleetbox_devices::ioapic::IoApicRoutes;
use fleetbox_devices::irq::MsiController;
use kvm_bindings::CpuId;
use kvm_bindings::{KVM_CAP_SPLIT_IRQCHIP, KVM_MAX_CPUID_ENTRIES, kvm_enable_cap};
use kvm_ioctls::{Cap, IoEventAddress, Kvm, NoDatamatch};
use vm_memory::{Address, GuestMemoryBackend, GuestMemoryRegion, MemoryRegionAddress};

use super::{Capabilities, Error, Hypervisor, Result, Vcpu, Vm, VmSpec};
use crate::preflight;
use crate::sync::lock;
use guest::{Guest, NAME, failed};
use interrupts::{Controller, Interrupts, PinRoutes};
use vcpu::KvmVcpu;

/// Size of x86's huge pages in bytes.
const HUGE_PAGE: u64 = fleetbox_arch::ALIGNMENT as u64;

/// The host's KVM.
///
/// ```no_run
/// use fleetbox_vmm::hypervisor::Hypervisor;
/// use fleetbox_vmm::hypervisor::kvm::KvmHypervisor;
///
/// let kvm = KvmHypervisor::open()?;
/// println!("{:?}", kvm.capabilities());
/// # Ok::<(), fleetbox_vmm::hypervisor::Error>(())
/// ```
pub struct KvmHypervisor {
    host: Arc<Host>,
    max_vcpus: u32,
    tsc_deadline: bool,
    /// Asked of the host when somebody wants to know: it takes a file to read, and not every guest needs it.
    hardware: OnceLock<bool>,
}

/// The state of the host's KVM that VMs share.
struct Host {
    kvm: Kvm,
    /// The supported CPUID, cached when it is first needed. The kernel executes CPUID for every
    /// leaf, which is slow if this host is itself a VM.
    supported: Mutex<Option<Arc<[cpuid::CpuidEntry]>>>,
}

impl Host {
    fn supported_cpuid(&self) -> Result<Arc<[cpuid::CpuidEntry]>> {
        let mut supported = lock(&self.supported);
        if let Some(leaves) = &*supported {
            return Ok(leaves.clone());
        }
        let leaves = self
            .kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(failed("asking for the supported CPUID"))?;
        let leaves: Arc<[_]> = state::cpuid_from_kvm(&leaves).into();
        *supported = Some(leaves.clone());
        Ok(leaves)
    }
}

impl KvmHypervisor {
    /// Opens /dev/kvm.
    ///
    /// # Errors
    /// [`Error::Unavailable`] with the remedy if KVM is missing or cannot be opened,
    /// [`Error::Lacks`] if it is too old.
    pub fn open() -> Result<Self> {
        let file =
            preflight::open_kvm().map_err(|refusal| Error::Unavailable(refusal.to_string()))?;
        // SAFETY: the descriptor is one of /dev/kvm, opened just now and given away here.
        let kvm = unsafe { Kvm::from_raw_fd(file.into_raw_fd()) };
        for cap in [
            Cap::SplitIrqchip,
            Cap::Irqfd,
            Cap::Ioeventfd,
            Cap::ImmediateExit,
            Cap::ExtCpuid,
            Cap::UserMemory,
            Cap::SignalMsi,
        ] {
            if !kvm.check_extension(cap) {
                return Err(Error::Lacks {
                    backend: NAME,
                    what: format!("{cap:?}"),
                    remedy: "use a host kernel of version 4.10 or newer",
                });
            }
        }
        Ok(Self {
            max_vcpus: u32::try_from(kvm.get_max_vcpus()).unwrap_or(u32::MAX),
            tsc_deadline: kvm.check_extension(Cap::TscDeadlineTimer),
            hardware: OnceLock::new(),
            host: Arc::new(Host {
                kvm,
                supported: Mutex::default(),
            }),
        })
    }
}

impl Hypervisor for KvmHypervisor {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            max_vcpus: self.max_vcpus,
            tsc_deadline: self.tsc_deadline,
            hardware: *self.hardware.get_or_init(preflight::has_hardware),
        }
    }

    fn prepare(&self) {
        // An error is told to the first vCPU that asks.
        let _ = self.host.supported_cpuid();
    }

    fn create_vm(&self, spec: VmSpec) -> Result<Arc<dyn Vm>> {
        if u32::from(spec.vcpus) > self.max_vcpus {
            return Err(Error::Lacks {
                backend: NAME,
                what: format!(
                    "room for {} vCPUs (its limit is {})",
                    spec.vcpus, self.max_vcpus
                ),
                remedy: "ask for fewer",
            });
        }
        let fd = self.host.kvm.create_vm().map_err(failed("creating a VM"))?;
        fd.set_tss_address(layout::KVM_TSS_START as usize)
            .map_err(failed("placing the TSS"))?;
        let mut cap = kvm_enable_cap {
            cap: KVM_CAP_SPLIT_IRQCHIP,
            ..Default::default()
        };
        cap.args[0] = layout::IOAPIC_PINS.into();
        fd.enable_cap(&cap)
            .map_err(failed("splitting the interrupt controller"))?;
        let guest = Arc::new(Guest::new(fd, spec.memory)?);
        Ok(Arc::new(KvmVm {
            interrupts: Arc::new(Interrupts::new(guest.clone())),
            guest,
            host: self.host.clone(),
            tsc_deadline: self.tsc_deadline,
            vcpus: spec.vcpus,
        }))
    }
}

struct KvmVm {
    guest: Arc<Guest>,
    interrupts: Arc<Interrupts>,
    host: Arc<Host>,
    tsc_deadline: bool,
    vcpus: u8,
}

impl Vm for KvmVm {
    fn create_vcpu(&self, index: u8) -> Result<Box<dyn Vcpu>> {
        let fd = self
            .guest
            .fd
            .create_vcpu(u64::from(index))
            .map_err(failed(format!("creating vCPU {index}")))?;
        let leaves = cpuid::configure(
            &self.host.supported_cpuid()?,
            &cpuid::CpuidConfig {
                vcpu: index,
                count: self.vcpus,
                tsc_deadline: self.tsc_deadline,
                // Some hosts do not know; the guest then measures it.
                tsc_khz: fd.get_tsc_khz().ok(),
            },
        );
        let leaves: CpuId = state::cpuid_to_kvm(&leaves).ok_or_else(|| Error::Lacks {
            backend: NAME,
            what: format!("room for {} CPUID entries", leaves.len()),
            remedy: "please report this host's CPU",
        })?;
        fd.set_cpuid2(&leaves)
            .map_err(failed(format!("setting the CPUID of vCPU {index}")))?;
        Ok(Box::new(KvmVcpu::new(fd, self.guest.clone(), index)?))
    }

    fn msi(&self) -> Arc<dyn MsiController> {
        Arc::new(Controller(self.interrupts.clone()))
    }

    fn ioapic_routes(&self) -> Box<dyn IoApicRoutes> {
        Box::new(PinRoutes(self.interrupts.clone()))
    }

    fn io_events(&self) -> Arc<dyn IoEvents> {
        Arc::new(KvmIoEvents(self.guest.clone()))
    }

    /// Asks for huge pages. With small pages, page faults take more time than the copying, here and
    /// later in the guest. The range is filled anyway, so this does not use more memory.
    fn will_fill(&self, range: Range<u64>) {
        for region in self.guest.memory.iter() {
            let start = region.start_addr().raw_value();
            let from = range.start.max(start).next_multiple_of(HUGE_PAGE);
            let to = range.end.min(start.saturating_add(region.len())) & !(HUGE_PAGE - 1);
            if from >= to {
                continue;
            }
            let Ok(host) = region.get_host_address(MemoryRegionAddress(from - start)) else {
                continue;
            };
            // SAFETY: the range is within the region's mapping, which lives as long as `self`, and
            // the advice changes nothing but what pages the kernel takes for it.
            let advised =
                unsafe { libc::madvise(host.cast(), (to - from) as usize, libc::MADV_HUGEPAGE) };
            if advised != 0 {
                let error = std::io::Error::last_os_error();
                tracing::debug!(from, to, %error, "cannot get huge pages for the guest's kernel");
            }
        }
    }
}

struct KvmIoEvents(Arc<Guest>);

impl IoEvents for KvmIoEvents {
    // Registered for writes of any length: a write of another length than the trigger's then wakes
    // the device for nothing, which it tolerates.
    fn register(&self, trigger: IoTrigger, event: &Event) -> std::io::Result<()> {
        let address = IoEventAddress::Mmio(trigger.address);
        self.0
            .fd
            .register_ioevent(event.as_eventfd(), &address, NoDatamatch)
            .map_err(|e| std::io::Error::from_raw_os_error(e.errno()))
    }

    fn unregister(&self, trigger: IoTrigger, event: &Event) -> std::io::Result<()> {
        let address = IoEventAddress::Mmio(trigger.address);
        self.0
            .fd
            .unregister_ioevent(event.as_eventfd(), &address, NoDatamatch)
            .map_err(|e| std::io::Error::from_raw_os_error(e.errno()))
    }
}
