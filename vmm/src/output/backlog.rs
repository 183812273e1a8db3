//! Output that waits for its reader, in bounded memory.

use std::collections::VecDeque;

/// Output that waits for its reader: its newest bytes, at most [`Self::CAPACITY`].
///
/// ```
/// use fleetbox_vmm::output::Backlog;
///
/// let mut backlog = Backlog::default();
/// backlog.push(b"login: ");
/// assert_eq!(backlog.take(5), (0, b"login".to_vec()));
///
/// backlog.push(&vec![b'x'; 3 * Backlog::CAPACITY]);
/// let (lost, bytes) = backlog.take(usize::MAX);
/// assert!(bytes.len() <= Backlog::CAPACITY);
/// assert_eq!(lost + bytes.len() as u64, 2 + 3 * Backlog::CAPACITY as u64);
/// ```
#[derive(Debug, Default)]
pub struct Backlog {
    bytes: VecDeque<u8>,
    lost: u64,
}

impl Backlog {
    /// Maximum bytes that are kept.
    pub const CAPACITY: usize = 1 << 20;
    /// How far to search for the end of a line, so that the remaining output begins with a complete
    /// one.
    const LINE: usize = 64 << 10;

    /// Adds output. If it does not fit, the older half of all output is dropped, and the rest of a
    /// line that was partly dropped.
    pub fn push(&mut self, bytes: &[u8]) {
        let len = self.bytes.len() + bytes.len();
        let Some(excess) = len.checked_sub(Self::CAPACITY).filter(|excess| *excess > 0) else {
            self.bytes.extend(bytes);
            return;
        };
        // Half of it at once, or the reader would find a gap at each byte.
        let cut = (excess + Self::CAPACITY / 2).min(len);
        let old = cut.min(self.bytes.len());
        self.bytes.drain(..old);
        self.bytes.extend(bytes.iter().skip(cut - old));
        let mut begin = self.bytes.iter().take(Self::LINE);
        let line = begin.position(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        self.bytes.drain(..line);
        self.lost += (cut + line) as u64;
    }

    /// How many bytes were dropped since the last [`Self::take`].
    pub(super) fn lost(&self) -> u64 {
        self.lost
    }

    /// The number of waiting bytes.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// True if no bytes are waiting.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Takes the oldest waiting bytes, at most `most`, and returns how many were lost before them
    /// since the last call. If possible, the remaining output begins with a new line, so that
    /// losing it does not leave half a line with the reader.
    pub fn take(&mut self, most: usize) -> (u64, Vec<u8>) {
        let mut len = most.min(self.bytes.len());
        if len < self.bytes.len() {
            let newline = self.bytes.range(..len).rposition(|byte| *byte == b'\n');
            len = newline.map_or(len, |at| at + 1);
        }
        let bytes = self.bytes.drain(..len).collect();
        (std::mem::take(&mut self.lost), bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_taken_ends_with_a_line_unless_it_is_all_or_one_line() {
        let mut backlog = Backlog::default();
        backlog.push(b"one\ntwo\nthree");
        assert_eq!(backlog.take(6).1, b"one\n");
        assert_eq!(backlog.take(100).1, b"two\nthree");
        backlog.push(&[b'x'; 10]);
        assert_eq!(backlog.take(4).1, b"xxxx");
    }
}
