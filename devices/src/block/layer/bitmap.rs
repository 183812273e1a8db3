//! The bitmap of a layer: one bit for each block of the disk says whether the layer has it. Pages without a set bit do
//! not exist.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// log2 of the block size. Most guests' file systems use the same block size, so their writes never need bytes of the
/// base.
pub(super) const BLOCK_BITS: u32 = 12;
/// Bytes of a block.
pub(super) const BLOCK: u64 = 1 << BLOCK_BITS;
/// Bytes of a page of the bitmap.
pub(super) const PAGE: usize = 4096;

const WORDS: usize = PAGE / 8;
/// Blocks per page.
const PAGE_BLOCKS: u64 = PAGE as u64 * 8;

struct Page {
    words: [AtomicU64; WORDS],
    /// The page has bits that are not in the durable bitmap.
    dirty: AtomicBool,
}

/// The bitmap. A bit that is set is never cleared.
pub(super) struct Bitmap {
    pages: Vec<OnceLock<Box<Page>>>,
}

/// A piece of the bitmap, as it will be in the file.
pub(super) struct Patch {
    /// Offset within the bitmap, in bytes.
    pub(super) offset: u64,
    pub(super) bytes: Vec<u8>,
}

impl Bitmap {
    /// A bitmap of `blocks` bits, none set.
    pub(super) fn new(blocks: u64) -> Self {
        let pages = blocks.div_ceil(PAGE_BLOCKS) as usize;
        Self {
            pages: std::iter::repeat_with(OnceLock::new).take(pages).collect(),
        }
    }

    /// Loads page `index` from the file.
    pub(super) fn load(&mut self, index: usize, bytes: &[u8; PAGE]) {
        if bytes.iter().all(|b| *b == 0) {
            return;
        }
        if let Some(page) = self.pages.get(index) {
            let page = page.get_or_init(Page::empty);
            for (word, bytes) in page.words.iter().zip(bytes.as_chunks::<8>().0) {
                word.store(u64::from_le_bytes(*bytes), Ordering::Release);
            }
            page.dirty.store(true, Ordering::Release);
        }
    }

    /// Returns whether `block` is in the layer, and the end of the run of blocks with the same answer, at most `end`.
    pub(super) fn run(&self, block: u64, end: u64) -> (bool, u64) {
        let first = self.word(block / 64);
        let set = first.is_some_and(|w| w >> (block % 64) & 1 != 0);
        let mut at = block;
        while at < end {
            // The first word is looked at once: another thread may set the block's bit meanwhile.
            let word = if at == block {
                first
            } else {
                self.word(at / 64)
            };
            let Some(word) = word else {
                if set {
                    break;
                }
                // No page: none of its bits is set.
                at = (at / PAGE_BLOCKS + 1) * PAGE_BLOCKS;
                continue;
            };
            let differing = (if set { !word } else { word }) >> (at % 64);
            if differing != 0 {
                at += u64::from(differing.trailing_zeros());
                break;
            }
            at = (at / 64 + 1) * 64;
        }
        (set, at.min(end))
    }

    /// True if all blocks of the range are in the layer.
    pub(super) fn all(&self, first: u64, end: u64) -> bool {
        first >= end || self.run(first, end) == (true, end)
    }

    /// The number of blocks in the layer.
    pub(super) fn count(&self) -> u64 {
        let pages = self.pages.iter().filter_map(OnceLock::get);
        let words = pages.flat_map(|p| &p.words);
        words
            .map(|w| u64::from(w.load(Ordering::Relaxed).count_ones()))
            .sum()
    }

    /// What the file must contain once the blocks `first..end` are in the layer. Until it has called [`Bitmap::set`],
    /// the caller must keep others from calling this for blocks in the same aligned group of 64.
    pub(super) fn patches(&self, first: u64, end: u64) -> Vec<Patch> {
        let mut patches: Vec<Patch> = Vec::new();
        for_words(first, end, |index, mask| {
            let value = self.word(index).unwrap_or(0) | mask;
            // One patch a page keeps them small.
            match patches.last_mut() {
                Some(p) if !index.is_multiple_of(WORDS as u64) => {
                    p.bytes.extend_from_slice(&value.to_le_bytes());
                }
                _ => patches.push(Patch {
                    offset: index * 8,
                    bytes: value.to_le_bytes().to_vec(),
                }),
            }
        });
        patches
    }

    /// Marks the blocks `first..end` as in the layer. A thread that sees the bits also sees everything done before.
    pub(super) fn set(&self, first: u64, end: u64) {
        for_words(first, end, |index, mask| {
            let (page, word) = (index as usize / WORDS, index as usize % WORDS);
            if let Some(page) = self.pages.get(page) {
                let page = page.get_or_init(Page::empty);
                if let Some(word) = page.words.get(word) {
                    word.fetch_or(mask, Ordering::AcqRel);
                }
                page.dirty.store(true, Ordering::Release);
            }
        });
    }

    /// The pages with bits set since the last call.
    pub(super) fn take_dirty(&self) -> Vec<Patch> {
        let dirty = self
            .pages
            .iter()
            .enumerate()
            .filter_map(|(i, p)| Some((i, p.get()?)));
        dirty
            .filter(|(_, p)| p.dirty.swap(false, Ordering::AcqRel))
            .map(|(i, p)| Patch {
                offset: (i * PAGE) as u64,
                bytes: p.bytes(),
            })
            .collect()
    }

    /// Undoes [`Bitmap::take_dirty`].
    pub(super) fn mark_dirty(&self, taken: &[Patch]) {
        let pages = taken
            .iter()
            .filter_map(|p| self.pages.get(p.offset as usize / PAGE)?.get());
        pages.for_each(|p| p.dirty.store(true, Ordering::Release));
    }

    /// All pages with a set bit.
    pub(super) fn pages(&self) -> impl Iterator<Item = Patch> {
        let pages = self
            .pages
            .iter()
            .enumerate()
            .filter_map(|(i, p)| Some((i, p.get()?)));
        pages.map(|(i, p)| Patch {
            offset: (i * PAGE) as u64,
            bytes: p.bytes(),
        })
    }

    /// The word, if its page exists.
    fn word(&self, index: u64) -> Option<u64> {
        let page = self.pages.get(index as usize / WORDS)?.get()?;
        Some(
            page.words
                .get(index as usize % WORDS)?
                .load(Ordering::Acquire),
        )
    }
}

impl Page {
    fn empty() -> Box<Self> {
        Box::new(Self {
            words: std::array::from_fn(|_| AtomicU64::new(0)),
            dirty: AtomicBool::new(false),
        })
    }

    fn bytes(&self) -> Vec<u8> {
        self.words
            .iter()
            .flat_map(|w| w.load(Ordering::Acquire).to_le_bytes())
            .collect()
    }
}

/// Calls `f` with each word that has bits of the blocks `first..end`, and these bits.
fn for_words(first: u64, end: u64, mut f: impl FnMut(u64, u64)) {
    let mut at = first;
    while at < end {
        let next = ((at / 64 + 1) * 64).min(end);
        let mask = (u64::MAX >> (64 - (next - at))) << (at % 64);
        f(at / 64, mask);
        at = next;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_cross_words_and_pages() {
        let map = Bitmap::new(3 * PAGE_BLOCKS);
        assert_eq!(map.run(0, 3 * PAGE_BLOCKS), (false, 3 * PAGE_BLOCKS));
        let (first, end) = (PAGE_BLOCKS - 3, PAGE_BLOCKS + 130);
        map.set(first, end);
        assert_eq!(map.run(5, 3 * PAGE_BLOCKS), (false, first));
        assert_eq!(map.run(first, 3 * PAGE_BLOCKS), (true, end));
        assert_eq!(map.run(first + 1, first + 2), (true, first + 2));
        assert_eq!(map.run(end, 3 * PAGE_BLOCKS), (false, 3 * PAGE_BLOCKS));
        assert!(map.all(first, end) && !map.all(first, end + 1) && !map.all(first - 1, end));
        assert!(map.all(7, 7));
        assert_eq!(map.count(), 133);
        assert_eq!(map.take_dirty().len(), 2);
        assert!(map.take_dirty().is_empty());
        map.set(2 * PAGE_BLOCKS, 2 * PAGE_BLOCKS + 64);
        assert_eq!(map.take_dirty().len(), 1);
    }

    #[test]
    fn patches_are_what_loads() {
        let map = Bitmap::new(2 * PAGE_BLOCKS);
        map.set(3, 5);
        let mut file = vec![0; 2 * PAGE];
        for (first, end) in [(3, 5), (PAGE_BLOCKS - 70, PAGE_BLOCKS + 70), (64, 128)] {
            for p in map.patches(first, end) {
                file[p.offset as usize..][..p.bytes.len()].copy_from_slice(&p.bytes);
            }
            map.set(first, end);
        }
        let mut again = Bitmap::new(2 * PAGE_BLOCKS);
        for (i, page) in file.as_chunks::<PAGE>().0.iter().enumerate() {
            again.load(i, page);
        }
        assert_eq!(again.count(), map.count());
        let mut whole = vec![0; 2 * PAGE];
        for p in again.pages() {
            whole[p.offset as usize..][..p.bytes.len()].copy_from_slice(&p.bytes);
        }
        assert_eq!(whole, file);
    }
}
