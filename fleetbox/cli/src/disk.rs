//! The space that a VM's disk takes on this host.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use fleetbox::Result;
use fleetbox::names::Reference;

use crate::output::Context;

/// Bytes that a VM's disk takes on this host.
pub(crate) async fn used(context: &Context, name: &Reference) -> Result<u64> {
    let vm = context.fleet().find(name.as_str()).await?;
    Ok(allocated(&vm.paths().disk_layer()))
}

/// Bytes that a file takes on its file system; 0 if it cannot be read.
pub(crate) fn allocated(path: &Path) -> u64 {
    std::fs::metadata(path).map_or(0, |metadata| metadata.blocks().saturating_mul(512))
}
