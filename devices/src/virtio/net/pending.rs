//! A packet on its way to the driver.

use fleetbox_packet::Large;

/// A packet that was read, and not yet delivered to the driver.
pub(super) struct Pending {
    /// Bytes of the frame or large packet.
    pub(super) len: usize,
    pub(super) large: Option<Large>,
    /// It is delivered in frames.
    pub(super) cut: bool,
    /// How many frames have been delivered.
    pub(super) next: usize,
    /// Its pair of queues.
    pub(super) pair: usize,
}

impl Pending {
    /// Maximum bytes of the next piece.
    pub(super) fn wanted(&self) -> usize {
        match &self.large {
            Some(large) if self.cut => large.headers() + usize::from(large.segment()),
            _ => self.len,
        }
    }

    /// Switches to delivery in frames. Returns false if it cannot be cut, or already is.
    pub(super) fn cut(&mut self) -> bool {
        self.large.is_some() && !std::mem::replace(&mut self.cut, true)
    }

    /// Writes the next frame of `packet` to `frame`. Returns its length, or `None` if the packet is delivered uncut.
    pub(super) fn next_frame(&mut self, packet: &[u8], frame: &mut [u8]) -> Option<usize> {
        let large = self.large.as_ref().filter(|_| self.cut)?;
        let len = large.write(packet.get(..self.len)?, self.next, frame)?;
        self.next += 1;
        Some(len)
    }

    /// Returns true if nothing is left. Call it after a delivery.
    pub(super) fn is_done(&self) -> bool {
        let large = self.large.as_ref().filter(|_| self.cut);
        large.is_none_or(|large| self.next >= large.count())
    }
}
