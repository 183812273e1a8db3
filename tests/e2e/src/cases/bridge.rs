//! The network that is joined to the host's.

use std::io::Read;
use std::net::TcpStream;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use fleetbox::{BridgeError, Error, Network, Vm};

use super::cli::{QUICK, run};
use super::network::Echo;
use crate::host;
use crate::report::Must;
use crate::suite::Suite;

/// How long the worker may take to end, and with it what it has on the host.
const PATIENCE: Duration = Duration::from_secs(60);

/// The interfaces of this host that are fleetbox's.
fn interfaces() -> Vec<String> {
    std::fs::read_dir("/sys/class/net")
        .must("cannot list the interfaces")
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| name.starts_with("flbr") || name.starts_with("fltp"))
        .collect()
}

fn forwards() -> String {
    std::fs::read_to_string("/proc/sys/net/ipv4/ip_forward").must("cannot read ip_forward")
}

/// A guest on a bridge is reached by its address, reaches the host by its router, and leaves nothing behind. Whoever
/// is not root is told so.
pub(crate) fn joined_to_the_host(suite: &Suite) {
    let before = forwards();
    let vm = match suite.block(suite.small(Vm::test()).network(Network::Bridge).start()) {
        Err(Error::Bridge(BridgeError::NotPermitted)) => {
            println!("not root: only that it is refused was tested");
            return;
        }
        started => started.must("cannot start the VM"),
    };
    assert_eq!(interfaces().len(), 2);
    assert_eq!(forwards().trim(), "1");
    // SSH was by the worker; this is not.
    let mut stream =
        TcpStream::connect((vm.ip(), 22)).must("cannot connect to the guest's address");
    let mut banner = [0; 4];
    stream
        .read_exact(&mut banner)
        .must("the guest says nothing");
    assert_eq!(&banner, b"SSH-");
    let [a, b, c, _] = vm.ip().octets();
    let route = suite.sh(&vm, "ip route show default");
    assert!(route.contains(&format!("via {a}.{b}.{c}.254 ")), "{route}");
    let echo = Echo::start();
    assert_eq!(echo.asked_by(suite, &vm), echo.answer());
    refused_without_the_right(suite);
    // The tap goes with a killed worker, the rest with the next command.
    host::kill_now(host::process("worker", vm.name()));
    host::within(PATIENCE, || match interfaces().len() {
        1 => Ok(()),
        n => Err(format!("{n} interfaces")),
    })
    .must("after the worker's end");
    run(suite, &["down", vm.name()], 0, QUICK);
    drop((stream, vm));
    let deadline = Instant::now() + PATIENCE;
    while !interfaces().is_empty() || forwards() != before {
        assert!(Instant::now() < deadline, "{:?} are left", interfaces());
        thread::sleep(Duration::from_millis(100));
    }
}

/// Who may not is told what to type.
fn refused_without_the_right(suite: &Suite) {
    let image = suite.tiny();
    let up = suite.fleetbox(&["up", "refused", "--image", &image, "--network", "bridge"]);
    let mut command = Command::new("setpriv");
    command
        .arg("--bounding-set=-net_admin")
        .arg(up.get_program());
    command.args(up.get_args());
    let output = host::run(command, QUICK);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(
        said.contains("sudo ") && said.contains("up refused") && said.contains("--network bridge"),
        "{said}"
    );
    assert!(!suite.vm_dir("refused").exists());
}
