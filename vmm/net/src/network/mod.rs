//! The handle on a network, and its thread.

mod faults;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;

use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio::sync::oneshot;
use tokio::task::LocalSet;

use crate::config::NetworkConfig;
use crate::error::{ConnectError, NetworkError};
use crate::frame::{GATEWAY_MAC, show};
use crate::name::is_label;
use crate::port::{Joining, new_link};
use crate::status::NetworkStatus;
use crate::stream::GuestStream;
use crate::switch::{Switch, pump};
use crate::tcp::TcpFlows;

/// A new member of a network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
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

/// Work for the network's thread.
type Command = Box<dyn FnOnce(&Rc<Switch>) + Send>;

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
        let labels_are_names = config.domain.split('.').all(is_label);
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
                        let switch = Rc::new(Switch::new(config));
                        tokio::task::spawn_local(pump(switch.clone()));
                        while let Some(command) = queue.recv().await {
                            command(&switch);
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
    /// # use fleetbox_net::{Member, Network, NetworkConfig, NetworkError};
    /// # fn main() -> Result<(), NetworkError> {
    /// let network = Network::start(NetworkConfig::default())?;
    /// let db = network.attach(Member { name: "db".into(), mac: [2, 0, 0, 0, 0, 1], ip: None })?;
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
    pub fn attach(&self, member: Member) -> Result<Attachment, NetworkError> {
        let Member { name, mac, ip } = member;
        if !is_label(&name) {
            return Err(NetworkError::Name(name));
        }
        self.check_addresses(mac, ip)?;
        let (ours, link) = new_link().map_err(|source| NetworkError::Host {
            what: "create the member's link",
            source,
        })?;
        let joining = Joining {
            name,
            mac,
            ip,
            uplink: false,
        };
        let ip = self.call(move |switch| switch.attach(joining, ours))??;
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
        self.call(move |switch| switch.attach(joining, tap))??;
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
            return Err(refuse("MAC address", show(mac)));
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
        self.call(move |switch| switch.detach(&name))?
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
        if !is_label(name) {
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
        self.call(move |switch| switch.members.register(name, ip))
    }

    /// Undoes [`Self::register_name`]; false if the name was not registered.
    ///
    /// # Errors
    /// The network has ended.
    pub fn unregister_name(&self, name: &str) -> Result<bool, NetworkError> {
        let name = name.to_ascii_lowercase();
        self.call(move |switch| switch.members.unregister(&name))
    }

    /// Connects to a port of a guest. Waits for a guest that is still booting as long as
    /// [`Limits::guest_timeout`]; dropping the future gives up.
    ///
    /// # Errors
    /// See [`ConnectError`], which tells a closed port from a guest that is not there.
    pub async fn connect(&self, ip: IpAddr, port: u16) -> Result<GuestStream, ConnectError> {
        let (reply, answer) = oneshot::channel();
        let sent = self.send(move |switch| {
            let tcp = switch.gateway.tcp.clone();
            tokio::task::spawn_local(async move {
                let mut reply = reply;
                tokio::select! {
                    biased;
                    () = reply.closed() => {}
                    result = tcp.connect(ip, port) => {
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
        self.call(move |switch| {
            match ip {
                IpAddr::V4(ip) if switch.members.at(ip).is_some() => {}
                _ => return Err(NetworkError::NoMember(ip.to_string())),
            }
            let listener = tokio::net::TcpListener::from_std(listener)
                .map_err(host("listen on the loopback"))?;
            let accept = accept(switch.gateway.tcp.clone(), listener, ip, guest_port);
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

    /// What the network is doing now.
    ///
    /// # Errors
    /// Its thread has ended.
    pub fn status(&self) -> Result<NetworkStatus, NetworkError> {
        self.call(|switch| switch.status())
    }

    fn send(&self, command: impl FnOnce(&Rc<Switch>) + Send + 'static) -> Result<(), NetworkError> {
        let commands = self.commands.as_ref().ok_or(NetworkError::Closed)?;
        let sent = commands.send(Box::new(command));
        sent.map_err(|_| NetworkError::Closed)
    }

    /// Runs `work` on the network's thread and waits for it. The thread never blocks, so this is
    /// a matter of microseconds and fit for async callers.
    fn call<R: Send + 'static>(
        &self,
        work: impl FnOnce(&Rc<Switch>) -> R + Send + 'static,
    ) -> Result<R, NetworkError> {
        let (reply, answer) = mpsc::sync_channel(1);
        self.send(move |switch| {
            // The receiver waits below.
            let _ = reply.send(work(switch));
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

/// Leads what a listener accepts into a guest.
async fn accept(tcp: Rc<TcpFlows>, listener: tokio::net::TcpListener, ip: IpAddr, port: u16) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                tokio::task::spawn_local(tcp.clone().forward(ip, port, stream));
            }
            Err(error) => {
                // Out of file descriptors, most likely: better wait than spin.
                tracing::warn!(%error, "cannot accept a forwarded connection");
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            }
        }
    }
}
