//! The error of the public API: one variant for each part of the library, with its own error as
//! the source.

use crate::images::ImageError;
use crate::names::InvalidValue;
use crate::seed::SeedError;
use crate::ssh::SshError;
use crate::store::StoreError;

/// Why an operation of the library failed.
///
/// Messages say what failed, on what, why, and what can be done; they are complete without the
/// chain of sources.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A value was refused before anything was created.
    #[error(transparent)]
    Invalid(#[from] InvalidValue),
    /// The state directory.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Finding or downloading an image.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// Writing the cloud-init seed.
    #[error(transparent)]
    Seed(#[from] SeedError),
    /// Keys, or the SSH connection to the guest.
    #[error(transparent)]
    Ssh(#[from] SshError),
}

/// A result with the library's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;
