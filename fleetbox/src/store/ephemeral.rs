//! Ephemeral VMs, which are deleted when their owner ends.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use super::{StoreError, VmDir};

/// How long a machine process may take to end once its worker has.
const LAST_BREATH: Duration = Duration::from_secs(20);

/// How often a held lock is checked again.
const POLL: Duration = Duration::from_millis(20);

/// Name of the file that marks a VM as ephemeral.
const EPHEMERAL: &str = "ephemeral";

/// Deletes a VM that is no longer running. Waits for its machine process to end, which takes a
/// moment after its worker was killed.
///
/// # Errors
/// It keeps running, or the file system fails.
pub(crate) fn delete(vm: &VmDir) -> Result<(), StoreError> {
    let deadline = Instant::now() + LAST_BREATH;
    loop {
        match vm.destroy() {
            Err(StoreError::Running { .. }) if Instant::now() < deadline => {
                std::thread::sleep(POLL);
            }
            result => return result,
        }
    }
}

/// Marks a VM as ephemeral.
///
/// # Errors
/// The file system.
pub(crate) fn mark_ephemeral(dir: &Path) -> std::io::Result<()> {
    OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(dir.join(EPHEMERAL))
        .map(drop)
}

/// Removes the mark of an ephemeral VM, so that it is kept.
///
/// # Errors
/// The file system fails, or the VM no longer exists.
pub(crate) fn unmark_ephemeral(vm: &VmDir) -> Result<(), StoreError> {
    let path = vm.paths().dir().join(EPHEMERAL);
    match std::fs::remove_file(&path) {
        Err(_) if vm.check().is_err() => vm.check(),
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(StoreError::io("remove", &path)(error))
        }
        _ => Ok(()),
    }
}

/// True for an ephemeral VM.
pub(crate) fn is_ephemeral(vm: &VmDir) -> bool {
    vm.paths().dir().join(EPHEMERAL).exists()
}
