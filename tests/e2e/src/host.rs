//! What cases do to and ask of the host: processes, programs, addresses, a DNS server.

use std::fmt::Write as _;
use std::io::{self, Read};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::report::Must;

/// What appears on a terminal or console, as it comes.
pub(crate) struct Screen {
    pieces: mpsc::Receiver<Vec<u8>>,
    seen: String,
    deadline: Instant,
}

impl Screen {
    /// Reads on a thread until the other end closes; all that is waited for has to come within `limit`.
    pub(crate) fn read(mut from: impl Read + Send + 'static, limit: Duration) -> Self {
        let (sender, pieces) = mpsc::channel();
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            // Reading fails when the last process has closed a terminal.
            while let Ok(n @ 1..) = from.read(&mut buffer) {
                if sender.send(buffer[..n].to_vec()).is_err() {
                    return;
                }
            }
        });
        Self {
            pieces,
            seen: String::new(),
            deadline: Instant::now() + limit,
        }
    }

    /// Waits until `wanted` has appeared. The error says what has instead.
    pub(crate) fn wait_for(&mut self, wanted: &str) -> Result<(), String> {
        while !self.seen.contains(wanted) {
            let left = self.deadline.saturating_duration_since(Instant::now());
            match self.pieces.recv_timeout(left) {
                Ok(bytes) => self.seen.push_str(&String::from_utf8_lossy(&bytes)),
                Err(_) => return Err(format!("no {wanted:?}, only {:?}", self.seen)),
            }
        }
        Ok(())
    }
}

/// Tries until it succeeds; the last failure at the deadline.
pub(crate) fn within<T>(
    limit: Duration,
    mut attempt: impl FnMut() -> Result<T, String>,
) -> Result<T, String> {
    let deadline = Instant::now() + limit;
    loop {
        match attempt() {
            Ok(value) => return Ok(value),
            Err(why) if Instant::now() > deadline => {
                return Err(format!("not within {} s: {why}", limit.as_secs()));
            }
            Err(_) => thread::sleep(Duration::from_millis(100)),
        }
    }
}

/// One of the project's programs: beside this one, or in `PATH`.
pub(crate) fn program(name: &str) -> PathBuf {
    let beside = std::env::current_exe()
        .ok()
        .and_then(|exe| exe.parent().map(|dir| dir.join(name)));
    let path = std::env::var_os("PATH").unwrap_or_default();
    beside
        .into_iter()
        .chain(std::env::split_paths(&path).map(|dir| dir.join(name)))
        .find(|path| path.is_file())
        .unwrap_or_else(|| panic!("there is no {name} beside this program or in PATH: build it"))
}

/// Runs a command without input, for at most `limit`, and returns what it wrote.
pub(crate) fn run(mut command: Command, limit: Duration) -> Output {
    let text = format!("{command:?}");
    let child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    finish(child.must(&text), limit, &text)
}

/// Waits for a child with piped output, for at most `limit`.
pub(crate) fn finish(child: std::process::Child, limit: Duration, text: &str) -> Output {
    let pid = pid_of(&child);
    let (sender, receiver) = std::sync::mpsc::channel();
    let waiting = thread::spawn(move || {
        let output = child.wait_with_output();
        // Without a receiver nobody waits any more.
        let _ = sender.send(());
        output
    });
    let late = receiver.recv_timeout(limit).is_err();
    if late {
        // It may have ended this moment; then there is nothing to kill.
        let _ = kill(pid, Signal::SIGKILL);
    }
    let output = match waiting.join() {
        Ok(output) => output.must(text),
        Err(_) => panic!("{text}: the thread that waits for it panicked"),
    };
    assert!(
        !late,
        "{text} did not end within {} s; it wrote {}",
        limit.as_secs(),
        both(&output)
    );
    output
}

/// The process id of a child.
pub(crate) fn pid_of(child: &std::process::Child) -> Pid {
    Pid::from_raw(i32::try_from(child.id()).unwrap_or(i32::MAX))
}

/// Both outputs of a command, for a message.
pub(crate) fn both(output: &Output) -> String {
    let mut text = format!("{:?}", String::from_utf8_lossy(&output.stdout));
    // Writing to a string does not fail.
    let _ = write!(text, " and {:?}", String::from_utf8_lossy(&output.stderr));
    text
}

/// The processes of a VM in a role (`worker` or `machine`).
pub(crate) fn processes(role: &str, vm: &str) -> Vec<Pid> {
    let wanted = format!("fleetbox-{role}: {vm}");
    let entries = std::fs::read_dir("/proc").must("cannot read /proc");
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid: &i32| {
            std::fs::read(format!("/proc/{pid}/cmdline"))
                .is_ok_and(|line| line.split(|b| *b == 0).next() == Some(wanted.as_bytes()))
        })
        .map(Pid::from_raw)
        .collect()
}

/// The only process of a VM in a role.
pub(crate) fn process(role: &str, vm: &str) -> Pid {
    let found = processes(role, vm);
    assert_eq!(found.len(), 1, "{vm} has {} {role} processes", found.len());
    found[0]
}

/// Kills without notice.
pub(crate) fn kill_now(pid: Pid) {
    kill(pid, Signal::SIGKILL).must("cannot kill");
}

/// Fails unless, soon, no process of the VM is left, nobody holds a lock of its, and its socket is gone where
/// `socket_too` says that its worker had the time to remove it.
pub(crate) fn assert_quiet(vm_dir: &Path, vm: &str, socket_too: bool) {
    let cluster = vm_dir.parent().unwrap_or(vm_dir);
    within(Duration::from_secs(30), || {
        for role in ["worker", "machine"] {
            let left = processes(role, vm);
            if !left.is_empty() {
                return Err(format!("{role} processes {left:?} are left"));
            }
        }
        for lock in [cluster.join("worker.lock"), vm_dir.join("lock")] {
            if is_locked(&lock).must("cannot look at a lock") {
                return Err(format!("{} is locked", lock.display()));
            }
        }
        if socket_too && cluster.join("worker.sock").exists() {
            return Err("the socket is left".to_owned());
        }
        Ok(())
    })
    .must(vm);
}

/// Whether a process holds a lock on a file; false if there is none.
fn is_locked(path: &Path) -> io::Result<bool> {
    use nix::fcntl::{Flock, FlockArg};
    let file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    match Flock::lock(file, FlockArg::LockSharedNonblock) {
        Ok(_) => Ok(false),
        Err((_, nix::errno::Errno::EWOULDBLOCK)) => Ok(true),
        Err((_, error)) => Err(error.into()),
    }
}

/// An address of this host that is not loopback.
pub(crate) fn outer_address() -> IpAddr {
    // Connecting a datagram socket only chooses a route: nothing is sent.
    let address = UdpSocket::bind("0.0.0.0:0")
        .and_then(|socket| {
            socket.connect("198.51.100.1:9")?;
            socket.local_addr()
        })
        .must("this host has no address but loopback");
    address.ip()
}

/// Whether this is the emulated host, whose every file is the suite's to change.
pub(crate) fn is_emulated() -> bool {
    std::env::var_os("FLEETBOX_EMULATED_HOST").is_some()
}

/// A DNS server that answers every question for an IPv4 address with `answer`, for as long as this process runs.
pub(crate) fn start_dns(at: SocketAddr, answer: [u8; 4]) {
    let socket = UdpSocket::bind(at).must("cannot listen for DNS questions");
    thread::spawn(move || {
        let mut buffer = [0; 512];
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            if let Some(reply) = dns_reply(&buffer[..length], answer) {
                // A client that is gone asks no more.
                let _ = socket.send_to(&reply, from);
            }
        }
    });
}

/// The answer to a query with one question (RFC 1035, section 4.1): an A record, or none to other questions.
fn dns_reply(query: &[u8], answer: [u8; 4]) -> Option<Vec<u8>> {
    let mut end = 12;
    loop {
        let length = usize::from(*query.get(end)?);
        end += 1 + length;
        if length == 0 {
            break;
        }
    }
    let kind = u16::from_be_bytes([*query.get(end)?, *query.get(end + 1)?]);
    let mut reply = query.get(..end + 4)?.to_vec();
    reply[2] = 0x81;
    reply[3] = 0x80;
    // One question, as many answers as there are addresses, nothing else.
    reply[4..12].copy_from_slice(&[0, 1, 0, u8::from(kind == 1), 0, 0, 0, 0]);
    if kind == 1 {
        reply.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
        reply.extend(answer);
    }
    Some(reply)
}
