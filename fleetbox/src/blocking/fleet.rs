//! The VMs of a state directory.

use std::path::PathBuf;
use std::time::Duration;

use super::facade::waits;
use super::{Cluster, Vm, run};
use crate::error::Result;
use crate::store::{StoreError, VmDir, VmRecord};
use crate::vm;
use crate::vm::fleet;
use crate::vm::list::{Resolution, VmInfo};
use crate::vm::logs::ConsoleLog;
use crate::vm::resize::Resize;
use crate::vm::stop::StopOutcome;

/// [`crate::Fleet`] with methods that block.
///
/// ```no_run
/// use fleetbox::blocking::Fleet;
///
/// for vm in Fleet::new().list()? {
///     println!("{} is {}", vm.name, vm.state);
/// }
/// # Ok::<(), fleetbox::Error>(())
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Fleet(fleet::Fleet);

impl Fleet {
    /// See [`crate::Fleet::new`].
    pub fn new() -> Self {
        Self::default()
    }

    /// See [`crate::Fleet::at`].
    pub fn at(home: impl Into<PathBuf>) -> Self {
        Self(fleet::Fleet::at(home))
    }

    /// See [`crate::Fleet::home`].
    ///
    /// # Errors
    /// Those of the asynchronous method.
    pub fn home(&self) -> Result<PathBuf, StoreError> {
        self.0.home()
    }

    waits! { "Fleet":
        fn list() -> Vec<VmInfo>;
        fn find(name: &str) -> VmDir;
        fn info(name: &str) -> VmInfo;
        fn resolve(name: &str) -> Resolution;
        fn open(name: &str) -> Vm = open_vm;
        fn open_cluster(name: &str) -> Cluster = open_cluster;
        fn console_log(name: &str) -> ConsoleLog;
        fn stop(name: &str, deadline: Duration) -> Option<StopOutcome>;
        fn resize(name: &str, change: Resize) -> VmRecord;
        fn prune() -> Vec<String>;
        fn prune_only(vms: &[VmDir]) -> Vec<String>;
        fn remove(name: &str) -> ();
        fn remove_found(vm: &VmDir) -> ();
    }
}

fn open_vm(vm: vm::Vm) -> Result<Vm> {
    Ok(Vm::from(vm))
}

fn open_cluster(cluster: vm::cluster::Cluster) -> Result<Cluster> {
    Ok(Cluster::from(cluster))
}
