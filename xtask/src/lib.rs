//! The tasks of this repository besides compiling: an emulated host with KVM, disk images for tests, a small HTTP
//! server, and the test command.

use std::path::PathBuf;

pub mod bench;
pub mod cache;
mod cargo;
pub mod check;
pub mod cpio;
pub mod debian;
pub mod demo;
pub mod deps;
pub mod dist;
pub mod emulate;
pub mod error;
pub mod fuzz;
pub mod image;
pub mod kernel;
pub mod kvm;
pub mod picture;
pub mod run;
pub mod serve;
pub mod test;

/// The root of this workspace: the checkout in which cargo runs this. If several checkouts share a target directory,
/// this may not be the one it was built in.
pub fn workspace() -> PathBuf {
    let manifest = std::env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    manifest
        .parent()
        .map_or_else(|| manifest.clone(), PathBuf::from)
}

/// Cargo's target directory: `CARGO_TARGET_DIR`, or else `target` in the workspace.
pub fn target_dir() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR")
        .filter(|dir| !dir.is_empty())
        .map_or_else(|| workspace().join("target"), PathBuf::from)
}
