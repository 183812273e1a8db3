//! How this executable becomes a worker or a machine process.
//!
//! A constructor runs before `main` (and before a test harness) and looks for one private environment variable,
//! `FLEETBOX_PROCESS=ROLE:FD,FD…`. If it is set, the process takes the role, keeps only the listed file descriptors,
//! and never reaches `main`. So every program that links this crate is its own helper, and nothing needs to be
//! installed.

use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::signal::{SigHandler, Signal, signal};

use super::spawn::Role;

/// The variable: the role and the inherited file descriptors.
pub(crate) const VARIABLE: &str = "FLEETBOX_PROCESS";

static LINKED: AtomicBool = AtomicBool::new(false);

/// True if the constructor ran, which means that this executable can take a role.
pub(crate) fn is_linked() -> bool {
    LINKED.load(Ordering::Relaxed)
}

// Not the attribute of the same name, which needs a procedural macro.
ctor::declarative::ctor! {
    #[ctor(unsafe)]
    fn constructor() {
        enter();
    }
}

fn enter() {
    LINKED.store(true, Ordering::Relaxed);
    let Some(value) = std::env::var_os(VARIABLE) else {
        return;
    };
    // SAFETY: constructors run on the only thread, before `main`.
    unsafe { std::env::remove_var(VARIABLE) };
    let status = match value.to_str().and_then(parse) {
        Some((role, fds)) => {
            std::panic::catch_unwind(|| run(role, &fds)).unwrap_or(exit_status::PANIC)
        }
        None => exit_status::USAGE,
    };
    // SAFETY: ends the process at once. Destructors and exit handlers of the program that this
    // is a copy of must not run: its `main` never did.
    unsafe { libc::_exit(status) }
}

/// Exit statuses of worker and machine processes.
pub(crate) mod exit_status {
    /// Ended normally.
    pub(crate) const OK: i32 = 0;
    /// Failed; the reason was reported over the control socket.
    pub(crate) const FAILED: i32 = 1;
    /// The environment variable or a file descriptor is wrong.
    pub(crate) const USAGE: i32 = 64;
    /// A bug: panicked.
    pub(crate) const PANIC: i32 = 70;
    /// The parent of this process is gone.
    pub(crate) const ORPHANED: i32 = 75;
}

/// Parses the variable's value into the role and the descriptors. Each descriptor may be named only once, because it
/// gets one owner.
fn parse(value: &str) -> Option<(Role, Vec<RawFd>)> {
    let (role, numbers) = value.split_once(':')?;
    let mut fds = Vec::new();
    for number in numbers.split(',') {
        let fd = number.parse().ok().filter(|fd| *fd > 2)?;
        if fds.contains(&fd) {
            return None;
        }
        fds.push(fd);
    }
    Some((Role::from_name(role)?, fds))
}

fn run(role: Role, fds: &[RawFd]) -> i32 {
    // The Rust runtime does this before `main`, which this process never reaches: a peer that
    // is gone has to be an error, not a signal.
    // SAFETY: no handler is installed.
    if unsafe { signal(Signal::SIGPIPE, SigHandler::SigIgn) }.is_err() {
        return exit_status::FAILED;
    }
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o077));
    close_others(fds);
    let mut owned = Vec::new();
    for &fd in fds {
        // SAFETY: only asks whether the number is an open descriptor.
        if unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) } == -1 {
            return exit_status::USAGE;
        }
        // SAFETY: it is open, it is in the list once, and nothing else in this process, which has just
        // begun, owns it.
        owned.push(unsafe { OwnedFd::from_raw_fd(fd) });
    }
    super::log::start();
    match role {
        Role::Worker => super::worker::main(owned),
        Role::Machine => super::machine::main(owned),
        #[cfg(test)]
        Role::Owner => super::tests::owner_main(owned),
    }
}

/// Closes all file descriptors above the standard streams, except those in `keep`.
fn close_others(keep: &[RawFd]) {
    let mut keep: Vec<u32> = keep
        .iter()
        .filter_map(|fd| u32::try_from(*fd).ok())
        .collect();
    keep.sort_unstable();
    let mut first = 3;
    for fd in keep {
        if fd > first {
            close_range(first, fd - 1);
        }
        first = fd.saturating_add(1);
    }
    close_range(first, u32::MAX);
}

fn close_range(first: u32, last: u32) {
    // SAFETY: nothing in this process, which has just begun, owns a descriptor in the range.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
    if result == 0 {
        return;
    }
    // Linux before 5.9 does not have the call.
    let Ok(entries) = std::fs::read_dir("/proc/self/fd") else {
        return;
    };
    let fds: Vec<RawFd> = entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect();
    for fd in fds {
        if u32::try_from(fd).is_ok_and(|fd| (first..=last).contains(&fd)) {
            // SAFETY: as above; closing the directory's own, closed already, does nothing.
            unsafe { libc::close(fd) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_variable_is_read_strictly() {
        assert_eq!(parse("worker:3,4"), Some((Role::Worker, vec![3, 4])));
        assert_eq!(parse("machine:9"), Some((Role::Machine, vec![9])));
        for wrong in [
            "",
            "worker",
            "worker:",
            "worker:1",
            "worker:x",
            "worker:-1",
            "init:3",
            "worker:3,3",
            "worker:3,4,3",
            "worker:3,03",
        ] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_stray_variable_ends_the_process_before_main() {
        let status = std::process::Command::new("/proc/self/exe")
            .env(VARIABLE, "worker:200")
            .status()
            .unwrap();
        assert_eq!(status.code(), Some(exit_status::USAGE));
    }
}
