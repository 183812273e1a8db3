//! The handle of a network, and its thread.

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
use crate::port::{NewPort, new_link};
use crate::status::NetworkStatus;
use crate::stream::GuestStream;
use crate::switch::{Switch, pump};
use crate::tcp::TcpFlows;

/// A new member of a network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// The name by which other members find it: a single DNS label.
    pub name: String,
    /// The hardware address of its NIC.
    pub mac: [u8; 6],
    /// Its address, or `None` to let the network choose. A member that joins again under the same name gets the same
    /// address.
    pub ip: Option<Ipv4Addr>,
}

/// A member's side of its link.
#[derive(Debug)]
pub struct Attachment {
    /// The guest's end: an `AF_UNIX` `SOCK_SEQPACKET` socket, non-blocking and close-on-exec.
    /// It carries one [`fleetbox_packet::Packet`] at a time: a header of 12 bytes, and an Ethernet
    /// frame of at most 1518 bytes without preamble or FCS, or a TCP packet of at most 65549 bytes,
    /// counted from its Ethernet header.
    pub link: OwnedFd,
    /// The address that DHCP gives the member.
    pub ip: Ipv4Addr,
}

/// An address on the host's loopback that is forwarded to a port of a guest, until this is dropped. Existing
/// connections stay open.
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
    /// The domain is not a DNS name, or the host has no threads or file descriptors left.
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

    /// The configuration of the network.
    pub fn config(&self) -> &NetworkConfig {
        &self.config
    }

    /// Adds a member. It replaces a member of the same name whose link has closed.
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
    /// The name is not a DNS label, the addresses are invalid for a guest or belong to another member, or the network
    /// is full.
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
        let new = NewPort {
            name,
            mac,
            ip,
            uplink: false,
        };
        let ip = self.call(move |switch| switch.attach(new, ours))??;
        Ok(Attachment { link, ip })
    }

    /// Joins the switch to a network of the host through a tap device. The tap also gets broadcasts, and frames for
    /// addresses that no member has. Frames from the tap go to members. A network has at most one uplink. For link
    /// faults it counts as [`LinkEnd::Gateway`](crate::LinkEnd::Gateway).
    ///
    /// `tap` is an open, non-blocking tap of bare frames (`IFF_TAP` and `IFF_NO_PI`, without `IFF_VNET_HDR`) of at most
    /// 1518 bytes; [`open_tap`](crate::open_tap) opens one. `mac` and `ip` belong to the router behind it, and no
    /// member can take them. [`NetworkConfig::router`] announces the router to guests. Other machines may be behind the
    /// tap as well. The gateway answers their DNS questions, but gives addresses to members only.
    ///
    /// # Errors
    /// The addresses are invalid for a router in this network or belong to a member, there is already an uplink, or the
    /// host has no descriptors left.
    pub fn uplink(&self, tap: OwnedFd, mac: [u8; 6], ip: Ipv4Addr) -> Result<(), NetworkError> {
        self.check_addresses(mac, Some(ip))?;
        let new = NewPort {
            name: "uplink".to_owned(),
            mac,
            ip: Some(ip),
            uplink: true,
        };
        self.call(move |switch| switch.attach(new, tap))??;
        Ok(())
    }

    /// Refuses addresses that are reserved for the gateway or invalid.
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

    /// Removes a member. Its link closes, and its connections are reset.
    ///
    /// # Errors
    /// The network has no such member.
    pub fn detach(&self, name: &str) -> Result<(), NetworkError> {
        let name = name.to_owned();
        self.call(move |switch| switch.detach(&name))?
    }

    /// Makes the gateway's DNS answer `name` and `NAME.DOMAIN` with `ip`, in any letter case, whether or
    /// not a member of that name is attached. It replaces an earlier address of the name. The names of
    /// attached members come first. The network does not assign this address to a member with another name.
    ///
    /// No member can use the address but one that is attached with it, so it stays free while its member is stopped.
    ///
    /// Attached members do not need this. It is for stopped members, and for additional names of a member.
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
    /// The name is not a DNS label, or a guest cannot have the address.
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

    /// Undoes [`Self::register_name`]. Returns false if the name was not registered.
    ///
    /// # Errors
    /// The network has ended.
    pub fn unregister_name(&self, name: &str) -> Result<bool, NetworkError> {
        let name = name.to_ascii_lowercase();
        self.call(move |switch| switch.members.unregister(&name))
    }

    /// Connects to a port of a guest. Waits up to [`Limits::guest_timeout`](crate::Limits::guest_timeout)
    /// for a guest that is still booting. Drop the future to give up.
    ///
    /// # Errors
    /// [`ConnectError`] distinguishes a closed port from a guest that does not answer.
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
                        // The caller may have given up just now.
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

    /// Forwards a port on the host's loopback to a port of a guest. The guest need not be up yet. A connection that the
    /// guest refuses is reset.
    ///
    /// # Errors
    /// No member has the address, or the host has no port or file descriptors left.
    pub fn forward(&self, ip: IpAddr, guest_port: u16) -> Result<Forward, NetworkError> {
        self.forward_from(0, ip, guest_port)
    }

    /// Like [`Self::forward`], but the caller chooses the port; 0 means any free port.
    ///
    /// # Errors
    /// See [`Self::forward`]; or the port is in use, or this user may not use it.
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

    /// The current status of the network.
    ///
    /// # Errors
    /// The network has ended.
    pub fn status(&self) -> Result<NetworkStatus, NetworkError> {
        self.call(|switch| switch.status())
    }

    fn send(&self, command: impl FnOnce(&Rc<Switch>) + Send + 'static) -> Result<(), NetworkError> {
        let commands = self.commands.as_ref().ok_or(NetworkError::Closed)?;
        let sent = commands.send(Box::new(command));
        sent.map_err(|_| NetworkError::Closed)
    }

    /// Runs `work` on the network's thread and waits for it. The thread never blocks, so this takes
    /// microseconds and suits async callers.
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

/// Forwards the connections of a listener to a guest.
async fn accept(tcp: Rc<TcpFlows>, listener: tokio::net::TcpListener, ip: IpAddr, port: u16) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                tokio::task::spawn_local(tcp.clone().forward(ip, port, stream));
            }
            Err(error) => {
                // Probably out of file descriptors: wait, do not spin.
                tracing::warn!(%error, "cannot accept a forwarded connection");
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            }
        }
    }
}
