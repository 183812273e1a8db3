//! The content of a VM's disks: fixtures, the cloud-init seed, extra disks, and image formats.

pub(crate) mod extra_disk;
pub mod fixture;
pub(crate) mod format;
#[cfg(test)]
pub(crate) mod format_test;
pub mod seed;
