//! Everything this repository does besides compiling: an emulated host with KVM, disk images for tests, a small HTTP
//! server, and the test command itself.

use std::path::PathBuf;

pub mod bench;
pub mod cache;
pub mod cpio;
pub mod debian;
pub mod demo;
pub mod deps;
pub mod emulate;
pub mod error;
pub mod image;
pub mod kernel;
pub mod kvm;
pub mod run;
pub mod serve;
pub mod test;

/// The root of this workspace.
pub fn workspace() -> PathBuf {
    let manifest = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    manifest
        .parent()
        .map_or_else(|| manifest.clone(), PathBuf::from)
}
