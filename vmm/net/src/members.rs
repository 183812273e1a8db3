//! The members of a network, with their addresses and names.

use std::cell::{Cell, Ref, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::config::NetworkConfig;
use crate::error::NetworkError;
use crate::faults::{Faults, GATEWAY, LinkEnd};
use crate::frame::{self, Mac};
use crate::port::{NewPort, Port};

/// Maximum number of learned hardware addresses of one member. Frames to others are flooded, as by
/// a switch whose table is full.
const MAX_LEARNED: usize = 256;
/// How long a learned hardware address is valid.
const LEARNED_AGE: Duration = Duration::from_secs(300);

/// The members of a network, and the uplink.
#[derive(Debug)]
pub(crate) struct Members {
    config: Arc<NetworkConfig>,
    faults: Rc<Faults>,
    ports: RefCell<Vec<Rc<Port>>>,
    /// The addresses that members had, kept for when they join again.
    addresses: RefCell<HashMap<String, Ipv4Addr>>,
    /// Registered names in lower case, which are answered whether or not a member has them now.
    names: RefCell<BTreeMap<String, Ipv4Addr>>,
    next_id: Cell<u32>,
}

impl Members {
    pub(crate) fn new(config: Arc<NetworkConfig>, faults: Rc<Faults>) -> Self {
        Self {
            config,
            faults,
            ports: RefCell::default(),
            addresses: RefCell::default(),
            names: RefCell::default(),
            next_id: Cell::new(GATEWAY + 1),
        }
    }

    /// The ports of all members and of the uplink.
    pub(crate) fn ports(&self) -> Ref<'_, Vec<Rc<Port>>> {
        self.ports.borrow()
    }

    /// Adds a member. The member that it replaces must have been removed.
    pub(crate) fn add(&self, new: NewPort, socket: OwnedFd) -> Result<Rc<Port>, NetworkError> {
        self.check(&new)?;
        let ip = self.address_for(&new)?;
        let id = self.next_id.get();
        self.next_id.set(id.wrapping_add(1).max(GATEWAY + 1));
        let port = Port::new(id, &new, ip, socket, self.faults.clone());
        let port = port.map_err(|source| NetworkError::Host {
            what: "register the member's socket",
            source,
        })?;
        let port = Rc::new(port);
        if port.uplink {
            // The host and the world are behind it.
            self.faults.join(id, LinkEnd::Gateway);
        } else {
            self.faults.join(id, port.name.as_str().into());
            self.addresses.borrow_mut().insert(new.name, ip);
        }
        for other in self.ports.borrow().iter() {
            other.learned.borrow_mut().remove(&port.mac);
        }
        self.ports.borrow_mut().push(port.clone());
        Ok(port)
    }

    /// Refuses a member if the network is full, or if another has its name or addresses.
    fn check(&self, new: &NewPort) -> Result<(), NetworkError> {
        let ports = self.ports.borrow();
        let limit = self.config.limits.members;
        if !new.uplink && ports.iter().filter(|port| !port.uplink).count() >= limit {
            return Err(NetworkError::Full(limit));
        }
        let taken = |what, value: String| Err(NetworkError::Taken { what, value });
        for port in ports.iter() {
            if new.replaces(port) {
                return taken("name", new.name.clone());
            }
            if port.mac == new.mac {
                return taken("MAC address", frame::show(new.mac));
            }
            if Some(port.ip) == new.ip {
                return taken("IP address", port.ip.to_string());
            }
        }
        Ok(())
    }

    /// Removes a port.
    pub(crate) fn remove(&self, port: &Port) {
        self.ports.borrow_mut().retain(|other| other.id != port.id);
    }

    /// Registers `name`, given in lower case, for an address.
    pub(crate) fn register(&self, name: String, ip: Ipv4Addr) {
        self.names.borrow_mut().insert(name, ip);
    }

    /// Undoes [`Self::register`]. Returns false if the name was not registered.
    pub(crate) fn unregister(&self, name: &str) -> bool {
        self.names.borrow_mut().remove(name).is_some()
    }

    fn address_for(&self, new: &NewPort) -> Result<Ipv4Addr, NetworkError> {
        let ports = self.ports.borrow();
        let mut addresses = self.addresses.borrow_mut();
        if let Some(ip) = new.ip {
            addresses.retain(|name, other| *other != ip || *name == new.name);
            return Ok(ip);
        }
        let names = self.names.borrow();
        let own_name = new.name.to_ascii_lowercase();
        let in_use = |ip: &Ipv4Addr| {
            let mut registered = names.iter();
            ports.iter().any(|port| port.ip == *ip)
                || registered.any(|(name, other)| other == ip && *name != own_name)
        };
        if let Some(ip) = names.get(&own_name).filter(|ip| !in_use(ip)) {
            return Ok(*ip);
        }
        if let Some(ip) = addresses.get(&new.name).filter(|ip| !in_use(ip)) {
            return Ok(*ip);
        }
        let remembered = |ip: &Ipv4Addr| addresses.values().any(|other| other == ip);
        // Prefer one that has never been used to one whose member is gone.
        let mut guests = self.config.subnet.guests();
        let fresh = guests.find(|ip| !in_use(ip) && !remembered(ip));
        fresh
            .or_else(|| self.config.subnet.guests().find(|ip| !in_use(ip)))
            .ok_or(NetworkError::Full(ports.len()))
    }

    pub(crate) fn named(&self, name: &str) -> Option<Rc<Port>> {
        let ports = self.ports.borrow();
        ports.iter().find(|port| port.is_named(name)).cloned()
    }

    pub(crate) fn by_id(&self, id: u32) -> Option<Rc<Port>> {
        let ports = self.ports.borrow();
        ports.iter().find(|port| port.id == id).cloned()
    }

    /// The end of a link for faults: the gateway, or a member that is or was attached, or whose
    /// name is registered.
    pub(crate) fn link_end(&self, end: LinkEnd) -> Result<LinkEnd, NetworkError> {
        let end = end.normal();
        if let LinkEnd::Member(name) = &end {
            let known = |other: &String| other.eq_ignore_ascii_case(name);
            let known = self.names.borrow().contains_key(name)
                || self.named(name).is_some()
                || self.addresses.borrow().keys().any(known);
            if !known {
                return Err(NetworkError::NoMember(name.clone()));
            }
        }
        Ok(end)
    }

    pub(crate) fn at(&self, ip: Ipv4Addr) -> Option<Rc<Port>> {
        let ports = self.ports.borrow();
        let mut members = ports.iter().filter(|port| !port.uplink);
        members.find(|port| port.ip == ip).cloned()
    }

    /// The address of a name, given in lower case: a member's, or a registered one.
    pub(crate) fn address_of(&self, name: &str) -> Option<Ipv4Addr> {
        let ports = self.ports.borrow();
        let mut named = ports.iter().filter(|port| port.is_named(name));
        let member = named.next().map(|port| port.ip);
        member.or_else(|| self.names.borrow().get(name).copied())
    }

    /// The name of an address of the guests' network.
    pub(crate) fn name_of(&self, ip: Ipv4Addr) -> Option<String> {
        if ip == self.config.subnet.gateway() {
            return Some("gateway".to_owned());
        }
        if let Some(port) = self.at(ip) {
            return Some(port.name.clone());
        }
        let names = self.names.borrow();
        let mut known = names.iter().filter(|(_, address)| **address == ip);
        known.next().map(|(name, _)| name.clone())
    }

    /// Learns that `mac` is behind `port`. Returns `None` if it is another member's own address.
    /// Each member has separate room for learned addresses, so that one that invents them takes no
    /// room from others.
    pub(crate) fn learn(&self, port: &Port, mac: Mac) -> Option<()> {
        if mac == port.mac {
            return Some(());
        }
        let ports = self.ports.borrow();
        if ports.iter().any(|other| other.mac == mac) {
            return None;
        }
        let now = Instant::now();
        let mut learned = port.learned.borrow_mut();
        if let Some(since) = learned.get_mut(&mac) {
            *since = now;
            return Some(());
        }
        // It has moved, if it was elsewhere before; whether or not there is room for it here.
        for other in ports.iter().filter(|other| other.id != port.id) {
            other.learned.borrow_mut().remove(&mac);
        }
        if learned.len() >= MAX_LEARNED {
            learned.retain(|_, since| now.duration_since(*since) < LEARNED_AGE);
        }
        if learned.len() < MAX_LEARNED {
            learned.insert(mac, now);
        }
        Some(())
    }

    pub(crate) fn port_of(&self, mac: Mac) -> Option<Rc<Port>> {
        let ports = self.ports.borrow();
        if let Some(port) = ports.iter().find(|port| port.mac == mac) {
            return Some(port.clone());
        }
        let mut behind = ports.iter();
        behind
            .find(|port| port.learned.borrow().contains_key(&mac))
            .cloned()
    }

    /// True if `ip` is the port's own address. The member has shown that it uses it.
    pub(crate) fn is_own(&self, port: &Port, ip: Ipv4Addr) -> bool {
        let own = ip == port.ip;
        if own {
            port.seen.set(Some(Instant::now()));
        }
        own
    }

    /// True if `ip` belongs to the gateway, to a port, or to a registered name, whether or not its
    /// member is attached.
    pub(crate) fn is_taken(&self, ip: Ipv4Addr) -> bool {
        self.config.subnet.contains(ip)
            && (ip == self.config.subnet.gateway()
                || self.ports.borrow().iter().any(|other| other.ip == ip)
                || self.names.borrow().values().any(|other| *other == ip))
    }

    /// True if `ip` is an address of the network that is not taken.
    pub(crate) fn is_free(&self, ip: Ipv4Addr) -> bool {
        self.config.subnet.is_guest(ip) && !self.is_taken(ip)
    }
}
