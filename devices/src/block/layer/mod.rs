//! Copy-on-write layers: a sparse file with what was written over a base that never is.
//!
//! The file has a [header], two bitmaps with a bit for each block of 4 KiB, and the
//! data, where each block has the same place as on the disk. A block whose bit is set is read from
//! the layer, any other from the base; a block that was discarded is a hole with its bit set.
//!
//! Bits are only ever set, and only once the block's data is in the file. The *live* bitmap is
//! written along with each write: it and the data are in the host's page cache, which a kill of
//! this process does not touch, so whatever was completed before the kill is there after it. A
//! crash of the host may keep any part of the page cache, so a layer opened in another boot than
//! the one that its live bitmap is of uses the *durable* bitmap instead, which
//! [`flush`](super::Disk::flush) writes after it has made the data durable.

mod bitmap;
mod create;
mod disk;
mod header;
mod info;
#[cfg(test)]
mod layer_test;
mod load;

pub(super) use create::create;
pub use create::layer_info;
pub(super) use disk::LayerDisk;
pub use info::{Base, BaseInfo, LayerInfo, LayerOptions};
