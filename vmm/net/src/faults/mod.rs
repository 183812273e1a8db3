//! Faults of links: partitions, latency, loss and bandwidth.
//!
//! Faults are stored by name, so they stay when a member leaves and joins again. The faults between two ends are
//! computed once and cached until something changes. Without faults a frame costs the check of one flag.

mod conditions;
mod dice;
mod line;
mod transit;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeSet, HashMap};
use std::rc::Rc;
use std::task::Waker;
use std::time::Instant;

use self::dice::Dice;
use self::line::Line;
use self::transit::Transit;

pub use self::conditions::{FaultCounts, LinkConditions, LinkEnd};
pub(crate) use self::transit::{Arrival, Fate, GATEWAY, Path};

/// The faults of one link, or of all links of one end.
#[derive(Debug)]
struct Setting {
    conditions: LinkConditions,
    /// From the lesser to the greater end, or out of the end.
    there: Option<Rc<Line>>,
    back: Option<Rc<Line>>,
}

impl Setting {
    fn new(conditions: LinkConditions) -> Self {
        Self {
            there: Line::new(&conditions),
            back: Line::new(&conditions),
            conditions,
        }
    }
}

/// Computed paths, by sender and receiver; `None` for a path without faults.
type Paths = HashMap<(u32, u32), Option<Rc<Path>>>;

/// The faults of all links.
#[derive(Debug, Default)]
pub(crate) struct Faults {
    /// True if there are any faults.
    active: Cell<bool>,
    seed: Cell<u64>,
    partitions: RefCell<Vec<[BTreeSet<LinkEnd>; 2]>>,
    /// Keyed by both ends, the lesser first.
    pairs: RefCell<HashMap<(LinkEnd, LinkEnd), Setting>>,
    ends: RefCell<HashMap<LinkEnd, Setting>>,
    dice: RefCell<HashMap<(LinkEnd, LinkEnd), Rc<Dice>>>,
    /// The ends that are attached: members by their names, and an uplink as the gateway.
    names: RefCell<HashMap<u32, LinkEnd>>,
    paths: RefCell<Paths>,
    transit: RefCell<Transit>,
    cut: Cell<u64>,
    lost: Cell<u64>,
    /// The task that delivers frames when they arrive.
    pump: RefCell<Option<Waker>>,
}

fn ordered(a: LinkEnd, b: LinkEnd) -> (LinkEnd, LinkEnd) {
    if a <= b { (a, b) } else { (b, a) }
}

impl Faults {
    /// Records the link end of a new port.
    pub(crate) fn join(&self, id: u32, end: LinkEnd) {
        let mut names = self.names.borrow_mut();
        names.insert(id, end.normal());
        self.transit.borrow_mut().members = names.len();
    }

    /// Removes a member, and drops frames under way from and to it.
    pub(crate) fn leave(&self, id: u32) {
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
    pub(crate) fn partition(&self, a: BTreeSet<LinkEnd>, b: BTreeSet<LinkEnd>) {
        self.partitions.borrow_mut().push([a, b]);
        self.changed();
    }

    /// Ends all partitions.
    pub(crate) fn heal(&self) {
        self.partitions.borrow_mut().clear();
        self.changed();
    }

    /// Sets the conditions of one link, and restarts its sequence of losses.
    pub(crate) fn set_pair(&self, a: LinkEnd, b: LinkEnd, conditions: LinkConditions) {
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

    /// Sets the conditions of everything that one end sends and receives.
    pub(crate) fn set_end(&self, end: LinkEnd, conditions: LinkConditions) {
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

    pub(crate) fn pair(&self, a: LinkEnd, b: LinkEnd) -> LinkConditions {
        let pairs = self.pairs.borrow();
        let setting = pairs.get(&ordered(a, b));
        setting.map_or_else(LinkConditions::default, |setting| setting.conditions)
    }

    pub(crate) fn end(&self, end: &LinkEnd) -> LinkConditions {
        let ends = self.ends.borrow();
        let setting = ends.get(end);
        setting.map_or_else(LinkConditions::default, |setting| setting.conditions)
    }

    /// Removes all faults.
    pub(crate) fn clear(&self) {
        self.partitions.borrow_mut().clear();
        self.pairs.borrow_mut().clear();
        self.ends.borrow_mut().clear();
        self.changed();
    }

    /// Restarts all sequences of losses.
    pub(crate) fn reseed(&self, seed: u64) {
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
        // A flow may wait for room that is there now.
        self.wake();
    }

    /// The path of frames from one end to another; `None` without faults.
    pub(crate) fn path(&self, from: u32, to: u32) -> Option<Rc<Path>> {
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

    fn find(&self, from: u32, to: u32) -> Option<Rc<Path>> {
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
        let lines = [
            out.map(|end| &end.there),
            between,
            into.map(|end| &end.back),
        ];
        let lines = lines.into_iter().flatten().flatten().cloned().collect();
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
            lines,
        }))
    }

    /// Sends a frame on its way.
    pub(crate) fn send(&self, path: &Rc<Path>, frame: &[u8]) -> Fate {
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

    /// The next frame that has arrived. Frames are lost if a partition has begun while they were under way.
    pub(crate) fn arrived(&self, now: Instant) -> Option<Arrival> {
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
    pub(crate) fn next(&self) -> Option<Instant> {
        self.transit.borrow().next()
    }

    /// When there will be room for bulk data from the gateway to a member; `None` if there is room now.
    pub(crate) fn room_at(&self, id: u32) -> Option<Instant> {
        let path = self.path(GATEWAY, id)?;
        let under_way = self.transit.borrow().room_at(&path);
        path.room_at(Instant::now()).max(under_way)
    }

    /// Wakes the pump.
    pub(crate) fn wake(&self) {
        if let Some(pump) = &*self.pump.borrow() {
            pump.wake_by_ref();
        }
    }

    pub(crate) fn set_pump(&self, waker: &Waker) {
        let mut pump = self.pump.borrow_mut();
        if !pump.as_ref().is_some_and(|old| old.will_wake(waker)) {
            *pump = Some(waker.clone());
        }
    }

    pub(crate) fn counts(&self) -> FaultCounts {
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
#[path = "mod_test.rs"]
mod tests;
