//! Starts this executable again in another role.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};

use super::entry;

/// The role of a re-executed process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// A cluster's worker.
    Worker,
    /// One virtual machine.
    Machine,
    /// A process that owns clusters and is killed by a test.
    #[cfg(test)]
    Owner,
}

impl Role {
    const ALL: &[Self] = &[
        Self::Worker,
        Self::Machine,
        #[cfg(test)]
        Self::Owner,
    ];

    /// The name of the role in the environment.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Worker => "worker",
            Self::Machine => "machine",
            #[cfg(test)]
            Self::Owner => "owner",
        }
    }

    /// The role of that name.
    pub(crate) fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|role| role.name() == name)
    }
}

/// What every process needs of its parent's environment: where the dynamic loader finds libraries that this executable
/// is linked with, and what is logged.
const EACH_NEEDS: [&str; 2] = ["LD_LIBRARY_PATH", "FLEETBOX_LOG"];

/// Leaves out of a command's environment what its role does not need. The rest may be secrets, and a guest that took
/// over its machine process could read them.
fn keep_environment(role: Role, command: &mut Command) {
    let keep = |name: &str| match role {
        Role::Machine => EACH_NEEDS.contains(&name),
        // A worker has settings of its own, and hands some on.
        Role::Worker => EACH_NEEDS.contains(&name) || name.starts_with("FLEETBOX_"),
        #[cfg(test)]
        Role::Owner => true,
    };
    command.env_clear();
    for (name, value) in std::env::vars_os() {
        if name.to_str().is_some_and(keep) {
            command.env(name, value);
        }
    }
}

/// A command that runs this executable as `role` for `subject`. It inherits only `fds`, in that
/// order. Its standard streams are /dev/null unless the caller sets them. Of this process's environment it has what its
/// role needs.
///
/// # Errors
/// No file descriptor is free, or this program was linked without the entry point.
pub(crate) fn command(role: Role, subject: &str, fds: &[BorrowedFd<'_>]) -> io::Result<Command> {
    if !entry::is_linked() {
        return Err(io::Error::other(
            "this program was linked without fleetbox's constructor (.init_array was dropped), \
             so it cannot run virtual machines",
        ));
    }
    // Copies: each has a number of its own, whatever is given twice, and none is that of a standard
    // stream, which the child refuses.
    let fds = fds
        .iter()
        .map(|fd| fd.try_clone_to_owned())
        .collect::<io::Result<Vec<OwnedFd>>>()?;
    let mut value = OsString::from(role.name());
    for (index, fd) in fds.iter().enumerate() {
        value.push(if index == 0 { ":" } else { "," });
        value.push(fd.as_raw_fd().to_string());
    }
    let mut command = Command::new("/proc/self/exe");
    keep_environment(role, &mut command);
    command
        .arg0(format!("fleetbox-{}: {subject}", role.name()))
        .env(entry::VARIABLE, value)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let in_child = move || {
        for fd in &fds {
            fcntl(fd.as_fd(), FcntlArg::F_SETFD(FdFlag::empty()))?;
        }
        if role == Role::Worker {
            // Away from the owner's terminal: its Ctrl-C and hang-up are not the worker's.
            nix::unistd::setsid()?;
        }
        Ok(())
    };
    // SAFETY: the closure only makes the system calls fcntl and setsid and allocates nothing, so
    // it is sound in the child of a process with several threads.
    unsafe { command.pre_exec(in_child) };
    Ok(command)
}
