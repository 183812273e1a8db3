//! What of a guest's segments smoltcp may see.
//!
//! smoltcp 0.14 believes two things about its receive window that a hostile guest can make wrong, and
//! then asserts what does not hold:
//!
//! - The window in its SYN is not scaled, but it multiplies it with the scale until it sends the next
//!   segment. So it takes data far behind the end of its buffer.
//! - A FIN that arrives at the end of a full window puts the start of the window behind its end.
//!   Then sequence numbers half of their range away count as inside.
//!
//! So the true window is kept here, and what is not inside of it is cut off or replaced.

use crate::frame::{FIN, IPV4, RST, TCP, Tcp, put};

/// Nothing that is further away than this belongs to the connection: no window is larger (RFC 7323,
/// 2.3).
const HORIZON: i32 = 1 << 30;
/// PSH means nothing without the end of the data.
const PSH: u8 = 8;

/// The true start of the receive window.
#[derive(Debug, Clone, Copy)]
pub(super) struct Window {
    /// The sequence number of the guest's first byte.
    first: u32,
    /// Bytes that were taken out of the receive buffer.
    taken: u32,
}

/// What smoltcp gets of a segment.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Fit {
    All,
    /// This packet instead.
    Instead(Vec<u8>),
    Nothing,
}

impl Window {
    /// The window of a connection that the guest opens or accepts with `segment`.
    pub(super) fn new(segment: &Tcp) -> Self {
        Self {
            first: segment.sequence.wrapping_add(1),
            taken: 0,
        }
    }

    pub(super) fn take(&mut self, bytes: usize) {
        self.taken = self.taken.wrapping_add(bytes as u32);
    }

    /// Decides about a segment when `queued` bytes wait in the receive buffer, which has room for
    /// `room` more; 0 if the guest has closed its half. `packet` is the IP packet of the segment.
    pub(super) fn fit(&self, packet: &[u8], segment: &Tcp, queued: usize, room: usize) -> Fit {
        let start = self.first.wrapping_add(self.taken);
        let start = start.wrapping_add(queued as u32);
        let offset = segment.sequence.wrapping_sub(start) as i32;
        let far = !(-HORIZON..=HORIZON).contains(&offset);
        let end = i64::from(offset) + segment.payload as i64;
        if !far && (end <= room as i64 || segment.payload == 0) {
            return Fit::All;
        }
        if segment.has(RST) {
            return Fit::Nothing;
        }
        let inside = usize::try_from(room as i64 - i64::from(offset)).unwrap_or(0);
        let instead = if far || inside == 0 {
            // It is answered with what the guest may send, as all that is outside.
            part(packet, segment, 0, start.wrapping_sub(1))
        } else {
            part(packet, segment, inside, segment.sequence)
        };
        instead.map_or(Fit::Nothing, Fit::Instead)
    }
}

/// The packet with only the first `len` bytes of its segment's payload.
fn part(packet: &[u8], segment: &Tcp, len: usize, sequence: u32) -> Option<Vec<u8>> {
    let headers = packet.len().checked_sub(segment.payload)?;
    let tcp = usize::from(packet.first()? & 15) * 4;
    if tcp < IPV4 || headers < tcp + TCP {
        return None;
    }
    let mut packet = packet.get(..headers + len)?.to_vec();
    let total = u16::try_from(packet.len()).ok()?;
    put(&mut packet, 2, &total.to_be_bytes());
    put(&mut packet, tcp + 4, &sequence.to_be_bytes());
    let flags = packet.get_mut(tcp + 13)?;
    *flags &= !(FIN | PSH);
    Some(packet)
}
