//! QEMU's qcow2 images, versions 2 and 3, through imago.
//!
//! What imago leaves open is done here: headers are checked before it believes them, backing files
//! are opened by us (locked, read-only, in bounded number), uncompressed data is read straight
//! from the file, decompressed clusters are kept for a while, and a discard gives the host's
//! blocks back.

mod block_on;
mod header;
#[cfg(test)]
mod qcow2_test;
mod storage;

use std::collections::HashMap;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use imago::raw::Raw;
use imago::{DenyImplicitOpenGate, FormatAccess, FormatDriverBuilder, Mapping};

use self::block_on::block_on;
use self::storage::ImageFile;
use super::host::HostFile;
use super::open::Chain;
use super::{Disk, DiskError, Format, OpenOptions, SECTOR, check_range, refuse_write};

type Access = FormatAccess<ImageFile>;
type Image = imago::qcow2::Qcow2<ImageFile, Arc<Access>>;

/// Bytes of decompressed clusters that are kept.
const CACHE: usize = 8 << 20;

/// An open qcow2 image.
pub(super) struct Qcow2Disk {
    access: Arc<Access>,
    path: PathBuf,
    /// Size of the disk, whose last sector is filled up with zeroes.
    len: u64,
    /// Size that the header gives.
    size: u64,
    cluster: u64,
    read_only: bool,
    durable: bool,
    /// imago has panicked: its state can no longer be trusted.
    broken: AtomicBool,
    /// Clusters that were decompressed; only for images that nobody writes to.
    cache: Mutex<Cache>,
}

impl Qcow2Disk {
    /// Opens the image in `file` and the images under it.
    pub(super) fn open(
        file: HostFile,
        options: &OpenOptions,
        chain: &mut Chain,
    ) -> Result<Self, DiskError> {
        let path = file.path().to_path_buf();
        let (access, header) = open_access(file, !options.read_only, chain)?;
        let cached = (CACHE / header.cluster as usize).max(1);
        Ok(Self {
            access,
            path,
            len: header.size.next_multiple_of(SECTOR),
            size: header.size,
            cluster: header.cluster,
            read_only: options.read_only,
            durable: options.durable,
            broken: AtomicBool::new(false),
            cache: Mutex::new(Cache::new(cached)),
        })
    }

    /// Runs imago's code on what may be hostile metadata.
    fn run<T>(&self, f: impl FnOnce(&Access) -> io::Result<T>) -> io::Result<T> {
        let failed = || {
            io::Error::new(
                io::ErrorKind::InvalidData,
                format!(
                    "the qcow2 image {} has inconsistent metadata",
                    self.path.display()
                ),
            )
        };
        if self.broken.load(Ordering::Acquire) {
            return Err(failed());
        }
        catch_unwind(AssertUnwindSafe(|| f(&self.access))).unwrap_or_else(|_| {
            self.broken.store(true, Ordering::Release);
            Err(failed())
        })
    }

    /// Reads one cluster that is compressed, or another one.
    fn read_cluster(&self, access: &Access, cluster: u64) -> io::Result<Arc<[u8]>> {
        let cache = || self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        if self.read_only
            && let Some(found) = cache().get(cluster)
        {
            return Ok(found);
        }
        let start = cluster * self.cluster;
        let mut bytes = vec![0; (self.size - start).min(self.cluster) as usize];
        block_on(access.read(&mut bytes, start))?;
        let bytes: Arc<[u8]> = bytes.into();
        if self.read_only {
            cache().insert(cluster, Arc::clone(&bytes));
        }
        Ok(bytes)
    }

    /// Reads what is within the size that the header gives.
    fn read_within(&self, access: &Access, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let (mut buf, mut at) = (buf, offset);
        while !buf.is_empty() {
            let (mapping, len) = block_on(access.get_mapping(at, buf.len() as u64))?;
            let special = matches!(mapping, Mapping::Special { .. });
            // Never beyond the end of a cluster that is read through the cache.
            let len = if special {
                len.min(self.cluster - at % self.cluster)
            } else {
                len
            };
            let n = usize::try_from(len).unwrap_or(usize::MAX).min(buf.len());
            if n == 0 {
                return Err(io::Error::new(
                    io::ErrorKind::UnexpectedEof,
                    "the mapping ends early",
                ));
            }
            let (part, rest) = buf.split_at_mut(n);
            match mapping {
                Mapping::Raw {
                    storage, offset, ..
                } => storage.read(part, offset)?,
                Mapping::Zero { .. } | Mapping::Eof { .. } => part.fill(0),
                _ => {
                    let cluster = self.read_cluster(access, at / self.cluster)?;
                    let from = (at % self.cluster) as usize;
                    let bytes = cluster
                        .get(from..from + n)
                        .ok_or(io::ErrorKind::UnexpectedEof)?;
                    part.copy_from_slice(bytes);
                }
            }
            (buf, at) = (rest, at + n as u64);
        }
        Ok(())
    }

    /// Gives back the blocks of what is stored in the image itself, and puts zero clusters over
    /// everything else.
    fn unmap(&self, access: &Access, offset: u64, end: u64) -> io::Result<()> {
        let mut at = offset;
        while at < end {
            let (mapping, len) = block_on(access.get_mapping(at, end - at))?;
            let len = len.min(end - at);
            match mapping {
                Mapping::Raw {
                    storage,
                    offset,
                    writable: true,
                    ..
                } => {
                    storage.punch(offset, len)?;
                }
                Mapping::Zero { explicit: true, .. } => {}
                _ => block_on(access.write_zeroes(at, len))?,
            }
            if len == 0 {
                return Err(io::Error::new(
                    io::ErrorKind::UnexpectedEof,
                    "the mapping ends early",
                ));
            }
            at += len;
        }
        Ok(())
    }
}

impl Disk for Qcow2Disk {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_only(&self) -> bool {
        self.read_only
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        check_range(self.len, offset, buf.len() as u64)?;
        let within = self.size.saturating_sub(offset).min(buf.len() as u64) as usize;
        let (within, beyond) = buf.split_at_mut(within);
        beyond.fill(0);
        self.run(|access| self.read_within(access, within, offset))
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        refuse_write(self.read_only)?;
        check_range(self.size, offset, buf.len() as u64)?;
        self.run(|access| block_on(access.write(buf, offset)))
    }

    fn flush(&self) -> io::Result<()> {
        if self.read_only {
            return Ok(());
        }
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

    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
        refuse_write(self.read_only)?;
        check_range(self.size, offset, len)?;
        if unmap {
            self.run(|access| self.unmap(access, offset, offset + len))
        } else {
            self.run(|access| block_on(access.write_zeroes(offset, len)))
        }
    }
}

impl Drop for Qcow2Disk {
    fn drop(&mut self) {
        // Metadata that imago still holds would be lost.
        if !self.read_only
            && let Err(error) = self.run(|access| block_on(access.flush()))
        {
            tracing::error!(path = %self.path.display(), %error, "closing a qcow2 image failed");
        }
    }
}

/// Opens an image and, read-only, what lies under it.
fn open_access(
    file: HostFile,
    write: bool,
    chain: &mut Chain,
) -> Result<(Arc<Access>, header::Header), DiskError> {
    let header = header::read(&file, write)?;
    let backing = header
        .backing
        .as_ref()
        .map(|b| open_backing(b, chain))
        .transpose()?;
    let path = file.path().to_path_buf();
    let open = || {
        let builder = Image::builder(ImageFile::new(file, write, header.cluster)).write(write);
        let builder = builder.backing(backing).data_file(None);
        block_on(builder.open(DenyImplicitOpenGate::default()))
    };
    match catch_unwind(AssertUnwindSafe(open)) {
        Ok(Ok(image)) => Ok((Arc::new(FormatAccess::new(image)), header)),
        Ok(Err(e)) => Err(DiskError::corrupt(&path, Format::Qcow2, e.to_string())),
        Err(_) => Err(DiskError::corrupt(
            &path,
            Format::Qcow2,
            "its metadata is inconsistent",
        )),
    }
}

fn open_backing(backing: &header::Backing, chain: &mut Chain) -> Result<Arc<Access>, DiskError> {
    chain.check(&backing.path)?;
    let file = HostFile::open(&backing.path, false)?;
    if backing.format == Format::Qcow2 {
        return Ok(open_access(file, false, chain)?.0);
    }
    let open =
        Raw::builder(ImageFile::new(file, false, SECTOR)).open(DenyImplicitOpenGate::default());
    let raw = block_on(open).map_err(DiskError::io("open", &backing.path))?;
    Ok(Arc::new(FormatAccess::new(raw)))
}

/// The clusters that were decompressed last.
struct Cache {
    capacity: usize,
    /// Counts uses.
    clock: u64,
    /// By cluster: when it was last used, and its bytes.
    clusters: HashMap<u64, (u64, Arc<[u8]>)>,
}

impl Cache {
    fn new(capacity: usize) -> Self {
        Self {
            capacity,
            clock: 0,
            clusters: HashMap::new(),
        }
    }

    fn get(&mut self, cluster: u64) -> Option<Arc<[u8]>> {
        self.clock += 1;
        let (used, bytes) = self.clusters.get_mut(&cluster)?;
        *used = self.clock;
        Some(Arc::clone(bytes))
    }

    fn insert(&mut self, cluster: u64, bytes: Arc<[u8]>) {
        if self.clusters.len() >= self.capacity
            && let Some(oldest) = self
                .clusters
                .iter()
                .min_by_key(|(_, v)| v.0)
                .map(|(k, _)| *k)
        {
            self.clusters.remove(&oldest);
        }
        self.clock += 1;
        self.clusters.insert(cluster, (self.clock, bytes));
    }
}
