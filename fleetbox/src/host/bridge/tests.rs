//! In network namespaces that each test makes for itself, by running itself again in one. Where
//! that is not possible the test is skipped and says why, unless `FLEETBOX_REQUIRE` is set.

use std::ffi::CString;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use fleetbox_net::{Attachment, Member, NetworkConfig, Subnet, open_tap};
use futures::TryStreamExt;
use nix::fcntl::{OFlag, open};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::Mode;
use nix::unistd::{Pid, Uid, getegid, geteuid, read, setresuid, write};
use rtnetlink::LinkUnspec;

use super::nat::tests::{rules, tables};
use super::record::{BRIDGE_PREFIX, Records};
use super::{BridgeError, host, route};
use crate::error::Error;
use crate::model::names::Name;
use crate::model::network::Network;
use crate::store::Store;
use crate::testing::test_support::{Home, eventually, skip};
use crate::vm::Vm;
use crate::vm::cluster::Cluster;
use crate::vm::fleet::Fleet;

/// Set where a test runs in its namespace.
const INSIDE: &str = "FLEETBOX_TEST_IN_NAMESPACE";

/// Longer than anything takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// Runs `body` in a network namespace that nobody else uses, as its root. `test` is the name of the
/// calling test in this module.
fn in_namespace(test: &str, body: impl FnOnce()) {
    if std::env::var_os(INSIDE).is_some() {
        set_up("lo");
        // The first namespace's value may be inherited.
        set_forwarding("0");
        return body();
    }
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args([
            &format!("host::bridge::tests::{test}"),
            "--exact",
            "--nocapture",
        ])
        .env(INSIDE, "1");
    let root = geteuid().is_root();
    let maps = [
        ("/proc/self/setgroups", "deny".to_owned()),
        ("/proc/self/uid_map", format!("0 {} 1", geteuid())),
        ("/proc/self/gid_map", format!("0 {} 1", getegid())),
    ];
    let maps = maps.map(|(path, text)| (CString::new(path).unwrap(), text));
    let enter = move || {
        if root {
            return Ok(unshare(CloneFlags::CLONE_NEWNET)?);
        }
        unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNET)?;
        for (path, text) in &maps {
            let file = open(path.as_c_str(), OFlag::O_WRONLY, Mode::empty())?;
            write(&file, text.as_bytes())?;
        }
        Ok(())
    };
    // SAFETY: the closure makes system calls only, and allocates nothing.
    unsafe { command.pre_exec(enter) };
    match command.output() {
        Err(error) => skip(format_args!(
            "no network namespace can be made here: {error}"
        )),
        Ok(output) => {
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            let (out, err) = (text(&output.stdout), text(&output.stderr));
            if let Some((_, why)) = out.split_once(LACKING) {
                return skip(why.lines().next().unwrap_or_default());
            }
            assert!(output.status.success(), "{out}\n{err}");
            assert!(out.contains("1 passed"), "{test} is not its name: {out}");
        }
    }
}

/// Stands before the reason why a test cannot run in its namespace.
const LACKING: &str = "the host lacks: ";

/// Whether this namespace can have all that a bridge needs; if not, why not is said.
fn is_able() -> bool {
    let tap = open_tap("probe").map_err(|error| format!("tap devices ({error})"));
    let rules = super::nat::add("fleetbox_probe", "none", subnet("10.1.2.0/24"))
        .and_then(|()| super::nat::remove("fleetbox_probe"))
        .map_err(|error| format!("nf_tables with masquerading ({error})"));
    match tap.map(drop).and(rules) {
        Ok(()) => true,
        Err(why) => {
            println!("{LACKING}{why}");
            false
        }
    }
}

fn set_up(name: &'static str) {
    route::talk(async |handle| {
        let message = LinkUnspec::new_with_name(name).up().build();
        handle.link().set(message).execute().await.unwrap();
        Ok(())
    })
    .unwrap();
}

/// Gives an interface an address.
fn address(name: &'static str, address: &str, prefix: u8) {
    let address: Ipv4Addr = address.parse().unwrap();
    route::talk(async |handle| {
        let mut links = handle.link().get().match_name(name).execute();
        let index = links.try_next().await.unwrap().unwrap().header.index;
        let given = handle.address().add(index, address.into(), prefix);
        given.execute().await.unwrap();
        Ok(())
    })
    .unwrap();
}

/// The world: behind another interface of the host, whose address there is 198.51.100.1. It knows nothing of the guests.
fn world() -> Wire {
    let world = Wire {
        fd: open_tap("world").unwrap(),
        header: 0,
        mac: [2, 0, 0, 0, 1, 1],
        ip: Ipv4Addr::new(198, 51, 100, 2),
    };
    set_up("world");
    address("world", "198.51.100.1", 24);
    world
}

fn links() -> Vec<String> {
    route::talk(async |handle| route::links(handle, "fl").await).unwrap()
}

fn forwarding() -> String {
    let text = std::fs::read_to_string("/proc/sys/net/ipv4/ip_forward").unwrap();
    text.trim().to_owned()
}

fn set_forwarding(value: &str) {
    std::fs::write("/proc/sys/net/ipv4/ip_forward", value).unwrap();
}

fn subnet(text: &str) -> Subnet {
    text.parse().unwrap()
}

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

/// Nothing of ours is on the host.
fn assert_clean() {
    assert_eq!(links(), Vec::<String>::new());
    assert_eq!(tables(), Vec::<String>::new());
    assert_eq!(forwarding(), "0");
}

fn files(home: &Path) -> usize {
    std::fs::read_dir(home.join("bridges")).map_or(0, Iterator::count)
}

fn worker_of(cluster: &str) -> Pid {
    let wanted = format!("fleetbox-worker: {cluster}\0");
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        // Another run of these tests has workers of the same names, in another namespace.
        let namespace = |path: &Path| std::fs::read_link(path.join("ns/net")).ok();
        if line.starts_with(wanted.as_bytes())
            && namespace(&entry.path()) == namespace(Path::new("/proc/self"))
        {
            found.push(entry.file_name().to_str().unwrap().parse().unwrap());
        }
    }
    assert_eq!(found.len(), 1);
    Pid::from_raw(found[0])
}

#[test]
fn a_bridge_is_made_and_removed() {
    in_namespace("a_bridge_is_made_and_removed", || {
        if !is_able() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let cluster = name("web");
        let uplink = host::up(&store, &cluster, subnet("10.200.3.0/24")).unwrap();
        assert_eq!(uplink.router, Ipv4Addr::new(10, 200, 3, 254));

        let record = Records::of(&store).read(&cluster).unwrap().unwrap();
        let mut both = links();
        both.sort();
        assert_eq!(both, [record.bridge.clone(), record.tap.clone()]);
        assert_eq!(tables(), std::slice::from_ref(&record.table));
        assert_eq!(
            rules(&record.table),
            [
                "source payload cmp meta cmp immediate",
                "nat payload cmp meta cmp masq",
                "forward meta cmp immediate",
                "forward meta cmp ct bitwise cmp immediate",
                "forward meta cmp immediate",
            ]
        );
        assert_eq!(forwarding(), "1");
        // A guest's router advertisement finds nobody who listens.
        for name in &both {
            for (setting, value) in [("disable_ipv6", "1"), ("accept_ra", "0")] {
                let path = Path::new("/proc/sys/net/ipv6/conf")
                    .join(name)
                    .join(setting);
                if let Ok(found) = std::fs::read_to_string(&path) {
                    assert_eq!(found.trim(), value, "{}", path.display());
                }
            }
        }
        // The bridge's address is this host's.
        UdpSocket::bind((uplink.router, 0)).unwrap();

        // A second one, whose end does not end the first.
        let other = name("other");
        let second = host::up(&store, &other, subnet("10.200.4.0/24")).unwrap();
        host::down(&store, &other).unwrap();
        drop(second);
        assert_eq!(links().len(), 2);
        assert_eq!(forwarding(), "1");

        host::down(&store, &cluster).unwrap();
        assert_clean();
        assert_eq!(files(dir.path()), 0);
        // Once more is no error, nor is a sweep where nothing is left.
        host::down(&store, &cluster).unwrap();
        host::sweep(&store).unwrap();
    });
}

#[test]
fn a_network_that_the_host_uses_is_not_taken() {
    in_namespace("a_network_that_the_host_uses_is_not_taken", || {
        if !is_able() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let cluster = name("web");
        let first = super::free(&store, &cluster).unwrap();
        super::check(&cluster, first).unwrap();

        let _tap = open_tap("lan").unwrap();
        set_up("lan");
        let taken = Ipv4Addr::from(u32::from(first.network()) + 7);
        address("lan", &taken.to_string(), 26);
        assert_ne!(super::free(&store, &cluster).unwrap(), first);
        let error = host::up(&store, &cluster, first).unwrap_err();
        assert!(matches!(error, BridgeError::Collision { .. }), "{error}");
        assert_clean();
        assert_eq!(files(dir.path()), 0);
    });
}

#[test]
fn ip_forward_is_put_back_by_the_last_of_all_state_directories() {
    in_namespace(
        "ip_forward_is_put_back_by_the_last_of_all_state_directories",
        || {
            if !is_able() {
                return;
            }
            let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
            let stores = dirs.each_ref().map(|dir| Store::open(dir.path()).unwrap());
            let cluster = name("web");
            let first = host::up(&stores[0], &cluster, subnet("10.200.3.0/24")).unwrap();
            let second = host::up(&stores[1], &cluster, subnet("10.200.4.0/24")).unwrap();
            host::down(&stores[0], &cluster).unwrap();
            drop(first);
            assert_eq!(forwarding(), "1", "the second still needs it");
            host::down(&stores[1], &cluster).unwrap();
            drop(second);
            // Whoever changed it puts it back, at its next sweep.
            host::sweep(&stores[0]).unwrap();
            assert_clean();
            assert_eq!(files(dirs[0].path()), 0);

            // Where it was on before, it stays on.
            set_forwarding("1");
            let again = host::up(&stores[0], &cluster, subnet("10.200.3.0/24")).unwrap();
            host::down(&stores[0], &cluster).unwrap();
            drop(again);
            assert_eq!(forwarding(), "1");
        },
    );
}

#[test]
fn what_a_kill_leaves_is_swept() {
    in_namespace("what_a_kill_leaves_is_swept", || {
        if !is_able() {
            return;
        }
        let home = Home::new();
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let vm = |name: &str| home.vm(Vm::builder(name)).network(Network::Bridge);
        runtime.block_on(async {
            // The ordinary end.
            let web = vm("web").detached().start().await.unwrap();
            assert_eq!(links().len(), 2);
            assert_eq!(forwarding(), "1");
            let ip = web.ip();
            web.kill().await.unwrap();
            eventually("the worker takes its bridge along", || links().is_empty());
            eventually("no file is left", || files(&home.path()) == 0);
            assert_clean();

            // Killed, and started again: the old bridge goes, the address stays.
            let web = vm("web").detached().start().await.unwrap();
            assert_eq!(web.ip(), ip);
            let old = bridge();
            kill(worker_of("web"), Signal::SIGKILL).unwrap();
            eventually("the machine has ended", || {
                let cluster = Store::open(home.path()).unwrap().cluster(&name("web"));
                let vm = cluster.vm(&name("web")).unwrap();
                !vm.is_running().unwrap() && !cluster.is_running().unwrap()
            });
            assert_eq!(bridge(), old);
            web.start().await.unwrap();
            assert_ne!(bridge(), old);
            assert_eq!(web.ip(), ip);

            // Killed, and swept by `up` of another VM, with another network.
            kill(worker_of("web"), Signal::SIGKILL).unwrap();
            let cluster = Store::open(home.path()).unwrap().cluster(&name("web"));
            eventually("the worker has ended", || !cluster.is_running().unwrap());
            assert_eq!(forwarding(), "1");
            let other = home.vm(Vm::builder("other")).start().await.unwrap();
            assert_clean();
            assert_eq!(files(&home.path()), 0);
            drop(other);

            // And by `prune`.
            let cluster = home.cluster(Cluster::test()).count(2);
            let cluster = cluster.network(Network::Bridge).start().await.unwrap();
            assert_eq!(links().len(), 2);
            kill(worker_of(cluster.name()), Signal::SIGKILL).unwrap();
            let store = Store::open(home.path()).unwrap();
            let dir = store.cluster(&name(cluster.name()));
            eventually("the worker has ended", || !dir.is_running().unwrap());
            Fleet::at(home.path()).prune().await.unwrap();
            assert_clean();
            assert_eq!(files(&home.path()), 0);
        });
    });
}

/// The bridge there is.
fn bridge() -> String {
    let all = links();
    let mut bridges = all
        .into_iter()
        .filter(|name| name.starts_with(BRIDGE_PREFIX));
    let bridge = bridges.next().unwrap();
    assert_eq!(bridges.next(), None);
    bridge
}

#[test]
fn members_of_a_cluster_share_a_network() {
    in_namespace("members_of_a_cluster_share_a_network", || {
        if !is_able() {
            return;
        }
        let home = Home::new();
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(async {
            let cluster = home.cluster(Cluster::builder("node")).count(2);
            let mut cluster = cluster.network(Network::Bridge).start().await.unwrap();
            let subnet = Subnet::new(cluster.members()[0].ip(), 24).unwrap();
            assert!(subnet.is_guest(cluster.members()[1].ip()));
            assert_ne!(subnet, Subnet::default());

            let error = cluster
                .add("node-3", |vm| home.vm(vm).network(Network::User))
                .await
                .unwrap_err();
            let mixed = matches!(error, Error::Bridge(BridgeError::Mixed { .. }));
            assert!(mixed, "{error}");
            // Who says nothing gets what the others have.
            let third = cluster.add("node-3", |vm| home.vm(vm)).await.unwrap();
            assert!(subnet.is_guest(third.ip()));
            assert_eq!(links().len(), 2);

            // Another cluster gets other addresses.
            let web = home.vm(Vm::builder("web")).network(Network::Bridge);
            let web = web.start().await.unwrap();
            assert!(!subnet.contains(web.ip()));
            assert_eq!(links().len(), 4);
        });
        eventually("all bridges go with their clusters", || links().is_empty());
    });
}

#[test]
fn without_the_capability_it_says_so_and_creates_nothing() {
    let refused = || {
        let home = Home::new();
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let vm = home.vm(Vm::builder("web")).network(Network::Bridge);
        let error = runtime.block_on(vm.start()).unwrap_err();
        assert!(
            matches!(error, Error::Bridge(BridgeError::NotPermitted)),
            "{error}"
        );
        assert!(error.to_string().contains("CAP_NET_ADMIN"), "{error}");
        assert_eq!(home.clusters(), 0);
        assert_eq!(files(&home.path()), 0);
    };
    if host::permitted().is_err() {
        return refused();
    }
    in_namespace(
        "without_the_capability_it_says_so_and_creates_nothing",
        || {
            let nobody = Uid::from_raw(65534);
            if let Err(error) = setresuid(nobody, nobody, nobody) {
                println!("{LACKING}another user to become ({error})");
                return;
            }
            refused();
        },
    );
}

/// An end of a wire with frames, made by hand.
struct Wire {
    fd: OwnedFd,
    /// Bytes of what stands before each frame: zeros say that nothing is left to the network.
    header: usize,
    mac: [u8; 6],
    ip: Ipv4Addr,
}

/// What stands before each frame on a guest's link.
const LINK_HEADER: usize = 12;

const ARP: u16 = 0x0806;
const IPV4: u16 = 0x0800;
const UDP: u8 = 17;

/// A datagram that has arrived.
#[derive(Debug, PartialEq, Eq)]
struct Datagram {
    from: (Ipv4Addr, u16),
    to: (Ipv4Addr, u16),
    payload: Vec<u8>,
}

impl Wire {
    fn frame(&self, to: [u8; 6], kind: u16, body: &[u8]) {
        let mut frame = vec![0; self.header];
        for part in [&to[..], &self.mac, &kind.to_be_bytes(), body] {
            frame.extend(part);
        }
        assert_eq!(write(&self.fd, &frame).unwrap(), frame.len());
    }

    fn arp(&self, operation: u16, to_mac: [u8; 6], to: Ipv4Addr) {
        let fixed = [0, 1, 8, 0, 6, 4];
        let parts: [&[u8]; 6] = [
            &fixed,
            &operation.to_be_bytes(),
            &self.mac,
            &self.ip.octets(),
            &to_mac,
            &to.octets(),
        ];
        let to = if operation == 1 { [0xff; 6] } else { to_mac };
        self.frame(to, ARP, &parts.concat());
    }

    /// The next frame but for questions about this end's address, which are answered.
    fn receive(&self, until: Instant) -> Option<Vec<u8>> {
        loop {
            let left = until.saturating_duration_since(Instant::now()).as_millis();
            let mut fds = [PollFd::new(self.fd.as_fd(), PollFlags::POLLIN)];
            let left = PollTimeout::try_from(left.min(1000)).unwrap();
            poll(&mut fds, left).unwrap();
            let mut frame = vec![0; 2000];
            let Ok(len) = read(&self.fd, &mut frame) else {
                if Instant::now() >= until {
                    return None;
                }
                continue;
            };
            frame.truncate(len);
            frame.drain(..self.header);
            let is_question = frame[12..14] == ARP.to_be_bytes() && frame[20..22] == [0, 1];
            if is_question && frame[38..42] == self.ip.octets() {
                let asker: [u8; 4] = frame[28..32].try_into().unwrap();
                let asker = Ipv4Addr::from(asker);
                self.arp(2, frame[22..28].try_into().unwrap(), asker);
                continue;
            }
            return Some(frame);
        }
    }

    /// The hardware address of a neighbour.
    fn ask(&self, ip: Ipv4Addr) -> [u8; 6] {
        let end = Instant::now() + PATIENCE;
        while Instant::now() < end {
            self.arp(1, [0; 6], ip);
            let next = Instant::now() + Duration::from_millis(300);
            while let Some(frame) = self.receive(next) {
                let is_answer = frame[12..14] == ARP.to_be_bytes() && frame[20..22] == [0, 2];
                if is_answer && frame[28..32] == ip.octets() {
                    return frame[22..28].try_into().unwrap();
                }
            }
        }
        panic!("{ip} does not answer");
    }

    /// Sends a datagram, by the neighbour with the hardware address `by`.
    fn send(&self, by: [u8; 6], from: u16, to: (Ipv4Addr, u16), payload: &[u8]) {
        let len = 8 + payload.len() as u16;
        let mut packet = vec![0x45, 0];
        packet.extend((20 + len).to_be_bytes());
        packet.extend([0, 1, 0, 0, 64, UDP, 0, 0]);
        packet.extend(self.ip.octets());
        packet.extend(to.0.octets());
        let words = packet
            .chunks(2)
            .map(|word| u32::from(word[0]) << 8 | u32::from(word[1]));
        let mut sum: u32 = words.sum();
        sum = (sum & 0xffff) + (sum >> 16);
        packet[10..12].copy_from_slice(&(!(sum as u16)).to_be_bytes());
        for value in [from, to.1, len, 0] {
            packet.extend(value.to_be_bytes());
        }
        packet.extend(payload);
        self.frame(by, IPV4, &packet);
    }

    /// The next datagram to one of `ports`.
    fn datagram(&self, port: impl Fn(u16) -> bool, wait: Duration) -> Option<Datagram> {
        let until = Instant::now() + wait;
        loop {
            let frame = self.receive(until)?;
            if frame[12..14] != IPV4.to_be_bytes() || frame[23] != UDP {
                continue;
            }
            let ip =
                |at: usize| Ipv4Addr::new(frame[at], frame[at + 1], frame[at + 2], frame[at + 3]);
            let number = |at: usize| u16::from_be_bytes([frame[at], frame[at + 1]]);
            let len = usize::from(number(38));
            if port(number(36)) {
                return Some(Datagram {
                    from: (ip(26), number(34)),
                    to: (ip(30), number(36)),
                    payload: frame[42..34 + len].to_vec(),
                });
            }
        }
    }
}

#[test]
fn a_forged_source_does_not_leave_the_bridge() {
    in_namespace("a_forged_source_does_not_leave_the_bridge", || {
        if !is_able() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let uplink = host::up(&store, &name("web"), subnet("10.200.3.0/24")).unwrap();
        // The kernel does not look at sources by itself.
        let bridge = bridge();
        for name in ["all", &bridge] {
            let path = Path::new("/proc/sys/net/ipv4/conf")
                .join(name)
                .join("rp_filter");
            std::fs::write(path, "0").unwrap();
        }
        let world = world();
        // Not through the switch, which would not let it pass.
        let mut guest = Wire {
            fd: uplink.tap,
            header: 0,
            mac: [2, 0, 0, 0, 0, 1],
            ip: Ipv4Addr::new(10, 200, 3, 2),
        };
        let host = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
        host.set_read_timeout(Some(PATIENCE)).unwrap();
        let port = host.local_addr().unwrap().port();
        let own = guest.ip;
        for source in [
            Ipv4Addr::new(192, 0, 2, 66),
            Ipv4Addr::new(10, 200, 4, 2),
            own,
        ] {
            guest.ip = source;
            let what = source.to_string();
            guest.send(uplink.mac, 4000, (world.ip, 53), what.as_bytes());
            guest.send(uplink.mac, 4000, (uplink.router, port), what.as_bytes());
        }
        // The first that arrives is the last that was sent.
        let there = world.datagram(|port| port == 53, PATIENCE).unwrap();
        assert_eq!(there.payload, own.to_string().as_bytes());
        let mut buffer = [0; 100];
        let (len, from) = host.recv_from(&mut buffer).unwrap();
        assert_eq!(from.ip(), own);
        assert_eq!(&buffer[..len], own.to_string().as_bytes());
        drop(guest);
        host::down(&store, &name("web")).unwrap();
    });
}

#[test]
fn guests_reach_the_world_and_the_host_reaches_guests() {
    in_namespace("guests_reach_the_world_and_the_host_reaches_guests", || {
        if !is_able() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let subnet = subnet("10.200.3.0/24");
        let uplink = host::up(&store, &name("web"), subnet).unwrap();
        let router = uplink.router;
        let config = NetworkConfig {
            subnet,
            router: Some(router),
            ..NetworkConfig::default()
        };
        let network = fleetbox_net::Network::start(config).unwrap();
        network.uplink(uplink.tap, uplink.mac, router).unwrap();
        let guest = |number: u8| {
            let mac = [2, 0, 0, 0, 0, number];
            let name = format!("node-{number}");
            let port = Member {
                name,
                mac,
                ip: None,
            };
            let Attachment { link: fd, ip } = network.attach(port).unwrap();
            Wire {
                fd,
                header: LINK_HEADER,
                mac,
                ip,
            }
        };
        let (guest, second) = (guest(1), guest(2));

        let world = world();
        let host_there = Ipv4Addr::new(198, 51, 100, 1);

        assert_eq!(guest.ask(router), uplink.mac);

        // Out, masqueraded, and the answer back.
        guest.send(uplink.mac, 4000, (world.ip, 53), b"question");
        let there = world.datagram(|port| port == 53, PATIENCE).unwrap();
        assert_eq!(there.payload, b"question");
        assert_eq!(there.from.0, host_there);
        let by = world.ask(host_there);
        world.send(by, 53, there.from, b"answer");
        let back = guest.datagram(|port| port == 4000, PATIENCE).unwrap();
        assert_eq!(back.from, (world.ip, 53));
        assert_eq!(back.to, (guest.ip, 4000));
        assert_eq!(back.payload, b"answer");

        // The host reaches the guest by its address, and its own is not masqueraded.
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
        socket.send_to(b"hello", (guest.ip, 7)).unwrap();
        let hello = guest.datagram(|port| port == 7, PATIENCE).unwrap();
        assert_eq!(hello.from.0, router);
        guest.send(uplink.mac, 7, hello.from, b"hello yourself");
        let mut buffer = [0; 100];
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let (len, from) = socket.recv_from(&mut buffer).unwrap();
        assert_eq!(&buffer[..len], b"hello yourself");
        assert_eq!(from, (guest.ip, 7).into());

        // The names of members are answered to the host, too.
        let question = [
            &[0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 6][..],
            b"node-2",
            &[8],
            b"fleetbox",
            &[0, 0, 1, 0, 1],
        ];
        socket
            .send_to(&question.concat(), (subnet.gateway(), 53))
            .unwrap();
        let (len, _) = socket.recv_from(&mut buffer).unwrap();
        assert_eq!(buffer[len - 4..len], second.ip.octets());

        // The world does not reach a guest that has not asked it, however it is routed.
        world.send(by, 53, (guest.ip, 9), b"intrusion");
        // What comes after it arrives, so it is not merely late.
        socket.send_to(b"last", (guest.ip, 9)).unwrap();
        let first = guest.datagram(|port| port == 9, PATIENCE).unwrap();
        assert_eq!(first.payload, b"last");
        assert_eq!(world.datagram(|port| port == 7, Duration::ZERO), None);

        drop(network);
        host::down(&store, &name("web")).unwrap();
        eventually("the world is all that is left", || links().is_empty());
        assert_clean();
    });
}
