//! Changing the CPUs and memory of a stopped VM.

use crate::error::Result;
use crate::host::resources::{HostResources, Request};
use crate::model::names::check_cpus;
use crate::model::size::Size;
use crate::store::{StoreError, VmRecord};
use crate::util::task::blocking;
use crate::vm::fleet::Fleet;

/// What [`Fleet::resize`] changes; `None` leaves a value as it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Resize {
    /// Number of vCPUs.
    pub cpus: Option<u32>,
    /// Memory.
    pub memory: Option<Size>,
}

impl Fleet {
    /// Changes the CPUs or memory of a stopped VM, and returns its new record.
    ///
    /// # Errors
    /// [`Error::Invalid`](crate::Error::Invalid) for a value out of range;
    /// [`Error::InsufficientResources`](crate::Error::InsufficientResources) if this host has less; those of
    /// [`Fleet::find`]; [`Error::Store`](crate::Error::Store) if the VM runs. Nothing is changed then.
    ///
    /// ```no_run
    /// # async fn example() -> fleetbox::Result<()> {
    /// use fleetbox::{Resize, Size};
    ///
    /// let change = Resize { cpus: Some(4), memory: Some(Size::gib(8)) };
    /// fleetbox::Fleet::new().resize("web", change).await?;
    /// # Ok(())
    /// # }
    /// ```
    pub async fn resize(&self, name: &str, change: Resize) -> Result<VmRecord> {
        let cpus = change.cpus.map(check_cpus).transpose()?;
        let memory = change.memory.map(Size::check_memory).transpose()?;
        let vm = self.find(name).await?;
        blocking(move || {
            HostResources::of_host(vm.home()).check(&Request::changed(cpus, memory))?;
            let Some(_lock) = vm.try_lock()? else {
                let name = vm.name().clone();
                return Err(StoreError::Running { name }.into());
            };
            let mut record = vm.record()?;
            record.cpus = cpus.unwrap_or(record.cpus);
            record.memory = memory.unwrap_or(record.memory);
            vm.save_record(&record)?;
            Ok(record)
        })
        .await
    }
}
