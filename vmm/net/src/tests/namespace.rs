//! Network namespaces that a test makes for itself, by running itself again in one. Where that is not
//! possible the test is skipped and says why, unless `FLEETBOX_REQUIRE` is set.

use std::ffi::CString;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::fcntl::{OFlag, open};
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::Mode;
use nix::unistd::{getegid, geteuid, write};

/// Set where a test runs in its namespace.
const INSIDE: &str = "FLEETBOX_TEST_IN_NAMESPACE";
const REQUIRE: &str = "FLEETBOX_REQUIRE";

/// Runs `body` in a network namespace of its own, as its root. `test` is the path of the calling test
/// in the module `tests`.
pub(super) fn in_namespace(test: &str, body: impl FnOnce()) {
    if std::env::var_os(INSIDE).is_some() {
        configure("lo", libc::SIOCSIFFLAGS, |request| {
            request.ifr_ifru.ifru_flags = libc::IFF_UP as libc::c_short;
        });
        return body();
    }
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args([&format!("tests::{test}"), "--exact", "--nocapture"])
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
        Err(error) => {
            let why = format!("no network namespace can be made here: {error}");
            let is_on = |value: String| {
                !matches!(
                    value.trim().to_ascii_lowercase().as_str(),
                    "" | "0" | "false"
                )
            };
            assert!(
                !std::env::var(REQUIRE).is_ok_and(is_on),
                "{REQUIRE} is set, and {test} cannot run: {why}"
            );
            println!("{test} is skipped: {why}");
        }
        Ok(output) => {
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            let (out, err) = (text(&output.stdout), text(&output.stderr));
            assert!(output.status.success(), "{out}\n{err}");
            assert!(out.contains("1 passed"), "{test} is not its name: {out}");
        }
    }
}

/// Gives the loopback of this namespace address number `number`.
pub(super) fn add_address(number: u8, address: Ipv4Addr) {
    configure(&format!("lo:{number}"), libc::SIOCSIFADDR, |request| {
        let mut data = [0; 14];
        for (to, from) in data[2..].iter_mut().zip(address.octets()) {
            *to = from as libc::c_char;
        }
        request.ifr_ifru.ifru_addr = libc::sockaddr {
            sa_family: libc::AF_INET as libc::sa_family_t,
            sa_data: data,
        };
    });
}

fn configure(interface: &str, change: libc::Ioctl, set: impl FnOnce(&mut libc::ifreq)) {
    // SAFETY: `ifreq` is plain data, for which zero bytes are a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(interface.bytes()) {
        *to = from as libc::c_char;
    }
    set(&mut request);
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    // SAFETY: the descriptor is open, and the request is a whole `ifreq` that the kernel reads
    // during the call only.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), change, &raw const request) };
    let error = std::io::Error::last_os_error();
    assert_eq!(result, 0, "cannot configure {interface}: {error}");
}
