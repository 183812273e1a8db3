//! QEMU's qcow2 images, versions 2 and 3.
//!
//! Images that are only read, such as bases, use our own [reader]. It handles any metadata with
//! bounded memory, its decompression is fast at every optimisation level of the user's build, and
//! it reads uncompressed data directly from the file. Images that are written to use imago
//! ([writer]).
//!
//! Backing files are opened only if [`OpenOptions::follow`] allows it, and then like any other base: locked, read-only,
//! and up to a limited number. External data files are always refused.

mod block_on;
mod header;
mod node;
#[cfg(test)]
mod qcow2_test;
mod reader;
mod writer;

use std::sync::Arc;

use self::reader::Reader;
use self::writer::Writer;
use super::chain::Chain;
use super::disk::Disk;
use super::error::DiskError;
use super::format::OpenOptions;
use super::host::HostFile;

/// Opens the image in `file` and the images under it.
pub(super) fn open(
    file: HostFile,
    options: &OpenOptions,
    chain: &mut Chain,
) -> Result<Arc<dyn Disk>, DiskError> {
    let header = header::read(&file, options)?;
    let backing = match &header.backing {
        Some(backing) => {
            let below = OpenOptions {
                format: Some(backing.format),
                follow: options.follow,
                ..OpenOptions::read_only()
            };
            Some(chain.open(&backing.path, &below)?)
        }
        None => None,
    };
    Ok(if options.read_only {
        Arc::new(Reader::open(file, &header, backing)?)
    } else {
        Arc::new(Writer::open(file, &header, backing, options.durable)?)
    })
}
