//! The disks of a VM's fixtures.

use crate::disk::fixture::{self, Fixture, FixtureError};
use crate::process::{DiskFormat, DiskSpec};
use crate::store::VmPaths;

/// Creates the disks of a VM's `fixtures`, replacing those of its last start. It blocks while the
/// content is copied.
///
/// # Errors
/// Names the path that cannot be copied, or the disk that cannot be written. A disk is replaced as
/// a whole or not at all.
pub(crate) fn build(fixtures: &[Fixture], paths: &VmPaths) -> Result<(), FixtureError> {
    for (index, fixture) in fixtures.iter().enumerate() {
        fixture.build(index, &paths.fixture(index))?;
    }
    Ok(())
}

/// The fixtures' disks in the description of the machine. They come after its other disks.
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
