//! The disks of a VM's fixtures.

use crate::disk::fixture::{self, Fixture, FixtureError};
use crate::process::{DiskFormat, DiskSpec};
use crate::store::VmPaths;

/// Makes the disks of all `fixtures` of a VM, in place of those of its last start. Blocks for as
/// long as it takes to copy the content.
///
/// # Errors
/// What cannot be copied, by its path; or a disk that cannot be written. A disk is replaced whole
/// or not at all.
pub(crate) fn build(fixtures: &[Fixture], paths: &VmPaths) -> Result<(), FixtureError> {
    for (index, fixture) in fixtures.iter().enumerate() {
        fixture.build(index, &paths.fixture(index))?;
    }
    Ok(())
}

/// The disks as the machine has them, after its others.
pub(crate) fn disks(fixtures: &[Fixture], paths: &VmPaths) -> Vec<DiskSpec> {
    (0..fixtures.len())
        .map(|index| DiskSpec {
            path: paths.fixture(index),
            format: DiskFormat::Raw,
            read_only: true,
            durable: false,
            serial: fixture::disk_name(index),
        })
        .collect()
}
