//! Frames on impaired links: which are lost, and when the others arrive.
//!
//! A frame passes up to three lines: that of all its sender sends, that of the link between the two,
//! and that of all its receiver receives. Each line knows when it is free again, so a frame costs one
//! entry in a heap, and no task or timer of its own. The caller gives the time, so tests need not wait.

use std::collections::hash_map::Entry;
use std::collections::{BinaryHeap, HashMap};
use std::hash::Hash;
use std::rc::Rc;
use std::time::{Duration, Instant};

use super::dice::Dice;
use super::line::Line;

/// The gateway's identifier; those of members begin above.
pub(crate) const GATEWAY: u32 = 0;
/// Bytes that may be under way from one end to another.
const MAX_OF_PATH: usize = 16 << 20;
/// Bytes that may be under way from one member.
const MAX_OF_MEMBER: usize = 32 << 20;
/// Bytes that may be under way from all members, and from the gateway; divided by their number.
const MEMBERS: usize = 128 << 20;
const GATEWAYS: usize = 64 << 20;
/// Bytes that may be under way in all.
const MAX_HELD: usize = MEMBERS + GATEWAYS;
/// What a frame under way costs beside its bytes.
const OVERHEAD: usize = 128;
/// Timers are no finer than a millisecond. Frames go up to this much early rather than all of
/// them late; the pipes' clocks see to it that rates hold all the same.
const SLACK: Duration = Duration::from_micros(500);

/// What frames from one end to another meet.
#[derive(Debug)]
pub(crate) struct Path {
    pub(crate) from: u32,
    pub(crate) to: u32,
    /// What is sent comes from the gateway, or from what is behind the uplink.
    pub(crate) of_gateway: bool,
    /// A partition separates the ends.
    pub(crate) cut: bool,
    /// The probability that a frame is lost.
    pub(crate) loss: f64,
    pub(crate) dice: Rc<Dice>,
    pub(crate) lines: Vec<Rc<Line>>,
}

impl Path {
    /// What its frames under way are counted by. All that comes for a member from the gateway, and
    /// from behind the uplink, is counted together.
    fn account(&self) -> (u32, u32) {
        let from = if self.of_gateway { GATEWAY } else { self.from };
        (from, self.to)
    }

    /// When all lines have room; `None` if they have.
    pub(crate) fn room_at(&self, now: Instant) -> Option<Instant> {
        self.lines.iter().filter_map(|line| line.room_at(now)).max()
    }
}

/// What becomes of a frame.
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

/// Takes `cost` off the count of `key`, and removes the count when nothing is left of it.
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
    /// Tells which of the frames that are due together was sent first.
    order: u64,
    /// How many lines of the path are behind it.
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
    /// The heap has its greatest on top: the one that is due first.
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
    /// How many are attached.
    pub(crate) members: usize,
    of_sender: HashMap<u32, usize>,
    /// By [`Path::account`].
    of_path: HashMap<(u32, u32), usize>,
    /// Frames that found a queue full on their way.
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
    /// A slow path must not cost another its frames. All paths of the gateway share one sender, so
    /// each has a share of its own. A member has one share for all its paths, and one path may use as
    /// much of it as it leaves to the others. The shares add up to [`MAX_HELD`] at most, unless
    /// members have joined since.
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

    /// Bytes that may be under way from the gateway to one member.
    fn of_gateway(&self) -> usize {
        MAX_OF_PATH.min(GATEWAYS / self.members.max(1))
    }

    /// Bytes under way on a path.
    fn under_way(&self, path: &Path) -> usize {
        self.of_path.get(&path.account()).copied().unwrap_or(0)
    }

    /// When there may be room again for bulk data of the gateway; `None` if half of its share is free.
    pub(crate) fn room_at(&self, path: &Path) -> Option<Instant> {
        if self.under_way(path) <= self.of_gateway() / 2 {
            return None;
        }
        self.next()
    }

    /// Moves a frame into its next line; gives back one that has passed all of them.
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

    /// Drops what is under way from and to a member.
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
