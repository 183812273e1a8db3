//! Frames on links with faults: which are lost, and when the others arrive.
//!
//! A frame passes up to three lines: one for everything its sender sends, one for the link between the two, and one for
//! everything its receiver receives. Each line knows when it is free again. So a frame costs one entry in a heap, and
//! needs no task or timer. The caller passes the time, so tests need not wait.

use std::collections::hash_map::Entry;
use std::collections::{BinaryHeap, HashMap};
use std::hash::Hash;
use std::rc::Rc;
use std::time::{Duration, Instant};

use super::dice::Dice;
use super::line::Line;

/// The gateway's identifier; those of members begin above.
pub(crate) const GATEWAY: u32 = 0;
/// Maximum bytes under way from one end to another.
const MAX_OF_PATH: usize = 16 << 20;
/// Maximum bytes under way from one member.
const MAX_OF_MEMBER: usize = 32 << 20;
/// Maximum bytes under way from all members together, and from the gateway; divided by their number.
const MEMBERS: usize = 128 << 20;
const GATEWAYS: usize = 64 << 20;
/// Maximum bytes under way in total.
const MAX_HELD: usize = MEMBERS + GATEWAYS;
/// The cost of a frame under way, in addition to its bytes.
const OVERHEAD: usize = 128;
/// Timers have a resolution of a millisecond. Frames may leave early by up to this much, instead of all being late. The
/// lines' clocks still keep the rates right.
const SLACK: Duration = Duration::from_micros(500);

/// The path of frames from one end to another.
#[derive(Debug)]
pub(crate) struct Path {
    pub(crate) from: u32,
    pub(crate) to: u32,
    /// Frames come from the gateway, or from behind the uplink.
    pub(crate) of_gateway: bool,
    /// A partition separates the ends.
    pub(crate) cut: bool,
    /// The probability that a frame is lost.
    pub(crate) loss: f64,
    pub(crate) dice: Rc<Dice>,
    pub(crate) lines: Vec<Rc<Line>>,
}

impl Path {
    /// The account for its frames under way. Frames for a member from the gateway and from behind the uplink share one
    /// account.
    fn account(&self) -> (u32, u32) {
        let from = if self.of_gateway { GATEWAY } else { self.from };
        (from, self.to)
    }

    /// When all lines will have room; `None` if they have room now.
    pub(crate) fn room_at(&self, now: Instant) -> Option<Instant> {
        self.lines.iter().filter_map(|line| line.room_at(now)).max()
    }
}

/// The fate of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It arrives at once.
    Now,
    /// It is under way.
    Later,
    /// It is lost: a partition is between its ends.
    Cut,
    /// It is lost by chance.
    Lost,
    /// It is lost: too much is under way.
    Overflow,
}

/// A frame that has arrived.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Arrival {
    pub(crate) from: u32,
    pub(crate) to: u32,
    pub(crate) frame: Box<[u8]>,
}

/// Subtracts `cost` from the count of `key`, and removes the count when it reaches zero.
fn take_off<K: Eq + Hash>(counts: &mut HashMap<K, usize>, key: K, cost: usize) {
    if let Entry::Occupied(mut count) = counts.entry(key) {
        let left = count.get().saturating_sub(cost);
        if left == 0 {
            count.remove();
        } else {
            count.insert(left);
        }
    }
}

#[derive(Debug)]
struct HeldFrame {
    due: Instant,
    /// The order in which frames were sent, for frames that are due together.
    order: u64,
    /// How many lines of the path it has passed.
    passed: usize,
    path: Rc<Path>,
    frame: Box<[u8]>,
}

impl HeldFrame {
    fn cost(&self) -> usize {
        self.frame.len() + OVERHEAD
    }
}

impl PartialEq for HeldFrame {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for HeldFrame {}

impl PartialOrd for HeldFrame {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for HeldFrame {
    /// A heap has its greatest entry on top, so the frame that is due first is the greatest.
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (other.due, other.order).cmp(&(self.due, self.order))
    }
}

/// Frames under way.
#[derive(Debug, Default)]
pub(crate) struct Transit {
    held: BinaryHeap<HeldFrame>,
    order: u64,
    bytes: usize,
    /// How many members are attached.
    pub(crate) members: usize,
    of_sender: HashMap<u32, usize>,
    /// Keyed by [`Path::account`].
    of_path: HashMap<(u32, u32), usize>,
    /// Frames lost because a queue was full.
    pub(crate) overflowed: u64,
}

impl Transit {
    /// Sends a frame on its way.
    pub(crate) fn send(&mut self, path: &Rc<Path>, frame: &[u8], now: Instant) -> Fate {
        if path.cut {
            return Fate::Cut;
        }
        // A number for every frame, lost or not, so that the n-th has the n-th number.
        if path.dice.roll() < path.loss {
            return Fate::Lost;
        }
        if path.lines.is_empty() {
            return Fate::Now;
        }
        let cost = frame.len() + OVERHEAD;
        if cost > self.allowance(path) {
            self.overflowed += 1;
            return Fate::Overflow;
        }
        *self.of_sender.entry(path.from).or_insert(0) += cost;
        *self.of_path.entry(path.account()).or_insert(0) += cost;
        self.bytes += cost;
        self.order += 1;
        let held = HeldFrame {
            due: now,
            order: self.order,
            passed: 0,
            path: path.clone(),
            frame: frame.into(),
        };
        match self.advance(held) {
            Ok(()) => Fate::Later,
            Err(_) => Fate::Overflow,
        }
    }

    /// Bytes that may still be sent on a path.
    ///
    /// A slow path must not cause losses on another. All paths of the gateway have the same sender, so each path has a
    /// separate share. A member has one share for all its paths, and one path may use only as much as it leaves free. The
    /// shares add up to at most [`MAX_HELD`], unless members have joined since.
    fn allowance(&self, path: &Path) -> usize {
        let members = self.members.max(1);
        let most = if path.of_gateway {
            self.of_gateway()
        } else {
            let of_sender = self.of_sender.get(&path.from).copied().unwrap_or(0);
            let share = MAX_OF_MEMBER.min(MEMBERS / members);
            share.saturating_sub(of_sender)
        };
        let most = MAX_OF_PATH.min(most).saturating_sub(self.under_way(path));
        most.min(MAX_HELD.saturating_sub(self.bytes))
    }

    /// Maximum bytes under way from the gateway to one member.
    fn of_gateway(&self) -> usize {
        MAX_OF_PATH.min(GATEWAYS / self.members.max(1))
    }

    /// Bytes under way on a path.
    fn under_way(&self, path: &Path) -> usize {
        self.of_path.get(&path.account()).copied().unwrap_or(0)
    }

    /// When there may be room again for bulk data of the gateway; `None` if half of its share is free now.
    pub(crate) fn room_at(&self, path: &Path) -> Option<Instant> {
        if self.under_way(path) <= self.of_gateway() / 2 {
            return None;
        }
        self.next()
    }

    /// Moves a frame into its next line, or returns it if it has passed all of them.
    fn advance(&mut self, mut held: HeldFrame) -> Result<(), Option<HeldFrame>> {
        let Some(line) = held.path.lines.get(held.passed).cloned() else {
            self.release(&held);
            return Err(Some(held));
        };
        // From the moment it was due, not the present one: lines must not depend on how late timers
        // are.
        match line.pass(held.frame.len(), held.due) {
            Some(due) => {
                held.due = due;
                held.passed += 1;
                self.held.push(held);
                Ok(())
            }
            None => {
                self.overflowed += 1;
                self.release(&held);
                Err(None)
            }
        }
    }

    fn release(&mut self, held: &HeldFrame) {
        let cost = held.cost();
        self.bytes = self.bytes.saturating_sub(cost);
        take_off(&mut self.of_sender, held.path.from, cost);
        take_off(&mut self.of_path, held.path.account(), cost);
    }

    /// The next frame that has arrived by `now`.
    pub(crate) fn arrived(&mut self, now: Instant) -> Option<Arrival> {
        loop {
            if self.held.peek()?.due > now + SLACK {
                return None;
            }
            if let Err(Some(held)) = self.held.pop().map_or(Ok(()), |held| self.advance(held)) {
                return Some(Arrival {
                    from: held.path.from,
                    to: held.path.to,
                    frame: held.frame,
                });
            }
        }
    }

    /// When the next frame may arrive.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.held.peek().map(|held| held.due)
    }

    /// Drops the frames under way from and to a member.
    pub(crate) fn forget(&mut self, id: u32) {
        let all = std::mem::take(&mut self.held);
        for held in all {
            if held.path.from == id || held.path.to == id {
                self.release(&held);
            } else {
                self.held.push(held);
            }
        }
    }

    /// Bytes under way.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes - self.held.len() * OVERHEAD
    }
}

#[cfg(test)]
#[path = "transit_test.rs"]
mod tests;
