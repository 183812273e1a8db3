//! How long a VM lives.

/// How long a VM and its processes live.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lifetime {
    /// Runs and exists only as long as its owner.
    Ephemeral,
    /// Runs as long as its owner; its disk stays.
    Bound,
    /// Runs until it is stopped.
    Detached,
}
