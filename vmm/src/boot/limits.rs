//! Bounds on the work that a disk can cause.

use std::time::Duration;

/// How much of a disk is read and interpreted at most.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Bytes of a kernel.
    pub kernel: u64,
    /// Bytes of all initrds together.
    pub initrd: u64,
    /// Bytes of one configuration file or environment block.
    pub config: u64,
    /// Commands that a configuration runs.
    pub steps: u64,
    /// Bytes read from the disk, in all.
    pub bytes: u64,
    /// Reads from the disk, in all.
    pub reads: u64,
    /// Time that all of it takes.
    pub time: Duration,
}

impl Default for Limits {
    /// A kernel of 256 MiB, initrds of 1 GiB, configuration files of 1 MiB, 100,000 commands,
    /// 4 GiB and 8 million reads, one minute.
    fn default() -> Self {
        Self {
            kernel: 256 << 20,
            initrd: 1 << 30,
            config: 1 << 20,
            steps: 100_000,
            bytes: 4 << 30,
            reads: 8_000_000,
            time: Duration::from_secs(60),
        }
    }
}
