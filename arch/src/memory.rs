//! Guest physical memory.

use vm_memory::bitmap::BS;
use vm_memory::{
    GuestAddress, GuestMemoryError, GuestMemoryRegion, GuestMemoryRegionBytes,
    GuestRegionCollection, GuestUsize, MemoryRegionAddress, MmapRegion, VolatileMemory,
    VolatileSlice,
};

/// Guest physical memory, as this crate fills it and devices see it. It is cheap to clone and
/// shared by all threads. [`allocate`] makes it.
pub type GuestMemory = GuestRegionCollection<Region>;

/// What the host's addresses of guest memory are multiples of, in bytes: the size of a huge page. The host backs guest
/// memory by huge pages only where the guest's and the host's addresses have the same offset in one.
pub const ALIGNMENT: usize = 2 << 20;

/// Why guest memory could not be reserved.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MemoryError {
    /// The host does not give it.
    #[error("the host refuses {} MiB: {source}", size >> 20)]
    Map {
        /// Bytes of the range.
        size: usize,
        /// The operating system's error.
        source: vm_memory::mmap::MmapRegionError,
    },
    /// The ranges overlap, are not in order, or there are none.
    #[error("invalid ranges of guest memory: {0}")]
    Ranges(#[from] vm_memory::GuestRegionCollectionError),
}

/// Guest memory with a region for each range, given by its first address and its size in bytes. It is zeroed, and the
/// host provides it only where it is touched. Each region begins at a multiple of [`ALIGNMENT`] in this process.
///
/// # Errors
/// The host refuses, or the ranges overlap.
///
/// ```
/// use fleetbox_arch::{allocate, x86_64::layout};
/// use vm_memory::{Bytes, GuestAddress};
///
/// let memory = allocate(&layout::memory_regions(16 << 20))?;
/// memory.write_obj(7u32, GuestAddress(0x1000))?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn allocate(ranges: &[(GuestAddress, usize)]) -> Result<GuestMemory, MemoryError> {
    let regions = ranges
        .iter()
        .map(|(start, size)| Region::allocate(*start, *size))
        .collect::<Result<_, _>>()?;
    Ok(GuestRegionCollection::from_regions(regions)?)
}

/// A range of guest memory.
#[derive(Debug)]
pub struct Region {
    /// As much longer as the alignment may take.
    mapping: MmapRegion,
    /// Where the region begins in it.
    skip: usize,
    size: usize,
    start: GuestAddress,
}

impl Region {
    fn allocate(start: GuestAddress, size: usize) -> Result<Self, MemoryError> {
        let failed = |source| MemoryError::Map { size, source };
        // Kernels from 6.7 on would align most mappings by themselves.
        let reserved = size
            .checked_add(ALIGNMENT)
            .ok_or_else(|| failed(vm_memory::mmap::MmapRegionError::InvalidPointer))?;
        let mapping = MmapRegion::new(reserved).map_err(failed)?;
        let address = mapping.as_ptr() as usize;
        Ok(Self {
            skip: address.next_multiple_of(ALIGNMENT) - address,
            mapping,
            size,
            start,
        })
    }
}

impl GuestMemoryRegion for Region {
    type B = ();

    fn len(&self) -> GuestUsize {
        self.size as GuestUsize
    }

    fn start_addr(&self) -> GuestAddress {
        self.start
    }

    fn bitmap(&self) -> BS<'_, ()> {}

    fn get_host_address(&self, addr: MemoryRegionAddress) -> Result<*mut u8, GuestMemoryError> {
        let addr = self
            .check_address(addr)
            .ok_or(GuestMemoryError::InvalidBackendAddress)?;
        // Both are within the mapping.
        Ok(self
            .mapping
            .as_ptr()
            .wrapping_add(self.skip)
            .wrapping_add(addr.0 as usize))
    }

    fn get_slice(
        &self,
        offset: MemoryRegionAddress,
        count: usize,
    ) -> Result<VolatileSlice<'_, BS<'_, ()>>, GuestMemoryError> {
        let offset = usize::try_from(offset.0).unwrap_or(usize::MAX);
        let end = offset.checked_add(count).filter(|end| *end <= self.size);
        if end.is_none() {
            return Err(GuestMemoryError::InvalidBackendAddress);
        }
        Ok(self.mapping.get_slice(self.skip + offset, count)?)
    }
}

impl GuestMemoryRegionBytes for Region {}

#[cfg(test)]
mod tests {
    use vm_memory::{Bytes, GuestMemoryBackend};

    use super::*;

    const PAGE: usize = 4096;

    #[test]
    fn every_region_is_aligned_for_huge_pages() {
        // Sizes that no kernel aligns by itself, and mappings between them that move the next.
        let mut kept = Vec::new();
        for pages in [1, 3, 513, 1000] {
            kept.push(MmapRegion::<()>::new(pages * PAGE).unwrap());
            let size = 3 * ALIGNMENT + pages * PAGE;
            let memory = allocate(&[
                (GuestAddress(0), size),
                (GuestAddress(1 << 32), size + PAGE),
            ])
            .unwrap();
            for region in memory.iter() {
                let host = region.get_host_address(MemoryRegionAddress(0)).unwrap();
                assert_eq!(host as usize % ALIGNMENT, 0, "{host:?}");
            }
        }
    }

    #[test]
    fn a_region_has_its_size_and_no_more() {
        let size = ALIGNMENT + PAGE;
        let memory = allocate(&[(GuestAddress(0x10_0000), size)]).unwrap();
        let last = GuestAddress(0x10_0000 + size as u64 - 1);
        assert_eq!(memory.last_addr(), last);
        memory.write_obj(7u8, last).unwrap();
        assert_eq!(memory.read_obj::<u8>(last).unwrap(), 7);
        memory.write_obj(7u16, last).unwrap_err();
        let region = memory.iter().next().unwrap();
        for (offset, count) in [
            (0, size + 1),
            (size as u64, 1),
            (u64::MAX, 2),
            (1, usize::MAX),
        ] {
            assert!(
                region
                    .get_slice(MemoryRegionAddress(offset), count)
                    .is_err()
            );
        }
        assert_eq!(region.as_volatile_slice().unwrap().len(), size);
        assert!(
            region
                .get_host_address(MemoryRegionAddress(size as u64))
                .is_err()
        );
    }

    #[test]
    fn wrong_ranges_are_errors() {
        assert!(allocate(&[]).is_err());
        assert!(allocate(&[(GuestAddress(0), PAGE), (GuestAddress(0), PAGE)]).is_err());
        let much = allocate(&[(GuestAddress(0), usize::MAX - PAGE)]).unwrap_err();
        assert!(much.to_string().contains("the host refuses"), "{much}");
    }
}
