//! Reads and writes qcow2 images through imago.
//!
//! This adds what imago lacks: a panic in its code for hostile metadata does not end the process,
//! data is read directly from the file, and a discard frees the host's blocks.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use imago::raw::Raw;
use imago::{DenyImplicitOpenGate, FormatAccess, FormatDriverBuilder, Mapping};

use super::block_on::block_on;
use super::header::Header;
use super::node::Node;
use crate::block::disk::{Disk, check_range};
use crate::block::error::DiskError;
use crate::block::format::Format;
use crate::block::host::HostFile;

type Access = FormatAccess<Node>;
type Image = imago::qcow2::Qcow2<Node, Arc<Access>>;

/// An open image.
pub(super) struct Writer {
    access: Access,
    path: PathBuf,
    /// Size of the disk.
    len: u64,
    durable: bool,
    /// True if imago has panicked, so that its state can no longer be trusted.
    broken: AtomicBool,
}

impl Writer {
    /// Opens the image in `file`, whose header was checked.
    pub(super) fn open(
        file: HostFile,
        header: &Header,
        backing: Option<Arc<dyn Disk>>,
        durable: bool,
    ) -> Result<Self, DiskError> {
        let path = file.path().to_path_buf();
        let open = || {
            let gate = DenyImplicitOpenGate::default;
            let backing = match backing {
                Some(disk) => Some(Arc::new(FormatAccess::new(block_on(
                    Raw::builder(Node::backing(disk)).open(gate()),
                )?))),
                None => None,
            };
            let builder = Image::builder(Node::file(file)).write(true);
            block_on(builder.backing(backing).data_file(None).open(gate()))
        };
        let corrupt = |what: String| DiskError::corrupt(&path, Format::Qcow2, what);
        let image = catch_unwind(AssertUnwindSafe(open))
            .map_err(|_| corrupt("its metadata is inconsistent".into()))?
            .map_err(|e| corrupt(e.to_string()))?;
        let access = FormatAccess::new(image);
        Ok(Self {
            access,
            path,
            len: header.size,
            durable,
            broken: AtomicBool::new(false),
        })
    }

    /// Runs imago's code.
    fn run<T>(&self, f: impl FnOnce(&Access) -> io::Result<T>) -> io::Result<T> {
        if !self.broken.load(Ordering::Acquire) {
            if let Ok(result) = catch_unwind(AssertUnwindSafe(|| f(&self.access))) {
                return result;
            }
            self.broken.store(true, Ordering::Release);
        }
        Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!(
                "the qcow2 image {} has inconsistent metadata",
                self.path.display()
            ),
        ))
    }
}

/// Reads a range that is within the disk.
fn read(access: &Access, mut buf: &mut [u8], mut at: u64) -> io::Result<()> {
    while !buf.is_empty() {
        let (mapping, len) = block_on(access.get_mapping(at, buf.len() as u64))?;
        let n = usize::try_from(not_empty(len)?)
            .unwrap_or(usize::MAX)
            .min(buf.len());
        let (part, rest) = buf.split_at_mut(n);
        match mapping {
            Mapping::Raw {
                storage, offset, ..
            } => storage.read(part, offset)?,
            Mapping::Zero { .. } | Mapping::Eof { .. } => part.fill(0),
            _ => block_on(access.read(&mut *part, at))?,
        }
        (buf, at) = (rest, at + n as u64);
    }
    Ok(())
}

/// Frees the blocks of data in the image itself, and writes zero clusters over everything else.
fn unmap(access: &Access, mut at: u64, end: u64) -> io::Result<()> {
    while at < end {
        let (mapping, len) = block_on(access.get_mapping(at, end - at))?;
        let len = not_empty(len)?.min(end - at);
        match mapping {
            Mapping::Raw {
                storage,
                offset,
                writable: true,
                ..
            } => storage.punch(offset, len)?,
            Mapping::Zero { explicit: true, .. } => {}
            _ => block_on(access.write_zeroes(at, len))?,
        }
        at += len;
    }
    Ok(())
}

/// Mappings within the disk are never empty.
fn not_empty(len: u64) -> io::Result<u64> {
    if len == 0 {
        return Err(io::Error::new(
            io::ErrorKind::UnexpectedEof,
            "a mapping of no bytes",
        ));
    }
    Ok(len)
}

impl Disk for Writer {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_only(&self) -> bool {
        false
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        check_range(self.len, offset, buf.len() as u64)?;
        self.run(|access| read(access, buf, offset))
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        check_range(self.len, offset, buf.len() as u64)?;
        self.run(|access| block_on(access.write(buf, offset)))
    }

    fn flush(&self) -> io::Result<()> {
        self.run(|access| block_on(access.flush()))?;
        if self.durable {
            self.run(|access| block_on(access.sync()))
        } else {
            Ok(())
        }
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.write_zeroes(offset, len, true)
    }

    fn write_zeroes(&self, offset: u64, len: u64, unmap_blocks: bool) -> io::Result<()> {
        check_range(self.len, offset, len)?;
        self.run(|access| {
            if unmap_blocks {
                unmap(access, offset, offset + len)
            } else {
                block_on(access.write_zeroes(offset, len))
            }
        })
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        // Metadata that imago still holds would be lost.
        if let Err(error) = self.run(|access| block_on(access.flush())) {
            tracing::error!(path = %self.path.display(), %error, "cannot close a qcow2 image");
        }
    }
}
