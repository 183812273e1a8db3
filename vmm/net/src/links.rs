//! Faults of links: partitions, latency, loss and bandwidth between members.
//!
//! What is set is kept by name, so it outlives a member that leaves and joins again. Which of it
//! applies between two ends is worked out once and kept until something changes; where nothing is
//! set a frame costs one flag.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeSet, HashMap};
use std::rc::Rc;
use std::task::Waker;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::error::NetworkError;
use super::pipe::{Arrival, Dice, Fate, GATEWAY, Path, Pipe, Transit};

/// The longest latency of a link.
const MAX_LATENCY: Duration = Duration::from_secs(60);

/// An end of a link.
///
/// ```
/// use fleetbox_net::LinkEnd;
///
/// assert_eq!(LinkEnd::from("db"), LinkEnd::Member("db".to_owned()));
/// assert_ne!(LinkEnd::from("gateway"), LinkEnd::Gateway); // a member may be called so
/// ```
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LinkEnd {
    /// A member, by its name.
    Member(String),
    /// The gateway, and through it the host and the world: also the connections that
    /// [`Network::connect`](super::Network::connect) and
    /// [`Network::forward`](super::Network::forward) make.
    Gateway,
}

impl LinkEnd {
    /// Names are compared as DNS compares them.
    pub(super) fn normal(self) -> Self {
        match self {
            Self::Member(name) => Self::Member(name.to_ascii_lowercase()),
            Self::Gateway => Self::Gateway,
        }
    }

    /// For the dice; no member's name is empty.
    fn text(&self) -> &str {
        match self {
            Self::Member(name) => name,
            Self::Gateway => "",
        }
    }
}

impl From<&str> for LinkEnd {
    fn from(name: &str) -> Self {
        Self::Member(name.to_owned())
    }
}

impl From<String> for LinkEnd {
    fn from(name: String) -> Self {
        Self::Member(name)
    }
}

/// What a link does to frames, in each direction by itself. The default is a link without faults.
///
/// ```
/// use std::time::Duration;
/// use fleetbox_net::LinkConditions;
///
/// let dsl = LinkConditions {
///     latency: Duration::from_millis(15),
///     loss: 0.001,
///     bandwidth: Some(16_000_000),
///     ..LinkConditions::default()
/// };
/// # assert!(!dsl.is_default());
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct LinkConditions {
    /// What each frame takes to arrive, 60 s at most; always the same, so frames stay in order.
    pub latency: Duration,
    /// The part of the frames that is lost, from 0 to 1.
    pub loss: f64,
    /// Bits per second, counted over whole Ethernet frames; `None` for no limit.
    pub bandwidth: Option<u64>,
    /// Bytes that may wait where `bandwidth` is limited. What comes when they do is lost, as in
    /// any router.
    pub queue: usize,
}

impl Default for LinkConditions {
    fn default() -> Self {
        Self {
            latency: Duration::ZERO,
            loss: 0.0,
            bandwidth: None,
            queue: 256 << 10,
        }
    }
}

impl LinkConditions {
    /// Whether frames pass unhindered.
    pub fn is_default(&self) -> bool {
        self.latency.is_zero() && self.loss == 0.0 && self.bandwidth.is_none()
    }

    pub(super) fn check(&self) -> Result<(), NetworkError> {
        let refuse = |what, value: String, why| Err(NetworkError::Condition { what, value, why });
        if self.latency > MAX_LATENCY {
            let value = format!("{:?}", self.latency);
            return refuse("latency", value, "at most 60 s are possible");
        }
        if !(0.0..=1.0).contains(&self.loss) {
            let why = "it is a part of all frames, from 0 to 1";
            return refuse("loss", self.loss.to_string(), why);
        }
        if self.bandwidth == Some(0) {
            let why = "it must be positive; use a partition to cut the link";
            return refuse("bandwidth", "0 bit/s".to_owned(), why);
        }
        Ok(())
    }
}

/// What faults of links did to frames since the network started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FaultCounts {
    /// Frames that a partition stopped.
    pub cut: u64,
    /// Frames lost by chance.
    pub lost: u64,
    /// Frames lost because too many waited for a line's bandwidth, or were under way.
    pub overflowed: u64,
    /// Bytes under way now.
    pub held: usize,
}

/// What is set for one link, or for all links of one end.
#[derive(Debug)]
struct Setting {
    conditions: LinkConditions,
    /// Of the lesser to the greater end, or out of the one end.
    there: Option<Rc<Pipe>>,
    back: Option<Rc<Pipe>>,
}

impl Setting {
    fn new(conditions: LinkConditions) -> Self {
        Self {
            there: Pipe::new(&conditions),
            back: Pipe::new(&conditions),
            conditions,
        }
    }
}

/// The way of frames from one end to another; `None` for one without faults.
type Way = Option<Rc<Path>>;

/// The faults of all links.
#[derive(Debug, Default)]
pub(super) struct Links {
    /// Whether anything is set.
    active: Cell<bool>,
    seed: Cell<u64>,
    partitions: RefCell<Vec<[BTreeSet<LinkEnd>; 2]>>,
    /// By both ends, the lesser first.
    pairs: RefCell<HashMap<(LinkEnd, LinkEnd), Setting>>,
    ends: RefCell<HashMap<LinkEnd, Setting>>,
    dice: RefCell<HashMap<(LinkEnd, LinkEnd), Rc<Dice>>>,
    /// What is attached: members by their names, an uplink as the gateway.
    names: RefCell<HashMap<u32, LinkEnd>>,
    /// Ways between attached members, by sender and receiver.
    paths: RefCell<HashMap<(u32, u32), Way>>,
    transit: RefCell<Transit>,
    cut: Cell<u64>,
    lost: Cell<u64>,
    /// The task that hands over what arrives.
    pump: RefCell<Option<Waker>>,
}

fn ordered(a: LinkEnd, b: LinkEnd) -> (LinkEnd, LinkEnd) {
    if a <= b { (a, b) } else { (b, a) }
}

impl Links {
    /// Notes what end of links a new port is.
    pub(super) fn join(&self, id: u32, end: LinkEnd) {
        let mut names = self.names.borrow_mut();
        names.insert(id, end.normal());
        self.transit.borrow_mut().members = names.len();
    }

    /// Forgets a member and what is under way from and to it.
    pub(super) fn leave(&self, id: u32) {
        let mut names = self.names.borrow_mut();
        names.remove(&id);
        self.paths
            .borrow_mut()
            .retain(|(from, to), _| *from != id && *to != id);
        let mut transit = self.transit.borrow_mut();
        transit.forget(id);
        transit.members = names.len();
    }

    /// Separates two sets of ends.
    pub(super) fn partition(&self, a: BTreeSet<LinkEnd>, b: BTreeSet<LinkEnd>) {
        self.partitions.borrow_mut().push([a, b]);
        self.changed();
    }

    /// Ends all partitions.
    pub(super) fn heal(&self) {
        self.partitions.borrow_mut().clear();
        self.changed();
    }

    /// Sets the conditions of one link and starts its chances anew.
    pub(super) fn set_pair(&self, a: LinkEnd, b: LinkEnd, conditions: LinkConditions) {
        let key = ordered(a, b);
        {
            let mut dice = self.dice.borrow_mut();
            dice.remove(&key);
            dice.remove(&(key.1.clone(), key.0.clone()));
        }
        let mut pairs = self.pairs.borrow_mut();
        if conditions.is_default() {
            pairs.remove(&key);
        } else {
            pairs.insert(key, Setting::new(conditions));
        }
        drop(pairs);
        self.changed();
    }

    /// Sets the conditions of all that one end sends and receives.
    pub(super) fn set_end(&self, end: LinkEnd, conditions: LinkConditions) {
        let mut dice = self.dice.borrow_mut();
        dice.retain(|(from, to), _| *from != end && *to != end);
        drop(dice);
        let mut ends = self.ends.borrow_mut();
        if conditions.is_default() {
            ends.remove(&end);
        } else {
            ends.insert(end, Setting::new(conditions));
        }
        drop(ends);
        self.changed();
    }

    pub(super) fn pair(&self, a: LinkEnd, b: LinkEnd) -> LinkConditions {
        let pairs = self.pairs.borrow();
        let setting = pairs.get(&ordered(a, b));
        setting.map_or_else(LinkConditions::default, |setting| setting.conditions)
    }

    pub(super) fn end(&self, end: &LinkEnd) -> LinkConditions {
        let ends = self.ends.borrow();
        let setting = ends.get(end);
        setting.map_or_else(LinkConditions::default, |setting| setting.conditions)
    }

    /// Removes all faults.
    pub(super) fn clear(&self) {
        self.partitions.borrow_mut().clear();
        self.pairs.borrow_mut().clear();
        self.ends.borrow_mut().clear();
        self.changed();
    }

    /// Starts all chances anew.
    pub(super) fn reseed(&self, seed: u64) {
        self.seed.set(seed);
        self.dice.borrow_mut().clear();
        self.changed();
    }

    fn changed(&self) {
        let active = !self.partitions.borrow().is_empty()
            || !self.pairs.borrow().is_empty()
            || !self.ends.borrow().is_empty();
        self.active.set(active);
        if !active {
            self.dice.borrow_mut().clear();
        }
        self.paths.borrow_mut().clear();
        // Somebody may wait for room that is there now.
        self.wake();
    }

    /// The way of frames from one end to another.
    pub(super) fn path(&self, from: u32, to: u32) -> Way {
        if !self.active.get() {
            return None;
        }
        if let Some(path) = self.paths.borrow().get(&(from, to)) {
            return path.clone();
        }
        let path = self.find(from, to);
        self.paths.borrow_mut().insert((from, to), path.clone());
        path
    }

    fn find(&self, from: u32, to: u32) -> Way {
        let (sender, receiver) = {
            let names = self.names.borrow();
            let end = |id| match id {
                GATEWAY => Some(LinkEnd::Gateway),
                id => names.get(&id).cloned(),
            };
            (end(from)?, end(to)?)
        };
        let separates = |[a, b]: &[BTreeSet<LinkEnd>; 2]| {
            (a.contains(&sender) && b.contains(&receiver))
                || (b.contains(&sender) && a.contains(&receiver))
        };
        let cut = self.partitions.borrow().iter().any(separates);
        let (ends, pairs) = (self.ends.borrow(), self.pairs.borrow());
        let (out, into) = (ends.get(&sender), ends.get(&receiver));
        let key = ordered(sender.clone(), receiver.clone());
        let between = pairs.get(&key);
        let settings = [out, between, into];
        if !cut && settings.iter().all(Option::is_none) {
            return None;
        }
        let forward = key.0 == sender;
        let between = between.map(|pair| if forward { &pair.there } else { &pair.back });
        let pipes = [
            out.map(|end| &end.there),
            between,
            into.map(|end| &end.back),
        ];
        let pipes = pipes.into_iter().flatten().flatten().cloned().collect();
        let arrives = settings.iter().flatten();
        let arrives: f64 = arrives.map(|each| 1.0 - each.conditions.loss).product();
        let dice = {
            let mut dice = self.dice.borrow_mut();
            let new = || Rc::new(Dice::new(self.seed.get(), sender.text(), receiver.text()));
            let key = (sender.clone(), receiver.clone());
            dice.entry(key).or_insert_with(new).clone()
        };
        Some(Rc::new(Path {
            from,
            to,
            of_gateway: sender == LinkEnd::Gateway,
            cut,
            loss: 1.0 - arrives,
            dice,
            pipes,
        }))
    }

    /// Sends a frame on its way.
    pub(super) fn send(&self, path: &Rc<Path>, frame: &[u8]) -> Fate {
        let mut transit = self.transit.borrow_mut();
        let before = transit.next();
        let fate = transit.send(path, frame, Instant::now());
        match fate {
            Fate::Cut => self.cut.set(self.cut.get() + 1),
            Fate::Lost => self.lost.set(self.lost.get() + 1),
            Fate::Later if transit.next() != before => self.wake(),
            _ => {}
        }
        fate
    }

    /// The next frame that has arrived; what a partition has overtaken on its way is lost.
    pub(super) fn arrived(&self, now: Instant) -> Option<Arrival> {
        loop {
            let arrival = self.transit.borrow_mut().arrived(now)?;
            if !self
                .path(arrival.from, arrival.to)
                .is_some_and(|path| path.cut)
            {
                return Some(arrival);
            }
            self.cut.set(self.cut.get() + 1);
        }
    }

    /// When the next frame may arrive.
    pub(super) fn next(&self) -> Option<Instant> {
        self.transit.borrow().next()
    }

    /// When bulk data of the gateway for a member has room; `None` if it has.
    pub(super) fn room_at(&self, id: u32) -> Option<Instant> {
        let path = self.path(GATEWAY, id)?;
        let under_way = self.transit.borrow().room_at(&path);
        path.room_at(Instant::now()).max(under_way)
    }

    /// Has the pump look for what there is to do.
    pub(super) fn wake(&self) {
        if let Some(pump) = &*self.pump.borrow() {
            pump.wake_by_ref();
        }
    }

    pub(super) fn set_pump(&self, waker: &Waker) {
        let mut pump = self.pump.borrow_mut();
        if !pump.as_ref().is_some_and(|old| old.will_wake(waker)) {
            *pump = Some(waker.clone());
        }
    }

    pub(super) fn counts(&self) -> FaultCounts {
        let transit = self.transit.borrow();
        FaultCounts {
            cut: self.cut.get(),
            lost: self.lost.get(),
            overflowed: transit.overflowed,
            held: transit.bytes(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: u32 = 1;
    const B: u32 = 2;
    const C: u32 = 3;

    fn three() -> Links {
        let links = Links::default();
        for (id, name) in [(A, "a"), (B, "B"), (C, "c")] {
            links.join(id, name.into());
        }
        links
    }

    fn set(names: &[&str]) -> BTreeSet<LinkEnd> {
        names.iter().map(|name| LinkEnd::from(*name)).collect()
    }

    fn loss(part: f64) -> LinkConditions {
        LinkConditions {
            loss: part,
            ..LinkConditions::default()
        }
    }

    #[test]
    fn a_partition_is_between_its_sets_only() {
        let links = three();
        assert!(links.path(A, B).is_none());
        links.partition(set(&["a"]), set(&["b", "c"]));
        for (from, to) in [(A, B), (B, A), (A, C), (C, A)] {
            let path = links.path(from, to).unwrap();
            assert_eq!(links.send(&path, b"frame"), Fate::Cut);
        }
        for (from, to) in [(B, C), (C, B), (A, GATEWAY), (GATEWAY, A)] {
            assert!(links.path(from, to).is_none());
        }
        assert_eq!(links.counts().cut, 4);
        links.leave(A);
        links.join(7, "A".into());
        assert!(links.path(7, B).is_some(), "names are what counts");
        links.heal();
        assert!(links.path(7, B).is_none());

        links.partition(set(&["c"]), BTreeSet::from([LinkEnd::Gateway]));
        assert!(links.path(GATEWAY, C).unwrap().cut);
        assert!(links.path(C, B).is_none());
    }

    #[test]
    fn conditions_of_a_way_combine() {
        let links = three();
        links.set_end("a".into(), loss(0.5));
        links.set_pair("b".into(), "a".into(), loss(0.5));
        assert_eq!(links.path(A, C).unwrap().loss, 0.5);
        assert_eq!(links.path(A, B).unwrap().loss, 0.75);
        assert_eq!(links.path(GATEWAY, A).unwrap().loss, 0.5);
        assert!(links.path(B, C).is_none());
        assert_eq!(links.pair("a".into(), "b".into()), loss(0.5));
        links.set_end("a".into(), LinkConditions::default());
        assert!(links.path(A, C).is_none());
        links.clear();
        assert!(links.path(A, B).is_none());
        assert!(!links.active.get());
    }

    #[test]
    fn each_direction_has_a_pipe_of_its_own() {
        let links = three();
        let slow = LinkConditions {
            bandwidth: Some(8000),
            queue: 0,
            ..LinkConditions::default()
        };
        links.set_pair("a".into(), "b".into(), slow);
        let (there, back) = (links.path(A, B).unwrap(), links.path(B, A).unwrap());
        assert_eq!(links.send(&there, &[0; 1000]), Fate::Later);
        assert_eq!(links.send(&there, &[0; 1000]), Fate::Overflow);
        assert_eq!(links.send(&back, &[0; 1000]), Fate::Later);
        assert_eq!(links.counts().held, 2000);
        // A partition that comes now stops what is under way.
        links.partition(set(&["a"]), set(&["b"]));
        let later = Instant::now() + Duration::from_secs(2);
        assert_eq!(links.arrived(later), None);
        let counts = links.counts();
        assert_eq!((counts.cut, counts.overflowed, counts.held), (2, 1, 0));
    }

    #[test]
    fn what_comes_by_the_uplink_is_counted_by_its_receiver() {
        const UPLINK: u32 = 4;
        let links = three();
        links.join(UPLINK, LinkEnd::Gateway);
        let far = LinkConditions {
            latency: Duration::from_secs(10),
            ..LinkConditions::default()
        };
        links.set_end(LinkEnd::Gateway, far);
        let sent = |to| {
            let path = links.path(UPLINK, to).unwrap();
            let frames = std::iter::repeat_with(|| links.send(&path, &[0; 1500]));
            let sent = frames.take_while(|fate| *fate == Fate::Later).count();
            assert!((5000..12_000).contains(&sent), "{sent}");
            sent
        };
        // A quarter for each, of whom there are four.
        assert_eq!([sent(B), sent(C)], [sent(A); 2]);
        links.leave(B);
        assert_eq!(links.transit.borrow().members, 3);
    }

    #[test]
    fn the_nth_frame_has_the_same_fate() {
        let fates = |seed: u64, noise: bool| {
            let links = three();
            links.reseed(seed);
            // What was sent before does not count, nor what others send.
            links.set_pair("a".into(), "b".into(), loss(0.3));
            if noise {
                for _ in 0..5 {
                    links.send(&links.path(A, B).unwrap(), b"before");
                }
            }
            links.set_pair("a".into(), "b".into(), loss(0.3));
            links.set_pair("a".into(), "c".into(), loss(0.3));
            (0..200)
                .map(|_| {
                    if noise {
                        links.send(&links.path(A, C).unwrap(), b"noise");
                        links.send(&links.path(B, A).unwrap(), b"noise");
                    }
                    links.send(&links.path(A, B).unwrap(), b"frame") == Fate::Lost
                })
                .collect::<Vec<_>>()
        };
        let first = fates(42, false);
        assert_eq!(first, fates(42, true));
        assert_ne!(first, fates(43, false));
        let lost = first.iter().filter(|lost| **lost).count();
        assert!((30..90).contains(&lost), "{lost}");
    }

    #[test]
    fn impossible_conditions_are_refused() {
        let good = LinkConditions::default();
        let bad = [
            LinkConditions {
                latency: Duration::from_secs(61),
                ..good
            },
            loss(-0.1),
            loss(1.1),
            loss(f64::NAN),
            LinkConditions {
                bandwidth: Some(0),
                ..good
            },
        ];
        for conditions in bad {
            assert!(conditions.check().is_err(), "{conditions:?}");
        }
        assert!(good.check().is_ok());
        assert!(good.is_default());
        assert!(loss(1.0).check().is_ok());
    }
}
