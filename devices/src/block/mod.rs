//! Disks, as virtio-blk devices and the boot code read and write them.
//!
//! [`open_disk`] opens an image of any [`Format`] as a [`Disk`]. A VM's disk is a layer
//! ([`create_layer`]): a sparse file with what the guest has written, over a base that is never
//! written to and that any number of layers share. `docs/adr/0004-disk-layers.md` explains the
//! design.
//!
//! ```no_run
//! use fleetbox_devices::block::{Base, Format, LayerOptions, OpenOptions, create_layer, open_disk};
//! # fn main() -> Result<(), fleetbox_devices::block::DiskError> {
//! let base = Base::new("debian-12.qcow2".as_ref(), Some(Format::Qcow2));
//! create_layer("web.layer".as_ref(), &LayerOptions { base: Some(base), ..Default::default() })?;
//! let disk = open_disk("web.layer".as_ref(), &OpenOptions::writable(Format::Layer))?;
//! assert!(!disk.read_only());
//! # Ok(())
//! # }
//! ```

mod chain;
mod disk;
mod error;
mod format;
mod host;
mod layer;
#[cfg(test)]
mod model_test;
mod open;
mod qcow2;
mod raw;
mod reader;

pub use disk::Disk;
pub use error::DiskError;
pub use format::{Format, OpenOptions};
pub use host::FileIdentity;
pub use layer::{Base, BaseInfo, LayerInfo, LayerOptions, layer_info};
pub use open::{check_base, create_layer, create_raw, open_disk};
pub use reader::DiskReader;
