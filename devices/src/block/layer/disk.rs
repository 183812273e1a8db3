//! An open layer.

use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};

use super::bitmap::{BLOCK, BLOCK_BITS, Bitmap, Patch};
use super::header::{self, Layout};
use super::info::BaseInfo;
use super::load::{read_bitmap, read_header};
use crate::block::chain::Chain;
use crate::block::disk::{Disk, check_range, refuse_write};
use crate::block::error::DiskError;
use crate::block::format::OpenOptions;
use crate::block::host::{HostFile, boot_id};
use crate::sync::lock;

/// log2 of the bytes of a region, whose first writes one lock serialises: a multiple of 64 blocks.
const REGION_BITS: u32 = 20;
const LOCKS: usize = 64;
const ZEROES: [u8; BLOCK as usize] = [0; BLOCK as usize];

/// An open layer.
pub(in crate::block) struct LayerDisk {
    file: HostFile,
    size: u64,
    layout: Layout,
    bitmap: Bitmap,
    base: Option<Arc<dyn Disk>>,
    read_only: bool,
    durable: bool,
    /// One lock for each region, held while blocks are added to the layer.
    regions: [Mutex<()>; LOCKS],
    flushing: Mutex<()>,
}

impl LayerDisk {
    /// Opens the layer in `file` and the images under it.
    pub(in crate::block) fn open(
        file: HostFile,
        options: &OpenOptions,
        chain: &mut Chain,
    ) -> Result<Self, DiskError> {
        let (header, boot) = read_header(&file)?;
        let base = match &header.base {
            Some(info) => Some(open_base(&file, info, options, chain)?),
            None => None,
        };
        let layout = Layout::new(header.size);
        let this_boot = boot_id();
        let same_boot = this_boot.is_some_and(|id| id == boot);
        let from = if same_boot {
            layout.live
        } else {
            layout.durable
        };
        let bitmap =
            read_bitmap(&file, &layout, from).map_err(DiskError::io("read", file.path()))?;
        let disk = Self {
            file,
            size: header.size,
            layout,
            bitmap,
            base,
            read_only: options.read_only,
            durable: options.durable,
            regions: std::array::from_fn(|_| Mutex::new(())),
            flushing: Mutex::new(()),
        };
        if !options.read_only && !same_boot {
            disk.adopt(this_boot.unwrap_or_default())
                .map_err(DiskError::io("write to", disk.file.path()))?;
        }
        Ok(disk)
    }

    /// Makes the live bitmap equal to the durable one that was loaded, and then marks it as this
    /// boot's. The order matters: the mark must come only when the live bitmap is complete.
    fn adopt(&self, boot: [u8; 16]) -> io::Result<()> {
        self.file.punch(self.layout.live, self.layout.bitmap_len)?;
        for page in self.bitmap.pages() {
            self.file
                .write(&page.bytes, self.layout.live + page.offset)?;
        }
        self.file.write(&boot, header::BOOT_ID)
    }

    /// Makes all data durable, then these pages of the bitmap.
    fn write_durable(&self, pages: &[Patch]) -> io::Result<()> {
        self.file.sync()?;
        if pages.is_empty() {
            return Ok(());
        }
        for page in pages {
            self.file
                .write(&page.bytes, self.layout.durable + page.offset)?;
        }
        self.file.sync()
    }

    /// Locks the regions of the range, always in the same order.
    fn lock_regions(&self, offset: u64, end: u64) -> Vec<MutexGuard<'_, ()>> {
        let (first, last) = (offset >> REGION_BITS, end.saturating_sub(1) >> REGION_BITS);
        let held = |i: usize| {
            let from_first = (i as u64).wrapping_sub(first) % LOCKS as u64;
            first + from_first <= last
        };
        let regions = self.regions.iter().enumerate().filter(|(i, _)| held(*i));
        regions.map(|(_, region)| lock(region)).collect()
    }

    /// Marks the blocks as in the layer. Their data must be in the file, and their regions locked.
    fn own(&self, first: u64, end: u64) -> io::Result<()> {
        for patch in self.bitmap.patches(first, end) {
            self.file
                .write(&patch.bytes, self.layout.live + patch.offset)?;
        }
        self.bitmap.set(first, end);
        Ok(())
    }

    /// Fills `buf` from the base.
    fn read_below(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let base = self.base.as_deref();
        let below = base.map_or(0, |b| b.len().saturating_sub(offset));
        let n = usize::try_from(below).unwrap_or(usize::MAX).min(buf.len());
        let (of_base, beyond) = buf.split_at_mut(n);
        beyond.fill(0);
        match base {
            Some(base) if n > 0 => base.read_at(of_base, offset),
            _ => Ok(()),
        }
    }

    /// Copies a part of a block from the base into the layer.
    fn copy_up(&self, start: u64, end: u64) -> io::Result<()> {
        let mut block = ZEROES;
        let Some(part) = block.get_mut(..end.saturating_sub(start) as usize) else {
            return Ok(());
        };
        self.read_below(part, start)?;
        self.file.write(part, self.layout.data + start)
    }

    /// Zeroes whole blocks.
    fn zero_blocks(&self, first: u64, end: u64, unmap: bool) -> io::Result<()> {
        if first >= end {
            return Ok(());
        }
        let (offset, len) = (first << BLOCK_BITS, (end - first) << BLOCK_BITS);
        let zero = || {
            let at = self.layout.data + offset;
            if unmap {
                self.file.punch(at, len)
            } else {
                self.file.zero(at, len)
            }
        };
        if self.bitmap.all(first, end) {
            return zero();
        }
        let _locks = self.lock_regions(offset, offset + len);
        zero()?;
        self.own(first, end)
    }
}

impl Disk for LayerDisk {
    fn len(&self) -> u64 {
        self.size
    }

    fn read_only(&self) -> bool {
        self.read_only
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        check_range(self.size, offset, buf.len() as u64)?;
        let (mut buf, mut at) = (buf, offset);
        while !buf.is_empty() {
            let end = (at + buf.len() as u64).div_ceil(BLOCK);
            let (own, next) = self.bitmap.run(at / BLOCK, end);
            let n = ((next * BLOCK - at) as usize).min(buf.len());
            let (part, rest) = buf.split_at_mut(n);
            if own {
                self.file.read(part, self.layout.data + at)?;
            } else {
                self.read_below(part, at)?;
            }
            (buf, at) = (rest, at + n as u64);
        }
        Ok(())
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        refuse_write(self.read_only)?;
        check_range(self.size, offset, buf.len() as u64)?;
        if buf.is_empty() {
            return Ok(());
        }
        let end = offset + buf.len() as u64;
        let (first, last) = (offset / BLOCK, (end - 1) / BLOCK);
        let write = || self.file.write(buf, self.layout.data + offset);
        if self.bitmap.all(first, last + 1) {
            return write();
        }
        let _locks = self.lock_regions(offset, end);
        if !self.bitmap.all(first, first + 1) {
            self.copy_up(first * BLOCK, offset)?;
        }
        if !self.bitmap.all(last, last + 1) {
            self.copy_up(end, ((last + 1) * BLOCK).min(self.size))?;
        }
        write()?;
        self.own(first, last + 1)
    }

    fn flush(&self) -> io::Result<()> {
        if self.read_only || !self.durable {
            return Ok(());
        }
        let _one = lock(&self.flushing);
        // Bits are set after their data is written: what these pages tell of is durable after the
        // sync.
        let pages = self.bitmap.take_dirty();
        let written = self.write_durable(&pages);
        if written.is_err() {
            self.bitmap.mark_dirty(&pages);
        }
        written
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.write_zeroes(offset, len, true)
    }

    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
        refuse_write(self.read_only)?;
        check_range(self.size, offset, len)?;
        if len == 0 {
            return Ok(());
        }
        let end = offset + len;
        // Past the end of the disk there is nothing to keep of its last block.
        let end = if end == self.size {
            end.next_multiple_of(BLOCK)
        } else {
            end
        };
        let (first, last) = (offset.div_ceil(BLOCK), end / BLOCK);
        let zeroes = |from: u64, to: u64| {
            let len = to.min(self.size).saturating_sub(from);
            if len == 0 {
                Ok(())
            } else {
                self.write_at(&ZEROES[..len as usize], from)
            }
        };
        if first > last {
            // Within one block.
            return zeroes(offset, end);
        }
        zeroes(offset, first * BLOCK)?;
        self.zero_blocks(first, last, unmap)?;
        zeroes(last * BLOCK, end)
    }
}

/// Opens the base of the layer in `file`, if it has not changed.
/// Checks the images under the layer at `path` as opening it does, but ignores the lock of the layer itself, which may
/// be in use.
pub(in crate::block) fn check_base(path: &Path, chain: &mut Chain) -> Result<(), DiskError> {
    let file = HostFile::peek(path)?;
    let (header, _) = read_header(&file)?;
    match &header.base {
        Some(info) => open_base(&file, info, &OpenOptions::read_only(), chain).map(drop),
        None => Ok(()),
    }
}

fn open_base(
    file: &HostFile,
    info: &BaseInfo,
    options: &OpenOptions,
    chain: &mut Chain,
) -> Result<Arc<dyn Disk>, DiskError> {
    let path = options.base.as_ref().unwrap_or(&info.base.path);
    let changed = |what: String| DiskError::BaseChanged {
        layer: file.path().to_path_buf(),
        base: path.clone(),
        what,
    };
    let below = OpenOptions {
        format: info.base.format,
        // Checked when the layer was created, and not changed since, as the checks below show.
        follow: true,
        ..OpenOptions::read_only()
    };
    let (disk, identity) = chain.open_with_identity(path, &below)?;
    let was = &info.identity;
    if identity.len != was.len {
        return Err(changed(format!(
            "its length is {}, not {}",
            identity.len, was.len
        )));
    }
    if disk.len() != info.size {
        return Err(changed(format!(
            "its disk has {} bytes, not {}",
            disk.len(),
            info.size
        )));
    }
    match (&options.base_digest, &info.base.digest) {
        (Some(is), Some(was)) if is == was => return Ok(disk),
        (Some(is), Some(was)) => return Err(changed(format!("its digest is {is}, not {was}"))),
        _ => {}
    }
    if (identity.mtime, identity.mtime_nanos) != (was.mtime, was.mtime_nanos) {
        return Err(changed("it was modified since".into()));
    }
    if identity.inode != was.inode {
        return Err(changed(
            "it is another file of the same length and time".into(),
        ));
    }
    Ok(disk)
}
