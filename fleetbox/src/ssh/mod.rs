//! SSH to the guest: a client over any byte stream.
//!
//! fleetbox generates the guest's host key and gives it to the guest. So the client knows the key
//! beforehand, and never has to trust an unknown one.

mod child;
mod client;
pub mod config;
mod ready;

use std::io;
use std::time::Duration;

pub use self::child::{Child, ExitStatus, Output, Stderr, Stdin, Stdout};
pub use self::client::{Client, PtyRequest, Target};
pub use self::ready::wait_ready;
pub use crate::model::keys::{KeyError, Keypair, PublicKey};

use crate::util::readable::readable_debug;

/// Why SSH failed.
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum SshError {
    /// A key cannot be used.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The client cannot connect to the guest's port.
    #[error(
        "cannot connect to the guest's SSH port: {source}; the guest may still be booting, or its SSH server is not running"
    )]
    Connect {
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The server did not complete the SSH handshake in time.
    #[error(
        "the guest's SSH server did not answer within {0:?}; the guest may be overloaded or hung"
    )]
    HandshakeTimeout(Duration),
    /// The server has a different host key than the one given to the guest.
    #[error(
        "the guest's SSH host key is {found}, but {expected} was expected: either cloud-init has \
         not run in the guest, or another server answers at its address"
    )]
    HostKeyMismatch {
        /// Fingerprint of the key that was given to the guest.
        expected: String,
        /// Fingerprint of the key that the server has.
        found: String,
    },
    /// The server does not accept fleetbox's key.
    #[error(
        "the guest refused to log in user {user:?}: the user does not exist there, or its authorized_keys file has changed"
    )]
    Auth {
        /// The user.
        user: String,
    },
    /// The server refused to run a command or to open a terminal.
    #[error("the guest's SSH server refused {what}")]
    Refused {
        /// What the server refused to do.
        what: &'static str,
    },
    /// The connection ended before the command did.
    #[error(
        "the SSH connection was lost before the command ended; the guest may have stopped or rebooted"
    )]
    Lost,
    /// A command wrote more than the limit.
    #[error("the command wrote more than {limit} bytes; stream its output with spawn instead")]
    OutputTooLarge {
        /// The limit in bytes.
        limit: usize,
    },
    /// The guest did not become reachable by the deadline.
    #[error(
        "timed out after {waited:.1?} and {attempts} attempts to log in over SSH; last attempt: {last}"
    )]
    NotReady {
        /// How long the client waited.
        waited: Duration,
        /// The number of attempts.
        attempts: u32,
        /// Why the last attempt failed.
        #[source]
        last: Box<SshError>,
    },
    /// The SSH protocol failed.
    #[error("SSH failed: {0}")]
    Protocol(#[source] russh::Error),
}

readable_debug!(SshError);

impl From<russh::Error> for SshError {
    fn from(error: russh::Error) -> Self {
        match error {
            russh::Error::Disconnect
            | russh::Error::HUP
            | russh::Error::SendError
            | russh::Error::RecvError
            | russh::Error::KeepaliveTimeout
            | russh::Error::InactivityTimeout => Self::Lost,
            other => Self::Protocol(other),
        }
    }
}

#[cfg(test)]
mod tests;
