//! The table of all TCP flows, with their limit.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::time::{Duration, Instant};

use super::flow::Flow;
use crate::key::FlowKey;
use crate::port::Port;

/// A flow that has been idle for this long may be replaced by a new one.
const EVICTABLE_AFTER: Duration = Duration::from_secs(10);
/// All TCP flows.
#[derive(Debug, Default)]
pub(crate) struct TcpTable {
    flows: RefCell<HashMap<FlowKey, Rc<Flow>>>,
    next_id: Cell<u64>,
    pub(crate) opened: Cell<u64>,
    pub(crate) refused: Cell<u64>,
    pub(crate) evicted: Cell<u64>,
}

impl TcpTable {
    pub(crate) fn get(&self, key: &FlowKey) -> Option<Rc<Flow>> {
        self.flows.borrow().get(key).cloned()
    }

    /// A number that no flow has had.
    pub(crate) fn new_id(&self) -> u64 {
        let id = self.next_id.get();
        self.next_id.set(id + 1);
        id
    }

    pub(crate) fn len(&self) -> usize {
        self.flows.borrow().len()
    }

    pub(crate) fn insert(&self, flow: &Rc<Flow>) {
        let port = &flow.port;
        port.flows.set(port.flows.get() + 1);
        self.opened.set(self.opened.get() + 1);
        self.flows.borrow_mut().insert(flow.key, flow.clone());
    }

    /// Removes a flow. Does nothing if it was already removed.
    pub(crate) fn remove(&self, flow: &Rc<Flow>) {
        let mut flows = self.flows.borrow_mut();
        if flows
            .get(&flow.key)
            .is_some_and(|other| Rc::ptr_eq(other, flow))
        {
            flows.remove(&flow.key);
            flow.port.forget_waiting(flow.id);
            flow.port.flows.set(flow.port.flows.get().saturating_sub(1));
        }
    }

    /// True if the port may have one more flow at `now`. At the limit, the flow that has been idle
    /// longest makes room, if it has been idle for long enough.
    pub(crate) fn admit(&self, port: &Port, limit: usize, now: Instant) -> bool {
        if port.flows.get() < limit {
            return true;
        }
        // The longest idle one of a moment ago can only have become less idle, and new ones are
        // younger: looking again before it would be due finds nothing.
        if port.no_eviction_before.get().is_some_and(|at| now < at) {
            return false;
        }
        let oldest = {
            let flows = self.flows.borrow();
            let own = flows.values().filter(|flow| flow.key.port == port.id);
            own.min_by_key(|flow| flow.active.get()).cloned()
        };
        match oldest {
            Some(flow) if now.duration_since(flow.active.get()) >= EVICTABLE_AFTER => {
                tracing::debug!(key = ?flow.key, "replacing an idle connection by a new one");
                self.evicted.set(self.evicted.get() + 1);
                flow.end();
                self.remove(&flow);
                true
            }
            Some(flow) => {
                let at = flow.active.get() + EVICTABLE_AFTER;
                port.no_eviction_before.set(Some(at));
                false
            }
            None => false,
        }
    }

    pub(crate) fn count_refused(&self) {
        self.refused.set(self.refused.get() + 1);
    }

    /// Ends all flows of a port.
    pub(crate) fn end_port(&self, port: u32) {
        let flows = self.flows.borrow();
        for flow in flows.values().filter(|flow| flow.key.port == port) {
            flow.end();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::super::flow::Stage;
    use super::*;
    use crate::port::{NewPort, new_link};

    const LIMIT: usize = 3;

    fn port() -> (Rc<Port>, std::os::fd::OwnedFd) {
        let new = NewPort {
            name: "web".to_owned(),
            mac: [2, 0, 0, 0, 0, 1],
            ip: None,
            uplink: false,
        };
        let (ours, theirs) = new_link().unwrap();
        let ip = Ipv4Addr::new(10, 187, 41, 2);
        let port = Port::new(1, &new, ip, ours, Rc::default()).unwrap();
        (Rc::new(port), theirs)
    }

    /// A flow from port `number` of the guest that moved data last at `active`.
    fn open(table: &TcpTable, port: &Rc<Port>, number: u16, active: Instant) -> Rc<Flow> {
        let key = FlowKey {
            port: port.id,
            guest: (port.ip, number).into(),
            remote: (Ipv4Addr::new(192, 0, 2, 1), 80).into(),
        };
        let flow = Flow::new(table.new_id(), key, port.clone(), port.mac, Stage::Over);
        flow.active.set(active);
        table.insert(&flow);
        flow
    }

    #[tokio::test]
    async fn the_longest_idle_flow_makes_room_after_ten_seconds() {
        let table = TcpTable::default();
        let (port, _guest) = port();
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let first = open(&table, &port, 1, at(2000));
        let oldest = open(&table, &port, 2, at(1000));
        assert!(table.admit(&port, LIMIT, at(3000)));
        open(&table, &port, 3, at(3000));

        for millis in [3000, 10_999] {
            assert!(!table.admit(&port, LIMIT, at(millis)), "{millis}");
        }
        assert_eq!((table.len(), table.evicted.get()), (3, 0));
        assert!(table.admit(&port, LIMIT, at(11_000)));
        assert!(oldest.ended.get() && !first.ended.get());
        assert!(table.get(&oldest.key).is_none());
        assert_eq!((table.len(), table.evicted.get()), (2, 1));

        // The next in line has been busy meanwhile, so it stays as long as the one after it.
        open(&table, &port, 4, at(11_000));
        first.active.set(at(12_000));
        assert!(!table.admit(&port, LIMIT, at(12_999)));
        assert!(table.admit(&port, LIMIT, at(13_000)));
        assert!(!first.ended.get());
        assert_eq!(table.evicted.get(), 2);
    }

    #[tokio::test]
    async fn each_member_has_room_of_its_own() {
        let table = TcpTable::default();
        let (port, _guest) = port();
        for number in 0..LIMIT {
            open(&table, &port, number as u16, Instant::now());
        }
        assert!(!table.admit(&port, LIMIT, Instant::now()));
        let (other, _guest) = self::port();
        assert!(table.admit(&other, LIMIT, Instant::now()));
    }
}
