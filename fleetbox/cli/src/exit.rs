//! Exit statuses, as `--help` documents them.

/// The command failed.
pub(crate) const FAILURE: u8 = 1;
/// The arguments were refused.
pub(crate) const REFUSED: u8 = 2;
/// `ssh`, `exec` or `run` could not run the guest's command, whose status is passed on otherwise.
pub(crate) const GUEST_FAILURE: u8 = 255;
