//! Puts the fragments of guests' datagrams together (RFC 791, 3.2), with a bound for everything that
//! a guest can make this hold: bytes, datagrams, fragments and time.

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use crate::frame::{FRAGMENT_OFFSET, IPV4, Ipv4, MORE_FRAGMENTS, be16, put};

/// How long a datagram may take to arrive. The link is memory: what has not come after this time was
/// lost.
const PATIENCE: Duration = Duration::from_secs(15);
/// Maximum incomplete datagrams of one member, and their bytes. A new one replaces the oldest.
const MAX_DATAGRAMS: usize = 16;
const MAX_BYTES: usize = 256 << 10;
/// Maximum fragments of a datagram. The largest has 45 on this network, and 120 on one with the
/// smallest packets that routers must pass.
const MAX_FRAGMENTS: usize = 128;
/// Maximum bytes of an IPv4 packet.
const MAX_PACKET: usize = u16::MAX as usize;

/// What the fragments of a datagram have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Key {
    source: Ipv4Addr,
    to: Ipv4Addr,
    protocol: u8,
    id: u16,
}

/// A datagram of which some fragments have come.
#[derive(Debug)]
struct Partial {
    key: Key,
    since: Instant,
    /// The fragments, in order of their offsets, without overlaps.
    parts: Vec<(usize, Vec<u8>)>,
    /// The header of the first fragment.
    header: Option<Vec<u8>>,
    /// Bytes of the whole payload, once the last fragment has come.
    total: Option<usize>,
    bytes: usize,
}

/// The incomplete datagrams of all members.
#[derive(Debug, Default)]
pub(crate) struct Fragments {
    ports: RefCell<HashMap<u32, VecDeque<Partial>>>,
}

impl Fragments {
    /// Forgets what a member has sent.
    pub(crate) fn forget(&self, port: u32) {
        self.ports.borrow_mut().remove(&port);
    }

    /// Adds a fragment. Returns the packet if it is now complete.
    pub(crate) fn add(&self, port: u32, packet: &Ipv4<'_>, now: Instant) -> Option<Vec<u8>> {
        let mut ports = self.ports.borrow_mut();
        let queue = ports.entry(port).or_default();
        queue.retain(|partial| now.duration_since(partial.since) < PATIENCE);
        let whole = add(queue, packet, now);
        if queue.is_empty() {
            ports.remove(&port);
        }
        whole
    }
}

fn add(queue: &mut VecDeque<Partial>, packet: &Ipv4<'_>, now: Instant) -> Option<Vec<u8>> {
    let more = be16(packet.packet, 6)? & MORE_FRAGMENTS != 0;
    let (offset, len) = (packet.offset, packet.payload.len());
    let header = packet.packet.get(..packet.packet.len() - len)?;
    // Only the last fragment may have an odd length.
    let is_odd = more && !len.is_multiple_of(8);
    if len == 0 || is_odd || IPV4 + offset + len > MAX_PACKET {
        return None;
    }
    let key = Key {
        source: packet.source,
        to: packet.to,
        protocol: packet.protocol,
        id: be16(packet.packet, 4)?,
    };
    let index = match queue.iter().position(|partial| partial.key == key) {
        Some(index) => index,
        None => {
            if queue.len() == MAX_DATAGRAMS {
                queue.pop_front();
            }
            queue.push_back(Partial::new(key, now));
            queue.len() - 1
        }
    };
    let partial = queue.get_mut(index)?;
    match partial.insert(offset, packet.payload, header, more) {
        Some(true) => return queue.remove(index)?.finish(),
        Some(false) => {}
        // Overlaps have no honest use, and what they mean differs from system to system (RFC 5722).
        None => drop(queue.remove(index)),
    }
    while queue.iter().map(|partial| partial.bytes).sum::<usize>() > MAX_BYTES {
        queue.pop_front();
    }
    None
}

impl Partial {
    fn new(key: Key, since: Instant) -> Self {
        Self {
            key,
            since,
            parts: Vec::new(),
            header: None,
            total: None,
            bytes: 0,
        }
    }

    /// Inserts a fragment. Returns whether the datagram is complete, or `None` if the fragment does
    /// not fit to the others.
    fn insert(&mut self, offset: usize, payload: &[u8], header: &[u8], more: bool) -> Option<bool> {
        let end = offset + payload.len();
        let at = self.parts.partition_point(|(start, _)| *start < offset);
        if let Some((start, bytes)) = self.parts.get(at)
            && *start == offset
            && bytes == payload
        {
            // Sent twice.
            return Some(false);
        }
        let before = at.checked_sub(1).and_then(|at| self.parts.get(at));
        let overlaps = before.is_some_and(|(start, bytes)| start + bytes.len() > offset)
            || self.parts.get(at).is_some_and(|(start, _)| *start < end)
            || self
                .total
                .is_some_and(|total| end > total || !more && end != total)
            || !more
                && self
                    .parts
                    .last()
                    .is_some_and(|(start, bytes)| start + bytes.len() > end);
        if overlaps || self.parts.len() == MAX_FRAGMENTS {
            return None;
        }
        if offset == 0 {
            self.header = Some(header.to_vec());
        }
        if !more {
            self.total = Some(end);
        }
        self.bytes += payload.len();
        self.parts.insert(at, (offset, payload.to_vec()));
        // Without overlaps, as many bytes as there are to be are all of them.
        Some(self.total == Some(self.bytes))
    }

    /// The packet, with the first fragment's header.
    fn finish(self) -> Option<Vec<u8>> {
        let mut packet = self.header?;
        packet.reserve(self.bytes);
        for (_, part) in &self.parts {
            packet.extend_from_slice(part);
        }
        let total = u16::try_from(packet.len()).ok()?;
        put(&mut packet, 2, &total.to_be_bytes());
        let flags = be16(&packet, 6)? & !(MORE_FRAGMENTS | FRAGMENT_OFFSET);
        put(&mut packet, 6, &flags.to_be_bytes());
        Some(packet)
    }
}

#[cfg(test)]
#[path = "fragments_test.rs"]
mod tests;
