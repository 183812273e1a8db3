//! Tap devices, which join a network to one of the host.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

const DEVICE: &str = "/dev/net/tun";

mod ioctl {
    // <linux/if_tun.h> says `int`, and means a pointer to `struct ifreq`.
    nix::ioctl_readwrite_bad!(
        set_interface,
        nix::request_code_write!(b'T', 202, size_of::<libc::c_int>()),
        libc::ifreq
    );
}

/// Creates the tap device `name` (1 to 15 bytes) in the caller's network namespace, or opens an existing one that is
/// not in use. Reads and writes are non-blocking, and each carries one bare, complete Ethernet frame with its
/// checksums. A device that this creates is removed when its descriptor is closed, in any way.
///
/// ```no_run
/// # fn main() -> std::io::Result<()> {
/// let tap = fleetbox_net::open_tap("tap0")?;
/// # Ok(()) }
/// ```
///
/// # Errors
/// The host has no tap devices, the name is invalid or in use (`InvalidInput`), or the caller lacks
/// CAP_NET_ADMIN (`PermissionDenied`).
pub fn open_tap(name: &str) -> io::Result<OwnedFd> {
    let invalid = || io::Error::new(io::ErrorKind::InvalidInput, "invalid interface name");
    // SAFETY: `ifreq` is plain data, for which zero bytes are a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // The last byte stays zero. A `%` would be a pattern.
    let place = request.ifr_name.get_mut(..name.len());
    let place = place.filter(|_| name.len() < libc::IFNAMSIZ && !name.is_empty());
    let letters = |byte: u8| byte.is_ascii_graphic() && byte != b'/' && byte != b'%';
    let place = place.filter(|_| name.bytes().all(letters));
    for (to, from) in place.ok_or_else(invalid)?.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI) as libc::c_short;
    let tun = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open(DEVICE)?;
    // SAFETY: the descriptor is open, and the request is a whole `ifreq` that the kernel reads and
    // writes during the call only.
    unsafe { ioctl::set_interface(tun.as_raw_fd(), &raw mut request) }?;
    Ok(tun.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_are_none_are_refused_before_anything_is_opened() {
        for name in ["", "a/b", "tap%d", "a b", "sixteen-letters-", "\u{e4}"] {
            let error = open_tap(name).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{name}");
        }
    }
}
