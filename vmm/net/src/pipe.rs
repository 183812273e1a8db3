//! The queue of frames on impaired links: what is lost, and when the rest arrives.
//!
//! A frame's way from one end to another leads through up to three pipes: all that its sender
//! sends, the link of the two, all that its receiver receives. Each pipe is a clock that says when
//! the line is free again, so a frame costs one entry in a heap and no task or timer of its own.
//! Time is given by the caller, which makes the module testable without waiting.

use std::cell::Cell;
use std::collections::hash_map::Entry;
use std::collections::{BinaryHeap, HashMap};
use std::hash::Hash;
use std::rc::Rc;
use std::time::{Duration, Instant};

use super::links::LinkConditions;

/// The end of a way that is the gateway; members' identifiers begin above.
pub(super) const GATEWAY: u32 = 0;
/// Bytes that may be under way from one end to another.
const MAX_OF_WAY: usize = 16 << 20;
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

/// One direction of an impaired line.
#[derive(Debug)]
pub(super) struct Pipe {
    latency: Duration,
    /// In bits per second.
    bandwidth: Option<u64>,
    /// Bytes that may wait for the line.
    queue: u64,
    /// When the line has sent all that it was given.
    free: Cell<Option<Instant>>,
}

impl Pipe {
    /// `None` where frames pass unhindered.
    pub(super) fn new(conditions: &LinkConditions) -> Option<Rc<Self>> {
        let hinders = conditions.bandwidth.is_some() || !conditions.latency.is_zero();
        hinders.then(|| {
            Rc::new(Self {
                latency: conditions.latency,
                bandwidth: conditions.bandwidth.filter(|bits| *bits > 0),
                queue: conditions.queue as u64,
                free: Cell::new(None),
            })
        })
    }

    /// Bytes that wait for the line at `now`.
    fn backlog(&self, now: Instant) -> u64 {
        let (Some(bits), Some(free)) = (self.bandwidth, self.free.get()) else {
            return 0;
        };
        let nanos = free.saturating_duration_since(now).as_nanos();
        u64::try_from(nanos * u128::from(bits) / 8_000_000_000).unwrap_or(u64::MAX)
    }

    /// When a frame of `len` bytes that comes at `now` has passed; `None` if it finds the queue
    /// full.
    fn pass(&self, len: usize, now: Instant) -> Option<Instant> {
        let Some(bits) = self.bandwidth else {
            return Some(now + self.latency);
        };
        let waiting = self.backlog(now);
        if waiting > 0 && waiting.saturating_add(len as u64) > self.queue {
            return None;
        }
        let start = self.free.get().map_or(now, |free| free.max(now));
        let end = start + send_time(len as u64, bits);
        self.free.set(Some(end));
        Some(end + self.latency)
    }

    /// When half of the queue is free; `None` if it is.
    fn room_at(&self, now: Instant) -> Option<Instant> {
        let bits = self.bandwidth?;
        let half = self.queue / 2;
        if self.backlog(now) <= half {
            return None;
        }
        let free = self.free.get()?;
        Some(free.checked_sub(send_time(half, bits)).unwrap_or(free))
    }
}

/// How long a line of `bits` per second takes for `bytes`.
fn send_time(bytes: u64, bits: u64) -> Duration {
    let nanos = u128::from(bytes) * 8_000_000_000 / u128::from(bits.max(1));
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX / 4))
}

/// The chances of one direction of a link: the n-th number is the same in each run with the same
/// seed and the same names.
#[derive(Debug)]
pub(super) struct Dice {
    key: u64,
    next: Cell<u64>,
}

impl Dice {
    pub(super) fn new(seed: u64, from: &str, to: &str) -> Self {
        // FNV-1a: unlike the standard library's hashes the same in every version. No name holds
        // a zero byte.
        let bytes = from.bytes().chain([0]).chain(to.bytes());
        let hash = bytes.fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
        });
        Self {
            key: mix(seed ^ mix(hash)),
            next: Cell::new(0),
        }
    }

    /// The next number, at least 0 and below 1.
    pub(super) fn roll(&self) -> f64 {
        let index = self.next.get();
        self.next.set(index.wrapping_add(1));
        let bits = mix(self.key.wrapping_add(index.wrapping_mul(STEP)));
        // The 53 bits of a double's fraction.
        (bits >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// The increment of SplitMix64.
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// The output function of SplitMix64 (Steele, Lea and Flood, 2014).
fn mix(seed: u64) -> u64 {
    let mut bits = seed.wrapping_add(STEP);
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

/// The way of frames from one end to another.
#[derive(Debug)]
pub(super) struct Path {
    pub(super) from: u32,
    pub(super) to: u32,
    /// What is sent comes from the gateway, or from what is behind the uplink.
    pub(super) of_gateway: bool,
    /// A partition separates the ends.
    pub(super) cut: bool,
    /// The probability that a frame is lost.
    pub(super) loss: f64,
    pub(super) dice: Rc<Dice>,
    pub(super) pipes: Vec<Rc<Pipe>>,
}

impl Path {
    /// What its part of what may be under way is counted by: all that comes for a member from the
    /// gateway, and from behind the uplink, has one.
    fn way(&self) -> (u32, u32) {
        let from = if self.of_gateway { GATEWAY } else { self.from };
        (from, self.to)
    }

    /// When all pipes have room; `None` if they have.
    pub(super) fn room_at(&self, now: Instant) -> Option<Instant> {
        self.pipes.iter().filter_map(|pipe| pipe.room_at(now)).max()
    }
}

/// What becomes of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// It is to be handed over at once.
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
pub(super) struct Arrival {
    pub(super) from: u32,
    pub(super) to: u32,
    pub(super) frame: Box<[u8]>,
}

/// Takes `cost` off what is counted for `key`, and the count away once nothing is left of it.
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
struct Held {
    due: Instant,
    /// Tells which was sent first among frames that are due together.
    order: u64,
    /// How many pipes of the path are behind it.
    passed: usize,
    path: Rc<Path>,
    frame: Box<[u8]>,
}

impl Held {
    fn cost(&self) -> usize {
        self.frame.len() + OVERHEAD
    }
}

impl PartialEq for Held {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Held {}

impl PartialOrd for Held {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Held {
    /// The heap has its greatest on top: the one that is due first.
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (other.due, other.order).cmp(&(self.due, self.order))
    }
}

/// Frames under way.
#[derive(Debug, Default)]
pub(super) struct Transit {
    held: BinaryHeap<Held>,
    order: u64,
    bytes: usize,
    /// How many are attached.
    pub(super) members: usize,
    of_sender: HashMap<u32, usize>,
    /// By [`Path::way`].
    of_way: HashMap<(u32, u32), usize>,
    /// Frames that found a queue full on their way.
    pub(super) overflowed: u64,
}

impl Transit {
    /// Sends a frame on its way.
    pub(super) fn send(&mut self, path: &Rc<Path>, frame: &[u8], now: Instant) -> Fate {
        if path.cut {
            return Fate::Cut;
        }
        // A number for every frame, lost or not, so that the n-th has the n-th number.
        if path.dice.roll() < path.loss {
            return Fate::Lost;
        }
        if path.pipes.is_empty() {
            return Fate::Now;
        }
        let cost = frame.len() + OVERHEAD;
        if cost > self.allowance(path) {
            self.overflowed += 1;
            return Fate::Overflow;
        }
        *self.of_sender.entry(path.from).or_insert(0) += cost;
        *self.of_way.entry(path.way()).or_insert(0) += cost;
        self.bytes += cost;
        self.order += 1;
        let held = Held {
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

    /// Bytes that may yet be sent on a way.
    ///
    /// A slow way is to cost no other its frames. All of the gateway's share one sender, so each
    /// has a part of its own. A member has a part for all of its ways, of which one may have as
    /// much as it leaves to the others. The parts add up to no more than [`MAX_HELD`], unless
    /// members have come since.
    fn allowance(&self, path: &Path) -> usize {
        let members = self.members.max(1);
        let most = if path.of_gateway {
            self.of_gateway()
        } else {
            let of_sender = self.of_sender.get(&path.from).copied().unwrap_or(0);
            let part = MAX_OF_MEMBER.min(MEMBERS / members);
            part.saturating_sub(of_sender)
        };
        let most = MAX_OF_WAY.min(most).saturating_sub(self.under_way(path));
        most.min(MAX_HELD.saturating_sub(self.bytes))
    }

    /// Bytes that may be under way from the gateway to one member.
    fn of_gateway(&self) -> usize {
        MAX_OF_WAY.min(GATEWAYS / self.members.max(1))
    }

    /// Bytes that are under way on a way.
    fn under_way(&self, path: &Path) -> usize {
        self.of_way.get(&path.way()).copied().unwrap_or(0)
    }

    /// When there may be room again for bulk data of the gateway, of whose part less than half is
    /// left; `None` if there is room.
    pub(super) fn room_at(&self, path: &Path) -> Option<Instant> {
        if self.under_way(path) <= self.of_gateway() / 2 {
            return None;
        }
        self.next()
    }

    /// Moves a frame into its next pipe; gives back one that has passed all of them.
    fn advance(&mut self, mut held: Held) -> Result<(), Option<Held>> {
        let Some(pipe) = held.path.pipes.get(held.passed).cloned() else {
            self.release(&held);
            return Err(Some(held));
        };
        // The moment it was due, not the one when somebody looked: what a pipe says must not
        // depend on how late timers are.
        match pipe.pass(held.frame.len(), held.due) {
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

    fn release(&mut self, held: &Held) {
        let cost = held.cost();
        self.bytes = self.bytes.saturating_sub(cost);
        take_off(&mut self.of_sender, held.path.from, cost);
        take_off(&mut self.of_way, held.path.way(), cost);
    }

    /// The next frame that has arrived by `now`.
    pub(super) fn arrived(&mut self, now: Instant) -> Option<Arrival> {
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
    pub(super) fn next(&self) -> Option<Instant> {
        self.held.peek().map(|held| held.due)
    }

    /// Drops what is under way from and to a member.
    pub(super) fn forget(&mut self, id: u32) {
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
    pub(super) fn bytes(&self) -> usize {
        self.bytes - self.held.len() * OVERHEAD
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn path(from: u32, to: u32, loss: f64, conditions: &[LinkConditions]) -> Rc<Path> {
        Rc::new(Path {
            from,
            to,
            of_gateway: from == GATEWAY,
            cut: false,
            loss,
            dice: Rc::new(Dice::new(7, &from.to_string(), &to.to_string())),
            pipes: conditions.iter().filter_map(Pipe::new).collect(),
        })
    }

    fn delay(millis: u64) -> LinkConditions {
        LinkConditions {
            latency: Duration::from_millis(millis),
            ..LinkConditions::default()
        }
    }

    fn rate(bits: u64, queue: usize) -> LinkConditions {
        LinkConditions {
            bandwidth: Some(bits),
            queue,
            ..LinkConditions::default()
        }
    }

    /// All that arrives, and after how many microseconds, looking once per `step`.
    fn run(transit: &mut Transit, start: Instant, step: Duration) -> Vec<(u64, Arrival)> {
        let mut seen = Vec::new();
        let mut now = start;
        while transit.next().is_some() {
            while let Some(arrival) = transit.arrived(now) {
                seen.push(((now - start).as_micros() as u64, arrival));
            }
            now += step;
        }
        seen
    }

    #[test]
    fn latencies_of_a_way_add_up() {
        let start = Instant::now();
        let mut transit = Transit::default();
        let way = path(1, 2, 0.0, &[delay(10), delay(20), delay(5)]);
        assert_eq!(transit.send(&way, b"frame", start), Fate::Later);
        assert_eq!(transit.bytes(), 5);
        assert!(transit.arrived(start + Duration::from_millis(34)).is_none());
        let arrival = transit.arrived(start + Duration::from_millis(35)).unwrap();
        assert_eq!((arrival.from, arrival.to), (1, 2));
        assert_eq!(*arrival.frame, *b"frame");
        assert_eq!((transit.bytes(), transit.bytes), (0, 0));
        assert!(transit.of_sender.is_empty() && transit.of_way.is_empty());
    }

    #[test]
    fn a_line_sends_no_more_than_its_rate() {
        let start = Instant::now();
        let mut transit = Transit::default();
        // A frame of 1000 bytes takes 8 ms.
        let way = path(1, 2, 0.0, &[rate(1_000_000, 1 << 20)]);
        for _ in 0..100 {
            assert_eq!(transit.send(&way, &[0; 1000], start), Fate::Later);
        }
        let seen = run(&mut transit, start, Duration::from_millis(1));
        for (index, (micros, _)) in seen.iter().enumerate() {
            assert_eq!(*micros, (index as u64 + 1) * 8000);
        }
        assert_eq!(seen.len(), 100);
    }

    #[test]
    fn a_full_queue_loses_what_comes() {
        let start = Instant::now();
        let mut transit = Transit::default();
        let way = path(1, 2, 0.0, &[rate(1_000_000, 3000)]);
        let fates: Vec<_> = (0..5)
            .map(|_| transit.send(&way, &[0; 1000], start))
            .collect();
        use Fate::{Later, Overflow};
        assert_eq!(fates, [Later, Later, Later, Overflow, Overflow]);
        assert_eq!(transit.overflowed, 2);
        assert!(way.room_at(start).is_some());
        let room = way.room_at(start).unwrap();
        assert_eq!(room - start, Duration::from_millis(12));
        assert_eq!(way.room_at(room), None);
        // However small the queue, an idle line takes a frame.
        let narrow = path(1, 2, 0.0, &[rate(1_000_000, 0)]);
        assert_eq!(transit.send(&narrow, &[0; 1500], start), Later);
        assert_eq!(transit.send(&narrow, &[0; 1500], start), Overflow);
    }

    #[test]
    fn frames_of_two_senders_share_the_line_of_their_receiver() {
        let start = Instant::now();
        let mut transit = Transit::default();
        let line = Pipe::new(&rate(8_000_000, 1 << 20)).unwrap();
        let shared = |from: u32, first: LinkConditions| {
            let mut pipes: Vec<_> = Pipe::new(&first).into_iter().collect();
            pipes.push(line.clone());
            Rc::new(Path {
                from,
                to: 9,
                of_gateway: false,
                cut: false,
                loss: 0.0,
                dice: Rc::new(Dice::new(0, "", "")),
                pipes,
            })
        };
        let (far, near) = (shared(1, delay(50)), shared(2, LinkConditions::default()));
        // The far one sends first, yet its frame does not hold up the line while it travels.
        transit.send(&far, &[1; 1000], start);
        transit.send(&near, &[2; 1000], start);
        let seen = run(&mut transit, start, Duration::from_millis(1));
        let order: Vec<_> = seen.iter().map(|(at, seen)| (*at, seen.from)).collect();
        assert_eq!(order, [(1000, 2), (51_000, 1)]);
    }

    /// Sends frames of 1500 bytes until one is lost, and says how many went.
    fn fill(transit: &mut Transit, way: &Rc<Path>, now: Instant) -> usize {
        std::iter::repeat_with(|| transit.send(way, &[0; 1500], now))
            .take(100_000)
            .take_while(|fate| *fate == Fate::Later)
            .count()
    }

    /// A way that takes seconds.
    fn far(from: u32, to: u32) -> Rc<Path> {
        path(from, to, 0.0, &[delay(5000)])
    }

    #[test]
    fn what_one_way_has_under_way_is_bounded() {
        let start = Instant::now();
        let mut transit = Transit::default();
        let sent = fill(&mut transit, &far(1, 2), start);
        assert!((9000..12_000).contains(&sent), "{sent}");
        assert!(transit.bytes <= MAX_OF_WAY);
        // Others are not affected.
        let other = far(3, 2);
        assert_eq!(transit.send(&other, &[0; 1500], start), Fate::Later);
        transit.forget(1);
        assert_eq!(transit.bytes(), 1500);
        assert_eq!(run(&mut transit, start, Duration::from_millis(50)).len(), 1);
        assert!(transit.of_sender.is_empty() && transit.of_way.is_empty());
    }

    #[test]
    fn a_member_that_is_far_away_leaves_the_gateway_room_for_the_others() {
        let start = Instant::now();
        let mut transit = Transit {
            members: 11,
            ..Transit::default()
        };
        let sent = fill(&mut transit, &far(GATEWAY, 1), start);
        assert!((3000..5000).contains(&sent), "{sent}");
        // Megabytes are under way to each of the others, and arrive, as if the first were not.
        for member in 2..=11 {
            let near = path(GATEWAY, member, 0.0, &[delay(1)]);
            assert_eq!(fill(&mut transit, &near, start), sent);
        }
        let soon = start + Duration::from_millis(1);
        let arrived = std::iter::from_fn(|| transit.arrived(soon));
        assert_eq!(arrived.filter(|arrival| arrival.to > 1).count(), 10 * sent);
        assert_eq!(transit.held.len(), sent);
        // What was lost is nobody's.
        assert_eq!(transit.of_way.len(), 1);
    }

    #[test]
    fn bulk_data_of_the_gateway_waits_before_its_part_is_full() {
        let start = Instant::now();
        let mut transit = Transit {
            members: 64,
            ..Transit::default()
        };
        let way = far(GATEWAY, 1);
        // What the uplink sends to the same member has the same part.
        let uplink = Rc::new(Path {
            from: 65,
            of_gateway: true,
            dice: Rc::new(Dice::new(7, "65", "1")),
            pipes: way.pipes.clone(),
            ..*way
        });
        assert_eq!(transit.room_at(&way), None);
        let mut sent = 0;
        while transit.room_at(&way).is_none() {
            let path = if sent % 2 == 0 { &way } else { &uplink };
            assert_eq!(transit.send(path, &[0; 1500], start), Fate::Later);
            sent += 1;
        }
        assert!((200..400).contains(&sent), "{sent}");
        let again = transit.room_at(&way).unwrap();
        assert!(transit.arrived(again).is_some());
        let rest = fill(&mut transit, &way, start);
        assert!((200..400).contains(&rest), "{rest}");
    }

    #[test]
    fn no_number_of_slow_ways_keeps_out_another() {
        let start = Instant::now();
        let mut transit = Transit {
            members: 16,
            ..Transit::default()
        };
        let fair = (MEMBERS / 16).min(MAX_OF_MEMBER);
        for from in 1..=16 {
            // All that a member can send to all others, but for one way.
            for to in (0..=16).filter(|to| *to != from && *to != 16) {
                fill(&mut transit, &far(from, to), start);
            }
            let before = transit.of_sender[&from];
            assert!(before <= fair, "{before}");
        }
        assert!(transit.bytes <= MEMBERS);
        // The gateway has its part for each of them.
        for member in 1..=16 {
            let sent = fill(&mut transit, &far(GATEWAY, member), start);
            assert!(sent * 1628 >= GATEWAYS / 16 - 1628, "{sent} to {member}");
        }
        assert!(transit.bytes <= MAX_HELD);
        assert_eq!(transit.bytes, transit.of_sender.values().sum::<usize>());
        assert_eq!(transit.bytes, transit.of_way.values().sum::<usize>());
        for id in 0..=16 {
            transit.forget(id);
        }
        assert!(transit.of_sender.is_empty() && transit.of_way.is_empty());
        assert_eq!(transit.bytes, 0);
    }

    #[test]
    fn one_slow_way_of_a_member_leaves_room_for_its_others() {
        let start = Instant::now();
        let mut transit = Transit {
            members: 3,
            ..Transit::default()
        };
        let sent = fill(&mut transit, &far(1, 2), start);
        assert!(sent >= 9000, "{sent}");
        assert!(fill(&mut transit, &far(1, 3), start) >= sent / 2 - 1);
        transit.members = 64;
        assert_eq!(fill(&mut transit, &far(1, GATEWAY), start), 0);
        let (first, second) = (far(2, 1), far(2, 3));
        let sent = fill(&mut transit, &first, start);
        assert!((500..700).contains(&sent), "{sent}");
        assert!(fill(&mut transit, &second, start) >= sent / 2 - 1);
    }

    #[test]
    fn the_dice_are_the_same_everywhere() {
        let rolls = |seed, from, to| {
            let dice = Dice::new(seed, from, to);
            std::iter::repeat_with(move || (dice.roll() * 1000.0) as u32)
                .take(5)
                .collect::<Vec<_>>()
        };
        // Whoever changes these changes the outcome of somebody's tests.
        assert_eq!(rolls(1, "a", "b"), EXPECTED);
        assert_ne!(rolls(1, "b", "a"), EXPECTED);
        assert_ne!(rolls(2, "a", "b"), EXPECTED);
        assert_ne!(rolls(1, "ab", ""), rolls(1, "a", "b"));
    }
    const EXPECTED: [u32; 5] = [698, 959, 350, 911, 421];

    proptest! {
        #[test]
        fn losses_are_as_frequent_as_asked(seed: u64, percent in 0u32..=100) {
            let loss = f64::from(percent) / 100.0;
            let dice = Dice::new(seed, "node-1", "node-2");
            let lost = (0..10_000).filter(|_| dice.roll() < loss).count() as f64 / 10_000.0;
            // Five standard deviations of the worst case.
            prop_assert!((lost - loss).abs() <= 0.025, "{lost} of {loss}");
        }

        #[test]
        fn nothing_is_reordered_lost_or_early(
            frames in prop::collection::vec((0u64..3000, 1usize..1600), 1..80),
            latency in 0u64..100,
            bits in prop_oneof![Just(None), (10_000u64..10_000_000).prop_map(Some)],
            step in 100u64..20_000,
        ) {
            let start = Instant::now();
            let mut transit = Transit::default();
            let conditions = LinkConditions {
                latency: Duration::from_millis(latency.max(1)),
                bandwidth: bits,
                queue: usize::MAX,
                ..LinkConditions::default()
            };
            let way = path(1, 2, 0.0, &[conditions]);
            let mut at = start;
            let mut sent = Vec::new();
            let mut seen = Vec::new();
            let step = Duration::from_micros(step);
            for (index, (gap, len)) in frames.iter().enumerate() {
                at += Duration::from_micros(*gap);
                let mut frame = vec![0; *len];
                frame[0] = index as u8;
                prop_assert_eq!(transit.send(&way, &frame, at), Fate::Later);
                sent.push((at, frame));
            }
            let mut now = start;
            while transit.next().is_some() {
                while let Some(arrival) = transit.arrived(now) {
                    seen.push((now, arrival.frame));
                }
                now += step;
            }
            prop_assert_eq!(seen.len(), sent.len());
            let mut line = start;
            for ((sent, frame), (seen, arrived)) in sent.iter().zip(&seen) {
                prop_assert_eq!(&frame[..], &arrived[..]);
                line = line.max(*sent);
                if let Some(bits) = bits {
                    line += send_time(frame.len() as u64, bits);
                }
                let due = line + Duration::from_millis(latency.max(1));
                prop_assert!(*seen + SLACK >= due);
                prop_assert!(*seen <= due + step);
            }
            prop_assert_eq!(transit.bytes, 0);
        }
    }
}
