//! The network without root: a switch that joins guests, and a gateway that gives them
//! addresses, names and the world, all in this process.
//!
//! A [`Network`] runs on a thread of its own, so it works the same for synchronous callers and
//! on any async runtime, and no test that blocks its runtime stops its guests. A guest's NIC is
//! one end of a socket pair ([`Network::attach`]), one Ethernet frame or large TCP packet at a time. Guests reach each
//! other through the switch and the world through the host's own sockets; the host reaches
//! guests by [`Network::connect`] and [`Network::forward`].
//!
//! Frames are untrusted: they are checked before they reach smoltcp, what one guest can make the
//! host hold is bounded by [`Limits`], and no guest can take the gateway's or another's address.
//! Guests cannot reach the host's loopback or link-local addresses unless
//! [`NetworkConfig::host_map`] says so.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use fleetbox_net::{Network, NetworkConfig, Port};
//!
//! let network = Network::start(NetworkConfig::default())?;
//! let nic = network.attach(Port { name: "web".into(), mac: [2, 0, 0, 0, 0, 1], ip: None })?;
//! // … hand `nic.link` to a machine, and then:
//! let stream = network.connect(nic.ip.into(), 22).await?;
//! let forward = network.forward(nic.ip.into(), 80)?;
//! println!("http://{}", forward.address());
//! # Ok(()) }
//! ```

mod config;
mod core;
mod dhcp;
mod dns;
mod error;
mod frame;
mod links;
mod pipe;
mod port;
mod stack;
mod stream;
mod tap;
mod tcp;
#[cfg(test)]
mod tests;
mod udp;

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;

use serde::{Deserialize, Serialize};
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio::sync::oneshot;
use tokio::task::LocalSet;

pub use self::config::{Limits, NetworkConfig, Subnet};
pub use self::error::{ConnectError, NetworkError};
pub use self::links::{FaultCounts, LinkConditions, LinkEnd};
pub use self::stream::GuestStream;
pub use self::tap::open_tap;

use self::core::{Core, GATEWAY_MAC, Joining};

/// A new member of a network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Port {
    /// The name other members find it by: a single DNS label.
    pub name: String,
    /// The hardware address of its NIC.
    pub mac: [u8; 6],
    /// Its address; `None` for one the network chooses. The network remembers it: who joins
    /// again under a name gets the same address.
    pub ip: Option<Ipv4Addr>,
}

/// A member's side of its link.
#[derive(Debug)]
pub struct Attachment {
    /// The guest's end: an `AF_UNIX` `SOCK_SEQPACKET` socket, non-blocking and close-on-exec.
    /// Its format is [`fleetbox_packet::Packet`]: each packet is a
    /// header of 12 bytes and an Ethernet frame of at most 1518 bytes, without preamble or FCS, or a
    /// TCP packet of at most 65549 bytes from its Ethernet header on.
    pub link: OwnedFd,
    /// The member's address, which DHCP gives it.
    pub ip: Ipv4Addr,
}

/// A loopback address of the host that leads to a port of a guest, until it is dropped.
/// Connections made through it live on.
#[derive(Debug)]
pub struct Forward {
    address: SocketAddr,
    _stop: oneshot::Sender<()>,
}

impl Forward {
    /// The address on the host.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

/// What a network is doing.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkStatus {
    /// Its members.
    pub ports: Vec<PortStatus>,
    /// TCP connections now open or being opened.
    pub tcp_flows: usize,
    /// TCP connections begun since the start.
    pub tcp_opened: u64,
    /// TCP connections of guests that were refused, here or by the host.
    pub tcp_refused: u64,
    /// Idle TCP connections that made room for new ones.
    pub tcp_evicted: u64,
    /// UDP and ICMP echo flows now known.
    pub udp_flows: usize,
    /// UDP and ICMP echo flows that made room for new ones.
    pub udp_evicted: u64,
    /// DNS questions about members.
    pub dns_local: u64,
    /// DNS questions that a resolver of the host answered.
    pub dns_forwarded: u64,
    /// DNS questions that none answered.
    pub dns_failed: u64,
    /// What faults of links did to frames.
    #[serde(default)]
    pub faults: FaultCounts,
}

/// What a member is doing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortStatus {
    /// Its name.
    pub name: String,
    /// Its hardware address.
    pub mac: [u8; 6],
    /// Its address.
    pub ip: Ipv4Addr,
    /// Whether the guest's end of the link is open.
    pub up: bool,
    /// Whether the guest has been seen to use its address.
    pub configured: bool,
    /// Frames the guest sent, where a large TCP packet that it sent whole is one.
    pub frames_in: u64,
    /// Bytes the guest sent.
    pub bytes_in: u64,
    /// Frames the guest was sent, where a large TCP packet that was sent whole is one.
    pub frames_out: u64,
    /// Bytes the guest was sent.
    pub bytes_out: u64,
    /// Frames of the guest that were malformed or forged.
    pub refused: u64,
    /// Frames lost because the guest did not take them, or sent too many broadcasts.
    pub dropped: u64,
}

/// Work for the network's thread.
type Command = Box<dyn FnOnce(&Rc<Core>) + Send>;

/// A network. Dropping it ends its thread and closes all connections.
#[derive(Debug)]
pub struct Network {
    config: Arc<NetworkConfig>,
    commands: Option<UnboundedSender<Command>>,
    thread: Option<JoinHandle<()>>,
}

impl Network {
    /// Starts a network without members.
    ///
    /// # Errors
    /// The domain is no DNS name, or the host has no thread or file descriptors left.
    pub fn start(config: NetworkConfig) -> Result<Self, NetworkError> {
        let labels_are_names = config.domain.split('.').all(is_name);
        if !config.domain.is_empty() && (!labels_are_names || config.domain.len() > 200) {
            return Err(NetworkError::Name(config.domain));
        }
        let host = |what| move |source| NetworkError::Host { what, source };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .enable_time()
            .build()
            .map_err(host("create the network's event loop"))?;
        let config = Arc::new(config);
        let (commands, mut queue) = unbounded_channel::<Command>();
        let thread = {
            let config = config.clone();
            std::thread::Builder::new()
                .name("fleetbox-net".to_owned())
                .spawn(move || {
                    let tasks = LocalSet::new();
                    tasks.block_on(&runtime, async move {
                        let core = Rc::new(Core::new(config));
                        tokio::task::spawn_local(core::pump(core.clone()));
                        while let Some(command) = queue.recv().await {
                            command(&core);
                        }
                    });
                })
                .map_err(host("start the network's thread"))?
        };
        Ok(Self {
            config,
            commands: Some(commands),
            thread: Some(thread),
        })
    }

    /// How the network was set up.
    pub fn config(&self) -> &NetworkConfig {
        &self.config
    }

    /// Adds a member. One of the same name whose link has closed is replaced.
    ///
    /// ```
    /// # use fleetbox_net::{Network, NetworkConfig, NetworkError, Port};
    /// # fn main() -> Result<(), NetworkError> {
    /// let network = Network::start(NetworkConfig::default())?;
    /// let db = network.attach(Port { name: "db".into(), mac: [2, 0, 0, 0, 0, 1], ip: None })?;
    /// let address = network.forward(db.ip.into(), 5432)?.address();
    /// assert!(address.ip().is_loopback());
    /// assert_eq!(network.status()?.ports[0].name, "db");
    /// network.detach("db")?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// The name is no DNS label, the addresses cannot be a guest's or are another member's, or
    /// the network is full.
    pub fn attach(&self, port: Port) -> Result<Attachment, NetworkError> {
        let Port { name, mac, ip } = port;
        if !is_name(&name) {
            return Err(NetworkError::Name(name));
        }
        self.check_addresses(mac, ip)?;
        let (ours, link) = port::link().map_err(|source| NetworkError::Host {
            what: "create the member's link",
            source,
        })?;
        let joining = Joining {
            name,
            mac,
            ip,
            uplink: false,
        };
        let ip = self.call(move |core| core.attach(joining, ours))??;
        Ok(Attachment { link, ip })
    }

    /// Joins the switch to a network of the host by a tap device: what members send to addresses
    /// that no member has, and to all, goes there too, and what comes from there goes to members.
    /// There is one at most. For faults of links it is a part of [`LinkEnd::Gateway`].
    ///
    /// `tap` is an open tap that takes and gives bare frames (`IFF_TAP` and `IFF_NO_PI`, no
    /// `IFF_VNET_HDR`) of at most 1518 bytes, non-blocking. `mac` and `ip` are those of the router
    /// behind it, which no member can take; [`NetworkConfig::router`] tells guests of it. Other
    /// machines may be behind the tap as well. The gateway goes on to answer DHCP and DNS, but
    /// DHCP to members only.
    ///
    /// # Errors
    /// The addresses are no router's in this network or a member has them, there is an uplink
    /// already, or the host has no descriptors left.
    pub fn uplink(&self, tap: OwnedFd, mac: [u8; 6], ip: Ipv4Addr) -> Result<(), NetworkError> {
        self.check_addresses(mac, Some(ip))?;
        let joining = Joining {
            name: "uplink".to_owned(),
            mac,
            ip: Some(ip),
            uplink: true,
        };
        self.call(move |core| core.attach(joining, tap))??;
        Ok(())
    }

    /// Whether these may be addresses of something other than the gateway.
    fn check_addresses(&self, mac: [u8; 6], ip: Option<Ipv4Addr>) -> Result<(), NetworkError> {
        let subnet = self.config.subnet;
        let refuse = |what, value| NetworkError::Address {
            what,
            value,
            subnet: subnet.to_string(),
        };
        if mac[0] & 1 != 0 || mac == [0; 6] || mac == GATEWAY_MAC {
            return Err(refuse("MAC address", frame::show(mac)));
        }
        match ip {
            Some(ip) if !subnet.is_guest(ip) => Err(refuse("IP address", ip.to_string())),
            _ => Ok(()),
        }
    }

    /// Removes a member: its link closes and its connections are reset.
    ///
    /// # Errors
    /// There is no such member.
    pub fn detach(&self, name: &str) -> Result<(), NetworkError> {
        let name = name.to_owned();
        self.call(move |core| core.detach(&name))?
    }

    /// Makes the gateway's DNS answer `name` and `NAME.DOMAIN` with `ip`, in any letter case,
    /// whether or not a member of that name is attached now; names of attached members come
    /// first. Replaces what the name stood for. The address goes to no member of another name
    /// that leaves the choice to the network.
    ///
    /// Attached members are answered without it; it is for those that are known and stopped, and
    /// for further names of a member.
    ///
    /// ```
    /// # use fleetbox_net::{Network, NetworkConfig, NetworkError};
    /// # fn main() -> Result<(), NetworkError> {
    /// let network = Network::start(NetworkConfig::default())?;
    /// network.register_name("db", "10.187.41.7".parse().unwrap())?;
    /// assert!(network.unregister_name("DB")?);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// The name is no DNS label, or the address cannot be a guest's.
    pub fn register_name(&self, name: &str, ip: Ipv4Addr) -> Result<(), NetworkError> {
        if !is_name(name) {
            return Err(NetworkError::Name(name.to_owned()));
        }
        if !self.config.subnet.is_guest(ip) {
            return Err(NetworkError::Address {
                what: "IP address",
                value: ip.to_string(),
                subnet: self.config.subnet.to_string(),
            });
        }
        let name = name.to_ascii_lowercase();
        self.call(move |core| {
            core.names.borrow_mut().insert(name, ip);
        })
    }

    /// Undoes [`Self::register_name`]; false if the name was not registered.
    ///
    /// # Errors
    /// The network has ended.
    pub fn unregister_name(&self, name: &str) -> Result<bool, NetworkError> {
        let name = name.to_ascii_lowercase();
        self.call(move |core| core.names.borrow_mut().remove(&name).is_some())
    }

    /// Connects to a port of a guest. Waits for a guest that is still booting as long as
    /// [`Limits::guest_timeout`]; dropping the future gives up.
    ///
    /// # Errors
    /// See [`ConnectError`], which tells a closed port from a guest that is not there.
    pub async fn connect(&self, ip: IpAddr, port: u16) -> Result<GuestStream, ConnectError> {
        let (reply, answer) = oneshot::channel();
        let sent = self.send(move |core| {
            let core = core.clone();
            tokio::task::spawn_local(async move {
                let mut reply = reply;
                tokio::select! {
                    biased;
                    () = reply.closed() => {}
                    result = core.connect(ip, port) => {
                        // The caller may have given up this very moment.
                        let _ = reply.send(result);
                    }
                }
            });
        });
        if sent.is_err() {
            return Err(ConnectError::Closed { ip });
        }
        answer.await.unwrap_or(Err(ConnectError::Closed { ip }))
    }

    /// Opens a port on the host's loopback that leads to a port of a guest. The guest need not
    /// be up yet; a connection that it refuses is reset.
    ///
    /// # Errors
    /// The address is no member's, or the host has no port or file descriptors left.
    pub fn forward(&self, ip: IpAddr, guest_port: u16) -> Result<Forward, NetworkError> {
        self.forward_from(0, ip, guest_port)
    }

    /// As [`Self::forward`], by a port of the caller's choice; 0 is any that is free.
    ///
    /// # Errors
    /// As there, and the port is taken, or one that this user may not have.
    pub fn forward_from(
        &self,
        host_port: u16,
        ip: IpAddr,
        guest_port: u16,
    ) -> Result<Forward, NetworkError> {
        let host = |what| move |source| NetworkError::Host { what, source };
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, host_port))
            .and_then(|listener| listener.set_nonblocking(true).map(|()| listener))
            .map_err(host("listen on the loopback"))?;
        let address = listener
            .local_addr()
            .map_err(host("listen on the loopback"))?;
        let (stop, stopped) = oneshot::channel::<()>();
        self.call(move |core| {
            match ip {
                IpAddr::V4(ip) if core.member_at(ip).is_some() => {}
                _ => return Err(NetworkError::NoMember(ip.to_string())),
            }
            let listener = tokio::net::TcpListener::from_std(listener)
                .map_err(host("listen on the loopback"))?;
            let accept = accept(core.clone(), listener, ip, guest_port);
            tokio::task::spawn_local(async move {
                tokio::select! {
                    _ = stopped => {}
                    () = accept => {}
                }
            });
            Ok(())
        })??;
        Ok(Forward {
            address,
            _stop: stop,
        })
    }

    /// Separates two groups: from now on no frame passes from any end of `a` to any of `b` or
    /// back, not even one that is under way. Within a group, and with all others, everything
    /// goes on; so do the gateway and what goes through it, DNS and connections of the host among
    /// it, unless [`LinkEnd::Gateway`] is in a group. Several partitions add up.
    ///
    /// ```no_run
    /// # use fleetbox_net::{LinkEnd, Network, NetworkError};
    /// # fn example(network: Network) -> Result<(), NetworkError> {
    /// network.partition(&["node-1"], &["node-2", "node-3"])?;
    /// // … the minority must not accept writes …
    /// network.heal()?;
    /// // Cut off from the world, but not from its peers:
    /// network.partition(&["node-1"], &[LinkEnd::Gateway])?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`NetworkError::NoMember`] for a name that no member has or had and that is not
    /// registered.
    pub fn partition<A, B>(&self, a: &[A], b: &[B]) -> Result<(), NetworkError>
    where
        A: Clone + Into<LinkEnd>,
        B: Clone + Into<LinkEnd>,
    {
        let a: Vec<LinkEnd> = a.iter().cloned().map(Into::into).collect();
        let b: Vec<LinkEnd> = b.iter().cloned().map(Into::into).collect();
        self.call(move |core| {
            let ends = |ends: Vec<LinkEnd>| {
                let ends = ends.into_iter().map(|end| core.link_end(end));
                ends.collect::<Result<BTreeSet<_>, _>>()
            };
            core.links.partition(ends(a)?, ends(b)?);
            Ok(())
        })?
    }

    /// Ends all partitions. Latency, loss and bandwidth stay.
    ///
    /// # Errors
    /// The network has ended.
    pub fn heal(&self) -> Result<(), NetworkError> {
        self.call(|core| core.links.heal())
    }

    /// Sets what the link of two ends does to frames, in place of what was set before;
    /// [`LinkConditions::default`] ends it. Frames under way keep their moment of arrival.
    ///
    /// Whether a frame is lost depends on the seed ([`Self::seed_links`]), on the names of sender
    /// and receiver, and on how many frames have gone this way since this call: the n-th frame
    /// from one end to another has the same fate in each run. Which frame is the n-th is up to
    /// the guests, and what a partition stops does not count.
    ///
    /// A frame meets what is set for all links of its sender, then what is set for the link, then
    /// what is set for all links of its receiver ([`Self::set_links_of`]).
    ///
    /// ```no_run
    /// # use fleetbox_net::{LinkConditions, LinkEnd, Network, NetworkError};
    /// # fn example(network: Network) -> Result<(), NetworkError> {
    /// let lossy = LinkConditions { loss: 0.05, ..LinkConditions::default() };
    /// network.set_link("node-1", "node-2", lossy)?;
    /// // Half a megabit for the downloads of one member:
    /// let slow = LinkConditions { bandwidth: Some(500_000), ..LinkConditions::default() };
    /// network.set_link("node-3", LinkEnd::Gateway, slow)?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`NetworkError::Condition`] for what is impossible, [`NetworkError::NoMember`] as for
    /// [`Self::partition`].
    pub fn set_link(
        &self,
        a: impl Into<LinkEnd>,
        b: impl Into<LinkEnd>,
        conditions: LinkConditions,
    ) -> Result<(), NetworkError> {
        conditions.check()?;
        let (a, b) = (a.into(), b.into());
        self.call(move |core| {
            let (a, b) = (core.link_end(a)?, core.link_end(b)?);
            core.links.set_pair(a, b, conditions);
            Ok(())
        })?
    }

    /// Sets what happens to all frames that one end sends or receives, those of the gateway among
    /// them: its bandwidth is shared by all its links. See [`Self::set_link`].
    ///
    /// # Errors
    /// As for [`Self::set_link`].
    pub fn set_links_of(
        &self,
        end: impl Into<LinkEnd>,
        conditions: LinkConditions,
    ) -> Result<(), NetworkError> {
        conditions.check()?;
        let end = end.into();
        self.call(move |core| {
            core.links.set_end(core.link_end(end)?, conditions);
            Ok(())
        })?
    }

    /// What [`Self::set_link`] has set for two ends.
    ///
    /// # Errors
    /// [`NetworkError::NoMember`] as for [`Self::partition`].
    pub fn link(
        &self,
        a: impl Into<LinkEnd>,
        b: impl Into<LinkEnd>,
    ) -> Result<LinkConditions, NetworkError> {
        let (a, b) = (a.into(), b.into());
        self.call(move |core| Ok(core.links.pair(core.link_end(a)?, core.link_end(b)?)))?
    }

    /// What [`Self::set_links_of`] has set for an end.
    ///
    /// # Errors
    /// [`NetworkError::NoMember`] as for [`Self::partition`].
    pub fn links_of(&self, end: impl Into<LinkEnd>) -> Result<LinkConditions, NetworkError> {
        let end = end.into();
        self.call(move |core| Ok(core.links.end(&core.link_end(end)?)))?
    }

    /// Ends all partitions and all conditions of links.
    ///
    /// # Errors
    /// The network has ended.
    pub fn clear_links(&self) -> Result<(), NetworkError> {
        self.call(|core| core.links.clear())
    }

    /// Sets the seed of all chances (0 at the start) and begins to count frames anew.
    ///
    /// # Errors
    /// The network has ended.
    pub fn seed_links(&self, seed: u64) -> Result<(), NetworkError> {
        self.call(move |core| core.links.reseed(seed))
    }

    /// What the network is doing now.
    ///
    /// # Errors
    /// Its thread has ended.
    pub fn status(&self) -> Result<NetworkStatus, NetworkError> {
        self.call(|core| status(core))
    }

    fn send(&self, command: impl FnOnce(&Rc<Core>) + Send + 'static) -> Result<(), NetworkError> {
        let commands = self.commands.as_ref().ok_or(NetworkError::Closed)?;
        let sent = commands.send(Box::new(command));
        sent.map_err(|_| NetworkError::Closed)
    }

    /// Runs `work` on the network's thread and waits for it. The thread never blocks, so this is
    /// a matter of microseconds and fit for async callers.
    fn call<R: Send + 'static>(
        &self,
        work: impl FnOnce(&Rc<Core>) -> R + Send + 'static,
    ) -> Result<R, NetworkError> {
        let (reply, answer) = mpsc::sync_channel(1);
        self.send(move |core| {
            // The receiver waits below.
            let _ = reply.send(work(core));
        })?;
        answer.recv().map_err(|_| NetworkError::Closed)
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        self.commands = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the network's thread panicked");
        }
    }
}

/// Whether `name` is a DNS label (RFC 1123, 2.1).
fn is_name(name: &str) -> bool {
    let ends_well = !name.starts_with('-') && !name.ends_with('-');
    let letters = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    (1..=63).contains(&name.len()) && ends_well && name.bytes().all(letters)
}

/// Leads what a listener accepts into a guest.
async fn accept(core: Rc<Core>, listener: tokio::net::TcpListener, ip: IpAddr, port: u16) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                tokio::task::spawn_local(core.clone().forward(ip, port, stream));
            }
            Err(error) => {
                // Out of file descriptors, most likely: better wait than spin.
                tracing::warn!(%error, "cannot accept a forwarded connection");
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            }
        }
    }
}

fn status(core: &Core) -> NetworkStatus {
    let port = |port: &Rc<port::Port>| PortStatus {
        name: port.name.clone(),
        mac: port.mac,
        ip: port.ip,
        up: port.up.get(),
        configured: port.seen.get().is_some(),
        frames_in: port.counters.frames_in.get(),
        bytes_in: port.counters.bytes_in.get(),
        frames_out: port.counters.frames_out.get(),
        bytes_out: port.counters.bytes_out.get(),
        refused: port.counters.refused.get(),
        dropped: port.counters.dropped.get(),
    };
    NetworkStatus {
        ports: core.ports.borrow().iter().map(port).collect(),
        tcp_flows: core.tcp.len(),
        tcp_opened: core.tcp.opened.get(),
        tcp_refused: core.tcp.refused.get(),
        tcp_evicted: core.tcp.evicted.get(),
        udp_flows: core.udp.len(),
        udp_evicted: core.udp.evicted.get(),
        dns_local: core.dns.local.get(),
        dns_forwarded: core.dns.forwarded.get(),
        dns_failed: core.dns.failed.get(),
        faults: core.links.counts(),
    }
}
