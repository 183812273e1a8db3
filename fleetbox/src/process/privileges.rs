//! What a machine process gives up before it reads anything that a guest has written.
//!
//! It happens in two steps, both while the process has one thread, because capabilities belong to threads. The first
//! leaves what opening the VM's disks may need; after that, nothing is left.

use std::io;

use nix::errno::Errno;
use nix::sys::signal::Signal;

/// Opens files of other users, as root may, such as disks in a user's private directory.
const CAP_DAC_OVERRIDE: u32 = 1;
/// Reads files and directories of other users.
const CAP_DAC_READ_SEARCH: u32 = 2;
/// Version 3 of the kernel's structures: two words for each set.
const CAPABILITY_VERSION: u32 = 0x2008_0522;

/// Gives up everything that is not needed to open disks.
pub(super) fn restrict() -> io::Result<()> {
    use nix::sys::resource::{Resource, setrlimit};
    // No set-user-id program run from here could gain anything.
    nix::sys::prctl::set_no_new_privs()?;
    // Neither a core dump nor another process of this user gets at the guest's memory.
    setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
    nix::sys::prctl::set_dumpable(false)?;
    // If the worker is killed while this process is stopped (SIGSTOP), it would not see that. This fires when the
    // thread ends that has started this process: a thread of the worker's runtime, which lives as long as the worker.
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
    setrlimit(Resource::RLIMIT_NOFILE, 1024, 1024)?;
    drop_bounding_set()?;
    drop_ambient_set()?;
    keep_only(1 << CAP_DAC_OVERRIDE | 1 << CAP_DAC_READ_SEARCH)
}

/// Gives up what [`restrict`] left.
pub(super) fn drop_capabilities() -> io::Result<()> {
    keep_only(0)
}

/// Empties the set that bounds what a program could gain, as far as this process may.
fn drop_bounding_set() -> io::Result<()> {
    for capability in 0..64 {
        // SAFETY: takes numbers, and changes only what this thread may gain.
        let result = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) };
        match Errno::result(result) {
            Ok(_) => {}
            // There are no more capabilities.
            Err(Errno::EINVAL) => break,
            // A user without privileges has nothing to lose, and can gain nothing.
            Err(Errno::EPERM) => break,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn drop_ambient_set() -> io::Result<()> {
    // SAFETY: takes numbers, and changes only what programs that this thread runs inherit.
    let result = unsafe {
        libc::prctl(
            libc::PR_CAP_AMBIENT,
            libc::PR_CAP_AMBIENT_CLEAR_ALL,
            0,
            0,
            0,
        )
    };
    match Errno::result(result) {
        // Linux before 4.3 has no such set.
        Ok(_) | Err(Errno::EINVAL) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Drops all capabilities of this thread that are not in `kept`, a mask of the first 32. None can be inherited.
fn keep_only(kept: u32) -> io::Result<()> {
    #[repr(C)]
    struct Header {
        version: u32,
        pid: i32,
    }
    #[repr(C)]
    #[derive(Clone, Copy, Default)]
    struct Sets {
        effective: u32,
        permitted: u32,
        inheritable: u32,
    }
    // Pid 0 is the calling thread.
    let mut header = Header {
        version: CAPABILITY_VERSION,
        pid: 0,
    };
    let mut sets = [Sets::default(); 2];
    // SAFETY: the structures have the layout that the kernel documents for this version (capget(2)), and it writes
    // two of the second kind.
    let result = unsafe { libc::syscall(libc::SYS_capget, &raw mut header, sets.as_mut_ptr()) };
    Errno::result(result)?;
    let keep = |has: u32| has & kept;
    let sets = [
        Sets {
            effective: keep(sets[0].permitted),
            permitted: keep(sets[0].permitted),
            inheritable: 0,
        },
        Sets::default(),
    ];
    // SAFETY: as above, and it only reads.
    let result = unsafe { libc::syscall(libc::SYS_capset, &raw const header, sets.as_ptr()) };
    Errno::result(result)?;
    Ok(())
}
