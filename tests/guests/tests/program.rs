//! `fleetbox-vmm` and the readers of what it writes, with payloads on this host's KVM.
//!
//! The program is found through FLEETBOX_VMM, the payloads through FLEETBOX_GUESTS, a directory
//! (`cargo xtask test` builds them and sets both).

use std::io::Read;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// What the pipe of its output holds: few bytes, for a payload does not say many in a second where
/// KVM is software.
const PIPE: i32 = 4096;
/// Lines that a payload says, of eight bytes each.
const LINES: usize = 3000;
/// How long a machine may take to its end, once it is to end.
const PROMPTLY: Duration = Duration::from_secs(15);
const LIMIT: Duration = Duration::from_secs(60);

fn variable(name: &str) -> PathBuf {
    let value = std::env::var_os(name);
    value
        .unwrap_or_else(|| panic!("{name} is not set: run `cargo xtask test guests`"))
        .into()
}

/// Runs a case, whose output only the caller reads.
fn run(case: &str, options: &[&str]) -> Program {
    let child = Command::new(variable("FLEETBOX_VMM"))
        .args(["run", "--memory", "64M", "--cmdline", case, "--kernel"])
        .arg(variable("FLEETBOX_GUESTS").join("suite"))
        .args(options)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("fleetbox-vmm starts");
    let out = child.stdout.as_ref().unwrap();
    fcntl(out, FcntlArg::F_SETPIPE_SZ(PIPE)).unwrap();
    Program(child)
}

/// The case that says [`LINES`] lines.
fn talk() -> String {
    format!("talk {LINES}")
}

struct Program(Child);

impl Program {
    /// Waits until nothing more comes into the pipe of its output.
    fn fill(&self) {
        let out = self.0.stdout.as_ref().unwrap().as_raw_fd();
        let end = Instant::now() + LIMIT;
        let mut before = 0;
        loop {
            let mut waiting: i32 = 0;
            // SAFETY: FIONREAD writes an int.
            let result = unsafe { nix::libc::ioctl(out, nix::libc::FIONREAD, &mut waiting) };
            assert_eq!(result, 0);
            if waiting > 0 && waiting == before {
                return;
            }
            before = waiting;
            assert!(Instant::now() < end, "{waiting} bytes");
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    fn terminate(&self) {
        let pid = Pid::from_raw(self.0.id() as i32);
        kill(pid, Signal::SIGTERM).unwrap();
    }

    /// Waits for its end, `each` being done every moment until then.
    fn end(&mut self, limit: Duration, each: impl Fn(&Self)) -> ExitStatus {
        let end = Instant::now() + limit;
        loop {
            if let Some(status) = self.0.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < end, "fleetbox-vmm does not end");
            each(self);
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn errors(&mut self) -> String {
        let mut text = String::new();
        let errors = self.0.stderr.as_mut().unwrap();
        errors.read_to_string(&mut text).unwrap();
        text
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_guest_is_told_that_it_was_paused() {
    let mut program = run("kvmclock", &[]);
    program.fill();
    // The guest runs for longer than it takes to notice a pause, and is told of none.
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(program.0.try_wait().unwrap(), None);
    let pid = Pid::from_raw(program.0.id() as i32);
    kill(pid, Signal::SIGSTOP).unwrap();
    std::thread::sleep(Duration::from_secs(7));
    kill(pid, Signal::SIGCONT).unwrap();
    let status = program.end(PROMPTLY, |_| ());
    assert_eq!(status.code(), Some(0), "{}", program.errors());
    let mut text = String::new();
    let out = program.0.stdout.as_mut().unwrap();
    out.read_to_string(&mut text).unwrap();
    assert_eq!(text, "READY\nPASSED kvmclock\n");
}

#[test]
fn a_kill_ends_a_guest_whose_output_is_not_read() {
    // Events go the same way, and so do diagnostics.
    let mut program = run("talk", &["--events", "-"]);
    program.fill();
    let status = program.end(PROMPTLY, Program::terminate);
    assert_eq!(status.code(), Some(143), "{}", program.errors());
    let errors = program.errors();
    assert!(errors.contains("were not read"), "{errors}");
}

#[test]
fn a_guest_whose_output_is_not_read_powers_off() {
    let mut program = run(&talk(), &[]);
    program.fill();
    let status = program.end(LIMIT, |_| ());
    assert_eq!(status.code(), Some(0), "{}", program.errors());
    // The pipe has a part of it.
    let errors = program.errors();
    let unread: usize = errors
        .split_whitespace()
        .nth(1)
        .and_then(|number| number.parse().ok())
        .unwrap_or_else(|| panic!("{errors}"));
    let mut read = Vec::new();
    let out = program.0.stdout.as_mut().unwrap();
    out.read_to_end(&mut read).unwrap();
    assert_eq!(read.len() + unread, LINES * 8 + "PASSED talk\n".len());
}

#[test]
fn a_reader_that_is_late_and_slow_gets_everything() {
    let mut program = run(&talk(), &[]);
    program.fill();
    let mut read = Vec::new();
    let mut buffer = [0; 1000];
    loop {
        let out = program.0.stdout.as_mut().unwrap();
        match out.read(&mut buffer).unwrap() {
            0 => break,
            len => read.extend_from_slice(&buffer[..len]),
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let expected: String = (0..LINES).map(|number| format!("{number:07}\n")).collect();
    assert_eq!(
        String::from_utf8_lossy(&read),
        expected + "PASSED talk\n",
        "{}",
        program.errors()
    );
    assert_eq!(program.end(LIMIT, |_| ()).code(), Some(0));
    assert_eq!(program.errors(), "");
}

#[test]
fn a_reader_that_went_away_does_not_stop_the_guest() {
    let mut program = run(&talk(), &[]);
    program.fill();
    drop(program.0.stdout.take());
    assert_eq!(program.end(LIMIT, |_| ()).code(), Some(0));
    assert_eq!(program.errors(), "");
}
