//! Exit statuses, as `--help` documents them.

/// The command failed.
pub(crate) const FAILURE: u8 = 1;
/// The reader of standard output was gone before everything was written: what a shell shows for a program that SIGPIPE
/// ended.
pub(crate) const PIPE: u8 = 141;
/// The arguments were refused.
pub(crate) const REFUSED: u8 = 2;
/// `ssh`, `exec` or `run` could not run the command in the guest. Otherwise they pass on its
/// status.
pub(crate) const GUEST_FAILURE: u8 = 255;
