//! Copy-on-write layers: a sparse file with what was written, over a base that is never written to.
//!
//! The file has a [header], two bitmaps with a bit for each block of 4 KiB, and the data, where
//! each block has the same position as on the disk. A block whose bit is set is read from the
//! layer, any other from the base. A discarded block is a hole with its bit set.
//!
//! Bits are never cleared, and set only once the block's data is in the file. The *live* bitmap is
//! written with each write. Like the data, it is in the host's page cache, which survives a kill of
//! this process, so no completed write is lost. A crash of the host may lose any part of the page
//! cache. So if a layer is opened in another boot than that of its live bitmap, the *durable*
//! bitmap is used instead. [`flush`](super::Disk::flush) writes it after it has made the data
//! durable.

mod bitmap;
mod create;
mod disk;
mod header;
mod info;
#[cfg(test)]
mod layer_test;
mod load;

pub use create::layer_info;
pub(super) use create::{create, refuse_base};
pub(super) use disk::{LayerDisk, check_base};
pub use info::{Base, BaseInfo, LayerInfo, LayerOptions};
